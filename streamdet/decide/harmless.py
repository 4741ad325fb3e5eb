"""What people say of single features: where a value is harmless, too small a deviation, or out of the question."""

import math
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
    low: Floats  # hard range
    high: Floats

    @classmethod
    def of(cls, rules: Sequence[FeatureNoise]) -> "FeatureRules":
        """The rules of D features, in their order."""
        ranges = [rule.range or (None, None) for rule in rules]
        return cls(
            up=np.array([rule.direction != "down" for rule in rules], np.bool_),
            down=np.array([rule.direction != "up" for rule in rules], np.bool_),
            least=np.array([rule.min_deviation for rule in rules], np.float64),
            least_relative=np.array([rule.min_relative_deviation for rule in rules], np.float64),
            low=np.array([-math.inf if low is None else low for low, _ in ranges], np.float64),
            high=np.array([math.inf if high is None else high for _, high in ranges], np.float64),
        )

    @property
    def may_excuse(self) -> bool:
        """Whether there is anything that they can excuse."""
        return bool((~self.up | ~self.down | (self.least > 0) | (self.least_relative > 0)).any())

    @property
    def has_ranges(self) -> bool:
        """Whether anything can lie outside."""
        return bool((np.isfinite(self.low) | np.isfinite(self.high)).any())

    def outside(self, numeric: Floats) -> Bools:
        """Which of the values, (n, D), lie outside their hard range, (n, D); a missing one does not."""
        return (numeric < self.low) | (numeric > self.high)

    def excuses(self, numeric: Floats, explanation: Explanation) -> NDArray[np.uint8]:
        """What excuses each of k events with these values, (k, D): a Cause, `NONE` where nothing does, (k,).

        A missing value has no deviation and excuses nothing.
        """
        expected, share = (part[:, : len(self.low)] for part in (explanation.expected, explanation.share))
        deviation = numeric - expected
        harmless = ((deviation > 0) & ~self.up) | ((deviation < 0) & ~self.down)
        least = np.maximum(self.least, self.least_relative * np.abs(expected))
        small = ~harmless & (np.abs(deviation) < least)
        of_direction, of_deviation = (share * harmless).sum(1), (share * small).sum(1)
        reason = np.where(of_direction >= of_deviation, Cause.DIRECTION, Cause.DEVIATION)
        excused = of_direction + of_deviation > EXCUSED_MIN
        return np.where(excused, reason, Cause.NONE).astype(np.uint8)
