"""Who pays how much, how often, when and where: habits of the keys of a transaction, per key, in order.

A transaction has several keys: the entity (a card) and its counterparts (a terminal). Of each key is kept, in constant
memory, what it usually pays, how many transactions it has had and what they came to, decayed exponentially so that
half of an hour's count is left after an hour; of the entity also at which hours of the day it pays, and how often it
has met each counterpart. Rows tell these as plain facts, in counts, seconds and units of the amount; how strange
they are is for the scorers to say (`models/scorers/habits.py`).

Counts, sums and the usual amount have seen the row itself; all else, as the known amount, only what was before it.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamdet.compiled import compiled
from streamdet.events import (
    AMOUNT,
    COUNTS,
    GAP,
    HOUR,
    KEY_COLUMNS,
    KEYS,
    KNOWN,
    SUMS,
    USUAL,
    Bools,
    Floats,
    Ints,
    State,
    transaction_columns,
)
from streamdet.features.entities import FIRST_SLOT, EntityTable
from streamdet.features.pairs import Pairs, meet, no_pairs
from streamdet.slotted import restored, state_of, with_room

# Seconds after which half is left of what counts for 1 hour, 24 hours and 7 days.
HALF_LIVES_S: Final = (3_600.0, 43_200.0, 302_400.0)
SPANS: Final = len(HALF_LIVES_S)
# A first transaction counts as one after so long.
GAP_FIRST_S: Final = 30 * 86_400.0
# A transaction that is later than this is not late: the clock of one before it was wrong, and far ahead.
LATE_MAX_S: Final = 30 * 86_400.0
_DAY_S: Final = 86_400.0
_HALF: Final = math.log(0.5)

# What is learnt of an amount is at most so many times the usual one: a stolen card's amounts do not become its habit
# within days. A new habit gets through, as each transaction may add its share of that. The newest have at least
# this share in the usual amount.
REACH: Final = 2.0
AMOUNT_RATE: Final = 0.02
LANE_RATE: Final = 0.001
# Larger amounts, or sums of some of them, would be infinite in float32.
AMOUNT_MAX: Final = 1e30
# Hours are forgotten by count, and are taken to be any hour as if so many more had been seen.
HOUR_RATE: Final = 0.02
HOURS_PRIOR: Final = 4.0


class Habits(NamedTuple):
    """What is kept of one kind of key, a row per slot; in slot 0 the usual amount of the lane, as a logarithm."""

    learnt: Ints  # (S,) amounts
    usual: Floats  # (S,) mean of what was learnt of amounts
    seen: Ints  # (S,) transactions
    last_s: Floats  # (S,) time of the latest one
    counts: Floats  # (S, SPANS) decayed to `last_s`
    sums: Floats  # (S, SPANS)


class Hours(NamedTuple):
    """When entities pay, a row per slot."""

    moments: Floats  # (S, 3) forgetting sums of the cosine and the sine of the time of day, and of ones


class Numbers(NamedTuple):
    """The number of each counterpart of one kind, by its slot."""

    given: Ints  # (S,)


class _Counterparts:
    """One kind of counterpart: which there are, their habits, and whom they met.

    Each gets a number when it comes into the table, and never the number of another. One that had to leave it is
    unknown when it comes back.
    """

    def __init__(self, max_entities: int) -> None:
        self.table = EntityTable(max_entities)
        self.habits = _no_habits(1)
        self.pairs = no_pairs(1)
        self.numbers = _no_numbers(1)
        self.numbered = np.zeros(1, np.int64)  # how many numbers were given

    def state(self, slots: int) -> State:
        """All of it, by name, with the pairs of the first slots of the entities."""
        own = len(self.table) + FIRST_SLOT
        return {
            "table": self.table.state(),
            "habits": state_of(self.habits, own),
            "pairs": state_of(self.pairs, slots),
            "numbers": self.numbers.given[:own],
            "numbered": self.numbered,
        }

    def restore(self, state: State) -> None:
        """Take back what `state` gave, as much of it as there is room for now."""
        slots = self.table.restore(state["table"])
        self.habits = Habits._make(array[slots] for array in restored(Habits, state["habits"]))
        self.pairs = restored(Pairs, state["pairs"])
        self.numbers = Numbers(state["numbers"][slots])
        self.numbered = np.array(state["numbered"])


class Transactions:
    """What is remembered of the transactions of a lane."""

    def __init__(self, counterparts: int, max_entities: int) -> None:
        self._own = _no_habits(1)
        self._hours = _no_hours(1)
        self._counterparts = [_Counterparts(max_entities) for _ in range(counterparts)]

    @property
    def evicted_total(self) -> int:
        """How many counterparts have made room for others."""
        return sum(theirs.table.evicted_total for theirs in self._counterparts)

    def facts(
        self,
        amounts: Floats,
        times_ms: Ints,
        slots: Ints,
        fresh: Bools,
        names: Sequence[Sequence[str]],
        outside: Bools,
    ) -> NDArray[np.float32]:
        """Columns, (n, transaction_columns), of n transactions of these entities, in order.

        Args:
            amounts: (n,); a negative one counts by its size, one of 0 or NaN teaches nothing of amounts.
            times_ms: (n,); one that is late counts as much as is left of it by the time of the latest one.
            slots: (n,) of the entities.
            fresh: (n,) where the slot has a new owner.
            names: n names of each kind of counterpart; "" is none, which has no habits.
            outside: (n,) where the amount is out of the question, and teaches nothing either.
        """
        sizes = np.minimum(np.abs(np.nan_to_num(amounts, nan=0.0)), AMOUNT_MAX)
        learnt, seconds = np.where(outside, 0.0, sizes), times_ms / 1000.0
        columns = np.zeros((len(sizes), transaction_columns(1 + len(names))), np.float32)
        room = int(slots.max(initial=0)) + 1
        self._own = with_room(self._own, room, _no_habits)
        self._hours = with_room(self._hours, room, _no_hours)
        _tell_hours(seconds, slots, fresh, self._hours, columns)
        seen = _follow(learnt, seconds, slots, fresh, self._own, KEYS, columns)
        columns[:, AMOUNT] = np.where(sizes > 0.0, sizes, columns[:, KEYS + USUAL])
        novelties = KEYS + KEY_COLUMNS * (1 + len(names))
        for k, (theirs, column) in enumerate(zip(self._counterparts, names, strict=True)):
            at, new = theirs.table.assign(column)
            theirs.pairs = with_room(theirs.pairs, room, no_pairs)
            their_room = int(at.max(initial=0)) + 1
            theirs.habits = with_room(theirs.habits, their_room, _no_habits)
            theirs.numbers = with_room(theirs.numbers, their_room, _no_numbers)
            first = KEYS + KEY_COLUMNS * (1 + k)
            _follow(learnt, seconds, at, new, theirs.habits, first, columns)
            meet(
                slots, fresh, seen, at, new, theirs.numbers.given, theirs.numbered, theirs.pairs,
                novelties + k, columns,
            )  # fmt: skip
        return columns

    def state(self, slots: int) -> State:
        """All of it, by name, of the first slots of the entities: views that change with the next call."""
        return {
            "own": state_of(self._own, slots),
            "hours": state_of(self._hours, slots),
            "counterparts": {str(k): theirs.state(slots) for k, theirs in enumerate(self._counterparts)},
        }

    def restore(self, state: State) -> None:
        """Take back what `state` gave."""
        self._own = restored(Habits, state["own"])
        self._hours = restored(Hours, state["hours"])
        for k, theirs in enumerate(self._counterparts):
            theirs.restore(state["counterparts"][str(k)])


def bytes_per_entity(counterparts: int) -> int:
    """What an entity takes, and a counterpart of each of so many kinds."""
    empty = (_no_habits(1), _no_hours(1), no_pairs(1), _no_numbers(1))
    habits, hours, pairs, number = (sum(array.nbytes for array in some) for some in empty)
    return habits + hours + counterparts * (habits + pairs + number)


def _no_habits(slots: int) -> Habits:
    return Habits(
        learnt=np.zeros(slots, np.int64),
        usual=np.zeros(slots),
        seen=np.zeros(slots, np.int64),
        last_s=np.zeros(slots),
        counts=np.zeros((slots, SPANS)),
        sums=np.zeros((slots, SPANS)),
    )


def _no_hours(slots: int) -> Hours:
    return Hours(moments=np.zeros((slots, 3)))


def _no_numbers(slots: int) -> Numbers:
    return Numbers(given=np.zeros(slots, np.int64))


@compiled
def _follow(
    sizes: Floats,
    seconds: Floats,
    slots: Ints,
    fresh: Bools,
    kept: Habits,
    first: int,
    columns: NDArray[np.float32],
) -> Ints:  # pragma: no cover - compiled
    """Fill in the columns of one kind of key, from the first on; how many transactions it had before each, (n,).

    Takes whole rows: some of their columns would be of one layout for n rows and of another, for which all of this is
    compiled again, for a single one.
    """
    before = np.zeros(len(sizes), np.int64)
    for i in range(len(sizes)):
        out = columns[i, first : first + KEY_COLUMNS]
        slot, size, second = slots[i], sizes[i], seconds[i]
        if fresh[i]:
            _clear(slot, kept)
        before[i] = kept.seen[slot] if slot != 0 else 0
        _decay(second, slot, kept, out)
        _pays(size, slot, kept, out)
        for j in range(SPANS):
            out[COUNTS + j] = kept.counts[slot, j] + 1.0 if slot != 0 else 1.0
            out[SUMS + j] = kept.sums[slot, j] + size if slot != 0 else size
        if slot != 0:
            _count(size, second, slot, kept)
    return before


@compiled
def _decay(
    second: float, slot: int, kept: Habits, out: NDArray[np.float32]
) -> None:  # pragma: no cover - compiled
    """Bring counts and sums to this time, and tell how far from it the latest transaction was."""
    if kept.seen[slot] == 0:
        out[GAP] = GAP_FIRST_S
        return
    passed = second - kept.last_s[slot]
    out[GAP] = abs(passed)
    if passed <= 0.0:
        return
    for j in range(SPANS):
        left = math.exp(_HALF * passed / HALF_LIVES_S[j])
        kept.counts[slot, j] *= left
        kept.sums[slot, j] *= left


@compiled
def _count(size: float, second: float, slot: int, kept: Habits) -> None:  # pragma: no cover - compiled
    """Take in a transaction, or of one that is late what is left of it by the time of the latest."""
    late = kept.last_s[slot] - second
    if kept.seen[slot] == 0 or not 0.0 <= late <= LATE_MAX_S:
        kept.last_s[slot] = second
        late = 0.0
    kept.seen[slot] += 1
    for j in range(SPANS):
        left = math.exp(_HALF * late / HALF_LIVES_S[j]) if late > 0.0 else 1.0
        kept.counts[slot, j] += left
        kept.sums[slot, j] += left * size


@compiled
def _pays(
    size: float, slot: int, kept: Habits, out: NDArray[np.float32]
) -> None:  # pragma: no cover - compiled
    """The mean amount before and with this one, drawn towards the lane's as if that had come once; then learns it.

    With itself in the mean, an amount is at most as many times the usual one as there have been, so that little is
    made of the first amounts of a key. What was known before is what people call expected.
    """
    typical = math.exp(kept.usual[0]) if kept.learnt[0] > 0 else size
    many, mean = (kept.learnt[slot], kept.usual[slot]) if slot != 0 else (0, 0.0)
    known = (many * mean + typical) / (many + 1.0)
    out[USUAL] = out[KNOWN] = known
    if size <= 0.0:
        return
    if slot != 0:
        counted = min(size, REACH * known)
        kept.learnt[slot] += 1
        kept.usual[slot] += max(AMOUNT_RATE, 1.0 / kept.learnt[slot]) * (counted - mean)
    kept.learnt[0] += 1
    kept.usual[0] += max(LANE_RATE, 1.0 / kept.learnt[0]) * (math.log(size) - kept.usual[0])
    many = min(many, 1.0 / AMOUNT_RATE)
    out[USUAL] = (many * mean + typical + size) / (many + 2.0)


@compiled
def _tell_hours(
    seconds: Floats, slots: Ints, fresh: Bools, kept: Hours, columns: NDArray[np.float32]
) -> None:  # pragma: no cover - compiled
    """Fill in how many times rarer the hour is to the entity than if it paid at any; 1 where nothing is known.

    By the first moment of its hours on the circle (Mardia, Statistics of Directional Data, 1972): the density is taken
    to rise and fall once a day, by as much as they agree.
    """
    for i in range(len(slots)):
        slot = slots[i]
        if fresh[i]:
            kept.moments[slot] = 0.0
        angle = 2.0 * math.pi * (seconds[i] % _DAY_S) / _DAY_S
        x, y = math.cos(angle), math.sin(angle)
        moments = kept.moments[slot]
        along = (moments[0] * x + moments[1] * y) / (moments[2] + HOURS_PRIOR) if slot != 0 else 0.0
        columns[i, HOUR] = 1.0 / (1.0 + along)
        moments *= 1.0 - HOUR_RATE
        moments[0] += x
        moments[1] += y
        moments[2] += 1.0


@compiled
def _clear(slot: int, kept: Habits) -> None:  # pragma: no cover - compiled
    kept.learnt[slot] = kept.seen[slot] = 0
    kept.usual[slot] = 0.0
    kept.last_s[slot] = 0.0
    kept.counts[slot] = 0.0
    kept.sums[slot] = 0.0
