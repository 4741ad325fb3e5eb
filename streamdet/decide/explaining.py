"""Flagged verdicts to alerts that say why."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np

from streamdet.decide.judging import severity
from streamdet.events import (
    AMOUNT,
    COUNTS,
    GAP,
    HOUR,
    KEY_COLUMNS,
    KEYS,
    SUMS,
    Alert,
    Bools,
    Cause,
    Events,
    FeatureShare,
    Ints,
    Mode,
    Rows,
    Schema,
    SourcePosition,
    Verdicts,
)
from streamdet.features.rows import Featured, LaneFeatures
from streamdet.models.version import Explanation, ModelVersion

# What tells less of a transaction's history is left out: of so many facts most tell nothing.
SHARE_MIN: Final = 1e-5
# What is expected of a counterpart, and of the time of day: no name and no time, as an entity has many.
MET_BEFORE: Final = "a known one"
USUAL_TIME: Final = "a usual one"
# What the history tells of a key of a transaction, in the words of an alert.
FACTS: Final = {GAP: "seconds_since_last"} | {
    first + j: f"{what}_{span}"
    for what, first in (("count", COUNTS), ("sum", SUMS))
    for j, span in enumerate(("1h", "24h", "7d"))
}


@dataclass(frozen=True, slots=True, eq=False)
class Explained:
    """Explanations of the k events at the positions `which`, (k,), ascending."""

    which: Ints
    explanation: Explanation

    def of(self, which: Ints) -> Explanation:
        """Those of some of them."""
        at = np.searchsorted(self.which, which)
        return Explanation(
            self.explanation.expected[at], self.explanation.share[at], self.explanation.usual[at]
        )


def explained_by(model: ModelVersion, rows: Rows, schema: Schema) -> Explanation:
    """Why a model finds rows strange; what the history of a transaction tells of the amount is the amount's.

    Of an amount that is missing it tells nothing: the usual one stood for it.
    """
    explanation = model.explain(rows)
    if schema.amount is None or not explanation.usual.shape[1]:
        return explanation
    expected, share = explanation.expected.copy(), explanation.share.copy()
    amount, history = schema.columns.index(schema.amount), len(schema.columns) + AMOUNT
    missing = rows.imputed[:, amount]
    share[~missing, amount] += share[~missing, history]
    share[:, history] = 0.0
    told = share.sum(axis=1, keepdims=True)
    share = np.divide(share, told, out=np.full_like(share, 1.0 / share.shape[1]), where=told > 0)
    expected[:, amount] = explanation.usual[:, AMOUNT]
    return Explanation(expected, share, explanation.usual)


def explain(
    events: Events,
    featured: Featured,
    verdicts: Verdicts,
    which: Ints,
    *,
    model: ModelVersion | None,
    features: LaneFeatures,
    schema: Schema,
    originals: Sequence[dict[str, object]],
    since_ms: Ints,
    detected_at_ms: int,
    explained: Explained | None = None,
) -> list[Alert]:
    """Alerts for the k events at the positions `which`, (k,), whose original fields are given, k of them.

    Args:
        events: of one lane.
        featured: their rows.
        verdicts: on them.
        which: those that are alerts.
        model: that scored them; without one, only hard ranges can tell why.
        features: of the lane, for its categories.
        schema: of the events.
        originals: all fields of the k events.
        since_ms: when what each of the k stands in has likely begun, (k,).
        detected_at_ms: when they were judged.
        explained: explanations that are there already, of these events among others.
    """
    if not len(which):
        return []
    outside = featured.outside[which]
    if model is None:
        explanation = _by_range_alone(outside, len(schema.columns))
    else:
        rows = featured.rows[which]
        explanation = explained_by(model, rows, schema) if explained is None else explained.of(which)
    detected_at = _iso(detected_at_ms)
    score, p_value = verdicts.score, verdicts.p_value
    alerts = []
    for k, i in enumerate(which.tolist()):
        shares = _shares(events, i, featured, explanation, k, outside[k], features, schema)
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
                model_version="" if model is None else model.id,
                source=position,
                event=originals[k],
                reason=Cause(int(verdicts.reason[i])).label,
                confidence=1.0 - sum(share.imputed for share in shares) / len(schema.columns),
                likely_start=_iso(int(since_ms[k])),
            )
        )
    return alerts


def _shares(
    events: Events,
    i: int,
    featured: Featured,
    explanation: Explanation,
    k: int,
    outside: Bools,
    features: LaneFeatures,
    schema: Schema,
) -> list[FeatureShare]:
    """Event i, row k of the explanation; numbers outside their hard range first, then the largest share."""
    shares = _of_history(events, i, featured, explanation, k, schema)
    numeric = len(schema.numeric)
    for column, name in enumerate(schema.columns):
        share = float(explanation.share[k, column])
        if column < numeric:
            value = float(events.numeric[i, column])
            actual = None if math.isnan(value) else value
            expected = float(explanation.expected[k, column])
            shares.append(
                FeatureShare(
                    name,
                    actual,
                    None if math.isnan(expected) else expected,
                    share,
                    imputed=actual is None,
                )
            )
        else:
            c = column - numeric
            shares.append(
                FeatureShare(
                    name, events.categorical[c][i], features.category(c, int(featured.usual[i, c])), share
                )
            )
    first = {name for name, is_outside in zip(schema.numeric, outside.tolist(), strict=True) if is_outside}
    return sorted(shares, key=lambda feature: (feature.name not in first, -feature.share))


def _of_history(
    events: Events, i: int, featured: Featured, explanation: Explanation, k: int, schema: Schema
) -> list[FeatureShare]:
    """Those facts of the history of a transaction's keys that tell something, but for the amount."""
    shares = explanation.share[k, len(schema.columns) :]
    history = featured.rows.values[i, featured.rows.values.shape[1] - len(shares) :]
    told = []
    for column in (int(c) for c in (shares >= SHARE_MIN).nonzero()[0]):
        key, fact = divmod(column - KEYS, KEY_COLUMNS)
        share = float(shares[column])
        if column == HOUR:
            time_of_day = _time_of_day(int(events.times_ms[i]))
            told.append(FeatureShare(f"time_of_day of {schema.entity}", time_of_day, USUAL_TIME, share))
        elif key <= len(schema.counterparts):
            owner, expected = (schema.entity, *schema.counterparts)[key], float(explanation.usual[k, column])
            told.append(FeatureShare(f"{FACTS[fact]} of {owner}", float(history[column]), expected, share))
        else:
            which = column - KEYS - KEY_COLUMNS * (1 + len(schema.counterparts))
            name = events.counterparts[which][i] or None
            told.append(FeatureShare(schema.counterparts[which], name, MET_BEFORE, share))
    return told


def _by_range_alone(outside: Bools, columns: int) -> Explanation:
    """What can be said of k events without a model: which of their values, (k, D), lie outside a hard range."""
    share = np.zeros((len(outside), columns))
    share[:, : outside.shape[1]] = outside / outside.sum(axis=1, keepdims=True)
    return Explanation(np.full(share.shape, np.nan), share, np.empty((len(outside), 0)))


def _iso(time_ms: int) -> str:
    return (
        datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


def _time_of_day(time_ms: int) -> str:
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%H:%M}"
