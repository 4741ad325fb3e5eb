"""Scores to surprise: monotone, near -ln of the share of higher scores, and finite whatever it was learnt from."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamdet.models.calibration import TAIL_PROBABILITY, Calibration

_references = st.one_of(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=60),
    st.lists(st.sampled_from([0.0, 1.0, 1e-9, 3e5]), min_size=1, max_size=60),
    st.tuples(st.integers(1, 500), st.integers(0, 99)).map(
        lambda p: np.random.default_rng(p[1]).lognormal(0, 2, p[0]).tolist()
    ),
)


def surprise(calibration: Calibration, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    out: NDArray[np.float64] = (
        calibration.surprise(torch.from_numpy(scores.astype(np.float32))).double().numpy()
    )
    return out


@pytest.mark.parametrize("pareto", [True, False])
@given(reference=_references, scores=st.lists(st.floats(0, 1e30), min_size=2, max_size=50))
def test_a_higher_score_is_never_less_surprising_and_all_are_finite(
    pareto: bool, reference: list[float], scores: list[float]
) -> None:
    calibration = Calibration.fit(np.array(reference), pareto=pareto)
    at_knots = np.repeat(calibration.knots.double().numpy(), 3) * np.tile([0.999999, 1.0, 1.000001], 128)
    found = surprise(calibration, np.sort(np.concatenate([scores, reference, at_knots])))
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    assert (np.diff(found) >= -1e-5).all()


def reference_of(rng: np.random.Generator, n: int, *, pareto: bool) -> NDArray[np.float64]:
    """Scores such as normal rows have: mean deviations, or surprises."""
    return rng.pareto(6.0, n) + 1.0 if pareto else rng.exponential(0.9, n)


@pytest.mark.parametrize("pareto", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_surprise_of_a_reference_is_the_logarithm_of_its_rank(pareto: bool, seed: int) -> None:
    reference = np.sort(reference_of(np.random.default_rng(seed), 2000, pareto=pareto))
    found = surprise(Calibration.fit(reference, pareto=pareto), reference)
    expected = -np.log(1.0 - np.arange(2000) / 2000)
    bulk = np.arange(2000) < 1900
    assert found[bulk] == pytest.approx(expected[bulk], abs=0.05)
    assert found[1900:1990] == pytest.approx(expected[1900:1990], rel=0.2)


@pytest.mark.parametrize("pareto", [True, False])
def test_p_values_of_new_scores_are_valid_and_not_wasteful(pareto: bool) -> None:
    levels = np.array([0.5, 0.2, 0.1, 0.05, 0.02, 0.01])
    shares = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        calibration = Calibration.fit(reference_of(rng, 1000, pareto=pareto), pareto=pareto)
        p = np.exp(-surprise(calibration, reference_of(rng, 3000, pareto=pareto)))
        shares.append([(p <= level).mean() for level in levels])
    realised = np.mean(shares, axis=0)
    assert (realised <= levels * 1.25 + 0.001).all()
    assert (realised >= levels * 0.75).all()


@pytest.mark.parametrize(
    "reference", [[0.0], [5.0], [1.0, 1.0, 1.0], [0.0] * 99 + [7.0], [1e-12, 1e12], [1e30] * 5]
)
@pytest.mark.parametrize("pareto", [True, False])
def test_constants_and_few_values_give_a_finite_scale_on_which_they_are_no_surprise(
    reference: list[float], pareto: bool
) -> None:
    calibration = Calibration.fit(np.array(reference), pareto=pareto)
    low, high = surprise(calibration, np.array([min(reference), 1e37]))
    assert low <= -math.log(TAIL_PROBABILITY) + 1e-5
    assert math.isfinite(high)
    assert high > 3.0


def test_tied_scores_share_the_least_surprise_that_fits_them() -> None:
    calibration = Calibration.fit(np.repeat([1.0, 2.0], [800, 200]), pareto=True)
    one, between, two = surprise(calibration, np.array([1.0, 1.5, 2.0]))
    assert one == pytest.approx(0.0, abs=0.02)
    assert two == pytest.approx(-math.log(0.2), abs=0.05)
    assert one <= between <= two


def test_a_heavy_tail_is_less_surprising_than_a_light_one() -> None:
    rng = np.random.default_rng(0)
    heavy = Calibration.fit(rng.pareto(1, 2000) + 1, pareto=True)
    light = Calibration.fit(rng.pareto(8, 2000) + 1, pareto=True)
    assert surprise(heavy, np.array([100.0]))[0] == pytest.approx(math.log(100), rel=0.2)
    assert surprise(light, np.array([100.0]))[0] > 20.0


def test_a_map_drawn_wholly_towards_an_earlier_one_says_of_the_same_rows_what_that_said() -> None:
    rng = np.random.default_rng(0)
    scores, before = np.sort(rng.exponential(3.0, 2000)), np.sort(rng.exponential(1.4, 2000))
    fresh = Calibration.fit(scores, pareto=False)
    kept = surprise(fresh.drawn_towards(before, surprise(fresh, scores), renewal=0.0), scores)
    half = surprise(fresh.drawn_towards(before, surprise(fresh, scores), renewal=0.5), scores)
    for quantile in (0.5, 0.9, 0.95, 0.98, 0.99):
        own, earlier = np.quantile(surprise(fresh, scores), quantile), np.quantile(before, quantile)
        assert np.quantile(kept, quantile) == pytest.approx(earlier, rel=0.1)
        assert np.quantile(half, quantile) == pytest.approx((own + earlier) / 2, rel=0.1)


def test_a_map_drawn_towards_one_that_said_the_same_stays_as_it_is() -> None:
    scores = np.random.default_rng(0).exponential(3.0, 2000)
    fresh = Calibration.fit(scores, pareto=False)
    same = fresh.drawn_towards(surprise(fresh, scores), surprise(fresh, scores), renewal=0.2)
    some = np.linspace(0.0, 60.0, 500)
    assert surprise(same, some) == pytest.approx(surprise(fresh, some), abs=1e-3)


@given(
    reference=_references, before=_references, renewal=st.floats(0, 1), scores=st.lists(st.floats(0, 1e30))
)
def test_a_map_drawn_towards_any_other_is_finite_and_rises(
    reference: list[float], before: list[float], renewal: float, scores: list[float]
) -> None:
    own = Calibration.fit(np.array(reference), pareto=False)
    drawn = own.drawn_towards(np.array(before), surprise(own, np.array(reference)), renewal)
    found = surprise(drawn, np.sort(np.concatenate([scores, reference])))
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    assert (np.diff(found) >= -1e-5).all()


def test_a_scale_that_is_handed_on_six_hundred_times_is_still_one_of_nats() -> None:
    rng = np.random.default_rng(0)
    handed_on, width = Calibration.none(), 1.0
    told = []
    for _ in range(600):
        scores, before = rng.exponential(1.0, 2000), width
        if rng.random() < 0.1:
            scores[-400:] += rng.uniform(2.0, 8.0)  # a burst among the references
        width = 1.0 + 0.1 * rng.normal()  # each model has a scale of its own
        own = Calibration.fit(scores * width, pareto=False)
        said = surprise(handed_on, scores * before)
        handed_on = own.drawn_towards(said, surprise(own, scores * width), renewal=0.1)
        told.append(surprise(handed_on, np.array([1.0, 3.0, 10.0]) * width))
    assert np.median(told, axis=0) == pytest.approx([1.0, 3.0, 10.0], rel=0.5)
    assert (np.max(told, axis=0) < [1.5, 5.0, 40.0]).all()
