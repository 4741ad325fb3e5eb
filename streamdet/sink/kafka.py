"""Alerts and dead letters as records of two Kafka topics.

Guarantees: `flush` returns only when every record handed over is on all replicas in sync, and waits for a broker
that is away; a record larger than its topic allows arrives truncated and says so; memory is bounded, as `publish`
itself flushes beyond 32 MiB. Not guaranteed: that a record arrives only once. When a broker dies at the wrong moment
an alert may be repeated, with the same id.
"""

import contextlib
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from kafka import errors

from streamdet.broker.client import SLICE_S, TOO_LARGE_ERRORS, Outage, Stopped, never, producer
from streamdet.clock import Clock
from streamdet.config import Settings
from streamdet.events import Alert, Reject
from streamdet.sink.kafka_records import Outgoing, of_alert, of_reject
from streamdet.sink.kafka_topics import RECORD_BYTES_MAX, OutputTopics

log = logging.getLogger(__name__)

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

    record: Outgoing
    future: Any = None  # kafka-python's; its exception is None and is_done true when the record has arrived


class KafkaSink:
    """A `Sink` into the topics of the settings; creates them if they are absent, and waits for Kafka if need be.

    Args:
        settings: where to write to.
        clock: for waits.
        stopped: asked during every wait; once it is true, waits for a broker that is away end within half a second.

    Raises:
        BrokerError: Kafka refused the login, the access or the creation of a topic.
        BrokerUnavailableError: a stop was requested before Kafka answered.
        ConfigError: the security settings name a file that cannot be read.
    """

    def __init__(self, settings: Settings, clock: Clock, stopped: Stopped = never) -> None:
        self._settings = settings
        self._clock = clock
        self._stopped = stopped
        self._outage = Outage(settings.kafka, clock, stopped, "sink")
        self._source = f"streamdet/{settings.input.group_id}"
        self._topics = OutputTopics(settings, clock, stopped)
        self._pending: deque[_Sent] = deque()
        self._pending_bytes = 0
        self._outage.persist(self._topics.ensure)
        self._producer = self._connect()

    def publish(self, alerts: Sequence[Alert], rejects: Sequence[Reject]) -> None:
        """Hand over; it is safe only after the next `flush`.

        Raises:
            BrokerError: Kafka refused.
            BrokerUnavailableError: a stop was requested while waiting for Kafka.
        """
        for alert in alerts:
            self._send(of_alert(alert, self._topics.alerts, self._source))
        for reject in rejects:
            self._send(of_reject(reject, self._topics.dead_letters))

    def flush(self) -> None:
        """Return when everything handed over has arrived; a broker that is away is waited for.

        Raises:
            BrokerError: Kafka refused; what was refused is still held, as is what came after it.
            BrokerUnavailableError: a stop was requested while waiting for Kafka.
        """
        while self._pending:
            future = self._pending[0].future
            self._settle(future)
            if future.exception is None:
                self._outage.ended()
                self._pending.popleft()
            else:
                self._mend(future.exception)
        self._pending_bytes = 0

    def close(self) -> None:
        """Release what is held; what was not flushed may be lost."""
        close_producer(self._producer)

    def _connect(self) -> Any:  # noqa: ANN401 - kafka-python is untyped
        options = {
            "enable_idempotence": True,
            "acks": "all",
            "linger_ms": 0,
            "max_request_size": 2 * RECORD_BYTES_MAX,
            "max_block_ms": 500,
            "delivery_timeout_ms": DELIVERY_TIMEOUT_MS,
            "allow_auto_create_topics": False,
            "metrics_enabled": False,
        }
        made = self._outage.persist(lambda: producer(self._settings.kafka, **options))
        # With the partitions known from the start, handing over does not wait for a broker that goes away.
        for topic in self._topics.names:
            self._outage.persist(partial(made.partitions_for, topic))
        return made

    def _send(self, record: Outgoing) -> None:
        if self._pending_bytes + record.size > PENDING_BYTES_MAX:
            self.flush()
        sent = _Sent(record)
        self._pending_bytes += record.size
        self._hand_over(sent)
        self._pending.append(sent)

    def _hand_over(self, sent: _Sent) -> None:
        """Give the record to the producer, which sends it from a thread of its own."""
        sent.record = self._topics.fit(sent.record)
        sent.future = self._outage.persist(lambda: self._try_send(sent.record))

    def _try_send(self, record: Outgoing) -> Any:  # noqa: ANN401
        try:
            return self._producer.send(record.topic, record.value, record.key, list(record.headers))
        except errors.KafkaTimeoutError:
            # The producer knows no partitions: Kafka is away, or the topic was deleted.
            self._topics.ensure()
            raise

    def _settle(self, future: Any) -> None:  # noqa: ANN401
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
            self._topics.ensure()
        except (errors.KafkaError, OSError) as error:
            self._outage.failed(error)
        else:
            self._outage.ended()

    def _mend(self, error: BaseException) -> None:
        """Send again what has not arrived, with a new producer: the old one may have given up for good."""
        if isinstance(error, TOO_LARGE_ERRORS):
            self._outage.persist(self._topics.ensure)
            self._topics.lower([sent.record for sent in self._pending], error)
        else:
            self._outage.failed(error)
            self._outage.pause()
        log.info("sending again records=%d reason=%s", len(self._pending), error)
        close_producer(self._producer)
        self._producer = self._connect()
        for sent in self._pending:
            if not sent.future.is_done or sent.future.exception is not None:
                self._hand_over(sent)


def close_producer(made: Any) -> None:  # noqa: ANN401
    """Close a producer, whatever is still on its way."""
    try:
        made.close(timeout=1)
    except errors.KafkaError as error:
        # It gives up before it has stopped its thread when records are on their way; abort those first.
        log.info("kafka producer closed with records on their way reason=%s", error)
        made._sender.force_close()  # noqa: SLF001 - there is no public way
        made._sender.join(1)  # noqa: SLF001
        with contextlib.suppress(errors.KafkaError):
            made.close(timeout=0)
