"""The stream to judge: where it is read, and what its events are made of."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from streamdet.config.fields import Features, Missing, Transactions
from streamdet.config.section import Section, repeated


class Batch(Section):
    """Bounds of a micro-batch; whichever is reached first ends it."""

    max_events: int = Field(16_384, ge=1, le=1_000_000, description="Records in a micro-batch.")
    max_bytes: int = Field(8_388_608, ge=1024, le=67_108_864, description="Bytes fetched for a micro-batch.")
    max_wait_ms: int = Field(100, ge=1, le=60_000, description="Milliseconds to wait for a first record.")


class Input(Section):
    """The stream to judge."""

    topics: tuple[str, ...] = Field((), description="Topics to read.")
    group_id: str = Field(
        "streamdet",
        min_length=1,
        description="Consumer group; workers of one group share the topics.",
    )
    instance_id: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._-]{1,100}$",
        description="Name of this worker in the group, kept over restarts (static membership): its partitions wait "
        "for it. Without one, workers that share a checkpoint folder take free names there.",
    )
    session_timeout_ms: int = Field(
        20_000,
        ge=6_000,
        le=1_800_000,
        description="Milliseconds without a sign of life after which the group gives a worker's partitions to others.",
    )
    start: Literal["earliest", "latest"] = Field(
        "earliest", description="Where a group without committed offsets begins."
    )
    lost_records: Literal["earliest", "fail"] = Field(
        "earliest",
        description="When records were deleted before they were read: go on with the first that is left, or end.",
    )
    format: Literal["json"] = Field("json", description="How record values are encoded.")
    timestamp: str | None = Field(
        None,
        description="Field with the event time: ISO 8601, or Unix seconds or milliseconds; else the record's.",
    )
    entity: str | None = Field(
        None,
        description="Field that names the device, card or account; without it the topic is one stream.",
    )
    features: Features | None = Field(
        None, description="Fields to judge; inferred from the first records if left out."
    )
    transactions: Transactions = Field(
        Transactions(), description="Who pays what to whom, where events are transactions; needs the entity."
    )
    unusable: Literal["missing", "reject"] = Field(
        "missing",
        description="What becomes of a record of which one value cannot be used: imputed, or dead-lettered.",
    )
    missing: Missing = Field(Missing(), description="What stands for a number that an event lacks.")
    max_record_bytes: int = Field(1_048_576, ge=64, description="Larger records are dead-lettered unread.")
    max_entities: int = Field(
        10_000,
        ge=1,
        le=10_000_000,
        description="Entities kept per partition; the least recently seen one makes room.",
    )
    batch: Batch = Field(Batch(), description="Bounds of a micro-batch.")

    @model_validator(mode="after")
    def _one_meaning_each(self) -> Self:
        paid = self.transactions
        meanings = [name for name in (self.timestamp, self.entity, *paid.counterparts) if name is not None]
        features = () if self.features is None else self.features.numeric + self.features.categorical
        meanings += features
        if paid.amount is not None and paid.amount not in features:
            meanings.append(paid.amount)
        if twice := repeated(meanings):
            raise ValueError(
                f"{twice}: a field is the timestamp, the entity or a feature, or names a counterpart, only "
                "one of these"
            )
        return self

    @model_validator(mode="after")
    def _whose_habits(self) -> Self:
        amount = self.transactions.amount
        if amount is None:
            return self
        if self.entity is None:
            raise ValueError("transactions needs entity: set it to the field that names the card or account")
        if self.features is not None and amount in self.features.categorical:
            raise ValueError(
                f"transactions.amount {amount!r} is a categorical feature: move it to features.numeric"
            )
        return self

    @model_validator(mode="after")
    def _entities_are_told_apart(self) -> Self:
        if self.changed("max_entities") and self.entity is None:
            raise ValueError(
                "max_entities does nothing without entity: set entity to the field that names the device, card or "
                "account, or leave max_entities out"
            )
        return self

    @field_validator("topics")
    @classmethod
    def _distinct(cls, topics: tuple[str, ...]) -> tuple[str, ...]:
        if twice := repeated(topics):
            raise ValueError(f"named more than once: {twice}")
        return topics
