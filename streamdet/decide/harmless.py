"""What people say of single features: where a deviation is to the harmless side, or too small to matter."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from streamdet.config import FeatureNoise
from streamdet.events import Bools, Cause, Floats
from streamdet.models.version import Explanation

# An alert is excused where more than this share of its surprise is.
EXCUSED_MIN: Final = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class FeatureRules:
    """The rules of D numeric features, (D,) each."""

    up: Bools  # more than expected matters
    down: Bools  # less than expected matters
    least: Floats  # smaller deviations do not matter, in units of the feature
    least_relative: Floats  # nor do these, in units of the expected value
    sized: Bools  # what is expected is a size, and so what counts is the value's, whatever its sign

    @classmethod
    def of(cls, rules: Sequence[FeatureNoise], sized: Sequence[bool] | None = None) -> "FeatureRules":
        """The rules of D features, in their order, and which of them are judged by their size; None: none of them."""
        return cls(
            up=np.array([rule.direction != "down" for rule in rules], np.bool_),
            down=np.array([rule.direction != "up" for rule in rules], np.bool_),
            least=np.array([rule.min_deviation for rule in rules], np.float64),
            least_relative=np.array([rule.min_relative_deviation for rule in rules], np.float64),
            sized=np.array(sized or [False] * len(rules), np.bool_),
        )

    @property
    def may_excuse(self) -> bool:
        """Whether there is anything that they can excuse."""
        return bool((~self.up | ~self.down | (self.least > 0) | (self.least_relative > 0)).any())

    def excuses(self, numeric: Floats, explanation: Explanation) -> NDArray[np.uint8]:
        """What excuses each of k events with these values, (k, D): a Cause, `NONE` where nothing does, (k,).

        A missing value has no deviation and excuses nothing.
        """
        expected, share = (part[:, : len(self.least)] for part in (explanation.expected, explanation.share))
        deviation = np.where(self.sized, np.abs(numeric), numeric) - expected
        harmless = ((deviation > 0) & ~self.up) | ((deviation < 0) & ~self.down)
        least = np.maximum(self.least, self.least_relative * np.abs(expected))
        small = ~harmless & (np.abs(deviation) < least)
        of_direction, of_deviation = (share * harmless).sum(1), (share * small).sum(1)
        reason = np.where(of_direction >= of_deviation, Cause.DIRECTION, Cause.DEVIATION)
        excused = of_direction + of_deviation > EXCUSED_MIN
        return np.where(excused, reason, Cause.NONE).astype(np.uint8)
