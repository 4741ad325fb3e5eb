"""Columns on one scale: location and spread of normal rows, and a squash that lets no column drown the rest."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from streamdet.events import Floats

# A column's z is linear up to here and grows with the logarithm beyond.
KNEE = 2.5
# Values further than this many robust deviations from the median do not count in location and spread.
WINSOR = 8.0
# Further out is as far: in float32 a gross value over a tiny spread would be infinite, and its score no number.
Z_MAX = 1e30
RELATIVE_SPREAD_MIN = 1e-3
SPREAD_MIN = 1e-6


@dataclass(frozen=True, slots=True)
class Scaler:
    """Location and spread per column."""

    location: Tensor  # (F,)
    spread: Tensor  # (F,), positive

    @classmethod
    def fit(cls, rows: Floats, floor: Floats | None) -> "Scaler":
        """Learn from rows (n, F).

        Mean and standard deviation of rows winsorised around the median, so that a few gross values in the
        warm-up do not set the scale. `floor`, (F,), is the least spread: rows admitted for learning are
        chosen for being near, so each refit would otherwise see less spread than the last.
        """
        median = np.median(rows, axis=0)
        quartiles = np.quantile(rows, [0.25, 0.75], axis=0)
        robust = (quartiles[1] - quartiles[0]) / 1.349
        reach = np.where(robust > 0, WINSOR * robust, np.inf)
        clipped = np.clip(rows, median - reach, median + reach)
        location = clipped.mean(axis=0)
        spread = np.maximum(clipped.std(axis=0), RELATIVE_SPREAD_MIN * np.abs(location))
        if floor is not None:
            spread = np.maximum(spread, floor)
        return cls(
            torch.tensor(location, dtype=torch.float32),
            torch.tensor(np.maximum(spread, SPREAD_MIN), dtype=torch.float32),
        )

    def transform(self, rows: Tensor) -> Tensor:
        """Squashed z of rows (n, F), (n, F): identity up to the knee, logarithmic beyond."""
        z = (rows - self.location) / self.spread
        size = z.abs().clamp_max(Z_MAX)
        return torch.where(size <= KNEE, z, z.sign() * KNEE * (1.0 + torch.log(size.clamp_min(KNEE) / KNEE)))

    def inverse(self, z: Tensor) -> Tensor:
        """Rows for squashed z within the knee, (n, F); beyond it the squash is undone."""
        size = z.abs()
        wide = z.sign() * KNEE * torch.exp(size.clamp_min(KNEE) / KNEE - 1.0)
        return torch.where(size <= KNEE, z, wide) * self.spread + self.location

    def to(self, device: torch.device) -> "Scaler":
        """The same scale on another device."""
        return Scaler(self.location.to(device), self.spread.to(device))
