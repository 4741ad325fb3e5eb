"""The learner changes the model at fixed event counts, so that neither batches nor restarts change what is learnt."""

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from strategies import beside_the_newest, names_of, normal_rows, schema_of

from streamdet.checkpoint.format import digest
from streamdet.checkpoint.freeze import freeze_now
from streamdet.clock import SystemClock
from streamdet.config import Noise, Settings
from streamdet.decide import judge
from streamdet.events import NEWEST_COLUMNS, LaneId, Mode, Rows, Schema, State, Verdicts
from streamdet.learn.learner import ACT_EVERY, FIRST_RUN, WAIT_S, Learner
from streamdet.learn.trainer import train
from streamdet.models.release import Release
from streamdet.models.version import ModelVersion
from streamdet.threshold.limits import Limits

LANE, OTHER = LaneId("plant", 0), LaneId("plant", 1)
CPU = torch.device("cpu")
COLUMNS = 3
N = 3000
WARMUP, EVERY, LAG = 600, 1024, 200
APART = 512  # between runs, as long as a stream is short
EARLY = [FIRST_RUN, 2 * FIRST_RUN, 4 * FIRST_RUN, 8 * FIRST_RUN, WARMUP]  # of the warm-up
LATER = WARMUP + APART  # the first run after the warm-up
PLAIN = schema_of(COLUMNS)
ROWS = normal_rows(N, COLUMNS, seed=11)
# A run takes a fraction of a second; a test that waits for longer has failed.
READY_MAX_S = 60.0


def settings_of(**learning: Any) -> Settings:
    chosen = {"warmup": WARMUP, "every": EVERY, "lag": LAG, "buffer": 512} | learning
    return Settings.model_validate({"learning": chosen, "limit": {"alert_rate": 0.02, "window": 1000}})


def at_last(learner: Learner) -> Release:
    """What it adopts, once the run that it waits for is ready."""
    deadline_s = time.monotonic() + READY_MAX_S
    while (release := learner.adopt()) is None:
        assert learner.room() == 0
        assert time.monotonic() < deadline_s
    return release


@dataclass
class Stream:
    """A worker in small: judges rows of one lane in batches of any size, as far as there is room."""

    settings: Settings
    seed: int = 0
    model: ModelVersion | None = None
    schema: Schema = PLAIN
    learner: Learner = field(init=False)
    limits: Limits = field(init=False)
    at: int = 0
    adopted: list[tuple[int, str]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    modes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.learner = Learner(self.settings, self.schema, CPU, SystemClock())
        self.limits = Limits(self.settings.limit)

    def run(self, until: int, rows: Rows = ROWS) -> "Stream":
        rng = np.random.default_rng(self.seed)
        while self.at < until:
            n = min(int(rng.integers(1, 700)), self.learner.room(), until - self.at)
            assert n > 0
            self._judge(rows[self.at : self.at + n])
        return self

    def _judge(self, rows: Rows) -> None:
        n = len(rows)
        raw = np.full(n, np.nan) if self.model is None else self.model.score(rows)
        nobody = np.zeros(n, np.int64), np.zeros(n, np.bool_)
        verdicts = judge(raw, *nobody, self.limits, alerting=self.learner.warm)
        self.at += n
        self.learner.observe([(rows, verdicts)], {LANE: self.at}, self.limits.lane_limit)
        self.scores += raw.tolist()
        self.modes += verdicts.mode.tolist()
        release = self.learner.adopt()
        while not self.learner.room():  # its run goes on
            release = self.learner.adopt()
        if release is not None:
            if self.model is not None:
                self.limits.rescale(release.scores_by(self.model), release.scores_by(release.version))
            self.model = release.version
            self.adopted.append((self.at, release.version.id))

    def saved(self) -> State:
        return freeze_now({"learner": self.learner.state(), "limits": self.limits.state()})

    @classmethod
    def restored(cls, settings: Settings, state: State, at: int, seed: int) -> "Stream":
        stream = cls(settings, seed)
        stream.learner.restore(state["learner"])
        if stream.learner.release is not None:
            stream.model = stream.learner.release.version
        stream.limits.restore(state["limits"])
        stream.at = at
        return stream


@pytest.fixture(scope="module")
def whole() -> Stream:
    stream = Stream(settings_of()).run(N)
    stream.learner.close()
    return stream


def test_the_same_models_are_adopted_at_the_same_events_whatever_the_batches(whole: Stream) -> None:
    other = Stream(settings_of(), seed=1).run(N)
    other.learner.close()
    assert other.adopted == whole.adopted
    assert np.array_equal(other.scores, whole.scores, equal_nan=True)
    assert other.modes == whole.modes


def test_models_come_at_doubling_counts_while_warming_up_and_then_at_a_fixed_distance(whole: Stream) -> None:
    counts = [at for at, _ in whole.adopted]
    assert counts[: len(EARLY)] == EARLY
    later = range(LATER + LAG, N + 1, APART)
    assert set(counts[len(EARLY) :]) <= set(later)
    assert len(counts[len(EARLY) :]) + sum(whole.learner.refused_total.values()) == len(later)
    assert whole.learner.adopted_total == len(counts)


@pytest.mark.parametrize(
    "at",
    [
        1,  # before there is a model
        FIRST_RUN,  # just adopted
        LATER,  # a run has just started
        LATER + LAG - 1,  # a run is about to be adopted
        1500,  # between an adoption and the next run
    ],
)
def test_a_restart_changes_no_later_model_and_no_later_score(whole: Stream, at: int) -> None:
    first = Stream(settings_of(), seed=at).run(at)
    state = first.saved()
    first.run(at + 100)  # what was saved does not change with what goes on
    first.learner.close()
    second = Stream.restored(settings_of(), state, at, seed=at + 1).run(N)
    second.learner.close()
    assert second.adopted == [(count, version) for count, version in whole.adopted if count > at]
    assert np.array_equal(second.scores, whole.scores[at:], equal_nan=True)
    assert second.learner.adopted_total == whole.learner.adopted_total


def test_nothing_is_alerted_before_the_warm_up_is_over(whole: Stream) -> None:
    modes = np.array(whole.modes)
    assert (modes[:FIRST_RUN] == Mode.COLD).all()
    assert (modes[FIRST_RUN:WARMUP] == Mode.WARMING).all()
    assert (modes[WARMUP:] == Mode.READY).all()


def test_runs_are_further_apart_the_longer_a_stream_is_up_to_what_is_configured() -> None:
    learner = Learner(settings_of(every=50_000), schema_of(COLUMNS), CPU, SystemClock())
    starts = [FIRST_RUN]
    while starts[-1] < 2_000_000:
        starts.append(learner._following(starts[-1]))
    learner.close()
    apart = np.diff([start for start in starts if start >= WARMUP])
    assert (np.diff(apart) >= 0).all()
    assert (apart[0], apart[-1]) == (APART, 50_000)
    assert len(starts) < 90


def test_a_batch_never_crosses_a_count_at_which_something_changes() -> None:
    learner = Learner(settings_of(), schema_of(COLUMNS), CPU, SystemClock())
    assert learner.room() == FIRST_RUN
    stream = Stream(settings_of()).run(300)
    assert stream.learner.room() == 8 * FIRST_RUN - 300
    assert stream.run(512).learner.room() == WARMUP - 512
    assert stream.run(LATER).learner.room() == LAG
    stream.learner.close()
    learner.close()


def test_without_learning_the_model_of_the_end_of_the_warm_up_stays_for_good() -> None:
    stream = Stream(settings_of(enabled=False)).run(N)
    stream.learner.close()
    assert [at for at, _ in stream.adopted if at > WARMUP] == []
    assert stream.learner.room() > 1_000_000_000


def test_a_candidate_that_the_gate_refuses_is_dropped_counted_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stream = Stream(settings_of(gate={"loss_ratio_max": 1e-6})).run(LATER + LAG)
    stream.learner.close()
    assert [at for at, _ in stream.adopted] == EARLY
    assert stream.learner.refused_total == {"loss": 1}
    assert "model refused reason=loss" in caplog.text


def test_anomalies_are_not_learnt() -> None:
    clean = Stream(settings_of()).run(1600)
    rows = Rows(ROWS.values.copy(), ROWS.imputed)
    rows.values[WARMUP::15] += np.float32(1e4)
    dirty = Stream(settings_of()).run(1600, rows)
    for stream in (clean, dirty):
        stream.learner.close()
    assert clean.model is not None
    assert dirty.model is not None
    spread = (dirty.model.scaler.spread / clean.model.scaler.spread).numpy()
    assert ((spread > 0.7) & (spread < 1.4)).all()


def test_a_start_with_too_few_normal_rows_is_left_out_and_the_next_one_is_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    learner = Learner(settings_of(), schema_of(COLUMNS), CPU, SystemClock())
    n = FIRST_RUN
    nothing = np.zeros(n, np.bool_)
    verdicts = replace(unjudged(n), flagged=~nothing, fed=nothing, normal=nothing)
    learner.observe([(ROWS[:n], verdicts)], {LANE: n}, math.nan)
    assert learner.adopt() is None
    assert learner.room() == FIRST_RUN
    assert "too few normal rows" in caplog.text
    learner.close()


def test_several_lanes_in_a_batch_count_together() -> None:
    learner = Learner(settings_of(), schema_of(COLUMNS), CPU, SystemClock())
    n = FIRST_RUN // 2
    verdicts = unjudged(n)
    learner.observe([(ROWS[:n], verdicts), (ROWS[n : 2 * n], verdicts)], {LANE: n, OTHER: n}, math.nan)
    release = at_last(learner)
    learner.close()
    assert learner.seen == FIRST_RUN == release.version.trained_at
    assert learner.positions == {LANE: n, OTHER: n}


class SlowRuns:
    """Runs that train as ever, but give nothing before they are let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def train(self, *args: Any) -> ModelVersion:
        assert self.let_go.wait(READY_MAX_S)
        return train(*args)


@pytest.fixture
def slow_runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowRuns]:
    """No argument leads to the training; so it is replaced by name."""
    slow = SlowRuns()
    monkeypatch.setattr("streamdet.learn.learner.train", slow.train)
    yield slow
    slow.let_go.set()


def unjudged(n: int) -> Verdicts:
    """As they are before there is a model."""
    nothing, all_of = np.zeros(n, np.bool_), np.ones(n, np.bool_)
    unknown, no_mode = np.full(n, np.nan), np.zeros(n, np.uint8)
    return Verdicts(unknown, unknown, no_mode, nothing, all_of, all_of, unknown, no_mode)


def test_an_adoption_whose_run_is_not_ready_comes_at_the_same_count_later_and_holds_nothing_up(
    whole: Stream, slow_runs: SlowRuns
) -> None:
    learner = Learner(settings_of(), schema_of(COLUMNS), CPU, SystemClock())
    learner.observe([(ROWS[:FIRST_RUN], unjudged(FIRST_RUN))], {LANE: FIRST_RUN}, math.nan)
    for _ in range(2):
        started_s = time.monotonic()
        assert learner.adopt() is None
        assert WAIT_S * 0.9 < time.monotonic() - started_s < WAIT_S + 1.0
        assert learner.room() == 0
    assert learner.waited_s > WAIT_S
    slow_runs.let_go.set()
    release = at_last(learner)
    assert (learner.seen, release.version.id) == whole.adopted[0]
    assert learner.room() == FIRST_RUN
    assert learner.adopt() is None
    learner.close()


def test_while_it_waits_what_is_saved_is_what_it_waits_for(slow_runs: SlowRuns) -> None:
    learner = Learner(settings_of(), schema_of(COLUMNS), CPU, SystemClock())
    learner.observe([(ROWS[:FIRST_RUN], unjudged(FIRST_RUN))], {LANE: FIRST_RUN}, math.nan)
    before = digest(learner.state())
    assert learner.adopt() is None
    assert digest(learner.state()) == before
    other = Learner(settings_of(), schema_of(COLUMNS), CPU, SystemClock())
    other.restore(freeze_now(learner.state()))
    assert digest(other.state()) == before
    slow_runs.let_go.set()
    assert at_last(learner).version.id == at_last(other).version.id
    assert digest(other.state()) == digest(learner.state())
    for each in (learner, other):
        each.close()


def test_who_does_not_lead_any_more_does_not_wait_for_a_run(slow_runs: SlowRuns) -> None:
    learner = Learner(settings_of(), schema_of(COLUMNS), CPU, SystemClock())
    learner.observe([(ROWS[:FIRST_RUN], unjudged(FIRST_RUN))], {LANE: FIRST_RUN}, math.nan)
    started_s = time.monotonic()
    learner.close(wait=False)
    assert time.monotonic() - started_s < WAIT_S
    assert not slow_runs.let_go.is_set()


def test_positions_are_kept_with_what_was_learnt_and_a_lane_that_is_lost_is_forgotten() -> None:
    learner = Learner(settings_of(), schema_of(COLUMNS), CPU, SystemClock())
    learner.observe([(ROWS[:10], unjudged(10))], {LANE: 10}, math.nan)
    learner.observe([(ROWS[10:15], unjudged(5))], {OTHER: 7}, math.nan)
    other = Learner(settings_of(), schema_of(COLUMNS), CPU, SystemClock())
    other.restore(freeze_now(learner.state()))
    assert other.positions == learner.positions == {LANE: 10, OTHER: 7}
    learner.forget(LANE)
    learner.forget(LANE)
    assert learner.positions == {OTHER: 7}
    for each in (learner, other):
        each.close()


def test_a_release_carries_the_held_out_rows_and_whether_it_has_seen_the_warm_up(whole: Stream) -> None:
    stream = Stream(settings_of()).run(FIRST_RUN)
    first = stream.learner.release
    assert first is not None
    assert not first.warm
    assert len(first.rows) == FIRST_RUN // 4
    last = stream.run(WARMUP).learner.release
    assert last is not None
    assert last.warm
    assert last.version.id == dict(whole.adopted)[WARMUP]
    stream.learner.close()


# A level that has moved for good is confirmed after a window, and acted upon at the next count for that.
SHIFT, ACTED = 2000, 2 * ACT_EVERY
LONG = ACTED + 1000


def shifted(until: int = LONG) -> Rows:
    rows = normal_rows(LONG, COLUMNS, seed=12)
    values = rows.values[:, :COLUMNS].copy()
    values[SHIFT:until] += np.float32(30.0)
    return beside_the_newest(Rows(values, rows.imputed[:, :COLUMNS]), COLUMNS)


SHIFTED = shifted()


@pytest.fixture(scope="module")
def moved() -> Stream:
    stream = Stream(settings_of()).run(LONG, SHIFTED)
    stream.learner.close()
    return stream


def test_a_state_that_has_come_to_stay_is_learnt_anew_and_its_rows_are_usual_again(
    moved: Stream, caplog: pytest.LogCaptureFixture
) -> None:
    assert moved.learner.relearnt_total == 1
    assert ACTED + LAG in [at for at, _ in moved.adopted]
    assert moved.model is not None
    values = SHIFTED.values[SHIFT:].astype(np.float64)
    off = (moved.model.scaler.location.numpy()[:COLUMNS] - values.mean(0)[:COLUMNS]) / values.std(0)[:COLUMNS]
    assert (np.abs(off) < 0.5).all()
    assert np.median(moved.scores[ACTED + LAG :]) < 1.5
    stream = Stream(settings_of()).run(ACTED, SHIFTED)
    stream.learner.close()
    assert f"drift confirmed action=relearn at={ACTED}" in caplog.text


def test_neither_batches_nor_a_restart_change_what_is_learnt_anew(moved: Stream) -> None:
    for at in (
        SHIFT + 500,  # the rise is watched
        ACTED - 1,  # it is confirmed
        ACTED,  # the run has started
        ACTED + LAG - 1,  # it is about to be adopted
        ACTED + LAG,  # runs are close together again
    ):
        first = Stream(settings_of(), seed=at).run(at, SHIFTED)
        second = Stream.restored(settings_of(), first.saved(), at, seed=at + 1).run(LONG, SHIFTED)
        for stream in (first, second):
            stream.learner.close()
        assert first.adopted + second.adopted == moved.adopted
        assert np.array_equal(first.scores + second.scores, moved.scores, equal_nan=True)
        assert second.learner.relearnt_total == 1


def test_what_is_learnt_anew_comes_with_limits_that_begin_anew() -> None:
    stream = Stream(settings_of()).run(ACTED + LAG, SHIFTED)
    release = stream.learner.release
    stream.learner.close()
    assert release is not None
    assert release.anew
    assert (release.rows.values[:, 0] > 10.0).all()


def test_an_incident_that_ends_is_not_learnt_anew_nor_is_anything_if_nobody_wants_it() -> None:
    incident = Stream(settings_of()).run(LONG, shifted(until=SHIFT + 900))
    unwanted = [Stream(settings_of(drift=False)), Stream(settings_of(enabled=False))]
    for stream in (incident, *(stream.run(LONG, SHIFTED) for stream in unwanted)):
        stream.learner.close()
        assert stream.learner.relearnt_total == 0


def test_what_lies_outside_a_hard_range_is_not_learnt_anew_however_long_it_lasts() -> None:
    schema = Schema(None, None, names_of(COLUMNS), ())
    values = normal_rows(LONG, 3 * COLUMNS, seed=12).values[:, : 3 * COLUMNS]
    values[SHIFT:] += np.float32(30.0)
    values = np.pad(values, ((0, 0), (0, NEWEST_COLUMNS)))  # the newest say nothing: all is as far from them
    rows = Rows(values, np.zeros(values.shape, np.bool_))

    def ranged(high: float) -> Learner:
        noise = Noise.model_validate({"features": {schema.numeric[0]: {"range": [None, high]}}})
        stream = Stream(settings_of().model_copy(update={"noise": noise}), schema=schema)
        stream.run(ACTED + LAG, rows)
        stream.learner.close()
        return stream.learner

    assert ranged(high=10.0).relearnt_total == 0
    high = float(np.median(rows.values[SHIFT:, 0]))
    learnt = ranged(high)
    assert learnt.relearnt_total == 1
    assert learnt.release is not None
    assert float(learnt.release.version.scaler.location[0]) < high - 0.3 * rows.values[:SHIFT, 0].std()


def test_a_checkpoint_from_before_there_was_any_of_this_begins_with_nothing_watched() -> None:
    stream = Stream(settings_of()).run(1500)
    state = dict(stream.saved()["learner"])
    for name in ("drift", "latest", "drifted", "began", "relearnt"):
        del state[name]
    learner = Learner(settings_of(), schema_of(COLUMNS), CPU, SystemClock())
    learner.restore(state)
    assert learner.seen == 1500
    assert learner.relearnt_total == 0
    for each in (stream.learner, learner):
        each.close()
