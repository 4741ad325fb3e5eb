"""Expectation: the largest surprise of a metric, as its own history told it when the row was made.

All that is learnt is in `features/expectation.py`, row by row; nothing of it waits for a fine-tune.
"""

import torch
from torch import Tensor

from streamdet.events import FORECAST
from streamdet.models.scorers import Block, Unfitted


class Expectation(Unfitted):
    """The largest of the surprises that came with the row."""

    def score(self, block: Block) -> Tensor:
        """Nats, (n,)."""
        return block.history[:, FORECAST:].amax(1).clamp_min(0.0)

    def parts(self, block: Block) -> Tensor:
        """All of it is the number's, which is the first column; (n, P)."""
        parts = torch.zeros_like(block.z)
        parts[:, 0] = self.score(block) * block.there
        return parts
