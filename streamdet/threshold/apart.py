"""Scores of reference rows that are anomalies by all that can be told: they lie apart, and come one by one."""

import math

from streamdet.compiled import compiled
from streamdet.events import Floats
from streamdet.threshold.histogram import bin_of, upper_edge
from streamdet.threshold.slots import Slots, remember
from streamdet.threshold.valley import arrives_independently, find_valley


def beginning_of_those_apart(scores: Floats) -> float:
    """From which score on they lie apart, infinite where none do.

    Args:
        scores: of rows in the order of their arrival, (n,), positive.
    """
    kept = Slots.empty(1)
    return _beginning(scores, kept)


@compiled
def _beginning(scores: Floats, kept: Slots) -> float:  # pragma: no cover - compiled
    for score in scores:
        remember(bin_of(score), 0, 1.0, kept)
    valley = find_valley(kept.histogram[0], 1.0, 0.0)
    if valley < 0 or not arrives_independently(
        kept.histogram[0], kept.next_pairs[0], kept.near_pairs[0], 1.0, valley
    ):
        return math.inf
    return float(upper_edge(valley))
