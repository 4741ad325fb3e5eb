"""CSV and JSON lines: what is a row, and which files are refused."""

import bz2
import csv
import gzip
import io
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamdet.errors import RecordingError
from streamdet.source import text
from streamdet.source.recording import RecordingSource

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


def file(folder: Path, content: bytes, name: str = "stream.csv") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def drain(source: RecordingSource) -> list[bytes | None]:
    values: list[bytes | None] = []
    while not source.exhausted:
        values += source.poll(7).parts[0].values
    return values


def rows(path: Path) -> list[bytes | None]:
    return drain(RecordingSource([path]))


@pytest.mark.parametrize("suffix", COMPRESS)
def test_every_compression_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = file(tmp_path, COMPRESS[suffix](b"a,b\n1,2\n3,4\n"), f"stream.csv{suffix}")
    source = RecordingSource([path])
    assert (source.format, source.header, source.delimiter) == ("csv", ["a", "b"], ",")
    assert drain(source) == [b"1,2", b"3,4"]
    assert source.progress == (path.stat().st_size, path.stat().st_size)


@pytest.mark.parametrize("suffix", [s for s in COMPRESS if s])
def test_a_truncated_compressed_file_is_refused(tmp_path: Path, suffix: str) -> None:
    whole = COMPRESS[suffix](b"a,b\n" + b"".join(b"%d,%d\n" % (i, i * i) for i in range(5000)))
    path = file(tmp_path, whole[:-10], f"stream.csv{suffix}")
    with pytest.raises(RecordingError, match=r"stream\.csv.*expected a whole"):
        rows(path)


@pytest.mark.parametrize("suffix", [s for s in COMPRESS if s])
def test_a_file_with_the_wrong_suffix_is_refused(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(RecordingError, match="expected a whole"):
        rows(file(tmp_path, b"a,b\n1,2\n", f"stream.csv{suffix}"))


def test_two_compressed_members_are_one_file(tmp_path: Path) -> None:
    content = gzip.compress(b"a\n1\n", mtime=0) + gzip.compress(b"2\n")
    assert rows(file(tmp_path, content, "stream.csv.gz")) == [b"1", b"2"]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("end", [True, False])
def test_line_endings_byte_order_mark_and_empty_lines_are_not_part_of_rows(
    tmp_path: Path, newline: bytes, end: bool
) -> None:
    content = b"\xef\xbb\xbf" + newline.join([b"a,b", b"", b"1,2", b"", b"3,4"]) + (newline if end else b"")
    source = RecordingSource([file(tmp_path, content)])
    assert source.header == ["a", "b"]
    (part,) = source.poll(9).parts
    assert part.values == [b"1,2", b"3,4"]
    assert part.offsets.tolist() == [0, 1]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiter_comes_from_the_header(tmp_path: Path, delimiter: str) -> None:
    content = f'"x,;y"{delimiter}b{delimiter}c\n1{delimiter}2{delimiter}3\n'
    source = RecordingSource([file(tmp_path, content.encode())])
    assert source.delimiter == delimiter
    assert source.header == ["x,;y", "b", "c"]


def test_a_file_of_one_column_is_csv(tmp_path: Path) -> None:
    source = RecordingSource([file(tmp_path, b"temperature\n1.5\n")])
    assert source.header == ["temperature"]
    assert source.delimiter == ","


def test_quoted_newlines_stay_inside_their_row(tmp_path: Path) -> None:
    content = b'a,b\r\n1,"x\r\n\r\ny ""z"", \r\n"\r\n2,w\r\n'
    assert rows(file(tmp_path, content)) == [b'1,"x\r\n\r\ny ""z"", \r\n"', b"2,w"]


def test_a_quote_inside_a_field_is_text(tmp_path: Path) -> None:
    assert rows(file(tmp_path, b'a,b\n5" pipe,1\n6" pipe,2\n')) == [b'5" pipe,1', b'6" pipe,2']


def test_a_quote_that_never_closes_costs_one_row(tmp_path: Path) -> None:
    assert rows(file(tmp_path, b'a,b\n1,"x\n2,y\n3,z\n')) == [b'1,"x', b"2,y", b"3,z"]


def test_a_quote_that_closes_too_late_costs_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "QUOTED_ROW_MAX_BYTES", 20)
    late = [b'1,"x', *[b"%d,y" % i for i in range(2, 30)], b'30,"z"', b"31,w"]
    assert rows(file(tmp_path, b"\n".join([b"a,b", *late]))) == late


CELLS = st.lists(st.sampled_from(["a", "1", " ", ",", ";", "'", '"', "\n", "\r\n"]), max_size=8).map("".join)


@given(
    table=st.lists(st.lists(CELLS, min_size=2, max_size=2), min_size=1, max_size=20),
    block=st.integers(5, 60),
    newline=st.sampled_from(["\n", "\r\n"]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_rows_are_those_of_the_csv_module(
    tmp_path: Path, table: list[list[str]], block: int, newline: str
) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator=newline).writerows([["key", "name"], *table])
    path = file(tmp_path, buffer.getvalue().encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK_BYTES", block)  # rows lie across the borders of blocks
        got = rows(path)
    assert [next(csv.reader(io.StringIO((row or b"").decode(), newline=""))) for row in got] == table


def test_json_rows_are_lines_without_blank_ones(tmp_path: Path) -> None:
    path = file(tmp_path, b'{"a":1}\r\n\r\n  \n{"a":2}\nbroken', "stream.ndjson")
    source = RecordingSource([path])
    assert (source.format, source.header) == ("json", [])
    assert drain(source) == [b'{"a":1}', b'{"a":2}', b"broken"]


def test_a_file_without_newlines_is_refused_before_memory_fills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "LINE_MAX_BYTES", 1000)
    monkeypatch.setattr(text, "BLOCK_BYTES", 100)
    with pytest.raises(RecordingError, match="a line of more than 1000 bytes"):
        rows(file(tmp_path, b"x" * 5000))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.csv", b"", "is empty"),
        ("s.csv", b"\n\n", "is empty"),
        ("s.csv.gz", gzip.compress(b"", mtime=0), "is empty"),
        ("s.csv", b"a,b\n", "only a header"),
        ("s.csv", b"a,b\n\r\n\n", "only a header"),
        ("s.csv", b"a,a\n1,2\n", r"twice \(a\)"),
        ("s.csv", b"0.5,1\n0.7,2\n", "begins with data"),
        ("s.csv", b"\xff\xe9,b\n1,2\n", "header"),
        ("s.csv", "a,b\n1,2\n".encode("utf-16"), "not UTF-8 text"),
        ("s.csv", gzip.compress(b"a,b\n1,2\n", mtime=0), "not UTF-8 text"),
        ("s.jsonl", b" \n", "is empty"),
        ("s.json", b'[{"a":1},{"a":2}]', "one object per line"),
        ("s.json", b'{\n "a": 1\n}\n', "one object per line"),
        ("s.parquet", b"a,b\n1,2\n", "expected a whole Parquet file"),
        ("s.parquet.gz", gzip.compress(b"x", mtime=0), "no known suffix"),
        ("s.txt", b"a,b\n1,2\n", r"no known suffix.*\.csv"),
        ("s.gz", gzip.compress(b"a,b\n1,2\n", mtime=0), "no known suffix"),
    ],
)
def test_an_unusable_file_is_refused_by_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = file(tmp_path, content, name)
    with pytest.raises(RecordingError, match=message) as caught:
        RecordingSource([path])
    assert str(path) in str(caught.value)


def test_a_nameless_column_gets_a_name(tmp_path: Path) -> None:
    assert RecordingSource([file(tmp_path, b",a\n0,1\n")]).header == ["column_1", "a"]


def test_numbered_columns_are_names(tmp_path: Path) -> None:
    assert RecordingSource([file(tmp_path, b"0,1\n0.5,0.6\n")]).header == ["0", "1"]
