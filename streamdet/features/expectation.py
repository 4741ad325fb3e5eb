"""What a single number is expected to be by its level and the calendar, and how surprising it is: per entity, in order.

Four views of a metric, each a deviation in its own units: from the forecast of two pools of experts (level, time of
day, hour of the week), who count by how well they did; of the mean of the last rows from the one of those before; of
the last residuals from all windows of residuals that are remembered; and how long the value has stood still. Each is
calibrated by the maxima of blocks of rows (Gumbel, Statistics of Extremes, 1958): a metric that spikes every day makes
high maxima and so no surprise, while in a calm one little is needed. What comes out is a surprise, -ln of the
probability of a row at least as deviating.

A surprise has seen the row and what was before it; what serves as its scale has only seen what was before.
"""

import math
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamdet.compiled import compiled
from streamdet.events import (
    EXPECTATION_COLUMNS,
    FORECAST,
    NOVELTY,
    RESIDUAL,
    SHIFT,
    STILLNESS,
    Bools,
    Floats,
    Ints,
    State,
)
from streamdet.slotted import restored, state_of, with_room

# Bins of the time of day in either pool, of the hour of the day, and of the hour of the week.
DAY_BINS: Final = (96, 48)
HOURS: Final = 24
WEEK_HOURS: Final = 168
# The first pool follows the calendar at once and trusts its best expert alone, the second one is slow and mixes.
RATES: Final = (0.10, 0.05)
SHRINKAGE: Final = (2.0, 10.0)
POWERS: Final = (8.0, 2.0)
LEVEL_RATE: Final = 0.01
LOSS_RATE: Final = 0.001
# An error counts as at most so many standard deviations when experts are compared.
ERROR_MAX: Final = 5.0
# Where the arrays of the pools begin in one array.
_DAY_FAST, _HOUR, _WEEK, _DAY_SLOW = 0, DAY_BINS[0], DAY_BINS[0] + HOURS, DAY_BINS[0] + HOURS + WEEK_HOURS
PROFILE: Final = _DAY_SLOW + DAY_BINS[1]

# The mean of the last rows is compared with the one of those before.
SHIFT_ROWS: Final = 10
BASE_ROWS: Final = 300
BASE_MIN: Final = 20
RECENT: Final = SHIFT_ROWS + BASE_ROWS

# Windows of residuals that are remembered: of a stream without entities, and of each entity, where there are many.
WINDOW: Final = 8
WINDOWS: Final = 2000
WINDOWS_PER_ENTITY: Final = 256
WINDOWS_MIN: Final = 10
NOVELTY_HANDICAP: Final = 0.2

# Fewer equal values than this are hardly more than none, and maxima of blocks that all have none deviate by this much.
STILL_ROWS: Final = 10.0
STILL_DEVIATION_MIN: Final = 0.3

# What is learnt of a value lies within so many root mean squares of what was usual: one -9999 for a missing reading
# would hide all that follows for thousands of rows. A new level gets through, as each of its rows widens the reach.
REACH: Final = 100.0
RANGE_REACH: Final = 20.0
REACH_ROWS: Final = 20

# Block maxima of the deviation as a multiple of its root mean square, in logarithms: mean, deviation and weight
# of what is assumed at first, and how many blocks are remembered.
BLOCK: Final = 200
MEAN_PRIOR: Final = 1.2
DEVIATION_PRIOR: Final = 0.6
PRIOR_BLOCKS: Final = 5.0
BLOCKS_MAX: Final = 60.0
SQUARE_RATE: Final = 0.001
STILL_RATE: Final = 0.01  # a value that stays is soon usual
# So many deviations make a scale, and so many rows on that scale a surprise.
SCALE_MIN: Final = (20.0, 20.0, 20.0, 50.0, 20.0)
COLD_ROWS: Final = 50.0
COLD: Final = -9.0
# A deviation that is small beside the range seen so far counts less, and the longer a stream is watched the rarer is a
# surprise.
SHARE_OF_RANGE: Final = 0.4
GATE: Final = 0.3
RANGE_FORGETS: Final = 1e-4
AGE: Final = 0.3
YOUNG_ROWS: Final = 500.0
# Nats of a standardised block maximum of 0, and of each 1 more, by the Gumbel distribution.
NATS_AT_0: Final = math.log(BLOCK) + 0.5772156649
NATS_PER_1: Final = math.pi / math.sqrt(6.0)

_DAY_S: Final = 86_400.0
_POOL_FAST, _POOL_SLOW = 0, 1
_VIEWS: Final = 5
_STILL: Final = 4


class History(NamedTuple):
    """All that is kept, a row per slot."""

    seen: Ints  # (S,) rows
    level: Floats  # (S, 2) of each pool
    energy: Floats  # (S, 2) mean square distance from the level
    loss: Floats  # (S, 2, 3) mean error of the experts: level, time of day, hour and week
    profile: NDArray[np.float32]  # (S, PROFILE) distance from the level, by calendar
    counts: NDArray[np.float32]  # (S, PROFILE)
    recent: Floats  # (S, RECENT) values, as a ring
    sums: Floats  # (S, 2) of the last SHIFT_ROWS, and of those before
    residuals: Floats  # (S, 2 * WINDOW), as a ring
    windows: NDArray[np.float32]  # (S, WINDOW, M), as a ring: by columns, for the processor's wide registers
    stored: Ints  # (S,) windows
    low: Floats  # (S,) of the values, drawn towards the middle
    high: Floats  # (S,)
    square: (
        Floats  # (S, V) mean square of the deviations in each view: both forecasts, shift, novelty, stillness
    )
    squared: Floats  # (S, V) how many those were
    rows: Floats  # (S, V) rows since the first that deviated
    mean: Floats  # (S, V) of the logarithms of block maxima
    variance: Floats  # (S, V)
    blocks: Floats  # (S, V) weight of both
    largest: Floats  # (S, V) of the block under way
    last: Floats  # (S,) value
    equal: Floats  # (S,) how often it came again, without another between


class Expectation:
    """The history of each entity of a lane that has one number and nothing else."""

    def __init__(self, *, entities: bool) -> None:
        self._windows = WINDOWS_PER_ENTITY if entities else WINDOWS
        self._kept = self._empty(1)

    def surprise(
        self, values: Floats, times_ms: Ints, slots: Ints, fresh: Bools, outside: Bools | None = None
    ) -> NDArray[np.float32]:
        """Columns, (n, EXPECTATION_COLUMNS), of values (n,) at these times, in order; NaN leaves no trace and is cold.

        Where `fresh`, (n,), the slot has a new owner. What is `outside`, (n,), of what may be leaves no trace either.
        """
        self._kept = with_room(self._kept, int(slots.max(initial=0)) + 1, self._empty)
        columns = np.zeros((len(values), EXPECTATION_COLUMNS), np.float32)
        seconds, done = times_ms / 1000.0, 0

        def follow(start: int, stop: int) -> None:
            some = slice(start, stop)
            _surprise(values[some], seconds[some], slots[some], fresh[some], self._kept, columns[some])

        for i in [] if outside is None else np.flatnonzero(outside).tolist():
            follow(done, i)
            slot, done = slots[i], i + 1
            if fresh[i]:
                _clear(slot, self._kept)
            arrays: Iterable[NDArray[Any]] = self._kept
            before = [(array, array[slot].copy()) for array in arrays]
            follow(i, done)
            for array, row in before:
                array[slot] = row
        follow(done, len(values))
        return columns

    def state(self, slots: int) -> State:
        """The arrays of the first slots by name: views that change with the next call."""
        return state_of(self._kept, slots)

    def restore(self, state: State) -> None:
        """Take back what `state` gave."""
        self._kept = restored(History, state)

    def _empty(self, slots: int) -> History:
        return _empty(slots, self._windows)


def bytes_per_slot(*, entities: bool) -> int:
    """What the history of one entity takes."""
    return sum(array.nbytes for array in _empty(1, WINDOWS_PER_ENTITY if entities else WINDOWS))


def _empty(slots: int, windows: int) -> History:
    """Slots that have seen nothing; what is 0 here and not meant to be is set with the first row."""
    return History(
        seen=np.zeros(slots, np.int64),
        level=np.zeros((slots, 2)),
        energy=np.zeros((slots, 2)),
        loss=np.zeros((slots, 2, 3)),
        profile=np.zeros((slots, PROFILE), np.float32),
        counts=np.zeros((slots, PROFILE), np.float32),
        recent=np.zeros((slots, RECENT)),
        sums=np.zeros((slots, 2)),
        residuals=np.zeros((slots, 2 * WINDOW)),
        windows=np.zeros((slots, WINDOW, windows), np.float32),
        stored=np.zeros(slots, np.int64),
        low=np.zeros(slots),
        high=np.zeros(slots),
        square=np.zeros((slots, _VIEWS)),
        squared=np.zeros((slots, _VIEWS)),
        rows=np.zeros((slots, _VIEWS)),
        mean=np.full((slots, _VIEWS), MEAN_PRIOR),
        variance=np.full((slots, _VIEWS), DEVIATION_PRIOR**2),
        blocks=np.full((slots, _VIEWS), PRIOR_BLOCKS),
        largest=np.zeros((slots, _VIEWS)),
        last=np.full(slots, np.nan),
        equal=np.zeros(slots),
    )


@compiled
def _surprise(
    values: Floats, seconds: Floats, slots: Ints, fresh: Bools, kept: History, out: NDArray[np.float32]
) -> None:  # pragma: no cover - compiled
    for i in range(len(values)):
        slot, value = slots[i], values[i]
        if fresh[i]:
            _clear(slot, kept)
        if np.isnan(value):
            out[i, FORECAST:] = NATS_AT_0 + NATS_PER_1 * COLD
            continue
        if kept.seen[slot] == 0:
            kept.level[slot] = kept.low[slot] = kept.high[slot] = value
        learnt, ranging = _within(REACH, value, slot, kept), _within(RANGE_REACH, value, slot, kept)
        beyond = value - learnt
        fast = beyond + _residual(learnt, seconds[i], slot, _POOL_FAST, kept)
        slow = beyond + _residual(learnt, seconds[i], slot, _POOL_SLOW, kept)
        shift = _shift(learnt, slot, kept)
        novelty = _novelty(fast - beyond, slot, kept)
        first, second = _calibrated(fast, slot, 0, kept), _calibrated(slow, slot, 1, kept)
        third, fourth = _calibrated(shift, slot, 2, kept), _calibrated(novelty, slot, 3, kept)
        still = _calibrated(_stillness(value, slot, kept), slot, _STILL, kept)
        age = AGE * math.log10(max(1.0, (kept.seen[slot] + 1) / YOUNG_ROWS))
        out[i, RESIDUAL] = fast
        out[i, FORECAST] = NATS_AT_0 + NATS_PER_1 * (0.5 * (first + second) - age)
        out[i, SHIFT] = NATS_AT_0 + NATS_PER_1 * (third - age)
        out[i, NOVELTY] = NATS_AT_0 + NATS_PER_1 * (fourth - NOVELTY_HANDICAP - age)
        out[i, STILLNESS] = NATS_AT_0 + NATS_PER_1 * ((still if kept.equal[slot] > 0.0 else COLD) - age)
        if kept.low[slot] == kept.high[slot] != value:
            # It has never moved: so rare is a first time (Laplace's rule of succession).
            out[i, FORECAST] = math.log(kept.seen[slot] + 2.0)
        middle = 0.5 * (kept.low[slot] + kept.high[slot])
        kept.low[slot] = min(kept.low[slot] + RANGE_FORGETS * (middle - kept.low[slot]), ranging)
        kept.high[slot] = max(kept.high[slot] + RANGE_FORGETS * (middle - kept.high[slot]), ranging)
        kept.seen[slot] += 1


@compiled
def _within(
    deviations: float, value: float, slot: int, kept: History
) -> float:  # pragma: no cover - compiled
    """The value, or how far towards it what is learnt may go."""
    reach = deviations * math.sqrt(kept.energy[slot, _POOL_FAST])
    if kept.seen[slot] < REACH_ROWS or reach == 0.0:
        return value
    level = kept.level[slot, _POOL_FAST]
    return float(min(max(value, level - reach), level + reach))


@compiled
def _residual(
    value: float, second: float, slot: int, pool: int, kept: History
) -> float:  # pragma: no cover - compiled
    """How far the value is from the forecast of a pool, which then learns it."""
    day, week = (second % _DAY_S) / _DAY_S, (second % (7.0 * _DAY_S)) / (7.0 * _DAY_S)
    profile, counts, loss = kept.profile[slot], kept.counts[slot], kept.loss[slot, pool]
    level, k = kept.level[slot, pool], SHRINKAGE[pool]
    at = (_DAY_FAST if pool == _POOL_FAST else _DAY_SLOW) + int(day * DAY_BINS[pool])
    hour, week_hour = _HOUR + int(day * HOURS), _WEEK + int(week * WEEK_HOURS)
    experts = 3 if pool == _POOL_FAST else 2
    said = np.empty(3)
    said[0] = level
    said[1] = level + counts[at] / (counts[at] + k) * profile[at]
    said[2] = level + counts[hour] / (counts[hour] + k) * profile[hour]
    said[2] += counts[week_hour] / (counts[week_hour] + k) * profile[week_hour]
    least = loss[:experts].min()
    forecast, weights = 0.0, 0.0
    for j in range(experts):
        trusted = 1.0 if loss[j] <= least else 0.0
        weight = (least / loss[j]) ** POWERS[pool] if least > 0.0 else trusted
        forecast += weight * said[j]
        weights += weight

    seen, energy = kept.seen[slot], kept.energy[slot, pool]
    rate = max(LOSS_RATE, 1.0 / (seen + 1))
    most = ERROR_MAX * math.sqrt(energy) if energy > 0.0 else np.inf
    for j in range(experts):
        loss[j] += rate * (min(abs(value - said[j]), most) - loss[j])
    distance = value - level
    kept.energy[slot, pool] += rate * (distance * distance - energy)
    _learn(distance, at, RATES[pool], profile, counts)
    if pool == _POOL_FAST:
        beyond_hour = distance - profile[hour]
        _learn(distance, hour, RATES[pool], profile, counts)
        _learn(beyond_hour, week_hour, RATES[pool], profile, counts)
    kept.level[slot, pool] += max(LEVEL_RATE, 1.0 / (seen + 2)) * distance
    return float(value - forecast / weights)


@compiled
def _learn(
    distance: float, at: int, rate: float, profile: NDArray[np.float32], counts: NDArray[np.float32]
) -> None:  # pragma: no cover - compiled
    counts[at] += 1.0
    profile[at] += max(rate, 1.0 / counts[at]) * (distance - profile[at])


@compiled
def _shift(value: float, slot: int, kept: History) -> float:  # pragma: no cover - compiled
    """Mean of the last rows, this one included, less that of those before; 0 while they are too few."""
    recent, sums, seen = kept.recent[slot], kept.sums[slot], kept.seen[slot]
    if seen >= SHIFT_ROWS:
        left = recent[(seen - SHIFT_ROWS) % RECENT]
        sums[0] -= left
        sums[1] += left
    if seen >= RECENT:
        sums[1] -= recent[seen % RECENT]
    sums[0] += value
    recent[seen % RECENT] = value
    base = min(seen + 1 - SHIFT_ROWS, BASE_ROWS)
    return float(sums[0] / SHIFT_ROWS - sums[1] / base) if base >= BASE_MIN else 0.0


@compiled
def _novelty(residual: float, slot: int, kept: History) -> float:  # pragma: no cover - compiled
    """Root mean square distance of the last residuals to the nearest window of them; 0 while there are few."""
    residuals, windows, seen = kept.residuals[slot], kept.windows[slot], kept.seen[slot]
    residuals[seen % (2 * WINDOW)] = residual
    if seen < 2 * WINDOW:
        return 0.0
    most = windows.shape[1]
    place = kept.stored[slot] % most
    for j in range(WINDOW):
        windows[j, place] = residuals[(seen - WINDOW - j) % (2 * WINDOW)]
    kept.stored[slot] += 1
    stored = min(kept.stored[slot], most)
    if stored < WINDOWS_MIN:
        return 0.0
    distances = np.zeros(stored, np.float32)
    for j in range(WINDOW):
        last, column = np.float32(residuals[(seen - j) % (2 * WINDOW)]), windows[j]
        for m in range(stored):
            apart = last - column[m]
            distances[m] += apart * apart
    nearest = distances[0]
    for m in range(1, stored):
        nearest = min(nearest, distances[m])
    return float(math.sqrt(nearest / WINDOW))


@compiled
def _stillness(value: float, slot: int, kept: History) -> float:  # pragma: no cover - compiled
    """How many rows have had the same value, and some more."""
    kept.equal[slot] = kept.equal[slot] + 1.0 if value == kept.last[slot] else 0.0
    kept.last[slot] = value
    return float(kept.equal[slot] + STILL_ROWS)


@compiled
def _calibrated(
    deviation: float, slot: int, view: int, kept: History
) -> float:  # pragma: no cover - compiled
    """A deviation as a standardised block maximum, `COLD` while there are few; then learns it."""
    size = abs(deviation)
    squared = kept.squared[slot, view]
    if squared == 0.0 and size == 0.0:
        return COLD
    root = math.sqrt(kept.square[slot, view])
    relative = size / root if squared >= SCALE_MIN[view] and root > 0.0 else 0.0
    kept.squared[slot, view] += 1.0
    rate = max(STILL_RATE if view == _STILL else SQUARE_RATE, 1.0 / kept.squared[slot, view])
    counted = min(size, REACH * root) if squared >= SCALE_MIN[view] and root > 0.0 else size
    kept.square[slot, view] += rate * (counted * counted - kept.square[slot, view])
    if kept.rows[slot, view] == 0.0 and relative == 0.0:
        return COLD
    kept.rows[slot, view] += 1.0
    standardised = COLD
    if kept.rows[slot, view] > COLD_ROWS:
        variance = max(kept.variance[slot, view], STILL_DEVIATION_MIN**2 if view == _STILL else 0.0)
        standardised = (math.log(max(relative, 1e-3)) - kept.mean[slot, view]) / math.sqrt(variance)
        material = SHARE_OF_RANGE * (kept.high[slot] - kept.low[slot])
        if material > 0.0 and view != _STILL:
            standardised += GATE * min(0.0, math.log(size / material + 1e-6))
    kept.largest[slot, view] = max(kept.largest[slot, view], min(relative, REACH))
    if kept.rows[slot, view] % BLOCK == 0.0:
        _end_block(slot, view, kept)
    return float(standardised)


@compiled
def _end_block(slot: int, view: int, kept: History) -> None:  # pragma: no cover - compiled
    maximum = math.log(max(kept.largest[slot, view], 1e-3))
    kept.blocks[slot, view] = min(kept.blocks[slot, view] + 1.0, BLOCKS_MAX)
    rate = 1.0 / kept.blocks[slot, view]
    distance = maximum - kept.mean[slot, view]
    kept.mean[slot, view] += rate * distance
    kept.variance[slot, view] = (1.0 - rate) * (kept.variance[slot, view] + rate * distance * distance)
    kept.largest[slot, view] = 0.0


@compiled
def _clear(slot: int, kept: History) -> None:  # pragma: no cover - compiled
    """Make a slot what `_empty` gives."""
    kept.seen[slot] = kept.stored[slot] = 0
    kept.level[slot] = kept.energy[slot] = kept.low[slot] = kept.high[slot] = 0.0
    kept.loss[slot] = 0.0
    kept.profile[slot] = 0.0
    kept.counts[slot] = 0.0
    kept.recent[slot] = 0.0
    kept.sums[slot] = 0.0
    kept.residuals[slot] = 0.0
    kept.square[slot] = kept.squared[slot] = kept.rows[slot] = kept.largest[slot] = 0.0
    kept.mean[slot] = MEAN_PRIOR
    kept.variance[slot] = DEVIATION_PRIOR**2
    kept.blocks[slot] = PRIOR_BLOCKS
    kept.last[slot] = np.nan
    kept.equal[slot] = 0.0
