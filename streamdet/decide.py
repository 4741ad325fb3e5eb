"""Scores to verdicts, and flagged verdicts to alerts that say why."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime

from streamdet.events import (
    AMOUNT,
    COUNTS,
    GAP,
    KEY_COLUMNS,
    SUMS,
    Alert,
    Bools,
    Events,
    FeatureShare,
    Floats,
    Ints,
    Mode,
    Schema,
    SourcePosition,
    Verdicts,
)
from streamdet.features.rows import Featured, LaneFeatures
from streamdet.models.version import Explanation, ModelVersion
from streamdet.threshold.limits import Limits

# Multiples of the limit from which an alert is major, and critical.
MAJOR, CRITICAL = 1.5, 2.5
# What tells less of a transaction's history is left out: of so many facts most tell nothing.
SHARE_MIN = 1e-5
# What is expected of a counterpart: no name, as an entity has many.
KNOWN = "a known one"
# What the history tells of a key of a transaction, in the words of an alert.
FACTS = {GAP: "seconds_since_last"} | {
    first + j: f"{what}_{span}"
    for what, first in (("count", COUNTS), ("sum", SUMS))
    for j, span in enumerate(("1h", "24h", "7d"))
}


def judge(raw: Floats, slots: Ints, fresh: Bools, limits: Limits, *, alerting: bool) -> Verdicts:
    """Verdicts on n raw scores of one lane, in order. The limit for a score has seen nothing of it or after it."""
    judged = limits.judge(raw, slots, fresh, alerting=alerting)
    return Verdicts(raw, judged.limit, judged.mode, judged.flagged, judged.fed, judged.normal)


def severity(score: float) -> str:
    """How far over the limit: minor, major or critical."""
    if score >= CRITICAL:
        return "critical"
    return "major" if score >= MAJOR else "minor"


def explain(
    events: Events,
    featured: Featured,
    verdicts: Verdicts,
    which: Ints,
    *,
    model: ModelVersion,
    features: LaneFeatures,
    schema: Schema,
    originals: Sequence[dict[str, object]],
    detected_at_ms: int,
) -> list[Alert]:
    """Alerts for the k events at the positions `which`, (k,), whose original fields are given, k of them."""
    if not len(which):
        return []
    explanation = model.explain(featured.rows[which])
    detected_at = _iso(detected_at_ms)
    score, p_value = verdicts.score, verdicts.p_value
    alerts = []
    for k, i in enumerate(which.tolist()):
        position = SourcePosition(events.lane.topic, events.lane.partition, int(events.offsets[i]))
        alerts.append(
            Alert(
                id=f"{position.topic}/{position.partition}/{position.offset}",
                event_time=_iso(int(events.times_ms[i])),
                detected_at=detected_at,
                entity=events.entities[i] or None,
                score=float(score[i]),
                raw_score=float(verdicts.raw[i]),
                limit=float(verdicts.limit[i]),
                p_value=float(p_value[i]),
                severity=severity(float(score[i])),
                mode=Mode(int(verdicts.mode[i])).label,
                features=_shares(events, i, featured, explanation, k, features, schema),
                model_version=model.id,
                source=position,
                event=originals[k],
            )
        )
    return alerts


def _shares(
    events: Events,
    i: int,
    featured: Featured,
    explanation: Explanation,
    k: int,
    features: LaneFeatures,
    schema: Schema,
) -> list[FeatureShare]:
    """Event i, row k of the explanation; the largest share first."""
    shares = _of_history(events, i, featured, explanation, k, schema)
    numeric = len(schema.numeric)
    for column, name in enumerate(schema.columns):
        share = float(explanation.share[k, column])
        if column < numeric:
            value = float(events.numeric[i, column])
            actual = None if math.isnan(value) else value
            expected = float(explanation.expected[k, column])
            if name == schema.amount:
                share += float(explanation.share[k, len(schema.columns) + AMOUNT])
                expected = float(explanation.usual[k, AMOUNT])
            shares.append(FeatureShare(name, actual, expected, share))
        else:
            c = column - numeric
            shares.append(
                FeatureShare(
                    name, events.categorical[c][i], features.category(c, int(featured.usual[i, c])), share
                )
            )
    return sorted(shares, key=lambda feature: -feature.share)


def _of_history(
    events: Events, i: int, featured: Featured, explanation: Explanation, k: int, schema: Schema
) -> list[FeatureShare]:
    """Those facts of the history of a transaction's keys that tell something, but for the amount."""
    shares = explanation.share[k, len(schema.columns) :]
    history = featured.rows.values[i, featured.rows.values.shape[1] - len(shares) :]
    told = []
    for column in (int(c) for c in (shares >= SHARE_MIN).nonzero()[0] if c != AMOUNT):
        key, fact = divmod(column - 1, KEY_COLUMNS)
        share, expected = float(shares[column]), float(explanation.usual[k, column])
        if key <= len(schema.counterparts):
            owner = (schema.entity, *schema.counterparts)[key]
            told.append(FeatureShare(f"{FACTS[fact]} of {owner}", float(history[column]), expected, share))
        else:
            which = column - 1 - KEY_COLUMNS * (1 + len(schema.counterparts))
            name = events.counterparts[which][i] or None
            told.append(FeatureShare(schema.counterparts[which], name, KNOWN, share))
    return told


def _iso(time_ms: int) -> str:
    return (
        datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )
