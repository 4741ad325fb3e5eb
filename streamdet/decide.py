"""Scores to verdicts, and flagged verdicts to alerts that say why."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime

from streamdet.events import (
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
        shares = _shares(events, i, featured, explanation, k, features, schema)
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
                features=shares,
                model_version=model.id,
                source=position,
                event=originals[k],
                confidence=1.0 - sum(share.imputed for share in shares) / len(shares),
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
    shares = []
    numeric = len(schema.numeric)
    for column, name in enumerate(schema.columns):
        share = float(explanation.share[k, column])
        if column < numeric:
            value = float(events.numeric[i, column])
            actual = None if math.isnan(value) else value
            expected = float(explanation.expected[k, column])
            shares.append(FeatureShare(name, actual, expected, share, imputed=actual is None))
        else:
            c = column - numeric
            shares.append(
                FeatureShare(
                    name, events.categorical[c][i], features.category(c, int(featured.usual[i, c])), share
                )
            )
    return sorted(shares, key=lambda feature: -feature.share)


def _iso(time_ms: int) -> str:
    return (
        datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )
