"""How what was judged becomes final: alerts and dead letters out, offsets committed, so that nothing is lost.

`at_least_once` publishes, then commits; `exactly_once` does both in one transaction of Kafka's.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from streamdet.events import Alert, LaneId, Position, Reject


class Delivery(Protocol):
    """Takes what was judged, lane by lane in order, and makes it final at its own pace."""

    @property
    def full(self) -> bool:
        """Whether so much is held that no more should be judged before some of it is final."""

    @property
    def final(self) -> int:
        """The number of the newest commit that counted; see `commit`."""

    @property
    def records_final(self) -> int:
        """Records whose outcome is final, since the start: over all workers of a group, each record counts once."""

    @property
    def outcomes(self) -> Mapping[str, int]:
        """How often each outcome of a commit came about, since the start."""

    def hold(
        self,
        lane: LaneId,
        alerts: Sequence[Alert],
        rejects: Sequence[Reject],
        position: Position,
        records: int,
    ) -> None:
        """Take what a batch gave in a lane, where the lane goes on after it, and of how many records it was."""

    def turn(self) -> None:
        """Commit if it is due, and see to what is under way; called after every batch, empty ones too."""

    def commit(self) -> int | None:
        """Begin to make all that is held final, due or not; None while that cannot be begun.

        That is so while an earlier commit is under way, or a lane is lost of which nothing was said by `drop`. Once
        `final` has reached the number that this returns, all that was held is final, but for lanes dropped meanwhile.
        """

    def drop(self, lanes: Collection[LaneId]) -> None:
        """Forget what is held of lanes that are another worker's now: it judges those records again."""

    def close(self) -> None:
        """Release what is held; what is not final may be lost here, and is judged again after a restart."""
