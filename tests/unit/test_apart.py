"""Which scores of reference rows are those of anomalies, by all that can be told: apart from the rest, one by one."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from streamdet.threshold.apart import beginning_of_those_apart

N = 1_000


def usual(seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).gamma(4.0, 0.25, N)


def anomalous(share: float, seed: int = 0) -> NDArray[np.bool_]:
    return np.random.default_rng(seed + 100).random(N) < share


@pytest.mark.parametrize("share", [0.05, 0.1])
@pytest.mark.parametrize("seed", range(5))
def test_a_hill_of_anomalies_that_come_by_chance_is_told_from_the_usual_ones(share: float, seed: int) -> None:
    scores, odd = usual(seed), anomalous(share, seed)
    scores[odd] = np.random.default_rng(seed).lognormal(2.0, 0.15, odd.sum())
    found = scores >= beginning_of_those_apart(scores)
    assert found[odd].mean() > 0.95
    assert found[~odd].mean() < 0.01


def test_a_few_far_out_are_told_by_the_gap_before_them() -> None:
    scores = usual()[:150]
    scores[[20, 61, 100, 130]] = 30.0
    assert np.flatnonzero(scores >= beginning_of_those_apart(scores)).tolist() == [20, 61, 100, 130]


@pytest.mark.parametrize("seed", range(5))
def test_what_comes_in_a_run_is_a_regime_and_lies_nowhere_apart(seed: int) -> None:
    scores = usual(seed)
    scores[300:370] = np.random.default_rng(seed).lognormal(2.0, 0.15, 70)
    assert beginning_of_those_apart(scores) == math.inf


@pytest.mark.parametrize("n", [0, 1, 5, 50, N])
def test_of_usual_scores_however_few_none_lie_apart(n: int) -> None:
    assert beginning_of_those_apart(usual(3)[:n]) == math.inf
    assert beginning_of_those_apart(np.full(n, 2.0)) == math.inf
