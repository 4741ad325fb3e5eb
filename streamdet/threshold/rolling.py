"""The rolling rule: the quantile as it is.

All unflagged scores are fed and, of the flagged ones, what a token bucket lets in: unflagged ones alone would cut the
tail that the quantile is read from, and the limit would ratchet down.
"""

from streamdet.compiled import compiled
from streamdet.config import EXCEEDANCES_MIN
from streamdet.threshold.histogram import BINS, extrapolated, quantile
from streamdet.threshold.rule import RESOLVED_SHARE, Rule
from streamdet.threshold.slots import Slots


@compiled
def refresh(slot: int, total: float, rule: Rule, kept: Slots) -> None:  # pragma: no cover - compiled
    """Read the quantile anew, of scores that weigh `total`; that of the tail until the window is full."""
    if rule.rate * total / kept.weight[slot] >= RESOLVED_SHARE * EXCEEDANCES_MIN:
        kept.high[slot] = quantile(kept.histogram[slot], BINS, rule.rate * total)
    else:
        kept.high[slot] = extrapolated(kept.histogram[slot], total, rule.rate)
