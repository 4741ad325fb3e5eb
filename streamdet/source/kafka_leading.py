"""Who trains: the owner of the lowest lane that has ever had a record. Kafka's assignment elects it."""

import math
from collections.abc import Collection, Mapping, Set
from typing import Final

from kafka.structs import TopicPartition

from streamdet.broker.reader import Reader
from streamdet.clock import Clock
from streamdet.events import LaneId

# An empty lane that gets its first record moves the lead; until all workers have seen it, two of them train, or none.
ASK_EVERY_S: Final = 10.0
# Records wait for the answer.
ASK_MS: Final = 500


class Leading:
    """Keeps the lowest lane that has ever had a record; while none has, the lowest of all.

    A lane that had a record never becomes empty again, so only lower ones are asked about. Without an answer the last
    one holds.

    Args:
        reader: asks.
        clock: paces the questions.
        ends: where each lane of the topics ends.
    """

    def __init__(self, reader: Reader, clock: Clock, ends: Mapping[TopicPartition, int]) -> None:
        self._reader = reader
        self._clock = clock
        self._known = set(ends)
        self._topics = {tp.topic for tp in ends}
        self._first = _lowest_used(ends)
        self._asked_s = -math.inf

    def among(self, lanes: Set[LaneId]) -> bool:
        """Whether the lane is one of these."""
        lowest = min(self._known) if self._first is None else self._first
        return LaneId(*lowest) in lanes

    def look(self, *, at_once: bool) -> None:
        """Ask whether a lower lane has had a record meanwhile; `at_once`, not only every ten seconds."""
        now_s = self._clock.monotonic_s()
        if not at_once and now_s - self._asked_s < ASK_EVERY_S:
            return
        self._asked_s = now_s
        self._know({tp for topic in self._topics for tp in self._reader.partitions(topic)})
        below = [tp for tp in self._known if self._first is None or tp < self._first]
        if below:
            self._first = _lowest_used(self._ends(below)) or self._first

    def _know(self, partitions: set[TopicPartition]) -> None:
        """Take over what there is at present: topics get more partitions, and some are deleted for good."""
        if partitions:
            self._known = partitions
        if self._first not in self._known:
            self._first = None

    def forget(self, topics: Collection[str]) -> None:
        """These were made anew: their lanes are empty, as far as is known."""
        if self._first is not None and self._first.topic in topics:
            self._first = None

    def _ends(self, partitions: list[TopicPartition]) -> Mapping[TopicPartition, int]:
        end_offsets = self._reader.consumer.end_offsets
        return self._reader.once(lambda ms: end_offsets(partitions, timeout_ms=ms), ASK_MS) or {}


def _lowest_used(ends: Mapping[TopicPartition, int]) -> TopicPartition | None:
    return min((tp for tp, end in ends.items() if end > 0), default=None)
