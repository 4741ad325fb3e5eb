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
# A map is drawn towards an earlier one at these quantiles of what both say of the same rows.
HELD_AT = (0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99)
# And to no more than so many times its own surprise, nor less than one such part: what lies between two quantiles is
# lifted a little by each burst, and over hundreds of versions that would add up.
TIMES_MAX = 3.0
# Quantiles that are no further apart are one.
NATS_MIN = 1e-6


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

    def drawn_towards(self, before: Floats, own: Floats, renewal: float) -> "Calibration":
        """This map, exponential in its tail, so that what it says of some rows is nearer to what was said before.

        Args:
            before: the surprise of these rows by an earlier model and its map, in nats, (n,), n >= 1.
            own: their surprise by this map, (n,).
            renewal: the share of their own surprise in the outcome, 0 to 1.
        """
        own = np.quantile(own, HELD_AT)
        before = np.clip(np.quantile(before, HELD_AT), own / TIMES_MAX, own * TIMES_MAX)
        drawn = renewal * own + (1.0 - renewal) * before
        # From one scale to the other, in nats: both begin at 0.
        own, drawn = np.append(0.0, own), np.append(0.0, drawn)
        rising = np.append(True, (np.diff(own) > NATS_MIN) & (np.diff(drawn) > NATS_MIN))
        own, drawn = own[rising], drawn[rising]
        nats = np.linspace(0.0, -math.log(TAIL_PROBABILITY), KNOTS)
        at = np.interp(nats, drawn, own) + np.maximum(nats - drawn[-1], 0.0)
        beyond = np.maximum(at - nats[-1], 0.0) * float(self.tail_scale)
        knots = np.interp(at, nats, self.knots.numpy().astype(np.float64)) + beyond
        # The tail goes through the last quantile, and where that lies before it, steps in it are as they were.
        further = drawn[-1] - nats[-1]
        tail_scale = self.tail_scale * ((own[-1] - at[-1]) / further if further > NATS_MIN else 1.0)
        return Calibration(torch.tensor(knots, dtype=torch.float32), tail_scale, self.pareto)

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
