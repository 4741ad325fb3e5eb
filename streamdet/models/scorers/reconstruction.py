"""A small denoising autoencoder for rows of squashed z, all of it in this file.

Trained to restore rows from noisy ones (Vincent et al., ICML 2008), it learns how columns move together;
the mean absolute residual is the score. Widths follow the number of columns.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamdet.models.scorers import Block, Training, mean_of, padded_width

# On the CPU rows are scored in blocks of exactly this many, the last one padded: kernels are chosen by shape,
# and another shape may round differently.
ROWS = 256

STEPS_FIRST = 400
STEPS_FINE_TUNE = 60
MINIBATCH = 256
LEARNING_RATE = 3e-3
LEARNING_RATE_FINE_TUNE = 1e-3
NOISE = 0.1


class Autoencoder(nn.Module):
    """F -> hidden -> bottleneck -> hidden -> F, SiLU between, linear bottleneck and output."""

    def __init__(self, columns: int, generator: torch.Generator) -> None:
        super().__init__()
        hidden = min(128, max(8, 2 * columns))
        bottleneck = min(24, max(2, math.ceil(columns / 3)))
        self.encode_in = nn.Linear(columns, hidden)
        self.encode_out = nn.Linear(hidden, bottleneck)
        self.decode_in = nn.Linear(bottleneck, hidden)
        self.decode_out = nn.Linear(hidden, columns)
        for layer in self.layers():
            bound = 0.8 * math.sqrt(3.0 / layer.in_features)
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.zeros_(layer.bias)

    def layers(self) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]:
        """The four layers, input first."""
        return self.encode_in, self.encode_out, self.decode_in, self.decode_out

    def forward(self, z: Tensor) -> Tensor:
        """Reconstruct z (n, F), (n, F)."""
        code = self.encode_out(functional.silu(self.encode_in(z)))  # (n, bottleneck)
        restored: Tensor = self.decode_out(functional.silu(self.decode_in(code)))
        return restored


class Weights(NamedTuple):
    """One layer, padded for scoring."""

    weight: Tensor  # (out, in), both padded
    bias: Tensor  # (out,)


class Reconstruction:
    """Mean |z - z'| to what the autoencoder makes of the row."""

    def __init__(self, network: Autoencoder, device: torch.device | None = None) -> None:
        self.network = network
        self._layers = [_padded(layer, device or torch.device("cpu")) for layer in network.layers()]

    @classmethod
    def fit(cls, training: Training, previous: Self | None) -> Self:
        """Learn to restore the rows, going on from the weights of `previous`."""
        network = Autoencoder(training.z.shape[1], training.generator)
        if previous is not None:
            network.load_state_dict(previous.network.state_dict())
        return cls(_denoised(network, training, fine_tune=previous is not None))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The scorer that gave these tensors."""
        network = Autoencoder(tensors["encode_in.weight"].shape[1], torch.Generator())
        network.load_state_dict(dict(tensors))
        return cls(network)

    def tensors(self) -> dict[str, Tensor]:
        """The weights, not padded."""
        return self.network.state_dict()

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        return type(self)(self.network, device)

    def score(self, block: Block) -> Tensor:
        """Mean absolute residual of each row, (n,)."""
        return mean_of(self.parts(block), block)

    def parts(self, block: Block) -> Tensor:
        """Absolute residuals, (n, P)."""
        return (block.z - self.restore(block.z)).abs() * block.seen

    def restore(self, z: Tensor) -> Tensor:
        """What the network makes of rows (n, P), (n, P): in one launch on a GPU, `ROWS` at a time on the CPU.

        On the CPU n is a multiple of `ROWS`.
        """
        if z.device.type != "cpu" or len(z) <= ROWS:
            return self._run(z)
        return torch.cat([self._run(block) for block in torch.split(z, ROWS)])

    def _run(self, z: Tensor) -> Tensor:
        """Padding columns are zero in and out."""
        first, second, third, fourth = self._layers
        code = functional.linear(functional.silu(functional.linear(z, *first)), *second)
        return functional.linear(functional.silu(functional.linear(code, *third)), *fourth)


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


def warm_up(columns: int) -> None:
    """Take one step of training: the first backward pass imports parts of torch."""
    network = Autoencoder(columns, torch.Generator())
    optimiser = Adam(list(network.parameters()), LEARNING_RATE)
    loss = network(torch.zeros(2, columns)).square().mean()
    loss.backward()
    optimiser.step()


def _denoised(network: Autoencoder, training: Training, *, fine_tune: bool) -> Autoencoder:
    """Denoise minibatches; noise and sampling are drawn on the CPU, so that a GPU sees the same ones."""
    z, generator, device = training.z, training.generator, training.z.device
    network = network.to(device)
    optimiser = Adam(list(network.parameters()), LEARNING_RATE_FINE_TUNE if fine_tune else LEARNING_RATE)
    for _ in range(STEPS_FINE_TUNE if fine_tune else STEPS_FIRST):
        chosen = torch.randint(len(z), (min(MINIBATCH, len(z)),), generator=generator).to(device)
        target, mask = z[chosen], training.seen[chosen]
        noise = NOISE * torch.randn(target.shape, generator=generator).to(device)
        loss = functional.smooth_l1_loss(network(target + noise) * mask, target * mask)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return network.cpu().eval()


def _padded(layer: nn.Linear, device: torch.device) -> Weights:
    rows, columns = padded_width(layer.out_features), padded_width(layer.in_features)
    weight = torch.zeros(rows, columns)
    weight[: layer.out_features, : layer.in_features] = layer.weight.detach()
    bias = torch.zeros(rows)
    bias[: layer.out_features] = layer.bias.detach()
    return Weights(weight.to(device), bias.to(device))
