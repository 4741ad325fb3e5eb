"""Source, sink and clock in memory, for tests of the worker: each notes what was asked of it, in one journal.

The source behaves as a consumer group does: lanes can be taken away and given back, and after that reading goes on
at the committed offset. The contract tests hold for it as for the real ones.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np

from streamdet.events import Alert, Batch, LaneId, Records, Reject


class SteppingClock:
    """Time that passes only when somebody waits or the test says so."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def now_ms(self) -> int:
        return int(self.now_s * 1000)

    def monotonic_s(self) -> float:
        return self.now_s

    def sleep_s(self, seconds: float) -> None:
        assert seconds > 0
        self.now_s += seconds


class FakeSource:
    """Lanes of given values. `offsets` is what the group has committed; it outlives the source, as Kafka's does.

    Args:
        lanes: values by lane; the offset of a value is its place.
        offsets: what the group has committed; changed by `commit`.
        journal: takes one line for each call that changes anything.
        endless: never exhausted, as a topic is.
        per_poll: records of one poll, at most.
    """

    def __init__(
        self,
        lanes: Mapping[LaneId, Sequence[bytes | None]],
        offsets: dict[LaneId, int] | None = None,
        journal: list[Any] | None = None,
        *,
        endless: bool = False,
        per_poll: int = 1_000_000,
    ) -> None:
        self.stored = dict(lanes)
        self.offsets = {} if offsets is None else offsets
        self.journal = [] if journal is None else journal
        self._endless = endless
        self._per_poll = per_poll
        self._mine = set(self.stored)
        self._next = {lane: self.offsets.get(lane, 0) for lane in self.stored}

    @property
    def exhausted(self) -> bool:
        return not self._endless and all(self._next[ln] >= len(self.stored[ln]) for ln in self._mine)

    @property
    def lanes(self) -> Set[LaneId]:
        return frozenset(self._mine)

    def take_away(self, lane: LaneId) -> None:
        """Another member of the group has the lane from now on."""
        self._mine.remove(lane)

    def give(self, lane: LaneId) -> None:
        """The lane is this worker's, and goes on where the group committed."""
        self._mine.add(lane)
        self._next[lane] = self.offsets.get(lane, 0)

    def poll(self, max_events: int) -> Batch:
        self.journal.append("poll")
        left = min(max_events, self._per_poll)
        parts = []
        for lane in sorted(self._mine):
            start = self._next[lane]
            values = self.stored[lane][start : start + left]
            if values:
                offsets = np.arange(start, start + len(values), dtype=np.int64)
                keys = [b"%d" % offset for offset in offsets.tolist()]
                parts.append(Records(lane, offsets, 1_700_000_000_000 + 1_000 * offsets, keys, list(values)))
                self._next[lane] = start + len(values)
                left -= len(values)
        return Batch(parts)

    def seek(self, lane: LaneId, offset: int) -> None:
        self.journal.append(("seek", lane, offset))
        self._next[lane] = offset

    def committed(self, lane: LaneId) -> int | None:
        return self.offsets.get(lane)

    def commit(self, offsets: Mapping[LaneId, int]) -> None:
        self.journal.append(("commit", dict(offsets)))
        self.offsets.update(offsets)

    def close(self) -> None:
        self.journal.append("close source")


class FakeSink:
    """Keeps what arrived; hands over on `flush`, which can be told to fail."""

    def __init__(self, journal: list[Any] | None = None) -> None:
        self.journal = [] if journal is None else journal
        self.alerts: list[Alert] = []
        self.rejects: list[Reject] = []
        self.flush_error: Exception | None = None
        self._handed: list[tuple[Sequence[Alert], Sequence[Reject]]] = []

    @property
    def ids(self) -> list[str]:
        """Of the alerts that arrived."""
        return [alert.id for alert in self.alerts]

    def publish(self, alerts: Sequence[Alert], rejects: Sequence[Reject]) -> None:
        self.journal.append("publish")
        self._handed.append((list(alerts), list(rejects)))

    def flush(self) -> None:
        self.journal.append("flush")
        if self.flush_error is not None:
            raise self.flush_error
        for alerts, rejects in self._handed:
            self.alerts += alerts
            self.rejects += rejects
        self._handed = []

    def close(self) -> None:
        self.journal.append("close sink")
