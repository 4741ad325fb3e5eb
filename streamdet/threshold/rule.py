"""What the compiled loops know of the settings of a limit."""

import math
from typing import Final, NamedTuple

from streamdet.config import EXCEEDANCES_MIN, Limit
from streamdet.threshold.valley import APART

CONTROLLED: Final = 0
ROLLING: Final = 1
PEAKS: Final = 2
CONFORMAL: Final = 3
_KINDS: Final = {
    "controlled": CONTROLLED,
    "rolling": ROLLING,
    "spot": PEAKS,
    "dspot": PEAKS,
    "conformal": CONFORMAL,
}

# A flagged score counts as at most so many limits: how far out anomalies lie says nothing about what is normal,
# and in a window that just resolves its rate a handful of them would carry the limit out of reach.
FLAGGED_MAX: Final = 1.5
# Forgetting lets the mass reach the window only in the limit of many events: this close counts as full.
RESOLVED_SHARE: Final = 0.95

# The controlled rule: how far a flag moves the factor, in logarithms.
FACTOR_STEP: Final = 0.05
# An excursion is over after so many scores below the limit.
PAUSE_MAX: Final = APART
PAUSE_NOMINAL: Final = 100
PAUSE_RATE: Final = 0.25  # sooner where flags are asked for so often that they would all be one excursion
RUN_MAX: Final = 3

# The rules of peaks: such a share of the scores makes the tail, or so many times what is asked for if that is more.
TAIL_SHARE: Final = 0.02
TAIL_PER_RATE: Final = 10.0
TAIL_SHARE_MAX: Final = 0.3
# As many excesses are kept as so many windows have, within bounds.
TAIL_WINDOWS: Final = 2.0
TAIL_SIZE_MIN: Final = 32
TAIL_SIZE_MAX: Final = 128
# dspot's mean runs over this share of the window.
MEAN_SHARE: Final = 1 / 16


class Rule(NamedTuple):
    """A rule with its settings, and what follows from them."""

    kind: int
    rate: float
    growth: float  # of the weight, from one score to the next
    nominal: float  # the limit where too few scores are remembered to tell; NaN: extrapolate
    enough: float  # scores of an entity before its own limit decides
    rise: float  # controlled: by what a factor is multiplied for a flag
    fall: float  # and for any other score
    pause: int  # scores below the limit that end an excursion
    run: int  # of an excursion so many rows are flagged, before only what is worse is
    contaminated: bool
    window: float
    tail_share: float  # spot, dspot: of the scores, lies above the base
    tail_size: int  # so many excesses are kept
    mean_step: float  # of the moving mean with one score; 0: none is kept


def rule_of(settings: Limit, *, nominal: bool) -> Rule:
    """The rule that was chosen; `nominal` where scores are surprises in nats that stay what they say."""
    rate = settings.alert_rate
    kind = _KINDS[settings.rule]
    tail_share = min(max(TAIL_SHARE, TAIL_PER_RATE * rate), TAIL_SHARE_MAX)
    tail_size = int(min(max(TAIL_WINDOWS * tail_share * settings.window, TAIL_SIZE_MIN), TAIL_SIZE_MAX))
    enough = EXCEEDANCES_MIN / rate
    if kind == PEAKS:
        enough = min(enough, tail_size / tail_share)
    return Rule(
        kind=kind,
        rate=rate,
        growth=math.exp(1.0 / settings.window),
        nominal=-math.log(rate) if nominal else math.nan,
        enough=enough,
        rise=math.exp(FACTOR_STEP * (1.0 - rate)),
        fall=math.exp(-FACTOR_STEP * rate),
        pause=max(1, min(PAUSE_NOMINAL if nominal else PAUSE_MAX, int(PAUSE_RATE / rate))),
        run=1 if nominal else RUN_MAX,
        contaminated=settings.contaminated,
        window=float(settings.window),
        tail_share=tail_share,
        tail_size=tail_size,
        mean_step=1.0 / (MEAN_SHARE * settings.window) if settings.rule == "dspot" else 0.0,
    )
