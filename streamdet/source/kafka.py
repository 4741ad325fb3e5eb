"""Records from Kafka topics, as a member of a consumer group.

Guarantees: records of a lane come in offset order; a lane is in `lanes` before its first record is returned, and a
lane that was taken away and given back between two polls, or whose topic was made anew, is missing from `lanes` for
at least one poll, so that whoever keeps state per lane sees every change of hands; records that are gone unread are
told of and counted; nothing is committed but by `commit`; a broker that is away is waited for; a worker whose name
another one has taken ends. Not guaranteed: that a record comes only once. After a crash, or when a lane changes hands,
reading goes on at the committed offset.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from operator import itemgetter
from typing import Any

import numpy as np
from kafka import errors
from kafka.consumer.fetcher import ConsumerRecord
from kafka.structs import TopicPartition

from streamdet.broker.client import (
    SLICE_S,
    Outage,
    Stopped,
    missing_topic,
    never,
    topics_of,
)
from streamdet.broker.membership import HonestAssignor
from streamdet.broker.reader import Reader
from streamdet.clock import Clock
from streamdet.config import Settings
from streamdet.events import Batch, LaneId, Position, Records
from streamdet.source.kafka_group import Group
from streamdet.source.kafka_leading import Leading
from streamdet.source.kafka_positions import METADATA_MAX_AGE_MS, Positions

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
        instance: the name of this worker in the group; one that comes back under it finds its lanes as it left them.
        stays: whether a worker with a name keeps its lanes when it is closed, until the session timeout.

    Raises:
        BrokerError: a topic does not exist, or Kafka refused the login or the access.
        BrokerUnavailableError: a stop was requested before Kafka answered.
        ConfigError: the security settings name a file that cannot be read.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        stopped: Stopped = never,
        *,
        instance: str | None = None,
        stays: bool = False,
    ) -> None:
        kafka, given = settings.kafka, settings.input
        self._clock = clock
        self._stopped = stopped
        self._wait_s = given.batch.max_wait_ms / 1000
        self._batch_max_events = given.batch.max_events
        self._outage = Outage(kafka, clock, stopped, "source")
        found = self._outage.persist(lambda: topics_of(kafka, given.topics, clock, stopped))
        for topic in given.topics:
            if topic not in found:
                raise missing_topic(topic, kafka)
        assignor = HonestAssignor()
        self._reader = Reader(
            kafka,
            self._outage,
            clock,
            stays=stays,
            group_id=given.group_id,
            group_instance_id=instance,
            fetch_max_bytes=given.batch.max_bytes,
            max_partition_fetch_bytes=given.batch.max_bytes,
            partition_assignment_strategy=[assignor],
            session_timeout_ms=given.session_timeout_ms,
            metadata_max_age_ms=METADATA_MAX_AGE_MS,
        )
        self._consumer = self._reader.consumer
        assignor.member = self._consumer.group_metadata
        try:
            self._group = Group(self._reader, given.topics)
            ends = self._reader.learn({TopicPartition(t, p) for t, n in found.items() for p in range(n)})
        except BaseException:
            self._reader.close()
            raise
        self._leading = Leading(self._reader, clock, ends)
        self._positions = Positions(self._reader, self._group, given)
        self._next: dict[LaneId, int] = {}

    @property
    def exhausted(self) -> bool:
        """Never: a topic is endless."""
        return False

    @property
    def lanes(self) -> Set[LaneId]:
        """The lanes that are this worker's, as of the last poll."""
        return self._group.lanes

    @property
    def leads(self) -> bool:
        """Whether the lowest lane that has ever had a record is this worker's, as of the last poll."""
        return self._leading.among(self._group.lanes)

    @property
    def lost(self) -> Counter[LaneId]:
        """How many records of a lane were gone before they were read."""
        return self._positions.losses.counts

    def topic_id(self, topic: str) -> str:
        """Kafka's own identifier of the topic being read, in hex; empty if Kafka is too old to have one."""
        return self._positions.topic_id(topic)

    def poll(self, max_events: int) -> Batch:
        """At most `max_events` records; empty when none came in time, lanes changed, or a stop was requested.

        For 0 records it waits as long, and keeps the place in the group: a rebalance goes on, and lanes change, after a
        stop was requested too.

        Raises:
            BrokerError: Kafka refused, another worker has taken this one's name, or records were lost that may not be.
        """
        end_s = self._clock.monotonic_s() + self._wait_s
        wanted = min(max_events, self._batch_max_events)
        while wanted == 0 or not self._stopped():
            # With nothing read at hand, as what was would be put back over the new position.
            self._leading.forget(self._positions.follow_topics())
            left_s = end_s - self._clock.monotonic_s()
            polled = self._read(left_s, wanted) if wanted else self._keep_place(left_s)
            changed = self._update_lanes(polled)
            if polled or changed or left_s <= SLICE_S or self._stopped():
                return self._batch(polled)
        return Batch(())

    def _read(self, wait_s: float, records_max: int) -> dict[TopicPartition, list[Any]]:
        try:
            return self._reader.poll(wait_s, records_max)
        except errors.NoOffsetForPartitionError as error:
            self._positions.begin(error.args[0])
        except errors.OffsetOutOfRangeError as error:
            self._positions.resume(error.args[0])
        except errors.LogTruncationError as error:
            self._positions.cut_back(error.divergent_offsets)
        return {}

    def _keep_place(self, wait_s: float) -> dict[TopicPartition, list[Any]]:
        """Poll with all lanes paused: what has been fetched of them is kept, and is there once they are resumed."""
        held = self._consumer.assignment()
        self._consumer.pause(*held)
        try:
            polled = self._read(wait_s, 1)
        finally:
            self._consumer.resume(*held & self._consumer.assignment())
        self._put_back(polled)  # of lanes that came with this very poll
        return {}

    def _update_lanes(self, polled: dict[TopicPartition, list[Any]]) -> bool:
        """Take over the assignment; records of lanes that nobody knows of yet go back and come again."""
        before = self._group.lanes
        changed = self._group.update()
        if changed:
            lanes = self._group.lanes
            self._put_back({tp: polled.pop(tp) for tp in [*polled] if tp not in lanes & before})
            for lane in before ^ lanes:
                self._next.pop(lane, None)
        self._leading.look(at_once=changed)
        return changed

    def _put_back(self, polled: Mapping[TopicPartition, list[Any]]) -> None:
        for tp in polled.keys() & self._consumer.assignment():
            self._consumer.seek(tp, polled[tp][0].offset)

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

    def committed(self, lane: LaneId) -> Position | None:
        """What the group has committed for the lane, None where it has nothing.

        Raises:
            BrokerError: Kafka refused.
            BrokerUnavailableError: a stop was requested while waiting for Kafka.
        """
        return self._group.committed(lane)

    def membership(self, lanes: Iterable[LaneId]) -> tuple[Any, frozenset[LaneId]]:
        """For `send_offsets_to_transaction`: the group's metadata, and which of the lanes may be committed with them.

        Whatever happens to the group from here on, Kafka refuses the commit before it lets another worker have one of
        these lanes. None and no lanes amid a rebalance, which goes on with the next poll.
        """
        return self._group.membership(lanes)

    def commit(self, positions: Mapping[LaneId, Position]) -> bool:
        """Make these the positions from which the group goes on; waits for Kafka. False if not all of it counted.

        Lanes that have changed hands are left out, and a commit that comes after a rebalance is dropped: whoever
        has the lane now goes on from the last commit that counted.

        Raises:
            BrokerError: Kafka refused, or another worker has taken the name of this one.
            BrokerUnavailableError: a stop was requested while waiting for Kafka.
        """
        return self._group.commit(positions)

    def lag(self) -> dict[LaneId, int]:
        """Records that lie ahead in each lane, as of the last fetch; lanes not yet fetched are left out.

        The ends of transactions count as records.
        """
        ahead = {}
        for lane in self._group.lanes & self._next.keys():
            tp = TopicPartition(*lane)
            end = self._consumer.highwater(tp) if tp in self._consumer.assignment() else None
            if end is not None:
                ahead[lane] = max(end - self._next[lane], 0)
        return ahead

    def close(self) -> None:
        """Leave the group, so that its other workers take over at once, unless this one stays; nothing is committed."""
        self._reader.close()


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
