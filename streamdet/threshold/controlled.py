"""The controlled rule: the quantile times a factor that holds the asked rate.

The factor goes up with every flag and down a little with every other score, until the asked share is flagged; all
scores are fed. Where a valley parts the scores and those beyond it arrive independently of each other, they are taken
to be anomalies: they neither move the factor nor the quantile. Where they come in runs they are a regime as likely as
an incident: they do move both, and a small budget flags the first ones of each run. Of an excursion above the limit
the first scores are flagged, and what is worse than all before: a thousand flags would say no more to anybody, and
leave a factor behind that hides the next incident.
"""

import math
from typing import Final

import numpy as np

from streamdet.compiled import compiled
from streamdet.config import EXCEEDANCES_MIN
from streamdet.threshold.histogram import (
    BINS,
    bin_of,
    extrapolated,
    mass,
    quantile,
    upper_edge,
    upper_edge_of_last,
)
from streamdet.threshold.rule import FLAGGED_MAX, RUN_MAX, Rule
from streamdet.threshold.slots import BUDGET_MAX, CLUSTERED, ISOLATED, NOTHING, Slots
from streamdet.threshold.valley import arrives_independently, find_valley

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
# An excursion is flagged again where it gets so much worse.
WORSE: Final = 1.05


@compiled
def usual_limit(slot: int, kept: Slots) -> float:  # pragma: no cover - compiled
    """The limit without what an excursion under way makes of it; NaN as long as there is none."""
    if np.isnan(kept.high[slot]):
        return math.nan
    if kept.beyond[slot] == ISOLATED:
        # Not above the cut: there the exemption begins, and nothing would bring the limit back.
        limit = min(kept.low[slot] * kept.factor_apart[slot], kept.cut[slot])
    else:
        limit = kept.high[slot] * kept.factor[slot]
    return float(max(limit, kept.floor[slot]))


@compiled
def limit_of(slot: int, rule: Rule, kept: Slots) -> float:  # pragma: no cover - compiled
    """The limit for the next score of a slot."""
    limit = usual_limit(slot, kept)
    if kept.beyond[slot] == ISOLATED:
        return limit
    if kept.flags[slot] >= rule.run:
        return float(max(limit, WORSE * kept.worst[slot]))
    if kept.beyond[slot] == CLUSTERED and kept.budget[slot] >= 1.0 and kept.run[slot] < RUN_MAX:
        return float(min(limit, kept.low[slot]))
    return limit


@compiled
def counts_as(at: int, slot: int, rule: Rule, kept: Slots) -> int:  # pragma: no cover - compiled
    """The bin that a score of this bin is remembered in: what an excursion goes on with counts for less."""
    if kept.flags[slot] >= rule.run and kept.beyond[slot] != ISOLATED:
        return int(min(at, bin_of(FLAGGED_MAX * kept.high[slot])))
    return at


@compiled
def control(score: float, slot: int, rule: Rule, kept: Slots) -> None:  # pragma: no cover - compiled
    """Move the factors by one score: up where it is over the limit, down a little where it is not."""
    kept.budget[slot] = min(BUDGET_MAX, kept.budget[slot] + BUDGET_PER_RATE * rule.rate)
    floor = kept.floor[slot]
    if kept.beyond[slot] == ISOLATED:
        if score <= kept.cut[slot]:
            at = kept.low[slot] * kept.factor_apart[slot]
            flagged = score >= kept.limit[slot]
            kept.factor_apart[slot] = _factor_after(kept.factor_apart[slot], flagged, at > floor, rule)
        return
    at = kept.high[slot] * kept.factor[slot]
    over = score >= max(at, floor)
    flagged = over and score >= kept.limit[slot]
    kept.factor[slot] = _factor_after(kept.factor[slot], flagged, at > floor, rule)
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
def _factor_after(
    factor: float, up: bool, may_fall: bool, rule: Rule
) -> float:  # pragma: no cover - compiled
    """A factor after one score. On the floor it doesn't fall on, or it would have to come back all the way."""
    if up:
        return min(factor * rule.rise, FACTOR_MAX)
    return max(factor * rule.fall, FACTOR_MIN) if may_fall else factor


@compiled
def refresh(slot: int, total: float, rule: Rule, kept: Slots) -> None:  # pragma: no cover - compiled
    """Read the quantiles anew, of scores that weigh `total`."""
    histogram = kept.histogram[slot]
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
