"""The running limit of an entity and of a lane: the asked share of normal scores lies above it, in constant memory.

Two rules, both on a histogram of raw scores with exponential forgetting (`histogram.py`), whose quantile is read anew
every 64 scores of a slot: so limits depend on counts alone and never on how scores were batched.

`controlled`: the quantile times a factor that goes up with every flag and down a little with every other score, until
the asked share is flagged; all scores are fed. Where a valley parts the scores and those beyond it arrive
independently of each other, they are taken to be anomalies: they neither move the factor nor the quantile. Where they
come in runs they are a regime as likely as an incident: they do move both, and a small budget flags the first ones of
each run. Of an excursion above the limit the first scores are flagged, and what is worse than all before: a thousand
flags would say no more to anybody, and leave a factor behind that hides the next incident.

`rolling`: the quantile as it is. All unflagged scores are fed and, of the flagged ones, what a token bucket lets in.

Slot 0 is the lane as a whole; it decides for an entity until that has seen 10 / alert_rate scores.
"""

import math
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamdet.compiled import compiled
from streamdet.config import EXCEEDANCES_MIN, Limit
from streamdet.events import Bools, Floats, Ints, Mode, State
from streamdet.threshold.histogram import (
    BINS,
    bin_of,
    extrapolated,
    mass,
    move,
    places,
    quantile,
    upper_edge,
    upper_edge_of_last,
)
from streamdet.threshold.slots import BUDGET_MAX, CLUSTERED, ISOLATED, NOTHING, Slots, clear, remember
from streamdet.threshold.valley import APART, COARSE, arrives_independently, find_valley

LANE_SLOT: Final = 0
REFRESH: Final = 64
# Fewer scores give no limit at all.
SEEN_MIN: Final = 256
# Rows above this quantile are judged, but not learnt.
ADMISSION: Final = 0.90
# Forgetting lets the mass reach the window only in the limit of many events: this close counts as full.
RESOLVED_SHARE: Final = 0.95

# What serves as reference for calibration: all that is below the limit, and of what is above what these tokens let in.
TOKENS_MAX: Final = 10.0
TOKENS_PER_RATE: Final = 2.0
# A flagged score counts as at most so many limits: how far out anomalies lie says nothing about what is normal,
# and in a window that just resolves its rate a handful of them would carry the limit out of reach.
FLAGGED_MAX: Final = 1.5

# The controlled rule: how far a flag moves the factor, in logarithms, and its bounds.
STEP: Final = 0.05
FACTOR_MIN: Final = 0.5
FACTOR_MAX: Final = 4.5
# Nor may the factor bring the limit down into a bin with such a share of all scores. A machine that stands still has
# one score over and over: without this, the asked share of them would be flagged, no different from the others.
FLOOR_SHARE: Final = 0.25
# Independent arrival has to hold for so many refreshes, of at most so many that count; each that fails costs so many.
EVIDENCE_MIN: Final = 4
EVIDENCE_MAX: Final = 16
EVIDENCE_LOSS: Final = 4
# Of a run beyond the valley the first rows are flagged while the budget lasts.
BUDGET_PER_RATE: Final = 0.5
RUN_MAX: Final = 3
# An excursion is over after so many scores below the limit; it is flagged again where it gets so much worse.
PAUSE_MAX: Final = APART
PAUSE_NOMINAL: Final = 100
PAUSE_RATE: Final = 0.25  # sooner where flags are asked for so often that they would all be one excursion
WORSE: Final = 1.05
SCORE_MAX: Final = 1e30

CONTROLLED: Final = 0
ROLLING: Final = 1
_RULES: Final = {"controlled": CONTROLLED, "rolling": ROLLING}


class Judged(NamedTuple):
    """What the limits said of n scores."""

    limit: Floats  # (n,)
    mode: NDArray[np.uint8]  # (n,)
    flagged: Bools  # (n,)
    fed: Bools  # (n,)
    normal: Bools  # (n,)
    usual: Floats  # (n,) what is over it is strange: flagged, or in an excursion that has been; NaN in the warm-up


class Rule(NamedTuple):
    """What the compiled loop knows of the settings."""

    kind: int
    rate: float
    growth: float  # of the weight, from one score to the next
    rise: float  # by what a factor is multiplied for a flag
    fall: float  # and for any other score
    pause: int  # scores below the limit that end an excursion
    contaminated: bool
    nominal: float  # the limit where too few scores are remembered to tell; NaN: extrapolate
    run: int  # of an excursion so many rows are flagged, before only what is worse is


class Limits:
    """The limits of one lane: slot 0 for the lane, one slot for each entity that is kept."""

    def __init__(self, settings: Limit, slots: int = 1, *, nominal: bool = False) -> None:
        """`nominal`: scores are surprises in nats that stay what they say, as those of a metric; they need no history.

        Of a metric a single row tells of an excursion, as it spoils the next ones: their forecasts and means.
        """
        rate = settings.alert_rate
        self._rule = Rule(
            kind=_RULES[settings.rule],
            rate=rate,
            growth=math.exp(1.0 / settings.window),
            rise=math.exp(STEP * (1.0 - rate)),
            fall=math.exp(-STEP * rate),
            pause=max(1, min(PAUSE_NOMINAL if nominal else PAUSE_MAX, int(PAUSE_RATE / rate))),
            contaminated=settings.contaminated,
            nominal=-math.log(rate) if nominal else math.nan,
            run=1 if nominal else RUN_MAX,
        )
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

    @property
    def lane_limit(self) -> float:
        """The limit of the lane as a whole; NaN before the first scores."""
        return float(self._kept.limit[LANE_SLOT])

    def state(self, slots: int | None = None) -> State:
        """The arrays of the first slots, or of all, by name: views that change with the next `judge`."""
        return {name: array[:slots] for name, array in self._kept._asdict().items()}

    def restore(self, state: State) -> None:
        """Take back what `state` gave; what an older version kept otherwise begins as in an empty slot."""
        new = Slots.empty(len(state["weight"]))
        known = {name: np.array(values) for name, values in state.items() if name in new._fields}
        kept = new._replace(**known)
        unread = np.isnan(kept.high) & ~np.isnan(kept.limit)
        kept.high[unread] = kept.low[unread] = kept.limit[unread]
        self._kept = kept

    def _make_room(self, slots: int) -> None:
        have = len(self._kept.weight)
        if slots > have:
            more = Slots.empty(max(slots, 2 * have) - have)
            pairs: Any = zip(self._kept, more, strict=True)
            self._kept = Slots(*(np.concatenate(pair) for pair in pairs))


@compiled
def _judge(
    raw: Floats, slots: Ints, fresh: Bools, alerting: bool, rule: Rule, kept: Slots, out: Judged
) -> None:  # pragma: no cover - compiled
    enough = EXCEEDANCES_MIN / rule.rate
    for i in range(len(raw)):
        score = raw[i]
        slot = slots[i]
        if fresh[i]:
            clear(slot, kept)
        if np.isnan(score):
            out.fed[i] = out.normal[i] = True
            continue
        own = slot != LANE_SLOT and kept.seen[slot] >= enough
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
        out.fed[i] = _take_in(score, at, strange, LANE_SLOT, alerting, rule, kept)
        if slot != LANE_SLOT:
            _take_in(score, at, strange, slot, alerting, rule, kept)


@compiled
def _take_in(
    score: float, at: int, strange: bool, slot: int, alerting: bool, rule: Rule, kept: Slots
) -> bool:  # pragma: no cover - compiled
    """Let a score, of this bin, move one slot's limit; whether it may serve as reference."""
    referred = _spend_token(strange, slot, rule, kept)
    if rule.kind == CONTROLLED:
        if alerting and not np.isnan(kept.limit[slot]):
            _control(score, slot, rule, kept)
            if kept.flags[slot] >= rule.run and kept.beyond[slot] != ISOLATED:
                at = min(at, bin_of(FLAGGED_MAX * kept.high[slot]))
        _feed(at, slot, rule, kept)
        kept.limit[slot] = _controlled_limit(slot, rule, kept)
    elif referred:
        if strange and not np.isnan(kept.limit[slot]):
            at = min(at, bin_of(FLAGGED_MAX * kept.limit[slot]))
        _feed(at, slot, rule, kept)
        kept.limit[slot] = kept.high[slot]
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
def _usual_limit(slot: int, rule: Rule, kept: Slots) -> float:  # pragma: no cover - compiled
    """The limit without what an excursion under way makes of it; NaN as long as there is none."""
    if rule.kind == ROLLING or np.isnan(kept.high[slot]):
        return float(kept.high[slot])
    if kept.beyond[slot] == ISOLATED:
        # Not above the cut: there the exemption begins, and nothing would bring the limit back.
        limit = min(kept.low[slot] * kept.factor_apart[slot], kept.cut[slot])
    else:
        limit = kept.high[slot] * kept.factor[slot]
    return float(max(limit, kept.floor[slot]))


@compiled
def _controlled_limit(slot: int, rule: Rule, kept: Slots) -> float:  # pragma: no cover - compiled
    """The limit for the next score of a slot."""
    limit = _usual_limit(slot, rule, kept)
    if kept.beyond[slot] == ISOLATED:
        return limit
    if kept.flags[slot] >= rule.run:
        return float(max(limit, WORSE * kept.worst[slot]))
    if kept.beyond[slot] == CLUSTERED and kept.budget[slot] >= 1.0 and kept.run[slot] < RUN_MAX:
        return float(min(limit, kept.low[slot]))
    return limit


@compiled
def _control(score: float, slot: int, rule: Rule, kept: Slots) -> None:  # pragma: no cover - compiled
    """Move the factors by one score: up where it is over the limit, down a little where it is not."""
    kept.budget[slot] = min(BUDGET_MAX, kept.budget[slot] + BUDGET_PER_RATE * rule.rate)
    floor = kept.floor[slot]
    if kept.beyond[slot] == ISOLATED:
        if score <= kept.cut[slot]:
            at = kept.low[slot] * kept.factor_apart[slot]
            flagged = score >= kept.limit[slot]
            kept.factor_apart[slot] = _moved(kept.factor_apart[slot], flagged, at > floor, rule)
        return
    at = kept.high[slot] * kept.factor[slot]
    over = score >= max(at, floor)
    flagged = over and score >= kept.limit[slot]
    kept.factor[slot] = _moved(kept.factor[slot], flagged, at > floor, rule)
    if over:
        kept.flags[slot] += flagged
        kept.worst[slot] = max(kept.worst[slot], score)
        kept.calm[slot] = 0
    else:
        kept.calm[slot] += 1
        if kept.calm[slot] >= rule.pause:
            kept.flags[slot] = 0
            kept.worst[slot] = 0.0
    if kept.beyond[slot] == CLUSTERED:
        if not over and score >= kept.limit[slot]:
            kept.budget[slot] -= 1.0
        kept.run[slot] = kept.run[slot] + 1 if score >= kept.low[slot] else 0


@compiled
def _moved(factor: float, up: bool, may_fall: bool, rule: Rule) -> float:  # pragma: no cover - compiled
    """A factor after one score. On the floor it doesn't fall on, or it would have to come back all the way."""
    if up:
        return min(factor * rule.rise, FACTOR_MAX)
    return max(factor * rule.fall, FACTOR_MIN) if may_fall else factor


@compiled
def _feed(at: int, slot: int, rule: Rule, kept: Slots) -> None:  # pragma: no cover - compiled
    """Count a score of this bin, and read the quantiles anew if it is time."""
    remember(at, slot, rule.growth, kept)
    if kept.seen[slot] % REFRESH == 0 and kept.seen[slot] >= SEEN_MIN:
        _refresh(slot, rule, kept)


@compiled
def _refresh(slot: int, rule: Rule, kept: Slots) -> None:  # pragma: no cover - compiled
    histogram = kept.histogram[slot]
    total = mass(histogram, 0, BINS)
    end = BINS
    if rule.kind == CONTROLLED:
        kept.high[slot] = quantile(histogram, BINS, rule.rate * total)
        if rule.rate * total / kept.weight[slot] < EXCEEDANCES_MIN:
            if np.isnan(rule.nominal):
                # The largest of few scores may be anomalous; so may be those of the tail, but they hide less.
                kept.high[slot] = min(kept.high[slot], extrapolated(histogram, total, rule.rate))
            else:
                kept.high[slot] = rule.nominal
        kept.low[slot] = kept.high[slot]
        end = _look_beyond(slot, rule, kept)
        if end < BINS:
            below = mass(histogram, 0, end)
            kept.low[slot] = min(kept.high[slot], quantile(histogram, end, rule.rate * below))
        kept.floor[slot] = upper_edge_of_last(histogram, FLOOR_SHARE * total)
    elif rule.rate * total / kept.weight[slot] >= RESOLVED_SHARE * EXCEEDANCES_MIN:
        kept.high[slot] = quantile(histogram, BINS, rule.rate * total)
    else:
        kept.high[slot] = extrapolated(histogram, total, rule.rate)
    kept.admit[slot] = quantile(histogram, BINS, (1.0 - ADMISSION) * total)


@compiled
def _look_beyond(slot: int, rule: Rule, kept: Slots) -> int:  # pragma: no cover - compiled
    """Look for a valley; where the bulk ends, in bins: at BINS if there is none."""
    weight = kept.weight[slot]
    valley = find_valley(kept.histogram[slot], weight, rule.rate)
    independent = valley >= 0 and arrives_independently(
        kept.histogram[slot], kept.next_pairs[slot], kept.near_pairs[slot], weight, valley
    )
    evidence = kept.evidence[slot] + (1 if independent else -EVIDENCE_LOSS)
    kept.evidence[slot] = min(max(evidence, 0), EVIDENCE_MAX)
    if valley < 0:
        kept.cut[slot] = np.inf
        kept.beyond[slot] = NOTHING
        return BINS
    kept.cut[slot] = upper_edge(valley)
    trusted = rule.contaminated or kept.evidence[slot] >= EVIDENCE_MIN
    kept.beyond[slot] = ISOLATED if trusted else CLUSTERED
    return valley + 1


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
        evidence = kept.evidence[slot]
        _refresh(slot, rule, kept)
        kept.evidence[slot] = evidence  # the same scores seen again are no new evidence
        if rule.kind == CONTROLLED:
            kept.limit[slot] = _controlled_limit(slot, rule, kept)
        else:
            kept.limit[slot] = kept.high[slot]
