"""Where records come from: a Kafka consumer group (`kafka`), or a recording (`recording`)."""

from collections.abc import Mapping, Set
from typing import Protocol

from streamdet.events import Batch, LaneId, Position


class Source(Protocol):
    """Yields micro-batches in offset order per lane. One catalogue of tests holds for every source."""

    @property
    def exhausted(self) -> bool:
        """True once no record will ever come again; a live topic never is."""

    @property
    def lanes(self) -> Set[LaneId]:
        """The lanes that are this worker's at the moment, as of the last poll."""

    @property
    def leads(self) -> bool:
        """Whether the lane whose owner trains is this worker's: the lowest one that has records."""

    def topic_id(self, topic: str) -> str:
        """What tells a topic from a later one of the same name; empty where nothing does."""

    def poll(self, max_events: int) -> Batch:
        """At most `max_events` records; empty when none came within the configured wait.

        With 0 it brings none, and keeps the place in the group.
        """

    def seek(self, lane: LaneId, offset: int) -> None:
        """Go on reading the lane at this offset."""

    def committed(self, lane: LaneId) -> Position | None:
        """What the group has committed for the lane, None where it has nothing."""

    def lag(self) -> Mapping[LaneId, int]:
        """Records that lie ahead in each lane, as far as that is known."""

    def commit(self, positions: Mapping[LaneId, Position]) -> bool:
        """Make these the positions from which the group goes on after a restart; False if not all of it counted."""

    def close(self) -> None:
        """Leave the group and release what is held; nothing is committed."""
