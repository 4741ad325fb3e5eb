"""Training: from a snapshot of normal rows to a candidate model version.

A pure function of the snapshot, the version before it and the seed, so that a replay trains the same model. Rows
come in two parts: those to learn from, and held-out ones on which scores are calibrated, as a model knows
its training rows too well.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from streamdet.events import Floats, Rows
from streamdet.models.autoencoder import Autoencoder
from streamdet.models.calibration import Calibration
from streamdet.models.scaling import Scaler
from streamdet.models.version import ModelVersion, weighted_mean

STEPS_FIRST = 400
STEPS_FINE_TUNE = 60
MINIBATCH = 256
LEARNING_RATE = 3e-3
LEARNING_RATE_FINE_TUNE = 1e-3
NOISE = 0.1
# A refit may not see less than this share of the spread of the warm-up.
SPREAD_FLOOR = 0.5
# During the warm-up nobody has judged the rows: this share, the most deviating ones, is not learnt.
WARMUP_TRIM = 0.02


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What a training run sees."""

    training: Rows
    held_out: Rows
    spread_floor: Floats | None  # (F,)
    trim: float  # share of training rows to leave out
    at: int  # events seen


class Adam:
    """Adam (Kingma & Ba, ICLR 2015) with the usual decay rates.

    Not `torch.optim`: the first optimiser made there imports torch's compiler, which takes seconds, and a worker that
    has just started cannot spare them.
    """

    def __init__(self, parameters: list[Tensor], rate: float) -> None:
        self._parameters = parameters
        self._rate = rate
        self._mean = [torch.zeros_like(p) for p in parameters]
        self._square = [torch.zeros_like(p) for p in parameters]
        self._steps = 0

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters against their gradients, which are used up."""
        self._steps += 1
        rate = self._rate / (1.0 - 0.9**self._steps)
        correction = 1.0 - 0.999**self._steps
        for parameter, mean, square in zip(self._parameters, self._mean, self._square, strict=True):
            gradient = parameter.grad
            assert gradient is not None  # noqa: S101 - every parameter takes part in the loss
            mean.lerp_(gradient, 0.1)
            square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            parameter.addcdiv_(mean, (square / correction).sqrt_().add_(1e-8), value=-rate)
            parameter.grad = None


def train(
    snapshot: Snapshot,
    previous: ModelVersion | None,
    columns: tuple[str, ...],
    seed: int,
    device: torch.device,
) -> ModelVersion:
    """Fit scale and network, then calibrate on the held-out rows.

    Starts from the weights of `previous` where there is one. Deterministic on the CPU.
    """
    rows = snapshot.training
    scaler = Scaler.fit(rows.values.astype(np.float64), snapshot.spread_floor)
    if snapshot.trim > 0:
        rows = _without_most_deviating(rows, scaler, snapshot.trim)
        scaler = Scaler.fit(rows.values.astype(np.float64), snapshot.spread_floor)
    generator = torch.Generator().manual_seed((seed * 1_000_003 + snapshot.at) % 2**63)
    network = Autoencoder(len(columns), generator)
    if previous is not None:
        network.load_state_dict(previous.network.state_dict())
    network = _fit(network, rows, scaler.to(device), generator, fine_tune=previous is not None, device=device)
    return _calibrated(columns, scaler, network, snapshot, device)


def warm_up(rows: Rows) -> None:
    """Take one step of training on a few rows: the first backward pass imports parts of torch."""
    network = Autoencoder(rows.values.shape[1], torch.Generator())
    optimiser = Adam(list(network.parameters()), LEARNING_RATE)
    loss = network(torch.from_numpy(rows.values)).square().mean()
    loss.backward()
    optimiser.step()


def spread_floor(first: ModelVersion) -> Floats:
    """The least spread of every later version, (F,)."""
    return SPREAD_FLOOR * first.scaler.spread.numpy().astype(np.float64)


def _without_most_deviating(rows: Rows, scaler: Scaler, share: float) -> Rows:
    deviation = scaler.transform(torch.from_numpy(rows.values)).abs().mean(1).numpy()
    keep = np.argsort(deviation, kind="stable")[: len(rows) - int(share * len(rows))]
    return rows[np.sort(keep)]


def _fit(
    network: Autoencoder,
    rows: Rows,
    scaler: Scaler,
    generator: torch.Generator,
    *,
    fine_tune: bool,
    device: torch.device,
) -> Autoencoder:
    """Denoise minibatches; noise and sampling are drawn on the CPU, so that a GPU sees the same ones."""
    z = scaler.transform(torch.from_numpy(rows.values).to(device))  # (n, F)
    seen = torch.from_numpy(~rows.imputed).to(device)
    network = network.to(device)
    optimiser = Adam(list(network.parameters()), LEARNING_RATE_FINE_TUNE if fine_tune else LEARNING_RATE)
    for _ in range(STEPS_FINE_TUNE if fine_tune else STEPS_FIRST):
        chosen = torch.randint(len(z), (min(MINIBATCH, len(z)),), generator=generator).to(device)
        target, mask = z[chosen], seen[chosen]
        noise = NOISE * torch.randn(target.shape, generator=generator).to(device)
        loss = _masked_loss(network(target + noise), target, mask)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return network.cpu().eval()


def _masked_loss(restored: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    return functional.smooth_l1_loss(restored * mask, target * mask)


def _calibrated(
    columns: tuple[str, ...], scaler: Scaler, network: Autoencoder, snapshot: Snapshot, device: torch.device
) -> ModelVersion:
    """Fit the three calibrations, each on the scores that the one before it gives."""
    flat = Calibration.fit(np.ones(1), pareto=True)
    version = ModelVersion(columns, scaler, network, flat, flat, flat, snapshot.at, device)
    deviation, residual = version.raw_scores(snapshot.held_out)
    by_deviation = Calibration.fit(deviation, pareto=True)
    by_residual = Calibration.fit(residual, pareto=True)
    mean = weighted_mean(
        by_deviation.surprise(torch.from_numpy(deviation).float()),
        by_residual.surprise(torch.from_numpy(residual).float()),
    )
    combined = Calibration.fit(mean.numpy().astype(np.float64), pareto=False)
    return ModelVersion(columns, scaler, network, by_deviation, by_residual, combined, snapshot.at, device)
