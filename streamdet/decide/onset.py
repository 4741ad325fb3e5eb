"""Since when what an alert tells of has likely been going on: the first flagged row is often not the first strange one.

A score that climbs is above what nine in ten rows have some time before it reaches the limit. So the likely start is
the first row of the unbroken stretch of such rows that the alert stands in or at the end of.
"""

from typing import Final, NamedTuple

import numpy as np

from streamdet.compiled import compiled
from streamdet.events import Bools, Ints, State
from streamdet.slotted import restored, state_of, with_room

# A stretch is over with so many normal rows in a row: a single one may be a matter of chance.
CALM: Final = 3
NONE: Final = int(np.iinfo(np.int64).min)


class Stretch(NamedTuple):
    """What is kept of each entity, and of events without one in slot 0."""

    since_ms: Ints  # (S,) time of its first row; NONE where all is normal
    calm: Ints  # (S,) normal rows since its last one


class Onset:
    """The stretches under way in a lane."""

    def __init__(self) -> None:
        self._kept = _nothing(1)

    def follow(self, normal: Bools, times_ms: Ints, slots: Ints, fresh: Bools) -> Ints:
        """When each of n events, in order, has likely begun, (n,), in ms: its own time where it is in no stretch.

        `normal`, (n,): scores that a model may learn. Where `fresh`, (n,), the slot has a new owner.
        """
        self._kept = with_room(self._kept, int(slots.max(initial=0)) + 1, _nothing)
        since_ms = np.empty(len(normal), np.int64)
        _follow(normal, times_ms, slots, fresh, self._kept, since_ms)
        return since_ms

    def state(self, slots: int) -> State:
        """Of the first slots: views that change with the next `follow`."""
        return state_of(self._kept, slots)

    def restore(self, state: State) -> None:
        """Take back what `state` gave."""
        self._kept = restored(Stretch, state)


def compile_onset() -> None:
    """Run the compiled loop once."""
    one = np.zeros(1, np.int64)
    Onset().follow(np.ones(1, np.bool_), one, one, np.zeros(1, np.bool_))


def _nothing(slots: int) -> Stretch:
    return Stretch(np.full(slots, NONE), np.zeros(slots, np.int64))


@compiled
def _follow(
    normal: Bools, times_ms: Ints, slots: Ints, fresh: Bools, kept: Stretch, out: Ints
) -> None:  # pragma: no cover - compiled
    for i in range(len(normal)):
        slot = slots[i]
        if fresh[i]:
            kept.since_ms[slot] = NONE
        if not normal[i]:
            kept.calm[slot] = 0
            if kept.since_ms[slot] == NONE:
                kept.since_ms[slot] = times_ms[i]
        elif kept.since_ms[slot] != NONE:
            kept.calm[slot] += 1
            if kept.calm[slot] == CALM:
                kept.since_ms[slot] = NONE
        # An event that comes late has begun no later than it happened.
        out[i] = times_ms[i] if kept.since_ms[slot] == NONE else min(kept.since_ms[slot], times_ms[i])
