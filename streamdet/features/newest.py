"""How far a row is from the newest usual rows of its lane, and how far these have moved from those before them.

Models are renewed at counts that grow further apart; a stream that drifts has gone on by then. Here the newest rows are
followed row by row. Which of them are usual is decided here as well, without any verdict, so that a row depends on
nothing but the rows before it: the tenth that lies furthest out is not taken in, by quantiles that are themselves
followed. While most rows are refused nothing moves, so that a burst of anomalies is not taken for a drift; if that
lasts for `LASTING` rows, the stream is another one, and all are taken in until they are usual.
"""

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamdet.compiled import compiled, inlined
from streamdet.events import DISTANCE, DRIFT, NEWEST_COLUMNS, Bools, Floats, Ints, State

ROWS: Final = 256
# With fewer rows than this nothing can be told.
ROWS_MIN: Final = 16
# Location and spread are read anew when so many rows have been taken in; while there are few rows, more often.
REFRESH: Final = 64
REFRESH_FEW: Final = 16
# The first rows are all taken in, and the spread of each column is never less than half of what it was among them.
BEGINNING: Final = 200
SPREAD_FLOOR: Final = 0.5
# This share of rows lies beyond the quantiles up to which rows are taken in. These move by such a step, and by larger
# ones in the beginning.
REFUSED_SHARE: Final = 0.1
STEP: Final = 0.005
STEP_BEGINNING: Final = 10.0
# Of rows that hardly ever change, quantiles would fall without end, and the least change be as far as can be.
LEAST: Final = 0.05
# Most rows are refused where the forgetting share of them is above this, for how long it may be so, and the step with
# which the quantiles then follow.
REFUSED_STEP: Final = 0.02
REFUSED_MOST: Final = 0.5
LASTING: Final = 1000
STEP_ANEW: Final = 0.02
# Those before the newest: half of the weight on so many rows. A row moves them by at most so many of their spreads.
EARLIER_HALF_LIFE: Final = 2048.0
EARLIER_REACH: Final = 4.0
# As in `models/scaling.py`, whose squash this is.
KNEE: Final = 2.5
RELATIVE_SPREAD_MIN: Final = 1e-3
SPREAD_MIN: Final = 1e-6

# What is counted, and what is followed.
CAME, TAKEN, REFUSING = range(3)
FURTHEST, WIDEST, REFUSED, MOVED = range(4)


class Kept(NamedTuple):
    """What is remembered of the F columns of a lane."""

    rows: NDArray[np.float32]  # (F, ROWS) the newest usual rows, in no order
    squashed: NDArray[np.float32]  # (F, ROWS) the same in spreads
    location: Floats  # (F,)
    spread: Floats  # (F,)
    floor: Floats  # (F,) least spread
    earlier: Floats  # (F,) mean of those before
    variance: Floats  # (F,) of these
    counts: Ints  # rows that came, that were taken in, and that came since most were refused
    levels: (
        Floats  # quantiles of distance and of deviation, share that is refused, how far the newest have moved
    )


def bytes_per_lane(columns: int) -> int:
    """What is remembered of so many columns."""
    rows = 2 * ROWS * np.dtype(np.float32).itemsize
    numbers = 5 * np.dtype(np.float64).itemsize
    return columns * (rows + numbers)


class Newest:
    """The newest usual rows of one lane."""

    def __init__(self, columns: int) -> None:
        self._kept = Kept(
            rows=np.zeros((columns, ROWS), np.float32),
            squashed=np.zeros((columns, ROWS), np.float32),
            location=np.zeros(columns),
            spread=np.ones(columns),
            floor=np.zeros(columns),
            earlier=np.zeros(columns),
            variance=np.zeros(columns),
            counts=np.zeros(3, np.int64),
            levels=np.zeros(4),
        )

    def follow(self, values: NDArray[np.float32], there: Bools) -> NDArray[np.float32]:
        """Columns, (n, NEWEST_COLUMNS), of rows (n, F), in order.

        The distance is that to the nearest of the newest rows, as a multiple of what nine in ten rows keep: the mean
        over the columns that were `there`, (n, F), in squashed spreads; 1 as long as there are too few rows. The drift
        is the mean over the columns of how far the mean of the newest is from that of those before, in spreads of
        these, each counting for 1 at most.
        """
        columns = np.zeros((len(values), NEWEST_COLUMNS), np.float32)
        _follow(np.ascontiguousarray(values), there, self._kept, columns)
        return columns

    def state(self) -> State:
        """All that is remembered: views that change with the next `follow`."""
        return self._kept._asdict()

    def restore(self, state: State) -> None:
        """Take back what `state` gave."""
        self._kept = Kept(**{name: np.array(state[name]) for name in Kept._fields})


@compiled
def _follow(
    values: NDArray[np.float32], there: Bools, kept: Kept, out: NDArray[np.float32]
) -> None:  # pragma: no cover - compiled
    own = np.empty(values.shape[1], np.float32)
    for i in range(len(values)):
        kept.counts[CAME] += 1
        usual = there[i].any()
        out[i, DISTANCE] = 1.0
        if min(kept.counts[TAKEN], ROWS) >= ROWS_MIN and usual:
            deviation = _squash_row(values[i], there[i], kept, own)
            distance = _distance(own, there[i], kept)
            if kept.levels[FURTHEST] > 0.0:
                out[i, DISTANCE] = distance / kept.levels[FURTHEST]
            out[i, DRIFT] = kept.levels[MOVED]
            usual = _is_usual(distance, deviation, kept)
        if usual:
            _take_in(values[i], kept)


@inlined
def _squash(value: float, location: float, spread: float) -> float:  # pragma: no cover - compiled
    z = (value - location) / spread
    size = abs(z)
    return z if size <= KNEE else math.copysign(KNEE * (1.0 + math.log(size / KNEE)), z)


@compiled
def _squash_row(
    row: NDArray[np.float32], there: Bools, kept: Kept, own: NDArray[np.float32]
) -> float:  # pragma: no cover - compiled
    """Fill in the row in spreads; its mean deviation."""
    total, count = 0.0, 0
    for j in range(len(row)):
        if there[j]:
            own[j] = _squash(row[j], kept.location[j], kept.spread[j])
            total += abs(own[j])
            count += 1
    return total / count


@compiled
def _distance(own: NDArray[np.float32], there: Bools, kept: Kept) -> float:  # pragma: no cover - compiled
    """Mean distance to the nearest; column by column for all at once, so that several are added in one instruction."""
    rows = min(kept.counts[TAKEN], ROWS)
    total = np.zeros(rows, np.float32)
    count = 0
    for j in range(len(own)):
        if there[j]:
            value, column = own[j], kept.squashed[j]
            for m in range(rows):
                total[m] += abs(value - column[m])
            count += 1
    nearest = total[0]
    for m in range(rows):
        nearest = min(nearest, total[m])
    return float(nearest) / count


@compiled
def _is_usual(distance: float, deviation: float, kept: Kept) -> bool:  # pragma: no cover - compiled
    """Whether to take a row in; moves the quantiles."""
    counts, levels = kept.counts, kept.levels
    if levels[FURTHEST] == 0.0 or levels[WIDEST] == 0.0:
        levels[FURTHEST], levels[WIDEST] = max(distance, LEAST), max(deviation, LEAST)
    further, wider = distance > levels[FURTHEST], deviation > levels[WIDEST]
    usual = not (further or wider)
    levels[REFUSED] += REFUSED_STEP * ((0.0 if usual else 1.0) - levels[REFUSED])
    step = max(STEP, STEP_BEGINNING / counts[CAME])
    if counts[CAME] <= BEGINNING:
        usual = True
    else:
        counts[REFUSING] = counts[REFUSING] + 1 if levels[REFUSED] > REFUSED_MOST else 0
        if counts[REFUSING] > LASTING:
            usual, step = True, STEP_ANEW
        elif counts[REFUSING] > 0:
            step = 0.0
    levels[FURTHEST] = max(
        LEAST, levels[FURTHEST] * math.exp(step * ((1.0 if further else 0.0) - REFUSED_SHARE))
    )
    levels[WIDEST] = max(LEAST, levels[WIDEST] * math.exp(step * ((1.0 if wider else 0.0) - REFUSED_SHARE)))
    return usual


@compiled
def _take_in(row: NDArray[np.float32], kept: Kept) -> None:  # pragma: no cover - compiled
    counts = kept.counts
    place, before = counts[TAKEN] % ROWS, counts[TAKEN]
    step = max(1.0 / (before + 1), math.log(2.0) / EARLIER_HALF_LIFE)
    for j in range(len(row)):
        away = row[j] - kept.earlier[j]
        if before > BEGINNING:
            reach = EARLIER_REACH * math.sqrt(kept.variance[j])
            away = min(max(away, -reach), reach)
        kept.earlier[j] += step * away
        kept.variance[j] += step * (away * away * (1.0 - step) - kept.variance[j])
        kept.rows[j, place] = row[j]
        kept.squashed[j, place] = _squash(row[j], kept.location[j], kept.spread[j])
    counts[TAKEN] += 1
    if counts[TAKEN] % REFRESH == 0 or (counts[TAKEN] < ROWS and counts[TAKEN] % REFRESH_FEW == 0):
        _refresh(kept)


@compiled
def _refresh(kept: Kept) -> None:  # pragma: no cover - compiled
    """Read location, spread and drift from the rows that are kept."""
    rows = min(kept.counts[TAKEN], ROWS)
    moved, moving = 0.0, 0
    for j in range(len(kept.location)):
        column = kept.rows[j, :rows].astype(np.float64)
        mean, spread = column.mean(), column.std()
        if kept.counts[CAME] <= BEGINNING:
            kept.floor[j] = SPREAD_FLOOR * spread
        kept.location[j] = mean
        kept.spread[j] = max(spread, kept.floor[j], RELATIVE_SPREAD_MIN * abs(mean), SPREAD_MIN)
        if kept.variance[j] > SPREAD_MIN**2:
            moved += min(1.0, abs(mean - kept.earlier[j]) / math.sqrt(kept.variance[j]))
            moving += 1
        for m in range(rows):
            kept.squashed[j, m] = _squash(kept.rows[j, m], mean, kept.spread[j])
    kept.levels[MOVED] = moved / max(moving, 1)
