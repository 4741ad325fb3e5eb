"""How good verdicts were, against labels: in constant memory, however long the stream.

Scores are counted on a logarithmic axis of 0.1 % wide bins, apart for normal and anomalous events; scores
inside a bin count as tied. Labels serve here alone, after everything is judged.
"""

from dataclasses import dataclass

import numpy as np

from streamdet.events import Bools, Floats

BINS = 20_000
_LOG_LOW, _LOG_WIDTH = -10.0, 0.001


@dataclass(frozen=True, slots=True)
class Quality:
    """None where it is not defined: no anomalous or no normal events, no alerts."""

    roc_auc: float | None
    average_precision: float | None
    precision: float | None
    recall: float | None
    f1: float | None


class ScoreCounts:
    """Counts of scores and alerts by label."""

    def __init__(self) -> None:
        self._counts = np.zeros((2, BINS), np.int64)
        self._flagged = np.zeros(2, np.int64)

    def add(self, raw: Floats, flagged: Bools, anomalous: Bools) -> None:
        """Count n events, none of them NaN, (n,) each."""
        with np.errstate(divide="ignore"):
            at = ((np.log(raw) - _LOG_LOW) / _LOG_WIDTH).clip(0, BINS - 1).astype(np.int64)
        for label in (0, 1):
            mine = anomalous == bool(label)
            self._counts[label] += np.bincount(at[mine], minlength=BINS)
            self._flagged[label] += int(flagged[mine].sum())

    @property
    def anomalous(self) -> int:
        """Anomalous events counted."""
        return int(self._counts[1].sum())

    def quality(self) -> Quality:
        """All metrics of what was counted."""
        negatives, positives = self._counts.astype(np.float64)
        normal, anomalous = negatives.sum(), positives.sum()
        false_alerts, hits = (int(n) for n in self._flagged)
        precision = hits / (hits + false_alerts) if hits + false_alerts else None
        recall = hits / anomalous if anomalous else None
        both = precision is not None and recall is not None and precision + recall > 0
        return Quality(
            roc_auc=_roc_auc(negatives, positives) if normal and anomalous else None,
            average_precision=_average_precision(negatives, positives) if anomalous else None,
            precision=precision,
            recall=None if recall is None else float(recall),
            f1=float(2 * precision * recall / (precision + recall)) if both else None,  # type: ignore[operator]
        )


def _roc_auc(negatives: Floats, positives: Floats) -> float:
    """Probability that an anomalous event scores above a normal one, ties half (Mann-Whitney)."""
    below = np.cumsum(negatives) - negatives
    wins = (positives * (below + 0.5 * negatives)).sum()
    return float(wins / (negatives.sum() * positives.sum()))


def _average_precision(negatives: Floats, positives: Floats) -> float:
    """Mean precision at each anomalous event, from the highest score down; ties share theirs."""
    hits = np.cumsum(positives[::-1])
    all_events = hits + np.cumsum(negatives[::-1])
    precision = hits / np.maximum(all_events, 1.0)
    return float((precision * positives[::-1]).sum() / positives.sum())
