"""Where records come from: a Kafka consumer group (`kafka`), or a recording (`recording`)."""

from collections.abc import Mapping, Set
from typing import Protocol

from streamdet.events import Batch, LaneId


class Source(Protocol):
    """Yields micro-batches in offset order per lane. One catalogue of tests holds for every source."""

    @property
    def exhausted(self) -> bool:
        """True once no record will ever come again; a live topic never is."""

    @property
    def lanes(self) -> Set[LaneId]:
        """The lanes that are this worker's at the moment, as of the last poll."""

    def poll(self, max_events: int) -> Batch:
        """At most `max_events` records; empty when none came within the configured wait."""

    def seek(self, lane: LaneId, offset: int) -> None:
        """Go on reading the lane at this offset."""

    def committed(self, lane: LaneId) -> int | None:
        """The offset that the group has committed for the lane, None where it has none."""

    def lag(self) -> Mapping[LaneId, int]:
        """Records that lie ahead in each lane, as far as that is known."""

    def commit(self, offsets: Mapping[LaneId, int]) -> None:
        """Make these the offsets from which the group goes on after a restart."""

    def close(self) -> None:
        """Leave the group and release what is held; nothing is committed."""
