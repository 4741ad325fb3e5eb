"""What scores an event."""

from typing import Literal

from pydantic import Field

from streamdet.config.section import Section


class Model(Section):
    """What scores an event."""

    kind: Literal["autoencoder"] = Field(
        "autoencoder",
        description="Denoising autoencoder, beside it what the preset adds; calibrated and combined.",
    )
    preset: Literal["auto", "metric", "sensors", "records", "transactions"] = Field(
        "auto",
        description="What the data are. metric: one number; sensors: numbers that hang together in time; records: rows "
        "in any order, with or without categories; transactions: what input.transactions tells of, and nothing else; "
        "auto finds out during the warm-up, and says it in the log.",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="auto, cpu, cuda or cuda:N; auto takes a GPU if there is one.",
    )
    strict: bool = Field(False, description="Refuse to start on another device than the one asked for.")
    seed: int = Field(0, ge=0, description="Seed of initial weights, noise and sampling.")
