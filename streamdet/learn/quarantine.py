"""Rows wait before they are learnt: an incident often shows some time after its first rows went by unremarked.

While too many of the rows that follow are not normal, none is learnt; what lasts becomes usual to the limits, as these
forget, and with that learning goes on: that is the way back from a change that came to stay.
"""

from typing import Final, NamedTuple

import numpy as np

from streamdet.events import Bools, Rows, State

ROWS: Final = 128
# Of usual rows a tenth lies above the 90 % quantile up to which rows are learnt, in clusters more of them.
STRANGE_SHARE_MAX: Final = 0.5


class Released(NamedTuple):
    """The rows of the n events that are number `first` and following."""

    rows: Rows
    normal: Bools  # (n,) may be learnt
    fed: Bools  # (n,) may serve as reference
    first: int


class Quarantine:
    """The newest rows, in order."""

    def __init__(self, columns: int) -> None:
        self._rows = Rows(np.empty((0, columns), np.float32), np.empty((0, columns), np.bool_))
        self._normal = np.empty(0, np.bool_)
        self._fed = np.empty(0, np.bool_)

    def add(self, rows: Rows, normal: Bools, fed: Bools, first: int) -> Released:
        """Take in the rows of the events that are number `first` and following; those that have waited come out."""
        first -= len(self._rows)
        rows = Rows.concatenate([self._rows, rows])
        normal, fed = np.concatenate([self._normal, normal]), np.concatenate([self._fed, fed])
        n = max(len(rows) - ROWS, 0)
        strange = np.concatenate([[0], np.cumsum(~normal)])
        calm = strange[ROWS : ROWS + n] - strange[:n] <= STRANGE_SHARE_MAX * ROWS
        # Copies: views would keep the whole batch.
        self._rows = Rows(rows.values[n:].copy(), rows.imputed[n:].copy())
        self._normal, self._fed = normal[n:].copy(), fed[n:].copy()
        return Released(rows[:n], normal[:n] & calm, fed[:n], first)

    def state(self) -> State:
        """All that is kept."""
        return {
            "values": self._rows.values,
            "imputed": self._rows.imputed,
            "normal": self._normal,
            "fed": self._fed,
        }

    def restore(self, state: State) -> None:
        """Take back what `state` gave."""
        self._rows = Rows(np.array(state["values"]), np.array(state["imputed"]))
        self._normal, self._fed = np.array(state["normal"]), np.array(state["fed"])
