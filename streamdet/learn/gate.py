"""Whether a candidate may replace the model in use: it must explain, stay quiet and detect about as well."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from streamdet.config import Gate
from streamdet.events import Floats, Rows
from streamdet.models.version import ModelVersion

# An anomaly is planted by moving one column of a normal row this many spreads away.
PLANTED_SPREADS = 6.0
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
    """Compare on held-out normal rows, under the limit in force."""
    scores = candidate.score(held_out)
    if not np.isfinite(scores).all():
        return GateResult(Refusal.NOT_FINITE, np.nan, np.nan, np.nan, np.nan)
    loss_ratio = _unexplained(candidate, held_out) / _unexplained(current, held_out)
    alert_share = float((scores >= limit).mean())
    planted = _planted(held_out, current)
    detected = float((candidate.score(planted) >= limit).mean())
    before = float((current.score(planted) >= limit).mean())
    refusal = None
    if loss_ratio > gate.loss_ratio_max:
        refusal = Refusal.LOSS
    elif alert_share > gate.alert_ratio_max * alert_rate + ALERTS_SLACK / len(held_out):
        refusal = Refusal.ALERT_VOLUME
    elif detected < before - gate.detection_loss_max:
        refusal = Refusal.DETECTION
    return GateResult(refusal, loss_ratio, alert_share, detected, before)


def _unexplained(model: ModelVersion, rows: Rows) -> float:
    """Residual as a share of deviation: free of the scale, which may differ between the two models."""
    deviation, residual = model.raw_scores(rows)
    return float(max(_typical(residual), 1e-9) / max(_typical(deviation), 1e-9))


def _typical(scores: Floats) -> float:
    return float(np.median(scores))


def _planted(rows: Rows, model: ModelVersion) -> Rows:
    """The rows, each with one column moved far; columns and directions take turns."""
    values = rows.values.copy()
    number = np.arange(len(values))
    column = number % values.shape[1]
    direction = np.where((number // values.shape[1]) % 2 == 0, 1.0, -1.0)
    values[number, column] += (direction * PLANTED_SPREADS * model.scaler.spread.numpy()[column]).astype(
        np.float32
    )
    return Rows(values, rows.imputed)
