"""A recording as a source: order, offsets, seeking, several files."""

import datetime as dt
import decimal
import tracemalloc
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamdet.errors import RecordingError
from streamdet.events import LaneId, Position
from streamdet.sink.recording import RecordingWriter
from streamdet.source import Source
from streamdet.source.formats import ROW_LANE
from streamdet.source.recording import RecordingSource

Given = list[tuple[LaneId, int, bytes | None]]


def drain(source: Source, max_events: int = 1000, polls_max: int = 100_000) -> Given:
    """Everything that is left in the source; order across lanes is kept from poll to poll only."""
    given: Given = []
    for _ in range(polls_max):
        if source.exhausted:
            return given
        for part in source.poll(max_events).parts:
            given += zip([part.lane] * len(part), part.offsets.tolist(), part.values, strict=True)
    raise AssertionError("the source does not come to an end")


def rows_file(folder: Path, name: str, first: int, n: int) -> Path:
    path = folder / name
    path.write_text("a\n" + "".join(f"{i}\n" for i in range(first, first + n)))
    return path


@pytest.fixture
def lanes_file(tmp_path: Path) -> Path:
    """Two lanes in turn: offsets 10, 12, ... of a topic's partition 0, and 100, 101, ... of partition 1."""
    path = tmp_path / "two.recording"
    with RecordingWriter(path) as writer:
        for i in range(50):
            writer.write("t", 0, 10 + 2 * i, 1000 + i, None, b"a%d" % i)
            writer.write("t", 1, 100 + i, 2000 + i, b"k", b"b%d" % i)
    return path


def test_files_are_one_stream_with_offsets_counting_on(tmp_path: Path) -> None:
    source = RecordingSource([rows_file(tmp_path, "1.csv", 0, 3), rows_file(tmp_path, "2.csv", 3, 2)])
    batch = source.poll(100)
    (part,) = batch.parts
    assert part.lane == ROW_LANE
    assert part.offsets.tolist() == [0, 1, 2, 3, 4]
    assert part.values == [b"0", b"1", b"2", b"3", b"4"]
    assert part.keys == [None] * 5
    assert source.exhausted
    assert not len(source.poll(100))


def test_rows_are_a_second_apart_from_2000(tmp_path: Path) -> None:
    (part,) = RecordingSource([rows_file(tmp_path, "1.csv", 0, 3)]).poll(3).parts
    start_ms = int(dt.datetime(2000, 1, 1, tzinfo=dt.UTC).timestamp() * 1000)
    assert part.timestamps_ms.tolist() == [start_ms, start_ms + 1000, start_ms + 2000]


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=40), bound=st.integers(1, 40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_stream_does_not_depend_on_batch_sizes(tmp_path: Path, sizes: list[int], bound: int) -> None:
    source = RecordingSource([rows_file(tmp_path, "1.csv", 0, 200)], batch_max_events=bound)
    values: list[bytes | None] = []
    for size in sizes:
        batch = source.poll(size)
        assert len(batch) == min(size, bound, 200 - len(values))
        values += [value for part in batch.parts for value in part.values]
    values += [value for _, _, value in drain(source)]
    assert values == [b"%d" % i for i in range(200)]


def test_nothing_is_polled_where_there_is_no_room(tmp_path: Path) -> None:
    source = RecordingSource([rows_file(tmp_path, "1.csv", 0, 3)])
    assert not len(source.poll(0))
    assert len(source.poll(3)) == 3


@given(moves=st.lists(st.tuples(st.integers(0, 210), st.integers(0, 50)), max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_reading_goes_on_where_it_was_sent(tmp_path: Path, moves: list[tuple[int, int]]) -> None:
    files = [rows_file(tmp_path, "1.csv", 0, 120), rows_file(tmp_path, "2.csv", 120, 80)]
    source = RecordingSource(files)
    for offset, n in moves:
        source.seek(ROW_LANE, offset)
        assert source.exhausted == (offset >= 200)
        got = [value for part in source.poll(n).parts for value in part.values]
        assert got == [b"%d" % i for i in range(offset, min(offset + n, 200))]


def test_lanes_of_a_lossless_recording_keep_their_coordinates(lanes_file: Path) -> None:
    source = RecordingSource([lanes_file])
    one, two = LaneId("t", 0), LaneId("t", 1)
    assert source.lanes == {one, two}
    assert source.format == "json"
    batch = source.poll(7)  # arrival order: four of the one lane, three of the other
    assert batch.next_offsets == {one: 17, two: 103}
    parts = {part.lane: part for part in batch.parts}
    assert parts[one].timestamps_ms.tolist() == [1000, 1001, 1002, 1003]
    assert parts[two].values == [b"b0", b"b1", b"b2"]
    assert parts[two].keys == [b"k"] * 3
    rest = drain(source)
    assert len(rest) == 93


def test_seeking_one_lane_leaves_the_other_where_it_is(lanes_file: Path) -> None:
    source = RecordingSource([lanes_file])
    one, two = LaneId("t", 0), LaneId("t", 1)
    source.poll(40)
    source.seek(one, 15)  # back, into a gap between offsets
    source.seek(two, 140)  # forth
    given = drain(source)
    assert [offset for lane, offset, _ in given if lane == one] == list(range(16, 110, 2))
    assert [offset for lane, offset, _ in given if lane == two] == list(range(140, 150))


def test_seeking_past_the_end_of_every_lane_exhausts(lanes_file: Path) -> None:
    source = RecordingSource([lanes_file])
    exhausted = []
    for partition in (0, 1):
        source.seek(LaneId("t", partition), 1000)
        exhausted.append(source.exhausted)
    assert exhausted == [False, True]
    source.seek(LaneId("t", 1), 149)
    assert drain(source) == [(LaneId("t", 1), 149, b"b49")]


def test_seeking_an_unknown_lane_is_refused(lanes_file: Path) -> None:
    with pytest.raises(RecordingError, match=r"x/3 is not in the recording.*t/0"):
        RecordingSource([lanes_file]).seek(LaneId("x", 3), 0)


def write_lane(path: Path, first: int, after: int) -> Path:
    with RecordingWriter(path) as writer:
        for i in range(first, after):
            writer.write("t", 0, i, i, None, b"%d" % i)
    return path


def test_overlapping_recordings_give_every_record_once(tmp_path: Path) -> None:
    files = [write_lane(tmp_path / "1", 0, 20), write_lane(tmp_path / "2", 15, 30)]
    for size in (1, 7, 100):
        assert [offset for _, offset, _ in drain(RecordingSource(files), size)] == list(range(30))


def test_recordings_in_the_wrong_order_are_refused(tmp_path: Path) -> None:
    files = [write_lane(tmp_path / "1", 15, 30), write_lane(tmp_path / "2", 0, 20)]
    with pytest.raises(RecordingError, match="oldest first"):
        RecordingSource(files)


def test_commits_are_remembered(tmp_path: Path) -> None:
    source = RecordingSource([rows_file(tmp_path, "1.csv", 0, 3)])
    assert source.committed(ROW_LANE) is None
    source.commit({ROW_LANE: Position(2, "a note")})
    assert source.committed(ROW_LANE) == Position(2, "a note")


def test_peeking_reads_nothing_away(tmp_path: Path) -> None:
    source = RecordingSource([rows_file(tmp_path, "1.csv", 0, 3), rows_file(tmp_path, "2.csv", 3, 3)])
    source.poll(2)
    assert source.peek(4) == [b"0", b"1", b"2", b"3"]
    assert len(source.peek(100)) == 6
    assert [value for _, _, value in drain(source)] == [b"2", b"3", b"4", b"5"]


def test_a_closed_source_is_exhausted(tmp_path: Path) -> None:
    source = RecordingSource([rows_file(tmp_path, "1.csv", 0, 3)])
    source.close()
    assert source.exhausted
    assert not len(source.poll(1))


def test_progress_goes_from_nothing_to_all(tmp_path: Path) -> None:
    files = [rows_file(tmp_path, "1.csv", 0, 200_000), rows_file(tmp_path, "2.csv", 0, 10)]
    source = RecordingSource(files)
    total = sum(path.stat().st_size for path in files)
    seen = [source.progress[0]]
    while not source.exhausted:
        source.poll(4096)
        seen.append(source.progress[0])
    assert seen == sorted(seen)
    assert 0 < seen[0] < total / 2
    assert source.progress == (total, total)


def test_parquet_rows_are_json_objects(tmp_path: Path) -> None:
    table = pa.table(
        {
            "ts": pa.array([1_700_000_000_123_456_789, None], pa.timestamp("ns", "UTC")),
            "local": pa.array([0, None], pa.timestamp("ms", "Europe/Paris")),
            "naive": pa.array([1, None], pa.timestamp("s")),
            "number": pa.array([1.5, float("nan")]),
            "price": pa.array([decimal.Decimal("1.20"), None]),
            "raw": [b"ab", None],
            "day": [dt.date(2020, 1, 1), None],
            "site": pa.array(["x", "y"]).dictionary_encode(),
            "clock": pa.array([1001, None], pa.time64("ns")),
        }
    )
    path = tmp_path / "t.parquet"
    pq.write_table(table, path)
    source = RecordingSource([path])
    assert source.format == "json"
    first, second = [msgspec.json.decode(value or b"") for _, _, value in drain(source)]
    assert first == {
        "ts": "2023-11-14T22:13:20.123456Z",
        "local": "1970-01-01T00:00:00.000000Z",
        "naive": "1970-01-01T00:00:01.000000",
        "number": 1.5,
        "price": 1.2,
        "raw": "YWI=",
        "day": "2020-01-01",
        "site": "x",
        "clock": "00:00:00.000001",
    }
    assert second == dict.fromkeys(first) | {"site": "y"}


@pytest.mark.parametrize("where", [20, -40])
def test_a_damaged_parquet_file_is_refused(tmp_path: Path, where: int) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": np.arange(1000)}), path)
    content = bytearray(path.read_bytes())
    content[where : where + 30] = b"\xff" * 30
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=r"t\.parquet"):
        drain(RecordingSource([path]))


def test_an_empty_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": np.arange(0)}), path)
    with pytest.raises(RecordingError, match="no rows"):
        RecordingSource([path])


def test_parquet_is_recognised_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    pq.write_table(pa.table({"a": [1]}), path)
    assert drain(RecordingSource([path])) == [(ROW_LANE, 0, b'{"a":1}')]


def test_different_headers_are_refused_with_both_names(tmp_path: Path) -> None:
    one, two = tmp_path / "1.csv", tmp_path / "2.csv"
    one.write_text("a,b\n1,2\n")
    two.write_text("b,a\n1,2\n")
    with pytest.raises(RecordingError) as caught:
        RecordingSource([one, two])
    assert str(one) in str(caught.value)
    assert str(two) in str(caught.value)


def test_different_kinds_are_refused_but_json_and_parquet_go_together(
    tmp_path: Path, lanes_file: Path
) -> None:
    table, lines = tmp_path / "t.parquet", tmp_path / "t.jsonl"
    pq.write_table(pa.table({"a": [1]}), table)
    lines.write_text('{"a":2}\n')
    assert len(drain(RecordingSource([table, lines]))) == 2
    for other in (lanes_file, rows_file(tmp_path, "1.csv", 0, 1)):
        with pytest.raises(RecordingError, match="one kind"):
            RecordingSource([table, other])


def test_missing_files_folders_and_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"gone\.csv does not exist.*\.jsonl"):
        RecordingSource([tmp_path / "gone.csv"])
    with pytest.raises(RecordingError, match="not a regular file"):
        RecordingSource([tmp_path])
    with pytest.raises(RecordingError, match="no recording given"):
        RecordingSource([])


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    row = "x" * 90
    path.write_text("a,b\n" + "".join(f"{i},{row}\n" for i in range(200_000)))
    tracemalloc.start()
    source = RecordingSource([path])
    n = 0
    while not source.exhausted:
        n += len(source.poll(4096))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert n == 200_000
    assert peak_bytes < path.stat().st_size / 5
