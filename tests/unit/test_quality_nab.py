"""The score of the Numenta Anomaly Benchmark, against values worked out by hand from its definition."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from quality_nab import PROFILES, NabCorpus, ScoredFile, clock, credits_of_rows, probation_rows

ROWS = 100  # of which 15 are on probation
WINDOW = (40, 49)


def firing(*rows: int, windows: Sequence[tuple[int, int]] = (WINDOW,), n: int = ROWS) -> ScoredFile:
    """A file in which a detector fires at these rows."""
    scores = np.zeros(n)
    scores[list(rows)] = 1.0
    return ScoredFile(scores, windows)


def worth(y: float) -> float:
    return 2 / (1 + math.exp(5 * y)) - 1


def test_probation_is_15_percent_and_750_rows_at_most() -> None:
    assert probation_rows(100) == 15
    assert probation_rows(1243) == 186
    assert probation_rows(22_695) == 750


def test_a_detection_is_worth_less_the_later_it_comes() -> None:
    gains, inside = credits_of_rows(20, [(4, 7)], PROFILES["standard"])
    assert inside.tolist() == [-1] * 4 + [0] * 4 + [-1] * 12
    assert gains[:4].tolist() == [-0.11] * 4  # no window came before
    assert gains[4:8] == pytest.approx(
        [1.0, worth(-0.75) / worth(-1), worth(-0.5) / worth(-1), 0.56212], abs=1e-5
    )
    assert gains[8] == pytest.approx(0.11 * worth(1 / 3))
    assert gains[8] == pytest.approx(-0.07505, abs=1e-5)
    assert gains[16] == pytest.approx(0.11 * worth(3.0))
    assert gains[17:].tolist() == [-0.11] * 3  # more than three widths behind


def test_grace_behind_a_window_begins_anew_with_the_next_one() -> None:
    gains, inside = credits_of_rows(60, [(10, 19), (30, 34)], PROFILES["standard"])
    assert inside[30:35].tolist() == [1] * 5
    assert gains[29] == pytest.approx(0.11 * worth(10 / 9))
    assert gains[35] == pytest.approx(0.11 * worth(1 / 4))


@pytest.mark.parametrize("profile", PROFILES)
def test_silence_is_0_and_the_first_row_of_each_window_is_100(profile: str) -> None:
    corpus = NabCorpus([firing(40), firing(20, 60, windows=[(20, 29), (60, 69)])], profile)
    assert corpus.at(2.0).score == 0
    found = corpus.at(1.0)
    assert found.score == pytest.approx(100)
    assert (found.caught, found.windows, found.false_rows) == (3, 3, 0)


@pytest.mark.parametrize(
    ("profile", "score"),
    [
        ("standard", 100 * (1 - 0.11 + 1) / 2),
        ("low_fp", 100 * (1 - 0.22 + 1) / 2),
        ("low_fn", 100 * (1 - 0.11 + 2) / 3),
    ],
)
def test_a_false_detection_costs_by_profile(profile: str, score: float) -> None:
    assert NabCorpus([firing(20, 40)], profile).at(1.0).score == pytest.approx(score)


def test_a_detector_that_only_fires_wrongly_is_below_silence() -> None:
    found = NabCorpus([firing(20)]).at(1.0)
    assert found.score == pytest.approx(-5.5)
    assert (found.caught, found.false_rows) == (0, 1)


def test_only_the_earliest_detection_in_a_window_counts() -> None:
    assert NabCorpus([firing(*range(40, 50))]).at(1.0).score == pytest.approx(100)
    late = NabCorpus([firing(47, 49)]).at(1.0).score
    assert late == pytest.approx(100 * (worth(-0.3) / worth(-1) + 1) / 2)


def test_rows_on_probation_do_not_count() -> None:
    assert NabCorpus([firing(0, 14, 40)]).at(1.0).score == pytest.approx(100)
    assert NabCorpus([firing(15, 40)]).at(1.0).score == pytest.approx(94.5)


def test_a_file_without_windows_counts_for_its_false_rows() -> None:
    files = [firing(40), firing(50, 51, windows=())]
    assert NabCorpus(files).at(1.0).score == pytest.approx(100 * (1 - 0.22 + 1) / 2)


def test_a_score_that_is_not_finite_never_fires() -> None:
    scores = np.zeros(ROWS)
    scores[40], scores[60] = 1.0, np.nan
    assert NabCorpus([ScoredFile(scores, [WINDOW])]).at(1.0).score == pytest.approx(100)


def test_the_best_threshold_is_one_for_all_files() -> None:
    wild = np.zeros(ROWS)
    wild[16:36] = 0.5  # twenty false rows cost more than the window of the other file brings
    tame = np.zeros(ROWS)
    tame[44] = 0.5
    tame[70] = 0.9
    sure = np.zeros(ROWS)
    sure[40] = 0.9
    found = NabCorpus([ScoredFile(s, [WINDOW]) for s in (wild, tame, sure)]).best()
    assert found.threshold == 0.9
    assert (found.caught, found.false_rows) == (1, 1)


def test_silence_is_best_where_every_threshold_costs_more_than_it_brings() -> None:
    found = NabCorpus([firing(*range(15, 100))]).best()
    assert found.threshold == math.inf
    assert found.score == 0


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("seed", range(3))
def test_no_threshold_is_better_than_the_best(profile: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    files = [
        ScoredFile(rng.random(ROWS).round(1), windows)  # rounded, so that many are tied
        for windows in ([WINDOW], [(20, 25), (30, 45)], [])
    ]
    for file in files:
        for first, _ in file.windows:
            file.scores[first + 1] += 1.0
    corpus = NabCorpus(files, profile)
    thresholds = np.unique(np.concatenate([file.scores for file in files]))
    assert corpus.best().score == pytest.approx(max(0.0, *(corpus.at(t).score for t in thresholds)))


def test_the_clock_goes_off_at_every_250th_row() -> None:
    assert np.flatnonzero(clock(1000)).tolist() == [249, 499, 749, 999]
