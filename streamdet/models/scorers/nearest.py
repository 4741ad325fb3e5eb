"""Distance to the nearest remembered row: what is unlike anything seen, though each value of it may be common.

The memory is a sample of the normal rows that a version was trained on (as in MemStream; Bhatia et al., WWW 2022, but
of rows themselves rather than encodings, which lose what no reconstruction needs).
"""

from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from streamdet.compiled import compiled
from streamdet.models.scorers import Block, Training, padded_width

# Each row scored is compared with so many at most.
ROWS_MAX = 2048

Rows32 = NDArray[np.float32]


class Nearest:
    """Mean |z - z'| to the row z' that is nearest by that measure."""

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory  # (m, P)
        self._by_column = memory.T.contiguous()  # (P, m)

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
        if block.z.device.type == "cpu":
            at = np.zeros(len(block.z), np.int64)
            far = np.zeros(len(block.z), np.float32)
            own = slice(0, block.rows)
            _nearest(block.z[own].numpy(), block.seen[own].numpy(), self._by_column.numpy(), at, far)
            return torch.from_numpy(at), torch.from_numpy(far)
        far_all = ((block.z.unsqueeze(1) - self.memory).abs() * block.seen.unsqueeze(1)).sum(2)  # (n, m)
        found = far_all.min(1)
        return found.indices, found.values


@compiled
def _nearest(
    z: Rows32, seen: Rows32, by_column: Rows32, at: NDArray[np.int64], far: Rows32
) -> None:  # pragma: no cover - compiled
    """Column by column, for all remembered rows at once: so the processor adds several in one instruction."""
    total = np.empty(by_column.shape[1], np.float32)
    for i in range(len(z)):
        total[:] = 0.0
        for j in range(z.shape[1]):
            if seen[i, j] != 0.0:
                value, column = z[i, j], by_column[j]
                for m in range(len(total)):
                    total[m] += abs(value - column[m])
        best = total[0]
        for m in range(len(total)):
            best = min(best, total[m])
        for m in range(len(total)):
            if total[m] == best:
                at[i] = m
                break
        far[i] = best
