"""Pacing: records come when they are due, and are the same ones."""

from pathlib import Path

import pytest

from streamdet.events import LaneId, Position
from streamdet.sink.recording import RecordingWriter
from streamdet.source.formats import ROW_LANE
from streamdet.source.paced import EARLY_MAX_S, WAIT_MAX_S, PacedSource
from streamdet.source.recording import RecordingSource


class StillClock:
    """A clock that moves only when it is told to wait."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def now_ms(self) -> int:
        return int(self.now_s * 1000)

    def monotonic_s(self) -> float:
        return self.now_s

    def sleep_s(self, seconds: float) -> None:
        assert 0 < seconds <= WAIT_MAX_S
        self.now_s += seconds


def rows_source(folder: Path, n: int) -> RecordingSource:
    path = folder / "rows.csv"
    path.write_text("a\n" + "".join(f"{i}\n" for i in range(n)))
    return RecordingSource([path])


def drain(source: PacedSource) -> dict[LaneId, list[int]]:
    offsets: dict[LaneId, list[int]] = {}
    while not source.exhausted:
        for part in source.poll(1000).parts:
            offsets.setdefault(part.lane, []).extend(part.offsets.tolist())
    return offsets


@pytest.mark.parametrize("speed", [0.5, 1.0, 20.0])
def test_rows_come_a_second_apart_times_the_speed(tmp_path: Path, speed: float) -> None:
    clock = StillClock()
    source = PacedSource(rows_source(tmp_path, 10), speed, clock)
    arrivals: dict[int, float] = {}
    while not source.exhausted:
        for part in source.poll(100).parts:
            arrivals |= dict.fromkeys(part.offsets.tolist(), clock.now_s - 100)
    assert list(arrivals) == list(range(10))
    for offset, after_s in arrivals.items():
        assert -1e-6 <= offset / speed - after_s <= EARLY_MAX_S + 1e-6


def test_at_great_speed_batches_are_full(tmp_path: Path) -> None:
    source = PacedSource(rows_source(tmp_path, 500), 1e9, StillClock())
    assert len(source.poll(400)) == 400
    assert len(source.poll(400)) == 100


def test_no_more_is_given_than_there_is_room_for(tmp_path: Path) -> None:
    clock = StillClock()
    source = PacedSource(rows_source(tmp_path, 100), 1.0, clock)
    source.poll(50)
    clock.now_s += 1000
    assert [len(source.poll(20)) for _ in range(3)] == [20, 20, 9]


def test_seeking_loses_nothing_that_was_held_back(tmp_path: Path) -> None:
    path = tmp_path / "two"
    with RecordingWriter(path) as writer:
        for i in range(20):
            writer.write("t", 0, i, 1000 * i, None, b"a")
            writer.write("t", 1, i, 1000 * i, None, b"b")
    source = PacedSource(RecordingSource([path]), 1000.0, StillClock())
    first = source.poll(30)
    assert 0 < len(first) < 30
    one, two = LaneId("t", 0), LaneId("t", 1)
    went_to = first.next_offsets[two]
    source.seek(one, 5)
    assert drain(source) == {one: list(range(5, 20)), two: list(range(went_to, 20))}


def test_the_rest_is_the_source_s_own(tmp_path: Path) -> None:
    source = PacedSource(rows_source(tmp_path, 2), 1.0, StillClock())
    assert source.lanes == {ROW_LANE}
    source.commit({ROW_LANE: Position(1)})
    assert source.committed(ROW_LANE) == Position(1)
    source.poll(1)
    source.close()
    assert source.exhausted
    assert not len(source.poll(1))


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan")])
def test_a_speed_of_nothing_is_refused(tmp_path: Path, speed: float) -> None:
    with pytest.raises(ValueError, match="speed must be above 0"):
        PacedSource(rows_source(tmp_path, 2), speed, StillClock())
