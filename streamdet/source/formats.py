"""What kind of recording a file is, and its records as chunks of columns.

Known are CSV, JSON lines and Parquet tables, which have rows and no coordinates, and lossless recordings,
which have their own. Which is which is said by the suffix; a file that begins as Parquet does is Parquet
whatever it is called, and a lossless recording if its schema says so.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, pairwise
from pathlib import Path
from typing import Literal, Self

import numpy as np

from streamdet.errors import RecordingError
from streamdet.events import Bools, Ints, LaneId, Records
from streamdet.source.parquet import (
    Columns,
    LaneSpan,
    is_parquet,
    lane_spans,
    recorded_columns,
    table_rows,
)
from streamdet.source.text import COMPRESSIONS, CsvLayout, Moved, csv_layout, csv_rows, json_rows

Kind = Literal["csv", "json lines", "parquet", "recording"]

ROW_LANE = LaneId("recording", 0)  # of files whose rows have no coordinates
ROW_START_MS = 946_684_800_000  # 2000-01-01T00:00:00Z, and then one row per second

_SUFFIXES: dict[str, Kind] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json lines",
    ".ndjson": "json lines",
    ".json": "json lines",
    ".parquet": "parquet",
}
KNOWN = (
    f"{', '.join(_SUFFIXES)}, each but .parquet also with {', '.join(COMPRESSIONS)}, "
    "or a file made by `streamdet record`"
)


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Records of any lanes in the order of arrival; n of them."""

    lanes: Sequence[LaneId]
    lane: Ints  # (n,) index into `lanes`
    offsets: Ints  # (n,)
    timestamps_ms: Ints  # (n,)
    keys: list[bytes | None]
    values: list[bytes | None]

    def __len__(self) -> int:
        return len(self.offsets)

    def slice(self, start: int, stop: int) -> Self:
        """The records from `start` up to `stop`."""
        part = slice(start, stop)
        return type(self)(
            self.lanes,
            self.lane[part],
            self.offsets[part],
            self.timestamps_ms[part],
            self.keys[part],
            self.values[part],
        )

    def where(self, keep: Bools) -> Self:
        """The records for which `keep`, (n,), is true."""
        return type(self)(
            self.lanes,
            self.lane[keep],
            self.offsets[keep],
            self.timestamps_ms[keep],
            list(compress(self.keys, keep)),
            list(compress(self.values, keep)),
        )

    def by_lane(self, first: int) -> list[Records]:
        """The records of each lane that has any; `first` is the place of the chunk in its batch."""
        order = first + np.arange(len(self))
        present = np.unique(self.lane)
        if len(present) == 1:
            keys, values = self.keys, self.values
            return [Records(self.lanes[present[0]], self.offsets, self.timestamps_ms, keys, values, order)]
        parts = []
        for i in present:
            mine = self.lane == i
            p = self.where(mine)
            parts.append(Records(self.lanes[i], p.offsets, p.timestamps_ms, p.keys, p.values, order[mine]))
        return parts


@dataclass(frozen=True, slots=True)
class RecordingFile:
    """A file that has been looked into and can be read."""

    path: Path
    kind: Kind
    size_bytes: int
    csv: CsvLayout | None  # of CSV only
    spans: tuple[LaneSpan, ...]  # of lossless recordings only


def describe(paths: Sequence[Path]) -> list[RecordingFile]:
    """Look into all files, which are to be read as one stream, before any of it is judged.

    Raises:
        RecordingError: a file cannot be used, or does not go with the others.
    """
    if not paths:
        raise RecordingError(f"no recording given: name at least one file ({KNOWN})")
    files = [_describe(path) for path in paths]
    for one, other in pairwise(files):
        _check_same(one, other)
    return files


def _describe(path: Path) -> RecordingFile:
    try:
        if not path.exists():
            raise RecordingError(f"{path} does not exist: expected a recording ({KNOWN})")
        if not path.is_file():
            raise RecordingError(f"{path} is not a regular file: expected a recording ({KNOWN})")
        size = path.stat().st_size
        if size == 0:
            raise RecordingError(f"{path} is empty: expected a recording with at least one row")
        parquet = is_parquet(path)
    except OSError as error:
        raise RecordingError(f"cannot read {path}: {error}; check the path and its permissions") from error
    kind = "parquet" if parquet else _kind(path)
    if kind == "csv":
        return RecordingFile(path, kind, size, csv_layout(path), ())
    if kind == "parquet":
        spans = lane_spans(path)
        return RecordingFile(path, kind if spans is None else "recording", size, None, spans or ())
    _check_json_lines(path)
    return RecordingFile(path, kind, size, None, ())


def _kind(path: Path) -> Kind:
    suffix = path.suffix.lower()
    compressed = suffix in COMPRESSIONS
    kind = _SUFFIXES.get(Path(path.stem).suffix.lower() if compressed else suffix)
    if kind is None or (compressed and kind == "parquet"):
        raise RecordingError(f"{path} has no known suffix: expected {KNOWN}; rename or convert it")
    return kind


def _check_json_lines(path: Path) -> None:
    first = next((row for rows in json_rows(path) for row in rows), None)
    if first is None:
        raise RecordingError(f"{path} is empty: expected one JSON object per line")
    # One bad line is the codec's to reject, but a file of this shape has no good one.
    if first.lstrip().startswith(b"[") or first.strip() == b"{":
        raise RecordingError(
            f"{path} is JSON over several lines, or an array: expected one object per line; "
            "convert it, for instance with `jq -c '.[]'`"
        )


def _check_same(one: RecordingFile, other: RecordingFile) -> None:
    if _format(one) != _format(other) or (one.kind == "recording") != (other.kind == "recording"):
        raise RecordingError(
            f"{one.path} is {one.kind} and {other.path} is {other.kind}: expected files of one kind; "
            "replay them one by one"
        )
    if one.csv != other.csv:
        raise RecordingError(
            f"{one.path} and {other.path} have different headers: {_header(one)} and {_header(other)}; "
            "replay them one by one, or make the columns the same"
        )
    firsts = {span.lane: span.first_offset for span in one.spans}
    for span in other.spans:
        if span.first_offset < firsts.get(span.lane, 0):
            raise RecordingError(
                f"{other.path} begins before {one.path} in {span.lane}: give the recordings oldest first"
            )


def _format(file: RecordingFile) -> str:
    return "csv" if file.kind == "csv" else "json"


def _header(file: RecordingFile) -> str:
    return file.csv.delimiter.join(file.csv.header) if file.csv is not None else ""


def read(file: RecordingFile, first_offset: int, moved: Moved) -> Iterator[Chunk]:
    """The records of a file in order; rows without coordinates are counted from `first_offset`.

    `moved` is told the position in the file, in bytes.

    Raises:
        RecordingError: the file is damaged.
    """
    if file.kind == "recording":
        yield from map(_placed, recorded_columns(file.path, moved))
        return
    for values in _rows(file, moved):
        yield _numbered(values, first_offset)
        first_offset += len(values)


def _rows(file: RecordingFile, moved: Moved) -> Iterator[list[bytes]]:
    if file.csv is None:
        yield from (json_rows if file.kind == "json lines" else table_rows)(file.path, moved)
        return
    header_passed = False
    for rows in csv_rows(file.path, file.csv.delimiter, moved):
        yield rows if header_passed else rows[1:]
        header_passed = header_passed or bool(rows)


def _numbered(values: list[bytes], first_offset: int) -> Chunk:
    n = len(values)
    offsets = np.arange(first_offset, first_offset + n, dtype=np.int64)
    lane = np.zeros(n, dtype=np.int64)
    return Chunk([ROW_LANE], lane, offsets, ROW_START_MS + 1000 * offsets, [None] * n, list(values))


def _placed(columns: Columns) -> Chunk:
    topics, topic = np.unique(columns.topics, return_inverse=True)
    pairs, lane = np.unique(np.stack([topic, columns.partitions]), axis=1, return_inverse=True)
    lanes = [LaneId(str(topics[t]), int(p)) for t, p in pairs.T]
    return Chunk(lanes, lane.ravel(), columns.offsets, columns.timestamps_ms, columns.keys, columns.values)
