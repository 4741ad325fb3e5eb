"""Whether the level of the scores has changed for good: then the model is about another state than the stream is in.

Each 64 scores count as one number, their median: outliers do not move it, nor does what befalls fewer than half of the
events. A Page-Hinkley test on these finds that they rise, and what has risen is watched until it has either gone back,
as an incident does, or has stayed, far off and at one level, for as long as limits remember.
"""

from typing import Final

import numpy as np

from streamdet.events import Floats, State

BLOCK: Final = 64
# The test: a rise by less than this is none, in nats; and how much of it, added up over blocks, is one.
TOLERANCE: Final = 0.5
ENOUGH: Final = 5.0
# Of fewer blocks it does not know yet what is usual.
USUAL_MIN: Final = 8
# A rise that is watched has gone back once so many blocks in a row lie less than so many nats above the level before.
BACK: Final = 4
RISEN: Final = 1.0
# It is confirmed if it is so far, in all blocks but such a share: a usual row is then as rare as 1 in 55 was before.
FAR: Final = 4.0
DROPS_MAX: Final = 0.1
# Between the halves of those blocks it moves by such a share of the rise at most: what goes on changing is no state.
MOVES_MAX: Final = 0.25
# So many blocks it has to stay at least, however little limits remember.
BLOCKS_MIN: Final = 16


class PageHinkley:
    """A test, in either direction, of whether the mean of numbers has changed (Page, Biometrika 41, 1954).

    It adds up how far each number lies above the mean so far, less a tolerance; the sum falls as long as nothing
    changes, and a climb from its lowest point by `enough` is a change. With a change it begins anew.
    """

    FORGETTING: Final = 0.9999

    def __init__(self, tolerance: float, enough: float, count_min: int) -> None:
        self._tolerance, self._enough, self._count_min = tolerance, enough, count_min
        self._begin()

    def _begin(self) -> None:
        self._count, self._mean = 0, 0.0
        self._up, self._lowest, self._mean_at_lowest = 0.0, np.inf, 0.0
        self._down, self._highest = 0.0, -1.0

    def add(self, number: float) -> float | None:
        """The mean before the change, if this number shows that one has happened."""
        self._count += 1
        self._mean += (number - self._mean) / self._count
        apart = number - self._mean
        self._up = self.FORGETTING * self._up + apart - self._tolerance
        self._down = self.FORGETTING * self._down + apart + self._tolerance
        self._highest = max(self._highest, self._down)
        if self._up < self._lowest:
            self._lowest, self._mean_at_lowest = self._up, self._mean
        changed = self._up - self._lowest > self._enough or self._highest - self._down > self._enough
        if self._count < self._count_min or not changed:
            return None
        before = self._mean_at_lowest
        self._begin()
        return before

    def state(self) -> Floats:
        """All that is kept, (7,)."""
        return np.array(
            [self._count, self._mean, self._up, self._lowest, self._mean_at_lowest, self._down, self._highest]
        )

    def restore(self, state: Floats) -> None:
        """Take back what `state` gave."""
        count, self._mean, self._up, self._lowest, self._mean_at_lowest, self._down, self._highest = (
            state.tolist()
        )
        self._count = int(count)


class Drift:
    """Watches the scores of a stream, in order, for a rise that stays."""

    def __init__(self, window: int) -> None:
        """`window`: how many scores limits remember."""
        self._test = PageHinkley(TOLERANCE, ENOUGH, USUAL_MIN)
        self._blocks = max(window // BLOCK, BLOCKS_MIN)
        self._scores = np.empty(0)  # of the block under way
        self._before = np.nan  # the level before the rise that is watched; NaN: there is none
        self._since = np.empty(0)  # levels of the newest blocks since then, oldest first

    @property
    def stays(self) -> int:
        """How many scores a rise has stayed, at least, when it is confirmed."""
        return self._blocks * BLOCK

    @property
    def soonest(self) -> int:
        """With how many more scores a rise can be confirmed, at least."""
        return max(self._blocks - len(self._since), 1) * BLOCK - len(self._scores)

    def add(self, raw: Floats) -> bool:
        """Whether raw scores (n,), in nats, confirm a rise; NaN, of no model, is left out."""
        scores = np.concatenate([self._scores, raw[~np.isnan(raw)]])
        whole = len(scores) - len(scores) % BLOCK
        self._scores = scores[whole:]
        levels = np.median(scores[:whole].reshape(-1, BLOCK), axis=1)
        return sum(map(self._follow, levels.tolist())) > 0  # not `any`: each of them has to be seen

    def _follow(self, level: float) -> bool:
        if np.isnan(self._before):
            before = self._test.add(level)
            if before is not None and level > before:
                self._before, self._since = before, np.array([level])
            return False
        self._since = np.append(self._since, level)[-self._blocks :]
        rises = self._since - self._before
        newest = rises[-BACK:]
        confirmed = len(rises) == self._blocks and newest.min() >= RISEN and _is_a_state(rises)
        if confirmed or (len(newest) == BACK and newest.max() < RISEN):
            self._before, self._since = np.nan, np.empty(0)
        return confirmed

    def state(self) -> State:
        """All that is kept."""
        return {
            "test": self._test.state(),
            "scores": self._scores,
            "before": np.array([self._before]),
            "since": self._since,
        }

    def restore(self, state: State) -> None:
        """Take back what `state` gave."""
        self._test.restore(np.array(state["test"]))
        self._scores, self._since = np.array(state["scores"]), np.array(state["since"])
        self._before = float(state["before"][0])


def _is_a_state(rises: Floats) -> bool:
    """Whether levels that have risen by so many nats, (n,), are far from what was before, and like each other."""
    half = len(rises) // 2
    moved = abs(rises[half:].mean() - rises[:half].mean())
    return bool(np.quantile(rises, DROPS_MAX) >= FAR and moved <= MOVES_MAX * rises.mean())
