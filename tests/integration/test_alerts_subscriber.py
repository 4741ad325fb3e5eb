"""The public subscriber, on a real broker: `streamdet.alerts.subscribe`."""

import itertools
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from fakes import sample_alert
from kafka import KafkaProducer
from kafka_broker import MakeTopic
from kafka_local import Kafka

from streamdet.alerts import Subscription, subscribe
from streamdet.errors import BrokerError
from streamdet.events import Alert

pytestmark = pytest.mark.integration

WITHIN_S = 30.0


def alert(offset: int, entity: str = "pump-1") -> Alert:
    return sample_alert(offset, entity=entity, features=[], event={})


def publish(kafka: Kafka, topic: str, *alerts: Alert, at_ms: int | None = None, partition: int = 0) -> None:
    publish_bytes(kafka, topic, *map(msgspec.json.encode, alerts), at_ms=at_ms, partition=partition)


def publish_bytes(
    kafka: Kafka, topic: str, *values: bytes | None, at_ms: int | None = None, partition: int = 0
) -> None:
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap_servers)
    for value in values:
        producer.send(topic, value, key=b"k", timestamp_ms=at_ms, partition=partition)
    producer.flush()
    producer.close()


def offsets(alerts: Subscription, n: int) -> list[int]:
    return [alert.source.offset for alert in itertools.islice(alerts, n)]


@pytest.fixture
def opened(kafka: Kafka) -> Iterator[Callable[..., Subscription]]:
    """Makes subscriptions that fail rather than hang, and closes them when the test is over."""
    made: list[Subscription] = []

    def make(topic: str, **given: Any) -> Subscription:
        given = {"timeout_s": WITHIN_S, **given}
        made.append(subscribe(topic, bootstrap_servers=kafka.bootstrap_servers, **given))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_missing_topic_says_who_creates_it(kafka: Kafka) -> None:
    with pytest.raises(BrokerError, match=r"topic 'no\.alerts' does not exist.*streamdet run.*creates it"):
        subscribe("no.alerts", bootstrap_servers=kafka.bootstrap_servers)


def test_latest_misses_nothing_that_is_published_after_subscribing(
    kafka: Kafka, topic: str, opened: Callable[..., Subscription]
) -> None:
    publish(kafka, topic, alert(0))
    alerts = opened(topic)
    publish(kafka, topic, alert(1), alert(2))  # before the first look
    assert list(itertools.islice(alerts, 2)) == [alert(1), alert(2)]


def test_earliest_brings_all_and_ends_where_it_was_told_not_to_follow(
    kafka: Kafka, make_topic: MakeTopic, opened: Callable[..., Subscription]
) -> None:
    topic = make_topic(2)
    publish(kafka, topic, alert(0), alert(1), partition=0)
    publish(kafka, topic, alert(2), partition=1)
    alerts = opened(topic, start="earliest", follow=False)
    publish(kafka, topic, alert(3))  # came too late
    assert sorted(a.source.offset for a in alerts) == [0, 1, 2]


def test_an_empty_topic_that_is_not_followed_ends_at_once(
    topic: str, opened: Callable[..., Subscription]
) -> None:
    assert list(opened(topic, start="earliest", follow=False)) == []


def test_a_time_brings_what_was_published_since(
    kafka: Kafka, make_topic: MakeTopic, opened: Callable[..., Subscription]
) -> None:
    topic = make_topic(2)  # one partition has nothing since then
    publish(kafka, topic, alert(0), at_ms=1_000_000, partition=0)
    publish(kafka, topic, alert(1), at_ms=1_000_000, partition=1)
    publish(kafka, topic, alert(2), at_ms=3_000_000, partition=1)
    since = datetime.fromtimestamp(2_000, tz=UTC)
    assert [a.source.offset for a in opened(topic, start=since, follow=False)] == [2]


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        subscribe("alerts", start=datetime(2026, 3, 1))  # noqa: DTZ001 - what is tested


def test_a_group_goes_on_after_what_was_dealt_with(
    kafka: Kafka, topic: str, opened: Callable[..., Subscription]
) -> None:
    group = uuid.uuid4().hex
    first = opened(topic, group_id=group)
    publish(kafka, topic, *map(alert, range(5)))
    assert offsets(first, 3) == [0, 1, 2]
    first.close()
    # The third was handed out, but nobody has said that it was dealt with.
    second = opened(topic, group_id=group)
    assert offsets(second, 3) == [2, 3, 4]


def test_a_group_that_was_closed_before_its_first_alert_keeps_its_place(
    kafka: Kafka, topic: str, opened: Callable[..., Subscription]
) -> None:
    publish(kafka, topic, alert(0))
    group = uuid.uuid4().hex
    opened(topic, group_id=group).close()
    publish(kafka, topic, alert(1))
    assert offsets(opened(topic, group_id=group), 1) == [1]


def test_two_of_a_group_share_the_alerts(
    kafka: Kafka, make_topic: MakeTopic, opened: Callable[..., Subscription]
) -> None:
    topic, group = make_topic(2), uuid.uuid4().hex
    stop, of_first, of_second = threading.Event(), list[int](), list[int]()
    first = opened(topic, group_id=group, timeout_s=None, stopped=stop.is_set)
    # Each in a thread of its own, as in programs of their own: a rebalance needs both at once.
    thread = threading.Thread(target=lambda: of_first.extend(a.source.offset for a in first))
    thread.start()
    second = opened(topic, group_id=group, timeout_s=0.3)
    publish(kafka, topic, *map(alert, range(5)), partition=0)
    publish(kafka, topic, *map(alert, range(5, 10)), partition=1)
    end_s = time.monotonic() + WITHIN_S
    while len(of_first) + len(of_second) < 10 and time.monotonic() < end_s:
        of_second.extend(a.source.offset for a in second)
    stop.set()
    thread.join(WITHIN_S)
    assert sorted(of_first + of_second) == list(range(10))
    assert len(of_first) == len(of_second) == 5


def test_only_the_alerts_of_an_entity_come_where_one_is_named(
    kafka: Kafka, topic: str, opened: Callable[..., Subscription]
) -> None:
    publish(kafka, topic, alert(0, "a"), alert(1, "b"), alert(2, "a"))
    alerts = opened(topic, start="earliest", entity="a", follow=False)
    assert [a.source.offset for a in alerts] == [0, 2]


def test_records_that_are_no_alerts_are_skipped_counted_and_told_of(
    kafka: Kafka, topic: str, opened: Callable[..., Subscription], caplog: pytest.LogCaptureFixture
) -> None:
    publish_bytes(kafka, topic, b"hello", b'{"id": 3}', b"\xff\xfe", None, msgspec.json.encode(alert(4)))
    with caplog.at_level(logging.WARNING, "streamdet"):
        alerts = opened(topic, start="earliest", follow=False)
        assert [a.source.offset for a in alerts] == [4]
    assert alerts.skipped == 4
    told = [r.getMessage() for r in caplog.records if r.name == "streamdet.alerts"]
    assert len(told) == 1
    assert f"lane={topic}/0 offset=0" in told[0]


def test_an_alert_of_a_later_version_with_more_fields_is_understood(
    kafka: Kafka, topic: str, opened: Callable[..., Subscription]
) -> None:
    later = {**msgspec.to_builtins(alert(0)), "incident": "i-1"}
    publish_bytes(kafka, topic, msgspec.json.encode(later))
    assert list(opened(topic, start="earliest", follow=False)) == [alert(0)]


def test_silence_ends_the_iteration_when_a_time_is_given(
    topic: str, opened: Callable[..., Subscription]
) -> None:
    began_s = time.monotonic()
    assert list(opened(topic, timeout_s=0.5)) == []
    assert 0.5 <= time.monotonic() - began_s < 5


def test_a_stop_ends_the_iteration(topic: str, opened: Callable[..., Subscription]) -> None:
    looks = itertools.count()
    assert list(opened(topic, stopped=lambda: next(looks) > 5)) == []


def test_closing_twice_and_leaving_the_block_are_fine(kafka: Kafka, topic: str) -> None:
    with subscribe(topic, bootstrap_servers=kafka.bootstrap_servers) as alerts:
        alerts.close()
    alerts.close()
