"""A source slowed down to the speed of the record timestamps, or a multiple of it."""

from collections.abc import Mapping, Set

import numpy as np

from streamdet.clock import Clock
from streamdet.events import Batch, LaneId, Position, Records
from streamdet.source import Source

# Poll returns at least this often, so that a request to stop is seen.
WAIT_MAX_S = 0.1
# Records come in batches of what is due within this time: one by one would cost more than it is worth.
EARLY_MAX_S = 0.01


class PacedSource:
    """Gives the records of another source when they are due; which ones, and their order, stay the same.

    The first record is due at once, and each other one after as long as lies between their timestamps, divided
    by the speed. A record is given `EARLY_MAX_S` early at most, and never before those ahead of it in its lane.

    Args:
        source: gives the records; it should not wait itself.
        speed: stream time per wall-clock time: 1 as it was, 60 a minute per second.
        clock: measures and waits.

    Raises:
        ValueError: the speed is not above 0.
    """

    def __init__(self, source: Source, speed: float, clock: Clock) -> None:
        if not speed > 0:
            raise ValueError(f"speed must be above 0, not {speed}")
        self._source = source
        self._speed = speed
        self._clock = clock
        self._running = False
        self._began_s = 0.0  # by the clock
        self._began_ms = 0  # by the timestamps
        self._held: list[Records] = []  # at most one part per lane, none of them empty

    @property
    def exhausted(self) -> bool:
        """True once every record has been given."""
        return not self._held and self._source.exhausted

    @property
    def lanes(self) -> Set[LaneId]:
        """The lanes of the source below."""
        return self._source.lanes

    @property
    def leads(self) -> bool:
        """As the source below has it."""
        return self._source.leads

    def topic_id(self, topic: str) -> str:
        """As the source below has it."""
        return self._source.topic_id(topic)

    def poll(self, max_events: int) -> Batch:
        """At most `max_events` records that are due; waits `WAIT_MAX_S` at most, and may give none."""
        if max_events == 0:
            return self._source.poll(0)
        if not self._held:
            self._held = [part for part in self._source.poll(max_events).parts if len(part)]
        if not self._held:
            return Batch([])
        first_ms = min(int(part.timestamps_ms[0]) for part in self._held)
        if not self._running:
            self._running, self._began_s, self._began_ms = True, self._clock.monotonic_s(), first_ms
        wait_s = (first_ms - self._stream_ms()) / 1000 / self._speed
        if wait_s > EARLY_MAX_S:
            self._clock.sleep_s(min(wait_s, WAIT_MAX_S))
        return self._due(self._stream_ms() + 1000 * EARLY_MAX_S * self._speed, max_events)

    def seek(self, lane: LaneId, offset: int) -> None:
        """Go on reading the lane at this offset; the others go on where they are."""
        for part in self._held:
            self._source.seek(part.lane, int(part.offsets[0]))
        self._held = []
        self._running = False
        self._source.seek(lane, offset)

    def committed(self, lane: LaneId) -> Position | None:
        """What the source below has committed."""
        return self._source.committed(lane)

    def lag(self) -> Mapping[LaneId, int]:
        """As the source that is paced has it."""
        return self._source.lag()

    def commit(self, positions: Mapping[LaneId, Position]) -> bool:
        """Commit to the source below."""
        return self._source.commit(positions)

    def close(self) -> None:
        """Close the source below."""
        self._held = []
        self._source.close()

    def _stream_ms(self) -> float:
        """Where the stream has come to by now."""
        return self._began_ms + (self._clock.monotonic_s() - self._began_s) * 1000 * self._speed

    def _due(self, until_ms: float, max_events: int) -> Batch:
        due: list[Records] = []
        later: list[Records] = []
        for part in self._held:
            ahead = np.flatnonzero(part.timestamps_ms > until_ms)
            n = min(int(ahead[0]) if len(ahead) else len(part), max_events)
            max_events -= n
            due.append(_cut(part, 0, n))
            later.append(_cut(part, n, len(part)))
        self._held = [part for part in later if len(part)]
        return Batch([part for part in due if len(part)])


def _cut(part: Records, start: int, stop: int) -> Records:
    span = slice(start, stop)
    return Records(
        part.lane,
        part.offsets[span],
        part.timestamps_ms[span],
        part.keys[span],
        part.values[span],
        None if part.order is None else part.order[span],
    )
