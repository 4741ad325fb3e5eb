"""Ways to tell how strange a row is, one file each: pure, columnar, and frozen with the model version they belong to.

A new one needs a file here, a line in `presets.py`, and nothing else.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

# Rows are padded to a multiple of this. Matrix kernels then give a row the same bits wherever it stands in a block,
# which the promise of identical replay rests on.
ALIGNMENT = 8


class Block(NamedTuple):
    """Rows as scorers see them, padded to a width of P columns with zeros."""

    values: Tensor  # (n, P) in the units of the features
    z: Tensor  # (n, P) squashed, see `Scaler`
    seen: Tensor  # (n, P) 1 where a value was there, else 0
    there: Tensor  # (n,) values that were there, at least 1
    newest: Tensor  # (n, NEWEST_COLUMNS) how far from the newest rows, and how far these have moved
    history: Tensor  # (n, H) what the history of a metric or of a transaction's keys says; H is 0 elsewhere
    rows: int  # the first so many are to be scored; the others fill the block up


class Training(NamedTuple):
    """What scorers are fitted on; F columns, not padded."""

    values: Tensor  # (n, F)
    z: Tensor  # (n, F)
    seen: Tensor  # (n, F)
    generator: torch.Generator  # on the CPU, so that a GPU sees the same draws
    history: Tensor = torch.empty(0, 0)  # (n, H)


class Scorer(Protocol):
    """Fitted on normal rows."""

    @classmethod
    def fit(cls, training: Training, previous: Self | None) -> Self:
        """Learn from normal rows; `previous` is what was fitted on earlier ones."""

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The scorer that gave these tensors."""

    def tensors(self) -> dict[str, Tensor]:
        """All its numbers by name."""

    def to(self, device: torch.device) -> Self:
        """The same, laid out for scoring on a device."""

    def score(self, block: Block) -> Tensor:
        """How strange each row is, (n,), positive; 0 for a row without values."""

    def parts(self, block: Block) -> Tensor | None:
        """What each column contributes, (n, P), not negative; None where that cannot be told.

        The score is their mean over the values that were there. Of a scorer that goes by the history, (n, P + H), and
        the score is something else.
        """


class Unfitted:
    """A scorer that learns nothing itself: what it needs is in the row, or in the scaler."""

    @classmethod
    def fit(cls, training: Training, previous: Self | None) -> Self:  # noqa: ARG003 - nothing to learn
        """Nothing to learn."""
        return cls()

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:  # noqa: ARG003 - none
        """There are none."""
        return cls()

    def tensors(self) -> dict[str, Tensor]:
        """None."""
        return {}

    def to(self, device: torch.device) -> Self:  # noqa: ARG002 - nothing to move
        """The same."""
        return self


def padded_width(columns: int) -> int:
    """The width of a row after padding."""
    return -(-columns // ALIGNMENT) * ALIGNMENT


def mean_of(parts: Tensor, block: Block) -> Tensor:
    """The mean over the columns that were there, (n,)."""
    return parts.sum(1) / block.there
