"""Topics into recordings and back, on a real broker."""

import gzip
import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka_broker import MakeTopic, OwnKafka
from kafka_local import Kafka

from streamdet.broker.publisher import Publisher
from streamdet.clock import SystemClock
from streamdet.config import Kafka as Cluster
from streamdet.errors import BrokerError, BrokerUnavailableError, RecordingError
from streamdet.source.parquet import Recorded, recorded
from streamdet.transfer import publish_recordings, record_topic

pytestmark = pytest.mark.integration

WITHIN_S = 30.0


@dataclass
class Stop:
    requested: bool = False


class StopAfter:
    """A stop request that comes by itself after it has been asked for so many times."""

    def __init__(self, times: int) -> None:
        self._left = times

    @property
    def requested(self) -> bool:
        self._left -= 1
        return self._left < 0


def cluster(kafka: Kafka | OwnKafka) -> Cluster:
    return Cluster(bootstrap_servers=kafka.bootstrap_servers)


def record(kafka: Kafka, topic: str, output: Path, count: int | None = None) -> list[Recorded]:
    record_topic(cluster(kafka), topic, output, count=count, follow=False, stop=Stop())
    return list(recorded(output))


def publish(kafka: Kafka, recordings: list[Path], topic: str) -> int:
    return publish_recordings(cluster(kafka), recordings, topic, speed=None, stop=Stop())


def write(kafka: Kafka, topic: str, values: Sequence[bytes | None], **options: Any) -> None:
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap_servers.split(","))
    for i, value in enumerate(values):
        producer.send(topic, value, key=b"k%d" % i, timestamp_ms=1_000 + i, **options)
    producer.flush()
    producer.close()


def read(kafka: Kafka, topic: str, n: int) -> list[Any]:
    """The first n records of a topic, partition by partition."""
    consumer = KafkaConsumer(bootstrap_servers=kafka.bootstrap_servers.split(","))
    try:
        lanes = [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic))]
        consumer.assign(lanes)
        consumer.seek_to_beginning(*lanes)
        found: list[Any] = []
        end_s = time.monotonic() + WITHIN_S
        while len(found) < n:
            assert time.monotonic() < end_s, f"{len(found)} of {n} records within {WITHIN_S:.0f} s"
            found += [r for records in consumer.poll(timeout_ms=500).values() for r in records]
    finally:
        consumer.close()
    return sorted(found, key=lambda r: (r.partition, r.offset))


def lossless(records: Sequence[Any]) -> list[Any]:
    """What has to come through unchanged, per partition in order."""
    by_lane = sorted(records, key=lambda r: (r.partition, r.offset))
    return [(r.partition, r.key, r.value, tuple(r.headers)) for r in by_lane]


def test_a_topic_recorded_published_and_recorded_again_is_the_same_bytes(
    kafka: Kafka, make_topic: MakeTopic, tmp_path: Path
) -> None:
    one, other = make_topic(partitions=3), make_topic(partitions=3)
    odd: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]] = [
        (b'{"a": 1}', b"k", [("trace", b"\x00\xff"), ("trace", b"again")]),
        (None, b"tombstone", []),
        (None, None, [("neither", b"key nor value")]),
        (b"", None, []),
        (b"\xff\x00 no text", b"", [("", b"")]),
    ]
    publisher = Publisher(cluster(kafka), one, SystemClock(), lambda: False, paced=False)
    for i in range(300):
        value, key, headers = odd[i % len(odd)]
        publisher.send(value, key, headers, partition=i % 3)
    publisher.flush()
    publisher.close()
    first = record(kafka, one, tmp_path / "first")
    assert publish(kafka, [tmp_path / "first"], other) == 300
    second = record(kafka, other, tmp_path / "second")
    assert len(first) == 300
    assert lossless(first) == lossless(second)
    assert {(r.key, r.value, tuple(r.headers)) for r in first} == {(k, v, tuple(h)) for v, k, h in odd}


def test_a_recording_has_the_coordinates_and_times_of_the_topic(
    kafka: Kafka, make_topic: MakeTopic, tmp_path: Path
) -> None:
    topic = make_topic(partitions=2)
    write(kafka, topic, [b"a", b"b"], partition=1)
    write(kafka, topic, [b"c"], partition=0)
    records = record(kafka, topic, tmp_path / "r")
    assert {(r.topic, r.partition, r.offset, r.timestamp_ms, r.value) for r in records} == {
        (topic, 1, 0, 1000, b"a"),
        (topic, 1, 1, 1001, b"b"),
        (topic, 0, 0, 1000, b"c"),
    }
    assert [r.timestamp_ms for r in records if r.partition == 1] == [1000, 1001]


def test_records_are_published_with_the_time_of_publishing(
    kafka: Kafka, make_topic: MakeTopic, tmp_path: Path
) -> None:
    one, other = make_topic(), make_topic()
    write(kafka, one, [b"a"])
    record(kafka, one, tmp_path / "r")
    before_ms = SystemClock().now_ms()
    publish(kafka, [tmp_path / "r"], other)
    (again,) = read(kafka, other, 1)
    assert before_ms - 1_000 <= again.timestamp <= SystemClock().now_ms() + 1_000


def test_a_topic_with_fewer_partitions_keeps_keys_together(
    kafka: Kafka, make_topic: MakeTopic, tmp_path: Path
) -> None:
    one, other = make_topic(partitions=4), make_topic(partitions=2)
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap_servers.split(","))
    for i in range(80):
        producer.send(one, b"%d" % i, key=b"k%d" % (i % 8))
        producer.send(one, b"%d" % i, partition=i % 4)
    producer.flush()
    producer.close()
    records = record(kafka, one, tmp_path / "r")
    publish(kafka, [tmp_path / "r"], other)
    again = read(kafka, other, 160)
    for key in {r.key for r in records} - {None}:
        assert len({r.partition for r in again if r.key == key}) == 1
        assert [r.value for r in again if r.key == key] == [r.value for r in records if r.key == key]
    keyless = [r for r in again if r.key is None]
    assert {(int(r.value) % 4) % 2 == r.partition for r in keyless} == {True}


def test_rows_become_json_with_numbers_and_nulls(kafka: Kafka, topic: str, tmp_path: Path) -> None:
    path = tmp_path / "sensors.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write('device,"temp, C",on,note\nm-1,20.5,1,"said ""no"""\nm-2,,0,\nbroken row\n')
    assert publish(kafka, [path], topic) == 3
    values = [r.value for r in read(kafka, topic, 3)]
    assert [json.loads(value) for value in values[:2]] == [
        {"device": "m-1", "temp, C": 20.5, "on": 1, "note": 'said "no"'},
        {"device": "m-2", "temp, C": None, "on": 0, "note": None},
    ]
    assert values[2] == b"broken row"


def test_json_lines_are_published_as_they_are(kafka: Kafka, topic: str, tmp_path: Path) -> None:
    lines = [b'{"b":  1.50, "a": null}', b"not json", b'{"x": NaN}']
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n".join(lines))
    publish(kafka, [path], topic)
    assert [r.value for r in read(kafka, topic, 3)] == lines


def test_a_count_ends_the_recording(kafka: Kafka, topic: str, tmp_path: Path) -> None:
    write(kafka, topic, [b"%d" % i for i in range(50)])
    assert [r.value for r in record(kafka, topic, tmp_path / "r", count=7)] == [b"%d" % i for i in range(7)]


def test_a_recording_ends_after_a_transaction_though_its_marker_is_no_record(
    kafka: Kafka, topic: str, tmp_path: Path
) -> None:
    producer = KafkaProducer(
        bootstrap_servers=kafka.bootstrap_servers.split(","), transactional_id=f"t-{uuid.uuid4().hex[:8]}"
    )
    producer.init_transactions()
    for value, end in ((b"kept", producer.commit_transaction), (b"aborted", producer.abort_transaction)):
        producer.begin_transaction()
        producer.send(topic, value)
        producer.flush()
        end()
    producer.close()
    assert [r.value for r in record(kafka, topic, tmp_path / "r")] == [b"kept"]


def test_a_missing_topic_is_an_error_and_leaves_no_file(kafka: Kafka, tmp_path: Path) -> None:
    name = f"nowhere-{uuid.uuid4().hex[:8]}"
    with pytest.raises(BrokerError, match=rf"topic '{name}' does not exist.*--create --topic {name}"):
        record(kafka, name, tmp_path / "r")
    assert list(tmp_path.iterdir()) == []
    rows = tmp_path / "rows.csv"
    rows.write_text("a,b\n1,2\n")
    with pytest.raises(BrokerError, match=rf"topic '{name}' does not exist"):
        publish(kafka, [rows], name)


def test_an_empty_topic_is_said_and_leaves_no_file(kafka: Kafka, topic: str, tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="held no record"):
        record(kafka, topic, tmp_path / "r")
    assert list(tmp_path.iterdir()) == []


def test_a_record_too_large_for_the_topic_is_an_error_with_a_count(
    kafka: Kafka, make_topic: MakeTopic, tmp_path: Path
) -> None:
    topic = make_topic(config={"max.message.bytes": "2000"})
    path = tmp_path / "events.jsonl"
    path.write_text("\n".join(['{"a": 1}'] * 500 + [json.dumps({"a": "x" * 3000})]))
    with pytest.raises(RecordingError, match=r"does not fit topic .* takes 2000.*max\.message\.bytes"):
        publish(kafka, [path], topic)


def test_small_records_fit_a_topic_of_small_records(
    kafka: Kafka, make_topic: MakeTopic, tmp_path: Path
) -> None:
    topic = make_topic(config={"max.message.bytes": "2000"})
    path = tmp_path / "events.jsonl"
    path.write_text("\n".join(json.dumps({"a": i}) for i in range(2_000)))
    assert publish(kafka, [path], topic) == 2_000


def test_a_paced_recording_takes_as_long_as_its_times_say(kafka: Kafka, topic: str, tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text("time,x\n" + "".join(f"2026-01-01T00:00:{s:02d}Z,{s}\n" for s in (0, 20, 20, 40)))
    began_s = time.monotonic()
    done = publish_recordings(cluster(kafka), [path], topic, speed=40.0, stop=Stop())
    assert done == 4
    assert time.monotonic() - began_s >= 1.0
    first, second, third, last = (r.timestamp for r in read(kafka, topic, 4))
    assert second - first >= 490
    assert third - second < 400
    assert last - first >= 990


def test_rows_without_times_come_one_a_second_and_a_stop_delivers_what_was_handed_over(
    kafka: Kafka, topic: str, tmp_path: Path
) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("\n".join(json.dumps({"x": i}) for i in range(1_000)))
    done = publish_recordings(cluster(kafka), [path], topic, speed=20.0, stop=StopAfter(20))
    assert 1 <= done < 1_000
    assert [json.loads(r.value) for r in read(kafka, topic, done)] == [{"x": i} for i in range(done)]


def test_publishing_goes_on_when_the_broker_comes_back(own_kafka: OwnKafka) -> None:
    topic = own_kafka.create_topic("outage")
    publisher = Publisher(cluster(own_kafka), topic, SystemClock(), lambda: False, paced=False)
    publisher.send(b"before")
    publisher.flush()
    own_kafka.stop()
    publisher.send(b"meanwhile")
    own_kafka.start()
    publisher.flush()
    publisher.close()
    assert publisher.delivered == 2


def test_a_stop_while_kafka_is_away_says_what_is_not_delivered(own_kafka: OwnKafka) -> None:
    topic = own_kafka.create_topic("outage")
    publisher = Publisher(cluster(own_kafka), topic, SystemClock(), lambda: True, paced=False)
    publisher.send(b"before")
    publisher.flush()
    own_kafka.kill()
    publisher.send(b"lost")
    with pytest.raises(BrokerUnavailableError, match="1 records arrived, 1 more may have"):
        publisher.flush()
    publisher.close()
