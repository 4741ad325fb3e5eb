"""All partitions of a topic as they are now, read once and without a consumer group.

What recording a topic and looking at one have in common. Nothing is committed; records of aborted transactions are
left out, as for the worker.
"""

import heapq
import logging
from collections.abc import Iterator
from functools import partial
from operator import attrgetter
from typing import Any, Final

from kafka import errors
from kafka.structs import TopicPartition

from streamdet.broker.client import SLICE_S, Outage, Stopped, missing_topic, topics_of
from streamdet.broker.reader import Reader
from streamdet.clock import Clock
from streamdet.config import Kafka
from streamdet.errors import BrokerError

log = logging.getLogger(__name__)

POLL_RECORDS_MAX: Final = 4096


class Backlog:
    """The records of a topic in all its partitions, read without a group; to be closed.

    Raises:
        BrokerError: the topic does not exist, or Kafka refused.
        BrokerUnavailableError: a stop was requested before Kafka answered.
    """

    def __init__(self, kafka: Kafka, topic: str, clock: Clock, stopped: Stopped) -> None:
        self._stopped = stopped
        outage = Outage(kafka, clock, stopped)
        found = outage.persist(lambda: topics_of(kafka, [topic], clock, stopped))
        if topic not in found:
            raise missing_topic(topic, kafka)
        self._reader = Reader(kafka, outage, clock)
        self._lanes = [TopicPartition(topic, p) for p in range(found[topic])]
        try:
            self._reader.consumer.assign(self._lanes)
            self._starts = self._edges("beginning_offsets")
            self._ends = self._edges("end_offsets")
            self._go_to(self._starts)
        except BaseException:
            self._reader.close()
            raise

    def newest(self, n: int) -> None:
        """Leave out all but about the newest n records, an equal share of each partition."""
        share = -(-n // len(self._lanes))
        self._go_to({tp: max(self._starts[tp], end - share) for tp, end in self._ends.items()})

    def read(self, *, follow: bool) -> Iterator[tuple[list[Any], float | None]]:
        """Lists of records, by time as far as they came together, and the share of what is to be read.

        Ends at what the topic held when this object was made; with `follow`, when a stop is requested. The share is
        None beyond.

        Raises:
            BrokerError: Kafka refused, or records are gone that were still to be read.
            BrokerUnavailableError: a stop was requested while waiting for Kafka.
        """
        first = dict(self._next)
        total = sum(max(self._ends[tp] - at, 0) for tp, at in first.items())
        while not self._stopped() and (follow or not self._at_end()):
            polled = self._poll()
            for tp, records in polled.items():
                self._next[tp] = records[-1].offset + 1
                if not follow:
                    polled[tp] = [r for r in records if r.offset < self._ends[tp]]
            if not polled:
                self._catch_up()
            done = sum(min(self._next[tp], self._ends[tp]) - at for tp, at in first.items())
            yield (
                list(heapq.merge(*polled.values(), key=attrgetter("timestamp"))),
                (done / total if done < total else None),
            )

    def close(self) -> None:
        """Release the connection."""
        self._reader.close()

    def _poll(self) -> dict[TopicPartition, list[Any]]:
        try:
            return self._reader.poll(SLICE_S, POLL_RECORDS_MAX)
        except (errors.OffsetOutOfRangeError, errors.LogTruncationError) as error:
            self._skip_gap(error)
        return {}

    def _at_end(self) -> bool:
        return all(self._next[tp] >= end for tp, end in self._ends.items())

    def _catch_up(self) -> None:
        """Transactions end in markers, which are no records but have offsets: the consumer knows how far it is."""
        for tp in self._lanes:
            position = self._reader.call(partial(self._position, tp))
            self._next[tp] = max(self._next[tp], position)

    def _position(self, lane: TopicPartition, timeout_ms: int) -> int:
        position: int = self._reader.consumer.position(lane, timeout_ms=timeout_ms)
        return position

    def _skip_gap(self, error: Exception) -> None:
        """Go on after records that retention deleted before they were read."""
        gone = set(getattr(error, "divergent_offsets", None) or error.args[0])
        starts = self._edges("beginning_offsets")
        for tp in gone:
            if starts[tp] < self._next[tp]:
                raise BrokerError(
                    f"topic {tp.topic!r} was made anew, or lost records, while it was being read"
                )
            log.warning(
                "records are gone lane=%s/%d continues_at=%d: retention deleted them", *tp, starts[tp]
            )
            self._next[tp] = starts[tp]
            self._reader.consumer.seek(tp, starts[tp])

    def _edges(self, question: str) -> dict[TopicPartition, int]:
        ask = getattr(self._reader.consumer, question)
        answer: dict[TopicPartition, int] = self._reader.call(lambda ms: ask(self._lanes, timeout_ms=ms))
        return answer

    def _go_to(self, offsets: dict[TopicPartition, int]) -> None:
        self._next = dict(offsets)
        for tp, offset in offsets.items():
            self._reader.consumer.seek(tp, offset)
