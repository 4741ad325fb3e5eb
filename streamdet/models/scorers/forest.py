"""A small isolation forest (Liu, Ting & Zhou, ICDM 2008): rows that few random cuts set apart are strange.

Trees are laid out as full binary trees, so that all rows go down all trees in as many steps as there are levels.
"""

import math
from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from streamdet.compiled import compiled
from streamdet.events import Floats
from streamdet.models.scorers import Block, Training

TREES = 50
ROWS = 256
DEPTH = 8
# A column in which the rows of a node are all alike cannot be cut: so many are tried.
TRIES = 8
LENGTH_MIN = 1e-3
# Above all values: they all go left.
UNCUT = np.finfo(np.float32).max
_EULER = 0.5772156649
# So many rows go down a tree side by side: while one waits for its cut to come from the cache, the others move.
ABREAST = 8


class Forest:
    """Trees of cuts at random values of random columns."""

    def __init__(self, column: Tensor, cut: Tensor, length: Tensor) -> None:
        self.column = column  # (TREES, 2^DEPTH - 1) int32, of each inner node, level by level
        self.cut = cut  # (TREES, 2^DEPTH - 1) rows below it go left
        self.length = length  # (TREES, 2^DEPTH) path length at each leaf, as a share of the usual one

    @classmethod
    def fit(cls, training: Training, previous: Self | None) -> Self:  # noqa: ARG003 - trees are not mended
        """Grow each tree on rows of its own, drawn at random."""
        values = training.values.cpu().numpy()
        rows = min(ROWS, len(values))
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=training.generator)))
        drawn = np.stack([rng.choice(len(values), rows, replace=False) for _ in range(TREES)])
        nodes = 2**DEPTH - 1
        column, cut = np.zeros((TREES, nodes), np.int32), np.full((TREES, nodes), UNCUT, np.float32)
        length = np.zeros((TREES, nodes + 1), np.float32)
        for tree in range(TREES):
            tries = rng.integers(0, values.shape[1], (nodes, TRIES))
            _grow(values[drawn[tree]], tries, rng.random(nodes), column[tree], cut[tree], length[tree])
        length /= max(_usual_length(rows), 1e-9)
        return cls(torch.from_numpy(column), torch.from_numpy(cut), torch.from_numpy(length))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The scorer that gave these tensors."""
        return cls(tensors["column"].int(), tensors["cut"], tensors["length"])

    def tensors(self) -> dict[str, Tensor]:
        """Cuts and path lengths."""
        return {"column": self.column, "cut": self.cut, "length": self.length}

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        return type(self)(self.column.to(device), self.cut.to(device), self.length.to(device))

    def score(self, block: Block) -> Tensor:
        """The usual path length over the mean one of each row, (n,).

        Not 2 to the power of minus that share, as in the paper: it ranks alike, and a power may round differently from
        one place in a block to another.
        """
        if block.values.device.type == "cpu":
            n = -(-block.rows // ABREAST) * ABREAST
            length = np.zeros(max(n, len(block.values)), np.float32)
            own = functional.pad(block.values[:n], (0, 0, 0, max(n - len(block.values), 0))).numpy()
            _descend(own, self.column.numpy(), self.cut.numpy(), self.length.numpy(), length)
            return torch.from_numpy(length[: len(block.values)]).clamp_min(LENGTH_MIN).reciprocal()
        tree = torch.arange(TREES, device=block.values.device)
        node = torch.zeros(len(block.values), TREES, dtype=torch.int64, device=block.values.device)
        for _ in range(DEPTH):
            value = block.values.gather(1, self.column[tree, node].long())
            node = 2 * node + 1 + (value >= self.cut[tree, node])
        return self.length[tree, node - (2**DEPTH - 1)].mean(1).clamp_min(LENGTH_MIN).reciprocal()

    def parts(self, block: Block) -> None:
        """Cuts of single columns say little: None."""


def _usual_length(rows: int) -> float:
    """Mean path length of an unsuccessful search in a binary tree of so many rows."""
    if rows <= 1:
        return 0.0
    return 2.0 * (math.log(max(rows - 1, 1)) + _EULER) - 2.0 * (rows - 1) / rows


@compiled
def _grow(
    values: NDArray[np.float32],
    tries: NDArray[np.int64],
    draws: Floats,
    column: NDArray[np.int32],
    cut: NDArray[np.float32],
    length: NDArray[np.float32],
) -> None:  # pragma: no cover - compiled
    """Cut the rows (n, F) level by level. A node that is not cut passes all to the left."""
    nodes = len(cut)
    order = np.arange(len(values))  # the rows of a node stand together
    begin, end = np.zeros(2 * nodes + 1, np.int64), np.zeros(2 * nodes + 1, np.int64)
    end[0] = len(values)
    ended = np.full(2 * nodes + 1, -1.0)  # path length of what was decided above
    for node in range(nodes):
        inside = order[begin[node] : end[node]]
        if node > 0:
            ended[node] = ended[(node - 1) // 2]
        chosen, low, high = -1, np.float32(0.0), np.float32(0.0)
        if ended[node] < 0.0 and len(inside) > 1:
            chosen, low, high = _first_that_differs(values, inside, tries[node])
        left = len(inside)
        if chosen >= 0:
            column[node] = chosen
            cut[node] = low + np.float32(draws[node]) * (high - low)
            left = _part(values[:, chosen], cut[node], inside)
        elif ended[node] < 0.0:
            ended[node] = int(np.log2(node + 1)) + _expected(len(inside))
        begin[2 * node + 1], end[2 * node + 1] = begin[node], begin[node] + left
        begin[2 * node + 2], end[2 * node + 2] = begin[node] + left, end[node]
    depth = int(np.log2(nodes + 1))
    for leaf in range(nodes + 1):
        node = nodes + leaf
        above = ended[(node - 1) // 2]
        length[leaf] = above if above >= 0.0 else depth + _expected(end[node] - begin[node])


@compiled
def _first_that_differs(
    values: NDArray[np.float32], rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> tuple[int, np.float32, np.float32]:  # pragma: no cover - compiled
    """The first of the columns in which these rows are not all alike, its least and its largest value; -1: none."""
    for column in columns:
        low, high = np.float32(np.inf), np.float32(-np.inf)
        for i in rows:
            low, high = min(low, values[i, column]), max(high, values[i, column])
        if high > low:
            return int(column), low, high
    return -1, np.float32(0.0), np.float32(0.0)


@compiled
def _part(
    values: NDArray[np.float32], cut: float, rows: NDArray[np.int64]
) -> int:  # pragma: no cover - compiled
    """Move the rows whose value is below the cut to the front; how many they are."""
    below = 0
    for k in range(len(rows)):
        if values[rows[k]] < cut:
            rows[below], rows[k] = rows[k], rows[below]
            below += 1
    return below


@compiled
def _descend(
    values: NDArray[np.float32],
    column: NDArray[np.int32],
    cut: NDArray[np.float32],
    length: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:  # pragma: no cover - compiled
    """Mean path length of rows (n, P), as a share of the usual one, into out (at least n,); n divides by `ABREAST`.

    Tree by tree, so that a tree stays in the processor's nearest cache. Indices are unsigned: they are not tested
    for being negative.
    """
    trees, nodes = cut.shape
    one, inner = np.uint32(1), np.uint32(nodes)
    node = np.empty(ABREAST, np.uint32)
    for tree in range(trees):
        columns, cuts, lengths = column[tree], cut[tree], length[tree]
        for first in range(0, len(values) - ABREAST + 1, ABREAST):
            node[:] = np.uint32(0)
            for _ in range(DEPTH):
                for k in range(ABREAST):
                    at = node[k]
                    right = values[first + k, np.uint32(columns[at])] >= cuts[at]
                    node[k] = at + at + one + np.uint32(right)
            for k in range(ABREAST):
                out[first + k] += lengths[node[k] - inner]
    out /= np.float32(trees)


@compiled
def _expected(rows: int) -> float:  # pragma: no cover - compiled
    """How much further a path would go among so many rows."""
    if rows <= 1:
        return 0.0
    if rows == 2:
        return 1.0
    return float(2.0 * (np.log(rows - 1.0) + _EULER) - 2.0 * (rows - 1.0) / rows)
