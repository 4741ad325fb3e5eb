"""Whom an entity has met how often: of each its last counterparts of one kind, in order and in constant memory."""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamdet.compiled import compiled
from streamdet.events import Bools, Ints

# Counterparts remembered of an entity; the one not met for longest makes room.
PAIRS: Final = 64


class Pairs(NamedTuple):
    """How often entities have met counterparts of one kind, the last met first; a row per slot of the entity."""

    met: Ints  # (S, PAIRS) numbers of counterparts, 0 where there is none
    times: Ints  # (S, PAIRS)


def no_pairs(slots: int) -> Pairs:
    """Of so many entities that have met nobody."""
    return Pairs(met=np.zeros((slots, PAIRS), np.int64), times=np.zeros((slots, PAIRS), np.int64))


@compiled
def meet(
    slots: Ints,
    fresh: Bools,
    seen: Ints,
    at: Ints,
    new: Bools,
    numbers: Ints,
    numbered: Ints,
    kept: Pairs,
    column: int,
    columns: NDArray[np.float32],
) -> None:  # pragma: no cover - compiled
    """Fill in how many times rarer than usual an entity meets a counterpart: its transactions over those with it."""
    for i in range(len(slots)):
        slot = slots[i]
        if fresh[i]:
            kept.met[slot] = 0
            kept.times[slot] = 0
        if new[i]:
            numbered[0] += 1
            numbers[at[i]] = numbered[0]
        times = _times_met(numbers[at[i]], kept.met[slot], kept.times[slot]) if at[i] != 0 else seen[i]
        columns[i, column] = (seen[i] + 1.0) / (times + 1.0)


@compiled
def _times_met(number: int, met: Ints, times: Ints) -> int:  # pragma: no cover - compiled
    """How often it was met before; then puts it first, the others behind it, and the last one out if it is new."""
    place = 0
    while place < PAIRS - 1 and met[place] != number and met[place] != 0:
        place += 1
    before = times[place] if met[place] == number else 0
    for j in range(place, 0, -1):
        met[j] = met[j - 1]
        times[j] = times[j - 1]
    met[0] = number
    times[0] = before + 1
    return int(before)
