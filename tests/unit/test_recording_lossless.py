"""The lossless recording: what goes in comes out, and half a file is never left."""

import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamdet.errors import RecordingError
from streamdet.sink import recording as writing
from streamdet.sink.recording import RecordingWriter
from streamdet.source import parquet as reading
from streamdet.source.parquet import Recorded, lane_spans, recorded
from streamdet.source.recording import RecordingSource

BYTES = st.none() | st.binary(max_size=20)
HEADERS = st.lists(st.tuples(st.text(max_size=5), BYTES), max_size=3).map(tuple)


@st.composite
def streams(draw: st.DrawFn) -> list[Recorded]:
    """Records of a few lanes, with growing offsets in each."""
    after: dict[tuple[str, int], int] = {}
    records = []
    for _ in range(draw(st.integers(1, 30))):
        lane = draw(st.tuples(st.sampled_from(["sensors", "cards", "é.x-1"]), st.integers(0, 2)))
        offset = after.get(lane, 0) + draw(st.integers(0, 5) | st.just(2**40))
        after[lane] = offset + 1
        time = draw(st.integers(-1, 2**45))
        records.append(Recorded(*lane, offset, time, draw(BYTES), draw(BYTES), draw(HEADERS)))
    return records


@given(records=streams(), group=st.integers(1, 20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_written_is_read(tmp_path: Path, records: list[Recorded], group: int) -> None:
    path = tmp_path / "r.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "GROUP_MAX_RECORDS", group)
        with RecordingWriter(path) as writer:
            for record in records:
                writer.write(*record)
        assert writer.records == len(records)
    assert list(recorded(path)) == records
    given_back: dict[tuple[str, int], list[tuple[object, ...]]] = {}
    source = RecordingSource([path])
    for part in source.poll(1000).parts:
        columns = zip(part.offsets.tolist(), part.timestamps_ms.tolist(), part.keys, part.values, strict=True)
        given_back[part.lane] = list(columns)
    assert source.exhausted
    assert source.lanes == given_back.keys()
    for lane, rows in given_back.items():
        assert rows == [tuple(r[2:6]) for r in records if r[:2] == lane]
    assert [path.name for path in tmp_path.iterdir()] == ["r.parquet"]


def test_writer_and_reader_mean_the_same_format() -> None:
    assert writing.FORMAT_KEY == reading.RECORDING_KEY
    assert writing.FORMAT_VERSION == reading.RECORDING_VERSION
    assert writing.LANES_KEY == reading.LANES_KEY


def interrupted(path: Path, *, finish: bool) -> None:
    with RecordingWriter(path) as writer:
        writer.write("t", 0, 0, 0, None, b"v")
        if finish:
            writer.finish()
            writer.finish()  # once more changes nothing
        raise KeyboardInterrupt


def test_an_error_leaves_the_older_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    path.write_bytes(b"older")
    with pytest.raises(KeyboardInterrupt):
        interrupted(path, finish=False)
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_finished_before_an_error_stays(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    with pytest.raises(KeyboardInterrupt):
        interrupted(path, finish=True)
    assert len(list(recorded(path))) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    with RecordingWriter(path) as writer:
        writer.write("t", 0, 0, 0, None, b"v")
        assert not path.exists()
    assert path.exists()


def test_large_values_end_a_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "GROUP_MAX_BYTES", 1000)
    with RecordingWriter(tmp_path / "r") as writer:
        for i in range(10):
            writer.write("t", 0, i, 0, b"k" * 100, b"v" * 400)
    assert pq.ParquetFile(tmp_path / "r").num_row_groups == 5


@contextmanager
def small_disk(size_bytes: int) -> Iterator[None]:
    """No file can become larger than this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("group", [10, 1000])
def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int
) -> None:
    monkeypatch.setattr(writing, "GROUP_MAX_RECORDS", group)
    noise = random.Random(0)
    with small_disk(20_000), pytest.raises(RecordingError, match="cannot write"):
        write_noise(tmp_path / "r", noise)
    assert list(tmp_path.iterdir()) == []


def write_noise(path: Path, noise: random.Random) -> None:
    with RecordingWriter(path) as writer:
        for i in range(100):
            writer.write("t", 0, i, 0, None, noise.randbytes(1000))


def test_offsets_that_go_back_are_refused(tmp_path: Path) -> None:
    with RecordingWriter(tmp_path / "r") as writer:
        writer.write("t", 0, 5, 0, None, None)
        writer.write("t", 1, 0, 0, None, None)
        with pytest.raises(ValueError, match="offset 5 of t/0"):
            writer.write("t", 0, 5, 0, None, None)
    assert [record.offset for record in recorded(tmp_path / "r")] == [5, 0]


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"cannot write.*expected a folder"):
        RecordingWriter(tmp_path / "gone" / "r")
    with pytest.raises(RecordingError, match="is a folder"):
        RecordingWriter(tmp_path)


def test_a_recording_of_nothing_is_refused(tmp_path: Path) -> None:
    with RecordingWriter(tmp_path / "r"):
        pass
    with pytest.raises(RecordingError, match="no rows"):
        RecordingSource([tmp_path / "r"])


def test_another_format_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "FORMAT_VERSION", b"99")
    with RecordingWriter(tmp_path / "r") as writer:
        writer.write("t", 0, 0, 0, None, None)
    with pytest.raises(RecordingError, match="of format 99: expected format 1"):
        RecordingSource([tmp_path / "r"])


def test_a_recording_with_other_columns_is_refused(tmp_path: Path) -> None:
    schema = pa.schema([("topic", pa.string())], metadata={writing.FORMAT_KEY: writing.FORMAT_VERSION})
    spans = b'[{"topic":"t","partition":0,"first_offset":0,"next_offset":1,"records":1}]'
    for metadata, message in (({}, "list of lanes"), ({writing.LANES_KEY: spans}, "its columns")):
        with pq.ParquetWriter(tmp_path / "r", schema) as file:
            file.write_table(pa.table({"topic": ["t"]}, schema=schema))
            file.add_key_value_metadata(metadata)
        with pytest.raises(RecordingError, match=message):
            RecordingSource([tmp_path / "r"])


def test_only_recordings_have_records_with_headers(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "t.parquet")
    assert lane_spans(tmp_path / "t.parquet") is None
    with pytest.raises(RecordingError, match="not a lossless recording"):
        list(recorded(tmp_path / "t.parquet"))
