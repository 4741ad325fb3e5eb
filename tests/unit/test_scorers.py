"""Each scorer by itself: what it finds strange, and that batches, devices and copies of its numbers do not matter."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from strategies import beside_the_newest, names_of
from torch import Tensor

from streamdet.events import DRIFT, EXPECTATION_COLUMNS, NEWEST_COLUMNS, Events, LaneId, Rows, Schema
from streamdet.features.rows import LaneFeatures
from streamdet.learn.trainer import Snapshot, train
from streamdet.models.presets import (
    DRIFT_BEGINS,
    DRIFT_RAMP,
    DRIFT_SHARE_MAX,
    HANGS_TOGETHER,
    PRESETS,
    SCORERS,
    SECOND_OPINION_MAX,
    preset_of,
)
from streamdet.models.scorers import Block, Scorer, Training, padded_width
from streamdet.models.scorers.forest import DEPTH, TREES, Forest
from streamdet.models.scorers.nearest import ROWS_MAX, Nearest, Ordered, near_enough

CPU = torch.device("cpu")
WIDTH = 5
LANE = LaneId("plant", 0)
METRIC = Schema(None, None, ("load",), ())
SURPRISING = 6.9  # one row in a thousand
# The others go by the history of transactions: see test_habits.py.
BY_COLUMNS = [name for name in SCORERS if name not in PRESETS["transactions"].beyond and name != "habit"]
BY_COLUMNS += ["reconstruction"]


def block_of(z: Tensor, seen: Tensor | None = None) -> Block:
    """Rows of z that are values as well, padded; the first column is a metric's surprise too."""
    seen = torch.ones_like(z) if seen is None else seen
    padding = (0, padded_width(z.shape[1]) - z.shape[1])
    padded, there = (torch.nn.functional.pad(some, padding) for some in (z, seen))
    history = z[:, :1].expand(-1, EXPECTATION_COLUMNS)
    newest = z[:, :1].abs().expand(-1, NEWEST_COLUMNS)
    return Block(padded, padded, there, there.sum(1).clamp_min(1.0), newest, history, len(z))


def rows_of(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed))


def fitted(name: str, rows: Tensor | None = None) -> Scorer:
    rows = rows_of(500) if rows is None else rows
    return SCORERS[name].fit(
        Training(rows, rows, torch.ones_like(rows), torch.Generator().manual_seed(1)), None
    )


@pytest.mark.parametrize("name", [name for name in BY_COLUMNS if name != "reconstruction"])
def test_a_row_far_out_scores_above_all_usual_ones_and_a_row_scores_alike_in_any_company(name: str) -> None:
    scorer, rows = fitted(name), rows_of(300, seed=2)
    rows[7] = 12.0
    scores = scorer.score(block_of(rows))
    assert (scores >= 0).all()
    assert scores.argmax() == 7
    alone = torch.cat([scorer.score(block_of(rows[i : i + 1])) for i in range(300)])
    assert torch.equal(alone, scores)


@pytest.mark.parametrize("name", BY_COLUMNS)
def test_a_scorer_comes_back_from_its_tensors(name: str) -> None:
    scorer, block = fitted(name), block_of(rows_of(256, seed=3))
    back = SCORERS[name].from_tensors(scorer.tensors())
    assert torch.equal(back.score(block), scorer.score(block))
    assert all(torch.isfinite(tensor).all() for tensor in scorer.tensors().values())


@pytest.mark.parametrize("name", BY_COLUMNS)
def test_parts_add_up_to_the_score(name: str) -> None:
    scorer, block = fitted(name), block_of(rows_of(256, seed=4))
    parts = scorer.parts(block)
    if parts is None:
        assert name in ("forest", "newest")
    else:
        assert torch.allclose(parts.sum(1) / block.there, scorer.score(block), atol=1e-5)


def test_the_nearest_row_is_the_one_that_a_plain_search_finds() -> None:
    memory, rows = rows_of(400), rows_of(100, seed=5)
    seen = (torch.rand(100, WIDTH, generator=torch.Generator().manual_seed(6)) < 0.8).float()
    distances = ((rows.unsqueeze(1) - memory).abs() * seen.unsqueeze(1)).sum(2).min(1).values
    found = fitted("nearest", memory).score(block_of(rows, seen))
    assert torch.allclose(found, distances / seen.sum(1).clamp_min(1.0), atol=1e-5)


def hanging_together(n: int) -> Tensor:
    """Rows (n, 8) of two causes that wander, with a column that never moves and one row far from all."""
    rng = np.random.default_rng(3)
    causes = np.cumsum(rng.normal(size=(n, 2)), axis=0) / 20.0
    rows = causes @ rng.normal(size=(2, 8)) + 0.05 * rng.normal(size=(n, 8))
    rows[:, 5] = 1.5
    rows[-n // 8] = 40.0
    return torch.from_numpy(rows.astype(np.float32))


@pytest.mark.parametrize("missing", [0.0, 0.02, 0.5])
def test_of_rows_that_hang_together_the_very_nearest_is_found(missing: float) -> None:
    rows = hanging_together(4_000)
    scorer, rows = fitted("nearest", rows[:3_000:2]), rows[3_000:]
    assert isinstance(scorer, Nearest)
    seen = (torch.rand(rows.shape, generator=torch.Generator().manual_seed(6)) >= missing).float()
    far = (rows.unsqueeze(1) - scorer.memory).abs() * seen.unsqueeze(1)
    expected = far[torch.arange(len(rows)), far.sum(2).argmin(1)]
    assert torch.equal(scorer.parts(block_of(rows, seen)), expected)


def test_most_are_passed_over_by_the_one_nearest_before_and_none_where_a_value_is_missing() -> None:
    every = hanging_together(4_000).numpy()
    ordered, rows = Ordered.of(every[:3_000:2]), every[3_000:]
    before = np.abs(rows[:, None] - ordered.by_column.T).sum(2).argmin(1)
    seen = np.ones(8, np.float32)
    looks = [
        np.ptp(near_enough(row, seen, guess, ordered))
        for row, guess in zip(rows[1:], before[:-1], strict=True)
    ]
    assert np.median(looks) < 1_500 / 5
    seen[2] = 0.0
    assert near_enough(rows[0], seen, 0, ordered) == (0, 1_500)


def test_a_row_that_was_remembered_is_not_strange_and_one_between_two_groups_is() -> None:
    memory = torch.cat([rows_of(200) * 0.1, rows_of(200, seed=1) * 0.1 + 4.0])
    scorer = fitted("nearest", memory)
    assert scorer.score(block_of(memory[:10])).max() == 0.0
    usual, between = rows_of(50, seed=9) * 0.1, torch.full((1, WIDTH), 2.0)
    assert scorer.score(block_of(between)).item() > 5 * scorer.score(block_of(usual)).max().item()


def test_the_memory_is_bounded() -> None:
    scorer = fitted("nearest", rows_of(3 * ROWS_MAX))
    assert isinstance(scorer, Nearest)
    assert scorer.memory.shape == (ROWS_MAX, padded_width(WIDTH))


def test_a_tree_that_is_walked_step_by_step_gives_what_the_compiled_one_does() -> None:
    scorer, rows = fitted("forest"), rows_of(20, seed=8)
    assert isinstance(scorer, Forest)
    expected = []
    for row in rows:
        lengths = []
        for tree in range(TREES):
            node = 0
            for _ in range(DEPTH):
                node = 2 * node + 1 + int(row[scorer.column[tree, node]] >= scorer.cut[tree, node])
            lengths.append(float(scorer.length[tree, node - (2**DEPTH - 1)]))
        expected.append(1.0 / float(np.mean(lengths)))
    assert scorer.score(block_of(rows)).numpy() == pytest.approx(expected, rel=1e-5)


def test_a_usual_row_is_about_half_way_and_constant_rows_grow_no_trees() -> None:
    assert fitted("forest").score(block_of(rows_of(500, seed=3))).mean().item() == pytest.approx(0.9, abs=0.2)
    constant = fitted("forest", torch.full((100, WIDTH), 3.0))
    assert torch.isfinite(constant.score(block_of(rows_of(10)))).all()


# --- What kind of data ----------------------------------------------------------------------------------------------


def with_recent_means(values: NDArray[np.float64]) -> Rows:
    """Rows as features give them, for numbers of one entity, (n, D)."""
    recent = []
    for half_life in (5.0, 20.0):
        step, mean, means = 1.0 - 2.0 ** (-1.0 / half_life), values[0].copy(), np.empty_like(values)
        for i, row in enumerate(values):
            mean += step * (row - mean)
            means[i] = mean
        recent.append(means)
    rows = np.concatenate([values, *recent], axis=1).astype(np.float32)
    return Rows(rows, np.zeros(rows.shape, np.bool_))


def test_numbers_that_hang_together_in_time_are_sensors_and_others_are_records() -> None:
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(2000, 3))
    assert preset_of(with_recent_means(np.cumsum(steps, axis=0)), 3, 3) == "sensors"
    assert preset_of(with_recent_means(steps), 3, 3) == "records"
    one = steps.copy()
    one[:, 1] = np.sin(np.arange(2000) / 30)
    assert preset_of(with_recent_means(one), 3, 3) == "sensors"
    assert 0.1 < HANGS_TOGETHER < 0.5


def test_categories_make_records_and_a_plant_that_stands_still_has_sensors() -> None:
    still = with_recent_means(np.full((300, 2), 7.0))
    assert preset_of(still, 2, 2) == "sensors"
    assert preset_of(still, 3, 2) == "records"
    assert preset_of(Rows(np.zeros((9, 2), np.float32), np.zeros((9, 2), np.bool_)), 2, 0) == "records"


@pytest.mark.parametrize("preset", ["sensors", "records", "plain"])
def test_every_preset_scores_and_explains_by_feature(preset: str) -> None:
    rng = np.random.default_rng(1)
    rows = beside_the_newest(with_recent_means(np.cumsum(rng.normal(size=(900, 3)), axis=0) * 0.1), 3)
    schema = Schema(None, None, names_of(3), ())
    model = train(Snapshot(rows[:600], rows[600:], None, 0.0, 600), None, schema, preset, 0, CPU)
    assert (model.preset, model.width) == (preset, 9 if preset == "sensors" else 3)
    assert sum(PRESETS[preset].weights.values()) == pytest.approx(1.0)
    values = rows.values[:, :9].copy()
    values[600:, 1] += 30.0
    far = beside_the_newest(Rows(values, rows.imputed[:, :9]), 3)[600:]
    assert model.score(far).min() > np.quantile(model.score(rows[600:]), 0.99)
    explanation = model.explain(far)
    assert explanation.share.shape == explanation.expected.shape == (300, 3)
    assert explanation.share.sum(axis=1) == pytest.approx(1.0, abs=1e-5)
    assert (explanation.share.argmax(axis=1) == 1).mean() > 0.95
    for i in (0, 7, 255, 256, 299):
        assert model.explain(far[i : i + 1]).share.tobytes() == explanation.share[i : i + 1].tobytes()


def metric_rows(values: NDArray[np.float64]) -> Rows:
    """Rows of one number that comes every five minutes."""
    n = len(values)
    times_ms = 300_000 * np.arange(n, dtype=np.int64)
    events = Events(LANE, np.arange(n), times_ms, [""] * n, values.reshape(n, 1), (), [b""] * n)
    return LaneFeatures(METRIC, 1).transform(events).rows


def test_a_metric_is_judged_by_its_history_and_expected_to_be_what_that_forecasts() -> None:
    hours = 2 * np.pi * np.arange(288 * 14) / 288
    values = 100 + 30 * np.sin(hours) + np.random.default_rng(1).normal(size=len(hours))
    values[3_900] += 50.0
    rows = metric_rows(values)
    assert preset_of(rows, 1, 1) == "metric"
    model = train(Snapshot(rows[:3_000], rows[3_000:3_600], None, 0.0, 3_000), None, METRIC, "metric", 0, CPU)
    scores = model.score(rows[3_600:])
    assert scores.argmax() == 300
    assert scores[300] > SURPRISING
    assert (scores > SURPRISING).mean() < 0.02
    explanation = model.explain(rows[3_900:3_901])
    assert explanation.share.tolist() == [[1.0]]
    assert explanation.expected[0, 0] == pytest.approx(values[3_900] - 50.0, abs=10.0)


def test_a_metric_needs_no_second_opinion_and_one_that_is_alone_is_not_trusted() -> None:
    combined = PRESETS["metric"].combine(
        {
            "expectation": torch.tensor([0.0, 9.0, 0.0, 1.0]),
            "reconstruction": torch.tensor([1.0, 0.0, 20.0, 4.0]),
        },
        torch.zeros(4, NEWEST_COLUMNS),
    )
    assert combined.tolist() == pytest.approx([0.5, 9.0, SECOND_OPINION_MAX, 2.0])


def test_of_records_the_newest_rows_count_for_more_the_further_they_have_moved() -> None:
    preset = PRESETS["records"]
    surprises = {name: torch.full((4,), 8.0 if name == "newest" else 1.0) for name in preset.weights}
    newest = torch.zeros(4, NEWEST_COLUMNS)
    newest[:, DRIFT] = torch.tensor([0.0, DRIFT_BEGINS, DRIFT_BEGINS + DRIFT_RAMP / 2, 1.0])
    alone = 1.0 + 7.0 * preset.weights["newest"]
    moved = [alone + share * DRIFT_SHARE_MAX * (8.0 - alone) for share in (0.0, 0.0, 0.5, 1.0)]
    assert preset.combine(surprises, newest).tolist() == pytest.approx(moved)
