"""Adaptive conformal inference, `conformal`: the quantile at a level that moves with each miss.

After Gibbs and Candes, "Adaptive Conformal Inference Under Distribution Shift" (NeurIPS 2021): the level, which is the
share of scores that the limit is to leave above it, goes down by a step with each flagged score, and up by the asked
share of a step with every score. So the share that is flagged tends to the asked one whatever the scores do: each miss
too many has to be paid back. The step is a tenth of the asked rate; in the paper it is a twentieth.

In the paper the level is not bounded, and below 0 nothing is flagged at all: a long incident would blind the rule for
as long as its misses take to pay back. Here it stays between a tenth and four times the asked rate. The histogram is
fed as under `rolling`: unflagged scores, and of flagged ones what the token bucket lets in.
"""

from typing import Final

from streamdet.compiled import compiled
from streamdet.config import EXCEEDANCES_MIN
from streamdet.events import Floats
from streamdet.threshold.histogram import BINS, extrapolated, quantile
from streamdet.threshold.rule import RESOLVED_SHARE, Rule
from streamdet.threshold.slots import Slots

# The one column of `Slots.own`: the level against the asked rate, less 1, so that an empty slot has the asked one.
LEVEL: Final = 0

# How far a flag moves the level, in asked rates.
LEVEL_STEP: Final = 0.1
LEVEL_MIN: Final = 0.1
LEVEL_MAX: Final = 4.0


@compiled
def move_level(missed: bool, own: Floats, rule: Rule) -> None:  # pragma: no cover - compiled
    """Move the level by one score."""
    level = 1.0 + own[LEVEL] + LEVEL_STEP * (rule.rate - (1.0 if missed else 0.0))
    own[LEVEL] = min(max(level, LEVEL_MIN), LEVEL_MAX) - 1.0


@compiled
def refresh(slot: int, total: float, rule: Rule, kept: Slots) -> None:  # pragma: no cover - compiled
    """Read the quantile at the level, of scores that weigh `total`; that of the tail until the window is full."""
    rate = rule.rate * (1.0 + kept.own[slot, LEVEL])
    if rule.rate * total / kept.weight[slot] >= RESOLVED_SHARE * EXCEEDANCES_MIN:
        kept.high[slot] = quantile(kept.histogram[slot], BINS, rate * total)
    else:
        kept.high[slot] = extrapolated(kept.histogram[slot], total, rate)
