"""Mean deviation: how far a row lies from typical values, all columns alike."""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from streamdet.models.scorers import Block, Training, mean_of


class Deviation:
    """Mean |z|. All that is learnt is in the scaler."""

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

    def score(self, block: Block) -> Tensor:
        """Mean |z| of each row, (n,)."""
        return mean_of(self.parts(block), block)

    def parts(self, block: Block) -> Tensor:
        """|z|, (n, P)."""
        return block.z.abs() * block.seen
