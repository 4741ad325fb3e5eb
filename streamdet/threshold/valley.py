"""Whether scores fall into a bulk and something apart from it: a valley in their density, and how its far side arrives.

A valley alone is no evidence of anomalies, since regimes, periodic jobs and rare states of a machine make valleys
too. Those come in runs. So a far side is trusted only while its scores arrive independently of each other, one by one
and within eight.
"""

import math

import numpy as np

from streamdet.compiled import compiled
from streamdet.events import Floats
from streamdet.threshold.histogram import BINS, Histogram, mass

# Triangular kernels of so many bins smooth the density; a narrow valley shows under one, a shallow one under another.
WIDTHS = (5, 11, 21)
# The far side holds at least so many scores, and twice what is asked to be flagged; it is the smaller side by far.
FAR_SCORES_MIN = 32.0
FAR_RATES_MIN = 2.0
FAR_SHARE_MAX = 0.15
# The ground lies this low beside the far hill, and the difference is this many standard deviations of chance.
DEPTH_MAX = 0.5
SIGNIFICANCE_MIN = 3.5
# Pairs above the valley may exceed what independence lets expect by this factor, and so many standard deviations.
LIFT_MAX = 1.15
CHANCE = 1.5
# Pairs are counted in bins that are this many times wider: they are only asked for what lies above the valley.
COARSE = 4
COARSE_BINS = BINS // COARSE
# Fewer scores make no hill, but may lie beyond a gap: so many bins with next to nothing in them.
GAP_SCORES_MIN = 4.0
GAP_BINS = 10
EMPTY = 0.05
# Bins at either end that hold less than so much of a score are left out.
OCCUPIED = 1e-3
# Within so many scores: commands of a machine repeat at once, long regimes only later.
APART = 8


@compiled
def find_valley(histogram: Histogram, weight: float, rate: float) -> int:  # pragma: no cover - compiled
    """The lowest bin of the most significant valley right of the bulk, -1 where there is none.

    `weight` is that of the newest score: the histogram divided by it counts scores.
    """
    total = mass(histogram, 0, BINS) / weight
    enough = max(FAR_RATES_MIN * rate * total, FAR_SCORES_MIN)
    first, end = _occupied(histogram, OCCUPIED * weight)
    smooth = np.zeros(BINS)
    best, where = SIGNIFICANCE_MIN, -1
    for width in WIDTHS:
        bins_together = _smoothe(histogram, weight, width, first, end, smooth)
        hill, above = 0.0, 0.0
        for j in range(end - 1, np.argmax(smooth), -1):
            if enough <= above <= FAR_SHARE_MAX * total and smooth[j] <= DEPTH_MAX * hill:
                chance = math.sqrt((hill + smooth[j]) * bins_together + 1.0)
                significance = (hill - smooth[j]) * bins_together / chance
                if significance >= best:
                    best, where = significance, j
            hill = max(hill, smooth[j])
            above += histogram[j] / weight
    return where if where >= 0 else _find_gap(histogram, weight, total)


@compiled
def _find_gap(histogram: Histogram, weight: float, total: float) -> int:  # pragma: no cover - compiled
    """The upper end of the lowest wide gap right of the bulk, -1 where there is none."""
    where, above, empty = -1, 0.0, 0
    for j in range(BINS - 1, -1, -1):
        here = histogram[j] / weight
        above += here
        if above > FAR_SHARE_MAX * total:
            break
        empty = empty + 1 if here < EMPTY else 0
        if empty >= GAP_BINS and above >= GAP_SCORES_MIN:
            where = j
    return where


@compiled
def _occupied(histogram: Histogram, least: float) -> tuple[int, int]:  # pragma: no cover - compiled
    """The first bin that holds at least so much, and the one after the last that does."""
    first, end = 0, BINS
    while first < BINS and histogram[first] < least:
        first += 1
    while end > first and histogram[end - 1] < least:
        end -= 1
    return first, end


@compiled
def _smoothe(
    histogram: Histogram, weight: float, width: int, first: int, end: int, smooth: Floats
) -> float:  # pragma: no cover - compiled
    """Smooth counts of scores by a triangular kernel, from bin `first` to before `end`.

    Returns how many bins it takes together, in effect.
    """
    half = (width + 1) // 2
    kernel = half - np.abs(np.arange(1 - half, half))
    norm = kernel.sum()
    for j in range(first, end):
        value = 0.0
        for k in range(max(1 - half, first - j), min(half, end - j)):
            value += kernel[k + half - 1] * histogram[j + k]
        smooth[j] = value / norm / weight
    return float(norm * norm / (kernel * kernel).sum())


@compiled
def arrives_independently(
    histogram: Histogram, next_pairs: Histogram, near_pairs: Histogram, weight: float, valley: int
) -> bool:  # pragma: no cover - compiled
    """Whether scores above a valley come as if by chance.

    `next_pairs` and `near_pairs`, (COARSE_BINS,), hold the smaller one of each score and the one before it, and of
    each score and the largest of the `APART` before it.
    """
    coarse = -(-(valley + 1) // COARSE)
    far = mass(histogram, coarse * COARSE, BINS) / weight
    share = far / (mass(histogram, 0, BINS) / weight)
    if share <= 0.0:
        return False
    expected_next = far * share
    expected_near = far * (1.0 - (1.0 - share) ** APART)
    found_next = mass(next_pairs, coarse, COARSE_BINS) / weight
    found_near = mass(near_pairs, coarse, COARSE_BINS) / weight
    return found_next <= LIFT_MAX * expected_next + CHANCE * math.sqrt(
        expected_next
    ) and found_near <= LIFT_MAX * expected_near + CHANCE * math.sqrt(expected_near)
