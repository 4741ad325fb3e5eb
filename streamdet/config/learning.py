"""How the model follows the stream."""

from typing import Self

from pydantic import Field, model_validator

from streamdet.config.section import Section
from streamdet.events import Schema

# Events that make a model to alert by; a metric is judged by its own history, which tells sooner.
WARMUP = 400
WARMUP_METRIC = 200


class Gate(Section):
    """What a fine-tuned model must show before it replaces the one in use."""

    loss_ratio_max: float = Field(1.1, gt=0, description="Held-out loss against that of the model in use.")
    alert_ratio_max: float = Field(
        3.0, gt=0, description="Share of held-out rows above the limit, against the asked rate."
    )
    detection_loss_max: float = Field(
        0.05,
        ge=0,
        le=1,
        description="How much worse it may tell planted anomalies from normal rows (as an area under the ROC curve).",
    )


class Learning(Section):
    """How the model follows the stream."""

    enabled: bool = Field(True, description="False: the model of the end of warm-up stays for good.")
    warmup: int | None = Field(
        None,
        ge=64,
        le=10_000_000,
        description=f"Events learnt from before the first alert; default: {WARMUP_METRIC} of a metric, {WARMUP} of "
        "anything else.",
    )
    every: int = Field(50_000, ge=256, description="Events between fine-tunes.")
    lag: int = Field(
        10_000,
        ge=0,
        description="Events between the start of a fine-tune and its adoption, at exactly that count; at most half of "
        "those to the next fine-tune.",
    )
    buffer: int = Field(
        2048,
        ge=256,
        le=1_000_000,
        description="Normal rows kept to learn from; half of them the newest.",
    )
    drift: bool = Field(
        True,
        description="True: where scores have risen far and stayed there for limit.window events, the model is learnt "
        "anew from these, as after a change of level for good. Not of a metric, whose history follows by itself.",
    )
    gate: Gate = Field(Gate(), description="Conditions of adoption.")

    @model_validator(mode="after")
    def _lag_fits(self) -> Self:
        if self.lag >= self.every:
            raise ValueError(f"lag ({self.lag}) must be smaller than every ({self.every})")
        return self

    def warmup_of(self, schema: Schema) -> int:
        """Events learnt from before the first alert of a stream of this kind."""
        if self.warmup is not None:
            return self.warmup
        return WARMUP_METRIC if schema.metric else WARMUP
