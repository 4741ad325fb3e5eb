"""The Kafka source on a real broker: what is particular to Kafka. What holds for every source is in tests/contract."""

import contextlib
import itertools
import logging
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kafka import KafkaProducer, OffsetAndMetadata, TopicPartition, errors
from kafka.admin import MemberToRemove
from kafka_broker import MakeTopic, OwnKafka, create_topic
from kafka_local import Kafka

from streamdet.clock import Clock, SystemClock
from streamdet.config import Settings, parse
from streamdet.errors import BrokerError, BrokerUnavailableError
from streamdet.events import Batch, LaneId, Position, Records
from streamdet.source.kafka import KafkaSource
from streamdet.source.kafka_leading import ASK_EVERY_S

pytestmark = pytest.mark.integration

WITHIN_S = 40.0


def until(done: Callable[[], bool], what: str) -> None:
    """Repeat a step, which itself waits for Kafka, until it says true."""
    end_s = time.monotonic() + WITHIN_S
    while not done():
        assert time.monotonic() < end_s, f"not within {WITHIN_S:.0f} s: {what}"


def settings(servers: str, *topics: str, security: dict[str, Any] | None = None, **given: Any) -> Settings:
    return parse(
        {
            "kafka": {"bootstrap_servers": servers, "security": security or {}},
            "input": {"topics": list(topics), "group_id": f"g-{uuid.uuid4().hex[:8]}", **given},
        }
    )


def write(servers: str, topic: str, values: list[bytes | None], partition: int = 0) -> None:
    producer = KafkaProducer(bootstrap_servers=servers.split(","))
    for i, value in enumerate(values):
        producer.send(topic, value, key=b"k%d" % i, partition=partition, timestamp_ms=1_000 + i)
    producer.flush()
    producer.close()


def numbered(n: int, start: int = 0) -> list[bytes | None]:
    return [b"v%d" % i for i in range(start, start + n)]


def read(source: KafkaSource, n: int, max_events: int = 100) -> list[Records]:
    """Poll until n records have come."""
    parts: list[Records] = []

    def enough() -> bool:
        parts.extend(source.poll(max_events).parts)
        return sum(map(len, parts)) >= n

    try:
        until(enough, f"{n} records")
    except AssertionError as error:
        came = [(part.lane, part.offsets.tolist()) for part in parts]
        raise AssertionError(
            f"{error}; lanes: {sorted(source.lanes)}; lag: {source.lag()}; came: {came}"
        ) from None
    return parts


def values_of(parts: list[Records]) -> list[bytes | None]:
    return [value for part in parts for value in part.values]


class Sources:
    """Makes sources, and closes them when the test is over."""

    def __init__(self) -> None:
        self._made: list[KafkaSource] = []

    def __call__(
        self,
        given: Settings,
        stopped: Callable[[], bool] = lambda: False,
        clock: Clock | None = None,
        **how: Any,
    ) -> KafkaSource:
        self._made.append(KafkaSource(given, SystemClock() if clock is None else clock, stopped, **how))
        return self._made[-1]

    def close(self) -> None:
        for source in self._made:
            source.close()


@contextlib.contextmanager
def polled(source: KafkaSource, each: Callable[[Batch], object]) -> Iterator[None]:
    """Poll a source in a thread, as its own worker would: a rebalance needs all members at once."""
    stop, raised = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            while not stop.is_set():
                each(source.poll(10))
        except BaseException as error:  # noqa: BLE001 - raised again below
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(WITHIN_S)
    if raised:
        raise raised[0]


def shared(first: KafkaSource, second: KafkaSource) -> bool:
    """Poll the first, and tell whether both have the same number of lanes."""
    first.poll(10)
    return len(first.lanes) == len(second.lanes) > 0


def given_time() -> bool:
    """True, when the threads that the test waits for have had the processor for a moment."""
    threading.Event().wait(0.01)
    return True


def settled(source: KafkaSource, lanes: int) -> KafkaSource:
    """The source, once it has so many lanes."""
    until(lambda: len(source.poll(0)) == 0 and len(source.lanes) == lanes, f"{lanes} lanes")
    return source


class SkippingClock(SystemClock):
    """Time that a test moves on."""

    ahead_s = 0.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.ahead_s


@pytest.fixture
def sources() -> Iterator[Sources]:
    made = Sources()
    yield made
    made.close()


def test_a_missing_topic_is_refused_by_name_and_not_created(kafka: Kafka, kafka_admin: Any) -> None:
    name = f"nowhere-{uuid.uuid4().hex[:8]}"
    with pytest.raises(BrokerError, match=rf"topic '{name}' does not exist.*--create --topic {name}"):
        KafkaSource(settings(kafka.bootstrap_servers, name), SystemClock())
    assert name not in kafka_admin.list_topics()


def test_a_login_is_refused_at_once_by_a_listener_that_knows_none(kafka: Kafka, topic: str) -> None:
    security = {"protocol": "SASL_PLAINTEXT", "mechanism": "PLAIN", "username": "me", "password": "secret"}
    with pytest.raises(BrokerError, match=r"refused the login of 'me'") as refused:
        KafkaSource(settings(kafka.bootstrap_servers, topic, security=security), SystemClock())
    assert "secret" not in str(refused.value)


def test_records_come_in_columns_and_a_tombstone_has_no_value(
    kafka: Kafka, topic: str, sources: Sources
) -> None:
    write(kafka.bootstrap_servers, topic, [b"a", None, b"c"])
    source = sources(settings(kafka.bootstrap_servers, topic))
    parts = read(source, 3)
    assert [o for part in parts for o in part.offsets] == [0, 1, 2]
    assert [t for part in parts for t in part.timestamps_ms] == [1000, 1001, 1002]
    assert [k for part in parts for k in part.keys] == [b"k0", b"k1", b"k2"]
    assert values_of(parts) == [b"a", None, b"c"]
    assert source.lag() == {LaneId(topic, 0): 0}


def test_a_poll_brings_no_more_than_it_was_asked_for(kafka: Kafka, topic: str, sources: Sources) -> None:
    write(kafka.bootstrap_servers, topic, numbered(10))
    source = sources(settings(kafka.bootstrap_servers, topic))
    parts = read(source, 10, max_events=4)
    assert max(map(len, parts)) == 4
    assert values_of(parts) == numbered(10)


def test_records_of_an_aborted_transaction_are_not_seen(kafka: Kafka, topic: str, sources: Sources) -> None:
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap_servers, transactional_id=uuid.uuid4().hex)
    producer.init_transactions()
    for value, end in (
        (b"a", producer.commit_transaction),
        (b"b", producer.abort_transaction),
        (b"c", producer.commit_transaction),
    ):
        producer.begin_transaction()
        producer.send(topic, value)
        producer.flush()
        end()
    producer.close()
    parts = read(sources(settings(kafka.bootstrap_servers, topic)), 2)
    assert values_of(parts) == [b"a", b"c"]
    # Each transaction ends with a mark of its own: record 0, mark, aborted record, mark, record 4.
    assert [o for part in parts for o in part.offsets] == [0, 4]


def test_a_group_goes_on_where_it_committed(kafka: Kafka, topic: str, sources: Sources) -> None:
    write(kafka.bootstrap_servers, topic, numbered(10))
    given, lane = settings(kafka.bootstrap_servers, topic), LaneId(topic, 0)
    first = sources(given)
    read(first, 6, max_events=3)
    assert first.committed(lane) is None
    first.commit({lane: Position(6)})
    assert first.committed(lane) == Position(6)
    first.close()
    assert values_of(read(sources(given), 4)) == numbered(4, start=6)


def test_a_note_comes_back_with_its_offset(kafka: Kafka, topic: str, sources: Sources) -> None:
    write(kafka.bootstrap_servers, topic, numbered(1))
    given, lane = settings(kafka.bootstrap_servers, topic), LaneId(topic, 0)
    first = sources(given)
    read(first, 1)
    first.commit({lane: Position(1, "0:m-größer 1:m2")})
    first.close()
    assert sources(given).committed(lane) == Position(1, "0:m-größer 1:m2")


def test_leaving_the_group_is_quick_and_lets_the_next_one_in(
    kafka: Kafka, topic: str, sources: Sources
) -> None:
    write(kafka.bootstrap_servers, topic, numbered(1))
    given = settings(kafka.bootstrap_servers, topic)
    first = sources(given)
    read(first, 1)
    began_s = time.monotonic()
    first.close()
    assert time.monotonic() - began_s < 2
    read(sources(given), 1)
    assert time.monotonic() - began_s < 10  # not the session timeout


def test_latest_begins_at_the_end_and_keeps_that_place(kafka: Kafka, topic: str, sources: Sources) -> None:
    write(kafka.bootstrap_servers, topic, numbered(5))
    given, lane = settings(kafka.bootstrap_servers, topic, start="latest"), LaneId(topic, 0)
    first = sources(given)
    until(lambda: len(first.poll(10)) == 0 and lane in first.lanes, "an assignment")
    until(lambda: len(first.poll(10)) == 0 and first.committed(lane) == Position(5), "a place")
    first.close()  # before its first commit: what comes now must not be lost
    write(kafka.bootstrap_servers, topic, numbered(2, start=5))
    assert values_of(read(sources(given), 2)) == numbered(2, start=5)


def test_peek_looks_ahead_and_consumes_nothing(kafka: Kafka, topic: str, sources: Sources) -> None:
    write(kafka.bootstrap_servers, topic, [b"v0", None, b"v1", b"v2"])
    source = sources(settings(kafka.bootstrap_servers, topic))
    assert source.peek(2, wait_s=5) == [b"v0", b"v1"]
    assert source.peek(10, wait_s=0.2) == [b"v0", b"v1", b"v2"]
    assert values_of(read(source, 4)) == [b"v0", None, b"v1", b"v2"]


def test_peek_at_a_silent_topic_ends_when_a_stop_is_requested(
    kafka: Kafka, topic: str, sources: Sources
) -> None:
    looks = itertools.count()
    source = sources(settings(kafka.bootstrap_servers, topic), lambda: next(looks) > 10)
    assert source.peek(1, wait_s=0.1) == []


def test_seek_goes_back_and_a_lane_of_somebody_else_is_left_alone(
    kafka: Kafka, topic: str, sources: Sources
) -> None:
    write(kafka.bootstrap_servers, topic, numbered(5))
    source = sources(settings(kafka.bootstrap_servers, topic))
    read(source, 5)
    source.seek(LaneId(topic, 0), 3)
    source.seek(LaneId(topic, 7), 3)
    assert source.lag() == {LaneId(topic, 0): 2}
    assert values_of(read(source, 2)) == numbered(2, start=3)


def test_a_lane_is_known_before_its_first_record_comes(
    kafka: Kafka, make_topic: MakeTopic, sources: Sources
) -> None:
    topic = make_topic(2)
    for partition in (0, 1):
        write(kafka.bootstrap_servers, topic, numbered(3), partition)
    source = sources(settings(kafka.bootstrap_servers, topic))
    count = 0
    while count < 6:
        known = set(source.lanes)
        for part in source.poll(10).parts:
            assert part.lane in known
            count += len(part)


def test_two_workers_share_a_topic_and_nothing_is_left_out(
    kafka: Kafka, make_topic: MakeTopic, sources: Sources
) -> None:
    topic = make_topic(4)
    given = settings(kafka.bootstrap_servers, topic)
    lanes = {LaneId(topic, p) for p in range(4)}
    first = sources(given)
    until(lambda: len(first.poll(10)) == 0 and set(first.lanes) == lanes, "all lanes for the first")
    for partition in range(4):
        write(kafka.bootstrap_servers, topic, numbered(5), partition)
    read(first, 20)
    first.commit(dict.fromkeys(lanes, Position(2)))

    seen: dict[LaneId, list[bytes | None]] = {}

    def note(batch: Batch) -> None:
        for part in batch.parts:
            seen.setdefault(part.lane, []).extend(part.values)

    second = sources(given)
    with polled(second, note):
        until(lambda: shared(first, second), "two lanes each")
        assert first.lanes | second.lanes == lanes
        until(
            lambda: shared(first, second) and seen.keys() == second.lanes, "records of the lanes that moved"
        )
    # The lanes that moved go on at the committed offset; those that stayed did not begin again.
    assert all(values[:3] == numbered(3, start=2) for values in seen.values())
    assert first.lag() == dict.fromkeys(first.lanes, 0)


def test_a_commit_for_a_lane_that_moved_on_does_not_set_it_back(
    kafka: Kafka, kafka_admin: Any, make_topic: MakeTopic, sources: Sources, caplog: pytest.LogCaptureFixture
) -> None:
    topic = make_topic(2)
    given = settings(kafka.bootstrap_servers, topic)
    for partition in (0, 1):
        write(kafka.bootstrap_servers, topic, numbered(5), partition)
    first = sources(given)
    read(first, 10)
    second = sources(given)

    def committed() -> dict[int, int]:
        found = kafka_admin.list_group_offsets({given.input.group_id: None})[given.input.group_id]
        return {tp.partition: at.offset for tp, at in found.items()}

    def both_commit() -> bool:
        done = shared(first, second)
        # Of the lane that has moved too; while a rebalance is under way none counts.
        first.commit({LaneId(topic, 0): Position(1), LaneId(topic, 1): Position(1)})
        return done and sorted(committed().values()) == [1, 4]

    with caplog.at_level(logging.INFO, "streamdet"):
        with polled(second, lambda _: second.commit(dict.fromkeys(second.lanes, Position(4)))):
            until(both_commit, "a lane and a commit each")
        (moved,) = second.lanes
        assert f"commit dropped lanes={moved} reason=no longer this worker's" in caplog.text
    first.commit({moved: Position(1)})
    assert committed()[moved.partition] == 4


@pytest.fixture
def retained_from_6(
    kafka: Kafka, kafka_admin: Any, topic: str, sources: Sources
) -> Callable[[int, str], tuple[Settings, LaneId]]:
    """Makes a topic of ten records of which the first six are gone, and a group that has committed an offset."""

    def make(committed: int, lost_records: str) -> tuple[Settings, LaneId]:
        write(kafka.bootstrap_servers, topic, numbered(10))
        given, lane = settings(kafka.bootstrap_servers, topic, lost_records=lost_records), LaneId(topic, 0)
        first = sources(given)
        read(first, 10)
        first.commit({lane: Position(committed)})
        first.close()
        kafka_admin.delete_records({TopicPartition(topic, 0): 6})
        return given, lane

    return make


Retained = Callable[[int, str], tuple[Settings, LaneId]]


def test_records_that_are_gone_unread_are_told_of_and_counted(
    retained_from_6: Retained, sources: Sources, caplog: pytest.LogCaptureFixture
) -> None:
    given, lane = retained_from_6(3, "earliest")
    source = sources(given)
    assert values_of(read(source, 4)) == numbered(4, start=6)
    assert f"records lost lane={lane} wanted_offset=3 continues_at=6 lost=3" in caplog.text
    assert source.lost == {lane: 3}


def test_records_that_are_gone_unread_end_a_worker_that_may_lose_none(
    retained_from_6: Retained, sources: Sources
) -> None:
    given, lane = retained_from_6(3, "fail")
    source = sources(given)
    with pytest.raises(
        BrokerError, match=rf"3 records of {lane} are gone .* offset 3, .* has is 6; raise .*"
    ):
        read(source, 1)
    assert source.lost == {lane: 3}


@pytest.mark.parametrize("lost_records", ["earliest", "fail"])
def test_records_that_are_gone_between_checkpoint_and_commit_are_not_lost(
    retained_from_6: Retained, sources: Sources, caplog: pytest.LogCaptureFixture, lost_records: str
) -> None:
    given, lane = retained_from_6(8, lost_records)
    source = settled(sources(given), 1)
    assert source.committed(lane) == Position(8)
    source.seek(lane, 2)
    assert values_of(read(source, 4)) == numbered(4, start=6)
    assert f"state is behind lane={lane} wanted_offset=2 continues_at=6 misses=4" in caplog.text
    assert not source.lost


def test_a_topic_made_anew_has_another_id_and_is_read_from_its_beginning(
    kafka: Kafka, kafka_admin: Any, make_topic: MakeTopic, sources: Sources, caplog: pytest.LogCaptureFixture
) -> None:
    topic = make_topic()
    write(kafka.bootstrap_servers, topic, numbered(5))
    source, lane = sources(settings(kafka.bootstrap_servers, topic)), LaneId(topic, 0)
    read(source, 5)
    source.commit({lane: Position(5, "0:m1")})
    first_id = source.topic_id(topic)
    kafka_admin.delete_topics([topic])
    create_anew(kafka_admin, topic)
    # More than were read before, while nobody polls: no offset tells.
    write(kafka.bootstrap_servers, topic, numbered(20, start=100))
    until(lambda: source.poll(100) is not None and lane not in source.lanes, "the loss of the lane")
    assert values_of(read(source, 20)) == numbered(20, start=100)
    assert first_id != source.topic_id(topic) != ""
    assert "topic was made anew" in caplog.text


def create_anew(kafka_admin: Any, topic: str) -> None:
    """Create a topic that is being deleted, as soon as it is gone."""

    def made() -> bool:
        try:
            create_topic(kafka_admin, topic)
        except errors.TopicAlreadyExistsError:
            return False
        return True

    until(made, "the old topic to be gone")


def test_a_lane_that_was_cut_back_is_given_anew_where_its_records_depart(
    kafka: Kafka, topic: str, sources: Sources, caplog: pytest.LogCaptureFixture
) -> None:
    write(kafka.bootstrap_servers, topic, numbered(5))
    source, lane = sources(settings(kafka.bootstrap_servers, topic)), LaneId(topic, 0)
    read(source, 5)
    source.commit({lane: Position(5)})
    source._positions.cut_back({TopicPartition(topic, 0): OffsetAndMetadata(3, "", -1)})
    assert len(source.poll(10)) == 0
    assert lane not in source.lanes
    assert values_of(read(source, 2)) == numbered(2, start=3)
    assert source.committed(lane) == Position(3)
    assert f"lane was cut back lane={lane} continues_at=3" in caplog.text


def test_a_poll_for_nothing_keeps_what_was_fetched(
    kafka: Kafka, make_topic: MakeTopic, sources: Sources
) -> None:
    topic = make_topic(2)
    for partition in (0, 1):
        write(kafka.bootstrap_servers, topic, numbered(500), partition)
    source = sources(settings(kafka.bootstrap_servers, topic, batch={"max_wait_ms": 5}))
    seen: dict[LaneId, list[bytes | None]] = {LaneId(topic, 0): [], LaneId(topic, 1): []}

    def all_read() -> bool:
        assert len(source.poll(0)) == 0
        for part in source.poll(37).parts:
            seen[part.lane] += part.values
        return sum(map(len, seen.values())) >= 1_000

    until(all_read, "all records")
    assert all(values == numbered(500) for values in seen.values())


def test_a_poll_for_nothing_keeps_the_place_in_the_group_and_returns_soon(
    kafka: Kafka, make_topic: MakeTopic, sources: Sources
) -> None:
    topic = make_topic(2)
    for partition in (0, 1):
        write(kafka.bootstrap_servers, topic, numbered(10), partition)
    given = settings(kafka.bootstrap_servers, topic)
    first = settled(sources(given), 2)
    began_s = time.monotonic()
    assert [len(first.poll(0)) for _ in range(5)] == [0] * 5
    assert time.monotonic() - began_s < 3  # max_wait_ms is 100
    second = sources(given)
    with polled(second, lambda _: None):
        until(lambda: len(first.poll(0)) == 0 and len(first.lanes) == len(second.lanes) == 1, "a lane each")
        assert first.lanes | second.lanes == {LaneId(topic, 0), LaneId(topic, 1)}
        # The first may have to join once more before it reads, and that takes both.
        assert values_of(read(first, 10)) == numbered(10)


def members(kafka_admin: Any, given: Settings) -> list[str | None]:
    """The names of the group's members."""
    (group,) = kafka_admin.describe_groups([given.input.group_id]).values()
    return [member["group_instance_id"] for member in group["members"]]


@pytest.mark.parametrize(
    ("name", "stays", "left"), [("a", True, ["a"]), ("a", False, []), (None, True, []), (None, False, [])]
)
def test_a_worker_leaves_the_group_unless_it_has_a_name_and_stays(
    kafka: Kafka,
    kafka_admin: Any,
    topic: str,
    sources: Sources,
    name: str | None,
    stays: bool,
    left: list[str],
) -> None:
    given = settings(kafka.bootstrap_servers, topic)
    settled(sources(given, instance=name, stays=stays), 1).close()
    assert members(kafka_admin, given) == left


NAMED_WORKER = """
import sys
from streamdet.clock import SystemClock
from streamdet.config import parse
from streamdet.source.kafka import KafkaSource
servers, topic, group = sys.argv[1:]
given = {"kafka": {"bootstrap_servers": servers}, "input": {"topics": [topic], "group_id": group}}
source, told = KafkaSource(parse(given), SystemClock(), instance="a"), None
while True:
    source.poll(10)
    if source.lanes and source.lanes != told:
        told = source.lanes
        print(*sorted(lane.partition for lane in told), flush=True)
"""


def test_a_worker_with_a_name_that_was_killed_has_its_lanes_again_at_once(
    kafka: Kafka, make_topic: MakeTopic, sources: Sources
) -> None:
    topic = make_topic(4)
    given = settings(kafka.bootstrap_servers, topic)
    command = [sys.executable, "-c", NAMED_WORKER, kafka.bootstrap_servers, topic, given.input.group_id]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as killed:
        told = killed.stdout
        assert told is not None
        assert told.readline().split() == ["0", "1", "2", "3"]
        other = sources(given, instance="b")
        with polled(other, lambda _: None):
            mine = {LaneId(topic, int(p)) for p in told.readline().split()}
            assert len(mine) == 2
            until(lambda: len(other.poll(0)) == 0 and len(other.lanes) == 2, "a share for the other")
        killed.kill()
    others = set(other.lanes)
    began_s = time.monotonic()
    again = sources(given, instance="a")
    with polled(again, lambda _: None):
        until(lambda: len(other.poll(0)) == 0 and again.lanes == mine, "the same lanes as before")
        assert time.monotonic() - began_s < 5  # of a session timeout of 20 s
        assert other.lanes == others


@pytest.mark.parametrize("notices", ["poll", "commit"])
def test_of_two_workers_of_one_name_the_one_that_loses_it_twice_ends_and_leaves_the_other_alone(
    kafka: Kafka, kafka_admin: Any, topic: str, sources: Sources, notices: str
) -> None:
    given, lane = settings(kafka.bootstrap_servers, topic), LaneId(topic, 0)
    first = settled(sources(given, instance="a"), 1)
    second = settled(sources(given, instance="a"), 1)
    if notices == "commit":
        assert not first.commit({lane: Position(0)})

    def step() -> bool:
        # The topic is silent: without heartbeats nothing would tell.
        first.poll(0)
        second.poll(0)
        return False

    with pytest.raises(BrokerError, match=r"another worker uses the name 'a' .* its own input.instance_id"):
        until(step, "the error")
    first.close()
    settled(second, 1)
    assert members(kafka_admin, given) == ["a"]
    assert second.lanes == {lane}


@pytest.mark.parametrize("notices", ["poll", "commit"])
def test_a_worker_whose_name_went_to_nobody_joins_anew(
    kafka: Kafka,
    kafka_admin: Any,
    topic: str,
    sources: Sources,
    caplog: pytest.LogCaptureFixture,
    notices: str,
) -> None:
    """As where Kafka takes the name from a worker for an attempt of its own to join again."""
    given, lane = settings(kafka.bootstrap_servers, topic), LaneId(topic, 0)
    source = settled(sources(given, instance="a"), 1)
    metadata, _ = source.membership([lane])
    passing = settled(sources(given, instance="a", stays=True), 1)
    passing.close()  # keeps the name, until Kafka misses it
    if notices == "commit":
        assert not source.commit({lane: Position(0)})
    until(lambda: len(source.poll(0)) == 0 and lane not in source.lanes, "the loss of the lane")
    settled(source, 1)
    assert source.membership([lane])[0].member_id != metadata.member_id
    assert caplog.text.count("name=a was taken by another member of the group: joining anew") == 1
    assert source.commit({lane: Position(0)})
    assert members(kafka_admin, given) == ["a"]


def test_a_worker_that_was_expelled_gets_its_lanes_anew(
    kafka: Kafka, kafka_admin: Any, topic: str, sources: Sources
) -> None:
    given, lane = settings(kafka.bootstrap_servers, topic), LaneId(topic, 0)
    source = settled(sources(given), 1)
    metadata, _ = source.membership([lane])
    kafka_admin.remove_group_members(given.input.group_id, [MemberToRemove(member_id=metadata.member_id)])
    until(lambda: len(source.poll(0)) == 0 and lane not in source.lanes, "the loss of the lane")
    settled(source, 1)
    assert source.membership([lane])[0].member_id != metadata.member_id


def test_a_worker_that_was_expelled_claims_nothing_of_what_others_have_by_now(
    kafka: Kafka, kafka_admin: Any, make_topic: MakeTopic, sources: Sources, caplog: pytest.LogCaptureFixture
) -> None:
    topic = make_topic(4)
    given = settings(kafka.bootstrap_servers, topic)
    first, second = sources(given), sources(given)
    with polled(second, lambda _: None):
        until(lambda: shared(first, second), "two lanes each")
        metadata, _ = first.membership(first.lanes)
        gone = MemberToRemove(member_id=metadata.member_id)
        kafka_admin.remove_group_members(given.input.group_id, [gone])
        # Unpolled, the first one cannot join again.
        until(lambda: given_time() and len(second.lanes) == 4, "all lanes for the second")
        before = set(second.lanes)

        def back() -> bool:
            first.poll(0)
            mine = set(first.lanes)
            return mine != before and len(mine) == 2 == len(second.lanes)

        until(back, "two lanes each again")
    assert "assigned to multiple consumers" not in caplog.text


def test_a_transaction_commits_for_lanes_that_are_still_here_and_not_with_an_old_membership(
    kafka: Kafka, make_topic: MakeTopic, sources: Sources
) -> None:
    topic = make_topic(2)
    given, lanes = settings(kafka.bootstrap_servers, topic), [LaneId(topic, 0), LaneId(topic, 1)]
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap_servers, transactional_id=uuid.uuid4().hex)
    producer.init_transactions()
    first = settled(sources(given), 2)
    before, mine = first.membership(lanes)
    assert mine == set(lanes)
    second = sources(given)
    with polled(second, lambda _: None):
        until(
            lambda: shared(first, second) and first.membership(lanes)[0] is not None, "a lane each, for good"
        )
        (moved,), (stayed,) = second.lanes, first.lanes
        after, mine = first.membership(lanes)
        assert mine == {stayed}

        def commit(lane: LaneId, metadata: Any) -> None:
            producer.begin_transaction()
            told = {TopicPartition(*lane): OffsetAndMetadata(7, "a note", -1)}
            producer.send_offsets_to_transaction(told, metadata)
            producer.commit_transaction()

        commit(stayed, after)
        assert first.committed(stayed) == Position(7, "a note")
        with pytest.raises(errors.CommitFailedError):
            commit(moved, before)
    producer.close()
    assert second.committed(moved) is None


def test_whoever_has_the_lowest_lane_with_records_leads(
    kafka: Kafka, make_topic: MakeTopic, sources: Sources
) -> None:
    topic, clock = make_topic(2), SkippingClock()
    given = settings(kafka.bootstrap_servers, topic)
    alone = settled(sources(given), 2)
    assert alone.leads  # all are empty
    write(kafka.bootstrap_servers, topic, numbered(1), partition=1)
    alone.close()
    first, second = sources(given, clock=clock), sources(given, clock=clock)
    with polled(second, lambda _: None):
        until(lambda: shared(first, second), "a lane each")
        leads = {next(iter(s.lanes)).partition: s for s in (first, second)}
        assert (leads[0].leads, leads[1].leads) == (False, True)
        write(kafka.bootstrap_servers, topic, numbered(1), partition=0)
        clock.ahead_s += ASK_EVERY_S
        until(lambda: shared(first, second) and leads[0].leads and not leads[1].leads, "the lead to move")


def test_without_kafka_the_last_leader_stays(own_kafka: OwnKafka, sources: Sources) -> None:
    topic, clock = own_kafka.create_topic("sensors", partitions=2), SkippingClock()
    write(own_kafka.bootstrap_servers, topic, numbered(1), partition=1)
    source = settled(sources(settings(own_kafka.bootstrap_servers, topic), clock=clock), 2)
    own_kafka.kill()
    clock.ahead_s += ASK_EVERY_S
    began_s = time.monotonic()
    source.poll(0)
    assert source.leads
    assert time.monotonic() - began_s < 3


def test_a_topic_that_is_deleted_meanwhile_is_not_created_anew(
    kafka: Kafka, kafka_admin: Any, sources: Sources
) -> None:
    name = f"short-lived-{uuid.uuid4().hex[:8]}"
    kafka_admin.create_topics({name: {"num_partitions": 1}}, wait_for_metadata=True)
    write(kafka.bootstrap_servers, name, numbered(1))
    source = sources(settings(kafka.bootstrap_servers, name))
    read(source, 1)
    kafka_admin.delete_topics([name])
    until(lambda: len(source.poll(10)) == 0 and not source.lanes, "the loss of the lane")
    assert name not in kafka_admin.list_topics()


def messages(caplog: pytest.LogCaptureFixture, word: str) -> int:
    return sum(f"kafka {word} " in record.getMessage() for record in caplog.records)


def test_a_broker_that_is_away_is_waited_for_and_told_of_once(
    own_kafka: OwnKafka, sources: Sources, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "streamdet")
    topic, lane = own_kafka.create_topic("sensors"), LaneId("sensors", 0)
    given = settings(own_kafka.bootstrap_servers, topic)
    stop = threading.Event()
    own_kafka.stop()

    # Away at the start: it is waited for.
    made: list[KafkaSource] = []
    start = threading.Thread(target=lambda: made.append(sources(given, stop.is_set)))
    start.start()
    own_kafka.start()
    start.join(WITHIN_S)
    source = made[0]
    assert messages(caplog, "away") == messages(caplog, "back") == 1
    write(own_kafka.bootstrap_servers, topic, numbered(3))
    read(source, 3)
    source.commit({lane: Position(3)})

    # Away in the middle: polls are empty, and a stop ends the wait of a commit.
    own_kafka.stop()
    until(lambda: len(source.poll(10)) == 0 and messages(caplog, "away") == 2, "a word that it is away")
    stop.set()
    began_s = time.monotonic()
    with pytest.raises(BrokerUnavailableError):
        source.commit({lane: Position(3)})
    with pytest.raises(BrokerUnavailableError):
        KafkaSource(given, SystemClock(), stop.is_set)
    assert time.monotonic() - began_s < 2
    stop.clear()

    # Back: it goes on where it was.
    own_kafka.start()
    write(own_kafka.bootstrap_servers, topic, numbered(2, start=3))
    assert values_of(read(source, 2)) == numbered(2, start=3)
    source.commit({lane: Position(5)})
    assert source.committed(lane) == Position(5)
    # The constructor that was stopped in between has told of its own.
    assert messages(caplog, "away") == 3
    assert messages(caplog, "back") == 2
