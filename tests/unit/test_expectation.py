"""A metric's own history: what surprises it, what no longer does, and that neither batches nor neighbours matter."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamdet.events import FORECAST, NOVELTY, RESIDUAL, SHIFT, STILLNESS, Bools, Floats, Ints
from streamdet.features.expectation import Expectation

MINUTES_5 = 300_000
PER_DAY = 288
SURPRISING = 6.9  # one row in a thousand


def times_of(n: int) -> Ints:
    return np.arange(n, dtype=np.int64) * MINUTES_5


def daily(days: int, seed: int = 0) -> Floats:
    """A load that goes up and down with the day, and noise."""
    n = days * PER_DAY
    hours = 2 * np.pi * np.arange(n) / PER_DAY
    return 100 + 30 * np.sin(hours) + np.random.default_rng(seed).normal(0, 2, n)


def columns_of(
    values: Floats,
    times_ms: Ints | None = None,
    slots: Ints | None = None,
    fresh: Bools | None = None,
    history: Expectation | None = None,
) -> NDArray[np.float32]:
    n = len(values)
    return (history or Expectation(entities=False)).surprise(
        values,
        times_of(n) if times_ms is None else times_ms,
        np.zeros(n, np.int64) if slots is None else slots,
        np.zeros(n, np.bool_) if fresh is None else fresh,
    )


def surprise_of(columns: NDArray[np.float32]) -> NDArray[np.float32]:
    largest: NDArray[np.float32] = columns[:, FORECAST:].max(axis=1)
    return largest


def test_noise_is_no_more_often_a_great_surprise_than_it_says() -> None:
    noise = np.random.default_rng(1).normal(10, 3, 40_000)
    surprise = surprise_of(columns_of(noise))
    assert (surprise[2_000:] >= SURPRISING).mean() < 0.001
    assert (surprise[2_000:] >= 4.6).mean() < 0.03  # one in a hundred for each of three views


def test_a_spike_in_a_calm_metric_is_a_surprise_and_one_that_comes_every_day_is_none() -> None:
    calm = daily(20)
    calm[15 * PER_DAY + 100] += 60
    surprise = surprise_of(columns_of(calm))
    assert surprise[15 * PER_DAY + 100] > SURPRISING
    assert surprise.argmax() == 15 * PER_DAY + 100

    spiky = daily(20)
    spiky[100::PER_DAY] += 60
    usual = surprise_of(columns_of(spiky))
    assert usual[18 * PER_DAY + 100] < SURPRISING
    assert usual[18 * PER_DAY + 100] < surprise[15 * PER_DAY + 100] - 3.0


def test_a_usual_value_at_an_unusual_time_of_day_is_a_surprise() -> None:
    values = daily(20)
    at = 15 * PER_DAY + PER_DAY * 3 // 4  # the lowest load of the day
    values[at : at + 6] = 130.0
    columns = columns_of(values)
    assert columns[at : at + 6, FORECAST].max() > SURPRISING
    assert columns[at, RESIDUAL] == pytest.approx(60, abs=15)


def test_a_small_shift_of_the_level_is_seen_by_the_means_though_no_single_row_stands_out() -> None:
    values = np.random.default_rng(2).normal(50, 1, 6_000)
    values[5_000:] += 3.0
    columns = columns_of(values)
    soon = slice(5_000, 5_030)
    assert columns[soon, SHIFT].max() > SURPRISING
    assert columns[soon, SHIFT].max() > columns[soon, FORECAST].max()


def test_a_pattern_that_was_never_there_is_novel() -> None:
    values = np.tile([0.0, 1.0, 0.0, -1.0], 1_500) + np.random.default_rng(3).normal(0, 0.05, 6_000)
    values[5_000:5_012] = np.tile([1.0, 1.0, -1.0], 4)
    columns = columns_of(values)
    assert columns[5_000:5_020, NOVELTY].max() > SURPRISING


def test_a_metric_that_never_moves_surprises_nobody_until_it_does() -> None:
    values = np.full(3_000, 7.0)
    columns = columns_of(values)
    assert (surprise_of(columns) < SURPRISING).all()
    assert (columns[:, RESIDUAL] == 0).all()
    values[2_000:] = 7.001
    surprise = surprise_of(columns_of(values))
    assert surprise[2_000] > SURPRISING
    assert (surprise[2_001:] < SURPRISING).all()


def test_a_sensor_that_is_stuck_is_a_surprise_and_one_that_stands_still_every_night_is_none() -> None:
    values = daily(20)
    values[15 * PER_DAY : 15 * PER_DAY + 30] = values[15 * PER_DAY]
    columns = columns_of(values)
    assert columns[15 * PER_DAY : 15 * PER_DAY + 30, STILLNESS].max() > SURPRISING

    resting = daily(20).reshape(20, PER_DAY)
    resting[:, : PER_DAY // 4] = 80.0
    columns = columns_of(resting.ravel())
    assert columns[5 * PER_DAY :, STILLNESS].max() < SURPRISING


def test_units_do_not_matter() -> None:
    values = daily(10)
    mine, others = columns_of(values), columns_of(37.0 * values + 1e4)
    assert others[:, FORECAST:] == pytest.approx(mine[:, FORECAST:], abs=2e-3)
    assert others[:, RESIDUAL] == pytest.approx(37.0 * mine[:, RESIDUAL], rel=1e-3, abs=1e-2)


def test_a_missing_value_leaves_no_trace() -> None:
    values = daily(5)
    holed = values.copy()
    holed[::7] = np.nan
    there = ~np.isnan(holed)
    columns = columns_of(holed)
    assert (columns[~there, FORECAST:] < 0).all()
    assert (columns[~there, RESIDUAL] == 0).all()
    alone = columns_of(values[there], times_of(len(values))[there])
    assert (columns[there] == alone).all()


@given(cuts=st.lists(st.integers(0, 700), max_size=5), back=st.integers(0, 5))
def test_batches_and_a_restart_do_not_matter(cuts: list[int], back: int) -> None:
    values = daily(3)[:700]
    whole = columns_of(values)
    edges = [0, *sorted(cuts), len(values)]
    history, parts = Expectation(entities=False), []
    for number, (first, end) in enumerate(itertools.pairwise(edges)):
        if number == back:
            before, history = history, Expectation(entities=False)
            history.restore({name: array.copy() for name, array in before.state(1).items()})
        parts.append(columns_of(values[first:end], times_of(len(values))[first:end], history=history))
    assert (np.concatenate(parts) == whole).all()


def test_entities_do_not_see_each_other_and_a_new_owner_of_a_slot_starts_anew() -> None:
    one, other = daily(4, seed=1), daily(4, seed=2)
    n = len(one)
    values, slots = np.empty(2 * n), np.tile([3, 1], n).astype(np.int64)
    values[::2], values[1::2] = one, other
    times = np.repeat(times_of(n), 2)
    history = Expectation(entities=True)
    columns = columns_of(values, times, slots, np.zeros(2 * n, np.bool_), history)
    assert (columns[::2] == columns_of(one, history=Expectation(entities=True))).all()
    assert (columns[1::2] == columns_of(other, history=Expectation(entities=True))).all()

    fresh = np.zeros(n, np.bool_)
    fresh[0] = True
    again = columns_of(other, slots=np.full(n, 3, np.int64), fresh=fresh, history=history)
    assert (again == columns[1::2]).all()


@pytest.mark.parametrize("missing", [-9_999.0, 1e38])
def test_one_number_that_stands_for_a_missing_reading_hides_nothing_that_follows(missing: float) -> None:
    values = daily(20)
    values[8 * PER_DAY] = missing
    values[15 * PER_DAY + 100] += 100
    surprise = surprise_of(columns_of(values))
    assert np.isfinite(surprise).all()
    assert surprise[8 * PER_DAY] > SURPRISING
    assert surprise[15 * PER_DAY + 100] > SURPRISING


@pytest.mark.parametrize("at", [0, 3, 18, 30, 70, 500])
def test_the_largest_number_there_is_leaves_every_later_surprise_a_number(at: int) -> None:
    values = daily(5)
    values[at] = 1e38
    values[at + 40] = -1e38
    assert np.isfinite(columns_of(values)).all()


def test_another_unit_is_a_surprise_once_and_then_usual() -> None:
    values = daily(20)
    values[8 * PER_DAY :] *= 1_000
    surprise = surprise_of(columns_of(values))
    assert surprise[8 * PER_DAY] > SURPRISING
    assert (surprise[12 * PER_DAY :] > SURPRISING).mean() < 0.002
