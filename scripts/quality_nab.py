"""The score of the Numenta Anomaly Benchmark (S. Ahmad et al., 2017), from its definition.

A row whose score reaches a threshold, the same one for all files, is a detection. The first rows of a file are on
probation and do not count. Of the detections inside a labelled window only the best one counts, which is the earliest;
a window without any costs; each detection outside costs, less where it follows a window closely. 0 is a detector that
never fires, 100 one that fires at the first row of each window and nowhere else.

By custom the threshold is the one that labels show to be best (`best`), which no running detector can know; `at` judges
a given one. An alarm by the clock, blind to the data, gets 20 points where windows are as wide as a tenth of their
file: publish it beside any score.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from streamdet.events import Bools, Floats, Ints

PROBATION_SHARE: Final = 0.15
PROBATION_ROWS_MAX: Final = 750
CLOCK_ROWS: Final = 250
# Steepness of the curve by which a detection is worth less the later it comes.
_STEEPNESS: Final = 5.0
# Window widths behind a window after which a false detection costs all that it can.
_GRACE_WIDTHS: Final = 3.0


@dataclass(frozen=True, slots=True)
class Profile:
    """What is gained and lost by a caught window, a missed one and a false detection."""

    caught: float
    missed: float
    false: float


PROFILES: Final[Mapping[str, Profile]] = {
    "standard": Profile(1.0, 1.0, 0.11),
    "low_fp": Profile(1.0, 1.0, 0.22),
    "low_fn": Profile(1.0, 2.0, 0.11),
}


@dataclass(frozen=True, slots=True, eq=False)
class ScoredFile:
    """What a detector said of a file of n rows."""

    scores: Floats  # (n,), not finite where it never fires
    windows: Sequence[tuple[int, int]]  # first and last row of each


@dataclass(frozen=True, slots=True)
class NabScore:
    """A score, and what it is made of."""

    score: float
    threshold: float
    caught: int  # windows
    windows: int
    false_rows: int


def probation_rows(n: int) -> int:
    """How many rows at the beginning of a file do not count."""
    return min(int(PROBATION_SHARE * n), PROBATION_ROWS_MAX)


def clock(n: int) -> Floats:
    """Scores of an alarm that goes off at every 250th row."""
    return np.asarray(np.arange(1, n + 1) % CLOCK_ROWS == 0, np.float64)


def worth(y: Floats) -> Floats:
    """What a detection is worth at a place, from 1 far before the end of a window to -1 far behind it."""
    return np.asarray(2.0 / (1.0 + np.exp(_STEEPNESS * y)) - 1.0)


def credits_of_rows(n: int, windows: Sequence[tuple[int, int]], profile: Profile) -> tuple[Floats, Ints]:
    """What a detection at each row adds, and the window that the row lies in, -1 outside of all; (n,) each."""
    gains = np.full(n, -profile.false)
    inside = np.full(n, -1)
    full = worth(np.array(-1.0))
    for number, (first, last) in enumerate(windows):
        width = last - first + 1
        rows = np.arange(first, last + 1)
        gains[rows] = profile.caught * worth((rows - last - 1) / width) / full
        inside[rows] = number
        # Up to the next window, which overwrites what is too much here.
        behind = np.arange(last + 1, n)
        y = (behind - last) / max(width - 1, 1)
        gains[behind] = profile.false * np.where(y > _GRACE_WIDTHS, -1.0, worth(np.minimum(y, _GRACE_WIDTHS)))
    return gains, inside


class NabCorpus:
    """All rows of all files that count, from the highest score down, for one profile."""

    def __init__(self, files: Sequence[ScoredFile], profile: str = "standard") -> None:
        self._profile = PROFILES[profile]
        self._windows = sum(len(file.windows) for file in files)
        parts, before = [], 0
        for file in files:
            parts.append(self._counting(file, before))
            before += len(file.windows)
        scores, gains, inside = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(-scores, kind="stable")
        self._scores, self._inside = scores[order], inside[order]
        self._totals = self._silent + np.cumsum(self._steps(gains[order]))

    def at(self, threshold: float) -> NabScore:
        """The score where each row that reaches the threshold is a detection."""
        fired = int(np.searchsorted(-self._scores, -threshold, side="right"))
        inside = self._inside[:fired]
        total = self._totals[fired - 1] if fired else self._silent
        return NabScore(
            score=self._normalised(float(total)),
            threshold=threshold,
            caught=len(np.unique(inside[inside >= 0])),
            windows=self._windows,
            false_rows=int((inside < 0).sum()),
        )

    def best(self) -> NabScore:
        """The score at the threshold that suits the labels best; of equal ones the highest."""
        if not len(self._scores):
            return self.at(np.inf)
        last_of_ties = np.append(self._scores[1:] != self._scores[:-1], True)
        totals = np.where(last_of_ties, self._totals, -np.inf)
        top = int(np.argmax(totals))
        return self.at(float(self._scores[top]) if totals[top] > self._silent else np.inf)

    @property
    def _silent(self) -> float:
        """The sum of credits of a detector that never fires."""
        return -self._profile.missed * self._windows

    def _normalised(self, total: float) -> float:
        span = self._profile.caught * self._windows - self._silent
        return 100.0 * (total - self._silent) / span if span else float("nan")

    def _counting(self, file: ScoredFile, before: int) -> tuple[Floats, Floats, Ints]:
        n = len(file.scores)
        gains, inside = credits_of_rows(n, file.windows, self._profile)
        counts: Bools = (np.arange(n) >= probation_rows(n)) & np.isfinite(file.scores)
        return file.scores[counts], gains[counts], np.where(inside < 0, -1, inside + before)[counts]

    def _steps(self, gains: Floats) -> Floats:
        """What each row adds to the sum when the threshold comes down to it."""
        steps = gains.copy()
        for number in np.unique(self._inside[self._inside >= 0]):
            rows = np.flatnonzero(self._inside == number)
            best = np.maximum.accumulate(np.append(-self._profile.missed, gains[rows]))
            steps[rows] = np.diff(best)
        return steps
