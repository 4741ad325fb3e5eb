"""Where reading begins, and where it goes on when Kafka no longer has what lies at a position.

Records go by retention, by an unclean leader election, or with a topic that is deleted and made anew. Reading goes on
whatever `start` says at the first record that is there, so that none is passed over.
"""

import logging
from collections.abc import Mapping, Set
from typing import Final

from kafka import OffsetAndMetadata
from kafka.structs import TopicPartition

from streamdet.broker.reader import Reader
from streamdet.config import Input
from streamdet.events import LaneId
from streamdet.source.kafka_group import Group
from streamdet.source.kafka_losses import Losses

log = logging.getLogger(__name__)

# A topic that is made anew is nearly always noticed at once, as reading from it fails in between. Where nothing was
# read just then, its metadata alone tell: they are asked for at least this often.
METADATA_MAX_AGE_MS: Final = 5_000
# So long is asked where a lane begins or ends. A topic that is just being deleted has no answer, and whoever waits for
# it does not poll, and never learns that it is gone; so the question comes again after the next poll.
EDGE_MS: Final = 3_000


class Positions:
    """Settles the positions of a group's lanes; what cannot be settled now, the next poll asks for again.

    Args:
        reader: reads the topics.
        group: has the lanes.
        given: topics, where to start, and what to do about lost records.
    """

    def __init__(self, reader: Reader, group: Group, given: Input) -> None:
        self.losses = Losses(given.lost_records)
        self._reader = reader
        self._consumer = reader.consumer
        self._group = group
        self._latest = given.start == "latest"
        self._topic_ids = {topic: reader.topic_id(topic) for topic in given.topics}

    def topic_id(self, topic: str) -> str:
        """Of the topic as it is being read."""
        return self._topic_ids[topic]

    def begin(self, partitions: Set[TopicPartition]) -> None:
        """Start where the settings say, as the group has committed nothing yet."""
        starts = self._edge(partitions, at_end=self._latest)
        for tp, offset in starts.items():
            log.info(
                "lane starts lane=%s start=%s offset=%d",
                LaneId(*tp),
                "latest" if self._latest else "earliest",
                offset,
            )
            self._consumer.seek(tp, offset)
        if self._latest:
            # Else a worker that dies before its first commit would begin at a later end, and lose what lies between.
            self._group.commit_at(starts)

    def resume(self, positions: Mapping[TopicPartition, int]) -> None:
        """Go on where Kafka has no records at these positions."""
        ends = self._edge(positions.keys(), at_end=True)
        for tp, first in self._edge(ends.keys(), at_end=False).items():
            lane, wanted = LaneId(*tp), positions[tp]
            if wanted > ends[tp]:
                self._start_over(
                    tp, first, f"it ends at {ends[tp]}, before {wanted}, where it was to be read"
                )
            else:
                committed = self._group.committed_offsets.get(lane)
                self._consumer.seek(tp, self.losses.settle(lane, wanted, committed, first))

    def cut_back(self, divergent: Mapping[TopicPartition, OffsetAndMetadata | None]) -> None:
        """Go on where the records of a new leader, elected uncleanly, depart from those that were read."""
        for tp, first in self._edge(divergent.keys(), at_end=False).items():
            at = divergent[tp]
            offset = first if at is None else max(first, at.offset)
            self.losses.cut_back(LaneId(*tp), offset)
            self._group.give_anew(tp, offset)

    def follow_topics(self) -> Set[str]:
        """Start over with the topics that were made anew since the last time; gives these.

        Kafka is asked for records by the topic's name, and gives those of the new one as if nothing had happened.
        """
        anew = set()
        for topic, known in self._topic_ids.items():
            found = self._reader.topic_id(topic)
            if found and found != known:
                mine = {tp for tp in self._consumer.assignment() if tp.topic == topic}
                firsts = self._edge(mine, at_end=False)
                if firsts.keys() != mine:
                    continue
                anew.add(topic)
                self._topic_ids[topic] = found
                for tp, first in firsts.items():
                    self._start_over(tp, first, f"its id was {known} and is {found}")
        return anew

    def _start_over(self, tp: TopicPartition, first: int, why: str) -> None:
        log.warning("topic was made anew lane=%s continues_at=%d reason=%s", LaneId(*tp), first, why)
        self._group.give_anew(tp, first)

    def _edge(self, partitions: Set[TopicPartition], *, at_end: bool) -> dict[TopicPartition, int]:
        """Where those of the partitions that are still assigned begin, or end; of none if Kafka does not answer."""
        mine = list(partitions & self._consumer.assignment())
        if not mine:
            return {}
        ask = self._consumer.end_offsets if at_end else self._consumer.beginning_offsets
        return self._reader.once(lambda ms: ask(mine, timeout_ms=ms), EDGE_MS) or {}
