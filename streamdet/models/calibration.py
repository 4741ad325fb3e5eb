"""Scores on one scale: a score becomes its surprise, -ln of the probability of a score at least as high.

The bulk follows the empirical distribution of held-out reference scores; beyond its 95 % quantile a
parametric tail takes over, as an empirical tail ends at its largest score. Heavy-tailed scores (mean deviations)
get a Pareto tail, scores that are surprises already an exponential one; both are laid through two quantiles.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from streamdet.events import Floats

TAIL_PROBABILITY = 0.05
# The tail is laid through this quantile: what lies beyond may be anomalies among the references.
FAR_PROBABILITY = 0.02
# A tail is estimated from few references, and a scale that jumps from version to version would make scores of
# different days incomparable. So the estimate is drawn towards a typical value, as if that had been seen so often.
PARETO_INDEX_PRIOR = 0.15
EXPONENTIAL_SCALE_PRIOR = 0.8
PRIOR_WEIGHT = 50.0
# Knots lie evenly in surprise from 0 to the tail: the finer end is where decisions are made.
KNOTS = 128
SCORE_MIN = 1e-9


@dataclass(frozen=True, slots=True)
class Calibration:
    """A monotone map from scores to surprise, in nats; the same wherever it is loaded."""

    knots: Tensor  # (KNOTS,) scores, ascending
    tail_scale: Tensor  # () Pareto index or exponential scale
    pareto: bool

    @classmethod
    def fit(cls, reference: Floats, *, pareto: bool) -> "Calibration":
        """Learn the map from scores of normal rows that the model was not trained on, (n,), n >= 1."""
        probabilities = np.exp(-np.linspace(0.0, -math.log(TAIL_PROBABILITY), KNOTS))
        knots = np.maximum(np.quantile(reference, 1.0 - probabilities), SCORE_MIN)
        start = knots[-1]
        far = max(float(np.quantile(reference, 1.0 - FAR_PROBABILITY)), float(start))
        nats = math.log(TAIL_PROBABILITY / FAR_PROBABILITY)
        estimate = math.log(far / start) / nats if pareto else (far - start) / nats
        prior = PARETO_INDEX_PRIOR if pareto else EXPONENTIAL_SCALE_PRIOR
        seen = TAIL_PROBABILITY * len(reference)
        scale = (seen * estimate + PRIOR_WEIGHT * prior) / (seen + PRIOR_WEIGHT)
        return cls(torch.tensor(knots, dtype=torch.float32), torch.tensor(scale, dtype=torch.float32), pareto)

    @classmethod
    def none(cls) -> "Calibration":
        """The map of what is a surprise already, and not negative, to itself."""
        knots = torch.linspace(0.0, -math.log(TAIL_PROBABILITY), KNOTS)
        return cls(knots, torch.tensor(1.0), pareto=False)

    def surprise(self, scores: Tensor) -> Tensor:
        """Map scores, (n,), to nats, (n,)."""
        step = -math.log(TAIL_PROBABILITY) / (KNOTS - 1)
        upper = torch.searchsorted(self.knots, scores).clamp(1, KNOTS - 1)
        low, high = self.knots[upper - 1], self.knots[upper]
        fraction = ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0.0, 1.0)
        bulk = (upper - 1 + fraction) * step
        start = self.knots[-1]
        beyond = scores.clamp_min(SCORE_MIN).log() - start.log() if self.pareto else scores - start
        return bulk + beyond.clamp_min(0.0) / self.tail_scale

    def to(self, device: torch.device) -> "Calibration":
        """The same map on another device."""
        return Calibration(self.knots.to(device), self.tail_scale.to(device), self.pareto)
