"""The loop, with source, sink and clock in memory: what is promised about order, restarts, lanes and counts."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fakes import (
    WRITTEN_MAX_S,
    AwayStore,
    FakeSink,
    FakeSource,
    Group,
    SteppingClock,
    StopAfter,
    counted,
    readings,
    turn,
    turn_until,
    worker_over,
)

from streamdet.checkpoint.shelf import Shelf
from streamdet.checkpoint.store import LocalStore
from streamdet.clock import SystemClock
from streamdet.config import Commit
from streamdet.errors import BrokerError, BrokerUnavailableError, StoreUnavailableError
from streamdet.events import Batch, LaneId, Mode, Position, Reason
from streamdet.learn.learner import FIRST_RUN
from streamdet.worker import FINISH_S, STORE_RETRY_S, run

LANE, OTHER = LaneId("plant", 0), LaneId("plant", 1)
WARM = 1_540
SPIKES = (1_590, 1_690)
VALUES = readings(1_740, spikes=SPIKES)
NEVER = StopAfter()
COMMIT_EVERY_S = Commit().offsets_every_ms / 1000


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Group:
    """What a worker leaves behind that has judged the first 1,500 values and was stopped."""
    group = Group(tmp_path_factory.mktemp("warm"))
    run(group.worker(group.source({LANE: VALUES[:WARM]})), NEVER)
    return group


@pytest.fixture
def warm(judged: Group, tmp_path: Path) -> Group:
    return judged.copied(tmp_path)


class FullDisk(LocalStore):
    """Takes nothing more."""

    def put(self, name: str, data: bytes | bytearray) -> None:
        raise StoreUnavailableError(f"no space left for {len(data)} bytes of {name}")


def alert_id(offset: int, lane: LaneId = LANE) -> str:
    return f"{lane}/{offset}"


def told(journal: list[Any]) -> list[Any]:
    """The journal, of the positions only the offsets."""
    return [
        ("commit", {lane: position.offset for lane, position in entry[1].items()})
        if entry[0] == "commit"
        else entry
        for entry in journal
    ]


def commits(journal: list[Any]) -> list[dict[LaneId, int]]:
    return [entry[1] for entry in told(journal) if entry[0] == "commit"]


def test_alerts_are_flushed_before_the_offsets_behind_them_are_committed(warm: Group) -> None:
    journal: list[Any] = []
    source = warm.source({LANE: VALUES}, journal=journal, per_poll=100)
    sink = FakeSink(journal)
    run(warm.worker(source, sink), NEVER)
    assert {alert_id(offset) for offset in SPIKES} <= set(sink.ids)
    assert told(journal) == [
        ("seek", LANE, WARM),
        *("poll", "publish", "flush", ("commit", {LANE: 1_640})),
        *("poll", "publish", "flush", ("commit", {LANE: 1_740})),  # the end: the clock stood still
        *("close sink", "close source"),
    ]


def test_where_nothing_is_to_be_told_nothing_is_flushed(warm: Group) -> None:
    journal: list[Any] = []
    calm = [*VALUES[:WARM], *readings(1_000)[:5]]
    sink = FakeSink(journal)
    run(warm.worker(warm.source({LANE: calm}, journal=journal), sink), NEVER)
    assert told(journal) == [
        ("seek", LANE, WARM),
        "poll",
        ("commit", {LANE: len(calm)}),
        "close sink",
        "close source",
    ]


def test_offsets_are_committed_in_intervals_and_at_the_end(warm: Group) -> None:
    clock, source = SteppingClock(), warm.source({LANE: VALUES}, per_poll=20)

    def tick() -> None:
        clock.now_s += COMMIT_EVERY_S * 0.6

    source.before_poll = dict.fromkeys(range(1, 100), tick)
    run(warm.worker(source, clock=clock), NEVER)
    assert commits(source.journal) == [{LANE: at} for at in (1_560, 1_600, 1_640, 1_680, 1_720, 1_740)]


def test_when_a_flush_fails_nothing_behind_it_is_committed_or_saved(warm: Group) -> None:
    source, sink = warm.source({LANE: VALUES}), FakeSink()
    sink.journal = source.journal
    sink.flush_error = BrokerError("the topic takes no records")
    with pytest.raises(BrokerError, match="takes no records"):
        run(warm.worker(source, sink), NEVER)
    assert source.offsets == {LANE: WARM}
    assert warm.saved(LANE) == [0, WARM]
    assert source.journal[-3:] == ["flush", "close sink", "close source"]


def test_what_was_published_before_a_restart_is_judged_again_but_not_published(warm: Group) -> None:
    values = list(VALUES)
    values[1_600] = values[1_700] = b"no json"
    warm.offsets[LANE] = 1_640
    source, sink, seen = warm.source({LANE: values}, per_poll=70), FakeSink(), StopAfter()
    worker = warm.worker(source, sink, observers=[seen])
    run(worker, NEVER)
    assert seen.offsets(LANE) == [i for i in range(WARM, 1_740) if i not in (1_600, 1_700)]
    assert min(alert.source.offset for alert in sink.alerts) >= 1_640
    assert alert_id(1_690) in sink.ids
    assert [reject.offset for reject in sink.rejects] == [1_700]
    assert counted(worker, "streamdet_events_rejudged_total") == 99
    assert all(committed[LANE] >= 1_640 for committed in commits(source.journal))


def test_a_restart_with_nothing_new_commits_no_offset_below_the_committed_one(warm: Group) -> None:
    warm.offsets[LANE] = 1_740
    source = warm.source({LANE: VALUES}, per_poll=50)
    run(warm.worker(source), NEVER)
    assert all(committed[LANE] >= 1_740 for committed in commits(source.journal))
    assert warm.offsets == {LANE: 1_740}
    assert warm.saved(LANE) == [0, WARM, 1_740]


def test_a_checkpoint_ahead_of_the_committed_offset_is_not_used_for_its_lane_and_that_is_said(
    warm: Group, caplog: pytest.LogCaptureFixture
) -> None:
    warm.offsets[LANE] = 1_440
    for path in (warm.folder / "group" / "lanes").rglob(f"{0:020d}-*"):
        path.unlink()  # that from which it could go on
    source, seen = warm.source({LANE: VALUES}), StopAfter()
    with caplog.at_level(logging.WARNING):
        run(warm.worker(source, observers=[seen]), NEVER)
    assert f"lane={LANE} starts cold at=1440: no usable checkpoint at or before that offset" in caplog.text
    assert seen.offsets(LANE) == list(range(1_440, 1_740))
    assert seen.modes(LANE)[:256] == [Mode.WARMING] * 256


def test_a_checkpoint_is_never_ahead_of_what_is_committed(warm: Group) -> None:
    """Or a crash right after it would make the lane start cold."""
    clock, source = SteppingClock(), warm.source({LANE: VALUES}, per_poll=10)
    often = {"every_s": COMMIT_EVERY_S / 4}
    worker = warm.worker(source, clock=clock, checkpoint=often)
    saved: list[int] = []

    def compare() -> None:
        clock.now_s += COMMIT_EVERY_S / 2
        assert worker.background.drain(WRITTEN_MAX_S)
        saved.append(warm.saved(LANE)[-1])
        assert saved[-1] <= source.offsets[LANE]

    source.before_poll = dict.fromkeys(range(1, 100), compare)
    run(worker, NEVER)
    assert len(set(saved)) >= 10


def test_a_lane_that_is_lost_is_forgotten_and_one_that_comes_goes_on_where_the_group_is(warm: Group) -> None:
    other = readings(400, seed=2, spikes=(290, 350))
    source, sink, seen = warm.source({LANE: VALUES, OTHER: other}, per_poll=60), FakeSink(), StopAfter()
    worker = warm.worker(source, sink, observers=[seen])
    gauge = {"topic": "plant", "partition": "1"}

    def lose() -> None:
        assert counted(worker, "streamdet_limit_nats", **gauge) != 0
        source.take_away(OTHER)

    def regain() -> None:
        assert OTHER not in worker.lanes
        assert worker.learner is not None
        assert OTHER not in worker.learner.positions
        source.offsets[OTHER] = 300  # somebody else judged up to here
        source.give(OTHER)

    source.before_poll = {3: lose, 4: regain}
    run(worker, NEVER)
    judged = seen.offsets(OTHER)
    assert judged == [
        *range(len(judged) - 400),
        *range(400),
    ]  # the only checkpoint of it is that of its beginning
    published = {alert.source.offset for alert in sink.alerts if alert.source.partition == OTHER.partition}
    assert 350 in published
    assert min(published) >= 300
    assert seen.offsets(LANE) == list(range(WARM, 1_740))
    assert source.offsets == {LANE: 1_740, OTHER: 400}


def test_a_lane_taken_away_is_not_committed_any_more(warm: Group) -> None:
    source = warm.source({LANE: VALUES, OTHER: readings(400, seed=2)}, per_poll=60)
    source.before_poll = {3: lambda: source.take_away(OTHER)}
    run(warm.worker(source), NEVER)
    after = source.journal[[i for i, entry in enumerate(source.journal) if entry == "poll"][2] :]
    assert all(OTHER not in committed for committed in commits(after))


def test_a_save_that_fails_is_counted_and_said_and_the_worker_goes_on(
    warm: Group, caplog: pytest.LogCaptureFixture
) -> None:
    clock = SteppingClock()
    source = warm.source({LANE: VALUES}, per_poll=50)
    full = Shelf(FullDisk("./state", warm.folder), "group", 3, SystemClock())
    worker = warm.worker(source, clock=clock, shelf=full)

    def tick() -> None:
        clock.now_s += 60.0
        assert worker.background.drain(WRITTEN_MAX_S)

    source.before_poll = dict.fromkeys(range(1, 100), tick)
    run(worker, NEVER)
    assert source.offsets == {LANE: 1_740}
    # Room for the state is made first; one is begun when what became of the last is known; and at the end.
    saves = (1_690, 1_740)
    assert counted(worker, "streamdet_checkpoints_total", outcome="failed") == len(saves), caplog.text
    assert counted(worker, "streamdet_checkpoints_total", outcome="saved") == 0
    assert caplog.text.count("checkpoint failed: no space left") == len(saves)
    assert warm.saved(LANE) == [0, WARM]


def test_a_store_that_cannot_be_read_when_a_lane_comes_is_waited_for_in_the_group(
    warm: Group, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A cold start would forget the limits, and an end would hand the lane on to the next who cannot read."""
    other, expected = warm.copied(tmp_path / "other"), FakeSink()
    run(other.worker(other.source({LANE: VALUES}, per_poll=50), expected), NEVER)

    clock, store, sink = SteppingClock(), AwayStore("./state", warm.folder), FakeSink()
    source = warm.source({LANE: VALUES}, per_poll=50)
    shelf = Shelf(store, "group", 3, SystemClock())
    worker = warm.worker(source, sink, clock=clock, shelf=shelf)
    store.away = True
    worker.restore()
    for _ in range(3):
        clock.now_s += STORE_RETRY_S
        assert turn(worker) == []
    assert source.journal.count("poll") == 3
    assert LANE not in worker.lanes
    assert "store" in worker.health.reasons()
    assert source.offsets == {LANE: WARM}

    store.away = False
    assert turn(worker) == [], "it is asked every two seconds, not with each poll"
    clock.now_s += STORE_RETRY_S
    turn_until(worker, LANE, len(VALUES))
    worker.finish()
    worker.close()
    assert "store" not in worker.health.reasons()
    assert caplog.text.count("judging waits for the checkpoints: the store does not answer") == 1
    assert caplog.text.count("the checkpoints can be read again") == 1
    assert sink.ids == expected.ids
    assert warm.saved(LANE)[-1] == len(VALUES)


def test_a_stop_lets_the_batch_end_then_commits_saves_and_closes(warm: Group) -> None:
    source = warm.source({LANE: VALUES}, per_poll=60, endless=True)
    sink, stop = FakeSink(source.journal), StopAfter(2)
    run(warm.worker(source, sink, observers=[stop]), stop)
    assert source.offsets == {LANE: 1_660}
    assert warm.saved(LANE) == [0, WARM, 1_660]
    assert source.journal.count("poll") == 2
    assert told(source.journal)[-3:] == [("commit", {LANE: 1_660}), "close sink", "close source"]


class Refusing(FakeSource):
    """Of a group that lets nobody commit."""

    def commit(self, positions: Mapping[LaneId, Position]) -> bool:  # noqa: ARG002
        return False


def test_a_stop_does_not_wait_for_ever_for_a_commit_and_saves_nothing_that_is_not_committed(
    warm: Group,
) -> None:
    clock = SteppingClock()
    source = Refusing({LANE: VALUES}, warm.offsets, notes=warm.notes, per_poll=60, endless=True)
    stop = StopAfter(2)

    def tick() -> None:
        clock.now_s += 1.0

    source.before_poll = dict.fromkeys(range(1, 1_000), tick)
    with pytest.raises(BrokerUnavailableError, match="could not commit within 30 s of the stop"):
        run(warm.worker(source, clock=clock, observers=[stop]), stop)
    assert source.journal.count("poll") <= 2 + FINISH_S + 1
    assert source.journal[-1] == "close source"
    assert warm.offsets == {LANE: WARM}
    assert warm.saved(LANE) == [0, WARM]


def test_a_stop_before_the_first_batch_judges_nothing_and_closes() -> None:
    source, sink = FakeSource({LANE: VALUES}), FakeSink()
    sink.journal = source.journal
    run(worker_over(source, sink), StopAfter(0))
    assert source.journal == ["close sink", "close source"]


def test_every_record_polled_is_judged_or_rejected_and_counted_with_its_mode_or_reason() -> None:
    values = readings(2_000, spikes=(1_800,), missing=0.1)
    bad = {10: None, 400: b"{", 401: b"\xff", 1_200: b"[]", 1_999: b"{}", 1_801: b'{"ts": 1}'}
    for at, value in bad.items():
        values[at] = value
    source, sink = FakeSource({LANE: values}, per_poll=333), FakeSink()
    worker = worker_over(source, sink)
    run(worker, NEVER)
    assert counted(worker, "streamdet_records_polled_total") == 2_000
    assert counted(worker, "streamdet_events_judged_total") == 1_994
    assert counted(worker, "streamdet_records_rejected_total") == 6 == len(sink.rejects)
    for reason in (Reason.TOMBSTONE, Reason.INVALID_SYNTAX, Reason.INVALID_ENCODING, Reason.NOT_AN_OBJECT):
        assert counted(worker, "streamdet_records_rejected_total", reason=reason) == 1
    assert [reject.offset for reject in sink.rejects] == sorted(bad)
    assert [reject.value for reject in sink.rejects] == [bad[at] for at in sorted(bad)]
    cold = counted(worker, "streamdet_events_judged_total", mode="cold")
    assert cold == FIRST_RUN
    assert counted(worker, "streamdet_alerts_total") == len(sink.alerts) > 0
    assert counted(worker, "streamdet_events_flagged_total") == len(sink.alerts)
    assert counted(worker, "streamdet_values_imputed_total") == sum(
        b"flow" not in value for i, value in enumerate(values) if value is not None and i not in bad
    )


def test_no_alert_is_given_during_the_warm_up() -> None:
    spikes = range(100, 700, 50)
    source, sink, seen = FakeSource({LANE: readings(1_000, spikes=spikes)}), FakeSink(), StopAfter()
    run(worker_over(source, sink, observers=[seen], learning={"warmup": 700}), NEVER)
    assert all(alert.source.offset >= 700 for alert in sink.alerts)
    modes = seen.modes(LANE)
    assert modes[:FIRST_RUN] == [Mode.COLD] * FIRST_RUN
    assert modes[FIRST_RUN:700] == [Mode.WARMING] * (700 - FIRST_RUN)
    assert min(modes[700:]) is Mode.READY


def test_alerts_carry_the_lane_they_came_from(warm: Group) -> None:
    """One model serves all lanes; each has limits of its own."""
    other = readings(1_000, seed=5, spikes=(900,))
    source, sink = warm.source({LANE: VALUES, OTHER: other}, per_poll=77), FakeSink()
    run(warm.worker(source, sink), NEVER)
    assert {alert_id(offset) for offset in SPIKES} | {alert_id(900, OTHER)} <= set(sink.ids)
    for alert in sink.alerts:
        assert alert.id == f"{alert.source.topic}/{alert.source.partition}/{alert.source.offset}"


def test_a_cold_start_is_counted_and_a_warm_one_is_not(warm: Group) -> None:
    cold = worker_over(FakeSource({LANE: VALUES[:10]}), FakeSink())
    run(cold, NEVER)
    assert counted(cold, "streamdet_cold_starts_total") == 1
    restored = warm.worker(warm.source({LANE: VALUES}))
    run(restored, NEVER)
    assert counted(restored, "streamdet_cold_starts_total") == 0


def test_a_topic_made_anew_is_published_from_its_beginning(
    warm: Group, caplog: pytest.LogCaptureFixture
) -> None:
    warm.offsets[LANE] = 1_740
    source, sink = warm.source({LANE: VALUES}, per_poll=50), FakeSink()
    source.before_poll = {2: lambda: source.seek(LANE, 0)}  # as a source does whose place is gone
    with caplog.at_level(logging.WARNING):
        run(warm.worker(source, sink), NEVER)
    assert f"lane={LANE} went back from 1590 to 0" in caplog.text
    assert alert_id(SPIKES[0]) in sink.ids  # below the offset up to which the old topic was published


@pytest.mark.parametrize("waited_s", [0.0, 1_000_000.0])
def test_a_lane_comes_back_from_the_newest_checkpoint_at_or_before_its_committed_offset_whenever_it_comes(
    warm: Group, waited_s: float
) -> None:
    clock = SteppingClock()
    warm.offsets[LANE] = 1_640
    source = warm.source({LANE: VALUES}, per_poll=50)
    worker = warm.worker(source, clock=clock)
    source.take_away(LANE)
    worker.restore()
    assert not worker.lanes
    clock.now_s += waited_s
    source.give(LANE)
    worker.follow(Batch(()))
    assert (worker.lanes[LANE].next_offset, worker.lanes[LANE].published) == (WARM, 1_640)
    assert source.journal[-1] == ("seek", LANE, WARM)
    worker.close()


def test_who_comes_to_train_judges_nothing_that_was_polled_before(tmp_path: Path) -> None:
    """A follower polls as much as it likes; a learner that came with that poll would be carried past its next start."""
    group, values = Group(tmp_path), readings(900)
    run(group.worker(group.source({LANE: values[:500]})), NEVER)
    source = group.source({LANE: values}, per_poll=400)
    source.leading = False
    worker = group.worker(source)
    worker.restore()
    polled = source.poll(worker.room())
    assert len(polled) == 400
    source.leading = True
    worker.learn(worker.judge(worker.follow(polled)))
    assert worker.learner is not None
    assert worker.learner.seen == 500
    run(worker, NEVER)
    assert worker.learner.seen == 900
    assert worker.learner.adopted_total == 4  # at 64, 128, 256 and, which it must not miss, at 512
