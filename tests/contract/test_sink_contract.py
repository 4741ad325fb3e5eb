"""What holds for every sink: everything handed over has arrived after a flush, whole and in order."""

import base64
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fakes import FakeSink, sample_alert
from kafka import KafkaConsumer, TopicPartition
from kafka_broker import create_topic
from kafka_local import Kafka

from streamdet.clock import SystemClock
from streamdet.config import parse
from streamdet.events import Alert, FeatureShare, LaneId, Reason, Reject
from streamdet.sink import Sink
from streamdet.sink.jsonl import JsonLinesSink
from streamdet.sink.kafka import KafkaSink

LANE = LaneId("plant", 0)


@dataclass
class Place:
    """A sink, and what has arrived behind it, read without its help."""

    sink: Sink
    alerts: Callable[[], list[Alert]]
    rejects: Callable[[], list[Reject]]


def alert(
    offset: int,
    entity: str | None = "pump",
    number: float = 1.5,
    word: str | None = "north",
    event: dict[str, object] | None = None,
) -> Alert:
    return sample_alert(
        offset,
        LANE,
        entity=entity,
        score=number,
        p_value=5e-324,
        features=[FeatureShare("x", number, None, 0.75), FeatureShare("site", word, "south", 0.25)],
        event={"x": number, "site": word} if event is None else event,
    )


def reject(offset: int, value: bytes | None, key: bytes | None = b"k", error: str = "why") -> Reject:
    return Reject(LANE, offset, 1_700_000_000_000 + offset, key, value, Reason.INVALID_SYNTAX, error)


def fake_place(_folder: Path, _files: ExitStack) -> Place:
    sink = FakeSink()
    return Place(sink, lambda: sink.alerts, lambda: sink.rejects)


def file_place(folder: Path, files: ExitStack) -> Place:
    alerts, rejects = folder / "alerts.jsonl", folder / "rejects.jsonl"

    def read_alerts() -> list[Alert]:
        return [msgspec.json.decode(line, type=Alert) for line in alerts.read_bytes().splitlines()]

    def read_rejects() -> list[Reject]:
        return [_reject(msgspec.json.decode(line)) for line in rejects.read_bytes().splitlines()]

    sink = JsonLinesSink(*(files.enter_context(path.open("wb")) for path in (alerts, rejects)))
    return Place(sink, read_alerts, read_rejects)


def _reject(letter: dict[str, Any]) -> Reject:
    key, value = (None if letter[n] is None else base64.b64decode(letter[n]) for n in ("key", "value"))
    lane = LaneId(letter["topic"], letter["partition"])
    reason = Reason(letter["reason"])
    return Reject(lane, letter["offset"], letter["timestamp_ms"], key, value, reason, letter["error"])


def kafka_place(servers: str, topic: str) -> Place:
    settings = parse({"kafka": {"bootstrap_servers": servers}, "input": {"topics": [topic]}})

    def read_alerts() -> list[Alert]:
        values = (r.value for r in arrived(servers, settings.alerts_topic))
        return [msgspec.json.decode(value, type=Alert) for value in values]

    def read_rejects() -> list[Reject]:
        return [_letter(record) for record in arrived(servers, settings.dead_letters_topic)]

    return Place(KafkaSink(settings, SystemClock()), read_alerts, read_rejects)


def _letter(record: Any) -> Reject:
    h = {name: value.decode() for name, value in record.headers}
    lane = LaneId(h["topic"], int(h["partition"]))
    value = None if "null_value" in h else record.value
    reason = Reason(h["reason"])
    return Reject(lane, int(h["offset"]), int(h["timestamp"]), record.key, value, reason, h["error"])


def arrived(servers: str, topic: str) -> list[Any]:
    """All records of a topic of one partition."""
    consumer = KafkaConsumer(bootstrap_servers=servers.split(","), fetch_max_wait_ms=50)
    lane = TopicPartition(topic, 0)
    consumer.assign([lane])
    consumer.seek_to_beginning()
    end = consumer.end_offsets([lane])[lane]
    records: list[Any] = []
    while consumer.position(lane) < end:
        records += consumer.poll(timeout_ms=5_000).get(lane, [])
    consumer.close()
    return records


@pytest.fixture(params=["fake", "json lines", pytest.param("kafka", marks=pytest.mark.integration)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param != "kafka":
        with ExitStack() as files:
            one = {"fake": fake_place, "json lines": file_place}[request.param](tmp_path, files)
            yield one
            one.sink.close()
        return
    kafka: Kafka = request.getfixturevalue("kafka")
    admin = request.getfixturevalue("kafka_admin")
    topic = f"contract-{uuid.uuid4().hex[:8]}"
    create_topic(admin, topic)
    one = kafka_place(kafka.bootstrap_servers, topic)
    yield one
    one.sink.close()
    admin.delete_topics([topic, f"{topic}.alerts", f"{topic}.dead-letters"])


def test_all_that_was_handed_over_has_arrived_after_a_flush_and_in_order(place: Place) -> None:
    alerts = [alert(i) for i in range(500)]
    rejects = [reject(i, b"%d" % i) for i in range(500)]
    for start in range(0, 500, 50):
        place.sink.publish(alerts[start : start + 50], rejects[start : start + 50])
    place.sink.flush()
    assert place.alerts() == alerts
    assert place.rejects() == rejects


def test_each_flush_adds_to_what_has_arrived(place: Place) -> None:
    place.sink.publish([alert(1)], [])
    place.sink.flush()
    assert (place.alerts(), place.rejects()) == ([alert(1)], [])
    place.sink.publish([], [reject(2, b"{")])
    place.sink.publish([alert(3)], [])
    place.sink.flush()
    assert (place.alerts(), place.rejects()) == ([alert(1), alert(3)], [reject(2, b"{")])


def test_alerts_arrive_equal_to_the_last_bit(place: Place) -> None:
    alerts = [
        alert(1, entity=None),
        alert(2, entity='größer \U0001f600 \x00 " \\ \n'),
        alert(3, number=-0.1, word=None, event={}),
        alert(4, number=1.7976931348623157e308),
        alert(5, number=2.2250738585072014e-308),
        alert(6, event={"a": [1, {"b": None}], "": "x", "deep": {"c": True}, "n": 2**53}),
    ]
    place.sink.publish(alerts, [])
    place.sink.flush()
    assert place.alerts() == alerts


def test_rejects_keep_their_bytes_their_place_and_the_reason(place: Place) -> None:
    rejects = [
        reject(1, bytes(range(256))),
        reject(2, None),
        reject(3, b"", key=None),
        reject(4, None, key=None),
        reject(5, b"{" * 100_000, key=b"\xff\x00"),
        reject(6, b"x", error='größer, "quoted",\nin two lines'),
        *(Reject(LANE, 7 + i, 0, b"", b"v", reason, "") for i, reason in enumerate(Reason)),
    ]
    place.sink.publish([], rejects)
    place.sink.flush()
    assert place.rejects() == rejects


def test_flushing_nothing_is_fine(place: Place) -> None:
    place.sink.flush()
    place.sink.publish([], [])
    place.sink.flush()
    assert (place.alerts(), place.rejects()) == ([], [])


def test_closing_twice_is_like_closing_once_and_loses_nothing_that_was_flushed(place: Place) -> None:
    place.sink.publish([alert(1)], [reject(2, b"{")])
    place.sink.flush()
    place.sink.close()
    place.sink.close()
    assert (place.alerts(), place.rejects()) == ([alert(1)], [reject(2, b"{")])


def test_a_sink_without_files_takes_everything_and_keeps_nothing() -> None:
    sink = JsonLinesSink()
    sink.publish([alert(1)], [reject(2, b"{")])
    sink.flush()
    sink.close()
