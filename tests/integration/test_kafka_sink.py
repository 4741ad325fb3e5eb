"""The Kafka sink on a real broker: what is particular to Kafka. What holds for every sink is in tests/contract."""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from fakes import sample_alert
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka_broker import MakeTopic, OwnKafka
from kafka_local import Kafka

from streamdet.clock import SystemClock
from streamdet.config import Settings, parse
from streamdet.errors import BrokerError, BrokerUnavailableError
from streamdet.events import Alert, LaneId, Reason, Reject
from streamdet.sink.kafka import KafkaSink

pytestmark = pytest.mark.integration

WITHIN_S = 40.0
LANE = LaneId("sensors", 3)


def settings(servers: str, topic: str, **given: Any) -> Settings:
    return parse(
        {
            "kafka": {"bootstrap_servers": servers},
            "input": {"topics": [topic], "group_id": "plant"},
            **given,
        }
    )


def alert(offset: int = 7, **changes: Any) -> Alert:
    return sample_alert(offset, LANE, **changes)


def reject(value: bytes | None, key: bytes | None = b"k", error: str = "expected a number") -> Reject:
    return Reject(LANE, 11, 1_000, key, value, Reason.INVALID_SYNTAX, error)


def arrived(servers: str, topic: str) -> list[Any]:
    """All records of a topic."""
    consumer = KafkaConsumer(
        bootstrap_servers=servers.split(","),
        isolation_level="read_committed",
        max_partition_fetch_bytes=2**26,
    )
    partitions = [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic))]
    consumer.assign(partitions)
    consumer.seek_to_beginning()
    ends = consumer.end_offsets(partitions)
    records: list[Any] = []
    end_s = time.monotonic() + WITHIN_S
    while any(consumer.position(tp) < end for tp, end in ends.items()):
        assert time.monotonic() < end_s, f"{topic} is not to be read to its end"
        for polled in consumer.poll(timeout_ms=200).values():
            records += polled
    consumer.close()
    return records


def headers_of(record: Any) -> dict[str, bytes]:
    return dict(record.headers)


@pytest.fixture
def made(kafka: Kafka, kafka_admin: Any, make_topic: MakeTopic) -> Iterator[tuple[KafkaSink, Settings]]:
    """A sink beside an input topic of two partitions."""
    given = settings(kafka.bootstrap_servers, make_topic(2))
    sink = KafkaSink(given, SystemClock())
    yield sink, given
    sink.close()
    kafka_admin.delete_topics([given.alerts_topic, given.dead_letters_topic])


def test_topics_are_created_with_the_partitions_of_the_input(
    made: tuple[KafkaSink, Settings], kafka_admin: Any
) -> None:
    _, given = made
    described = kafka_admin.describe_topics([given.alerts_topic, given.dead_letters_topic])
    assert [len(topic["partitions"]) for topic in described] == [2, 2]
    # They exist now: another worker is content with them.
    KafkaSink(given, SystemClock()).close()


def test_a_topic_that_cannot_be_created_is_named(kafka: Kafka, topic: str) -> None:
    given = settings(kafka.bootstrap_servers, topic, alerts={"topic": "no spaces, please"})
    with pytest.raises(BrokerError, match="no spaces, please"):
        KafkaSink(given, SystemClock())


def test_an_alert_arrives_as_a_cloud_event(made: tuple[KafkaSink, Settings]) -> None:
    sink, given = made
    sink.publish([alert()], [])
    sink.flush()
    (record,) = arrived(given.kafka.bootstrap_servers, given.alerts_topic)
    assert record.key == b"pump-4"
    assert msgspec.json.decode(record.value, type=Alert) == alert()
    assert headers_of(record) == {
        "ce_specversion": b"1.0",
        "ce_id": b"sensors/3/7",
        "ce_source": b"streamdet/plant",
        "ce_type": b"streamdet.alert",
        "ce_time": b"2026-03-01T12:00:00.000Z",
        "content-type": b"application/json",
        "schema_version": b"1",
    }


def test_an_alert_without_an_entity_is_keyed_by_its_lane(made: tuple[KafkaSink, Settings]) -> None:
    sink, given = made
    sink.publish([alert(entity=None), alert(entity="")], [])
    sink.flush()
    records = arrived(given.kafka.bootstrap_servers, given.alerts_topic)
    assert [record.key for record in records] == [b"sensors/3", b"sensors/3"]


def test_alerts_of_an_entity_keep_their_order(made: tuple[KafkaSink, Settings]) -> None:
    sink, given = made
    sink.publish([alert(offset) for offset in range(2_000)], [])
    sink.flush()
    records = arrived(given.kafka.bootstrap_servers, given.alerts_topic)
    assert [msgspec.json.decode(r.value, type=Alert).source.offset for r in records] == list(range(2_000))


def test_a_dead_letter_is_the_record_itself_with_the_reason_beside_it(
    made: tuple[KafkaSink, Settings],
) -> None:
    sink, given = made
    sink.publish([], [reject(b"\xff{", error="x" * 5_000)])
    sink.flush()
    (record,) = arrived(given.kafka.bootstrap_servers, given.dead_letters_topic)
    assert (record.key, record.value) == (b"k", b"\xff{")
    assert headers_of(record) == {
        "reason": b"invalid_syntax",
        "error": b"x" * 1_000,
        "topic": b"sensors",
        "partition": b"3",
        "offset": b"11",
        "timestamp": b"1000",
    }


def test_a_record_with_neither_key_nor_value_becomes_a_dead_letter_too(
    made: tuple[KafkaSink, Settings],
) -> None:
    sink, given = made
    sink.publish([], [reject(None, key=None)])
    sink.flush()
    (record,) = arrived(given.kafka.bootstrap_servers, given.dead_letters_topic)
    assert (record.key, record.value) == (None, b"")
    assert headers_of(record)["null_value"] == b"true"


def test_a_dead_letter_of_five_megabytes_arrives_whole(made: tuple[KafkaSink, Settings]) -> None:
    sink, given = made
    value = bytes(range(256)) * 20_000
    sink.publish([], [reject(value)])
    sink.flush()
    (record,) = arrived(given.kafka.bootstrap_servers, given.dead_letters_topic)
    assert record.value == value


def assert_truncated(records: list[Any]) -> None:
    """Of two small and two large dead letters, the small ones are whole and the large ones begin as they did."""
    cut = [r for r in records if "truncated" in headers_of(r)]
    assert sorted(r.value for r in records if r not in cut) == [b"after", b"before"]
    assert sorted(headers_of(r)["original_bytes"] for r in cut) == [b"20000000", b"3000000"]
    assert sorted(r.value[:1] for r in cut) == [b"x", b"y"]
    assert all(10_000 < len(r.value) < 50_000 and len(set(r.value)) == 1 for r in cut)
    assert all(headers_of(r)["truncated"] == b"true" and headers_of(r)["offset"] == b"11" for r in cut)


MIXED = [reject(b"before"), reject(b"x" * 3_000_000), reject(b"y" * 20_000_000), reject(b"after")]


def test_a_dead_letter_larger_than_its_topic_allows_arrives_truncated(
    kafka: Kafka, make_topic: MakeTopic
) -> None:
    small = make_topic(1, {"max.message.bytes": "50000"})
    given = settings(kafka.bootstrap_servers, make_topic(), dead_letters={"topic": small})
    sink = KafkaSink(given, SystemClock())
    sink.publish([], MIXED)
    sink.flush()
    sink.close()
    assert_truncated(arrived(given.kafka.bootstrap_servers, small))


def test_a_limit_that_is_lowered_meanwhile_loses_nothing(
    made: tuple[KafkaSink, Settings], kafka_admin: Any
) -> None:
    sink, given = made
    topic = given.dead_letters_topic
    kafka_admin.alter_configs(
        [ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": "50000"})]
    )
    sink.publish([alert(0)], MIXED)
    sink.flush()
    assert_truncated(arrived(given.kafka.bootstrap_servers, topic))
    # The producer had to be made anew for it, and what it had not yet sent came along.
    sink.publish([alert(1)], [])
    sink.flush()
    records = arrived(given.kafka.bootstrap_servers, given.alerts_topic)
    assert {msgspec.json.decode(r.value, type=Alert).source.offset for r in records} == {0, 1}


def test_an_alert_whose_event_is_too_large_arrives_without_it(
    made: tuple[KafkaSink, Settings], make_topic: MakeTopic
) -> None:
    _, given = made
    small = make_topic(1, {"max.message.bytes": "50000"})
    given = settings(given.kafka.bootstrap_servers, given.input.topics[0], alerts={"topic": small})
    sink = KafkaSink(given, SystemClock())
    sink.publish([alert(event={"note": "n" * 100_000})], [])
    sink.flush()
    sink.close()
    (record,) = arrived(given.kafka.bootstrap_servers, small)
    assert msgspec.json.decode(record.value, type=Alert) == alert(event={})
    assert headers_of(record)["truncated"] == b"true"


def test_more_than_fits_into_memory_is_flushed_on_the_way(made: tuple[KafkaSink, Settings]) -> None:
    sink, given = made
    sink.publish([], [reject(bytes([i]) * 4_000_000) for i in range(12)])
    # Everything but the last 32 MiB has been waited for.
    early = arrived(given.kafka.bootstrap_servers, given.dead_letters_topic)
    assert len(early) >= 12 - 8
    sink.flush()
    assert len(arrived(given.kafka.bootstrap_servers, given.dead_letters_topic)) == 12


def test_a_topic_that_was_deleted_is_made_again(made: tuple[KafkaSink, Settings], kafka_admin: Any) -> None:
    sink, given = made
    sink.publish([alert(1)], [])
    sink.flush()
    kafka_admin.delete_topics([given.alerts_topic])
    # A broker that has not heard of it yet would take the next alert, and delete it with the rest.
    wait_until(lambda: given.alerts_topic not in kafka_admin.list_topics())
    sink.publish([alert(2)], [])
    sink.flush()
    records = arrived(given.kafka.bootstrap_servers, given.alerts_topic)
    assert [msgspec.json.decode(r.value, type=Alert).id for r in records] == ["sensors/3/2"]


def messages(caplog: pytest.LogCaptureFixture, word: str) -> int:
    return sum(f"kafka {word} " in record.getMessage() for record in caplog.records)


def test_flush_waits_for_a_broker_that_is_away_and_loses_nothing(
    own_kafka: OwnKafka, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "streamdet")
    given = settings(own_kafka.bootstrap_servers, own_kafka.create_topic("sensors"))
    stop = threading.Event()
    sink = KafkaSink(given, SystemClock(), stop.is_set)
    sink.publish([alert(0)], [])
    sink.flush()

    own_kafka.stop()
    sink.publish([alert(1), alert(2)], [reject(b"bad")])
    flushed = in_background(sink.flush)
    wait_until(lambda: messages(caplog, "away") == 1)
    stop.set()
    began_s = time.monotonic()
    with pytest.raises(BrokerUnavailableError):
        flushed()
    assert time.monotonic() - began_s < 1
    stop.clear()

    flushed = in_background(sink.flush)
    own_kafka.start()
    flushed()
    assert messages(caplog, "away") == messages(caplog, "back") == 1
    records = arrived(given.kafka.bootstrap_servers, given.alerts_topic)
    assert [msgspec.json.decode(r.value, type=Alert).source.offset for r in records] == [0, 1, 2]
    assert len(arrived(given.kafka.bootstrap_servers, given.dead_letters_topic)) == 1

    # Closing without a broker is quick, whatever is on its way.
    own_kafka.stop()
    sink.publish([alert(3)], [])
    began_s = time.monotonic()
    sink.close()
    assert time.monotonic() - began_s < 3


def in_background(work: Callable[[], None]) -> Callable[[], None]:
    """Start work in a thread; calling the result waits for it and raises what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            raised.append(error)

    thread = threading.Thread(target=run, name=f"work-{uuid.uuid4().hex[:4]}")
    thread.start()

    def result() -> None:
        thread.join(WITHIN_S)
        assert not thread.is_alive()
        if raised:
            raise raised[0]

    return result


def wait_until(true: Callable[[], bool]) -> None:
    end_s = time.monotonic() + WITHIN_S
    while not true():
        assert time.monotonic() < end_s
        time.sleep(0.02)
