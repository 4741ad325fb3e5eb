"""Scores on one scale: a score becomes its surprise, -ln of the probability of a score at least as high.

The bulk follows the empirical distribution of held-out reference scores; beyond its 95 % quantile a
parametric tail takes over, as an empirical tail ends at its largest score. Heavy-tailed scores (mean deviations)
get a Pareto tail whose index is Hill's estimate (Hill, Annals of Statistics 3, 1975); scores that are
surprises already get an exponential one.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from streamdet.events import Floats

TAIL_PROBABILITY = 0.05
# Knots lie evenly in surprise from 0 to the tail: the finer end is where decisions are made.
KNOTS = 128
# With fewer references the tail index is noise, so it is not let below these floors.
PARETO_INDEX_MIN = 0.02
EXPONENTIAL_SCALE_MIN = 0.05
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
        above = reference[reference > start]
        if pareto:
            excess = float(np.log(above / start).mean()) if above.size else 0.0
            scale = max(excess, PARETO_INDEX_MIN)
        else:
            excess = float((above - start).mean()) if above.size else 0.0
            scale = max(excess, EXPONENTIAL_SCALE_MIN)
        return cls(torch.tensor(knots, dtype=torch.float32), torch.tensor(scale, dtype=torch.float32), pareto)

    def surprise(self, scores: Tensor) -> Tensor:
        """Map scores, (n,), to nats, (n,)."""
        step = -math.log(TAIL_PROBABILITY) / (KNOTS - 1)
        upper = torch.searchsorted(self.knots, scores).clamp(1, KNOTS - 1)
        low, high = self.knots[upper - 1], self.knots[upper]
        fraction = ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0.0, 1.0)
        bulk = (upper - 1 + fraction) * step
        start = self.knots[-1]
        beyond = torch.log(scores.clamp_min(SCORE_MIN) / start) if self.pareto else scores - start
        return bulk + beyond.clamp_min(0.0) / self.tail_scale

    def to(self, device: torch.device) -> "Calibration":
        """The same map on another device."""
        return Calibration(self.knots.to(device), self.tail_scale.to(device), self.pareto)
