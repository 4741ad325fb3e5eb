"""k of n and cool-down: how often an entity may alert. Per entity, in order, by event time."""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamdet.compiled import compiled
from streamdet.config import Noise
from streamdet.events import Bools, Cause, Floats, Ints, State
from streamdet.slotted import restored, state_of, with_room

_ONE: Final = np.uint64(1)
_NOTHING: Final = np.uint64(0)


class Damped(NamedTuple):
    """All that is kept, a row per slot."""

    strange: NDArray[np.uint64]  # (S,) a bit for each of the last n events, the newest one the lowest
    raised: Bools  # (S,) k of n has alerted, and one of the last n has been strange ever since
    owed: Bools  # (S,) the cool-down has held back something since the last alert
    time_ms: Ints  # (S,) of the last alert
    raw: Floats  # (S,) of the last alert; NaN where there was none
    ranged: Bools  # (S,) the last alert was by a hard range

    @classmethod
    def empty(cls, slots: int) -> "Damped":
        """Slots that have seen nothing."""
        return cls(
            strange=np.zeros(slots, np.uint64),
            raised=np.zeros(slots, np.bool_),
            owed=np.zeros(slots, np.bool_),
            time_ms=np.zeros(slots, np.int64),
            raw=np.full(slots, np.nan),
            ranged=np.zeros(slots, np.bool_),
        )


class _Rule(NamedTuple):
    """What the compiled loop knows of the settings."""

    k: int
    window: np.uint64  # the n lowest bits
    cool_down_ms: int
    worse: float


DAMPED_BYTES: Final = sum(array.nbytes for array in Damped.empty(1))


class Damping:
    """k of n and the cool-down of one lane."""

    def __init__(self, settings: Noise) -> None:
        self._rule = _Rule(
            k=settings.k,
            window=np.uint64(2**settings.n - 1),
            cool_down_ms=round(1000 * settings.cool_down_s),
            worse=settings.worse,
        )
        self._kept = Damped.empty(1)

    def reasons(
        self,
        times_ms: Ints,
        raw: Floats,
        strange: Bools,
        flagged: Bools,
        ranged: Bools,
        slots: Ints,
        fresh: Bools,
    ) -> NDArray[np.uint8]:
        """Why each of n events of the entities in these slots is an alert or is none, a Cause, in order; (n,) each.

        Args:
            times_ms: event times.
            raw: raw scores of the strange ones.
            strange: over what is usual, or outside a hard range; all others get `NONE`.
            flagged: by the limit.
            ranged: outside a hard range.
            slots: whose they are.
            fresh: the slot has a new owner, and starts empty.
        """
        self._kept = with_room(self._kept, int(slots.max(initial=0)) + 1, Damped.empty)
        reasons = np.full(len(raw), Cause.NONE, np.uint8)
        _damp(times_ms, raw, strange, flagged, ranged, slots, fresh, self._rule, self._kept, reasons)
        return reasons

    def state(self, slots: int) -> State:
        """The arrays of the first slots by name: views that change with the next call."""
        self._kept = with_room(self._kept, slots, Damped.empty)
        return state_of(self._kept, slots)

    def restore(self, state: State) -> None:
        """Take back what `state` gave."""
        self._kept = restored(Damped, state)


def compile_damping() -> None:
    """Run the compiled loop once, on nothing."""
    some = np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.bool_)
    times_ms, raw, no = some
    Damping(Noise()).reasons(times_ms, raw, no, no, no, times_ms, no)


@compiled
def _damp(
    times_ms: Ints,
    raw: Floats,
    strange: Bools,
    flagged: Bools,
    ranged: Bools,
    slots: Ints,
    fresh: Bools,
    rule: _Rule,
    kept: Damped,
    out: NDArray[np.uint8],
) -> None:  # pragma: no cover - compiled
    for i in range(len(raw)):
        slot = slots[i]
        if fresh[i]:
            _clear(slot, kept)
        enough = _count(strange[i], slot, rule, kept) >= rule.k
        if not strange[i]:
            continue
        # Once for a spell: a count that goes back and forth about k would alert each time.
        rising = rule.k > 1 and enough and not kept.raised[slot]
        kept.raised[slot] |= enough
        if not (enough or ranged[i]):
            out[i] = Cause.K_OF_N
        elif not (flagged[i] or ranged[i] or rising or kept.owed[slot]):
            out[i] = Cause.EXCURSION
        elif _cooling(times_ms[i], raw[i], ranged[i], slot, rule, kept):
            out[i] = Cause.COOL_DOWN
            kept.owed[slot] = True
        else:
            out[i] = Cause.RANGE if ranged[i] else Cause.LIMIT
            if not _near(times_ms[i], slot, rule, kept) or times_ms[i] > kept.time_ms[slot]:
                kept.time_ms[slot] = times_ms[i]  # a worse one that is late cuts no cool-down short
            kept.raw[slot], kept.ranged[slot], kept.owed[slot] = raw[i], ranged[i], False


@compiled
def _count(strange: bool, slot: int, rule: _Rule, kept: Damped) -> int:  # pragma: no cover - compiled
    """How many of the last n events of a slot were strange, this one included."""
    bits = (kept.strange[slot] << _ONE) & rule.window
    if strange:
        bits |= _ONE
    kept.strange[slot] = bits
    if bits == _NOTHING:
        kept.raised[slot] = False
    count = 0
    while bits != _NOTHING:
        bits &= bits - _ONE
        count += 1
    return count


@compiled
def _cooling(
    time_ms: int, raw: float, ranged: bool, slot: int, rule: _Rule, kept: Damped
) -> bool:  # pragma: no cover - compiled
    """Whether an alert would come too soon after the last one, and is no worse."""
    # What somebody has called impossible is worse than what a model finds strange.
    worse = raw > rule.worse * kept.raw[slot] or (ranged and not kept.ranged[slot])
    return _near(time_ms, slot, rule, kept) and not worse


@compiled
def _near(time_ms: int, slot: int, rule: _Rule, kept: Damped) -> bool:  # pragma: no cover - compiled
    """Whether there was an alert within a cool-down of this time.

    Late events count on either side, and one time far ahead does not hold back all that follows.
    """
    return not np.isnan(kept.raw[slot]) and abs(time_ms - kept.time_ms[slot]) < rule.cool_down_ms


@compiled
def _clear(slot: int, kept: Damped) -> None:  # pragma: no cover - compiled
    """Make a slot what `Damped.empty` gives."""
    kept.strange[slot] = _NOTHING
    kept.raised[slot] = False
    kept.owed[slot] = False
    kept.time_ms[slot] = 0
    kept.raw[slot] = np.nan
    kept.ranged[slot] = False
