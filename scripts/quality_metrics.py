"""How good scores and flags are, against labels: rankings, decisions, and what happened to each anomalous event.

Nothing here is point-adjusted: an event that is hit once does not turn all its rows into hits, a practice by which
random scores rival published detectors (S. Kim et al., AAAI 2022). A metric that is not defined is NaN.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from streamdet.events import Bools, Floats, Ints

WIDENINGS: Final = (0, 10, 20, 30, 40)
ALERTS_A_DAY: Final = 100


@dataclass(frozen=True, slots=True)
class Counts:
    """Flagged and unflagged rows by label."""

    hits: int
    false: int
    missed: int
    passed: int  # normal and not flagged

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.hits + other.hits,
            self.false + other.false,
            self.missed + other.missed,
            self.passed + other.passed,
        )

    @property
    def precision(self) -> float:
        """Share of flagged rows that are anomalous."""
        return _ratio(self.hits, self.hits + self.false)

    @property
    def recall(self) -> float:
        """Share of anomalous rows that are flagged."""
        return _ratio(self.hits, self.hits + self.missed)

    @property
    def f1(self) -> float:
        """Harmonic mean of both; 0 where nothing is flagged."""
        return _ratio(2 * self.hits, 2 * self.hits + self.false + self.missed)

    @property
    def far(self) -> float:
        """False-alarm rate: the alert rate that was realised on normal rows."""
        return _ratio(self.false, self.false + self.passed)

    @property
    def mar(self) -> float:
        """Missed-alarm rate: share of anomalous rows that are not flagged."""
        return _ratio(self.missed, self.hits + self.missed)


@dataclass(frozen=True, slots=True)
class Events:
    """What happened to runs of anomalous rows, and how many runs of flagged rows were about nothing."""

    events: int
    caught: int  # with at least one flagged row
    median_delay_rows: float  # from the first row of a caught event to its first flagged one
    false_episodes: int  # runs of flagged rows without an anomalous one

    @property
    def recall(self) -> float:
        """Share of events that were caught."""
        return _ratio(self.caught, self.events)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def both_kinds(labels: Bools) -> bool:
    """Whether there are anomalous and normal rows: without both there is nothing to rank."""
    return bool(labels.any() and not labels.all())


def roc_auc(labels: Bools, scores: Floats) -> float:
    """Chance that an anomalous row scores above a normal one, ties half."""
    return float(roc_auc_score(labels, scores)) if both_kinds(labels) else float("nan")


def average_precision(labels: Bools, scores: Floats) -> float:
    """Mean precision over the anomalous rows, from the highest score down."""
    return float(average_precision_score(labels, scores)) if labels.any() else float("nan")


def best_f1(labels: Bools, scores: Floats) -> float:
    """F1 at the threshold that suits the labels best, which no running detector can know."""
    if not labels.any():
        return float("nan")
    precision, recall, _ = precision_recall_curve(labels, scores)
    return float((2 * precision * recall / np.maximum(precision + recall, 1e-12)).max())


def counts(labels: Bools, flagged: Bools) -> Counts:
    """Flagged and unflagged rows by label."""
    return Counts(
        int((flagged & labels).sum()),
        int((flagged & ~labels).sum()),
        int((~flagged & labels).sum()),
        int((~flagged & ~labels).sum()),
    )


def runs(marks: Bools) -> Ints:
    """First row of each run of marked rows, and the row behind its last, (k, 2)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], marks.astype(np.int8), [0]])))
    return edges.reshape(-1, 2)


def events(labels: Bools, flagged: Bools) -> Events:
    """How many runs of anomalous rows were flagged, and how soon."""
    anomalous = runs(labels)
    delays = [int(flagged[a:b].argmax()) for a, b in anomalous if flagged[a:b].any()]
    return Events(
        events=len(anomalous),
        caught=len(delays),
        median_delay_rows=float(np.median(delays)) if delays else float("nan"),
        false_episodes=sum(not labels[a:b].any() for a, b in runs(flagged)),
    )


def widened(labels: Bools, rows: int) -> Floats:
    """How anomalous each row is, where each event fades out over half of so many rows at either side, (n,)."""
    side = rows // 2
    weights = labels.astype(np.float64)
    for first, behind in runs(labels):
        for distance in range(1, side + 1):
            weight = np.sqrt(1.0 - distance / (side + 1))
            for row in (first - distance, behind - 1 + distance):
                if 0 <= row < len(weights):
                    weights[row] = max(weights[row], weight)
    return weights


def widened_ap(labels: Bools, scores: Floats, widenings: Sequence[int] = WIDENINGS) -> float:
    """Average precision, averaged over labels widened by more and more rows, after the idea of VUS-PR.

    A row that is anomalous by a share counts by that share as anomalous and by the rest as normal. For scores that
    rise a little early, or fall a little late; not comparable with published VUS-PR.
    """
    if not labels.any():
        return float("nan")
    found = []
    for rows in widenings:
        weight = widened(labels, rows)
        twice = np.concatenate([np.ones(len(labels), np.bool_), np.zeros(len(labels), np.bool_)])
        found.append(
            average_precision_score(
                twice, np.concatenate([scores, scores]), sample_weight=np.concatenate([weight, 1.0 - weight])
            )
        )
    return float(np.mean(found))


def precision_a_day(labels: Bools, scores: Floats, days: Ints, alerts: int = ALERTS_A_DAY) -> float:
    """Share of anomalous rows among the highest scores of each day, averaged over days."""
    each = []
    for day in np.unique(days):
        rows = np.flatnonzero(days == day)
        top = rows[np.argsort(-scores[rows], kind="stable")[:alerts]]
        each.append(labels[top].mean())
    return float(np.mean(each)) if each else float("nan")


def mean(values: Sequence[float]) -> float:
    """The mean of those that are defined."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # none is
        return float(np.nanmean(values)) if len(values) else float("nan")
