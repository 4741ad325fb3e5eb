"""Mean deviation: how far a row lies from typical values, all columns alike."""

from torch import Tensor

from streamdet.models.scorers import Block, Unfitted, mean_of


class Deviation(Unfitted):
    """Mean |z|. All that is learnt is in the scaler."""

    def score(self, block: Block) -> Tensor:
        """Mean |z| of each row, (n,)."""
        return mean_of(self.parts(block), block)

    def parts(self, block: Block) -> Tensor:
        """|z|, (n, P)."""
        return block.z.abs() * block.seen
