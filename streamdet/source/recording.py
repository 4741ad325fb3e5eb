"""Recordings as a source: the same stream from files, as fast as it is asked for.

All files given are one stream in the order given. Rows of CSV, JSON lines and Parquet tables have no
coordinates: they get offsets that count up through the files in the one lane `recording/0`, and timestamps of
one row per second from 2000-01-01T00:00:00Z. A lossless recording keeps its own topics, partitions, offsets
and timestamps, and is read in the order in which its records arrived.

Memory does not grow with the length of a file. What is committed is kept in memory only.
"""

from collections.abc import Generator, Mapping, Sequence, Set
from pathlib import Path
from typing import Literal

import numpy as np

from streamdet.errors import RecordingError
from streamdet.events import Batch, LaneId, Position, Records
from streamdet.source.formats import ROW_LANE, Chunk, RecordingFile, describe, read


class RecordingSource:
    """The records of one or more files, as a `Source` that comes to an end.

    Args:
        paths: files of one kind, oldest first. Lossless recordings may overlap: a record whose offset has been
            passed is not given again.
        batch_max_events: upper bound of what one poll brings.

    Raises:
        RecordingError: a file cannot be used; here for what its beginning tells, while polling for the rest.
    """

    def __init__(self, paths: Sequence[Path], batch_max_events: int = 4096) -> None:
        self._files = describe(paths)
        self._batch_max_events = batch_max_events
        spans = [span.lane for file in self._files for span in file.spans]
        self._next = dict.fromkeys(spans or [ROW_LANE], 0)
        self._committed: dict[LaneId, Position] = {}
        self._done_bytes = 0
        self._position = 0
        self._chunks = self._read()
        self._pending: Chunk | None = None  # never empty; None at the end
        self._load()

    @property
    def format(self) -> Literal["csv", "json"]:
        """How the values are encoded."""
        return "csv" if self._files[0].csv is not None else "json"

    @property
    def header(self) -> list[str]:
        """Column names of CSV files; empty for other formats."""
        layout = self._files[0].csv
        return list(layout.header) if layout is not None else []

    @property
    def delimiter(self) -> str:
        """What stands between the columns of CSV files."""
        layout = self._files[0].csv
        return layout.delimiter if layout is not None else ","

    @property
    def files(self) -> Sequence[RecordingFile]:
        """What is being read."""
        return self._files

    @property
    def exhausted(self) -> bool:
        """True once every record has been given."""
        return self._pending is None

    @property
    def lanes(self) -> Set[LaneId]:
        """All lanes of the recording."""
        return self._next.keys()

    @property
    def leads(self) -> bool:
        """Always: nobody else reads along."""
        return True

    def topic_id(self, topic: str) -> str:  # noqa: ARG002 - a file is what it is
        """Empty: a recording does not tell."""
        return ""

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes read and bytes in all, of the files as they lie on disk."""
        return self._done_bytes + self._position, sum(file.size_bytes for file in self._files)

    def poll(self, max_events: int) -> Batch:
        """The next `max_events` records, fewer only at the end or where `batch_max_events` is smaller.

        Raises:
            RecordingError: the file is damaged.
        """
        wanted = min(max_events, self._batch_max_events)
        parts: dict[LaneId, list[Records]] = {}
        polled = 0
        while wanted > 0 and self._pending is not None:
            chunk, rest = self._pending.slice(0, wanted), self._pending.slice(wanted, len(self._pending))
            for part in chunk.by_lane(polled):
                parts.setdefault(part.lane, []).append(part)
                self._next[part.lane] = part.next_offset
            polled += len(chunk)
            wanted -= len(chunk)
            self._pending = rest
            if not len(rest):
                self._load()
        return Batch([_joined(some) for some in parts.values()])

    def seek(self, lane: LaneId, offset: int) -> None:
        """Go on reading the lane at this offset; to go back, the files are read again from their beginning.

        Raises:
            RecordingError: the lane is not in the recording.
        """
        if lane not in self._next:
            known = ", ".join(map(str, self._next))
            raise RecordingError(f"{lane} is not in the recording: expected one of {known}; check the files")
        back = offset < self._next[lane]
        self._next[lane] = offset
        if back:
            self._chunks.close()
            self._chunks = self._read()
            self._load()
        elif self._pending is not None:
            self._pending = self._unread(self._pending)
            if not len(self._pending):
                self._load()

    def committed(self, lane: LaneId) -> Position | None:
        """What was last committed to this object."""
        return self._committed.get(lane)

    def lag(self) -> Mapping[LaneId, int]:
        """Nothing: how many records lie ahead in a file is known only once they are read."""
        return {}

    def commit(self, positions: Mapping[LaneId, Position]) -> bool:
        """Keep the positions, in memory."""
        self._committed.update(positions)
        return True

    def close(self) -> None:
        """Close the files; nothing more is read."""
        self._chunks.close()
        self._pending = None

    def peek(self, n: int) -> list[bytes]:
        """The first `n` values of the recording, fewer if it is shorter, without reading on; no tombstones."""
        values: list[bytes] = []
        for file in self._files:
            for chunk in read(file, 0, lambda _: None):
                values += [value for value in chunk.values if value is not None]
                if len(values) >= n:
                    return values[:n]
        return values

    def _read(self) -> Generator[Chunk, None, None]:
        self._done_bytes = 0
        rows = 0
        for file in self._files:
            self._position = 0
            for chunk in read(file, rows, self._moved):
                rows += len(chunk)
                yield chunk
            self._done_bytes += file.size_bytes
        self._position = 0

    def _moved(self, position: int) -> None:
        self._position = position

    def _load(self) -> None:
        self._pending = next((c for c in map(self._unread, self._chunks) if len(c)), None)

    def _unread(self, chunk: Chunk) -> Chunk:
        """The records at or after the offsets at which their lanes go on."""
        wanted = np.array([self._next.get(lane, 0) for lane in chunk.lanes])[chunk.lane]
        keep = chunk.offsets >= wanted
        return chunk if keep.all() else chunk.where(keep)


def _joined(some: Sequence[Records]) -> Records:
    if len(some) == 1:
        return some[0]
    return Records(
        some[0].lane,
        np.concatenate([r.offsets for r in some]),
        np.concatenate([r.timestamps_ms for r in some]),
        [key for r in some for key in r.keys],
        [value for r in some for value in r.values],
        np.concatenate([r.order for r in some if r.order is not None]),
    )
