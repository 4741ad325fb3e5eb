"""Newest: how far a row is from the nearest of the newest usual ones, as was found when the row was made.

All that is kept is in `features/newest.py`, row by row; nothing of it waits for a fine-tune.
"""

from typing import Final

from torch import Tensor

from streamdet.events import DISTANCE
from streamdet.models.scorers import Block, Unfitted

# A twin of one of them is as far from it as this: how much nearer still a row is tells nothing.
TWIN: Final = 0.1


class Newest(Unfitted):
    """The distance that came with the row."""

    def score(self, block: Block) -> Tensor:
        """In multiples of what nine in ten of the newest rows keep, (n,)."""
        return block.newest[:, DISTANCE] + TWIN

    def parts(self, block: Block) -> None:
        """Which columns it is that differ, the row no longer tells: None."""
