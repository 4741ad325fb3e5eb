"""The benchmark's metrics, against values worked out by hand."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from quality_metrics import (
    Counts,
    average_precision,
    best_f1,
    counts,
    events,
    mean,
    precision_a_day,
    roc_auc,
    runs,
    widened,
    widened_ap,
)


def marks(text: str) -> NDArray[np.bool_]:
    """`..x` is two rows that are not marked and one that is."""
    return np.array([c == "x" for c in text])


def test_rankings_of_four_rows() -> None:
    labels, scores = marks(".x.x"), np.array([0.1, 0.35, 0.4, 0.8])
    assert roc_auc(labels, scores) == pytest.approx(3 / 4)  # one of four pairs is the wrong way round
    assert average_precision(labels, scores) == pytest.approx((1 + 2 / 3) / 2)
    assert best_f1(labels, scores) == pytest.approx(
        0.8
    )  # three rows above the threshold, two of them anomalous


def test_equal_scores_rank_as_a_coin_would() -> None:
    labels, scores = marks("..x."), np.zeros(4)
    assert roc_auc(labels, scores) == 0.5
    assert average_precision(labels, scores) == 0.25


@pytest.mark.parametrize("labels", [marks("..."), marks("xxx")])
def test_there_is_nothing_to_rank_without_both_kinds(labels: NDArray[np.bool_]) -> None:
    assert math.isnan(roc_auc(labels, np.arange(3.0)))


def test_no_anomaly_leaves_precision_undefined() -> None:
    assert math.isnan(average_precision(marks("..."), np.arange(3.0)))
    assert math.isnan(best_f1(marks("..."), np.arange(3.0)))
    assert math.isnan(widened_ap(marks("..."), np.arange(3.0)))


def test_decisions_are_counted_row_by_row() -> None:
    rows = counts(marks("..xxx."), marks(".xx..."))
    assert rows == Counts(hits=1, false=1, missed=2, passed=2)
    assert rows.precision == 0.5
    assert rows.recall == pytest.approx(1 / 3)
    assert rows.f1 == pytest.approx(0.4)
    assert rows.far == pytest.approx(1 / 3)
    assert rows.mar == pytest.approx(2 / 3)


def test_one_hit_does_not_turn_the_whole_event_into_hits() -> None:
    labels = marks("." * 90 + "x" * 10)
    assert counts(labels, marks("." * 95 + "x" + "." * 4)).recall == 0.1


def test_counts_of_streams_add_up() -> None:
    assert Counts(1, 2, 3, 4) + Counts(10, 20, 30, 40) == Counts(11, 22, 33, 44)


def test_a_silent_detector_has_no_precision_and_an_f1_of_nothing() -> None:
    rows = counts(marks(".x"), marks(".."))
    assert math.isnan(rows.precision)
    assert (rows.recall, rows.f1, rows.far, rows.mar) == (0, 0, 0, 1)


def test_runs_begin_and_end_where_marks_do() -> None:
    assert runs(marks("xx..x.xxx")).tolist() == [[0, 2], [4, 5], [6, 9]]
    assert runs(marks("...")).tolist() == []


def test_events_delays_and_false_episodes() -> None:
    happened = events(marks(".xxx..xx..x."), marks("x.xxx...xxxx"))
    assert (happened.events, happened.caught) == (3, 2)
    assert happened.recall == pytest.approx(2 / 3)
    assert happened.median_delay_rows == 0.5  # one row late, and at once
    assert happened.false_episodes == 1  # the others reach into an event


def test_no_event_is_no_recall_and_no_delay() -> None:
    happened = events(marks("...."), marks("x.xx"))
    assert math.isnan(happened.recall)
    assert math.isnan(happened.median_delay_rows)
    assert happened.false_episodes == 2


def test_an_event_fades_out_at_both_sides() -> None:
    near, far = math.sqrt(2 / 3), math.sqrt(1 / 3)
    assert widened(marks("...x..."), 4).tolist() == pytest.approx([0, far, near, 1, near, far, 0])


def test_what_fades_out_ends_with_the_stream_and_the_nearer_event_counts() -> None:
    near, far = math.sqrt(2 / 3), math.sqrt(1 / 3)
    assert widened(marks("x..x"), 4).tolist() == pytest.approx([1, near, near, 1])
    assert widened(marks("x...x"), 4).tolist() == pytest.approx([1, near, far, near, 1])


def test_labels_that_are_not_widened_give_plain_average_precision() -> None:
    rng = np.random.default_rng(3)
    labels, scores = rng.random(500) < 0.1, rng.random(500)
    assert widened_ap(labels, scores, (0,)) == pytest.approx(average_precision(labels, scores))


def test_average_precision_of_rows_that_are_anomalous_by_a_share() -> None:
    labels = marks("...x...")
    near, far = math.sqrt(2 / 3), math.sqrt(1 / 3)
    # From the highest score down: one row, then two, then two more, of whose sum each has its share.
    total = 1 + 2 * near + 2 * far
    expected = (1 * 1 + 2 * near * (1 + 2 * near) / 3 + 2 * far * total / 5) / total
    assert widened_ap(labels, widened(labels, 4), (4,)) == pytest.approx(expected)


def test_a_score_that_rises_a_little_early_gains_by_widening() -> None:
    labels = marks("." * 50 + "x" * 10 + "." * 50)
    early = np.roll(labels, -4).astype(np.float64)
    assert widened_ap(labels, early) > average_precision(labels, early)


def test_each_day_has_its_own_highest_scores() -> None:
    labels, days = marks("x...x"), np.array([7, 7, 7, 9, 9])
    scores = np.array([3.0, 2.0, 1.0, 5.0, 4.0])
    assert precision_a_day(labels, scores, days, alerts=1) == 0.5  # a hit on one day, none on the other
    assert precision_a_day(labels, scores, days, alerts=3) == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_means_leave_out_what_is_not_defined() -> None:
    assert mean([1.0, math.nan, 3.0]) == 2.0
    assert math.isnan(mean([math.nan]))
    assert math.isnan(mean([]))
