"""What the model learns from: normal rows, half of them the newest, half a sample of all there ever were.

One block of rows in four is held out: never trained on, it serves to calibrate and to judge candidates. Which rows go
where follows from counts alone, by a hash instead of a random generator, so a replay keeps the same ones.
"""

import numpy as np
from numpy.typing import NDArray

from streamdet.events import Bools, Rows, State

HELD_OUT_EVERY = 4
# Blocks, as rows next to each other in time are alike: single ones between those that were learnt would look more usual
# than any that come later.
HELD_OUT_BLOCK = 16
HELD_OUT_ROWS = 2048


class Ring:
    """The newest `size` rows."""

    def __init__(self, size: int, columns: int) -> None:
        self.values = np.zeros((size, columns), np.float32)
        self.imputed = np.zeros((size, columns), np.bool_)
        self.added = 0

    def add(self, rows: Rows) -> None:
        """Take rows in; the oldest make room."""
        newest = rows[-len(self.values) :] if len(rows) > len(self.values) else rows
        at = (self.added + len(rows) - len(newest) + np.arange(len(newest))) % len(self.values)
        self.put(at, newest)
        self.added += len(rows)

    def put(self, at: NDArray[np.int64], rows: Rows) -> None:
        """Write rows to these places; of several for one place the last stays."""
        self.values[at] = rows.values
        self.imputed[at] = rows.imputed

    def rows(self) -> Rows:
        """A copy of what is kept, in the order of places."""
        kept = min(self.added, len(self.values))
        return Rows(self.values[:kept].copy(), self.imputed[:kept].copy())

    def oldest_first(self) -> Rows:
        """A copy of what is kept, in the order in which it was added."""
        rows = self.rows()
        return rows[(np.arange(len(rows)) + self.added) % len(rows)] if len(rows) else rows

    def state(self) -> State:
        """All that is kept, in views that later rows change."""
        return {"values": self.values, "imputed": self.imputed, "added": self.added}

    def restore(self, state: State) -> None:
        """Take back what `state` gave; of a ring of another size, the newest rows that fit."""
        same = len(state["values"]) == len(self.values)
        saved = self if same else Ring(*state["values"].shape)
        saved.values = np.array(state["values"])
        saved.imputed = np.array(state["imputed"])
        saved.added = state["added"]
        if not same:
            self.added = 0
            self.add(saved.oldest_first())


class NormalRows:
    """The buffer of a learner."""

    def __init__(self, size: int, columns: int, seed: int) -> None:
        self._recent = Ring(size // 2, columns)
        self._sample = Ring(size - size // 2, columns)
        self._held_out = Ring(HELD_OUT_ROWS, columns)
        self._seed = seed

    def add(self, rows: Rows, normal: Bools, fed: Bools, first: int) -> None:
        """Sort in the rows (n, F) of the events that are number `first` and following."""
        held_out = (first + np.arange(len(rows))) // HELD_OUT_BLOCK % HELD_OUT_EVERY == 0
        self._held_out.add(rows[held_out & fed])
        training = rows[~held_out & normal]
        self._recent.add(training)
        self._add_to_sample(training)

    def begin_anew(self, rows: Rows, first: int) -> None:
        """Forget all; of these events, which are number `first` and following, all rows (n, F) are normal."""
        for ring in (self._recent, self._sample, self._held_out):
            ring.added = 0
        all_of = np.ones(len(rows), np.bool_)
        self.add(rows, all_of, all_of, first)

    def training(self) -> Rows:
        """The rows to learn from."""
        return Rows.concatenate([self._sample.rows(), self._recent.rows()])

    def held_out(self) -> Rows:
        """The rows to calibrate and to judge on, oldest first."""
        return self._held_out.oldest_first()

    def _add_to_sample(self, rows: Rows) -> None:
        """Keep each row ever seen with the same probability (algorithm R; Vitter, ACM TOMS 11, 1985)."""
        sample = self._sample
        number = sample.added + np.arange(len(rows))
        place = np.where(number < len(sample.values), number, _hash(number, self._seed) % (number + 1))
        kept = place < len(sample.values)
        sample.put(place[kept], rows[kept])
        sample.added += len(rows)

    def state(self) -> State:
        """All that is kept."""
        return {
            "recent": self._recent.state(),
            "sample": self._sample.state(),
            "held_out": self._held_out.state(),
        }

    def restore(self, state: State) -> None:
        """Take back what `state` gave."""
        self._recent.restore(state["recent"])
        self._sample.restore(state["sample"])
        self._held_out.restore(state["held_out"])


def _hash(number: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Pseudo-random non-negative integers, (n,), by the finaliser of SplitMix64 (Steele et al., OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        x = number.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((x ^ (x >> np.uint64(31))) >> np.uint64(1)).astype(np.int64)
