"""What a worker does with what it has judged: publish, make it final, keep its state, show itself."""

from pydantic import Field

from streamdet.config.section import Section


class Topic(Section):
    """A topic that is written to."""

    topic: str | None = Field(None, description="Name; default: the first input topic with a suffix.")


class Commit(Section):
    """How often what was judged is made final; whichever is reached first commits."""

    every_ms: int = Field(
        100,
        ge=0,
        le=60_000,
        description="Milliseconds between commits that publish something; an alert is visible after its commit.",
    )
    offsets_every_ms: int = Field(
        1_000,
        ge=0,
        le=60_000,
        description="Milliseconds between commits of offsets alone; a crash is judged again from there.",
    )
    every_events: int = Field(50_000, ge=1, le=10_000_000, description="Records between commits.")
    transaction_timeout_ms: int = Field(
        15_000,
        ge=1_000,
        le=900_000,
        description="Milliseconds after which Kafka ends a transaction that a killed worker left open.",
    )


class Checkpoint(Section):
    """Where the state survives a restart."""

    url: str = Field(
        "./state",
        min_length=1,
        description="Folder, or URL such as s3://bucket/path, that all workers of the group share.",
    )
    every_s: float = Field(30.0, gt=0, description="Seconds between checkpoints.")
    keep: int = Field(3, ge=1, le=1000, description="Checkpoints kept of each partition.")
    strict: bool = Field(
        False,
        description="Refuse to judge a partition without the state that belongs to its committed offset.",
    )


class Serve(Section):
    """What the worker shows of itself."""

    http: str | None = Field(
        None,
        pattern=r"^[^:]+:\d{1,5}$",
        description="host:port for Prometheus metrics (/metrics); none if left out.",
    )
