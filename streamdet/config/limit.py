"""Where normal ends."""

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from streamdet.config.section import Section

# The rate is counted on the events above a limit: fewer than this many in a window make it a guess.
EXCEEDANCES_MIN = 10


class Limit(Section):
    """Where normal ends."""

    alert_rate: float = Field(0.001, gt=0, le=0.1, description="Share of normal events that may be flagged.")
    window: int = Field(
        4096,
        ge=100,
        le=10_000_000,
        description="Events that the rolling quantile remembers, per entity and in all.",
    )
    rule: Literal["controlled", "rolling", "spot", "dspot", "conformal"] = Field(
        "controlled",
        description="What a limit is made of. controlled: the quantile times a factor that holds the asked rate, with "
        "anomalies exempt that lie apart from all else and come one by one; rolling: the quantile as it is; spot: "
        "where the tail beyond a high quantile says, whatever the window can resolve; dspot: the same on the score "
        "minus its moving mean; conformal: the quantile at a level that moves with each flag.",
    )
    contaminated: bool = Field(
        False,
        description="True: whatever lies apart is anomalous, even where it comes in runs, as incidents and regimes do; "
        "for those who know that their stream has no regimes.",
    )

    @model_validator(mode="after")
    def _resolvable(self) -> Self:
        if self.rule in ("rolling", "conformal") and not self.resolved:
            need = math.ceil(EXCEEDANCES_MIN / self.alert_rate - 1e-9)
            raise ValueError(
                f"a window of {self.window} events cannot resolve an alert_rate of {self.alert_rate:g}: "
                f"set window to {need} or more, or alert_rate to {EXCEEDANCES_MIN / self.window:g} or more, or rule to "
                f"controlled, spot or dspot, which extrapolate as {self.rule} does not"
            )
        return self

    @model_validator(mode="after")
    def _trusted_by_its_rule(self) -> Self:
        if self.contaminated and self.rule != "controlled":
            raise ValueError(
                f"contaminated does nothing under rule {self.rule}: set rule to controlled, or leave contaminated out"
            )
        return self

    @property
    def resolved(self) -> bool:
        """Whether enough of what the window remembers lies above the limit to read the quantile from it."""
        return self.window * self.alert_rate >= EXCEEDANCES_MIN * (1 - 1e-9)
