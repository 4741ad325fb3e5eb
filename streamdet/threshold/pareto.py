"""The generalised Pareto tail: excesses over a high base are above x with (1 + shape x / scale)^(-1 / shape).

Fitted to excesses by probability-weighted moments (Hosking and Wallis, "Parameter and Quantile Estimation for the
Generalized Pareto Distribution", Technometrics 1987): two means, whatever the excesses are. *Against:* maximum
likelihood by Grimshaw's trick, as in the paper on SPOT: roots of a function with several of them, searched for between
bounds that follow from the data, which is better only where there are many more excesses than are kept here, and has
no answer for some samples.
"""

import math
from typing import Final, NamedTuple

import numpy as np

from streamdet.compiled import compiled
from streamdet.events import Floats

# Surprises in nats have an exponential tail, whose shape is 0: an estimate is drawn there as if by so many excesses.
SHAPE_PRIOR: Final = 50.0
SHAPE_MAX: Final = 0.4
# Closer to 0 the tail is exponential, to all digits.
SHAPE_MIN: Final = 1e-6


class Tail(NamedTuple):
    """Scale, in the unit of the scores, and shape; that of an exponential tail is 0."""

    scale: float
    shape: float


@compiled
def quantile_of_tail(tail: Tail, share: float) -> float:  # pragma: no cover - compiled
    """The excess that this share of all excesses lies above."""
    if abs(tail.shape) < SHAPE_MIN:
        return -tail.scale * math.log(share)
    return float(tail.scale / tail.shape * (share**-tail.shape - 1.0))


@compiled
def mean_beyond(tail: Tail, excess: float) -> float:  # pragma: no cover - compiled
    """The mean of the excesses that are larger than this one."""
    return excess + (tail.scale + tail.shape * excess) / (1.0 - tail.shape)


@compiled
def fitted(excesses: Floats, share: float, beyond: float) -> Tail:  # pragma: no cover - compiled
    """The tail that excesses (n,), n > 1, are from, of which the largest are missing.

    Args:
        excesses: all below some limit, in any order.
        share: of the excesses that lay beyond the limit.
        beyond: what those are on average.
    """
    mean, half = share * beyond, 0.5 * share * share * beyond
    n = len(excesses)
    weight = (1.0 - share) / n
    ordered = np.sort(excesses)
    for i in range(n):
        mean += weight * ordered[i]
        half += weight * ordered[i] * (1.0 - (1.0 - share) * (i + 0.65) / n)
    # `half` is the mean of the smaller one of two excesses, halved.
    raw = 2.0 - mean / (mean - 2.0 * half) if mean > 2.0 * half else SHAPE_MAX
    shape = min(max(raw * n / (n + SHAPE_PRIOR), -SHAPE_MAX), SHAPE_MAX)
    return Tail(mean * (1.0 - shape), shape)
