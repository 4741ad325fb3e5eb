"""A worker's membership in its consumer group: its lanes, when they change hands, and what is committed for them."""

import logging
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Final

from kafka import OffsetAndMetadata, errors
from kafka.structs import MemberState, TopicPartition

from streamdet.broker.membership import share_out_again
from streamdet.broker.reader import Reader, Revocations
from streamdet.events import LaneId, Position

log = logging.getLogger(__name__)

# The group has moved on without this worker: the records will be judged again by whoever has the lane now.
REBALANCED_ERRORS: Final = (
    errors.CommitFailedError,
    errors.IllegalGenerationError,
    errors.RebalanceInProgressError,
    errors.UnknownMemberIdError,
)


class Group:
    """The group as this member of it sees it; joins with the first poll of the reader.

    `lanes` are the member's as of the last `update`; `committed_offsets` is what is committed for them as far as it was
    asked for or told.
    """

    def __init__(self, reader: Reader, topics: Sequence[str]) -> None:
        self.lanes: frozenset[LaneId] = frozenset()
        self.committed_offsets: dict[LaneId, int] = {}
        self._reader = reader
        self._consumer = reader.consumer
        self._revoked = Revocations()
        self._joined = self._consumer.group_metadata()  # as of the last update that found the group settled
        self._consumer.subscribe(list(topics), listener=self._revoked)

    def update(self) -> bool:
        """Take over the assignment; lanes that changed hands and are here again are left out until the next update."""
        lost = self._revoked.take() | self._rejoined()
        assigned = self._consumer.assignment()
        if not lost and assigned == self.lanes:  # both are sets of (topic, partition)
            return False
        before, self.lanes = self.lanes, frozenset(LaneId(*tp) for tp in assigned - lost)
        for lane in before - self.lanes:
            self.committed_offsets.pop(lane, None)
        gained, gone = names(self.lanes - before), names(before - self.lanes)
        log.info("lanes changed gained=%s lost=%s count=%d", gained, gone, len(self.lanes))
        return True

    def _rejoined(self) -> Set[TopicPartition]:
        """Note the membership; all lanes that are here, if it is another one than before.

        A member that was expelled is somebody else when it is back, and others had its lanes meanwhile. kafka-python
        calls them revoked only if it knew that it was expelled before it began to join again.
        """
        joined, before = self._consumer.group_metadata(), self._joined
        if joined.state != MemberState.STABLE:
            return frozenset()
        self._joined = joined
        if before.member_id == "" and joined.group_instance_id is not None:
            share_out_again(self._consumer)
        expelled = before.member_id not in ("", joined.member_id)
        return frozenset(self._consumer.assignment()) if expelled else frozenset()

    def give_anew(self, tp: TopicPartition, offset: int) -> None:
        """Take a lane away and give it back at this offset: what is kept for it belongs to records that are no more."""
        self._revoked.on_partitions_revoked({tp})
        self._consumer.seek(tp, offset)
        self.commit_at({tp: offset})

    def mine(self) -> frozenset[LaneId]:
        """The lanes that are this worker's without a break since the last update."""
        here = self._consumer.assignment() - self._revoked.seen()
        return frozenset(lane for lane in self.lanes if lane in here)

    def membership(self, lanes: Iterable[LaneId]) -> tuple[Any, frozenset[LaneId]]:
        """What a transaction takes to commit offsets as this member, and which of the lanes are still this worker's.

        None and no lanes amid a rebalance: a commit would most likely come too late.

        The metadata are those of the last update that found the group settled, and only then are the lanes looked at:
        what was revoked up to that generation is left out. A lane that is revoked later comes to another worker in a
        later generation, and by then Kafka refuses a commit with metadata of the older one. kafka-python's own
        metadata of this moment would not do: they are of the next generation as soon as Kafka's answer is there, while
        what that generation takes away is noted by the next poll.
        """
        if self._consumer.group_metadata().state != MemberState.STABLE:
            return None, frozenset()
        return self._joined, self.mine().intersection(lanes)

    def committed(self, lane: LaneId) -> Position | None:
        """What is committed for the lane, None where nothing is; waits for Kafka."""
        tp = TopicPartition(*lane)
        found = self._reader.call(lambda ms: self._consumer.committed(tp, metadata=True, timeout_ms=ms))
        if found is None:
            return None
        self.committed_offsets[lane] = found.offset
        return Position(found.offset, found.metadata or "")

    def commit(self, positions: Mapping[LaneId, Position]) -> bool:
        """Commit what is of this worker's lanes; waits for Kafka, and is dropped if it comes after a rebalance.

        False if a lane was left out, or all of it dropped.
        """
        # Kafka would take an offset for any lane from any member of the group, and set back whoever has it now.
        gone = positions.keys() - self.mine()
        if gone:
            log.info("commit dropped lanes=%s reason=no longer this worker's", names(gone))
        kept = {lane: at for lane, at in positions.items() if lane not in gone}
        counted = self._commit(
            {TopicPartition(*ln): OffsetAndMetadata(at.offset, at.note, -1) for ln, at in kept.items()}
        )
        return counted and not gone

    def commit_at(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit offsets of partitions that are assigned, though perhaps not yet, or no longer, lanes."""
        self._commit({tp: OffsetAndMetadata(offset, "", -1) for tp, offset in offsets.items()})

    def _commit(self, told: Mapping[TopicPartition, OffsetAndMetadata]) -> bool:
        if not told:
            return True
        try:
            self._reader.call(lambda ms: self._try_commit(told, ms))
        except _RebalancedError as error:
            log.info("commit dropped lanes=%s reason=%s", names(LaneId(*tp) for tp in told), error)
            return False
        self.committed_offsets |= {LaneId(*tp): at.offset for tp, at in told.items()}
        return True

    def _try_commit(self, told: Mapping[TopicPartition, OffsetAndMetadata], timeout_ms: int) -> None:
        try:
            self._consumer.commit(told, timeout_ms=timeout_ms)
        except REBALANCED_ERRORS as error:
            raise _RebalancedError(str(error)) from error
        except errors.FencedInstanceIdError as error:
            self._reader.name_lost(error)
            raise _RebalancedError(str(error)) from error


class _RebalancedError(Exception):
    """A commit came too late; not an error of Kafka's that waiting would mend."""


def names(lanes: Iterable[LaneId]) -> str:
    """Lanes for the log."""
    return ",".join(sorted(map(str, lanes))) or "-"
