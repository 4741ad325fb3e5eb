"""The whole configuration, and what must fit together across its sections."""

from typing import Literal, Self

from pydantic import Field, model_validator

from streamdet.config.input import Input
from streamdet.config.kafka import Kafka
from streamdet.config.learning import Learning
from streamdet.config.limit import Limit
from streamdet.config.model import Model
from streamdet.config.noise import Noise
from streamdet.config.section import Section
from streamdet.config.working import Checkpoint, Commit, Serve, Topic
from streamdet.errors import ConfigError
from streamdet.events import Schema


class Settings(Section):
    """The whole configuration of a worker."""

    kafka: Kafka = Field(Kafka(), description="Cluster.")
    input: Input = Field(Input(), description="Stream to judge.")
    model: Model = Field(Model(), description="Scores.")
    limit: Limit = Field(Limit(), description="Limits.")
    noise: Noise = Field(Noise(), description="What is held back as noise; nothing by default.")
    learning: Learning = Field(Learning(), description="Learning.")
    alerts: Topic = Field(Topic(), description="Alerts; default topic: first input topic + .alerts.")
    dead_letters: Topic = Field(
        Topic(), description="Dead letters; default topic: first input topic + .dead-letters."
    )
    delivery: Literal["exactly-once", "at-least-once"] = Field(
        "exactly-once",
        description="What a crash may do to alerts: nothing (all goes out in transactions with the offsets), or repeat "
        "some, with the same id. None is lost either way.",
    )
    commit: Commit = Field(Commit(), description="Commits.")
    checkpoint: Checkpoint = Field(Checkpoint(), description="Checkpoints.")
    serve: Serve = Field(Serve(), description="Metrics.")

    def metric(self, schema: Schema) -> bool:
        """Whether a stream of this kind is judged as a metric.

        Raises:
            ConfigError: it is to be, and has more than one number.
        """
        if self.model.preset == "metric" and not schema.metric:
            raise ConfigError(
                "model.preset metric is for one number and nothing else, and the features are "
                f"{', '.join(schema.columns)}: name one of them in input.features, or set model.preset to auto"
            )
        return schema.metric and self.model.preset in ("auto", "metric")

    @model_validator(mode="after")
    def _habits_are_judged(self) -> Self:
        configured, preset = self.input.transactions.amount is not None, self.model.preset
        if preset == "transactions" and not configured:
            raise ValueError(
                "model.preset transactions needs to know the amount: set input.transactions.amount to its field"
            )
        if configured and preset not in ("auto", "transactions"):
            raise ValueError(
                f"model.preset {preset} makes nothing of input.transactions: set model.preset to auto, or leave "
                "input.transactions out"
            )
        return self

    @model_validator(mode="after")
    def _paced_by_its_delivery(self) -> Self:
        idle = self.commit.changed("every_ms", "transaction_timeout_ms")
        if idle and self.delivery == "at-least-once":
            raise ValueError(
                f"commit: {', '.join(idle)}: does nothing with delivery at-least-once, which publishes each batch at "
                "once and without a transaction: set delivery to exactly-once, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _no_loop(self) -> Self:
        if self.input.topics:
            written = {"alerts.topic": self.alerts_topic, "dead_letters.topic": self.dead_letters_topic}
            for setting, topic in written.items():
                if topic in self.input.topics:
                    raise ValueError(
                        f"{setting} {topic!r} is also an input topic: the worker would judge its own output"
                    )
            if self.alerts_topic == self.dead_letters_topic:
                raise ValueError(
                    f"alerts and dead letters would both go to {self.alerts_topic!r}: name two topics"
                )
        return self

    @property
    def alerts_topic(self) -> str:
        """The topic that alerts go to."""
        return self.alerts.topic or f"{self.input.topics[0]}.alerts"

    @property
    def dead_letters_topic(self) -> str:
        """The topic that dead letters go to."""
        return self.dead_letters.topic or f"{self.input.topics[0]}.dead-letters"
