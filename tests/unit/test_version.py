"""A model version scores purely, says why, and comes back from its tensors bit by bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import cuts, model_of, normal_rows, schema_of, snapshot_of, untrained, version_of

from streamdet.events import Rows
from streamdet.learn.trainer import train
from streamdet.models.scorers.reconstruction import ROWS as BLOCK
from streamdet.models.version import ModelVersion

CPU = torch.device("cpu")


@settings(max_examples=60)
@given(st.data(), st.integers(1, 40), st.integers(1, 3 * BLOCK))
def test_a_row_has_the_same_bits_whatever_else_is_in_its_batch(
    data: st.DataObject, columns: int, n: int
) -> None:
    model, rows = untrained(columns), normal_rows(n, columns, seed=5, missing=0.1)
    together = model.score(rows)
    assert np.isfinite(together).all()
    parts = [model.score(rows[start:stop]) for start, stop in data.draw(cuts(n))]
    assert np.concatenate(parts).tobytes() == together.tobytes()
    order = np.random.default_rng(data.draw(st.integers(0, 99))).permutation(n)
    assert model.score(rows[order]).tobytes() == together[order].tobytes()
    one = data.draw(st.integers(0, n - 1))
    others = normal_rows(n, columns, seed=6)
    others.values[one], others.imputed[one] = rows.values[one], rows.imputed[one]
    assert model.score(others)[one] == together[one]


@pytest.mark.parametrize("columns", [1, 8, 17])
def test_raw_scores_do_not_depend_on_the_batch_either(columns: int) -> None:
    model, rows = untrained(columns), normal_rows(700, columns)
    together = model.raw_scores(rows)
    for i in (0, 255, 256, 699):
        alone = model.raw_scores(rows[i : i + 1])
        assert all(alone[name][0] == scores[i] for name, scores in together.items())


@pytest.mark.parametrize("columns", [1, 6, 33])
def test_a_version_comes_back_from_its_tensors_with_the_same_id_and_bits(columns: int) -> None:
    model, rows = untrained(columns), normal_rows(300, columns, seed=9)
    back = version_of(model, model.tensors())
    assert back.id == model.id
    assert back.score(rows).tobytes() == model.score(rows).tobytes()
    again = back.tensors()
    assert again.keys() == model.tensors().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.tensors().items())


def test_an_id_names_exactly_these_numbers_and_columns() -> None:
    model = model_of()
    assert len(model.id) == 12
    assert int(model.id, 16) >= 0
    for name, tensor in model.tensors().items():
        changed = {**model.tensors(), name: tensor + 1}
        assert version_of(model, changed).id != model.id, name
    renamed = replace(model, columns=(*model.columns[:-1], "other"))
    assert renamed.id != model.id


def test_no_rows_give_no_scores() -> None:
    assert model_of().score(normal_rows(0, 6)).shape == (0,)


def test_scoring_changes_nothing() -> None:
    model, rows = model_of(), normal_rows(500, 6, seed=3)
    before, values = {name: t.clone() for name, t in model.tensors().items()}, rows.values.copy()
    model.score(rows)
    model.explain(rows)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.tensors().items())
    assert np.array_equal(rows.values, values)


def test_surprise_is_on_the_scale_of_probabilities() -> None:
    scores = model_of(3000).score(normal_rows(5000, 6, seed=77))
    for level in (0.5, 0.1, 0.02):
        assert (np.exp(-scores) <= level).mean() == pytest.approx(level, rel=0.5)


@given(st.floats(-1e38, 1e38), st.integers(0, 5))
def test_any_number_in_any_column_has_a_finite_score(value: float, column: int) -> None:
    rows = normal_rows(1, 6)
    rows.values[0, column] = value
    assert np.isfinite(model_of().score(rows)).all()


@pytest.mark.parametrize("columns", [1, 6, 20])
def test_gross_values_score_higher_the_further_out_they_are(columns: int) -> None:
    model, rows = model_of(1000, columns), normal_rows(1, columns)
    scores = []
    for spreads in (0.0, 5.0, 20.0, 1e3, 1e6):
        moved = rows.values.copy()
        moved[:, :columns] += (spreads * model.scaler.spread.numpy()).astype(np.float32)
        scores.append(float(model.score(Rows(moved, rows.imputed))[0]))
    assert scores == sorted(scores)
    assert scores[-1] > 2 * scores[0] + 1


# --- Explaining ---------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 999), st.floats(0, 0.5))
def test_shares_are_not_negative_and_sum_to_one(columns: int, n: int, seed: int, missing: float) -> None:
    rows = normal_rows(n, columns, seed, missing=missing)
    rows.values[0] *= 50.0
    explanation = untrained(columns).explain(rows)
    assert explanation.share.shape == explanation.expected.shape == (n, columns)
    assert np.isfinite(explanation.expected).all()
    assert (explanation.share >= 0).all()
    assert explanation.share.sum(axis=1) == pytest.approx(1.0, abs=1e-5)
    assert (explanation.share[rows.imputed[:, :columns]] == 0).all()


@pytest.mark.parametrize("columns", [2, 6, 20, 40])
def test_the_feature_at_fault_has_the_largest_share(columns: int) -> None:
    model, rows = model_of(2000, columns), normal_rows(500, columns, seed=4)
    culprit = np.arange(500) % columns
    sign = np.where(np.arange(500) % 2 == 0, 10.0, -10.0)
    rows.values[np.arange(500), culprit] += (sign * model.scaler.spread.numpy()[culprit]).astype(np.float32)
    named = model.explain(rows).share.argmax(axis=1)
    assert (named == culprit).mean() >= 0.95


@given(st.integers(1, 40), st.integers(1, 300), st.integers(0, 299))
def test_a_row_is_explained_alike_whatever_else_is_in_its_batch(columns: int, n: int, at: int) -> None:
    model, rows, i = untrained(columns), normal_rows(n, columns, seed=2), at % n
    together, alone = model.explain(rows), model.explain(rows[i : i + 1])
    assert alone.share.tobytes() == together.share[i : i + 1].tobytes()
    assert alone.expected.tobytes() == together.expected[i : i + 1].tobytes()


def test_what_was_expected_lies_among_normal_values_whatever_was_there() -> None:
    model, rows = model_of(), normal_rows(100, 6, seed=4)
    usual = normal_rows(2000, 6, seed=5).values[:, :6]
    rows.values[:, 2] = 1e30
    expected = model.explain(rows).expected
    assert (expected >= usual.min(axis=0) - 1e-3).all()
    assert (expected <= usual.max(axis=0) + 1e-3).all()


def test_a_missing_value_is_not_held_against_the_row() -> None:
    model, rows = model_of(missing=0.05), normal_rows(200, 6, seed=8)
    imputed = rows.imputed.copy()
    imputed[:, 3] = True
    far = rows.values.copy()
    far[:, 3] = model.scaler.location[3].item()
    missing = model.score(Rows(far, imputed))
    assert np.median(missing) < np.median(model.score(rows)) + 1.0


# --- Flat lines -----------------------------------------------------------------------------------------------------


def flat(level: float) -> ModelVersion:
    """A model of a plant of which the first sensor has stood still."""
    snapshot = snapshot_of(600, 4)
    for rows in (snapshot.training, snapshot.held_out):
        rows.values[:, 0] = level
    return train(snapshot, None, schema_of(4), None, 0, CPU)


@pytest.mark.parametrize("level", [0.0, 1.0, -273.15, 1e5])
def test_a_step_away_from_a_flat_line_stands_out_and_is_named(level: float) -> None:
    model, rows = flat(level), normal_rows(400, 4, seed=12)
    rows.values[:, 0] = level
    still = model.score(rows)
    rows.values[:, 0] = level + 0.05 * max(1.0, abs(level))
    stepped = model.score(rows)
    assert stepped.min() > np.quantile(still, 0.99)
    assert (model.explain(rows).share.argmax(axis=1) == 0).mean() >= 0.95


def test_a_plant_that_stands_still_altogether_is_no_anomaly_and_a_step_is_one() -> None:
    snapshot = snapshot_of(300, 3)
    for rows in (snapshot.training, snapshot.held_out):
        rows.values[:] = np.float32(7.0)
    model = train(snapshot, None, schema_of(3), None, 0, CPU)
    still = normal_rows(10, 3)
    still.values[:] = np.float32(7.0)
    assert model.score(still).max() < 1.0
    still.values[:, 1] = np.float32(8.0)
    assert model.score(still).min() > 5.0
