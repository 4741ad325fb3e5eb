"""Publish, then commit.

Guarantees: alerts and dead letters have arrived before the offsets behind them are committed, so none is lost. Not
guaranteed: that they come only once; what was published after the last commit comes again after a crash, with the
same ids.
"""

import math
from collections import Counter
from collections.abc import Collection, Sequence

from streamdet.clock import Clock
from streamdet.config import Commit
from streamdet.events import Alert, LaneId, Position, Reject
from streamdet.sink import Sink
from streamdet.source import Source


class AtLeastOnce:
    """A `Delivery` into any sink; also that of a replay, whose source has nothing to commit.

    Alerts are visible once they are flushed, so commits go at the pace of offsets alone.
    """

    def __init__(self, pace: Commit, source: Source, sink: Sink, clock: Clock) -> None:
        self._every_s = pace.offsets_every_ms / 1000
        self._every_records = pace.every_events
        self._source = source
        self._sink = sink
        self._clock = clock
        self._positions: dict[LaneId, Position] = {}
        self._records: Counter[LaneId] = Counter()
        self._flushed = True
        self._committed_at_s = -math.inf
        self.final = 0
        self.records_final = 0
        self.outcomes: Counter[str] = Counter()

    @property
    def full(self) -> bool:
        """Never: whatever is handed over is flushed at once."""
        return False

    def hold(
        self,
        lane: LaneId,
        alerts: Sequence[Alert],
        rejects: Sequence[Reject],
        position: Position,
        records: int,
    ) -> None:
        """Hand over what is to be told; it is flushed at the end of the turn."""
        if alerts or rejects:
            self._sink.publish(alerts, rejects)
            self._flushed = False
        self._positions[lane] = position
        self._records[lane] += records

    def turn(self) -> None:
        """Flush; then commit if that is due, as it costs a round trip."""
        self._flush()
        waited = self._clock.monotonic_s() - self._committed_at_s >= self._every_s
        if self._positions and (waited or self._records.total() >= self._every_records):
            self._commit()

    def commit(self) -> int | None:
        """Flush and commit, now; None if the commit did not count."""
        self._flush()
        if self._positions:
            self._commit()
        return None if self._positions else self.final

    def drop(self, lanes: Collection[LaneId]) -> None:
        """Leave the offsets of these lanes to their new owners."""
        for lane in lanes:
            self._positions.pop(lane, None)
            self._records.pop(lane, None)

    def close(self) -> None:
        """Release the sink."""
        self._sink.close()

    def _flush(self) -> None:
        if not self._flushed:
            self._sink.flush()
            self._flushed = True

    def _commit(self) -> None:
        self._committed_at_s = self._clock.monotonic_s()
        if not self._source.commit(self._positions):
            # It came amid a rebalance. What is still this worker's is committed after it; the rest will be dropped.
            self.outcomes["dropped"] += 1
            return
        self._positions = {}
        self.records_final += self._records.total()
        self._records.clear()
        self.final += 1
        self.outcomes["committed"] += 1
