"""The gate lets a good candidate pass and names why it refuses a broken one."""

import numpy as np
import pytest
import torch
from strategies import model_of, normal_rows, schema_of, snapshot_of, untrained, version_of

from streamdet.config import Gate
from streamdet.events import NEWEST_COLUMNS, Rows
from streamdet.learn.gate import GateResult, Refusal, examine
from streamdet.learn.trainer import train
from streamdet.models.version import ModelVersion

CPU = torch.device("cpu")
RATE = 0.01
GATE = Gate()


def held_out(n: int = 1000) -> Rows:
    return normal_rows(n, 6, seed=321)


def limit_of(model: ModelVersion) -> float:
    return float(np.quantile(model.score(normal_rows(5000, 6, seed=7)), 1 - RATE))


def changed(model: ModelVersion, **factors: float) -> ModelVersion:
    """The version with these tensors multiplied; _ stands for the dot in their names."""
    tensors = model.tensors()
    for name, factor in factors.items():
        key = next(k for k in tensors if k.replace(".", "_") == name)
        tensors[key] = tensors[key] * factor
    return version_of(model, tensors)


def examined(candidate: ModelVersion, rows: Rows | None = None, gate: Gate = GATE) -> GateResult:
    current = model_of(2000)
    return examine(candidate, current, held_out() if rows is None else rows, limit_of(current), RATE, gate)


def test_the_model_in_use_passes_as_its_own_candidate() -> None:
    result = examined(model_of(2000))
    assert result.refusal is None
    assert result.loss_ratio == 1.0
    assert result.detected == result.detected_before


def test_a_fine_tuned_model_passes() -> None:
    candidate = train(snapshot_of(1500, seed=3), model_of(2000), schema_of(6), None, 0, CPU)
    assert examined(candidate).refusal is None


def test_a_model_that_gives_no_numbers_is_refused() -> None:
    broken = changed(model_of(2000), reconstruction_decode_out_weight=float("nan"))
    assert examined(broken).refusal == Refusal.NOT_FINITE


def test_a_model_that_restores_nothing_is_refused_for_its_loss() -> None:
    result = examined(changed(model_of(2000), reconstruction_decode_out_weight=0.0))
    assert result.refusal == Refusal.LOSS
    assert result.loss_ratio > GATE.loss_ratio_max


def test_an_untrained_model_is_refused() -> None:
    assert examined(untrained(6)).refusal is not None


def test_a_model_that_would_alert_on_normal_rows_is_refused_for_its_volume() -> None:
    # Rows that came in last have moved; the candidate is too narrow to take them for normal.
    rows = held_out()
    candidate = model_of(2000)
    half = len(rows) // 2
    rows.values[half:, :-NEWEST_COLUMNS] += (8 * candidate.scaler.spread.numpy()).astype(np.float32)
    result = examine(candidate, candidate, rows, limit_of(candidate), RATE, GATE)
    assert result.refusal == Refusal.ALERT_VOLUME
    assert result.alert_share > GATE.alert_ratio_max * RATE


def test_a_model_that_has_become_blind_is_refused_for_its_detection() -> None:
    # Scales that are far too wide: everything is near the middle, planted anomalies included.
    blind = changed(model_of(2000), scaler_spread=300.0)
    result = examined(blind, gate=Gate(loss_ratio_max=1e9, alert_ratio_max=1e9))
    assert result.refusal == Refusal.DETECTION
    assert result.detected < result.detected_before - GATE.detection_loss_max


@pytest.mark.parametrize("n", [16, 17, 50])
def test_few_held_out_rows_do_not_refuse_a_good_model(n: int) -> None:
    assert examined(model_of(2000), held_out(n)).refusal is None


def test_a_limit_beyond_all_held_out_scores_is_carried_over_too() -> None:
    model = model_of(2000)
    result = examine(model, model, held_out(), 1e3, RATE, GATE)
    assert result.refusal is None
    assert result.alert_share == 0.0


def test_examining_changes_no_rows_and_says_what_it_measured() -> None:
    rows = held_out(100)
    before = rows.values.copy()
    result = examined(model_of(2000), rows)
    assert np.array_equal(rows.values, before)
    assert "loss_ratio=1.000" in str(result)
    assert "detected=" in str(result)


def test_a_stream_that_stands_still_does_not_break_the_gate() -> None:
    rows = held_out(100)
    rows.values[:] = rows.values[0]
    result = examined(model_of(2000), rows)
    assert np.isfinite([result.loss_ratio, result.alert_share, result.detected]).all()


def test_anomalies_among_the_rows_that_both_models_flag_refuse_nobody() -> None:
    """Else no candidate would ever do where more is anomalous than is asked to be flagged."""
    rows, model = held_out(), model_of(2000)
    odd = np.random.default_rng(2).random(len(rows)) < 0.1
    rows.values[odd] += np.float32(8.0) * rows.values.std(axis=0)
    scores = model.score(rows)
    limit = float(scores[~odd].max()) * 1.05
    assert (scores[odd] > limit).all()
    assert examine(model, model, rows, limit, RATE, GATE).refusal is None
