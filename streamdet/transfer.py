"""Topics into recordings, and recordings into topics.

`record_topic` guarantees: coordinates, timestamps, keys, headers and bytes are kept as they are; what has been read
when Ctrl-C or a refusal of Kafka ends it is a whole recording. No consumer group takes part, and nothing is
committed. Records of aborted transactions are left out, as for the worker.

`publish_recordings` guarantees: every record that it counts is on all replicas in sync, in the order of the recording
within each partition. Not guaranteed: that a record arrives only once, if the command is repeated. Timestamps are
those of publishing, so that latencies are those of now.
"""

import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import msgspec

from streamdet.broker.backlog import Backlog
from streamdet.broker.publisher import Headers, Publisher
from streamdet.clock import Clock, SystemClock
from streamdet.codec.csv import CsvCodec
from streamdet.codec.infer import SAMPLE, infer_schema
from streamdet.codec.json import parse_object
from streamdet.codec.times import parse_times
from streamdet.config import Kafka
from streamdet.errors import BrokerError, BrokerUnavailableError, ConfigError, RecordingError
from streamdet.events import Schema
from streamdet.sink.recording import RecordingWriter
from streamdet.source.formats import describe
from streamdet.source.parquet import recorded
from streamdet.source.recording import RecordingSource

POLL_RECORDS_MAX: Final = 4096
# A wait for the next record that is due looks this often whether a stop was requested.
WAIT_MAX_S: Final = 0.1
# Records that are due within this time go together: the operating system wakes nobody more exactly.
EARLY_S: Final = 0.002
# The display is told every so many records, and redraws ten times a second.
SHOW_EVERY: Final = 256


class StopSignal(Protocol):
    """Whether somebody wants the command to end."""

    @property
    def requested(self) -> bool:
        """True from the first signal on."""


Show = Callable[[int, float | None], None]


def record_topic(
    kafka: Kafka, topic: str, output: Path, *, count: int | None, follow: bool, stop: StopSignal
) -> int:
    """Write what a topic holds at the start into a lossless recording; how many records that was.

    Args:
        kafka: the cluster.
        topic: what to read, all its partitions from their earliest records on.
        output: the file; it appears, or is replaced, when it is complete.
        count: end after so many records; None for no bound.
        follow: go on past what the topic held at the start.
        stop: ends it early, and keeps what has been read.

    Raises:
        BrokerError: the topic does not exist, or Kafka refused; what was read before that is kept.
        BrokerUnavailableError: a stop was requested before Kafka answered.
        RecordingError: the file cannot be written, or there was no record to write.
    """
    clock = SystemClock()
    with RecordingWriter(output) as writer, _meter(f"record {topic}") as show:
        try:
            with closing(Backlog(kafka, topic, clock, lambda: stop.requested)) as backlog:
                for records, share in backlog.read(follow=follow):
                    left = None if count is None else count - writer.records
                    for r in records[:left]:
                        writer.write(r.topic, r.partition, r.offset, r.timestamp, r.key, r.value, r.headers)
                    done = writer.records
                    show(done, share if count is None else max(done / count, share or 0.0))
                    if count is not None and done >= count:
                        break
        except (BrokerError, BrokerUnavailableError):
            if writer.records:
                writer.finish()
            if not (stop.requested and writer.records):
                raise
        if not writer.records:
            raise RecordingError(
                f"topic {topic!r} held no record: {output} was not written; --follow waits for some"
            )
        return writer.records


class Item(NamedTuple):
    """A record to be published."""

    value: bytes | None
    key: bytes | None = None
    headers: Headers = ()
    partition: int | None = None  # in the recording
    time_ms: int | None = None  # None: due at once


def publish_recordings(
    kafka: Kafka, recordings: Sequence[Path], topic: str, *, speed: float | None, stop: StopSignal
) -> int:
    """Write recordings to a topic; how many records have arrived.

    Lossless recordings keep key, value and headers, and the partition where the topic has as many. Rows of CSV and
    Parquet become JSON objects; a row that cannot be read is published as it stands.

    Args:
        kafka: the cluster.
        recordings: files of one kind, oldest first.
        topic: where to; it must exist.
        speed: multiple of the recorded pace: the record timestamps of a lossless recording, a time column
            that is found by name and content, else one row per second. None for as fast as Kafka takes it.
        stop: ends it early; what was handed over is delivered.

    Raises:
        BrokerError: the topic does not exist, or Kafka refused.
        BrokerUnavailableError: Kafka has been away for two minutes, or a stop was requested while it is.
        RecordingError: a recording cannot be read, or a record does not fit the topic.
    """
    clock = SystemClock()
    files = describe(recordings)
    lossless = files[0].kind == "recording"
    items = _recorded_items(recordings) if lossless else _row_items(recordings, timed=speed is not None)
    total = sum(span.records for file in files for span in file.spans)
    widest = max((span.partition for file in files for span in file.spans), default=0)
    pace = None if speed is None else _Pace(speed, clock, stop)
    publisher = Publisher(kafka, topic, clock, lambda: stop.requested, paced=speed is not None)
    with closing(publisher), _meter(f"publish to {topic}") as show:
        keep = widest < publisher.partitions
        for n, (item, share) in enumerate(items):
            if stop.requested or (pace is not None and not pace.wait(item.time_ms)):
                break
            partition = item.partition
            if item.key is None:
                # Rows take turns, which costs less than chance; records follow their partition and stay in order.
                partition = (n if partition is None else partition) % publisher.partitions
            elif not keep:
                partition = None  # the key decides
            publisher.send(item.value, item.key, item.headers, partition)
            if n % SHOW_EVERY == 0 or pace is not None:
                show(n + 1, n / total if lossless else share)
        publisher.flush()
        return publisher.delivered


def _recorded_items(recordings: Sequence[Path]) -> Iterator[tuple[Item, float]]:
    """Records of lossless recordings; where these overlap, each record once."""
    passed: dict[tuple[str, int], int] = {}
    for path in recordings:
        for r in recorded(path):
            if r.offset >= passed.get((r.topic, r.partition), 0):
                passed[r.topic, r.partition] = r.offset + 1
                yield Item(r.value, r.key, r.headers, r.partition, r.timestamp_ms), 0.0


def _row_items(recordings: Sequence[Path], *, timed: bool) -> Iterator[tuple[Item, float]]:
    """Rows as JSON, with their times if asked for, and the share of the files that has been read."""
    with closing(RecordingSource(recordings)) as source:
        fields_of = _fields_reader(source)
        column = _time_column(source, fields_of) if timed else None
        encode = msgspec.json.Encoder().encode
        is_csv = source.format == "csv"
        while not source.exhausted:
            for part in source.poll(POLL_RECORDS_MAX).parts:
                values = [value for value in part.values if value is not None]
                times_ms: Sequence[int | None] = part.timestamps_ms.tolist()
                rows = [fields_of(value) for value in values] if is_csv or column is not None else []
                if column is not None:
                    times_ms = _times(rows, column)
                if is_csv:
                    values = [
                        old if row is None else encode(row) for old, row in zip(values, rows, strict=True)
                    ]
                done, total = source.progress
                for value, time_ms in zip(values, times_ms, strict=True):
                    yield Item(value, time_ms=time_ms), done / total


_Fields = dict[str, object]


def _fields_reader(source: RecordingSource) -> Callable[[bytes], _Fields | None]:
    """What gives the fields of a row, None for one that cannot be read: it is for the worker to reject."""
    if source.format == "json":

        def from_json(value: bytes) -> _Fields | None:
            parsed = parse_object(value)
            return parsed if isinstance(parsed, dict) else None

        return from_json
    codec = CsvCodec(Schema(None, None, (), ()), source.header, source.delimiter)

    def from_csv(value: bytes) -> _Fields | None:
        try:
            return codec.original(value)
        except (ValueError, csv.Error):  # no UTF-8, or not as wide as the header
            return None

    return from_csv


def _time_column(source: RecordingSource, fields_of: Callable[[bytes], _Fields | None]) -> str | None:
    sample = [row for row in map(fields_of, source.peek(SAMPLE)) if row is not None]
    try:
        return infer_schema(sample, label=None).timestamp
    except ConfigError:  # nothing to judge in it: it can be published all the same
        return None


def _times(rows: Sequence[_Fields | None], column: str) -> list[int | None]:
    times_ms, usable = parse_times([None if row is None else row.get(column) for row in rows])
    return [time if ok else None for time, ok in zip(times_ms.tolist(), usable.tolist(), strict=True)]


class _Pace:
    """Says when a record is due: as long after the first one as in the recording, divided by the speed."""

    def __init__(self, speed: float, clock: Clock, stop: StopSignal) -> None:
        self._speed = speed
        self._clock = clock
        self._stop = stop
        self._origin: tuple[float, int] | None = None  # seconds by the clock, milliseconds by the recording

    def wait(self, time_ms: int | None) -> bool:
        """Return when a record of this time is due; False if a stop was requested before."""
        if time_ms is None:
            return True
        if self._origin is None:
            self._origin = self._clock.monotonic_s(), time_ms
        began_s, began_ms = self._origin
        due_s = began_s + (time_ms - began_ms) / 1000 / self._speed
        while not self._stop.requested:
            left_s = due_s - self._clock.monotonic_s()
            if left_s <= EARLY_S:
                return True
            self._clock.sleep_s(min(left_s, WAIT_MAX_S))
        return False


@contextmanager
def _meter(what: str) -> Iterator[Show]:
    """A display of records, records/s and the time left, on standard error; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda _records, _share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[records]:,} records"),
        TextColumn("{task.fields[rate]:,.0f} events/s"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, records=0, rate=0.0)

        def show(records: int, share: float | None) -> None:
            elapsed_s = bar.tasks[0].elapsed or 0.0
            rate = records / elapsed_s if elapsed_s > 0 else 0.0
            total = None if share is None else 1.0
            bar.update(task, completed=share or 0.0, total=total, records=records, rate=rate)

        yield show
