"""The topics that alerts and dead letters go to: created if absent, with what they take in one record."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kafka import errors

from streamdet.broker.client import Stopped, admin, refusal, topic_bytes_max, topics_of
from streamdet.clock import Clock
from streamdet.config import Settings
from streamdet.errors import BrokerError
from streamdet.sink.kafka_records import Outgoing, fitted

log = logging.getLogger(__name__)

# What the created topics take in one record: more than the largest that a broker accepts by default, by far.
RECORD_BYTES_MAX: Final = 16 * 1024 * 1024


class OutputTopics:
    """Makes sure that they exist, and makes records fit."""

    def __init__(self, settings: Settings, clock: Clock, stopped: Stopped) -> None:
        self._settings = settings
        self._clock = clock
        self._stopped = stopped
        self.alerts = settings.alerts_topic
        self.dead_letters = settings.dead_letters_topic
        self._bytes_max: dict[str, int] = {}

    @property
    def names(self) -> tuple[str, str]:
        """Both."""
        return self.alerts, self.dead_letters

    def ensure(self) -> None:
        """Create them if they are absent, and learn how large a record they take; one attempt.

        Raises:
            KafkaError: Kafka did not answer.
            BrokerError: Kafka refused.
        """
        settings = self._settings
        asked = (*settings.input.topics[:1], *self.names)
        found = topics_of(settings.kafka, asked, self._clock, self._stopped)
        absent = [topic for topic in self.names if topic not in found]
        client = admin(settings.kafka)
        try:
            if absent:
                self._create(client, dict.fromkeys(absent, found.get(asked[0], 1)))
            for topic in self.names:
                known = self._bytes_max.get(topic, RECORD_BYTES_MAX)
                self._bytes_max[topic] = min(known, topic_bytes_max(client, topic))
        finally:
            client.close()

    def fit(self, record: Outgoing) -> Outgoing:
        """The record, truncated if its topic takes no larger one."""
        fits = fitted(record, self._bytes_max[record.topic])
        if fits is not record:
            log.warning("truncated topic=%s bytes=%d to=%d", record.topic, record.size, fits.size)
        return fits

    def lower(self, sent: Sequence[Outgoing], error: BaseException) -> None:
        """One of these was too large: lower a bound, where what `ensure` has learnt meanwhile explains nothing.

        One refused record makes kafka-python's producer fail all of them with the same error, so the largest is
        taken for the one.

        Raises:
            BrokerError: it cannot be made smaller.
        """
        if not sent or any(_shrinks(record, self._bytes_max[record.topic]) for record in sent):
            return
        largest = max(sent, key=lambda record: record.size)
        if not _shrinks(largest, largest.size // 2):
            raise refusal(error, self._settings.kafka) or BrokerError(
                f"topic {largest.topic} takes no records"
            )
        self._bytes_max[largest.topic] = largest.size // 2

    def _create(self, client: Any, partitions: Mapping[str, int]) -> None:  # noqa: ANN401 - kafka-python is untyped
        wanted = {
            topic: {
                "num_partitions": n,
                "replication_factor": -1,
                "configs": {"max.message.bytes": str(RECORD_BYTES_MAX)},
            }
            for topic, n in partitions.items()
        }
        for topic in client.create_topics(wanted, raise_errors=False)["topics"]:
            error = errors.for_code(topic["error_code"])
            if error in (errors.NoError, errors.TopicAlreadyExistsError):
                continue
            why = topic.get("error_message") or error.__name__
            if issubclass(error, errors.RetriableError):
                raise error(why)
            raise BrokerError(
                f"cannot create topic {topic['name']!r} on Kafka at {self._settings.kafka.bootstrap_servers}: "
                f"{why}; have it created by somebody who may"
            )
        client.wait_for_topics(list(partitions))
        log.info("created topics=%s", ",".join(partitions))


def _shrinks(record: Outgoing, size_max: int) -> bool:
    return fitted(record, size_max).size < record.size
