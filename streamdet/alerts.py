"""Subscribe to alerts, from any program: a typed iterator over the alerts topic.

    from streamdet.alerts import subscribe

    with subscribe("sensors.alerts", bootstrap_servers="localhost:9092") as alerts:
        for alert in alerts:
            print(alert.event_time, alert.entity, f"{alert.score:.1f} x the limit", alert.features[0].name)

Guarantees: nothing that is published after `subscribe` has returned is missed; alerts of an entity come in order;
with a `group_id`, an alert counts as dealt with when the next one is asked for, so that a subscriber that dies in
the middle of one gets it again. Not guaranteed: that an alert comes once. Its `id` is the same each time.
"""

import logging
import math
from collections import deque
from collections.abc import Iterator, Mapping, Set
from contextlib import suppress
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Literal, Self

import msgspec
from kafka import OffsetAndMetadata, errors
from kafka.structs import MemberState, TopicPartition

from streamdet.broker.client import SLICE_S, Outage, Stopped, never, topics_of
from streamdet.broker.reader import Reader, Revocations
from streamdet.clock import Clock, SystemClock
from streamdet.config import Kafka, Security
from streamdet.errors import BrokerError
from streamdet.events import Alert

log = logging.getLogger(__name__)

Start = Literal["latest", "earliest"] | datetime

POLL_RECORDS_MAX: Final = 500
# How often a group's place is saved while alerts keep coming.
COMMIT_EVERY_S: Final = 1.0
# A topic that others write to as well must not fill the log: the first foreign record is told of, then each 1000th.
WARN_EVERY: Final = 1_000


def subscribe(
    topic: str,
    *,
    bootstrap_servers: str = "localhost:9092",
    start: Start = "latest",
    group_id: str | None = None,
    entity: str | None = None,
    follow: bool = True,
    timeout_s: float | None = None,
    security: Security | None = None,
    stopped: Stopped = never,
) -> "Subscription":
    """Subscribe to the alerts of a topic; iterate over what it returns, and close it.

    Args:
        topic: the alerts topic; by default the worker names it after its first input topic, with `.alerts`.
        bootstrap_servers: host:port of one or more brokers, separated by commas.
        start: `latest` for alerts from now on, `earliest` for all that Kafka still has, or a `datetime` with a time
            zone for those published since.
        group_id: subscribers of one group share the alerts, and the group goes on where it was; `start` then
            says where it begins at first.
        entity: only the alerts of this device, card or account.
        follow: wait for further alerts; otherwise end after those that were there when subscribing.
        timeout_s: end when no alert has come for so many seconds; None waits for ever.
        security: how to reach a protected Kafka.
        stopped: asked during every wait; the iteration ends once it returns true.

    Raises:
        BrokerError: the topic does not exist, or Kafka refused the login or the access.
        BrokerUnavailableError: `stopped` became true before Kafka answered.
        ValueError: `start` is a `datetime` without a time zone.
    """
    if isinstance(start, datetime) and start.tzinfo is None:
        raise ValueError(f"start needs a time zone, such as datetime(..., tzinfo=UTC), got {start!r}")
    kafka = Kafka(bootstrap_servers=bootstrap_servers, security=security or Security())
    return Subscription(
        kafka,
        topic,
        start=start,
        group_id=group_id,
        entity=entity,
        follow=follow,
        timeout_s=timeout_s,
        stopped=stopped,
        clock=SystemClock(),
    )


class Subscription(Iterator[Alert]):
    """An open subscription; made by `subscribe`. Not for use by several threads at once."""

    def __init__(
        self,
        kafka: Kafka,
        topic: str,
        *,
        start: Start,
        group_id: str | None,
        entity: str | None,
        follow: bool,
        timeout_s: float | None,
        stopped: Stopped,
        clock: Clock,
    ) -> None:
        self.skipped = 0  # records of the topic that are no alerts
        self._start = start
        self._group_id = group_id
        self._entity = entity
        self._timeout_s = timeout_s
        self._stopped = stopped
        self._clock = clock
        self._decoder = msgspec.json.Decoder(Alert)
        self._records: deque[Any] = deque()
        self._current: Any = None  # the record that was handed out last
        self._done: dict[TopicPartition, int] = {}  # where the group would go on
        self._told: dict[TopicPartition, int] = {}  # what of it was committed
        self._ends: dict[TopicPartition, int] | None = None  # where it ends, if it does not follow
        self._revoked = Revocations()
        self._commit_s = clock.monotonic_s()
        outage = Outage(kafka, clock, stopped, "alerts")
        found = outage.persist(lambda: topics_of(kafka, [topic], clock, stopped))
        if topic not in found:
            raise BrokerError(
                f"topic {topic!r} does not exist on Kafka at {kafka.bootstrap_servers}; the worker (`streamdet run`) "
                "creates it when it first starts: is it the alerts topic of its configuration?"
            )
        self._reader = Reader(kafka, outage, clock, group_id=group_id)
        self._consumer = self._reader.consumer
        try:
            self._take_place(topic, found[topic])
            if not follow:
                self._ends = self._ask("end_offsets", self._consumer.assignment())
        except BaseException:
            self._reader.close()
            raise

    def __next__(self) -> Alert:
        """The next alert.

        Raises:
            BrokerError: Kafka refused.
            StopIteration: time is up, a stop was requested, or everything that was there has been handed out.
        """
        self._finish_current()
        end_s = math.inf if self._timeout_s is None else self._clock.monotonic_s() + self._timeout_s
        looked = False  # at least once, also when there is no time
        while not self._stopped():
            while self._records:
                self._current = self._records.popleft()
                alert = self._decode(self._current)
                if alert is not None and self._entity in (None, alert.entity):
                    return alert
                self._finish_current()
            left_s = end_s - self._clock.monotonic_s()
            if self._at_end() or (looked and left_s <= 0):
                break
            self._commit(COMMIT_EVERY_S)
            self._read(left_s)
            looked = True
        raise StopIteration

    def close(self) -> None:
        """Give back the connection; with a group, save its place first. Nothing happens the second time."""
        # A place that cannot be saved costs repeated alerts, which is what is promised.
        with suppress(errors.KafkaError, OSError):
            if self._done:
                self._consumer.commit(self._positions(), timeout_ms=self._reader.call_ms)
        self._done.clear()
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take_place(self, topic: str, partitions: int) -> None:
        """Settle now where reading begins, so that what is published from here on is not missed."""
        every = {TopicPartition(topic, p) for p in range(partitions)}
        if self._group_id is None:
            self._consumer.assign(sorted(every))
            self._begin(every)
            return
        self._consumer.subscribe([topic], listener=self._revoked)
        self._reader.learn(every)
        while not self._stopped():
            self._read(SLICE_S)
            if self._consumer.group_metadata().state != MemberState.STABLE:
                continue
            if all(self._position(tp) is not None for tp in self._consumer.assignment()):
                return

    def _begin(self, partitions: Set[TopicPartition]) -> None:
        if self._start == "earliest":
            starts = self._ask("beginning_offsets", partitions)
        else:
            starts = self._ask("end_offsets", partitions)
        if isinstance(self._start, datetime):
            since_ms = int(self._start.timestamp() * 1000)
            times = dict.fromkeys(partitions, since_ms)
            found = self._reader.call(lambda ms: self._consumer.offsets_for_times(times, timeout_ms=ms))
            starts |= {tp: at.offset for tp, at in found.items() if at is not None}
        for tp, offset in starts.items():
            self._consumer.seek(tp, offset)
        if self._group_id is not None:
            # Else a group that is interrupted before its first commit would begin at another place.
            self._done |= starts
            self._commit(0)

    def _ask(self, question: str, partitions: Set[TopicPartition]) -> dict[TopicPartition, int]:
        ask = getattr(self._consumer, question)
        answer: dict[TopicPartition, int] = self._reader.call(lambda ms: ask(list(partitions), timeout_ms=ms))
        return answer

    def _position(self, partition: TopicPartition) -> int | None:
        try:
            position: int | None = self._reader.call(
                lambda ms: self._consumer.position(partition, timeout_ms=ms)
            )
        except errors.NoOffsetForPartitionError as error:
            self._begin(error.args[0])
            return None
        return position

    def _at_end(self) -> bool:
        if self._ends is None:
            return False
        assigned = self._consumer.assignment()
        return all((self._position(tp) or 0) >= end for tp, end in self._ends.items() if tp in assigned)

    def _read(self, wait_s: float) -> None:
        try:
            polled = self._reader.poll(wait_s, POLL_RECORDS_MAX)
        except errors.NoOffsetForPartitionError as error:
            self._begin(error.args[0])
        except (errors.OffsetOutOfRangeError, errors.LogTruncationError) as error:
            self._skip_gap(error)
        else:
            self._forget(self._revoked.take())
            for tp, records in polled.items():
                end = None if self._ends is None else self._ends.get(tp, 0)
                self._records.extend(r for r in records if end is None or r.offset < end)

    def _forget(self, lost: Set[TopicPartition]) -> None:
        """What other subscribers of the group have now must neither be handed out here nor set back."""
        if lost:
            self._records = deque(r for r in self._records if (r.topic, r.partition) not in lost)
            self._done = {tp: at for tp, at in self._done.items() if tp not in lost}

    def _skip_gap(self, error: Exception) -> None:
        gone = set(getattr(error, "divergent_offsets", None) or error.args[0]) & self._consumer.assignment()
        for tp, offset in self._ask("beginning_offsets", gone).items():
            log.warning("alerts are gone lane=%s/%d continues_at=%d: retention deleted them", *tp, offset)
            self._consumer.seek(tp, offset)

    def _decode(self, record: Any) -> Alert | None:  # noqa: ANN401 - kafka-python is untyped
        try:
            return self._decoder.decode(record.value or b"")
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            self.skipped += 1
            if self.skipped % WARN_EVERY == 1:
                log.warning(
                    "skipped a record that is no alert lane=%s/%d offset=%d skipped=%d reason=%s",
                    record.topic,
                    record.partition,
                    record.offset,
                    self.skipped,
                    error,
                )
            return None

    def _finish_current(self) -> None:
        """The caller asks for the next one: the one before is dealt with."""
        if self._current is not None and self._group_id is not None:
            tp = TopicPartition(self._current.topic, self._current.partition)
            self._done[tp] = self._current.offset + 1
        self._current = None

    def _commit(self, every_s: float) -> None:
        now_s = self._clock.monotonic_s()
        if self._done != self._told and now_s - self._commit_s >= every_s:
            self._commit_s = now_s
            # Not waited for: what fails now goes with the next one, or with close.
            self._consumer.commit_async(self._positions())
            self._told = dict(self._done)

    def _positions(self) -> Mapping[TopicPartition, OffsetAndMetadata]:
        assigned = self._consumer.assignment()
        return {tp: OffsetAndMetadata(at, "", -1) for tp, at in self._done.items() if tp in assigned}
