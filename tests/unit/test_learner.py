"""The learner changes the model at fixed event counts, so that neither batches nor restarts change what is learnt."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from strategies import names_of, normal_rows

from streamdet.clock import SystemClock
from streamdet.config import Settings
from streamdet.decide import judge
from streamdet.events import Mode, Rows, Verdicts
from streamdet.learn.learner import FIRST_RUN, Learner
from streamdet.models.version import ModelVersion
from streamdet.threshold.rolling import RollingLimits

CPU = torch.device("cpu")
COLUMNS = 3
N = 3000
WARMUP, EVERY, LAG = 600, 1024, 300
LATER = WARMUP + EVERY  # the first run after the warm-up
ROWS = normal_rows(N, COLUMNS, seed=11)


def settings_of(**learning: Any) -> Settings:
    chosen = {"warmup": WARMUP, "every": EVERY, "lag": LAG, "buffer": 512} | learning
    return Settings.model_validate({"learning": chosen, "limit": {"alert_rate": 0.02, "window": 1000}})


@dataclass
class Stream:
    """A worker in small: judges rows of one lane in batches of any size, as far as there is room."""

    settings: Settings
    seed: int = 0
    model: ModelVersion | None = None
    learner: Learner = field(init=False)
    limits: RollingLimits = field(init=False)
    at: int = 0
    adopted: list[tuple[int, str]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    modes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.learner = Learner(self.settings, names_of(COLUMNS), CPU, SystemClock())
        self.limits = RollingLimits(self.settings.limit)

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
        self.learner.observe([(rows, verdicts)], self.model, self.limits.lane_limit)
        self.at += n
        self.scores += raw.tolist()
        self.modes += verdicts.mode.tolist()
        before, self.model = self.model, self.learner.adopt(self.model)
        if self.model is not None and self.model is not before:
            self.adopted.append((self.at, self.model.id))
            if before is not None:
                held_out = self.learner.held_out()
                self.limits.rescale(before.score(held_out), self.model.score(held_out))

    def saved(self) -> dict[str, Any]:
        limits = {
            name: array.copy() for name, array in self.limits.state().items()
        }  # a file has them at once
        state: dict[str, Any] = {"learner": self.learner.state(), "limits": limits}
        if self.model is not None:
            state["model"] = self.learner.save_model(self.model)
        return state

    @classmethod
    def restored(cls, settings: Settings, state: dict[str, Any], at: int, seed: int) -> "Stream":
        stream = cls(settings, seed)
        if "model" in state:
            stream.model = stream.learner.load_model(state["model"])
        stream.learner.restore(state["learner"], stream.model)
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
    assert counts[:3] == [FIRST_RUN, 2 * FIRST_RUN, WARMUP]
    later = [LATER + LAG, LATER + EVERY + LAG]
    assert set(counts[3:]) <= set(later)
    assert len(counts[3:]) + sum(whole.learner.refused_total.values()) == len(later)
    assert whole.learner.adopted_total == len(counts)


@pytest.mark.parametrize(
    "at",
    [
        1,  # before there is a model
        FIRST_RUN,  # just adopted
        LATER,  # a run has just started
        LATER + LAG - 1,  # a run is about to be adopted
        1500,
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


def test_a_batch_never_crosses_a_count_at_which_something_changes() -> None:
    learner = Learner(settings_of(), names_of(COLUMNS), CPU, SystemClock())
    assert learner.room() == FIRST_RUN
    stream = Stream(settings_of()).run(300)
    assert stream.learner.room() == 2 * FIRST_RUN - 300
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
    assert [at for at, _ in stream.adopted] == [256, 512, WARMUP]
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
    learner = Learner(settings_of(), names_of(COLUMNS), CPU, SystemClock())
    n = FIRST_RUN
    nothing = np.zeros(n, np.bool_)
    verdicts = Verdicts(np.full(n, 9.0), np.full(n, 1.0), np.full(n, 2, np.uint8), ~nothing, nothing, nothing)
    learner.observe([(ROWS[:n], verdicts)], None, math.nan)
    assert learner.adopt(None) is None
    assert learner.room() == FIRST_RUN
    assert "too few normal rows" in caplog.text
    learner.close()


def test_several_lanes_in_a_batch_count_together() -> None:
    learner = Learner(settings_of(), names_of(COLUMNS), CPU, SystemClock())
    n = FIRST_RUN // 2
    all_of = np.ones(n, np.bool_)
    verdicts = Verdicts(
        np.full(n, np.nan), np.full(n, np.nan), np.zeros(n, np.uint8), ~all_of, all_of, all_of
    )
    learner.observe([(ROWS[:n], verdicts), (ROWS[n : 2 * n], verdicts)], None, math.nan)
    model = learner.adopt(None)
    learner.close()
    assert model is not None
    assert learner.seen == FIRST_RUN == model.trained_at
