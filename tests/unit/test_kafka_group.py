"""Changes of hands that kafka-python tells of in ways too rare for a real group."""

from typing import Any

from kafka.structs import ConsumerGroupMetadata, MemberState, TopicPartition

from streamdet.events import LaneId
from streamdet.source.kafka_group import Group

ONE, TWO = LaneId("plant", 0), LaneId("plant", 1)


class StandInConsumer:
    """What a group asks of a `KafkaConsumer`; the test says what the answers are."""

    def __init__(self) -> None:
        self.assigned = {TopicPartition(*ONE), TopicPartition(*TWO)}
        self.joined = ConsumerGroupMetadata("g")
        self.listener: Any = None

    def subscribe(self, topics: list[str], listener: object) -> None:
        assert topics == ["plant"]
        self.listener = listener

    def assignment(self) -> set[TopicPartition]:
        return set(self.assigned)

    def group_metadata(self) -> ConsumerGroupMetadata:
        return self.joined

    def join(self, generation: int, member: str = "m", state: MemberState = MemberState.STABLE) -> None:
        self.joined = ConsumerGroupMetadata("g", generation, member, None, state)


class StandInReader:
    def __init__(self) -> None:
        self.consumer = StandInConsumer()


def joined() -> tuple[Group, StandInConsumer]:
    """A group, settled in generation 1 with two lanes."""
    reader: Any = StandInReader()
    group = Group(reader, ["plant"])
    reader.consumer.join(1)
    assert group.update()
    assert group.lanes == {ONE, TWO}
    return group, reader.consumer


def test_nothing_changes_while_the_group_stays_as_it_is() -> None:
    group, _ = joined()
    assert not group.update()


def test_a_lane_that_came_back_between_two_looks_is_gone_for_one() -> None:
    group, consumer = joined()
    consumer.join(3)
    consumer.listener.on_partitions_revoked({TopicPartition(*TWO)})
    assert group.update()
    assert group.lanes == {ONE}
    assert group.update()
    assert group.lanes == {ONE, TWO}


def test_another_member_id_means_that_others_may_have_had_every_lane() -> None:
    # Expelled between the request to join and its answer, a member joins anew and nothing is called revoked.
    group, consumer = joined()
    consumer.join(5, member="n")
    assert group.update()
    assert group.lanes == set()
    assert group.update()
    assert group.lanes == {ONE, TWO}


def test_a_transaction_gets_the_generation_whose_revocations_are_known() -> None:
    group, consumer = joined()
    first, mine = group.membership([ONE, TWO])
    assert first.generation_id == 1
    assert mine == {ONE, TWO}
    # Kafka has answered, and the next poll will say what it took away.
    consumer.join(2, state=MemberState.REBALANCING)
    group.update()
    assert group.membership([ONE]) == (None, frozenset())
    # It was said between two updates: the lane is out at once, with metadata that are not beyond what is known.
    consumer.join(2)
    consumer.assigned = {TopicPartition(*ONE)}
    consumer.listener.on_partitions_revoked({TopicPartition(*TWO)})
    metadata, mine = group.membership([ONE, TWO])
    assert metadata.generation_id == 1
    assert mine == {ONE}
    group.update()
    metadata, mine = group.membership([ONE, TWO])
    assert metadata.generation_id == 2
    assert mine == {ONE}
