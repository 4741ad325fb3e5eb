"""A model version: weights, scale, calibration and feature order, which change together and never apart.

Scoring is a pure function of (model version, row): nothing is learned from it, and on the CPU a row gets the same
bits whatever else is in its batch.
"""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from streamdet.events import Floats, Rows
from streamdet.models.autoencoder import Autoencoder, Reconstruction, padded_width
from streamdet.models.calibration import Calibration
from streamdet.models.scaling import Scaler

# On the CPU rows are scored in blocks of exactly this many, the last one padded: kernels are chosen by shape,
# and another shape may round differently.
BLOCK = 256

# On records the total deviation sees what a reconstruction follows; on sensors the residual adds what deviation misses.
DEVIATION_WEIGHT = 2.0 / 3.0

# Rows of no surprise at all are explained as if they had this much of it.
SURPRISE_MIN = 1e-6

Row32 = NDArray[np.float32]


def weighted_mean(deviation: Tensor, residual: Tensor) -> Tensor:
    """The two surprises of each row as one, (n,)."""
    return DEVIATION_WEIGHT * deviation + (1.0 - DEVIATION_WEIGHT) * residual


@dataclass(frozen=True, eq=False)
class Explanation:
    """What the model expected of n rows."""

    expected: Floats  # (n, F), in the units of the features
    share: Floats  # (n, F), non-negative, each row sums to 1


@dataclass(frozen=True, eq=False)
class ModelVersion:
    """Everything needed to score a row. `deviation`, `residual` and `combined` calibrate the scores in turn."""

    columns: tuple[str, ...]
    scaler: Scaler
    network: Autoencoder
    deviation: Calibration
    residual: Calibration
    combined: Calibration
    trained_at: int  # events seen when the training rows were taken
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @cached_property
    def id(self) -> str:
        """Twelve hexadecimal digits that name exactly these numbers."""
        digest = hashlib.sha256("\n".join(self.columns).encode())
        for name, tensor in sorted(self.tensors().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()[:12]

    def tensors(self) -> dict[str, Tensor]:
        """All numbers by name, on the CPU; `from_tensors` takes them back."""
        named = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        named |= {"scaler.location": self.scaler.location, "scaler.spread": self.scaler.spread}
        for name in ("deviation", "residual", "combined"):
            part: Calibration = getattr(self, name)
            named |= {f"{name}.knots": part.knots, f"{name}.tail_scale": part.tail_scale}
        return {name: value.detach().cpu().contiguous() for name, value in named.items()}

    @classmethod
    def from_tensors(
        cls, columns: tuple[str, ...], tensors: dict[str, Tensor], trained_at: int, device: torch.device
    ) -> "ModelVersion":
        """The version that gave these tensors."""
        network = Autoencoder(len(columns), torch.Generator())
        prefix = "network."
        network.load_state_dict(
            {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        )

        def calibration(name: str, *, pareto: bool) -> Calibration:
            return Calibration(tensors[f"{name}.knots"], tensors[f"{name}.tail_scale"], pareto)

        return cls(
            columns,
            Scaler(tensors["scaler.location"], tensors["scaler.spread"]),
            network,
            calibration("deviation", pareto=True),
            calibration("residual", pareto=True),
            calibration("combined", pareto=False),
            trained_at,
            device,
        )

    def score(self, rows: Rows) -> Floats:
        """Surprise of each row in nats, (n,)."""
        if not len(rows):
            return np.empty(0)
        return self._scoring.surprise(rows).astype(np.float64)

    def raw_scores(self, rows: Rows) -> tuple[Floats, Floats]:
        """Mean deviation and mean residual of each row before calibration, (n,) each."""
        deviation, residual = self._scoring.raw(rows)
        return deviation.astype(np.float64), residual.astype(np.float64)

    def explain(self, rows: Rows) -> Explanation:
        """Expected value and share of the surprise per column."""
        return self._scoring.explain(rows)

    @cached_property
    def _scoring(self) -> "_Scoring":
        return _Scoring(self)


class _Scoring:
    """A version laid out on its device."""

    def __init__(self, version: ModelVersion) -> None:
        self._device = version.device
        self._columns = len(version.columns)
        self._width = padded_width(self._columns)
        self._scaler = version.scaler.to(version.device)
        self._reconstruct = Reconstruction(version.network, version.device)
        self._deviation = version.deviation.to(version.device)
        self._residual = version.residual.to(version.device)
        self._combined = version.combined.to(version.device)

    @torch.inference_mode()
    def surprise(self, rows: Rows) -> Row32:
        """Calibrated and combined, (n,); see `ModelVersion.score`."""
        scores: Row32 = self._combine(*self._raw(rows))[: len(rows)].cpu().numpy()
        return scores

    @torch.inference_mode()
    def raw(self, rows: Rows) -> tuple[Row32, Row32]:
        """Mean deviation and mean residual, (n,) each."""
        deviation, residual = (scores[: len(rows)].cpu().numpy() for scores in self._raw(rows))
        return deviation, residual

    @torch.inference_mode()
    def explain(self, rows: Rows) -> Explanation:
        """Shares weigh both scores by their surprise; see `ModelVersion.explain`."""
        z, seen = self._standardised(rows)
        restored = self._restore(z)
        deviations, residuals = z.abs() * seen, (z - restored).abs() * seen
        deviation, residual = _row_means(deviations, residuals, seen)
        by_deviation = _shared_out(deviations, self._deviation.surprise(deviation))
        by_residual = _shared_out(residuals, self._residual.surprise(residual))
        parts = weighted_mean(by_deviation, by_residual)
        share = parts / parts.sum(1, keepdim=True).clamp_min(1e-12)  # (total, padded F)
        # What the network restores for a row far outside of what it knows is far out itself: the expectation is
        # held within the range of normal rows.
        expected = self._scaler.inverse(restored[:, : self._columns].clamp(-2.0, 2.0))
        n = len(rows)
        return Explanation(
            expected[:n].cpu().numpy().astype(np.float64),
            share[:n, : self._columns].cpu().numpy().astype(np.float64),
        )

    def _raw(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Mean deviation and mean residual, (total,) each."""
        z, seen = self._standardised(rows)
        return _row_means(z.abs() * seen, (z - self._restore(z)).abs() * seen, seen)

    def _combine(self, deviation: Tensor, residual: Tensor) -> Tensor:
        mean = weighted_mean(self._deviation.surprise(deviation), self._residual.surprise(residual))
        return self._combined.surprise(mean)

    def _standardised(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Squashed z, and 1 where a value was there, (total, padded F) each; total is a multiple of the block."""
        n, total = len(rows), -(-len(rows) // BLOCK) * BLOCK
        values = functional.pad(torch.from_numpy(rows.values), (0, 0, 0, total - n)).to(self._device)
        seen = torch.from_numpy((~rows.imputed).astype(np.float32))
        wider = self._width - self._columns
        seen = functional.pad(seen, (0, wider, 0, total - n)).to(self._device)
        return functional.pad(self._scaler.transform(values), (0, wider)), seen

    def _restore(self, z: Tensor) -> Tensor:
        """Reconstruct (total, padded F): in one launch on a GPU, block by block on the CPU."""
        if self._device.type != "cpu" or len(z) <= BLOCK:
            return self._reconstruct(z)
        return torch.cat([self._reconstruct(block) for block in torch.split(z, BLOCK)])


def _row_means(deviations: Tensor, residuals: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Means over the columns that were there, (n,) each."""
    count = seen.sum(1).clamp_min(1.0)
    return deviations.sum(1) / count, residuals.sum(1) / count


def _shared_out(parts: Tensor, whole: Tensor) -> Tensor:
    """Split `whole`, (n,), in proportion to `parts`, (n, padded F)."""
    whole = whole.clamp_min(SURPRISE_MIN)  # (n,) of no surprise there would be nothing to share
    return parts * (whole / parts.sum(1).clamp_min(1e-12)).unsqueeze(1)
