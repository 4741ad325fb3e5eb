"""Delivery in transactions over a simulated Kafka: when it commits, what it sends again, and what it leaves out."""

from collections.abc import Callable
from typing import Any

import pytest
from fakes import SteppingClock
from kafka import errors
from simulated_kafka import ALERTS, DEAD_LETTERS, TOPIC, TRANSACTION_S, SimulatedKafka, SimulatedSource
from simulated_kafka import SimulatedTransactor as Transactor

from streamdet.config import Commit
from streamdet.delivery import exactly_once
from streamdet.delivery.exactly_once import HELD_COMMITS_MAX, STOPPING_S, ExactlyOnce
from streamdet.errors import BrokerError
from streamdet.events import LaneId, Position, Reason, Reject

LANE, OTHER = LaneId(TOPIC, 0), LaneId(TOPIC, 1)
PACE = Commit(every_ms=100, offsets_every_ms=1_000, every_events=50)
ENOUGH = 50  # steps: more than any transaction here has


def reject(offset: int, lane: LaneId = LANE, size: int = 1) -> Reject:
    return Reject(lane, offset, 0, b"k", b"x" * size, Reason.INVALID_SYNTAX, "no JSON")


class Member:
    """A worker as far as delivery goes: its place in the group, and a transactor of its own."""

    def __init__(self, kafka: SimulatedKafka, name: str = "w", pace: Commit = PACE) -> None:
        self.stopping = False
        self.kafka = kafka
        self.source = SimulatedSource(kafka)
        self.transactor = Transactor(kafka, name)
        self.delivery = ExactlyOnce(pace, self.source, self.transactor, kafka.clock, lambda: self.stopping)
        self.source.poll(0)

    def judge(self, at: int, lane: LaneId = LANE, size: int = 1) -> None:
        """Judge the one record at this offset, which was a bad one."""
        self.delivery.hold(lane, [], [reject(at, lane, size)], Position(at + 1, f"at {at}"), 1)

    def pass_over(self, n: int, lane: LaneId = LANE) -> None:
        """Judge the records below an offset, of which there is nothing to tell."""
        self.delivery.hold(lane, [], [], Position(n), n)

    def go_on(self, steps: int = ENOUGH) -> None:
        for _ in range(steps):
            self.transactor.step()
        while self.kafka.mark():
            pass
        self.delivery.turn()

    def poll(self) -> None:
        """As the loop does it: lanes that are gone are dropped."""
        before = set(self.source.lanes)
        self.source.poll(0)
        self.delivery.drop(before - self.source.lanes)

    @property
    def under_way(self) -> bool:
        return self.transactor.attempt is not None and not self.transactor.attempt.done


@pytest.fixture
def clock() -> SteppingClock:
    return SteppingClock()


@pytest.fixture
def kafka(clock: SteppingClock) -> SimulatedKafka:
    return SimulatedKafka(clock, 2)


@pytest.fixture
def member(kafka: SimulatedKafka) -> Member:
    """One that has both lanes, and whose first commit, which is always due, is done."""
    made = Member(kafka)
    made.pass_over(10)
    made.pass_over(10, OTHER)
    made.delivery.turn()
    made.go_on()
    kafka.tick(0.001)
    assert committed(kafka) == {LANE: 10, OTHER: 10}
    return made


def committed(kafka: SimulatedKafka) -> dict[LaneId, int]:
    found = {lane: kafka.committed(lane) for lane in kafka.input}
    return {lane: position.offset for lane, position in found.items() if position is not None}


def told(kafka: SimulatedKafka) -> list[int]:
    """Offsets of the dead letters that a subscriber sees, in the order in which it does."""
    return [int(dict(record.headers)["offset"]) for record in kafka.visible(DEAD_LETTERS)]


# The pace.


def test_what_is_to_be_told_is_committed_after_every_ms_and_no_sooner(member: Member) -> None:
    member.judge(10)
    member.kafka.tick(0.05)
    member.delivery.turn()
    assert not member.under_way
    member.kafka.tick(0.06)
    member.delivery.turn()
    assert member.under_way


def test_offsets_alone_are_committed_after_offsets_every_ms(member: Member) -> None:
    member.pass_over(12)
    member.kafka.tick(0.9)
    member.delivery.turn()
    assert not member.under_way
    member.kafka.tick(0.2)
    member.delivery.turn()
    assert member.under_way


def test_so_many_records_are_committed_at_once(member: Member) -> None:
    for at in range(10, 10 + PACE.every_events - 1):
        member.judge(at)
    member.delivery.turn()
    assert not member.under_way
    member.judge(10 + PACE.every_events - 1)
    member.delivery.turn()
    assert member.under_way


def test_so_many_bytes_are_committed_at_once_and_no_more_is_judged_while_they_are_held(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exactly_once, "HELD_BYTES_MAX", 100_000)
    member.judge(10, size=99_000)
    assert not full(member)
    member.judge(11, size=1_000)
    assert full(member)
    member.delivery.turn()
    assert member.under_way
    assert not full(member)


def full(member: Member) -> bool:
    return member.delivery.full


def test_while_a_commit_is_under_way_a_few_more_may_be_judged_and_then_none(member: Member) -> None:
    member.pass_over(60)
    member.delivery.turn()
    assert member.under_way
    at = 60
    while not member.delivery.full:
        at += PACE.every_events
        member.delivery.hold(LANE, [], [], Position(at), PACE.every_events)
    assert at == 60 + HELD_COMMITS_MAX * PACE.every_events
    member.go_on()
    assert member.under_way  # the next one
    assert not member.delivery.full


def test_with_nothing_judged_nothing_is_begun(member: Member) -> None:
    member.kafka.tick(5.0)
    member.delivery.turn()
    assert not member.under_way
    number = member.delivery.commit()
    assert number is not None
    assert member.delivery.final == number


# What is final.


def test_records_and_offsets_become_visible_together(member: Member) -> None:
    member.judge(10)
    member.judge(11, OTHER)
    assert member.delivery.commit() is not None
    attempt = member.transactor.attempt
    assert attempt is not None
    while attempt.steps_left > 2:  # all but the end, and its answer
        member.transactor.step()
        assert told(member.kafka) == []
    assert member.kafka.unstable(LANE)
    member.go_on()
    member.kafka.tick(0.1)
    assert sorted(told(member.kafka)) == [10, 11]
    assert committed(member.kafka) == {LANE: 11, OTHER: 12}
    assert member.kafka.committed(LANE) == Position(11, "at 10")


def test_a_commit_has_a_number_and_is_final_once_it_counted(member: Member) -> None:
    member.judge(10)
    number = member.delivery.commit()
    assert number is not None
    member.judge(11)
    assert member.delivery.commit() is None  # the one before is under way
    assert member.delivery.final < number
    member.go_on()
    assert member.delivery.final == number
    later = member.delivery.commit()
    assert later is not None
    assert later > number
    assert member.delivery.outcomes == {"committed": 2}


def test_the_number_of_an_aborted_commit_is_never_final_before_its_records_are(member: Member) -> None:
    member.judge(10)
    number = member.delivery.commit()
    assert number is not None
    fail(member, errors.KafkaConnectionError("away"))
    member.delivery.turn()
    assert member.delivery.final < number
    member.go_on()
    assert member.delivery.final > number
    assert told(member.kafka) == [10]
    assert member.delivery.outcomes == {"committed": 2, "aborted": 1}


# What failed.


def fail(member: Member, error: Exception, after: int = 0) -> None:
    attempt = member.transactor.attempt
    assert attempt is not None
    for _ in range(after):
        attempt.step()
    attempt.fail(error)


def test_what_failed_goes_out_again_with_what_came_since(member: Member) -> None:
    member.judge(10)
    member.judge(20, OTHER)
    member.delivery.commit()
    member.judge(11)
    fail(member, errors.KafkaTimeoutError("no answer"), after=2)
    member.delivery.turn()
    assert member.under_way  # at once
    member.go_on()
    member.kafka.tick(0.1)
    assert sorted(told(member.kafka)) == [10, 11, 20]
    assert committed(member.kafka) == {LANE: 12, OTHER: 21}


@pytest.mark.parametrize(("steps", "outcome"), [(2, "aborted"), (3, "committed")])
def test_the_committed_offsets_tell_whether_a_transaction_without_an_answer_counted(
    member: Member, steps: int, outcome: str
) -> None:
    """Of three requests, the last one decides: whether it arrived before the connection broke, nobody has said."""
    member.judge(10)
    member.delivery.commit()
    before = member.delivery.outcomes[outcome]
    fail(member, errors.KafkaConnectionError("away"), after=steps)
    member.delivery.turn()
    assert member.delivery.outcomes[outcome] == before + 1
    assert member.under_way is (outcome == "aborted")
    member.go_on()
    member.kafka.tick(0.1)
    assert told(member.kafka) == [10]
    assert committed(member.kafka)[LANE] == 11


@pytest.mark.parametrize("steps", range(4))
def test_a_transaction_that_takes_too_long_is_ended_and_its_late_requests_are_refused(
    member: Member, steps: int
) -> None:
    member.judge(10)
    member.delivery.commit()
    old = member.transactor.attempt
    assert old is not None
    for _ in range(steps):
        old.step()
    member.kafka.tick(PACE.transaction_timeout_ms / 1000)
    member.delivery.turn()
    assert member.transactor.attempt is old
    member.kafka.tick(1.0)
    member.delivery.turn()
    assert member.transactor.renewals == [None]
    while not old.done:
        old.step()
    member.go_on()
    member.kafka.tick(0.1)
    assert told(member.kafka) == [10]
    assert committed(member.kafka)[LANE] == 11


def test_once_a_stop_was_requested_a_transaction_is_waited_for_less_long(member: Member) -> None:
    member.judge(10)
    member.delivery.commit()
    member.kafka.tick(STOPPING_S + 0.5)
    member.delivery.turn()
    assert member.transactor.renewals == []
    member.stopping = True
    member.delivery.turn()
    assert member.transactor.renewals == [None]


def test_a_transaction_that_kafka_ended_by_time_goes_out_again(kafka: SimulatedKafka) -> None:
    member = Member(kafka, pace=Commit(every_ms=0, transaction_timeout_ms=900_000))
    member.judge(0)
    member.delivery.turn()
    member.go_on(steps=1)
    kafka.tick(TRANSACTION_S + 2.0)
    member.go_on()
    assert member.delivery.outcomes == {"aborted": 1}
    member.go_on()
    assert told(kafka) == [0]


def test_an_error_that_repeating_does_not_mend_is_raised(member: Member) -> None:
    member.judge(10)
    member.delivery.commit()
    fail(member, errors.TopicAuthorizationFailedError("plant.alerts"))
    with pytest.raises(BrokerError, match="refused"):
        member.delivery.turn()


# Lanes that come and go.


def joined(member: Member) -> Member:
    """Another member, to which the second lane goes."""
    other = Member(member.kafka, "v")
    while OTHER not in other.source.lanes:
        member.poll()
        other.poll()
    member.poll()
    assert member.source.lanes == {LANE}
    return other


def test_a_lane_that_was_lost_before_a_commit_is_left_out_of_it(member: Member) -> None:
    member.judge(10)
    member.judge(20, OTHER)
    joined(member)
    member.delivery.commit()
    member.go_on()
    member.kafka.tick(0.1)
    assert told(member.kafka) == [10]
    assert committed(member.kafka) == {LANE: 11, OTHER: 10}


@pytest.mark.parametrize("forgets", [True, False])
def test_a_commit_from_before_a_rebalance_is_refused_and_goes_out_again_without_the_lost_lane(
    member: Member, forgets: bool
) -> None:
    """Whether the loop has noticed the loss by then or not."""
    member.judge(10)
    member.judge(20, OTHER)
    member.delivery.commit()
    other = Member(member.kafka, "v")
    while OTHER not in other.source.lanes:
        member.source.poll(0)
        other.source.poll(0)
    if forgets:
        member.delivery.drop([OTHER])
    member.go_on()
    assert isinstance(member.transactor.renewals[0], errors.CommitFailedError)
    other.judge(20, OTHER)
    other.delivery.commit()
    other.go_on()
    member.source.poll(0)
    for _ in range(3):
        member.go_on()
    member.kafka.tick(0.1)
    assert sorted(told(member.kafka)) == [10, 20]
    assert committed(member.kafka) == {LANE: 11, OTHER: 21}


def test_a_lane_that_was_lost_and_came_back_between_two_turns_is_not_sent_twice(member: Member) -> None:
    """The transaction fails; meanwhile another worker has the lane, tells what is in it, and goes."""
    member.judge(10)
    member.delivery.commit()
    member.go_on(steps=1)
    member.source.deaf = True
    member.kafka.tick(25.0)  # expelled, and what was open is aborted
    other = Member(member.kafka, "v")
    other.judge(10)
    other.delivery.commit()
    other.go_on()
    other.delivery.close()
    other.source.close()
    member.source.deaf = False
    while LANE not in member.source.lanes or member.kafka.group.generation < 3:
        member.poll()
        member.go_on()
    member.poll()
    member.go_on()
    member.kafka.tick(0.1)
    assert told(member.kafka) == [10]
    assert committed(member.kafka)[LANE] == 11
    assert not member.under_way


def test_a_dropped_lane_is_forgotten_while_its_transaction_is_under_way(member: Member) -> None:
    """If the transaction fails, the lane does not go out again, even where it is here once more."""
    member.judge(10)
    member.judge(20, OTHER)
    number = member.delivery.commit()
    member.delivery.drop([LANE, OTHER])
    fail(member, errors.KafkaConnectionError("away"), after=1)
    member.delivery.turn()
    assert not member.under_way
    assert number is not None
    assert member.delivery.final < number
    assert member.delivery.outcomes["lost"] == 1
    member.kafka.tick(0.1)
    assert told(member.kafka) == []
    assert committed(member.kafka) == {LANE: 10, OTHER: 10}


def test_a_commit_of_lost_lanes_alone_sends_nothing(member: Member) -> None:
    member.judge(20, OTHER)
    other = Member(member.kafka, "v")
    while OTHER not in other.source.lanes:
        member.source.poll(0)
        other.source.poll(0)
    before = member.delivery.final
    assert member.delivery.commit() is None, "the worker has yet to hear that the lane is lost"
    member.delivery.drop([OTHER])
    assert member.delivery.commit() == member.delivery.final == before
    assert not member.under_way


def test_a_commit_whose_lanes_were_all_lost_makes_nothing_final(member: Member) -> None:
    """Whether it counted, nobody here can tell: state that was frozen with it must not be saved."""
    member.judge(20, OTHER)
    number = member.delivery.commit()
    assert number is not None
    other = Member(member.kafka, "v")
    while OTHER not in other.source.lanes:
        member.source.poll(0)
        other.source.poll(0)
    fail(member, errors.KafkaConnectionError("away"), after=1)
    member.delivery.turn()
    assert member.delivery.outcomes["lost"] == 1
    assert member.delivery.commit() is None
    member.delivery.drop([OTHER])
    assert member.delivery.commit() == member.delivery.final < number


def test_the_records_of_a_former_owner_are_refused_in_every_step(kafka: SimulatedKafka) -> None:
    """A worker that was stopped for longer than the session goes on, knowing of nothing."""
    for steps in range(4):
        former = Member(kafka, f"former-{steps}")
        at = committed(kafka).get(LANE, 0)
        former.judge(at)
        former.delivery.commit()
        former.transactor.step()
        former.source.deaf = True
        kafka.tick(21.0)
        heir = Member(kafka, f"heir-{steps}")
        heir.judge(at)
        heir.delivery.commit()
        for _ in range(steps):
            heir.transactor.step()
        former.go_on()  # it waits for the offsets that the other one's transaction holds back, until that is aborted
        heir.go_on()
        heir.go_on()
        assert told(kafka)[-1] == at
        assert len(told(kafka)) == len(set(told(kafka)))
        for one in (former, heir):
            one.delivery.close()
            one.source.close()


# The simulated Kafka itself.


def sent(kafka: SimulatedKafka, name: str, at: int) -> Callable[[], None]:
    """A dead letter in a transaction that stays open; gives what ends it."""
    epoch = kafka.init(name)
    kafka.send(name, epoch, Transactor(kafka, "x").records([], [reject(at)])[0])
    return lambda: kafka.end(name, epoch)


def test_an_open_transaction_hides_what_comes_after_it(kafka: SimulatedKafka) -> None:
    end_first, end_second = sent(kafka, "a", 1), sent(kafka, "b", 2)
    end_second()
    kafka.tick(0.1)
    assert told(kafka) == []
    end_first()
    kafka.tick(0.1)
    assert told(kafka) == [1, 2]


def test_beginning_anew_completes_what_was_decided_and_aborts_what_was_not(kafka: SimulatedKafka) -> None:
    sent(kafka, "a", 1)
    kafka.init("a")
    sent(kafka, "b", 2)()
    assert told(kafka) == []
    kafka.init("b")
    assert told(kafka) == [2]


def test_a_producer_that_was_fenced_is_refused(kafka: SimulatedKafka) -> None:
    end = sent(kafka, "a", 1)
    kafka.init("a")
    with pytest.raises(errors.ProducerFencedError):
        end()


def test_a_lane_comes_to_its_new_owner_a_generation_after_it_went(kafka: SimulatedKafka) -> None:
    first, second = SimulatedSource(kafka), SimulatedSource(kafka)
    first.poll(0)
    second.poll(0)
    owners: list[Any] = []
    for _ in range(4):
        owners.append((kafka.group.generation, sorted(first.lanes), sorted(second.lanes)))
        first.poll(0)
        second.poll(0)
    assert owners[0] == (1, [LANE, OTHER], [])
    assert (2, [LANE], []) in owners
    assert owners[-1] == (3, [LANE], [OTHER])


def test_a_member_that_comes_back_under_its_name_fences_the_one_before(kafka: SimulatedKafka) -> None:
    before = SimulatedSource(kafka, "w")
    before.poll(0)
    after = SimulatedSource(kafka, "w")
    after.poll(0)
    assert after.lanes == before.lanes == {LANE, OTHER}
    assert kafka.group.generation == 1
    who, _ = before.membership(before.lanes)
    with pytest.raises(errors.FencedInstanceIdError):
        kafka.group.check(who)
    with pytest.raises(BrokerError, match="taken the name"):
        before.poll(0)


def test_there_is_a_topic_for_alerts_with_several_partitions(kafka: SimulatedKafka) -> None:
    assert sum(topic == ALERTS for topic, _ in kafka.logs) > 1
