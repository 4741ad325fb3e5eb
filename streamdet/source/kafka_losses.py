"""What it means that Kafka no longer has the records at a position, and where reading goes on."""

import logging
from collections import Counter
from typing import Literal

from streamdet.errors import BrokerError
from streamdet.events import LaneId

log = logging.getLogger(__name__)


class Losses:
    """Tells records that are gone unread from such as had been read, and keeps count of the former.

    Args:
        policy: whether to go on or to fail where records are gone that nobody has read.

    `counts` has, by lane, how many are gone: by offset, so that compacted records and marks of transactions count too.
    """

    def __init__(self, policy: Literal["earliest", "fail"]) -> None:
        self.counts: Counter[LaneId] = Counter()
        self._policy = policy

    def settle(self, lane: LaneId, wanted: int, committed: int | None, first: int) -> int:
        """Where a lane goes on whose records begin at `first`, when it is to be read from `wanted`.

        A position below the committed offset is that of a checkpoint: what lies between was judged before.

        Raises:
            BrokerError: records are gone that nobody has read, and that is not allowed.
        """
        unread = wanted if committed is None else max(wanted, committed)
        lost = first - unread
        if lost > 0:
            self.counts[lane] += lost
            self._tell_lost(lane, unread, first, lost)
        elif first > wanted:
            log.warning(
                "state is behind lane=%s wanted_offset=%d continues_at=%d misses=%d: retention deleted records that "
                "were judged before but that the checkpoint has not seen; nothing unread is gone",
                lane,
                wanted,
                first,
                first - wanted,
            )
        return max(first, wanted)

    def _tell_lost(self, lane: LaneId, unread: int, first: int, lost: int) -> None:
        if self._policy == "fail":
            raise BrokerError(
                f"{lost} records of {lane} are gone before they were read: expected them from offset {unread}, the "
                f"first that Kafka still has is {first}; raise the topic's retention.ms (or retention.bytes), and set "
                "input.lost_records to earliest to go on without them"
            )
        log.error(
            "records lost lane=%s wanted_offset=%d continues_at=%d lost=%d: retention deleted them before they were "
            "read; raise the topic's retention.ms",
            lane,
            unread,
            first,
            lost,
        )

    def cut_back(self, lane: LaneId, end: int) -> None:
        """Tell that a lane was cut back to `end`: a broker without its newest records leads it.

        Raises:
            BrokerError: unread records may be gone too, and that is not allowed.
        """
        if self._policy == "fail":
            raise BrokerError(
                f"{lane} was cut back to offset {end}, before what had been read of it: its leader failed and a broker "
                "without the newest records took over (unclean.leader.election.enable); records that nobody has "
                "read may be gone too; set input.lost_records to earliest to go on"
            )
        log.error(
            "lane was cut back lane=%s continues_at=%d: a broker without its newest records leads it now "
            "(unclean.leader.election.enable); unread records may be gone too",
            lane,
            end,
        )
