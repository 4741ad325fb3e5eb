"""Distance to the nearest remembered row: what is unlike anything seen, though each value of it may be common.

The memory is a sample of the normal rows that a version was trained on (as in MemStream; Bhatia et al., WWW 2022, but
of rows themselves rather than encodings, which lose what no reconstruction needs).

The search is exact, and yet passes most rows over: two rows are at least as far apart as their sums are, whatever the
signs with which the columns are summed. With the rows in the order of such sums, only those whose sum is near enough
need a look; how near, the row tells that was nearest to the one scored before, as sensors hang together in time.
"""

from collections.abc import Mapping
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from streamdet.compiled import compiled, inlined
from streamdet.events import Floats, Ints
from streamdet.models.scorers import Block, Training, padded_width

# Each row scored is compared with so many at most.
ROWS_MAX = 2048

Rows32 = NDArray[np.float32]

# Signs are turned so often at most until none changes; any will do, and more than a few turns gain nothing.
TURNS = 8
# Added to what may be near enough, relative and absolute: distances are rounded in the last digits.
MARGIN = 1e-4


class Ordered(NamedTuple):
    """Remembered rows in the order of their signed sums, for the search on the CPU."""

    by_column: Rows32  # (P, m)
    signs: Floats  # (P,) of the columns: 1, -1, or 0 where all values are the same
    sums: Floats  # (m,) ascending
    places: Ints  # (m,) in the memory

    @classmethod
    def of(cls, memory: Rows32) -> "Ordered":
        """Order rows (m, P) with signs that keep their sums far apart: so the fewest are near enough."""
        centred = memory.astype(np.float64) - memory.mean(axis=0, dtype=np.float64)
        moving = np.ptp(memory, axis=0) > 0.0
        signs = moving.astype(np.float64)
        for _ in range(TURNS):
            turned = np.where(centred.T @ (centred @ signs) >= 0.0, 1.0, -1.0) * moving
            if (turned == signs).all():
                break
            signs = turned
        sums = memory.astype(np.float64) @ signs
        places = np.argsort(sums, kind="stable")
        return cls(np.ascontiguousarray(memory[places].T), signs, sums[places], places)


class Nearest:
    """Mean |z - z'| to the row z' that is nearest by that measure."""

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory  # (m, P)
        self._ordered = Ordered.of(memory.numpy()) if memory.device.type == "cpu" else None

    @classmethod
    def fit(cls, training: Training, previous: Self | None) -> Self:  # noqa: ARG003 - rows are as new as can be
        """Remember the rows, or as many of them as there may be, drawn at random."""
        z = training.z.cpu()
        if len(z) > ROWS_MAX:
            z = z[torch.randperm(len(z), generator=training.generator)[:ROWS_MAX]]
        return cls(functional.pad(z, (0, padded_width(z.shape[1]) - z.shape[1])).contiguous())

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The scorer that gave these tensors."""
        return cls(tensors["memory"])

    def tensors(self) -> dict[str, Tensor]:
        """The remembered rows."""
        return {"memory": self.memory}

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        return type(self)(self.memory.to(device))

    def score(self, block: Block) -> Tensor:
        """Mean distance to the nearest row, (n,)."""
        return self._search(block)[1] / block.there

    def parts(self, block: Block) -> Tensor:
        """Distance to the nearest row in each column, (n, P)."""
        return (block.z - self.memory[self._search(block)[0]]).abs() * block.seen

    def _search(self, block: Block) -> tuple[Tensor, Tensor]:
        """Which row is nearest to each, (n,), and how far, (n,)."""
        if self._ordered is not None:
            at = np.zeros(len(block.z), np.int64)
            far = np.zeros(len(block.z), np.float32)
            own = slice(0, block.rows)
            _nearest(block.z[own].numpy(), block.seen[own].numpy(), self._ordered, at, far)
            return torch.from_numpy(at), torch.from_numpy(far)
        far_all = ((block.z.unsqueeze(1) - self.memory).abs() * block.seen.unsqueeze(1)).sum(2)  # (n, m)
        found = far_all.min(1)
        return found.indices, found.values


@compiled
def _nearest(
    z: Rows32, seen: Rows32, ordered: Ordered, at: Ints, far: Rows32
) -> None:  # pragma: no cover - compiled
    """Column by column, for all rows that may be nearest at once: so the processor adds several in one instruction."""
    every = np.empty(len(ordered.sums), np.float32)
    nearest = len(every) // 2
    for i in range(len(z)):
        first, last = near_enough(z[i], seen[i], nearest, ordered)
        total = every[first:last]
        total[:] = 0.0
        for j in range(z.shape[1]):
            if seen[i, j] != 0.0:
                value, column = z[i, j], ordered.by_column[j, first:last]
                for m in range(len(total)):
                    total[m] += abs(value - column[m])
        best = total[0]
        for m in range(len(total)):
            best = min(best, total[m])
        for m in range(len(total)):
            if total[m] == best:
                nearest = first + m
                break
        at[i] = ordered.places[nearest]
        far[i] = best


@inlined
def near_enough(
    row: Rows32, seen: Rows32, guess: int, ordered: Ordered
) -> tuple[int, int]:  # pragma: no cover - compiled
    """First and last, exclusive, of those that may be as near to the row as the guess is; all if a value is missing."""
    bound, total = 0.0, 0.0
    for j in range(len(row)):
        if seen[j] != 0.0:
            bound += abs(row[j] - ordered.by_column[j, guess])
            total += ordered.signs[j] * row[j]
        elif ordered.signs[j] != 0.0:
            bound = np.inf
    if not bound < np.inf:
        return 0, len(ordered.sums)
    bound += MARGIN * (1.0 + bound)
    first = np.searchsorted(ordered.sums, total - bound, "left")
    return int(first), int(np.searchsorted(ordered.sums, total + bound, "right"))
