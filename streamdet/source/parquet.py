"""Rows of Parquet files: any table as JSON objects, and the lossless recordings of `streamdet record`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from streamdet.errors import RecordingError
from streamdet.events import Ints, LaneId
from streamdet.source.text import Moved

ROWS_PER_CHUNK = 8192

# A lossless recording is known by this entry of its schema, whatever its name; `streamdet.sink.recording`
# writes it. The value is the version of the format.
RECORDING_KEY = b"streamdet.recording"
RECORDING_VERSION = b"1"
LANES_KEY = b"streamdet.lanes"

_MAGIC = b"PAR1"
_COLUMNS = {
    "topic": "string",
    "partition": "int32",
    "offset": "int64",
    "timestamp_ms": "int64",
    "key": "binary",
    "value": "binary",
    "headers": "list<element: struct<name: string, value: binary>>",
}


class Recorded(NamedTuple):
    """A record with all that Kafka knows of it."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


class LaneSpan(msgspec.Struct, frozen=True):
    """What a recording holds of a lane: `records` of them, at offsets in [first_offset, next_offset)."""

    topic: str
    partition: int
    first_offset: int
    next_offset: int
    records: int

    @property
    def lane(self) -> LaneId:
        """The topic-partition."""
        return LaneId(self.topic, self.partition)


class Columns(NamedTuple):
    """A piece of a lossless recording, in the order of arrival; n records."""

    topics: list[str]
    partitions: Ints  # (n,)
    offsets: Ints  # (n,)
    timestamps_ms: Ints  # (n,)
    keys: list[bytes | None]
    values: list[bytes | None]


def is_parquet(path: Path) -> bool:
    """Whether the file begins as Parquet files do."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def lane_spans(path: Path) -> tuple[LaneSpan, ...] | None:
    """The lanes of a lossless recording, or None where the file is an ordinary Parquet table.

    Raises:
        RecordingError: the file is damaged or empty, or its format is of another version.
    """
    with _Opened(path) as file:
        metadata = file.schema_arrow.metadata or {}
        version = metadata.get(RECORDING_KEY)
        if file.metadata.num_rows == 0 or file.metadata.num_columns == 0:
            raise RecordingError(f"{path} holds no rows: expected at least one; check that it is complete")
        if version is None:
            return None
        if version != RECORDING_VERSION:
            raise RecordingError(
                f"{path} is a streamdet recording of format {version.decode(errors='replace')}: expected "
                f"format {RECORDING_VERSION.decode()}; read it with the streamdet that wrote it"
            )
        spans = (file.metadata.metadata or {}).get(LANES_KEY)
        columns = {field.name: str(field.type) for field in file.schema_arrow}
    try:
        lanes = msgspec.json.decode(spans or b"", type=tuple[LaneSpan, ...])
    except msgspec.DecodeError as error:
        raise _damaged(path, f"its list of lanes is unreadable ({error})") from error
    if {name: columns.get(name) for name in _COLUMNS} != _COLUMNS or not lanes:
        raise _damaged(path, f"its columns are {json.dumps(columns)}")
    return lanes


def recorded_columns(path: Path, moved: Moved) -> Iterator[Columns]:
    """The records of a lossless recording without their headers, in pieces of `ROWS_PER_CHUNK` or less.

    Raises:
        RecordingError: the file is damaged.
    """
    for batch in _batches(path, moved, [name for name in _COLUMNS if name != "headers"]):
        yield Columns(
            batch.column("topic").to_pylist(),
            batch.column("partition").to_numpy().astype(np.int64),
            batch.column("offset").to_numpy(),
            batch.column("timestamp_ms").to_numpy(),
            batch.column("key").to_pylist(),
            batch.column("value").to_pylist(),
        )


def recorded(path: Path) -> Iterator[Recorded]:
    """Every record of a lossless recording with its headers, in the order of arrival.

    Raises:
        RecordingError: the file is damaged, or is not a lossless recording.
    """
    if not is_parquet(path) or lane_spans(path) is None:
        raise RecordingError(f"{path} is not a lossless recording: expected one made by `streamdet record`")
    for batch in _batches(path, lambda _: None, list(_COLUMNS)):
        for row in batch.to_pylist():
            row["headers"] = tuple((header["name"], header["value"]) for header in row["headers"])
            yield Recorded(**row)


def table_rows(path: Path, moved: Moved) -> Iterator[list[bytes]]:
    """Rows of a Parquet table as JSON objects, in lists of `ROWS_PER_CHUNK` or less.

    Times are ISO strings (to the microsecond), decimals numbers, binary values Base64, NaN null.

    Raises:
        RecordingError: the file is damaged, or has values that JSON cannot hold.
    """
    encode = msgspec.json.Encoder(decimal_format="number", enc_hook=str).encode
    for batch in _batches(path, moved, None):
        try:
            plain = _plain_times(batch)
            columns = [column.to_pylist() for column in plain.columns]
            names = plain.schema.names
            yield [encode(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]
        except (ValueError, TypeError) as error:
            raise RecordingError(
                f"{path} has a row that cannot be written as JSON ({error}): expected numbers, texts and "
                "times; leave the other columns out"
            ) from error


def _plain_times(batch: Any) -> Any:  # noqa: ANN401 - pyarrow is untyped
    """The batch with timestamps as ISO texts, which Python's own times would make ten times slower."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for i, field in enumerate(batch.schema):
        column = batch.column(i)
        if pa.types.is_timestamp(field.type):
            spaced = column.cast(pa.timestamp("us"), safe=False).cast(pa.string())  # of a zoned time: in UTC
            text = pc.replace_substring(spaced, " ", "T", max_replacements=1)
            zoned = text if field.type.tz is None else pc.binary_join_element_wise(text, "Z", "")
            batch = batch.set_column(i, field.name, zoned)
        elif pa.types.is_time64(field.type):
            batch = batch.set_column(i, field.name, column.cast(pa.time64("us"), safe=False))
    return batch


def _batches(path: Path, moved: Moved, columns: list[str] | None) -> Iterator[Any]:
    size = path.stat().st_size
    with _Opened(path) as file:
        total = file.metadata.num_rows
        done = 0
        for batch in file.iter_batches(ROWS_PER_CHUNK, columns=columns):
            done += batch.num_rows
            moved(size * done // total)  # where Parquet reads is not for us to know
            yield batch


class _Opened:
    """An open Parquet file; what Arrow raises while it is open becomes a RecordingError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Any:  # noqa: ANN401 - pyarrow is untyped
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            self._file = pq.ParquetFile(self._path)
        except (OSError, pa.ArrowException) as error:
            raise _damaged(self._path, str(error)) from error
        return self._file

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import pyarrow as pa

        self._file.close()
        if isinstance(error, OSError | pa.ArrowException):
            raise _damaged(self._path, str(error)) from error


def _damaged(path: Path, what: str) -> RecordingError:
    return RecordingError(
        f"cannot read {path}: {what}; expected a whole Parquet file; copy or record it again"
    )
