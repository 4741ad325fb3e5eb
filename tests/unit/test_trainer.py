"""Training is a pure function of its snapshot: seeded, on a stated scale, and unmoved by a few gross rows."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from strategies import model_of, names_of, normal_rows, schema_of, snapshot_of, version_of

from streamdet.events import NEWEST_COLUMNS, Rows
from streamdet.learn.trainer import SPREAD_FLOOR, WARMUP_TRIM, Snapshot, spread_floor, train
from streamdet.models.autoencoder import Adam
from streamdet.models.version import ModelVersion

CPU = torch.device("cpu")


def trained(snapshot: Snapshot, previous: ModelVersion | None = None, seed: int = 0) -> ModelVersion:
    return train(
        snapshot, previous, schema_of(snapshot.training.values.shape[1] - NEWEST_COLUMNS), None, seed, CPU
    )


def test_the_same_snapshot_gives_the_same_version_whatever_the_global_random_state() -> None:
    torch.manual_seed(1)
    first = trained(snapshot_of(300))
    torch.manual_seed(2)
    np.random.default_rng(3).random()
    assert trained(snapshot_of(300)).id == first.id


def test_another_seed_count_or_predecessor_gives_another_version() -> None:
    snapshot = snapshot_of(300)
    ids = {
        trained(snapshot).id,
        trained(snapshot, seed=1).id,
        trained(replace(snapshot, at=301)).id,
        trained(snapshot, model_of()).id,
    }
    assert len(ids) == 4


def test_training_leaves_the_snapshot_and_the_predecessor_as_they_were() -> None:
    snapshot, previous = snapshot_of(300), model_of()
    values, before = snapshot.training.values.copy(), previous.id
    trained(snapshot, previous)
    assert np.array_equal(snapshot.training.values, values)
    again = version_of(previous, previous.tensors())
    assert again.id == before


def test_a_trained_model_restores_normal_rows_better_than_an_untrained_one() -> None:
    model, rows = model_of(2000), normal_rows(1000, 6, seed=42)
    assert model.unexplained(rows) < 0.6


def test_it_learns_how_columns_move_together_and_not_just_their_ranges() -> None:
    model, rows = model_of(3000), normal_rows(1000, 6, seed=42)
    rng = np.random.default_rng(0)
    shuffled = Rows(np.stack([rng.permutation(c) for c in rows.values.T], axis=1), rows.imputed)
    usual, torn = (model.raw_scores(some)["reconstruction"] for some in (rows, shuffled))
    assert np.median(torn) > 2 * np.median(usual)


def test_a_few_gross_rows_in_the_warm_up_change_the_scale_hardly() -> None:
    clean = snapshot_of(1000)
    dirty = replace(snapshot_of(1000), trim=WARMUP_TRIM)
    dirty.training.values[::100, :6] += np.float32(1e6)
    spread = trained(dirty).scaler.spread / trained(clean).scaler.spread
    assert ((spread > 0.7) & (spread < 1.3)).all()


def test_refits_do_not_see_less_and_less_spread() -> None:
    first = model_of(1000)
    floor = spread_floor(snapshot_of(1000).training)
    assert floor[:6] == pytest.approx(SPREAD_FLOOR * first.scaler.spread.numpy())
    narrow = snapshot_of(500)
    for rows in (narrow.training, narrow.held_out):
        rows.values[:] = rows.values.mean(axis=0) + 0.01 * (rows.values - rows.values.mean(axis=0))
    refit = trained(replace(narrow, spread_floor=floor), first)
    assert (refit.scaler.spread.numpy() >= floor[:6] * 0.999).all()


@pytest.mark.parametrize("columns", [1, 2, 30])
def test_any_number_of_columns_can_be_learnt_even_from_the_fewest_rows(columns: int) -> None:
    model = trained(Snapshot(normal_rows(64, columns), normal_rows(16, columns, 1), None, 0.02, 64))
    scores = model.score(normal_rows(500, columns, 2))
    assert np.isfinite(scores).all()
    assert model.columns == names_of(columns)
    assert model.trained_at == 64


def test_rows_with_gaps_are_learnt_from_and_judged_by_what_is_there() -> None:
    gappy = model_of(2000, missing=0.2)
    whole, holed = normal_rows(1000, 6, 5), normal_rows(1000, 6, 5, missing=0.2)
    location = np.pad(gappy.scaler.location.numpy(), (0, NEWEST_COLUMNS))
    holed.values[holed.imputed] = np.broadcast_to(location, holed.values.shape)[holed.imputed]
    for rows in (whole, holed):
        assert np.median(gappy.score(rows)) == pytest.approx(0.7, abs=0.4)


def test_constant_columns_and_rows_that_are_all_alike_train_to_finite_versions() -> None:
    for level in (0.0, 1e30, -5.0):
        snapshot = snapshot_of(200, 3)
        for rows in (snapshot.training, snapshot.held_out):
            rows.values[:] = np.float32(level)
        model = trained(snapshot)
        assert all(torch.isfinite(tensor).all() for tensor in model.tensors().values())
        assert np.isfinite(model.score(snapshot.held_out)).all()


def test_the_optimiser_takes_the_steps_of_the_paper() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimiser = Adam([parameter], 0.1)
    x, mean, square = np.array([1.0, -2.0, 3.0]), np.zeros(3), np.zeros(3)
    for step in range(1, 21):
        assert parameter.grad is not None
        parameter.grad[:] = 2.0 * (parameter.detach() - step)
        optimiser.step()
        gradient = 2 * (x - step)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        x = x - 0.1 * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    assert parameter.detach().numpy() == pytest.approx(x, abs=1e-4)


def contaminated(rows: Rows, share: float = 0.07) -> tuple[Rows, NDArray[np.bool_]]:
    """The rows, of which so many, here and there, are far out."""
    odd = np.random.default_rng(6).random(len(rows)) < share
    values = rows.values.copy()
    values[odd] += np.float32(8.0) * values.std(axis=0)
    return Rows(values, rows.imputed), odd


def test_anomalies_among_the_references_do_not_make_later_ones_usual() -> None:
    clean = snapshot_of(2000)
    held_out, odd = contaminated(clean.held_out)
    dirty = trained(replace(clean, held_out=held_out))
    later, odd_later = contaminated(normal_rows(1000, 6, seed=99))
    assert dirty.apart(dirty.raw_scores(held_out))[odd].mean() > 0.9
    assert dirty.apart(dirty.raw_scores(held_out))[~odd].mean() < 0.01
    by_clean, by_dirty = trained(clean).score(later), dirty.score(later)
    assert by_dirty[odd_later] == pytest.approx(by_clean[odd_later], rel=0.25)
    assert np.median(by_dirty[odd_later]) > np.quantile(by_dirty[~odd_later], 0.999)


def test_no_row_of_a_healthy_plant_lies_apart_and_nothing_of_none() -> None:
    model = model_of(2000)
    assert not model.apart(model.raw_scores(normal_rows(1000, 6, seed=1))).any()
    assert len(model.apart(model.raw_scores(normal_rows(1000, 6)[:0]))) == 0


def test_a_burst_among_the_references_leaves_more_of_a_scale_of_records_that_was_there_before() -> None:
    calm = snapshot_of(2000)
    first = trained(calm)
    values = calm.held_out.values.copy()
    values[-len(values) // 5 :] += np.float32(8.0) * values.std(axis=0)  # in a run: they do not lie apart
    poisoned = replace(calm, held_out=Rows(values, calm.held_out.imputed), at=2500)
    later, odd = contaminated(normal_rows(1000, 6, seed=99))
    before = np.median(first.score(later)[odd])
    kept = np.median(trained(poisoned, first).score(later)[odd])
    assert kept > 0.5 * before
    unknown = replace(poisoned, trim=1e-9)  # of rows that nobody has judged: there is nothing to keep
    assert np.median(trained(unknown, first).score(later)[odd]) < 0.7 * kept
