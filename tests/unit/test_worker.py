"""The loop, with source, sink and clock in memory: what is promised about order, restarts, lanes and counts."""

import logging
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeSink, FakeSource, SteppingClock, StopAfter, counted, readings, worker_over

from streamdet.checkpoint.store import CheckpointFolder
from streamdet.errors import BrokerError, CheckpointError
from streamdet.events import LaneId, Mode, Reason, State
from streamdet.worker import COMMIT_EVERY_S, SAVED_LANES_S, run

LANE, OTHER = LaneId("plant", 0), LaneId("plant", 1)
WARM = 1_500
SPIKES = (1_550, 1_650)
VALUES = readings(1_700, spikes=SPIKES)
NEVER = StopAfter()


@pytest.fixture(scope="module")
def warm() -> State:
    """What a worker keeps that has judged the first 1,500 values."""
    worker = worker_over(FakeSource({LANE: VALUES[:WARM]}), FakeSink())
    run(worker, NEVER)
    return worker.state()


class FullDisk(CheckpointFolder):
    """Takes nothing more."""

    def save(self, state: State) -> Path:  # noqa: ARG002 - what it is called with
        raise CheckpointError("no space left")


def alert_id(offset: int, lane: LaneId = LANE) -> str:
    return f"{lane}/{offset}"


def commits(journal: list[Any]) -> list[dict[LaneId, int]]:
    return [entry[1] for entry in journal if entry[0] == "commit"]


def test_alerts_are_flushed_before_the_offsets_behind_them_are_committed(warm: State) -> None:
    journal: list[Any] = []
    source = FakeSource({LANE: VALUES}, {LANE: WARM}, journal, per_poll=100)
    sink = FakeSink(journal)
    run(worker_over(source, sink, saved=warm), NEVER)
    assert {alert_id(offset) for offset in SPIKES} <= set(sink.ids)
    assert journal == [
        ("seek", LANE, WARM),
        *("poll", "publish", "flush", ("commit", {LANE: 1_600})),
        *("poll", "publish", "flush", ("commit", {LANE: 1_700})),  # the end: the clock stood still
        *("close sink", "close source"),
    ]


def test_where_nothing_is_to_be_told_nothing_is_flushed(warm: State) -> None:
    journal: list[Any] = []
    calm = [*VALUES[:WARM], *readings(1_000)[:5]]
    sink = FakeSink(journal)
    run(worker_over(FakeSource({LANE: calm}, {LANE: WARM}, journal), sink, saved=warm), NEVER)
    assert journal == [
        ("seek", LANE, WARM),
        "poll",
        ("commit", {LANE: len(calm)}),
        "close sink",
        "close source",
    ]


def test_offsets_are_committed_in_intervals_and_at_the_end(warm: State) -> None:
    clock, source = SteppingClock(), FakeSource({LANE: VALUES}, {LANE: WARM}, per_poll=20)

    def tick() -> None:
        clock.now_s += COMMIT_EVERY_S / 2

    source.before_poll = dict.fromkeys(range(1, 100), tick)
    run(worker_over(source, FakeSink(), saved=warm, clock=clock), NEVER)
    assert commits(source.journal) == [{LANE: at} for at in (1_520, 1_560, 1_600, 1_640, 1_680, 1_700)]


def test_when_a_flush_fails_nothing_behind_it_is_committed_or_saved(warm: State, tmp_path: Path) -> None:
    source, sink = FakeSource({LANE: VALUES}, {LANE: WARM}), FakeSink()
    sink.journal = source.journal
    sink.flush_error = BrokerError("the topic takes no records")
    folder = CheckpointFolder(tmp_path, 3)
    with pytest.raises(BrokerError, match="takes no records"):
        run(worker_over(source, sink, saved=warm, folder=folder), NEVER)
    assert source.offsets == {LANE: WARM}
    assert folder.load() is None
    assert source.journal[-3:] == ["flush", "close sink", "close source"]


def test_what_was_published_before_a_restart_is_judged_again_but_not_published(warm: State) -> None:
    values = list(VALUES)
    values[1_560] = values[1_660] = b"no json"
    source, sink, seen = FakeSource({LANE: values}, {LANE: 1_600}, per_poll=70), FakeSink(), StopAfter()
    worker = worker_over(source, sink, saved=warm, observers=[seen])
    run(worker, NEVER)
    assert seen.offsets(LANE) == [i for i in range(WARM, 1_700) if i not in (1_560, 1_660)]
    assert min(alert.source.offset for alert in sink.alerts) >= 1_600
    assert alert_id(1_650) in sink.ids
    assert [reject.offset for reject in sink.rejects] == [1_660]
    assert counted(worker, "streamdet_events_rejudged_total") == 99
    assert all(committed[LANE] >= 1_600 for committed in commits(source.journal))


def test_a_restart_with_nothing_new_commits_no_offset_below_the_committed_one(warm: State) -> None:
    source = FakeSource({LANE: VALUES}, {LANE: 1_700}, per_poll=50)
    run(worker_over(source, FakeSink(), saved=warm), NEVER)
    assert {committed[LANE] for committed in commits(source.journal)} == {1_700}


def test_a_checkpoint_ahead_of_the_committed_offset_is_not_used_for_its_lane_and_that_is_said(
    warm: State, caplog: pytest.LogCaptureFixture
) -> None:
    source, seen = FakeSource({LANE: VALUES}, {LANE: 1_400}), StopAfter()
    with caplog.at_level(logging.WARNING):
        run(worker_over(source, FakeSink(), saved=warm, observers=[seen]), NEVER)
    assert f"lane={LANE} starts cold" in caplog.text
    assert seen.offsets(LANE) == list(range(1_400, 1_700))
    assert seen.modes(LANE)[:256] == [Mode.WARMING] * 256


def test_a_checkpoint_is_never_ahead_of_what_is_committed(warm: State, tmp_path: Path) -> None:
    """Or a crash right after it would make the lane start cold."""
    clock, source = SteppingClock(), FakeSource({LANE: VALUES}, {LANE: WARM}, per_poll=10)
    folder = CheckpointFolder(tmp_path, 3)
    saved: list[int] = []

    def compare() -> None:
        clock.now_s += COMMIT_EVERY_S / 2
        state = folder.load()
        if state is not None:
            saved.append(state["lanes"][str(LANE)]["next_offset"])
            assert saved[-1] <= source.offsets[LANE]

    source.before_poll = dict.fromkeys(range(1, 100), compare)
    often = {"every_s": COMMIT_EVERY_S / 4}
    run(worker_over(source, FakeSink(), saved=warm, clock=clock, folder=folder, checkpoint=often), NEVER)
    assert len(set(saved)) > 10


def test_a_lane_that_is_lost_is_forgotten_and_one_that_comes_goes_on_where_the_group_is(warm: State) -> None:
    other = readings(400, seed=2)
    source, seen = FakeSource({LANE: VALUES, OTHER: other}, {LANE: WARM}, per_poll=60), StopAfter()
    worker = worker_over(source, FakeSink(), saved=warm, observers=[seen])
    gauge = {"topic": "plant", "partition": "1"}

    def lose() -> None:
        assert counted(worker, "streamdet_limit_nats", **gauge) != 0
        source.take_away(OTHER)

    def regain() -> None:
        assert OTHER not in worker.lanes
        assert str(OTHER) not in worker.state()["lanes"]
        source.offsets[OTHER] = 300  # somebody else judged up to here
        source.give(OTHER)

    source.before_poll = {3: lose, 4: regain}
    run(worker, NEVER)
    judged = seen.offsets(OTHER)
    assert judged[-100:] == list(range(300, 400))
    assert judged[:-100] == list(range(len(judged) - 100))
    assert seen.offsets(LANE) == list(range(WARM, 1_700))
    assert source.offsets == {LANE: 1_700, OTHER: 400}


def test_a_lane_taken_away_is_not_committed_any_more(warm: State) -> None:
    source = FakeSource({LANE: VALUES, OTHER: readings(400, seed=2)}, {LANE: WARM}, per_poll=60)
    source.before_poll = {3: lambda: source.take_away(OTHER)}
    run(worker_over(source, FakeSink(), saved=warm), NEVER)
    after = source.journal[[i for i, entry in enumerate(source.journal) if entry == "poll"][2] :]
    assert all(OTHER not in committed for committed in commits(after))


def test_a_save_that_fails_is_counted_and_said_and_the_worker_goes_on(
    warm: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = SteppingClock()
    source = FakeSource({LANE: VALUES}, {LANE: WARM}, per_poll=50)

    def tick() -> None:
        clock.now_s += 60.0

    source.before_poll = dict.fromkeys(range(1, 100), tick)
    worker = worker_over(source, FakeSink(), saved=warm, clock=clock, folder=FullDisk(tmp_path, 3))
    run(worker, NEVER)
    assert source.offsets == {LANE: 1_700}
    assert counted(worker, "streamdet_checkpoints_total", outcome="failed") == 5  # four batches, and the end
    assert counted(worker, "streamdet_checkpoints_total", outcome="saved") == 0
    assert caplog.text.count("checkpoint failed: no space left") == 5


def test_a_stop_lets_the_batch_end_then_commits_saves_and_closes(warm: State, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, 3)
    source = FakeSource({LANE: VALUES}, {LANE: WARM}, per_poll=60, endless=True)
    sink, stop = FakeSink(source.journal), StopAfter(2)
    run(worker_over(source, sink, saved=warm, folder=folder, observers=[stop]), stop)
    assert source.offsets == {LANE: 1_620}
    state = folder.load()
    assert state is not None
    assert state["lanes"][str(LANE)]["next_offset"] == 1_620
    assert source.journal.count("poll") == 2
    assert source.journal[-3:] == [("commit", {LANE: 1_620}), "close sink", "close source"]


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
    assert cold == 256  # until the first model
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
    assert modes[:256] == [Mode.COLD] * 256
    assert modes[256:700] == [Mode.WARMING] * 444
    assert min(modes[700:]) is Mode.READY


def test_alerts_carry_the_lane_they_came_from(warm: State) -> None:
    """One model serves all lanes; each has limits of its own."""
    other = readings(1_000, seed=5, spikes=(900,))
    source, sink = FakeSource({LANE: VALUES, OTHER: other}, {LANE: WARM}, per_poll=77), FakeSink()
    run(worker_over(source, sink, saved=warm), NEVER)
    assert {alert_id(offset) for offset in SPIKES} | {alert_id(900, OTHER)} <= set(sink.ids)
    for alert in sink.alerts:
        assert alert.id == f"{alert.source.topic}/{alert.source.partition}/{alert.source.offset}"


def test_a_cold_start_is_counted_and_a_warm_one_is_not(warm: State) -> None:
    cold = worker_over(FakeSource({LANE: VALUES[:10]}), FakeSink())
    run(cold, NEVER)
    assert counted(cold, "streamdet_cold_starts_total") == 1
    restored = worker_over(FakeSource({LANE: VALUES}, {LANE: WARM}), FakeSink(), saved=warm)
    run(restored, NEVER)
    assert counted(restored, "streamdet_cold_starts_total") == 0


def test_a_topic_made_anew_is_published_from_its_beginning(
    warm: State, caplog: pytest.LogCaptureFixture
) -> None:
    source, sink = FakeSource({LANE: VALUES}, {LANE: 1_700}, per_poll=50), FakeSink()
    source.before_poll = {2: lambda: source.seek(LANE, 0)}  # as a source does whose place is gone
    with caplog.at_level(logging.WARNING):
        run(worker_over(source, sink, saved=warm), NEVER)
    assert f"lane={LANE} went back from 1550 to 0" in caplog.text
    assert alert_id(SPIKES[0]) in sink.ids  # below the offset up to which the old topic was published


def test_a_lane_that_comes_long_after_the_start_does_not_take_up_what_was_saved_of_it(warm: State) -> None:
    clock = SteppingClock()
    source = FakeSource({LANE: VALUES}, {LANE: 1_600}, per_poll=50)
    worker = worker_over(source, FakeSink(), saved=warm, clock=clock)
    source.take_away(LANE)
    worker.restore()
    clock.sleep_s(SAVED_LANES_S + 1.0)
    source.give(LANE)
    worker.follow()
    assert worker.lanes[LANE].published == 0
    assert ("seek", LANE, WARM) not in source.journal
    worker.close()
