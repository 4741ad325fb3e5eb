"""Transactions on a real broker: what a subscriber sees, and what becomes of one that fails."""

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest
from fakes import sample_alert
from kafka import errors
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.structs import ConsumerGroupMetadata, TopicPartition
from kafka_local import Kafka
from live import arrived, until

from streamdet.clock import SystemClock
from streamdet.config import Settings, parse
from streamdet.events import Alert, LaneId, Position, Reason, Reject
from streamdet.sink.kafka_transaction import Attempt, KafkaTransactor

pytestmark = pytest.mark.integration

TRIES = 5
# A transaction that takes longer is given up, as a delivery does after `commit.transaction_timeout_ms`.
LATE_S = 5.0
NOTE = "2a:0123456789ab"


def reject(lane: LaneId, size: int) -> Reject:
    return Reject(lane, 11, 1_000, b"k", b"x" * size, Reason.INVALID_SYNTAX, "expected a number")


class Group:
    """A group without members, whose offsets anybody may commit, and transactors of its settings."""

    def __init__(self, kafka: Kafka, topic: str) -> None:
        self.name = f"g-{uuid.uuid4().hex[:8]}"
        self.lane = LaneId(topic, 0)
        self.settings: Settings = parse(
            {
                "kafka": {"bootstrap_servers": kafka.bootstrap_servers},
                "input": {"topics": [topic], "group_id": self.name},
            }
        )
        self._made: list[KafkaTransactor] = []

    def transactor(self, name: str = "one") -> KafkaTransactor:
        self._made.append(KafkaTransactor(self.settings, name, SystemClock()))
        return self._made[-1]

    def attempt(self, transactor: KafkaTransactor, records: Sequence[Any], offset: int) -> Attempt:
        """One transaction, to its end or until it is late."""
        membership = ConsumerGroupMetadata(self.name)
        made = transactor.begin(records, {self.lane: Position(offset, NOTE)}, membership)
        end_s = time.monotonic() + LATE_S
        until(lambda: made.done or time.monotonic() > end_s, "an end", 2 * LATE_S)
        return made

    def commit(self, transactor: KafkaTransactor, records: Sequence[Any], offset: int) -> int:
        """As often as it takes; how often it took."""
        for tried in range(1, TRIES + 1):
            made = self.attempt(transactor, records, offset)
            if made.done and made.error is None:
                return tried
            transactor.renew(made.error)
        raise AssertionError(f"not committed in {TRIES} attempts: {made.error!r}")

    def alerts(self) -> list[Alert]:
        found = arrived(self.settings.kafka.bootstrap_servers, self.settings.alerts_topic)
        return [msgspec.json.decode(record.value, type=Alert) for record in found]

    def dead_letters(self) -> list[Any]:
        return arrived(self.settings.kafka.bootstrap_servers, self.settings.dead_letters_topic)

    def close(self) -> None:
        for made in self._made:
            made.close()


@pytest.fixture
def group(kafka: Kafka, topic: str) -> Iterator[Group]:
    one = Group(kafka, topic)
    yield one
    one.close()


def committed(admin: Any, group: Group) -> tuple[int, str]:
    found = admin.list_group_offsets({group.name: [TopicPartition(*group.lane)]})[group.name]
    (at,) = found.values()
    return at.offset, at.metadata


def test_alerts_dead_letters_and_offsets_with_their_notes_are_there_together(
    group: Group, kafka_admin: Any
) -> None:
    transactor = group.transactor()
    records = transactor.records([sample_alert(7), sample_alert(9)], [reject(group.lane, 10)])
    assert group.commit(transactor, records, 42) == 1
    assert group.alerts() == [sample_alert(7), sample_alert(9)]
    assert [record.value for record in group.dead_letters()] == [b"x" * 10]
    assert committed(kafka_admin, group) == (42, NOTE)


def test_a_successor_of_the_same_name_puts_an_end_to_what_came_before(group: Group, kafka_admin: Any) -> None:
    first = group.transactor()
    assert group.commit(first, first.records([sample_alert(1)], []), 10) == 1
    second = group.transactor()
    assert group.attempt(first, first.records([sample_alert(2)], []), 20).error is not None
    assert group.commit(second, second.records([sample_alert(3)], []), 30) == 1
    assert group.alerts() == [sample_alert(1), sample_alert(3)]
    assert committed(kafka_admin, group) == (30, NOTE)


def test_a_limit_that_is_lowered_meanwhile_holds_up_nothing_and_repeats_nothing(
    group: Group, kafka_admin: Any
) -> None:
    transactor = group.transactor()
    topic = group.settings.dead_letters_topic
    kafka_admin.alter_configs(
        [ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": "50000"})]
    )
    records = transactor.records([sample_alert(1)], [reject(group.lane, 100_000), reject(group.lane, 10)])
    group.commit(transactor, records, 10)
    assert group.alerts() == [sample_alert(1)]
    large, small = group.dead_letters()
    assert dict(large.headers)["truncated"] == b"true"
    assert small.value == b"x" * 10


def test_a_topic_that_was_deleted_is_made_again(group: Group, kafka_admin: Any) -> None:
    transactor = group.transactor()
    kafka_admin.delete_topics([group.settings.alerts_topic])
    # A broker that has not heard of it yet would take the alert, and delete it with the rest.
    until(lambda: group.settings.alerts_topic not in kafka_admin.list_topics(), "the deletion")
    group.commit(transactor, transactor.records([sample_alert(1)], []), 10)
    assert group.alerts() == [sample_alert(1)]


def test_where_offsets_cannot_be_committed_no_alert_is_to_be_seen(group: Group) -> None:
    transactor = group.transactor()
    stale = ConsumerGroupMetadata(group.name, 7, "a member that the group does not know")
    made = transactor.begin(transactor.records([sample_alert(1)], []), {group.lane: Position(10)}, stale)
    until(lambda: made.done, "an end")
    assert isinstance(made.error, errors.CommitFailedError)
    transactor.renew(made.error)
    assert group.commit(transactor, transactor.records([sample_alert(2)], []), 10) == 1
    assert group.alerts() == [sample_alert(2)]
