"""Publishing in bulk: as fast as kafka-python goes, in bounded memory, all of it acknowledged or an error.

What the worker's sink does for a few alerts, with latency in mind, this does for whole recordings.
"""

import contextlib
import logging
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from kafka import errors
from kafka.serializer import Serializer

from streamdet.broker.client import (
    SLICE_S,
    Outage,
    Stopped,
    admin,
    missing_topic,
    producer,
    refusal,
    topic_bytes_max,
    topics_of,
)
from streamdet.clock import Clock
from streamdet.config import Kafka
from streamdet.errors import BrokerUnavailableError, RecordingError, StreamdetError

log = logging.getLogger(__name__)

Headers = Sequence[tuple[str, bytes | None]]

# On their way at most: kafka-python's producer has no bound of its own, and each record costs it a kilobyte.
PENDING_MAX: Final = 20_000
PENDING_BYTES_MAX: Final = 32 << 20
# Larger batches gain nothing more, and delay the first record of each.
BATCH_BYTES: Final = 1 << 17
# For batches to fill when publishing as fast as possible; a paced stream is to arrive when it is due.
LINGER_MS: Final = 20
PACED_LINGER_MS: Final = 1
REQUEST_BYTES_MAX: Final = 64 << 20
# What a batch of one record has besides its key, value and headers.
RECORD_OVERHEAD_BYTES: Final = 100
# No acknowledgement for this long: Kafka counts as away, and a stop is no longer held up by what is on its way.
STALLED_S: Final = 5.0
# An outage longer than this ends the command: unlike a worker it has somebody who waits for it.
DELIVERY_TIMEOUT_MS: Final = 120_000


class _Tombstone:
    """Stands for a value that is not there, as kafka-python asks for a key or a value, and Kafka for neither."""


_TOMBSTONE: Final = _Tombstone()


class _Values(Serializer):  # type: ignore[misc]
    """Called by kafka-python after it has asked whether there is a key or a value."""

    def serialize(self, topic: str, headers: Headers, data: bytes | _Tombstone | None) -> bytes | None:
        """The bytes as they are."""
        del topic, headers
        return None if isinstance(data, _Tombstone) else data


class Publisher:
    """Writes records to one topic, which must exist; to be closed.

    Args:
        kafka: the cluster.
        topic: where to.
        clock: for waits.
        stopped: asked during every wait for a broker that is away.
        paced: records come when they are due, and are not held back to fill batches.

    Raises:
        BrokerError: the topic does not exist, or Kafka refused the login or the access.
        BrokerUnavailableError: a stop was requested before Kafka answered.
    """

    def __init__(self, kafka: Kafka, topic: str, clock: Clock, stopped: Stopped, *, paced: bool) -> None:
        self._kafka = kafka
        self._topic = topic
        self._clock = clock
        self._stopped = stopped
        self._outage = Outage(kafka, clock, stopped)
        self._pending: deque[tuple[Any, int]] = deque()  # futures and bytes
        self._pending_bytes = 0
        self._told = False
        self.delivered = 0
        found = self._outage.persist(lambda: topics_of(kafka, [topic], clock, stopped))
        if topic not in found:
            raise missing_topic(topic, kafka)
        self.partitions = found[topic]
        self._bytes_max = self._outage.persist(lambda: _bytes_max(kafka, topic))
        options = {
            "acks": "all",
            "enable_idempotence": True,  # else a retry could change the order
            "linger_ms": PACED_LINGER_MS if paced else LINGER_MS,
            # A batch that is larger than the topic allows is refused whole, though each record in it would fit.
            "batch_size": min(BATCH_BYTES, self._bytes_max // 2),
            "max_request_size": REQUEST_BYTES_MAX,
            "delivery_timeout_ms": DELIVERY_TIMEOUT_MS,
            "value_serializer": _Values(),
            "allow_auto_create_topics": False,
            "metrics_enabled": False,
        }
        self._producer = self._outage.persist(lambda: producer(kafka, **options))
        # With the partitions known from the start, handing over does not wait for a broker that goes away.
        self._outage.persist(lambda: self._producer.partitions_for(topic))

    def send(
        self,
        value: bytes | None,
        key: bytes | None = None,
        headers: Headers = (),
        partition: int | None = None,
    ) -> None:
        """Hand a record over; it has arrived only after `flush`. Without a partition the key decides, or chance.

        Raises:
            BrokerError: Kafka refused a record.
            BrokerUnavailableError: Kafka has been away for two minutes, or a stop was requested while it is.
            RecordingError: the record is larger than the topic allows.
        """
        size = len(value or b"") + len(key or b"")
        if headers:
            size += sum(len(name) + len(content or b"") for name, content in headers)
        if size + RECORD_OVERHEAD_BYTES > self._bytes_max:
            raise RecordingError(
                f"a record of {size} bytes does not fit topic {self._topic!r}, which takes {self._bytes_max}: raise "
                f"its max.message.bytes; {self._standing()}"
            )
        try:
            future = self._hand_over(value, key, headers, partition)
        except (errors.KafkaError, OSError) as error:
            raise self._failed(error) from error
        self._pending.append((future, size))
        self._pending_bytes += size
        if len(self._pending) > PENDING_MAX or self._pending_bytes > PENDING_BYTES_MAX:
            self._settle(len(self._pending) // 2)

    def flush(self) -> None:
        """Return when all has arrived.

        Raises:
            BrokerError: Kafka refused a record.
            BrokerUnavailableError: Kafka has been away for two minutes, or a stop was requested while it is.
        """
        self._settle(0)

    def close(self) -> None:
        """Release what is held; what was not flushed may be lost."""
        try:
            self._producer.close(timeout=1)
        except errors.KafkaError:
            # It gives up before it has stopped its thread when records are on their way; abort those first.
            self._producer._sender.force_close()  # noqa: SLF001 - there is no public way
            self._producer._sender.join(1)  # noqa: SLF001
            with contextlib.suppress(errors.KafkaError):
                self._producer.close(timeout=0)

    def _hand_over(
        self, value: bytes | None, key: bytes | None, headers: Headers, partition: int | None
    ) -> Any:  # noqa: ANN401 - kafka-python's future
        if any(content is None for _, content in headers):
            if not self._told:
                self._told = True
                log.warning(
                    "a header without a value is published with an empty one: kafka-python knows no other"
                )
            headers = [(name, content or b"") for name, content in headers]
        sent = _TOMBSTONE if value is None and key is None else value
        return self._producer.send(self._topic, sent, key, list(headers), partition)

    def _settle(self, keep: int) -> None:
        """Wait for the oldest on their way until only `keep` are left."""
        while len(self._pending) > keep:
            future, size = self._pending[0]
            if not future.is_done:
                self._wait(future)
            if future.exception is not None:
                raise self._failed(future.exception)
            self._pending.popleft()
            self._pending_bytes -= size
            self.delivered += 1

    def _wait(self, future: Any) -> None:  # noqa: ANN401
        stalled_s = self._clock.monotonic_s() + STALLED_S
        while not future.is_done:
            # Neither the end of the slice nor a failed record is news here: the future tells.
            with contextlib.suppress(errors.KafkaError):
                future.get(timeout=SLICE_S)
            if future.is_done or self._clock.monotonic_s() < stalled_s:
                continue
            self._outage.began("no acknowledgement")
            if self._stopped():
                raise BrokerUnavailableError(f"{self._outage.unavailable()}; {self._standing()}")
        if future.exception is None:
            self._outage.ended()

    def _failed(self, error: BaseException) -> StreamdetError:
        refused = refusal(error, self._kafka)
        if refused is not None:
            return type(refused)(f"{refused}; {self._standing()}")
        return BrokerUnavailableError(
            f"Kafka at {self._kafka.bootstrap_servers} has not taken a record for "
            f"{DELIVERY_TIMEOUT_MS // 1000} s ({error}); {self._standing()}"
        )

    def _standing(self) -> str:
        return f"{self.delivered} records arrived, {len(self._pending)} more may have"


def _bytes_max(kafka: Kafka, topic: str) -> int:
    client = admin(kafka)
    try:
        return topic_bytes_max(client, topic)
    finally:
        client.close()
