"""A category as a number: how rare its value has been.

Rarity of value v is -ln((n_v + 1/2) / (n + K/2)) with n_v, n counts of earlier events under exponential forgetting
and K the number of values seen, plus one: one column per field, whatever the cardinality (the estimate of
Krichevsky and Trofimov, IEEE Trans. Inf. Theory 27, 1981).
"""

from collections.abc import Sequence

import numpy as np

from streamdet.compiled import compiled
from streamdet.events import Floats, Ints, State

VALUES_MAX = 65_536
HALF_LIFE = 5_000.0
_GROWTH = 2.0 ** (1.0 / HALF_LIFE)
_WEIGHT_MAX = 1e12
# Places in the totals array.
_TOTAL, _WEIGHT, _MOST_FREQUENT = 0, 1, 2


class Rarity:
    """The values of one field of one lane. A missing value is a value."""

    def __init__(self, values_max: int = VALUES_MAX) -> None:
        self._max = values_max
        self._codes: dict[str | None, int] = {}
        self._counts = np.zeros(16)
        self._totals = np.array([0.0, 1.0, -1.0])

    def transform(self, values: Sequence[str | None]) -> tuple[Floats, Ints]:
        """For n values in order, each from those before it: rarity in nats, and code of the most frequent one, (n,)."""
        out = np.empty(len(values))
        most_frequent = np.empty(len(values), np.int64)
        codes = np.empty(len(values), np.int64)
        start = 0
        for i, value in enumerate(values):
            code = self._codes.get(value)
            if code is None:
                # Settled first: the events before do not know of this value, and how many are known counts.
                self._count(codes[start:i], out[start:i], most_frequent[start:i])
                start = i
                if len(self._codes) >= self._max:
                    self._keep_frequent_half(most_frequent[:i])
                code = len(self._codes)
                self._codes[value] = code
                self._make_room(code)
            codes[i] = code
        self._count(codes[start:], out[start:], most_frequent[start:])
        return out, most_frequent

    def value(self, code: int) -> str | None:
        """The value of a code that the last call of `transform` gave; None for -1, which is before any value."""
        return list(self._codes)[code] if code >= 0 else None

    def _count(self, codes: Ints, out: Floats, most_frequent: Ints) -> None:
        if len(codes):
            missing = self._codes.get(None, -1)
            _rarities(codes, self._counts, self._totals, len(self._codes), missing, out, most_frequent)

    def _make_room(self, code: int) -> None:
        if code >= len(self._counts):
            self._counts = np.concatenate([self._counts, np.zeros(len(self._counts))])

    def _keep_frequent_half(self, most_frequent: Ints) -> None:
        """Drop the rarer values; codes change, also those given out for events before."""
        counts = self._counts[: len(self._codes)]
        kept = np.sort(np.argsort(-counts, kind="stable")[: self._max // 2])
        position = {int(code): i for i, code in enumerate(kept)}
        self._codes = {value: position[code] for value, code in self._codes.items() if code in position}
        self._counts = np.concatenate([counts[kept], np.zeros(len(self._counts) - len(kept))])
        self._totals[_TOTAL] = self._counts.sum()
        self._totals[_MOST_FREQUENT] = position.get(int(self._totals[_MOST_FREQUENT]), -1)
        most_frequent[:] = [position.get(code, -1) for code in most_frequent.tolist()]

    def state(self) -> State:
        """Values in the order of their codes, and their counts."""
        return {
            "values": list(self._codes),
            "counts": self._counts[: len(self._codes)].copy(),
            "totals": self._totals.copy(),
        }

    def restore(self, state: State) -> None:
        """Take back what `state` gave."""
        self._codes = {value: code for code, value in enumerate(state["values"])}
        self._counts = np.concatenate([state["counts"], np.zeros(max(16, len(state["counts"])))])
        self._totals = np.array(state["totals"])


@compiled
def _rarities(
    codes: Ints, counts: Floats, totals: Floats, values: int, missing: int, out: Floats, most_frequent: Ints
) -> None:  # pragma: no cover
    for i in range(len(codes)):
        code = codes[i]
        weight = totals[_WEIGHT]
        count = counts[code] / weight
        total = totals[_TOTAL] / weight
        out[i] = -np.log((count + 0.5) / (total + 0.5 * (values + 1)))
        most_frequent[i] = int(totals[_MOST_FREQUENT])
        counts[code] += weight
        if code != missing and (most_frequent[i] < 0 or counts[code] > counts[most_frequent[i]]):
            totals[_MOST_FREQUENT] = code
        totals[_TOTAL] += weight
        totals[_WEIGHT] = weight * _GROWTH
        if totals[_WEIGHT] > _WEIGHT_MAX:
            counts /= totals[_WEIGHT]
            totals[_TOTAL] /= totals[_WEIGHT]
            totals[_WEIGHT] = 1.0
