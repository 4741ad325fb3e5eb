"""What holds for every source: the same catalogue for a Kafka group, recordings of each kind, and paced ones.

What is particular to one of them is in tests/integration/test_kafka_source.py and tests/unit/test_recording_*.py.
"""

import gzip
import itertools
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import pytest
from fakes import FakeSource, SteppingClock
from kafka import KafkaProducer
from kafka_broker import create_topic
from kafka_local import Kafka
from pyarrow import parquet

from streamdet.clock import SystemClock
from streamdet.config import parse
from streamdet.events import Batch, LaneId, Position
from streamdet.sink.recording import RecordingWriter
from streamdet.source import Source
from streamdet.source.formats import ROW_LANE, ROW_START_MS
from streamdet.source.kafka import KafkaSource
from streamdet.source.paced import PacedSource
from streamdet.source.recording import RecordingSource

WITHIN_S = 40.0
ROWS = 23
FIRST_MS = 1_700_000_000_000


class Record(NamedTuple):
    """What a source gives of one record."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None


@dataclass
class Stream:
    """Records that lie somewhere, and a way to read them from the beginning."""

    records: Mapping[LaneId, Sequence[Record]]
    open: Callable[[], Source]  # each source of a group of its own
    endless: bool = False
    made: list[Source] = field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(map(len, self.records.values()))

    def source(self) -> Source:
        self.made.append(self.open())
        return self.made[-1]


def carried_records(topic: str) -> dict[LaneId, list[Record]]:
    """Two lanes with keys, without keys, tombstones, an empty value and arbitrary bytes, taking turns in time."""
    values = [b'{"x": 1}', None, b"", bytes(range(256)), "größer".encode(), b'{"x": 2}', None, b"[1]"]
    lanes = {}
    for partition in (0, 1):
        lanes[LaneId(topic, partition)] = [
            Record(
                i,
                FIRST_MS + 1_000 * (2 * i + partition),
                None if i % 3 == 0 and values[(i + partition) % 8] is not None else b"k%d" % i,
                values[(i + partition) % 8],
            )
            for i in range(ROWS)
        ]
    return lanes


def row_records(values: Sequence[bytes]) -> dict[LaneId, list[Record]]:
    """What a file without coordinates is to give."""
    return {ROW_LANE: [Record(i, ROW_START_MS + 1000 * i, None, value) for i, value in enumerate(values)]}


def csv_stream(folder: Path) -> Stream:
    rows = [b'%d,"a, b",%.1f' % (i, i / 2) for i in range(ROWS)]
    path = folder / "rows.csv.gz"
    path.write_bytes(gzip.compress(b"n,name,x\r\n" + b"\r\n".join(rows) + b"\r\n"))
    return Stream(row_records(rows), lambda: RecordingSource([path]))


def json_stream(folder: Path) -> Stream:
    rows = [b'{"n": %d, "name": "\xc3\xa9"}' % i for i in range(ROWS)]
    paths = [folder / "one.jsonl", folder / "two.jsonl"]
    for path, part in zip(paths, (rows[:9], rows[9:]), strict=True):
        path.write_bytes(b"\n".join(part) + b"\n")
    return Stream(row_records(rows), lambda: RecordingSource(paths))


def parquet_stream(folder: Path) -> Stream:
    path = folder / "rows.parquet"
    table = pa.table({"n": list(range(ROWS)), "name": ["a", None, "b"] * 7 + ["c", "d"]})
    parquet.write_table(table, path, row_group_size=5)
    rows = [msgspec.json.encode({"n": row["n"], "name": row["name"]}) for row in table.to_pylist()]
    return Stream(row_records(rows), lambda: RecordingSource([path]))


def lossless_stream(folder: Path) -> Stream:
    path = folder / "topic.parquet"
    lanes = carried_records("plant")
    arrivals = sorted((r.timestamp_ms, lane, r) for lane, records in lanes.items() for r in records)
    with RecordingWriter(path) as writer:
        for _, lane, r in arrivals:
            writer.write(lane.topic, lane.partition, r.offset, r.timestamp_ms, r.key, r.value)
    return Stream(lanes, lambda: RecordingSource([path]))


def paced(stream: Stream) -> Stream:
    """The stream at ten times its pace, by a clock that takes no time."""
    return Stream(stream.records, lambda: PacedSource(stream.open(), 10.0, SteppingClock()))


def fake_stream(_: Path) -> Stream:
    lanes = {lane: [r.value for r in records] for lane, records in carried_records("plant").items()}
    records = {
        lane: [Record(i, FIRST_MS + 1_000 * i, b"%d" % i, value) for i, value in enumerate(values)]
        for lane, values in lanes.items()
    }
    return Stream(records, lambda: FakeSource(lanes))


FILES: dict[str, Callable[[Path], Stream]] = {
    "csv": csv_stream,
    "json lines": json_stream,
    "parquet": parquet_stream,
    "lossless": lossless_stream,
    "paced csv": lambda folder: paced(csv_stream(folder)),
    "paced lossless": lambda folder: paced(lossless_stream(folder)),
    "fake": fake_stream,
}


@pytest.fixture(scope="module")
def published(request: pytest.FixtureRequest) -> Iterator[Callable[[], Stream]]:
    """Two partitions of a topic, written once; started only by a test that asks for it."""
    made: list[tuple[Any, str, Stream]] = []

    def publish() -> Stream:
        if not made:
            kafka: Kafka = request.getfixturevalue("kafka")
            admin = request.getfixturevalue("kafka_admin")
            made.append((admin, *_publish(kafka.bootstrap_servers, admin)))
        stream = made[0][2]
        return Stream(stream.records, stream.open, endless=True)

    yield publish
    for admin, topic, _ in made:
        admin.delete_topics([topic])


def _publish(servers: str, admin: Any) -> tuple[str, Stream]:
    topic = f"contract-{uuid.uuid4().hex[:8]}"
    create_topic(admin, topic, partitions=2)
    lanes = carried_records(topic)
    producer = KafkaProducer(bootstrap_servers=servers.split(","))
    for lane, records in lanes.items():
        for r in records:
            producer.send(topic, r.value, r.key, partition=lane.partition, timestamp_ms=r.timestamp_ms)
    producer.flush()
    producer.close()

    def open_source() -> Source:
        given = {"topics": [topic], "group_id": f"g-{uuid.uuid4().hex[:8]}"}
        settings = parse({"kafka": {"bootstrap_servers": servers}, "input": given})
        return KafkaSource(settings, SystemClock())

    return topic, Stream(lanes, open_source, endless=True)


@pytest.fixture(params=[*FILES, pytest.param("kafka", marks=pytest.mark.integration)])
def stream(
    request: pytest.FixtureRequest, tmp_path: Path, published: Callable[[], Stream]
) -> Iterator[Stream]:
    one = published() if request.param == "kafka" else FILES[request.param](tmp_path)
    yield one
    for source in one.made:
        source.close()


def polls(source: Source, count: int, max_events: int) -> Iterator[Batch]:
    """Batches until so many records have come, none beyond, within a time."""
    end_s = time.monotonic() + WITHIN_S
    while count > 0:
        assert not source.exhausted, f"{count} records are missing"
        batch = source.poll(min(max_events, count))
        count -= len(batch)
        yield batch
        assert time.monotonic() < end_s, f"{count} records did not come within {WITHIN_S:.0f} s"


def taken(source: Source, count: int, max_events: int = 10) -> dict[LaneId, list[Record]]:
    """The next records, by lane."""
    lanes: dict[LaneId, list[Record]] = {}
    for batch in polls(source, count, max_events):
        for part in batch.parts:
            columns = (part.offsets.tolist(), part.timestamps_ms.tolist(), part.keys, part.values)
            lanes.setdefault(part.lane, []).extend(itertools.starmap(Record, zip(*columns, strict=True)))
    return lanes


@pytest.mark.parametrize("max_events", [1, 7, 1_000_000])
def test_every_record_comes_once_and_in_order_within_its_lane(stream: Stream, max_events: int) -> None:
    assert taken(stream.source(), stream.count, max_events) == stream.records


@pytest.mark.parametrize("max_events", [1, 5])
def test_a_poll_brings_at_most_what_was_asked_for(stream: Stream, max_events: int) -> None:
    source, left = stream.source(), stream.count
    end_s = time.monotonic() + WITHIN_S
    while left > 0:
        batch = source.poll(max_events)
        assert len(batch) <= max_events
        left -= len(batch)
        assert time.monotonic() < end_s


def test_a_batch_has_one_part_for_each_lane_in_it_and_no_empty_ones(stream: Stream) -> None:
    for batch in polls(stream.source(), stream.count, 9):
        lanes = [part.lane for part in batch.parts]
        assert len(set(lanes)) == len(lanes)
        for part in batch.parts:
            n = len(part.offsets)
            assert n == len(part.timestamps_ms) == len(part.keys) == len(part.values) > 0
            assert (part.offsets[1:] > part.offsets[:-1]).all()
        assert batch.next_offsets == {part.lane: int(part.offsets[-1]) + 1 for part in batch.parts}


def test_a_lane_is_known_before_its_first_record(stream: Stream) -> None:
    source = stream.source()
    for batch in polls(source, stream.count, 10):
        assert {part.lane for part in batch.parts} <= source.lanes
    assert source.lanes == stream.records.keys()


def test_it_is_exhausted_with_the_last_record_and_a_topic_never(stream: Stream) -> None:
    source = stream.source()
    taken(source, stream.count - 1)
    assert not source.exhausted
    taken(source, 1)
    assert source.exhausted is not stream.endless
    assert len(source.poll(10)) == 0
    assert source.exhausted is not stream.endless


def test_seeking_back_gives_the_same_bytes_again(stream: Stream) -> None:
    source = stream.source()
    taken(source, stream.count)
    for lane in stream.records:
        source.seek(lane, 0)
    assert not source.exhausted
    assert taken(source, stream.count) == stream.records


@pytest.mark.parametrize("offset", [0, 1, ROWS - 1])
def test_seeking_back_moves_one_lane_only(stream: Stream, offset: int) -> None:
    source, lane = stream.source(), max(stream.records)
    taken(source, stream.count)
    source.seek(lane, offset)
    assert taken(source, ROWS - offset) == {lane: stream.records[lane][offset:]}


def test_seeking_ahead_leaves_out_what_lies_between(stream: Stream) -> None:
    source, lane, offset = stream.source(), max(stream.records), 20
    first = taken(source, 3)
    source.seek(lane, offset)
    rest = {ln: records[len(first.get(ln, [])) :] for ln, records in stream.records.items()}
    rest[lane] = stream.records[lane][offset:]
    assert taken(source, sum(map(len, rest.values()))) == rest


def test_seeking_ahead_and_back_again_changes_nothing(stream: Stream) -> None:
    source = stream.source()
    first = taken(source, 3)
    for lane, records in stream.records.items():
        source.seek(lane, ROWS)
        source.seek(lane, len(first.get(lane, [])))
        assert len(records) == ROWS
    rest = taken(source, stream.count - 3)
    assert {ln: first.get(ln, []) + rest[ln] for ln in stream.records} == stream.records


def test_nothing_is_committed_but_by_commit(stream: Stream) -> None:
    source = stream.source()
    taken(source, stream.count)
    assert [source.committed(lane) for lane in stream.records] == [None] * len(stream.records)
    lane = max(stream.records)
    source.commit({lane: Position(5, "4:m1")})
    assert source.committed(lane) == Position(5, "4:m1")
    source.commit({})
    source.commit({lane: Position(7)})  # the note goes with its offset
    assert {ln: source.committed(ln) for ln in stream.records} == {
        **dict.fromkeys(stream.records),
        lane: Position(7),
    }


def test_a_commit_does_not_move_the_reading(stream: Stream) -> None:
    source = stream.source()
    first = taken(source, 3)
    source.commit(dict.fromkeys(stream.records, Position(1)))
    rest = taken(source, stream.count - 3)
    assert {ln: first.get(ln, []) + rest[ln] for ln in stream.records} == stream.records


def test_a_poll_for_nothing_brings_nothing_and_loses_nothing(stream: Stream) -> None:
    source = stream.source()
    assert len(source.poll(0)) == 0
    first = taken(source, 3)
    for _ in range(5):
        assert len(source.poll(0)) == 0
    rest = taken(source, stream.count - 3)
    assert {ln: first.get(ln, []) + rest[ln] for ln in stream.records} == stream.records


def test_who_reads_alone_leads_and_a_topic_has_one_name(stream: Stream) -> None:
    source = stream.source()
    taken(source, stream.count)
    assert source.leads
    for lane in stream.records:
        assert source.topic_id(lane.topic) == source.topic_id(lane.topic)
        assert bool(source.topic_id(lane.topic)) is stream.endless


def test_closing_twice_is_like_closing_once(stream: Stream) -> None:
    source = stream.source()
    taken(source, 3)
    source.close()
    source.close()


def test_a_source_that_was_never_polled_can_be_closed(stream: Stream) -> None:
    stream.source().close()
