"""What is kept of each entity, and of the lane, to tell a limit: arrays with a row per slot, for compiled loops."""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamdet.compiled import compiled
from streamdet.events import Floats, Ints
from streamdet.threshold.histogram import BINS
from streamdet.threshold.valley import APART, COARSE, COARSE_BINS

WEIGHT_MAX: Final = 1e12
BUDGET_MAX: Final = 3.0

# What lies beyond the bulk of a slot: nothing; anomalies one by one; something that comes in runs.
NOTHING: Final = 0
ISOLATED: Final = 1
CLUSTERED: Final = 2


class Slots(NamedTuple):
    """All that is kept, a row per slot."""

    histogram: NDArray[np.float32]  # (S, BINS) weights; by far the largest of what a worker keeps
    next_pairs: NDArray[np.float32]  # (S, COARSE_BINS) of the smaller one of a score and the one before
    near_pairs: NDArray[
        np.float32
    ]  # (S, COARSE_BINS) of the smaller one of a score and the largest of those before
    recent: NDArray[np.int16]  # (S, APART) bins of the scores before, as a ring
    weight: Floats  # (S,) of the next score
    seen: Ints  # (S,) scores fed
    tokens: Floats  # (S,)
    limit: Floats  # (S,) for the next score; NaN until the first refresh
    admit: Floats  # (S,) raw score up to which a row may be learnt
    high: Floats  # (S,) quantile of all scores
    low: Floats  # (S,) quantile of those below the valley
    floor: Floats  # (S,) where the factor may not bring the limit below
    cut: Floats  # (S,) where the valley ends; infinite where there is none
    beyond: NDArray[np.int8]  # (S,) NOTHING, ISOLATED or CLUSTERED
    evidence: NDArray[np.int8]  # (S,)
    factor: Floats  # (S,) of `high`, while beyond the bulk there is nothing, or runs
    factor_apart: (
        Floats  # (S,) of `low`, while anomalies are exempt: one for both would wind up where they begin
    )
    budget: Floats  # (S,)
    run: Ints  # (S,) scores above `low` in a row
    worst: Floats  # (S,) largest score of the excursion under way
    flags: Ints  # (S,) in the excursion under way
    calm: Ints  # (S,) scores since the last one that was over what the limit is without an excursion
    own: Floats  # (S, W) what only the rule in force keeps, in columns that its file names

    @classmethod
    def empty(cls, slots: int, own: int = 0) -> "Slots":
        """Slots that have seen nothing, with so many columns for the rule in force."""
        return cls(
            histogram=np.zeros((slots, BINS), np.float32),
            next_pairs=np.zeros((slots, COARSE_BINS), np.float32),
            near_pairs=np.zeros((slots, COARSE_BINS), np.float32),
            recent=np.zeros((slots, APART), np.int16),
            weight=np.ones(slots),
            seen=np.zeros(slots, np.int64),
            tokens=np.zeros(slots),
            limit=np.full(slots, np.nan),
            admit=np.full(slots, np.nan),
            high=np.full(slots, np.nan),
            low=np.full(slots, np.nan),
            floor=np.zeros(slots),
            cut=np.full(slots, np.inf),
            beyond=np.zeros(slots, np.int8),
            evidence=np.zeros(slots, np.int8),
            factor=np.ones(slots),
            factor_apart=np.ones(slots),
            budget=np.full(slots, BUDGET_MAX),
            run=np.zeros(slots, np.int64),
            worst=np.zeros(slots),
            flags=np.zeros(slots, np.int64),
            calm=np.zeros(slots, np.int64),
            own=np.zeros((slots, own)),
        )


@compiled
def remember(at: int, slot: int, growth: float, kept: Slots) -> None:  # pragma: no cover - compiled
    """Count a score of this bin, alone and with those before it; it weighs `growth` times as much as the last one."""
    recent, weight = kept.recent[slot], kept.weight[slot]
    largest = recent[0]
    for k in range(1, APART):
        largest = max(largest, recent[k])
    place = kept.seen[slot] % APART
    kept.next_pairs[slot, min(at, recent[place - 1]) // COARSE] += weight
    kept.near_pairs[slot, min(at, largest) // COARSE] += weight
    kept.histogram[slot, at] += weight
    recent[place] = at
    kept.weight[slot] = weight * growth
    kept.seen[slot] += 1
    if kept.weight[slot] > WEIGHT_MAX:  # before they lose digits
        kept.histogram[slot] /= kept.weight[slot]
        kept.next_pairs[slot] /= kept.weight[slot]
        kept.near_pairs[slot] /= kept.weight[slot]
        kept.weight[slot] = 1.0


@compiled
def clear(slot: int, kept: Slots) -> None:  # pragma: no cover - compiled
    """Make a slot what `Slots.empty` gives."""
    kept.histogram[slot] = 0.0
    kept.next_pairs[slot] = 0.0
    kept.near_pairs[slot] = 0.0
    kept.recent[slot] = 0
    kept.weight[slot] = 1.0
    kept.seen[slot] = 0
    kept.tokens[slot] = 0.0
    kept.limit[slot] = np.nan
    kept.admit[slot] = np.nan
    kept.high[slot] = np.nan
    kept.low[slot] = np.nan
    kept.floor[slot] = 0.0
    kept.cut[slot] = np.inf
    kept.beyond[slot] = NOTHING
    kept.evidence[slot] = 0
    kept.factor[slot] = 1.0
    kept.factor_apart[slot] = 1.0
    kept.budget[slot] = BUDGET_MAX
    kept.run[slot] = 0
    kept.worst[slot] = 0.0
    kept.flags[slot] = 0
    kept.calm[slot] = 0
    kept.own[slot] = 0.0
