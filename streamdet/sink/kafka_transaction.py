"""Transactions of Kafka's: alerts and dead letters with the offsets behind them, all or nothing (KIP-98, KIP-447).

kafka-python's calls block without a bound while a broker is away, so a thread makes them and the loop looks now and
then. A producer whose transaction failed is never used again: kafka-python 3.0 would send offsets of the failed
transaction with the next one, and after an epoch that it raised by itself it would report a commit that never was.
A new producer of the same `transactional.id` makes Kafka end whatever the old one had begun.
"""

import logging
import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from kafka import OffsetAndMetadata, errors
from kafka.structs import TopicPartition

from streamdet.broker.client import ANSWER_S, TOO_LARGE_ERRORS, Outage, Stopped, never, producer, refusal
from streamdet.clock import Clock
from streamdet.config import Settings
from streamdet.events import Alert, LaneId, Position, Reject
from streamdet.sink.kafka import close_producer
from streamdet.sink.kafka_records import Outgoing, of_alert, of_reject
from streamdet.sink.kafka_topics import RECORD_BYTES_MAX, OutputTopics

log = logging.getLogger(__name__)

# What a group or another worker did; a new attempt with the new standing in the group is the answer.
_GROUP_ERRORS: Final = (errors.CommitFailedError, errors.FencedInstanceIdError, errors.ProducerFencedError)


@dataclass(eq=False)
class Attempt:
    """A transaction on its way; `error` is set before `done`."""

    records: Sequence[Outgoing]
    offsets: Mapping[TopicPartition, OffsetAndMetadata]
    membership: object  # kafka-python's ConsumerGroupMetadata
    done: bool = False
    error: BaseException | None = None


class KafkaTransactor:
    """A `Transactor`; creates the topics if they are absent, and waits for Kafka if need be.

    Args:
        settings: where to write to.
        name: tells this worker from all others of the group, and stays the same after a restart if it can.
        clock: for waits.
        stopped: asked during every wait; once it is true, waits for a broker that is away end within half a second.

    Raises:
        BrokerError: Kafka refused the login, the access, the creation of a topic, or the transactional id.
        BrokerUnavailableError: a stop was requested before Kafka answered.
        ConfigError: the security settings name a file that cannot be read.
    """

    def __init__(self, settings: Settings, name: str, clock: Clock, stopped: Stopped = never) -> None:
        self._settings = settings
        self._clock = clock
        self._stopped = stopped
        self._id = f"{settings.input.group_id}-{name}"
        self._outage = Outage(settings.kafka, clock, stopped, "transactor")
        self._source = f"streamdet/{settings.input.group_id}"
        self._topics = OutputTopics(settings, clock, stopped)
        self._last: Sequence[Outgoing] = ()
        self._outage.persist(self._topics.ensure)
        self._connect()

    def records(self, alerts: Sequence[Alert], rejects: Sequence[Reject]) -> list[Outgoing]:
        """As they are sent."""
        topics = self._topics
        return [of_alert(alert, topics.alerts, self._source) for alert in alerts] + [
            of_reject(reject, topics.dead_letters) for reject in rejects
        ]

    def begin(
        self, records: Sequence[Outgoing], positions: Mapping[LaneId, Position], membership: object
    ) -> Attempt:
        """Begin, send, and commit, all in the background."""
        offsets = {
            TopicPartition(*lane): OffsetAndMetadata(position.offset, position.note, -1)
            for lane, position in positions.items()
        }
        self._last = [self._topics.fit(record) for record in records]
        attempt = Attempt(self._last, offsets, membership)
        self._attempts.put(attempt)
        return attempt

    def renew(self, error: BaseException | None) -> None:
        """End whatever was begun, for good.

        Raises:
            BrokerError: the error is one that repeating will not mend.
            BrokerUnavailableError: a stop was requested while waiting for Kafka.
        """
        self.close()
        if isinstance(error, TOO_LARGE_ERRORS):
            self._outage.persist(self._topics.ensure)
            self._topics.lower(self._last, error)
        elif error is not None and not isinstance(error, _GROUP_ERRORS):
            refused = refusal(error, self._settings.kafka) if _is_the_users(error) else None
            if refused is not None:
                raise refused from error
        self._outage.persist(self._topics.ensure)  # one of them may have been deleted
        self._connect()

    def close(self) -> None:
        """Release what is held; Kafka aborts a transaction under way."""
        self._attempts.put(None)
        close_producer(self._producer)

    def _connect(self) -> None:
        options = {
            "transactional_id": self._id,
            "transaction_timeout_ms": self._settings.commit.transaction_timeout_ms,
            "enable_idempotence": True,
            "acks": "all",
            "linger_ms": 0,
            "max_request_size": 2 * RECORD_BYTES_MAX,
            "max_block_ms": 500,
            "allow_auto_create_topics": False,
            "metrics_enabled": False,
        }
        self._producer = self._outage.persist(partial(self._ready_producer, options))
        self._attempts: queue.SimpleQueue[Attempt | None] = queue.SimpleQueue()
        # A daemon: kafka-python may keep it waiting for good after its producer was closed.
        work = partial(_work, self._producer, self._attempts)
        threading.Thread(target=work, name="transactions", daemon=True).start()

    def _ready_producer(self, options: Mapping[str, Any]) -> Any:  # noqa: ANN401 - kafka-python is untyped
        """One attempt at a producer that has ended what an earlier one of the same id had begun."""
        made = producer(self._settings.kafka, **options)
        try:
            for topic in self._topics.names:
                made.partitions_for(topic)
            self._init(made)
        except BaseException:
            # The next attempt is with another one: a request that is lost with its broker is waited for without end.
            close_producer(made)
            raise
        return made

    def _init(self, made: Any) -> None:  # noqa: ANN401
        end_s = self._clock.monotonic_s() + ANSWER_S
        while True:
            try:
                made.init_transactions()  # waits for the same answer when called again
            except errors.KafkaTimeoutError:
                if self._stopped() or self._clock.monotonic_s() >= end_s:
                    raise
            else:
                return


def _is_the_users(error: BaseException) -> bool:
    """Whether somebody has to do something about it: kafka-python wraps what merely failed in plain errors."""
    return isinstance(error, (errors.AuthorizationError, errors.InvalidTopicError))


def _work(made: Any, attempts: "queue.SimpleQueue[Attempt | None]") -> None:  # noqa: ANN401
    """Make transactions of one producer, one after the other, until told to end."""
    while (attempt := attempts.get()) is not None:
        try:
            _make(made, attempt)
        except Exception as error:  # noqa: BLE001 - the loop's thread is told, whatever it is
            attempt.error = error
        attempt.done = True


def _make(made: Any, attempt: Attempt) -> None:  # noqa: ANN401
    made.begin_transaction()
    sent = [made.send(r.topic, r.value, r.key, list(r.headers)) for r in attempt.records]
    made.send_offsets_to_transaction(attempt.offsets, attempt.membership)
    for future in sent:
        future.get()
    # Only now: while records are on their way, kafka-python may end the transaction by itself and call it a commit.
    made.commit_transaction()
