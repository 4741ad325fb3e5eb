"""Whether a candidate may replace the model in use: it must explain, stay quiet and detect about as well."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from streamdet.config import Gate
from streamdet.events import AMOUNT, DRIFT, NEWEST_COLUMNS, RECENT_STEPS, Floats, Rows
from streamdet.models.version import ModelVersion

# An anomaly is planted by moving one column of a normal row this many spreads away.
PLANTED_SPREADS = 6.0
# Of a transaction it is the amount, which becomes so many times as large as it was.
PLANTED_TIMES = 5.0
PLANTED_EVERY = 4  # of the rows: so many do for a probability
# Chance alone puts a few rows over the limit: so many more than the ratio allows do not refuse a candidate.
ALERTS_SLACK = 5


class Refusal(StrEnum):
    """Why a candidate was not adopted."""

    NOT_FINITE = "not_finite"
    LOSS = "loss"
    ALERT_VOLUME = "alert_volume"
    DETECTION = "detection"


@dataclass(frozen=True, slots=True)
class GateResult:
    """What the gate measured."""

    refusal: Refusal | None
    loss_ratio: float
    alert_share: float
    detected: float
    detected_before: float

    def __str__(self) -> str:
        return (
            f"loss_ratio={self.loss_ratio:.3f} alert_share={self.alert_share:.4f} "
            f"detected={self.detected:.3f} detected_before={self.detected_before:.3f}"
        )


def examine(
    candidate: ModelVersion,
    current: ModelVersion,
    held_out: Rows,
    limit: float,
    alert_rate: float,
    gate: Gate,
) -> GateResult:
    """Compare on held-out normal rows, oldest first, under the limit in force.

    Without those that lie apart to the model in use: else a model that has taken anomalies for usual would stay for
    good, as one that tells them gives more alerts.
    """
    held_out = held_out[~current.apart(current.raw_scores(held_out))]
    before, after = current.score(held_out), candidate.score(held_out)
    if not np.isfinite(after).all():
        return GateResult(Refusal.NOT_FINITE, np.nan, np.nan, np.nan, np.nan)
    loss_ratio = candidate.unexplained(held_out) / current.unexplained(held_out)
    # The limit goes over to the candidate's scale by the older rows, and is tried on the newer ones.
    half = len(held_out) // 2
    carried = np.interp(
        limit, np.sort(before[:half]), np.sort(after[:half]), right=_beyond(limit, before, after, half)
    )
    alert_share = float((after[half:] >= carried).mean())
    planted = _planted(held_out[::PLANTED_EVERY], current)
    detected = _separation(candidate.score(planted), after)
    detected_before = _separation(current.score(planted), before)
    refusal = None
    if loss_ratio > gate.loss_ratio_max:
        refusal = Refusal.LOSS
    elif alert_share > gate.alert_ratio_max * alert_rate + ALERTS_SLACK / (len(held_out) - half):
        refusal = Refusal.ALERT_VOLUME
    elif detected < detected_before - gate.detection_loss_max:
        refusal = Refusal.DETECTION
    return GateResult(refusal, loss_ratio, alert_share, detected, detected_before)


def _beyond(limit: float, before: Floats, after: Floats, half: int) -> float:
    """The limit on the candidate's scale where it lies above all scores: by the ratio of the largest ones."""
    return float(limit * after[:half].max() / max(before[:half].max(), 1e-9))


def _separation(planted: Floats, normal: Floats) -> float:
    """Probability that a planted anomaly scores above a normal row: by ranks, as some of the rows may not be normal."""
    return float((np.searchsorted(np.sort(normal), planted) / len(normal)).mean())


def _planted(rows: Rows, model: ModelVersion) -> Rows:
    """The rows, each with one feature moved far, and its recent means with it; features and directions take turns.

    Far is measured by the rows themselves, so that a stream that has become wider is not held against a candidate.
    """
    values = rows.values.copy()
    features, numeric = len(model.columns), model.numeric
    number = np.arange(len(values))
    column = number % features
    direction = np.where((number // features) % 2 == 0, 1.0, -1.0)
    low, high = np.quantile(values[:, :features], [0.05, 0.95], axis=0)
    least = model.scaler.spread.numpy()[:features]
    spread = np.where(high > low, (high - low) / 3.29, least)  # 3.29: of a normal distribution
    displacement = (direction * PLANTED_SPREADS * spread[column]).astype(np.float32)
    values[number, column] += displacement
    means = np.flatnonzero(column < numeric)
    for k, step in enumerate(RECENT_STEPS):
        values[means, features + k * numeric + column[means]] += np.float32(step) * displacement[means]
    # The newest rows know nothing of what was planted: where they have moved, they would have it usual.
    values[:, features + 2 * numeric + DRIFT] = 0.0
    if model.preset == "transactions":
        values[:, features + 2 * numeric + NEWEST_COLUMNS + AMOUNT] *= PLANTED_TIMES
    return Rows(values, rows.imputed)
