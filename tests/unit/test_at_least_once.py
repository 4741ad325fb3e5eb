"""Publish, then commit: nothing is committed that has not arrived, and no more often than asked for."""

from collections.abc import Mapping
from typing import Any

import pytest
from fakes import FakeSink, FakeSource, SteppingClock
from hypothesis import given
from hypothesis import strategies as st

from streamdet.config import Commit
from streamdet.delivery.at_least_once import AtLeastOnce
from streamdet.errors import BrokerError
from streamdet.events import LaneId, Position, Reason, Reject

LANE, OTHER = LaneId("plant", 0), LaneId("plant", 1)
EVERY_S, EVERY_EVENTS = 1.0, 100
PACE = Commit(offsets_every_ms=1_000, every_events=EVERY_EVENTS)


def reject(offset: int, lane: LaneId = LANE) -> Reject:
    return Reject(lane, offset, 0, None, b"{", Reason.INVALID_SYNTAX, "it ends too early")


class Parts:
    """A delivery and what is around it."""

    def __init__(self) -> None:
        self.clock = SteppingClock()
        self.source = FakeSource({LANE: [], OTHER: []})
        self.sink = FakeSink(self.source.journal)
        self.delivery = AtLeastOnce(PACE, self.source, self.sink, self.clock)

    def hold(self, offset: int, *rejects: Reject, lane: LaneId = LANE, records: int = 1) -> None:
        self.delivery.hold(lane, [], rejects, Position(offset), records)

    @property
    def journal(self) -> list[Any]:
        return self.source.journal

    @property
    def commits(self) -> list[dict[LaneId, Position]]:
        return [entry[1] for entry in self.journal if entry[0] == "commit"]


@pytest.fixture
def parts() -> Parts:
    return Parts()


def test_what_is_told_has_arrived_before_its_offset_is_committed(parts: Parts) -> None:
    parts.hold(8, reject(7))
    parts.delivery.turn()
    assert parts.journal == ["publish", "flush", ("commit", {LANE: Position(8)})]
    assert parts.sink.rejects == [reject(7)]


def test_what_is_told_is_flushed_at_each_turn_and_committed_at_its_pace(parts: Parts) -> None:
    """A subscriber does not wait for a commit, which costs a round trip."""
    for offset in range(1, 11):
        parts.clock.now_s += EVERY_S / 4 + 1e-6
        parts.hold(offset, reject(offset - 1))
        parts.delivery.turn()
        assert len(parts.sink.rejects) == offset
    assert [commit[LANE].offset for commit in parts.commits] == [1, 5, 9]
    assert parts.delivery.final == 3 == parts.delivery.outcomes["committed"]


def test_so_many_records_are_committed_before_their_time(parts: Parts) -> None:
    for offset in (1, 60, 101, 161):  # the clock stands still
        parts.hold(offset, records=60)
        parts.delivery.turn()
    assert [commit[LANE].offset for commit in parts.commits] == [1, 101]


def test_where_nothing_is_held_nothing_is_committed(parts: Parts) -> None:
    parts.delivery.turn()
    parts.clock.now_s += 10 * EVERY_S
    parts.delivery.turn()
    assert parts.delivery.commit() == parts.delivery.final == 0
    assert parts.journal == []


def test_a_commit_that_is_asked_for_is_final_at_once(parts: Parts) -> None:
    parts.hold(1)
    parts.delivery.turn()
    parts.hold(2, reject(1))
    number = parts.delivery.commit()
    assert number == parts.delivery.final == 2
    assert parts.journal[-3:] == ["publish", "flush", ("commit", {LANE: Position(2)})]
    assert not parts.delivery.full


def test_the_last_position_of_each_lane_is_committed_with_its_note(parts: Parts) -> None:
    for lane, offset, note in ((LANE, 1, ""), (OTHER, 5, "1:a"), (LANE, 2, "2:b")):
        parts.delivery.hold(lane, [], [], Position(offset, note), 1)
    parts.delivery.turn()
    assert parts.commits == [{LANE: Position(2, "2:b"), OTHER: Position(5, "1:a")}]
    assert parts.source.committed(LANE) == Position(2, "2:b")


def test_the_offset_of_a_lane_that_was_lost_is_left_to_its_new_owner(parts: Parts) -> None:
    parts.hold(1, reject(0))
    parts.hold(1, lane=OTHER)
    parts.delivery.drop([LANE])
    parts.delivery.commit()
    assert parts.commits == [{OTHER: Position(1)}]
    assert parts.sink.rejects == [reject(0)]  # it comes again, from there


def test_when_a_flush_fails_nothing_is_committed_and_the_next_one_tells_it(parts: Parts) -> None:
    parts.hold(1, reject(0))
    parts.sink.flush_error = BrokerError("the topic takes no records")
    for end in (parts.delivery.turn, parts.delivery.commit):
        with pytest.raises(BrokerError):
            end()
    assert parts.commits == []
    assert parts.delivery.final == 0
    parts.sink.flush_error = None
    parts.delivery.turn()
    assert parts.sink.rejects == [reject(0)]
    assert parts.commits == [{LANE: Position(1)}]


class AmidRebalance(FakeSource):
    """Drops so many commits, as a group does that is being dealt out anew."""

    def __init__(self, drops: int) -> None:
        super().__init__({LANE: [], OTHER: []})
        self.drops = drops

    def commit(self, positions: Mapping[LaneId, Position]) -> bool:
        self.drops -= 1
        return self.drops < 0 and super().commit(positions)


def test_a_commit_that_was_dropped_does_not_count_and_comes_again_without_the_lanes_that_were_lost() -> None:
    source, clock = AmidRebalance(drops=2), SteppingClock()
    delivery = AtLeastOnce(PACE, source, FakeSink(), clock)
    for lane in (LANE, OTHER):
        delivery.hold(lane, [], [], Position(4), 4)
    delivery.turn()
    assert delivery.commit() is None
    assert (delivery.final, delivery.records_final) == (0, 0)
    delivery.drop([OTHER])
    assert delivery.commit() == delivery.final == 1
    assert delivery.records_final == 4
    assert source.offsets == {LANE: 4}
    assert delivery.outcomes == {"dropped": 2, "committed": 1}


def test_closing_releases_the_sink_and_commits_nothing(parts: Parts) -> None:
    parts.hold(1, reject(0))
    parts.delivery.close()
    assert parts.journal == ["publish", "close sink"]


@given(st.lists(st.sampled_from(["hold", "tell", "turn", "commit", "wait"]), max_size=40))
def test_never_is_an_offset_committed_before_what_lies_below_it_has_arrived(steps: list[str]) -> None:
    parts, offset, told = Parts(), 0, []
    for step in steps:
        if step in ("hold", "tell"):
            if step == "tell":
                told.append(offset)
            rejects = [reject(offset)] if step == "tell" else []
            offset += 1
            parts.hold(offset, *rejects)
        elif step == "wait":
            parts.clock.now_s += EVERY_S
        elif step == "turn":
            parts.delivery.turn()
        else:
            parts.delivery.commit()
            assert parts.source.offsets.get(LANE, 0) == offset
        arrived = {found.offset for found in parts.sink.rejects}
        assert {at for at in told if at < parts.source.offsets.get(LANE, 0)} <= arrived
