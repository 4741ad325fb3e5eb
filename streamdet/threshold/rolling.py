"""A rolling quantile per entity and per lane, in constant memory.

Each slot keeps a histogram of raw scores on a logarithmic axis with exponential forgetting: the newest score weighs 1,
the one `window` events ago 1/e. A limit is the (1 - alert_rate) quantile of the slot's histogram, refreshed
every 64 events of that slot, so that it depends on counts of events alone and never on how they were batched.

What moves a limit decides everything. Fed with every score, it climbs into frequent anomalies; fed with
unflagged ones only, it cuts its own tail and ratchets down. So all unflagged scores are fed and, of the flagged
ones, what a token bucket lets in: 2 x alert_rate tokens an event, at most 10 saved. Ordinary false alarms are thus
all fed, a burst of anomalies hardly.

Slot 0 is the lane as a whole; it decides for an entity until that has seen enough. While a slot has fewer than
10 scores above its quantile, the quantile is extrapolated by an exponential tail from the 95 % quantile.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamdet.compiled import compiled
from streamdet.config import EXCEEDANCES_MIN, Limit
from streamdet.events import Bools, Floats, Ints, Mode, State

LANE_SLOT = 0
# 5 % wide bins in score, from exp(-7) to exp(9).
BINS = 320
LOG_LOW = -7.0
LOG_WIDTH = 0.05
REFRESH = 64
# Fewer scores give no limit at all.
SEEN_MIN = 256
SCORE_MIN = 1e-12
TAIL_START = 0.05
TOKENS_MAX = 10.0
TOKENS_PER_RATE = 2.0
# A flagged score counts as at most so many limits: how far out anomalies lie says nothing about what is normal,
# and in a window that just resolves its rate a handful of them would carry the limit out of reach.
FLAGGED_MAX = 1.5
# Rows above this quantile are judged, but not learnt.
ADMISSION = 0.90
# Forgetting lets the mass reach the window only in the limit of many events: this close counts as full.
RESOLVED_SHARE = 0.95
TAIL_SCALE_MIN = 0.05
# A bin with so many times the mass asked for holds one value over and over, as when a machine stands still.
# Interpolated, the limit would lie below it now and then, and flag all of it: so it is the upper end of the bin.
ONE_VALUE = 4.0
# Weights grow with every event instead of all others shrinking; they are brought back before they lose digits.
WEIGHT_MAX = 1e12


class Judged(NamedTuple):
    """What the limits said of n scores."""

    limit: Floats  # (n,)
    mode: NDArray[np.uint8]  # (n,)
    flagged: Bools  # (n,)
    fed: Bools  # (n,)
    normal: Bools  # (n,)


class Slots(NamedTuple):
    """All that is kept, a row per slot."""

    histogram: NDArray[np.float32]  # (S, BINS) weights; by far the largest of what a worker keeps
    weight: Floats  # (S,) of the next score
    seen: Ints  # (S,) scores fed
    tokens: Floats  # (S,)
    limit: Floats  # (S,) NaN until the first refresh
    admit: Floats  # (S,) raw score up to which a row may be learnt

    @classmethod
    def empty(cls, slots: int) -> "Slots":
        """Slots that have seen nothing."""
        return cls(
            histogram=np.zeros((slots, BINS), np.float32),
            weight=np.ones(slots),
            seen=np.zeros(slots, np.int64),
            tokens=np.zeros(slots),
            limit=np.full(slots, np.nan),
            admit=np.full(slots, np.nan),
        )


class RollingLimits:
    """The limits of one lane: slot 0 for the lane, one slot for each entity that is kept."""

    def __init__(self, settings: Limit, slots: int = 1) -> None:
        self._rate = settings.alert_rate
        self._growth = math.exp(1.0 / settings.window)
        self._kept = Slots.empty(slots)

    def judge(self, raw: Floats, slots: Ints, fresh: Bools, *, alerting: bool) -> Judged:
        """Judge raw scores (n,) of the entities in these slots (n,), in order, and let each move the limits.

        Where `fresh`, (n,), the slot has a new owner and starts empty.

        The limit for a score has seen nothing of it. NaN scores (no model yet) are neither judged nor fed.
        """
        self._make_room(int(slots.max(initial=0)) + 1)
        n = len(raw)
        judged = Judged(
            limit=np.full(n, np.nan),
            mode=np.full(n, Mode.COLD, np.uint8),
            flagged=np.zeros(n, np.bool_),
            fed=np.zeros(n, np.bool_),
            normal=np.zeros(n, np.bool_),
        )
        _judge(raw, slots, fresh, alerting, self._rate, self._growth, self._kept, judged)
        return judged

    def rescale(self, before: Floats, after: Floats) -> None:
        """Move what is remembered to the scale of a new model version.

        `before` and `after`, (m,), are the scores of the same held-out rows under the old and the new version.
        Their quantiles say where each remembered score would lie now; beyond the largest ones, their ratio does.
        """
        _move(_places(before, after), self._rate, self._kept)

    @property
    def lane_limit(self) -> float:
        """The limit of the lane as a whole; NaN before the first scores."""
        return float(self._kept.limit[LANE_SLOT])

    def state(self, slots: int | None = None) -> State:
        """The arrays of the first slots, or of all, by name: views that change with the next `judge`."""
        return {name: array[:slots] for name, array in self._kept._asdict().items()}

    def restore(self, state: State) -> None:
        """Take back what `state` gave."""
        self._kept = Slots(**{name: np.array(values) for name, values in state.items()})

    def _make_room(self, slots: int) -> None:
        have = len(self._kept.weight)
        if slots > have:
            more = Slots.empty(max(slots, 2 * have) - have)
            pairs: Any = zip(self._kept, more, strict=True)
            self._kept = Slots(*(np.concatenate(pair) for pair in pairs))


@compiled
def _judge(
    raw: Floats,
    slots: Ints,
    fresh: Bools,
    alerting: bool,
    rate: float,
    growth: float,
    kept: Slots,
    out: Judged,
) -> None:  # pragma: no cover - compiled
    enough = EXCEEDANCES_MIN / rate
    for i in range(len(raw)):
        score = raw[i]
        slot = slots[i]
        if fresh[i]:
            _clear(slot, kept)
        if np.isnan(score):
            out.fed[i] = out.normal[i] = True
            continue
        own = slot != LANE_SLOT and kept.seen[slot] >= enough
        decider = slot if own else LANE_SLOT
        limit = kept.limit[decider]
        over = score >= limit  # False while the limit is NaN
        out.limit[i] = limit
        out.normal[i] = not over and not score > kept.admit[decider]
        if alerting and not np.isnan(limit):
            out.mode[i] = Mode.ENTITY if own else Mode.READY
            out.flagged[i] = over
        else:
            out.mode[i] = Mode.WARMING
        out.fed[i] = _feed(score, out.flagged[i], LANE_SLOT, rate, growth, kept)
        if slot != LANE_SLOT:
            _feed(score, out.flagged[i], slot, rate, growth, kept)


def _places(before: Floats, after: Floats) -> Floats:
    """Where the middle of each bin lies on the new scale, (BINS,), as a fractional number of a bin."""
    old, new = (np.log(np.maximum(np.sort(scores), SCORE_MIN)) for scores in (before, after))
    middle = LOG_LOW + LOG_WIDTH * (np.arange(BINS) + 0.5)
    moved = np.interp(middle, old, new)
    moved = np.where(middle >= old[-1], middle + new[-1] - old[-1], moved)
    moved = np.where(middle <= old[0], middle + new[0] - old[0], moved)
    places: Floats = np.clip((moved - LOG_LOW) / LOG_WIDTH - 0.5, 0.0, BINS - 1.001)
    return places


@compiled
def _move(places: Floats, rate: float, kept: Slots) -> None:  # pragma: no cover - compiled
    """Move the mass of each bin to its place, in all slots."""
    moved = np.empty(BINS)
    for slot in range(len(kept.weight)):
        if kept.seen[slot] == 0:
            continue
        histogram = kept.histogram[slot]
        moved[:] = 0.0
        for j in range(BINS):
            if histogram[j] > 0.0:
                # Split between the two nearest bins, so that rounding moves no mass on average.
                low = int(places[j])
                moved[low] += histogram[j] * (1.0 - (places[j] - low))
                moved[low + 1] += histogram[j] * (places[j] - low)
        histogram[:] = moved
        if not np.isnan(kept.limit[slot]):
            _refresh(slot, rate, kept)


@compiled
def _clear(slot: int, kept: Slots) -> None:  # pragma: no cover - compiled
    kept.histogram[slot] = 0.0
    kept.weight[slot] = 1.0
    kept.seen[slot] = 0
    kept.tokens[slot] = 0.0
    kept.limit[slot] = np.nan
    kept.admit[slot] = np.nan


@compiled
def _feed(
    score: float, flagged: bool, slot: int, rate: float, growth: float, kept: Slots
) -> bool:  # pragma: no cover - compiled
    kept.tokens[slot] = min(TOKENS_MAX, kept.tokens[slot] + TOKENS_PER_RATE * rate)
    if flagged:
        if kept.tokens[slot] < 1.0:
            return False
        kept.tokens[slot] -= 1.0
        if not np.isnan(kept.limit[slot]):
            score = min(score, FLAGGED_MAX * kept.limit[slot])
    histogram = kept.histogram[slot]
    position = (np.log(max(score, SCORE_MIN)) - LOG_LOW) / LOG_WIDTH
    histogram[int(min(max(position, 0.0), BINS - 1.0))] += kept.weight[
        slot
    ]  # clipped first: it may be infinite
    kept.weight[slot] *= growth
    kept.seen[slot] += 1
    if kept.weight[slot] > WEIGHT_MAX:
        histogram /= kept.weight[slot]
        kept.weight[slot] = 1.0
    if kept.seen[slot] % REFRESH == 0 and kept.seen[slot] >= SEEN_MIN:
        _refresh(slot, rate, kept)
    return True


@compiled
def _refresh(slot: int, rate: float, kept: Slots) -> None:  # pragma: no cover - compiled
    histogram = kept.histogram[slot]
    total = 0.0  # summed in float64, which the sum of a float32 array is not
    for j in range(BINS):
        total += histogram[j]
    if rate * total / kept.weight[slot] >= RESOLVED_SHARE * EXCEEDANCES_MIN:
        kept.limit[slot] = _quantile(histogram, rate * total)
    else:
        kept.limit[slot] = _extrapolated(histogram, total, rate)
    kept.admit[slot] = _quantile(histogram, (1.0 - ADMISSION) * total)


@compiled
def _quantile(histogram: NDArray[np.float32], above: float) -> float:  # pragma: no cover - compiled
    """The score with this mass above it, linear in log score inside a bin."""
    mass = 0.0
    for j in range(BINS - 1, -1, -1):
        mass += histogram[j]
        if mass >= above and histogram[j] > 0.0:
            if histogram[j] > ONE_VALUE * above:
                return math.exp(LOG_LOW + LOG_WIDTH * (j + 1))
            return math.exp(LOG_LOW + LOG_WIDTH * (j + (mass - above) / histogram[j]))
    return math.exp(LOG_LOW)


@compiled
def _extrapolated(
    histogram: NDArray[np.float32], total: float, rate: float
) -> float:  # pragma: no cover - compiled
    """The quantile by an exponential tail through the mean excess over the 95 % quantile."""
    if rate >= TAIL_START:
        return _quantile(histogram, rate * total)
    start = _quantile(histogram, TAIL_START * total)
    mass = 0.0
    excess = 0.0
    for j in range(BINS):
        middle = math.exp(LOG_LOW + LOG_WIDTH * (j + 0.5))
        if middle > start:
            mass += histogram[j]
            excess += histogram[j] * (middle - start)
    scale = excess / mass if mass > 0.0 else 0.0
    return start + max(scale, TAIL_SCALE_MIN * start) * math.log(TAIL_START / rate)
