"""What the compiled loops know of the settings of a limit."""

import math
from typing import Final, NamedTuple

from streamdet.config import EXCEEDANCES_MIN, Limit
from streamdet.threshold.valley import APART

CONTROLLED: Final = 0
ROLLING: Final = 1
_KINDS: Final = {"controlled": CONTROLLED, "rolling": ROLLING}

# A flagged score counts as at most so many limits: how far out anomalies lie says nothing about what is normal,
# and in a window that just resolves its rate a handful of them would carry the limit out of reach.
FLAGGED_MAX: Final = 1.5
# Forgetting lets the mass reach the window only in the limit of many events: this close counts as full.
RESOLVED_SHARE: Final = 0.95

# The controlled rule: how far a flag moves the factor, in logarithms.
STEP: Final = 0.05
# An excursion is over after so many scores below the limit.
PAUSE_MAX: Final = APART
PAUSE_NOMINAL: Final = 100
PAUSE_RATE: Final = 0.25  # sooner where flags are asked for so often that they would all be one excursion
RUN_MAX: Final = 3


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


def rule_of(settings: Limit, *, nominal: bool) -> Rule:
    """The rule that was chosen; `nominal` where scores are surprises in nats that stay what they say."""
    rate = settings.alert_rate
    return Rule(
        kind=_KINDS[settings.rule],
        rate=rate,
        growth=math.exp(1.0 / settings.window),
        nominal=-math.log(rate) if nominal else math.nan,
        enough=EXCEEDANCES_MIN / rate,
        rise=math.exp(STEP * (1.0 - rate)),
        fall=math.exp(-STEP * rate),
        pause=max(1, min(PAUSE_NOMINAL if nominal else PAUSE_MAX, int(PAUSE_RATE / rate))),
        run=1 if nominal else RUN_MAX,
        contaminated=settings.contaminated,
    )
