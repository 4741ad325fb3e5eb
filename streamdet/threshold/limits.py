"""The running limit of an entity and of a lane: the asked share of normal scores lies above it, in constant memory.

The rules, a file each, build on a histogram of raw scores with exponential forgetting (`histogram.py`), whose
quantiles are read anew every 64 scores of a slot: so limits depend on counts alone and never on how scores were
batched.

Slot 0 is the lane as a whole; it decides for an entity until that has seen 10 / alert_rate scores.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamdet.compiled import compiled, inlined
from streamdet.config import Limit
from streamdet.events import Bools, Floats, Ints, Mode, State
from streamdet.slotted import state_of, with_room
from streamdet.threshold import conformal, controlled, peaks, rolling
from streamdet.threshold.histogram import BINS, bin_of, mass, move, places, quantile
from streamdet.threshold.rule import CONFORMAL, CONTROLLED, FLAGGED_MAX, PEAKS, Rule, rule_of
from streamdet.threshold.slots import Slots, clear, remember
from streamdet.threshold.valley import COARSE

LANE_SLOT: Final = 0
REFRESH: Final = 64
# Fewer scores give no limit at all.
SEEN_MIN: Final = 256
# Rows above this quantile are judged, but not learnt.
ADMISSION: Final = 0.90

# What serves as reference for calibration: all that is below the limit, and of what is above what these tokens let in.
TOKENS_MAX: Final = 10.0
TOKENS_PER_RATE: Final = 2.0
SCORE_MAX: Final = 1e30


class Judged(NamedTuple):
    """What the limits said of n scores."""

    limit: Floats  # (n,)
    mode: NDArray[np.uint8]  # (n,)
    flagged: Bools  # (n,)
    fed: Bools  # (n,)
    normal: Bools  # (n,)
    usual: Floats  # (n,) what is over it is strange: flagged, or in an excursion that has been; NaN in the warm-up


def bytes_per_slot(settings: Limit) -> int:
    """What is kept of an entity."""
    return sum(array.nbytes for array in Slots.empty(1, _columns(rule_of(settings, nominal=False))))


def _columns(rule: Rule) -> int:
    """How many numbers of a slot only this rule keeps."""
    if rule.kind == PEAKS:
        return peaks.RING + rule.tail_size
    return 1 if rule.kind == CONFORMAL else 0


class Limits:
    """The limits of one lane: slot 0 for the lane, one slot for each entity that is kept."""

    def __init__(self, settings: Limit, slots: int = 1, *, nominal: bool = False) -> None:
        """`nominal`: scores are surprises in nats that stay what they say, as those of a metric; they need no history.

        Of a metric a single row tells of an excursion, as it spoils the next ones: their forecasts and means.
        """
        self._rule = rule_of(settings, nominal=nominal)
        self._name = settings.rule
        self._kept = self._empty(slots)

    def judge(self, raw: Floats, slots: Ints, fresh: Bools, *, alerting: bool) -> Judged:
        """Judge raw scores (n,) of the entities in these slots (n,), in order, and let each move the limits.

        Where `fresh`, (n,), the slot has a new owner and starts empty.

        The limit for a score has seen nothing of it. NaN scores (no model yet) are neither judged nor fed.
        """
        self._kept = with_room(self._kept, int(slots.max(initial=0)) + 1, self._empty)
        n = len(raw)
        judged = Judged(
            limit=np.full(n, np.nan),
            mode=np.full(n, Mode.COLD, np.uint8),
            flagged=np.zeros(n, np.bool_),
            fed=np.zeros(n, np.bool_),
            normal=np.zeros(n, np.bool_),
            usual=np.full(n, np.nan),
        )
        _judge(raw, slots, fresh, alerting, self._rule, self._kept, judged)
        return judged

    def rescale(self, before: Floats, after: Floats) -> None:
        """Move what is remembered to the scale of a new model version.

        `before` and `after`, (m,), are the scores of the same held-out rows under the old and the new version.
        """
        where = places(before, after)
        # A coarse bin goes where the middle one of its fine bins goes.
        coarse = (where[COARSE // 2 :: COARSE] + where[COARSE // 2 - 1 :: COARSE] + 1.0) / (2 * COARSE) - 0.5
        _rescale(where, np.maximum(coarse, 0.0), self._rule, self._kept)

    def begin_anew(self, scores: Floats) -> None:
        """Forget all, and begin with raw scores (m,) that are normal; entities begin with nothing.

        Limits that have seen nothing stay as they are.
        """
        if self._kept.seen[LANE_SLOT] == 0:
            return
        self._kept = Slots.empty(len(self._kept.weight), _columns(self._rule))
        scores = np.resize(scores, max(len(scores), SEEN_MIN))  # over again, as fewer would give no limit
        lane = np.full(len(scores), LANE_SLOT)
        self.judge(scores, lane, np.zeros(len(scores), np.bool_), alerting=False)

    @property
    def lane_limit(self) -> float:
        """The limit of the lane as a whole; NaN before the first scores."""
        return float(self._kept.limit[LANE_SLOT])

    def state(self, slots: int | None = None) -> State:
        """The arrays of the first slots, or of all, by name: views that change with the next `judge`."""
        state = state_of(self._kept, slots)
        own = state.pop("own")
        return {**state, self._name: own} if own.size else state

    def restore(self, state: State) -> None:
        """Take back what `state` gave; what an older version kept otherwise begins as in an empty slot."""
        new = self._empty(len(state["weight"]))
        known = {name: np.array(values) for name, values in state.items() if name in new._fields}
        own = state.get(self._name)  # that of another rule says nothing to this one, nor in other columns
        if own is not None and own.shape == new.own.shape:
            known["own"] = np.array(own)
        kept = new._replace(**known)
        unread = np.isnan(kept.high) & ~np.isnan(kept.limit)
        kept.high[unread] = kept.low[unread] = kept.limit[unread]
        self._kept = kept

    def _empty(self, slots: int) -> Slots:
        return Slots.empty(slots, _columns(self._rule))


@compiled
def _judge(
    raw: Floats, slots: Ints, fresh: Bools, alerting: bool, rule: Rule, kept: Slots, out: Judged
) -> None:  # pragma: no cover - compiled
    for i in range(len(raw)):
        score = raw[i]
        slot = slots[i]
        if fresh[i]:
            clear(slot, kept)
        if np.isnan(score):
            out.fed[i] = out.normal[i] = True
            continue
        own = slot != LANE_SLOT and kept.seen[slot] >= rule.enough
        decider = slot if own else LANE_SLOT
        limit = kept.limit[decider]
        if np.isnan(limit):
            limit = rule.nominal
        over = score >= limit  # False while the limit is NaN
        # What an excursion goes on with is not flagged, and no more normal for that.
        usual = _usual_limit(decider, rule, kept)
        strange = over or score >= usual
        out.limit[i] = limit
        out.normal[i] = not strange and not score > kept.admit[decider]
        if alerting and not np.isnan(limit):
            out.mode[i] = Mode.ENTITY if own else Mode.READY
            out.flagged[i] = over
            out.usual[i] = np.fmin(usual, limit)
        else:
            out.mode[i] = Mode.WARMING
        score, at = min(score, SCORE_MAX), bin_of(score)
        strange = strange and alerting
        # The lane last, as that it was fed counts; and one call, as all of it is compiled into each.
        for k in range(int(slot == LANE_SLOT), 2):
            out.fed[i] = _take_in(score, at, strange, slot if k == 0 else LANE_SLOT, alerting, rule, kept)


@inlined
def _take_in(
    score: float, at: int, strange: bool, slot: int, alerting: bool, rule: Rule, kept: Slots
) -> bool:  # pragma: no cover - compiled
    """Let a score, of this bin, move one slot's limit; whether it may serve as reference."""
    referred = _spend_token(strange, slot, rule, kept)
    limited = not np.isnan(kept.limit[slot])
    if rule.kind == CONTROLLED:
        if alerting and limited:
            controlled.control(score, slot, rule, kept)
            at = controlled.counts_as(at, slot, rule, kept)
        _feed(at, slot, rule, kept)
    elif rule.kind == PEAKS:
        peaks.take_in(score, kept.limit[slot], kept.seen[slot], kept.own[slot], rule)
        _feed(at, slot, rule, kept)
    else:
        if rule.kind == CONFORMAL and alerting and limited:
            conformal.move_level(score >= kept.limit[slot], kept.own[slot], rule)
        if referred:
            if strange and limited:
                at = min(at, bin_of(FLAGGED_MAX * kept.limit[slot]))
            _feed(at, slot, rule, kept)
    kept.limit[slot] = _limit_of(slot, rule, kept)
    return referred


@compiled
def _spend_token(strange: bool, slot: int, rule: Rule, kept: Slots) -> bool:  # pragma: no cover - compiled
    kept.tokens[slot] = min(TOKENS_MAX, kept.tokens[slot] + TOKENS_PER_RATE * rule.rate)
    if strange:
        if kept.tokens[slot] < 1.0:
            return False
        kept.tokens[slot] -= 1.0
    return True


@compiled
def _limit_of(slot: int, rule: Rule, kept: Slots) -> float:  # pragma: no cover - compiled
    """The limit for the next score of a slot."""
    if rule.kind == CONTROLLED:
        return controlled.limit_of(slot, rule, kept)
    if rule.kind == PEAKS:
        return peaks.limit_of(kept.limit[slot], kept.own[slot], rule)
    return float(kept.high[slot])


@compiled
def _usual_limit(slot: int, rule: Rule, kept: Slots) -> float:  # pragma: no cover - compiled
    """The limit without what an excursion under way makes of it; NaN as long as there is none."""
    if rule.kind == CONTROLLED:
        return controlled.usual_limit(slot, kept)
    return float(kept.limit[slot])


@compiled
def _feed(at: int, slot: int, rule: Rule, kept: Slots) -> None:  # pragma: no cover - compiled
    """Count a score of this bin, and read the quantiles anew if it is time."""
    remember(at, slot, rule.growth, kept)
    if kept.seen[slot] % REFRESH == 0 and kept.seen[slot] >= SEEN_MIN:
        _refresh(slot, rule, kept)


@compiled
def _refresh(slot: int, rule: Rule, kept: Slots) -> None:  # pragma: no cover - compiled
    total = mass(kept.histogram[slot], 0, BINS)
    if rule.kind == CONTROLLED:
        controlled.refresh(slot, total, rule, kept)
    elif rule.kind == PEAKS:
        peaks.refresh(slot, total, rule, kept)
    elif rule.kind == CONFORMAL:
        conformal.refresh(slot, total, rule, kept)
    else:
        rolling.refresh(slot, total, rule, kept)
    kept.admit[slot] = quantile(kept.histogram[slot], BINS, (1.0 - ADMISSION) * total)


@compiled
def _rescale(where: Floats, coarse: Floats, rule: Rule, kept: Slots) -> None:  # pragma: no cover - compiled
    for slot in range(len(kept.weight)):
        if kept.seen[slot] == 0:
            continue
        move(kept.histogram[slot], where)
        move(kept.next_pairs[slot], coarse)
        move(kept.near_pairs[slot], coarse)
        if np.isnan(kept.limit[slot]):
            continue
        if rule.kind == PEAKS:
            peaks.rescale(kept.own[slot], where, rule)
        evidence = kept.evidence[slot]
        _refresh(slot, rule, kept)
        kept.evidence[slot] = evidence  # the same scores seen again are no new evidence
        kept.limit[slot] = _limit_of(slot, rule, kept)
