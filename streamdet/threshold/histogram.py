"""Histograms of raw scores on a logarithmic axis, one per entity: constant memory, and a quantile at any time.

Weights grow with every score instead of all older ones shrinking, which is the same after division: the newest
weighs 1, the one `window` scores ago 1/e.
"""

import math

import numpy as np
from numpy.typing import NDArray

from streamdet.compiled import compiled
from streamdet.events import Floats

Histogram = NDArray[
    np.float32
]  # (BINS,) weights; float32, as they are by far the largest of what a worker keeps

# 5 % wide bins in score, from exp(-7) to exp(9).
BINS = 320
LOG_LOW = -7.0
LOG_WIDTH = 0.05
SCORE_MIN = 1e-12
# A bin with so many times the mass asked for holds one value over and over, as when a machine stands still.
# Interpolated, the limit would lie below it now and then, and flag all of it: so it is the upper end of the bin.
ONE_VALUE = 4.0
TAIL_START = 0.05
TAIL_SCALE_MIN = 0.05


@compiled
def bin_of(score: float) -> int:  # pragma: no cover - compiled
    """The bin of a score; the first or the last one for what lies beyond."""
    position = (np.log(max(score, SCORE_MIN)) - LOG_LOW) / LOG_WIDTH
    return int(min(max(position, 0.0), BINS - 1.0))  # clipped first: it may be infinite


@compiled
def upper_edge(at: int) -> float:  # pragma: no cover - compiled
    """The score where a bin ends."""
    return math.exp(LOG_LOW + LOG_WIDTH * (at + 1))


@compiled
def upper_edge_of_last(histogram: Histogram, least: float) -> float:  # pragma: no cover - compiled
    """The score where the last bin ends that holds at least so much; 0 where none does."""
    for j in range(BINS - 1, -1, -1):
        if histogram[j] >= least:
            return upper_edge(j)
    return 0.0


@compiled
def mass(histogram: Histogram, first: int, end: int) -> float:  # pragma: no cover - compiled
    """Of the bins from `first` to before `end`; summed in float64, which the sum of a float32 array is not."""
    total = 0.0
    for j in range(first, end):
        total += histogram[j]
    return total


@compiled
def quantile(histogram: Histogram, end: int, above: float) -> float:  # pragma: no cover - compiled
    """The score with this mass above it, of the bins before `end`; linear in log score inside a bin."""
    passed = 0.0
    for j in range(end - 1, -1, -1):
        passed += histogram[j]
        if passed >= above and histogram[j] > 0.0:
            if histogram[j] > ONE_VALUE * above:
                return upper_edge(j)
            return math.exp(LOG_LOW + LOG_WIDTH * (j + (passed - above) / histogram[j]))
    return math.exp(LOG_LOW)


@compiled
def extrapolated(histogram: Histogram, total: float, rate: float) -> float:  # pragma: no cover - compiled
    """The (1 - rate) quantile by an exponential tail through the mean excess over the 95 % quantile."""
    if rate >= TAIL_START:
        return quantile(histogram, BINS, rate * total)
    start = quantile(histogram, BINS, TAIL_START * total)
    weight = 0.0
    excess = 0.0
    for j in range(BINS):
        middle = math.exp(LOG_LOW + LOG_WIDTH * (j + 0.5))
        if middle > start:
            weight += histogram[j]
            excess += histogram[j] * (middle - start)
    scale = excess / weight if weight > 0.0 else 0.0
    return start + max(scale, TAIL_SCALE_MIN * start) * math.log(TAIL_START / rate)


def places(before: Floats, after: Floats) -> Floats:
    """Where the middle of each bin lies on a new scale, (BINS,), as a fractional number of a bin.

    `before` and `after`, (m,), are scores of the same rows on the old and the new scale: quantiles are mapped to
    quantiles, and what lies beyond the largest goes by their ratio.
    """
    old, new = (np.log(np.maximum(np.sort(scores), SCORE_MIN)) for scores in (before, after))
    middle = LOG_LOW + LOG_WIDTH * (np.arange(BINS) + 0.5)
    mapped = np.interp(middle, old, new)
    mapped = np.where(middle >= old[-1], middle + new[-1] - old[-1], mapped)
    mapped = np.where(middle <= old[0], middle + new[0] - old[0], mapped)
    where: Floats = np.clip((mapped - LOG_LOW) / LOG_WIDTH - 0.5, 0.0, BINS - 1.001)
    return where


@compiled
def carried_over(score: float, where: Floats) -> float:  # pragma: no cover - compiled
    """Where a score lies on a new scale, between the places of the two bins whose middles are nearest."""
    position = (np.log(max(score, SCORE_MIN)) - LOG_LOW) / LOG_WIDTH - 0.5
    position = min(max(position, 0.0), BINS - 1.001)
    low = int(position)
    place = where[low] + (position - low) * (where[low + 1] - where[low])
    return math.exp(LOG_LOW + LOG_WIDTH * (place + 0.5))


@compiled
def move(histogram: Histogram, where: Floats) -> None:  # pragma: no cover - compiled
    """Move the mass of each bin to its place, split between the two nearest: rounding then moves none on average.

    `where` has a place, counted in bins of this histogram, for each of its bins.
    """
    last = len(histogram) - 1
    after = np.zeros(len(histogram))
    for j in range(len(histogram)):
        if histogram[j] > 0.0:
            low = min(int(where[j]), last - 1)
            share = min(where[j] - low, 1.0)
            after[low] += histogram[j] * (1.0 - share)
            after[low + 1] += histogram[j] * share
    histogram[:] = after
