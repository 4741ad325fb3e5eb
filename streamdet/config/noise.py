"""What is no alert whatever its score, and what is one."""

import math
from typing import Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from streamdet.config.section import Section, hold_against
from streamdet.events import Schema


class FeatureNoise(Section):
    """What is noise of one numeric feature."""

    direction: Literal["up", "down", "both"] = Field(
        "both",
        description="Which way a value must be off what is expected to matter: up, more; down, less. Of the amount of "
        "a transaction the size counts, whatever its sign.",
    )
    min_deviation: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="A value that is less off what is expected does not matter, in units of the feature.",
    )
    min_relative_deviation: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Nor does one that is less off in parts of what is expected: 0.05 is 5 %.",
    )
    range: tuple[FiniteFloat | None, FiniteFloat | None] | None = Field(
        None,
        description="Smallest and largest value that there may be, in units of the feature, null for none: what lies "
        "outside alerts at once, also in the warm-up, and neither a model nor a history learns it.",
    )

    @model_validator(mode="after")
    def _range_not_empty(self) -> Self:
        low, high = self.range or (None, None)
        if low is not None and high is not None and not low <= high:
            raise ValueError(f"range is from the smallest to the largest value: {low:g} is above {high:g}")
        return self

    @property
    def idle(self) -> bool:
        """Whether it holds nothing back and forbids nothing."""
        excuses = self.changed("direction", "min_deviation", "min_relative_deviation")
        return not excuses and self.range in (None, (None, None))


class Noise(Section):
    """What is held back of the events over their limit, and what alerts whatever the model says."""

    k: int = Field(
        1,
        ge=1,
        le=64,
        description="An entity alerts once so many of its last n events were over what is usual; 1: at once.",
    )
    n: int = Field(1, ge=1, le=64, description="Events of an entity that k is counted in.")
    cool_down_s: float = Field(
        0.0,
        ge=0,
        le=31_536_000,
        description="Seconds of event time after an alert in which its entity alerts again only if it is worse; what "
        "was held back, and is still strange then, alerts then.",
    )
    worse: float = Field(
        1.2, ge=1, le=1000, description="Worse is a raw score above that of the last alert times this."
    )
    features: dict[str, FeatureNoise] = Field(
        {},
        description="Rules for numeric features by name, such as {pressure: {direction: up, range: [0, 8]}}. An event "
        "of which more than half of the surprise is excused by direction or deviation is no alert.",
    )

    @model_validator(mode="after")
    def _can_be_reached(self) -> Self:
        if self.k > self.n:
            raise ValueError(
                f"k ({self.k}) of n ({self.n}) can never be: set n to {self.k} or more, or a smaller k"
            )
        return self

    @model_validator(mode="after")
    def _all_counts(self) -> Self:
        if self.k == 1 and self.n > 1:
            raise ValueError(
                f"n ({self.n}) does nothing with a k of 1, which alerts at once: set k to 2 or more, or leave n out"
            )
        if idle := [name for name, rule in self.features.items() if rule.idle]:
            raise ValueError(
                f"features: {', '.join(idle)}: holds nothing back and forbids nothing: set direction to up or down, a "
                "minimum deviation or a bound of range, or take it out"
            )
        if self.changed("worse") and not self.cool_down_s:
            raise ValueError(
                "worse does nothing without a cool-down: set cool_down_s to its seconds, or leave worse out"
            )
        return self

    @property
    def damps(self) -> bool:
        """Whether how often an entity alerts is limited, which needs memory of each."""
        return self.k > 1 or self.cool_down_s > 0

    @property
    def configured(self) -> bool:
        """Whether there is any rule."""
        return self.damps or bool(self.features)

    def ranges(self, schema: Schema) -> list[tuple[float, float]]:
        """Smallest and largest value that there may be of each of D numbers, infinite where nothing is said."""
        given = [self.features.get(name, FeatureNoise()).range or (None, None) for name in schema.numeric]
        return [
            (-math.inf if low is None else low, math.inf if high is None else high) for low, high in given
        ]

    def check(self, schema: Schema) -> None:
        """Hold the rules against the features of the stream.

        Raises:
            ConfigError: there are rules for something that is no numeric feature.
        """
        hold_against(schema, "noise.features", self.features)
