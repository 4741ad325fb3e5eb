"""Which lane is the lowest that ever had a record, whatever is known at the moment."""

from collections.abc import Callable
from typing import Any

from fakes import SteppingClock
from kafka.structs import TopicPartition

from streamdet.events import LaneId
from streamdet.source.kafka_leading import ASK_EVERY_S, Leading


def part(topic: str, partition: int) -> TopicPartition:
    return TopicPartition(topic, partition)


class StandInReader:
    """Answers with the ends that the test sets, or not at all; notes what was asked."""

    def __init__(self, ends: dict[TopicPartition, int]) -> None:
        self.ends = ends
        self.away = False
        self.asked: list[set[TopicPartition]] = []
        self.consumer = self

    def partitions(self, topic: str) -> set[TopicPartition]:
        return {tp for tp in self.ends if tp.topic == topic}

    def end_offsets(self, partitions: list[TopicPartition], timeout_ms: int) -> dict[TopicPartition, int]:
        assert timeout_ms > 0
        self.asked.append(set(partitions))
        return {tp: self.ends[tp] for tp in partitions}

    def once(self, attempt: Callable[[int], Any], timeout_ms: int) -> Any:
        return None if self.away else attempt(timeout_ms)


def leading(ends: dict[TopicPartition, int]) -> tuple[Leading, StandInReader, SteppingClock]:
    reader: Any = StandInReader(ends)
    clock = SteppingClock()
    return Leading(reader, clock, dict(ends)), reader, clock


def leads(lead: Leading, topic: str, partition: int) -> bool:
    return lead.among({LaneId(topic, partition)})


def test_while_all_are_empty_the_lowest_lane_leads() -> None:
    lead, _, _ = leading({part("b", 0): 0, part("a", 1): 0})
    assert leads(lead, "a", 1)


def test_only_lower_lanes_are_asked_about_and_not_all_the_time() -> None:
    lead, reader, clock = leading({part("a", 0): 0, part("a", 1): 7, part("a", 2): 9})
    assert leads(lead, "a", 1)
    for _ in range(10):
        lead.look(at_once=False)
    assert reader.asked == [{part("a", 0)}]
    reader.ends[part("a", 0)] = 1
    lead.look(at_once=False)
    assert leads(lead, "a", 1)
    clock.now_s += ASK_EVERY_S
    lead.look(at_once=False)
    assert leads(lead, "a", 0)
    lead.look(at_once=True)
    assert len(reader.asked) == 2  # nothing is lower


def test_without_an_answer_the_last_one_holds() -> None:
    lead, reader, _ = leading({part("a", 0): 0, part("a", 1): 7})
    reader.away, reader.ends = True, {}
    lead.look(at_once=True)
    assert leads(lead, "a", 1)


def test_a_topic_that_is_gone_leaves_the_lead_to_the_next_one() -> None:
    lead, reader, _ = leading({part("a", 0): 5, part("b", 0): 0, part("b", 1): 5})
    assert leads(lead, "a", 0)
    del reader.ends[part("a", 0)]
    lead.look(at_once=True)
    assert leads(lead, "b", 1)


def test_a_topic_made_anew_is_asked_about_again() -> None:
    lead, reader, _ = leading({part("a", 0): 5, part("b", 0): 5})
    reader.ends[part("a", 0)] = 0
    lead.forget({"a"})
    lead.look(at_once=True)
    assert leads(lead, "b", 0)


def test_a_lane_that_a_topic_was_given_later_may_come_to_lead() -> None:
    lead, reader, _ = leading({part("a", 0): 0, part("b", 0): 5})
    reader.ends[part("a", 1)] = 1
    lead.look(at_once=True)
    assert leads(lead, "a", 1)
