"""Valleys in the density of scores: found where there is one, and told apart by how the far side arrives."""

import numpy as np
import pytest
from numpy.typing import NDArray

from streamdet.threshold.histogram import BINS, bin_of
from streamdet.threshold.valley import APART, COARSE, COARSE_BINS, arrives_independently, find_valley

Scores = NDArray[np.float64]
RATE = 0.005
BULKS = {
    "exponential": lambda rng, n: rng.exponential(1.0, n),
    "lognormal": lambda rng, n: rng.lognormal(0.0, 0.7, n),
    "gamma": lambda rng, n: rng.gamma(3.0, 1.0, n),
    "normal": lambda rng, n: np.abs(rng.normal(size=n)) + 0.01,
    "pareto": lambda rng, n: rng.pareto(3.0, n) + 1.0,
}


def histogram(scores: Scores, bins: int = BINS) -> NDArray[np.float32]:
    counts = np.zeros(bins, np.float32)
    for score in scores:
        counts[bin_of(float(score)) // (BINS // bins)] += 1
    return counts


def pairs(scores: Scores) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of each score with the one before, and with the largest of those before."""
    padded = np.concatenate([np.zeros(APART), scores])
    before = np.lib.stride_tricks.sliding_window_view(padded, APART)[: len(scores)]
    return tuple(  # type: ignore[return-value]
        histogram(np.minimum(scores, other), COARSE_BINS) for other in (before[:, -1], before.max(axis=1))
    )


@pytest.mark.parametrize("kind", BULKS)
def test_one_bulk_has_no_valley(kind: str) -> None:
    for seed in range(10):
        scores = BULKS[kind](np.random.default_rng(seed), 4000)
        assert find_valley(histogram(scores), 1.0, RATE) == -1


@pytest.mark.parametrize("weight", [1.0, 250.0])
def test_between_a_bulk_and_what_lies_apart_there_is_one_whatever_the_weight_of_a_score(
    weight: float,
) -> None:
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.gamma(4.0, 0.5, 3700), 40.0 * rng.lognormal(0, 0.1, 300)])
    found = find_valley((histogram(scores) * weight).astype(np.float32), weight, RATE)
    assert bin_of(5.0) < found < bin_of(35.0)


def test_a_few_scores_far_out_or_a_far_side_as_large_as_a_state_are_none() -> None:
    rng = np.random.default_rng(1)
    bulk = rng.gamma(4.0, 0.5, 3000)
    for far in (3, 1000):
        scores = np.concatenate([bulk, 40.0 * rng.lognormal(0, 0.1, far)])
        assert find_valley(histogram(scores), 1.0, RATE) == -1


def test_a_few_scores_beyond_a_wide_gap_are_enough() -> None:
    rng = np.random.default_rng(1)
    bulk = rng.gamma(4.0, 0.5, 3000)
    found = find_valley(histogram(np.concatenate([bulk, [80.0, 85.0, 60.0, 95.0]])), 1.0, 0.001)
    assert bin_of(bulk.max()) < found < bin_of(60.0)
    assert find_valley(histogram(np.concatenate([bulk, 1.2 * bulk.max() * np.ones(4)])), 1.0, 0.001) == -1


@pytest.mark.parametrize(("length", "independent"), [(1, True), (2, False), (5, False), (50, False)])
def test_what_arrives_in_runs_of_two_or_more_is_not_independent(length: int, independent: bool) -> None:
    rng = np.random.default_rng(2)
    scores = rng.gamma(4.0, 0.5, 4000)
    starts = rng.choice(4000 - length, 200 // length, replace=False)
    for start in starts:
        scores[start : start + length] = 50.0
    counts = histogram(scores)
    valley = find_valley(counts, 1.0, RATE)
    assert valley > 0
    assert arrives_independently(counts, *pairs(scores), 1.0, valley) == independent


def test_what_repeats_at_a_distance_below_eight_is_not_independent() -> None:
    rng = np.random.default_rng(3)
    scores = rng.gamma(4.0, 0.5, 4000)
    for start in rng.choice(3990, 60, replace=False):
        scores[[start, start + 3, start + 6]] = 50.0
    counts = histogram(scores)
    assert not arrives_independently(counts, *pairs(scores), 1.0, find_valley(counts, 1.0, RATE))


def test_coarse_bins_are_whole_numbers_of_fine_ones() -> None:
    assert COARSE * COARSE_BINS == BINS
