"""Records from Kafka topics, as a member of a consumer group.

Guarantees: records of a lane come in offset order; a lane is in `lanes` before its first record is returned, and a
lane that was taken away and given back between two polls is missing from `lanes` for at least one poll, so that
whoever keeps state per lane sees every change of hands; nothing is committed but by `commit`; a broker that is away
is waited for. Not guaranteed: that a record comes only once. After a crash, or when a lane changes hands, reading
goes on at the committed offset.
"""

import logging
from collections.abc import Mapping, Sequence, Set
from operator import itemgetter
from typing import Any, Final

import numpy as np
from kafka import OffsetAndMetadata, errors
from kafka.consumer.fetcher import ConsumerRecord
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.structs import TopicPartition

from streamdet.broker.client import (
    SLICE_S,
    Outage,
    Stopped,
    missing_topic,
    never,
    topics_of,
)
from streamdet.broker.reader import Reader, Revocations
from streamdet.clock import Clock
from streamdet.config import Settings
from streamdet.events import Batch, LaneId, Records

log = logging.getLogger(__name__)

# How long the group waits for a worker that was killed. Heartbeats come from a thread of their own but need the
# interpreter for a moment: a long compilation or garbage collection must fit in here.
SESSION_TIMEOUT_MS: Final = 20_000

# The group has moved on without this worker: the records will be judged again by whoever has the lane now.
REBALANCED_ERRORS: Final = (
    errors.CommitFailedError,
    errors.FencedInstanceIdError,
    errors.IllegalGenerationError,
    errors.RebalanceInProgressError,
    errors.UnknownMemberIdError,
)

# By index, as a pass over the records then runs in C: 0.07 us a record, where poll itself takes 5 and more.
_OFFSET, _TIMESTAMP, _KEY, _VALUE = (
    itemgetter(ConsumerRecord._fields.index(name)) for name in ("offset", "timestamp", "key", "value")
)


class KafkaSource:
    """A `Source` over the topics of the settings; connects when made, and waits for Kafka if need be.

    Args:
        settings: where, what and how much to read.
        clock: for waits.
        stopped: asked during every wait; once it is true, waits end within half a second.

    Raises:
        BrokerError: a topic does not exist, or Kafka refused the login or the access.
        BrokerUnavailableError: a stop was requested before Kafka answered.
        ConfigError: the security settings name a file that cannot be read.
    """

    def __init__(self, settings: Settings, clock: Clock, stopped: Stopped = never) -> None:
        kafka, given = settings.kafka, settings.input
        self._clock = clock
        self._stopped = stopped
        self._start = given.start
        self._wait_s = given.batch.max_wait_ms / 1000
        self._batch_max_events = given.batch.max_events
        self._outage = Outage(kafka, clock, stopped, "source")
        found = self._outage.persist(lambda: topics_of(kafka, given.topics, clock, stopped))
        for topic in given.topics:
            if topic not in found:
                raise missing_topic(topic, kafka)
        self._reader = Reader(
            kafka,
            self._outage,
            clock,
            group_id=given.group_id,
            fetch_max_bytes=given.batch.max_bytes,
            max_partition_fetch_bytes=given.batch.max_bytes,
            partition_assignment_strategy=[CooperativeStickyAssignor],
            session_timeout_ms=SESSION_TIMEOUT_MS,
        )
        self._consumer = self._reader.consumer
        self._revoked = Revocations()
        self._consumer.subscribe(list(given.topics), listener=self._revoked)
        self._reader.learn({TopicPartition(t, p) for t, count in found.items() for p in range(count)})
        self._lanes: frozenset[LaneId] = frozenset()
        self._next: dict[LaneId, int] = {}

    @property
    def exhausted(self) -> bool:
        """Never: a topic is endless."""
        return False

    @property
    def lanes(self) -> Set[LaneId]:
        """The lanes that are this worker's, as of the last poll."""
        return self._lanes

    def poll(self, max_events: int) -> Batch:
        """At most `max_events` records; empty when none came in time, lanes changed, or a stop was requested.

        Raises:
            BrokerError: Kafka refused.
        """
        end_s = self._clock.monotonic_s() + self._wait_s
        wanted = min(max_events, self._batch_max_events)
        while not self._stopped():
            left_s = end_s - self._clock.monotonic_s()
            polled = self._read(left_s, wanted)
            changed = self._update_lanes(polled)
            if polled or changed or left_s <= SLICE_S:
                return self._batch(polled)
        return Batch(())

    def _read(self, wait_s: float, records_max: int) -> dict[TopicPartition, list[Any]]:
        try:
            return self._reader.poll(wait_s, records_max)
        except errors.NoOffsetForPartitionError as error:
            self._begin(error.args[0])
        except errors.OffsetOutOfRangeError as error:
            self._resume({tp: at for tp, at in error.args[0].items() if tp in self._consumer.assignment()})
        except errors.LogTruncationError as error:
            self._resume({tp: at and at.offset for tp, at in error.divergent_offsets.items()}, keep=True)
        return {}

    def _begin(self, partitions: Set[TopicPartition]) -> None:
        """Start where the settings say, as the group has committed nothing yet."""
        starts = self._edge(partitions, at_end=self._start == "latest")
        for tp, offset in starts.items():
            log.info("lane starts lane=%s start=%s offset=%d", LaneId(*tp), self._start, offset)
            self._consumer.seek(tp, offset)
        if self._start == "latest":
            # Else a worker that dies before its first commit would begin at a later end, and lose what lies between.
            self._commit(starts)

    def _resume(self, positions: Mapping[TopicPartition, int | None], *, keep: bool = False) -> None:
        """Go on after records that are gone: deleted, or lost with the broker that led the partition.

        At the first record that Kafka still has, whatever `start` says, so that none of those is passed over; or, to
        `keep` the positions, at these where there are such.
        """
        for tp, first in self._edge(positions.keys(), at_end=False).items():
            wanted = positions[tp]
            offset = max(first, wanted) if keep and wanted is not None else first
            log.warning(
                "records are gone lane=%s wanted_offset=%s continues_at=%d: retention deleted them before they were "
                "read, or the topic was made anew",
                LaneId(*tp),
                wanted,
                offset,
            )
            self._consumer.seek(tp, offset)

    def _edge(self, partitions: Set[TopicPartition], *, at_end: bool) -> dict[TopicPartition, int]:
        ask = self._consumer.end_offsets if at_end else self._consumer.beginning_offsets
        edges: dict[TopicPartition, int] = self._reader.call(lambda ms: ask(list(partitions), timeout_ms=ms))
        assigned = self._consumer.assignment()
        return {tp: offset for tp, offset in edges.items() if tp in assigned}

    def _update_lanes(self, polled: dict[TopicPartition, list[Any]]) -> bool:
        """Take over the assignment; records of lanes that nobody knows of yet go back and come again."""
        lost = self._revoked.take()
        assigned = self._consumer.assignment()
        if not lost and assigned == self._lanes:  # both are sets of (topic, partition)
            return False
        lanes = frozenset(LaneId(*tp) for tp in assigned - lost)
        for tp in [tp for tp in polled if LaneId(*tp) not in lanes or LaneId(*tp) not in self._lanes]:
            records = polled.pop(tp)
            if tp in assigned:
                self._consumer.seek(tp, records[0].offset)
        for lane in self._lanes ^ lanes:
            self._next.pop(lane, None)
        gained, gone = _names(lanes - self._lanes), _names(self._lanes - lanes)
        log.info("lanes changed gained=%s lost=%s count=%d", gained, gone, len(lanes))
        self._lanes = lanes
        return True

    def _batch(self, polled: Mapping[TopicPartition, list[Any]]) -> Batch:
        parts = [_records(LaneId(*tp), records) for tp, records in polled.items()]
        for part in parts:
            self._next[part.lane] = part.next_offset
        return Batch(parts)

    def peek(self, n: int, wait_s: float) -> list[bytes]:
        """Up to n record values that lie ahead, without consuming them.

        Waits for a first record as long as it takes, then at most `wait_s` for more; tombstones are left out.
        Fewer, or none, only when a stop was requested or no more came.

        Raises:
            BrokerError: Kafka refused.
        """
        values: list[bytes] = []
        origin: dict[TopicPartition, int] = {}
        end_s: float | None = None
        while len(values) < n and not self._stopped():
            left_s = SLICE_S if end_s is None else end_s - self._clock.monotonic_s()
            if left_s <= 0:
                break
            for tp, records in self._read(left_s, n - len(values)).items():
                origin.setdefault(tp, records[0].offset)
                values += [r.value for r in records if r.value is not None]
            if end_s is None and values:
                end_s = self._clock.monotonic_s() + wait_s
        for tp in origin.keys() & self._consumer.assignment():
            self._consumer.seek(tp, origin[tp])
        return values

    def seek(self, lane: LaneId, offset: int) -> None:
        """Go on reading the lane at this offset; nothing happens if the lane is no longer this worker's."""
        tp = TopicPartition(*lane)
        if tp in self._consumer.assignment():
            self._consumer.seek(tp, offset)
            self._next[lane] = offset

    def committed(self, lane: LaneId) -> int | None:
        """The offset that the group has committed for the lane, None where it has none.

        Raises:
            BrokerError: Kafka refused.
            BrokerUnavailableError: a stop was requested while waiting for Kafka.
        """
        tp = TopicPartition(*lane)
        offset: int | None = self._reader.call(lambda ms: self._consumer.committed(tp, timeout_ms=ms))
        return offset

    def commit(self, offsets: Mapping[LaneId, int]) -> None:
        """Make these the offsets from which the group goes on; waits for Kafka.

        Lanes that have changed hands are left out, and a commit that comes after a rebalance is dropped: whoever
        has the lane now goes on from the last commit that counted.

        Raises:
            BrokerError: Kafka refused.
            BrokerUnavailableError: a stop was requested while waiting for Kafka.
        """
        # Kafka would take an offset for any lane from any member of the group, and set back whoever has it now.
        mine = self._consumer.assignment() - self._revoked.seen()
        gone = [lane for lane in offsets if TopicPartition(*lane) not in mine]
        if gone:
            log.info("commit dropped lanes=%s reason=no longer this worker's", _names(gone))
        self._commit({TopicPartition(*ln): at for ln, at in offsets.items() if ln not in gone})

    def _commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        if not offsets:
            return
        told = {tp: OffsetAndMetadata(offset, "", -1) for tp, offset in offsets.items()}
        try:
            self._reader.call(lambda ms: self._try_commit(told, ms))
        except _RebalancedError as error:
            log.info("commit dropped lanes=%s reason=%s", _names(LaneId(*tp) for tp in told), error)

    def _try_commit(self, told: Mapping[TopicPartition, OffsetAndMetadata], timeout_ms: int) -> None:
        try:
            self._consumer.commit(told, timeout_ms=timeout_ms)
        except REBALANCED_ERRORS as error:
            raise _RebalancedError(str(error)) from error

    def lag(self) -> dict[LaneId, int]:
        """Records that lie ahead in each lane, as of the last fetch; lanes not yet fetched are left out.

        The ends of transactions count as records.
        """
        ahead = {}
        for lane in self._lanes & self._next.keys():
            tp = TopicPartition(*lane)
            end = self._consumer.highwater(tp) if tp in self._consumer.assignment() else None
            if end is not None:
                ahead[lane] = max(end - self._next[lane], 0)
        return ahead

    def close(self) -> None:
        """Leave the group, so that its other workers take over at once; nothing is committed."""
        self._reader.close()


class _RebalancedError(Exception):
    """A commit came too late; not an error of Kafka's that waiting would mend."""


def _records(lane: LaneId, records: Sequence[Any]) -> Records:
    """One lane's `ConsumerRecord`s in columns."""
    n, first, last = len(records), records[0].offset, records[-1].offset
    if last - first + 1 == n:
        offsets = np.arange(first, last + 1, dtype=np.int64)
    else:  # compaction and transactions leave gaps
        offsets = np.fromiter(map(_OFFSET, records), np.int64, n)
    return Records(
        lane=lane,
        offsets=offsets,
        timestamps_ms=np.fromiter(map(_TIMESTAMP, records), np.int64, n),
        keys=list(map(_KEY, records)),
        values=list(map(_VALUE, records)),
    )


def _names(lanes: Any) -> str:  # noqa: ANN401
    return ",".join(sorted(map(str, lanes))) or "-"
