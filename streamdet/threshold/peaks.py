"""Peaks over threshold, `spot` and `dspot`: the limit lies where the tail beyond a high base says.

After Siffer, Fouque, Termier and Largouet, "Anomaly Detection in Streams with Extreme Value Theory" (KDD 2017). The
newest excesses over a base, which is about the 98 % quantile, are fitted by a generalised Pareto tail (`pareto.py`)
every 64 scores, and the limit is that tail's quantile for the asked rate, whether or not the window could resolve it.
`dspot` does so on the score minus its moving mean. Differences from the paper:

- The base is not fixed but follows the scores, one small step for each (Robbins and Monro, "A Stochastic
  Approximation Method", 1951): after a shift it comes back.
- As in the paper, a score beyond the limit moves neither base nor tail, so anomalies cannot carry the limit away. But a
  tail whose largest excesses are never seen is fitted too short, the next one shorter still: the limit ratchets down
  to several times the asked rate. So the missing ones are put back as one mass at the mean that the tail gives them;
  the true tail is then a fixed point. How many are missing is counted, and believed within narrow bounds around what
  was asked for; what lies too far out for this tail is not counted. *Against:* a token bucket as under `rolling`,
  through which frequent anomalies become a part of the tail that is extrapolated.
- Where the share beyond the limit has been several times the asked one for half a window, that is no incident any more:
  the rule starts again, from two outer quantiles of the histogram, which takes all scores. *Against:* a share of the
  window, which one long incident reaches in a row, and a step in a tenth of the scores never.
"""

import math
from typing import Final

import numpy as np

from streamdet.compiled import compiled
from streamdet.events import Floats
from streamdet.threshold.histogram import BINS, SCORE_MIN, carried_over, quantile
from streamdet.threshold.pareto import Tail, fitted, mean_beyond, quantile_of_tail
from streamdet.threshold.rule import Rule
from streamdet.threshold.slots import Slots

# Columns of `Slots.own`: excesses so far, moving mean (0 under spot), base over it, scale and shape of the tail, share
# of scores beyond the limit without anomalies, share of the latest ones with them, for how many scores that has been
# too much. The scale is 0 before the first refresh. Then, as a ring, the newest excesses.
COUNT: Final = 0
MEAN: Final = 1
BASE: Final = 2
SCALE: Final = 3
SHAPE: Final = 4
BEYOND: Final = 5
OVER: Final = 6
LASTED: Final = 7
RING: Final = 8

# Fewer excesses are not fitted: the tail is that of the start.
FITTED_MIN: Final = 32
# The tail begins exponential through two quantiles that lie inside the bulk, where few anomalies among the first
# scores say nothing.
START_NEAR: Final = 0.30
START_FAR: Final = 0.10
# The share beyond the limit is told from about this many of the scores that lie there, and believed within bounds.
BEYOND_SCORES: Final = 20.0
BEYOND_MIN: Final = 0.5
BEYOND_MAX: Final = 1.5
# What the tail itself would reach so much more rarely than the limit is an anomaly, and says nothing of that share.
RARER: Final = 1 / 20
# It starts again where the share beyond the limit, told from about this part of a window, is over so many times the
# asked one, within bounds, for so long a part of a window.
OVER_WINDOW: Final = 1 / 8
OVER_PER_RATE: Final = 5.0
OVER_MIN: Final = 0.05
OVER_MAX: Final = 0.25
LASTING: Final = 0.5
# Then from two quantiles of what lies furthest out: where the tail begins, and this share of it.
RESTART_FAR: Final = 1 / 4
# A tail is no shorter than this share of the score where it begins: a machine that stands still has none.
SCALE_MIN: Final = 0.01


@compiled
def take_in(
    score: float, limit: float, seen: int, own: Floats, rule: Rule
) -> None:  # pragma: no cover - compiled
    """Let a score move base and mean, or the count of those beyond the limit."""
    if own[SCALE] == 0.0:
        return
    residual = score - own[MEAN]
    excess = residual - own[BASE]
    counting = 1.0 / max(rule.window, BEYOND_SCORES / rule.rate)
    _count_over(score >= limit, own, rule)
    if score >= limit:
        tail = Tail(own[SCALE], own[SHAPE])
        if excess < quantile_of_tail(tail, RARER * rule.rate / rule.tail_share):
            own[BEYOND] += counting
        return
    own[BEYOND] -= counting * own[BEYOND]
    # Of all scores `tail_share` lie above the base; of those that come here fewer.
    share = (rule.tail_share - rule.rate) / (1.0 - rule.rate)
    step = own[SCALE] / (rule.tail_share * min(float(seen), rule.window))
    if excess > 0.0:
        own[RING + int(own[COUNT]) % rule.tail_size] = excess
        own[COUNT] += 1.0
        own[BASE] += step * (1.0 - share)
    else:
        own[BASE] -= step * share
    own[MEAN] += rule.mean_step * residual


@compiled
def _count_over(over: bool, own: Floats, rule: Rule) -> None:  # pragma: no cover - compiled
    """Tell the share beyond the limit, and for how long it has been too large.

    It is held to twice what is too large, so that an incident, all of whose scores are beyond, is soon forgotten.
    """
    too_much = min(max(OVER_PER_RATE * rule.rate, OVER_MIN), OVER_MAX)
    share = own[OVER] + ((1.0 if over else 0.0) - own[OVER]) / (OVER_WINDOW * rule.window)
    own[OVER] = min(share, 2.0 * too_much)
    own[LASTED] = max(own[LASTED] + (1.0 if own[OVER] > too_much else -1.0), 0.0)


@compiled
def refresh(slot: int, total: float, rule: Rule, kept: Slots) -> None:  # pragma: no cover - compiled
    """Fit the tail anew, or start, where the histogram of the slot weighs `total`."""
    own = kept.own[slot]
    if own[SCALE] == 0.0:
        _start(slot, total, START_NEAR, START_FAR, rule, kept)
    elif own[LASTED] > LASTING * rule.window:
        _start(slot, total, rule.tail_share, RESTART_FAR * rule.tail_share, rule, kept)
    else:
        _fit(own, rule)
    kept.high[slot] = limit_of(kept.limit[slot], own, rule)


@compiled
def _start(
    slot: int, total: float, near_share: float, far_share: float, rule: Rule, kept: Slots
) -> None:  # pragma: no cover - compiled
    """Begin with an exponential tail through the two quantiles that these shares of all scores lie above."""
    histogram, own = kept.histogram[slot], kept.own[slot]
    near = quantile(histogram, BINS, near_share * total)
    far = quantile(histogram, BINS, far_share * total)
    own[:] = 0.0
    if rule.mean_step > 0.0:
        own[MEAN] = quantile(histogram, BINS, 0.5 * total)
    scale = max((far - near) / math.log(near_share / far_share), SCALE_MIN * far)
    own[BASE] = far + scale * math.log(far_share / rule.tail_share) - own[MEAN]
    own[SCALE] = scale
    own[BEYOND] = rule.rate


@compiled
def _fit(own: Floats, rule: Rule) -> None:  # pragma: no cover - compiled
    n = min(int(own[COUNT]), rule.tail_size)
    if n < FITTED_MIN:
        return
    asked = rule.rate / rule.tail_share
    before = Tail(own[SCALE], own[SHAPE])
    missing = asked * min(max(own[BEYOND] / rule.rate, BEYOND_MIN), BEYOND_MAX)
    tail = fitted(own[RING : RING + n], missing, mean_beyond(before, quantile_of_tail(before, asked)))
    own[SCALE] = max(tail.scale, SCALE_MIN * max(own[MEAN] + own[BASE], SCORE_MIN))
    own[SHAPE] = tail.shape


@compiled
def limit_of(limit: float, own: Floats, rule: Rule) -> float:  # pragma: no cover - compiled
    """The limit for the next score of a slot; before the first refresh the one it has, which is NaN in a new one."""
    if own[SCALE] == 0.0:
        return limit
    if own[COUNT] < FITTED_MIN and not np.isnan(rule.nominal):
        return rule.nominal
    beyond = quantile_of_tail(Tail(own[SCALE], own[SHAPE]), rule.rate / rule.tail_share)
    return float(max(own[MEAN] + own[BASE] + beyond, SCORE_MIN))


@compiled
def rescale(own: Floats, where: Floats, rule: Rule) -> None:  # pragma: no cover - compiled
    """Move base, mean and excesses to where the bins of the histogram went."""
    if own[SCALE] == 0.0:
        return
    base = own[MEAN] + own[BASE]
    base_after = carried_over(base, where)
    for k in range(RING, RING + min(int(own[COUNT]), rule.tail_size)):
        own[k] = carried_over(base + own[k], where) - base_after
    own[SCALE] = max(carried_over(base + own[SCALE], where) - base_after, SCALE_MIN * base_after)
    if rule.mean_step > 0.0:
        own[MEAN] = carried_over(own[MEAN], where)
    own[BASE] = base_after - own[MEAN]
