"""Scorers of habits: what each finds strange in a transaction, and what an alert says of it."""

from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from strategies import LANE

from streamdet.config import Gate
from streamdet.decide import explain
from streamdet.decide.explaining import FACTS, MET_BEFORE, USUAL_TIME
from streamdet.events import (
    AMOUNT,
    COUNTS,
    GAP,
    HOUR,
    KEY_COLUMNS,
    KEYS,
    KNOWN,
    NEWEST_COLUMNS,
    SUMS,
    Alert,
    Cause,
    Events,
    FeatureShare,
    Rows,
    Schema,
    Verdicts,
    transaction_columns,
)
from streamdet.features.rows import Featured, LaneFeatures
from streamdet.learn.gate import examine
from streamdet.learn.trainer import Snapshot, train
from streamdet.models.presets import FAR_OUT, HOUR_FAR_OUT, PRESETS, SCORERS
from streamdet.models.scorers import Block, Scorer, Training
from streamdet.models.version import ModelVersion

CPU = torch.device("cpu")
SCHEMA = Schema("ts", "card", ("tip", "amount"), ("site",), "amount", ("terminal",))
HISTORY = len(SCHEMA.columns) + 2 * len(SCHEMA.numeric) + NEWEST_COLUMNS  # where it begins in a row
TERMINAL = KEYS + KEY_COLUMNS  # where its columns begin in the history
NOVELTY = KEYS + 2 * KEY_COLUMNS
HABITS = ("habit", "level", "velocity", "novelty", "hour")


def payments(n: int, seed: int = 0) -> Events:
    """Cards that pay several times a day at a few terminals each, each card its own sums."""
    rng = np.random.default_rng(seed)
    cards, mean = rng.integers(0, 40, n), rng.uniform(10, 90, 40)
    amounts = np.maximum(rng.normal(mean[cards], mean[cards] / 3), 1.0)
    return Events(
        lane=LANE,
        offsets=np.arange(n, dtype=np.int64),
        times_ms=1_750_000_000_000 + np.cumsum(rng.exponential(300_000, n)).astype(np.int64),
        entities=[f"c{card}" for card in cards],
        numeric=np.column_stack([rng.uniform(0, 1, n), amounts]),
        categorical=[["north"] * n],
        values=[b"{}"] * n,
        counterparts=[[f"t{t}" for t in cards * 5 + rng.integers(0, 5, n)]],
    )


EVENTS = payments(6_000)
FEATURED = LaneFeatures(SCHEMA, 1_000).transform(EVENTS)
ROWS = FEATURED.rows
LAST = ROWS[5_000:]


def trained() -> ModelVersion:
    return train(Snapshot(ROWS[2_000:4_000], ROWS[4_000:5_000], None, 0.0, 5_000), None, SCHEMA, None, 0, CPU)


MODEL = trained()


def changed(column: int, factor: float, rows: Rows = ROWS[5_000:5_300]) -> Rows:
    """The rows with one column of the history so many times as large."""
    values = rows.values.copy()
    values[:, HISTORY + column] *= np.float32(factor)
    return Rows(values, rows.imputed)


def block_of(rows: Rows) -> Block:
    history = torch.from_numpy(rows.values[:, HISTORY:])
    z = torch.zeros(len(rows), 8)
    return Block(z, z, z, torch.ones(len(rows)), z[:, :NEWEST_COLUMNS], history, len(rows))


def fitted(name: str) -> Scorer:
    history = torch.from_numpy(ROWS.values[2_000:4_000, HISTORY:])
    z = torch.zeros(len(history), 3)
    return SCORERS[name].fit(Training(z, z, z, torch.Generator(), history), None)


def test_what_is_configured_as_transactions_is_judged_as_such() -> None:
    assert MODEL.preset == "transactions"
    assert set(MODEL.members) == {*HABITS, "reconstruction"}


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("habit", AMOUNT),
        ("level", AMOUNT),
        *(("velocity", first + c) for first in (KEYS, TERMINAL) for c in range(COUNTS, KNOWN)),
        ("novelty", NOVELTY),
        ("hour", HOUR),
    ],
)
def test_each_scorer_rises_with_what_it_looks_at(name: str, column: int) -> None:
    scorer = fitted(name)
    scores = [scorer.score(block_of(changed(column, factor))) for factor in (1.0, 10.0, 1_000.0)]
    assert (scores[0] >= 0).all()
    assert (scores[2] >= scores[1]).all()
    assert (scores[1] >= scores[0]).all()
    assert (scores[2] > scores[0]).all()


@pytest.mark.parametrize("name", HABITS)
def test_parts_tell_of_columns_of_the_history_and_numbers_come_back(name: str) -> None:
    scorer, block = fitted(name), block_of(ROWS[5_000:5_256])
    parts = scorer.parts(block)
    assert parts is not None
    assert parts.shape == (256, 8 + transaction_columns(2))
    assert (parts >= 0).all()
    assert (parts[:, :8] == 0).all()
    assert ((parts.sum(1) > 0) == (scorer.score(block) > 0)).all()
    back = SCORERS[name].from_tensors(scorer.tensors())
    assert torch.equal(back.score(block), scorer.score(block))


def test_without_counterparts_nothing_is_novel() -> None:
    alone = ROWS.values[:100, HISTORY : HISTORY + transaction_columns(1)]
    z = torch.zeros(100, 8)
    block = Block(z, z, z, torch.ones(100), z[:, :NEWEST_COLUMNS], torch.from_numpy(alone), 100)
    assert SCORERS["novelty"].from_tensors({}).score(block).tolist() == [0.0] * 100


@given(st.integers(1, 300), st.integers(0, 299))
def test_a_row_is_scored_and_explained_alike_whatever_else_is_in_its_batch(n: int, at: int) -> None:
    rows, i = ROWS[5_000 : 5_000 + n], at % n
    alone = rows[i : i + 1]
    assert MODEL.score(alone).tobytes() == MODEL.score(rows)[i : i + 1].tobytes()
    assert MODEL.explain(alone).share.tobytes() == MODEL.explain(rows).share[i : i + 1].tobytes()


def test_a_version_comes_back_from_its_tensors() -> None:
    back = ModelVersion.from_tensors(
        MODEL.preset, MODEL.columns, MODEL.numeric, MODEL.tensors(), MODEL.trained_at, CPU
    )
    assert back.id == MODEL.id
    assert back.score(ROWS[5_000:]).tobytes() == MODEL.score(ROWS[5_000:]).tobytes()


@pytest.mark.parametrize(
    "column",
    [AMOUNT, HOUR, KEYS + COUNTS, KEYS + SUMS, TERMINAL + COUNTS, NOVELTY],
    ids=["amount", "hour", *["other"] * 4],
)
def test_what_is_far_out_is_surprising_by_itself(column: int) -> None:
    usual = MODEL.score(ROWS[5_000:])
    assert np.median(MODEL.score(changed(column, 1_000.0))) > np.quantile(usual, 0.999)


def test_all_but_the_habit_counts_only_where_it_is_far_out() -> None:
    preset = PRESETS["transactions"]
    assert preset.beyond == dict.fromkeys(set(preset.weights) - {"habit", "hour"}, FAR_OUT) | {
        "hour": HOUR_FAR_OUT
    }
    surprises = dict.fromkeys(preset.weights, torch.tensor([1.0, FAR_OUT, FAR_OUT + 2.0]))
    others = 2.0 * (3 + preset.weights["reconstruction"])
    assert preset.combine(surprises, torch.zeros(3, NEWEST_COLUMNS)).tolist() == pytest.approx(
        [1.0, FAR_OUT, FAR_OUT + 2.0 + others]
    )


def test_an_hour_that_is_rare_does_not_set_a_row_apart_as_an_amount_does() -> None:
    for column, apart in ((HOUR, 0), (AMOUNT, 20)):
        values = LAST.values.copy()
        values[::50, HISTORY + column] *= np.float32(1e6)
        assert MODEL.apart(MODEL.raw_scores(Rows(values, LAST.imputed)))[::50].sum() == apart


def test_the_gate_plants_amounts_that_a_sound_model_tells() -> None:
    result = examine(MODEL, MODEL, ROWS[4_000:5_000], 6.0, 0.001, Gate())
    assert result.refusal is None
    assert result.detected == result.detected_before > 0.95


# --- What an alert says -----------------------------------------------------------------------------------------------


def alert_on(rows: Rows, which: int) -> Alert:
    """The alert on one of the last thousand events, judged by these rows of theirs."""
    whole = Rows.concatenate([ROWS[:5_000], rows])
    features = LaneFeatures(SCHEMA, 1_000)
    features.transform(EVENTS)
    n = len(whole)
    ones, yes = np.ones(n), np.ones(n, np.bool_)
    by_limit = np.full(n, Cause.LIMIT, np.uint8)
    verdicts = Verdicts(ones, ones, np.full(n, 3, np.uint8), yes, yes, yes, ones, by_limit)
    (alert,) = explain(
        EVENTS,
        Featured(whole, FEATURED.slots, FEATURED.fresh, FEATURED.usual, FEATURED.outside),
        verdicts,
        np.array([5_000 + which]),
        model=MODEL,
        features=features,
        schema=SCHEMA,
        originals=[{}],
        since_ms=np.zeros(1, np.int64),
        detected_at_ms=0,
    )
    return alert


def first_of(rows: Rows, which: int = 7) -> FeatureShare:
    alert = alert_on(rows, which)
    assert sum(feature.share for feature in alert.features) == pytest.approx(1.0, abs=1e-5)
    assert {"tip", "amount", "site"} <= {feature.name for feature in alert.features}
    return alert.features[0]


def history_of(which: int) -> NDArray[np.float32]:
    return LAST.values[which, HISTORY:]


def test_an_unusual_amount_is_told_with_what_the_card_usually_pays() -> None:
    told = first_of(changed(AMOUNT, 100.0, LAST))
    assert told.name == "amount"
    assert told.share > 0.9
    assert told.expected == pytest.approx(float(history_of(7)[KEYS + KNOWN]))


def test_an_amount_that_is_missing_is_not_what_an_alert_names() -> None:
    rows = changed(KEYS + COUNTS, 30.0, LAST)
    imputed = rows.imputed.copy()
    imputed[:, SCHEMA.columns.index("amount")] = True
    alert = alert_on(Rows(rows.values, imputed), 7)
    (amount,) = [feature for feature in alert.features if feature.name == "amount"]
    assert amount.share == 0.0
    assert alert.features[0].name == "count_1h of card"
    assert sum(feature.share for feature in alert.features) == pytest.approx(1.0, abs=1e-5)


def test_what_tells_nothing_is_not_in_an_alert() -> None:
    quiet = ROWS[5_000:]
    names = {feature.name for feature in alert_on(changed(AMOUNT, 3.0, quiet), 7).features}
    assert names == {"tip", "amount", "site"}


@pytest.mark.parametrize(
    ("column", "name"),
    [
        (KEYS + COUNTS, "count_1h of card"),
        (KEYS + COUNTS + 2, "count_7d of card"),
        (KEYS + SUMS + 1, "sum_24h of card"),
        (TERMINAL + COUNTS, "count_1h of terminal"),
    ],
)
def test_a_burst_is_told_as_a_count_or_a_sum_and_what_is_usual(column: int, name: str) -> None:
    told = first_of(changed(column, 10_000.0, LAST))
    assert told.name == name
    assert told.actual == pytest.approx(10_000.0 * float(history_of(7)[column]), rel=1e-5)
    assert isinstance(told.expected, float)
    assert 0.0 < told.expected < 10_000.0


def test_an_unusual_hour_is_told_as_the_time_of_day() -> None:
    told = first_of(changed(HOUR, 1_000.0, LAST))
    when = datetime.fromtimestamp(EVENTS.times_ms[5_007] / 1_000, UTC)
    assert (told.name, told.actual, told.expected) == ("time_of_day of card", f"{when:%H:%M}", USUAL_TIME)


def test_a_counterpart_that_is_new_is_named() -> None:
    told = first_of(changed(NOVELTY, 10_000.0, LAST))
    assert (told.name, told.actual, told.expected) == ("terminal", EVENTS.counterparts[0][5_007], MET_BEFORE)


def test_what_is_usual_is_told_in_the_units_of_the_columns() -> None:
    usual = MODEL.explain(LAST).usual
    actual = np.median(LAST.values[:, HISTORY:], axis=0)
    for first in (KEYS, TERMINAL):
        for column in range(first + GAP, first + SUMS):
            assert np.median(usual[:, column]) == pytest.approx(actual[column], rel=0.5)
    assert np.isnan(usual[:, HOUR]).all()
    assert set(FACTS) == {*range(GAP, KNOWN)}
