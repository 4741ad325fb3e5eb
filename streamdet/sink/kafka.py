"""Alerts and dead letters as records of two Kafka topics.

Guarantees: `flush` returns only when every record handed over is on all replicas in sync, and waits for a broker
that is away; a dead letter that Kafka refuses as too large arrives truncated and says so; memory is bounded, as
`publish` itself flushes beyond 32 MiB. Not guaranteed: that a record arrives only once. When a broker dies at the
wrong moment an alert may be repeated, with the same id.
"""

import contextlib
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from kafka import errors

from streamdet.clock import Clock
from streamdet.config import Settings
from streamdet.errors import BrokerError
from streamdet.events import ALERT_SCHEMA_VERSION, Alert, LaneId, Reject
from streamdet.kafka_client import (
    SLICE_S,
    TOO_LARGE_ERRORS,
    Outage,
    Stopped,
    admin,
    never,
    producer,
    refusal,
    topics_of,
)

log = logging.getLogger(__name__)

Headers = list[tuple[str, bytes]]

# The largest record that the created topics take, and that is tried untruncated.
RECORD_BYTES_MAX: Final = 16 * 1024 * 1024
# What a refused record is truncated to, one after the other: Kafka's default limit, and what any broker takes.
TRUNCATED_BYTES: Final = (1_000_000, 100_000, 10_000, 0)
# An error message quotes the record; in a header it must not make the dead letter too large again.
ERROR_CHARS_MAX: Final = 1_000
# Beyond this, publish flushes: kafka-python's producer has no bound of its own.
PENDING_BYTES_MAX: Final = 32 * 1024 * 1024
# No acknowledgement for this long: find out whether Kafka is away or a topic is gone.
STALLED_S: Final = 2.0
# The producer itself repeats, in order and without doubling, for as long as an outage may take; kafka-python
# would give up after two minutes.
DELIVERY_TIMEOUT_MS: Final = 7 * 24 * 3600 * 1000


@dataclass(slots=True)
class _Sent:
    """A record on its way, with what is needed to send it again."""

    topic: str
    key: bytes | None
    value: bytes
    headers: Headers
    alert: Alert | None = None
    truncated: int = 0  # how often
    future: Any = field(default=None, repr=False)

    @property
    def size(self) -> int:
        return len(self.value) + len(self.key or b"")


class KafkaSink:
    """A `Sink` into the topics of the settings; creates them if they are absent, and waits for Kafka if need be.

    Args:
        settings: where to write to.
        clock: for waits.
        stopped: asked during every wait; once it is true, waits end within half a second.

    Raises:
        BrokerError: Kafka refused the login, the access or the creation of a topic.
        BrokerUnavailableError: a stop was requested before Kafka answered.
        ConfigError: the security settings name a file that cannot be read.
    """

    def __init__(self, settings: Settings, clock: Clock, stopped: Stopped = never) -> None:
        self._settings = settings
        self._clock = clock
        self._stopped = stopped
        self._outage = Outage(settings.kafka, clock, stopped)
        self._source = f"streamdet/{settings.input.group_id}".encode()
        self._pending: deque[_Sent] = deque()
        self._pending_bytes = 0
        self._outage.persist(self._ensure_topics)
        self._producer = self._outage.persist(
            lambda: producer(
                settings.kafka,
                enable_idempotence=True,
                acks="all",
                linger_ms=0,
                max_request_size=RECORD_BYTES_MAX,
                max_block_ms=500,
                delivery_timeout_ms=DELIVERY_TIMEOUT_MS,
                allow_auto_create_topics=False,
                metrics_enabled=False,
            )
        )

    def publish(self, alerts: Sequence[Alert], rejects: Sequence[Reject]) -> None:
        """Hand over; it is safe only after the next `flush`.

        Raises:
            BrokerError: Kafka refused.
            BrokerUnavailableError: a stop was requested while waiting for Kafka.
        """
        for alert in alerts:
            self._send(self._of_alert(alert))
        for reject in rejects:
            self._send(self._of_reject(reject))

    def flush(self) -> None:
        """Return when everything handed over has arrived; a broker that is away is waited for.

        Raises:
            BrokerError: Kafka refused; what was refused is still held, as is what came after it.
            BrokerUnavailableError: a stop was requested while waiting for Kafka.
        """
        while self._pending:
            sent = self._pending[0]
            self._await(sent)
            self._pending.popleft()
        self._pending_bytes = 0

    def close(self) -> None:
        """Release what is held; what was not flushed may be lost."""
        try:
            self._producer.close(timeout=1)
        except errors.KafkaError as error:
            # It gives up before it has stopped its thread when records are still on their way; abort those first.
            log.info("kafka producer closed with %d records on their way: %s", len(self._pending), error)
            self._producer._sender.force_close()  # noqa: SLF001 - there is no public way
            self._producer._sender.join(1)  # noqa: SLF001

    def _of_alert(self, alert: Alert) -> _Sent:
        lane = LaneId(alert.source.topic, alert.source.partition)
        headers = [
            ("ce_specversion", b"1.0"),
            ("ce_id", alert.id.encode()),
            ("ce_source", self._source),
            ("ce_type", b"streamdet.alert"),
            ("ce_time", alert.event_time.encode()),
            ("content-type", b"application/json"),
            ("schema_version", ALERT_SCHEMA_VERSION.encode()),
        ]
        key = (alert.entity or str(lane)).encode()
        return _Sent(self._settings.alerts_topic, key, msgspec.json.encode(alert), headers, alert)

    def _of_reject(self, reject: Reject) -> _Sent:
        headers = [
            ("reason", reject.reason.value.encode()),
            ("error", reject.error[:ERROR_CHARS_MAX].encode(errors="replace")),
            ("topic", reject.lane.topic.encode()),
            ("partition", str(reject.lane.partition).encode()),
            ("offset", str(reject.offset).encode()),
            ("timestamp", str(reject.timestamp_ms).encode()),
        ]
        value = reject.value
        if value is None:
            # kafka-python refuses a record with neither key nor value; an empty value and a note say the same.
            headers.append(("null_value", b"true"))
            value = b""
        return _Sent(self._settings.dead_letters_topic, reject.key, value, headers)

    def _send(self, sent: _Sent) -> None:
        if self._pending_bytes + sent.size > PENDING_BYTES_MAX:
            self.flush()
        self._hand_over(sent)
        self._pending.append(sent)
        self._pending_bytes += sent.size

    def _hand_over(self, sent: _Sent) -> None:
        """Give the record to the producer, which sends it from a thread of its own."""
        while True:
            try:
                sent.future = self._outage.persist(
                    lambda: self._producer.send(sent.topic, sent.value, sent.key, list(sent.headers))
                )
            except BrokerError as error:
                if not isinstance(error.__cause__, TOO_LARGE_ERRORS):
                    raise
                self._truncate(sent, error)
            else:
                return

    def _await(self, sent: _Sent) -> None:
        while True:
            self._settle(sent.future)
            error = sent.future.exception
            if error is None:
                self._outage.ended()
                return
            refused = refusal(error, self._settings.kafka)
            if isinstance(error, TOO_LARGE_ERRORS):
                self._truncate(sent, refused)
            elif refused is not None:
                raise refused from error
            else:
                log.warning("resending topic=%s reason=%s", sent.topic, error)
                self._outage.pause()
            self._hand_over(sent)

    def _settle(self, future: Any) -> None:  # noqa: ANN401 - kafka-python is untyped
        """Wait until the record has arrived or failed; while nothing moves, find out why and say so."""
        look_s = self._clock.monotonic_s() + STALLED_S
        while not future.is_done:
            # Neither the end of the slice nor a failed record is news here: the future tells.
            with contextlib.suppress(errors.KafkaError):
                future.get(timeout=SLICE_S)
            if future.is_done:
                return
            stalled = self._clock.monotonic_s() >= look_s
            if self._stopped() and (stalled or self._outage.away):
                raise self._outage.unavailable()
            if stalled:
                self._look()
                look_s = self._clock.monotonic_s() + STALLED_S

    def _look(self) -> None:
        try:
            self._ensure_topics()
        except (errors.KafkaError, OSError) as error:
            self._outage.failed(error)
        else:
            self._outage.ended()

    def _truncate(self, sent: _Sent, why: BaseException | None) -> None:
        """Make a record fit that Kafka refused as too large."""
        if sent.truncated == len(TRUNCATED_BYTES):
            raise why or BrokerError(f"topic {sent.topic} takes no record at all")
        size_max = TRUNCATED_BYTES[sent.truncated]
        if sent.truncated == 0:
            sent.headers = [
                *sent.headers,
                ("truncated", b"true"),
                ("original_bytes", str(len(sent.value)).encode()),
            ]
        sent.truncated += 1
        before = sent.size
        if sent.alert is not None:
            sent.value = msgspec.json.encode(msgspec.structs.replace(sent.alert, event={}))
        else:
            sent.key = None if sent.key is None else sent.key[:size_max]
            sent.value = sent.value[: size_max - len(sent.key or b"")]
        log.warning("truncated topic=%s bytes=%d truncated_to=%d", sent.topic, before, sent.size)

    def _ensure_topics(self) -> None:
        settings = self._settings
        mine = (settings.alerts_topic, settings.dead_letters_topic)
        asked = (*settings.input.topics[:1], *mine)
        found = topics_of(settings.kafka, asked, self._clock, self._stopped)
        absent = [topic for topic in mine if topic not in found]
        if absent:
            self._create(dict.fromkeys(absent, found.get(asked[0], 1)))

    def _create(self, partitions: Mapping[str, int]) -> None:
        """Create topics. Raises BrokerError where that is not allowed."""
        wanted = {
            topic: {
                "num_partitions": n,
                "replication_factor": -1,
                "configs": {"max.message.bytes": str(RECORD_BYTES_MAX)},
            }
            for topic, n in partitions.items()
        }
        client = admin(self._settings.kafka)
        try:
            answer = client.create_topics(wanted, raise_errors=False)
        finally:
            client.close()
        for topic in answer["topics"]:
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
        log.info("created topics=%s", ",".join(partitions))
