"""The lossless recording: records exactly as Kafka had them, in a Parquet file.

The columns are topic, partition, offset, timestamp_ms, key, value and headers, in the order of arrival. The
schema says by `streamdet.recording` that it is one, and of which format version; the file's own metadata says
by `streamdet.lanes` what it holds of each topic-partition. Any Parquet reader can read it.

The file appears under its name only when it is complete. A process that is killed leaves a hidden
`.NAME.*.partial` beside it, which can be deleted.
"""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from streamdet.errors import RecordingError

FORMAT_KEY = b"streamdet.recording"
FORMAT_VERSION = b"1"
LANES_KEY = b"streamdet.lanes"

# A group of rows is written when it has so many or so large ones: this bounds the memory of writer and reader.
GROUP_MAX_RECORDS = 65_536
GROUP_MAX_BYTES = 1 << 24

Headers = Sequence[tuple[str, bytes | None]]


class RecordingWriter:
    """Writes records to a lossless recording; leaving the `with` block without an error finishes it.

    An error inside the block leaves no file behind, and an older file of that name as it was. To keep what has
    been written so far nevertheless, such as after Ctrl-C, call `finish` before leaving.

    Raises:
        RecordingError: here and later, when the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        self._rows: list[tuple[str, int, int, int, bytes | None, bytes | None, Headers]] = []
        self._rows_bytes = 0
        self._spans: dict[tuple[str, int], list[int]] = {}  # first offset, next offset, records
        self._closed = False
        self._schema = _schema()
        self._file: Any = None
        if path.is_dir():
            raise RecordingError(f"cannot write {path}: it is a folder; expected the name of a file")
        try:
            self._file = self._open()
        except OSError as error:
            raise self._failed(error) from error

    @property
    def records(self) -> int:
        """Records written so far."""
        return sum(records for _, _, records in self._spans.values())

    def write(
        self,
        topic: str,
        partition: int,
        offset: int,
        timestamp_ms: int,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
    ) -> None:
        """Add a record; offsets must grow within a topic-partition, gaps are as good as none.

        Raises:
            RecordingError: the file cannot be written.
            ValueError: the offset is not above the last one of its topic-partition.
        """
        span = self._spans.setdefault((topic, partition), [offset, offset, 0])
        if offset < span[1]:
            raise ValueError(f"offset {offset} of {topic}/{partition} was passed already: next is {span[1]}")
        span[1] = offset + 1
        span[2] += 1
        self._rows.append((topic, partition, offset, timestamp_ms, key, value, headers))
        self._rows_bytes += (len(key) if key is not None else 0) + (len(value) if value is not None else 0)
        if len(self._rows) >= GROUP_MAX_RECORDS or self._rows_bytes >= GROUP_MAX_BYTES:
            self._write_group()

    def finish(self) -> None:
        """Make what was written a complete file under its name, on disk; no more can be added.

        Raises:
            RecordingError: the file cannot be written; nothing is left behind.
        """
        if self._closed:
            return
        try:
            self._write_group()
            self._file.add_key_value_metadata({LANES_KEY: self._lanes()})
            self._file.close()
            _sync(self._partial)
            self._partial.replace(self._path)
            _sync(self._path.parent)
            self._closed = True
        except OSError as error:
            raise self._failed(error) from error
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove what was written, unless it is finished."""
        if self._closed:
            return
        self._closed = True
        try:
            self._file.close()
        except OSError:
            pass  # the disk is full; the file is to go anyway
        finally:
            self._partial.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.finish()
        else:
            self.discard()

    def _open(self) -> Any:  # noqa: ANN401 - pyarrow is untyped
        import pyarrow.parquet as pq

        return pq.ParquetWriter(
            self._partial, self._schema, compression="zstd", use_dictionary=["topic", "partition"]
        )

    def _write_group(self) -> None:
        import pyarrow as pa

        if not self._rows:
            return
        *plain, headers = zip(*self._rows, strict=True)
        structs = [[{"name": name, "value": value} for name, value in some] for some in headers]
        columns = [
            pa.array(column, field.type)
            for column, field in zip([*plain, structs], self._schema, strict=True)
        ]
        try:
            self._file.write_batch(pa.record_batch(columns, schema=self._schema))
        except OSError as error:
            raise self._failed(error) from error
        self._rows = []
        self._rows_bytes = 0

    def _lanes(self) -> bytes:
        return msgspec.json.encode(
            [
                {
                    "topic": topic,
                    "partition": partition,
                    "first_offset": first,
                    "next_offset": after,
                    "records": n,
                }
                for (topic, partition), (first, after, n) in sorted(self._spans.items())
            ]
        )

    def _failed(self, error: OSError) -> RecordingError:
        return RecordingError(
            f"cannot write {self._path}: {error}; expected a folder that exists, may be written to and has room"
        )


def _schema() -> Any:  # noqa: ANN401 - pyarrow is untyped
    import pyarrow as pa

    header = pa.struct([("name", pa.string()), ("value", pa.binary())])
    return pa.schema(
        [
            pa.field("topic", pa.string(), nullable=False),
            pa.field("partition", pa.int32(), nullable=False),
            pa.field("offset", pa.int64(), nullable=False),
            pa.field("timestamp_ms", pa.int64(), nullable=False),
            ("key", pa.binary()),
            ("value", pa.binary()),
            ("headers", pa.list_(pa.field("element", header))),
        ],
        metadata={FORMAT_KEY: FORMAT_VERSION},
    )


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
