"""A rise of the scores that stays is confirmed, once, however it is cut; what goes back, or is noise, is not."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from river.drift import PageHinkley as RiversPageHinkley
from strategies import cuts, score_streams

from streamdet.events import Floats
from streamdet.learn.drift import BACK, BLOCK, BLOCKS_MIN, FAR, Drift, PageHinkley

LASTS = BLOCKS_MIN * BLOCK
USUAL = 100 * BLOCK
# A rise shows in the test after so many scores, at most.
SHOWS_AFTER = 4 * BLOCK


def surprises(n: int, level: float = 0.0, seed: int = 0) -> Floats:
    """Scores as a calibrated model gives them, all of them so many nats higher."""
    return np.random.default_rng(seed).exponential(1.0, n) + level


def confirmed(raw: Floats, drift: Drift | None = None) -> list[int]:
    """After how many scores, in blocks, a rise is confirmed."""
    drift = Drift(LASTS) if drift is None else drift
    return [i + BLOCK for i in range(0, len(raw), BLOCK) if drift.add(raw[i : i + BLOCK])]


@given(st.data(), st.integers(1, 40), st.floats(0.0, 1.0), st.floats(0.5, 10.0))
def test_the_test_finds_what_that_of_river_finds(
    data: st.DataObject, count_min: int, tolerance: float, enough: float
) -> None:
    numbers = data.draw(st.lists(st.floats(-20.0, 20.0), max_size=120))
    theirs: Any = RiversPageHinkley(count_min, tolerance, enough)
    ours = PageHinkley(tolerance, enough, count_min)
    for number in numbers:
        theirs.update(number)
        assert (ours.add(number) is not None) == theirs.drift_detected


def test_the_test_tells_the_level_before_the_change() -> None:
    test = PageHinkley(0.1, 5.0, 8)
    found = [test.add(number) for number in [2.0] * 50 + [4.0] * 5]
    assert [before for before in found if before is not None] == [pytest.approx(2.0, abs=0.1)]


@st.composite
def rising_and_falling(draw: st.DrawFn) -> Floats:
    levels = draw(st.lists(st.sampled_from([0.0, 6.0, 20.0]), max_size=6))
    lengths = [draw(st.integers(1, 2 * LASTS)) for _ in levels]
    scores = np.resize(draw(score_streams(n_max=40)), sum(lengths))
    return np.asarray(scores + np.repeat(levels, lengths))


@given(rising_and_falling(), st.integers(1, 200))
def test_no_rise_is_confirmed_sooner_than_is_said(raw: Floats, step: int) -> None:
    drift, soonest = Drift(LASTS), 0
    for start in range(0, len(raw), step):
        part = raw[start : start + step]
        soonest = max(soonest, start + drift.soonest)
        if drift.add(part):
            assert start + len(part) >= soonest
            soonest = 0


@given(st.data(), rising_and_falling())
def test_neither_batches_nor_a_restart_change_what_is_found(data: st.DataObject, raw: Floats) -> None:
    whole, cut = Drift(LASTS), Drift(LASTS)
    found = 0
    for start, stop in data.draw(cuts(len(raw))):
        found += cut.add(raw[start:stop])
        kept = {name: np.copy(array) for name, array in cut.state().items()}
        cut = Drift(LASTS)
        cut.restore(kept)
    assert bool(found) == bool(confirmed(raw, whole))
    for name, array in whole.state().items():
        assert np.array_equal(array, cut.state()[name], equal_nan=True)


@pytest.mark.parametrize("rise", [1.5 * FAR, 40.0])
@pytest.mark.parametrize("window", [LASTS, 4 * LASTS])
def test_a_rise_that_stays_is_confirmed_once_when_it_has_stayed_a_window(rise: float, window: int) -> None:
    for seed in range(5):
        raw = np.concatenate([surprises(USUAL, 0.0, seed), surprises(3 * window, rise, seed + 100)])
        found = confirmed(raw, Drift(window))
        assert len(found) == 1
        assert USUAL + window <= found[0] <= USUAL + window + SHOWS_AFTER


def test_a_small_rise_is_left_to_the_fine_tunes() -> None:
    assert confirmed(np.concatenate([surprises(USUAL), surprises(10 * LASTS, FAR / 2)])) == []


@pytest.mark.parametrize("lasts", [1, BLOCK // 2, 4 * BLOCK, LASTS - BLOCK])
def test_what_goes_back_is_no_drift(lasts: int) -> None:
    for seed in range(10):
        raw = surprises(USUAL + 4 * LASTS, 0.0, seed)
        raw[USUAL : USUAL + lasts] += 30.0
        assert confirmed(raw) == []


def test_what_went_back_for_a_moment_has_not_gone_back() -> None:
    raw = np.concatenate([surprises(USUAL), surprises(4 * LASTS, 8.0)])
    raw[USUAL + 4 * BLOCK : USUAL + (3 + BACK) * BLOCK] -= 8.0
    assert len(confirmed(raw)) == 1


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3])
def test_anomalies_among_usual_rows_are_no_drift_however_gross(share: float) -> None:
    raw = surprises(USUAL + 10 * LASTS)
    raw[USUAL:] += 1e6 * (np.random.default_rng(1).random(10 * LASTS) < share)
    assert confirmed(raw) == []


def test_scores_without_a_change_are_no_drift() -> None:
    for seed in range(5):
        assert confirmed(surprises(100_000, 0.0, seed)) == []


def test_what_goes_on_rising_is_confirmed_once_it_stands_still() -> None:
    rising = np.geomspace(FAR, 16.0 * FAR, 4 * LASTS)
    raw = np.concatenate([surprises(USUAL), surprises(4 * LASTS) + rising, surprises(4 * LASTS, rising[-1])])
    (found,) = confirmed(raw)
    assert found > USUAL + 4 * LASTS


def test_a_lower_level_is_the_usual_one_from_then_on() -> None:
    raw = np.concatenate([surprises(USUAL, 8.0), surprises(USUAL), surprises(2 * LASTS, 8.0)])
    (found,) = confirmed(raw)
    assert found > 2 * USUAL


def test_scores_of_no_model_count_as_if_they_were_not_there() -> None:
    raw = np.concatenate([surprises(USUAL), surprises(2 * LASTS, 8.0)])
    gaps = np.full(2 * len(raw), np.nan)
    gaps[::2] = raw
    assert Drift(LASTS).add(gaps)
    assert not Drift(LASTS).add(gaps[: 2 * USUAL])
