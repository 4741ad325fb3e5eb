"""A small denoising autoencoder for rows of squashed z (Vincent et al., ICML 2008), and its training.

Trained to restore rows from noisy ones, it learns how columns move together. Widths follow the number of columns.

The gradient is written out rather than recorded by autograd: for a network this small nearly all of a step is the cost
of calling torch, of which this takes much less, and each call less is one less at which a fine-tune and the loop wait
for each other. A test compares it with autograd's.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

STEPS_FIRST = 400
STEPS_FINE_TUNE = 60
MINIBATCH = 256
# Draws are made for so many steps at a time.
DRAWN_TOGETHER = 20
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


@torch.no_grad()
def denoise(
    network: Autoencoder, z: Tensor, seen: Tensor, generator: torch.Generator, *, fine_tune: bool
) -> Autoencoder:
    """Train the network in place on rows z (n, F), where `seen`, (n, F), is 1 or else 0, and return it on the CPU.

    The loss is the Huber loss over all values, which for those that were not seen is 0. Minibatches and noise are drawn
    on the CPU, so that a GPU sees the same ones.
    """
    network = network.to(z.device)
    steps, rate = (STEPS_FINE_TUNE, LEARNING_RATE_FINE_TUNE) if fine_tune else (STEPS_FIRST, LEARNING_RATE)
    optimiser = Adam(list(network.parameters()), rate)
    layers = [_Layer.of(layer) for layer in network.layers()]
    for first in range(0, steps, DRAWN_TOGETHER):
        shape = (min(DRAWN_TOGETHER, steps - first), min(MINIBATCH, len(z)))
        chosen = torch.randint(len(z), shape, generator=generator).to(z.device)
        noise = NOISE * torch.randn((*shape, z.shape[1]), generator=generator).to(z.device)
        wanted = z[chosen]
        for noisy, target, mask in zip(wanted + noise, wanted, seen[chosen], strict=True):
            _backpropagate(layers, noisy, target, mask)
            optimiser.step()
    return network.cpu().eval()


class Adam:
    """Adam (Kingma & Ba, ICLR 2015) with the usual decay rates, over all parameters laid end to end: few, long calls.

    Not `torch.optim`: the first optimiser made there imports torch's compiler, which takes seconds, and a worker that
    has just started cannot spare them.
    """

    def __init__(self, parameters: list[nn.Parameter], rate: float) -> None:
        """From here on the parameters, and their gradients, are views of what is kept here."""
        self._rate = rate
        self._values = torch.cat([p.detach().flatten() for p in parameters])
        self._gradients = torch.zeros_like(self._values)
        self._mean = torch.zeros_like(self._values)
        self._square = torch.zeros_like(self._values)
        self._steps = 0
        sizes = [p.numel() for p in parameters]
        pieces = zip(torch.split(self._values, sizes), torch.split(self._gradients, sizes), strict=True)
        for parameter, (values, gradient) in zip(parameters, pieces, strict=True):
            parameter.data = values.view_as(parameter)
            parameter.grad = gradient.view_as(parameter)

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters against their gradients."""
        self._steps += 1
        rate = self._rate / (1.0 - 0.9**self._steps)
        correction = 1.0 / (1.0 - 0.999**self._steps)
        self._mean.lerp_(self._gradients, 0.1)
        self._square.mul_(0.999).addcmul_(self._gradients, self._gradients, value=0.001)
        self._values.addcdiv_(self._mean, (self._square * correction).sqrt_().add_(1e-8), value=-rate)


class _Layer(NamedTuple):
    """A linear layer and where its gradients go."""

    weight: Tensor  # (out, in)
    bias: Tensor  # (out,)
    weight_gradient: Tensor
    bias_gradient: Tensor

    @classmethod
    def of(cls, layer: nn.Linear) -> "_Layer":
        gradients = layer.weight.grad, layer.bias.grad
        assert gradients[0] is not None and gradients[1] is not None  # noqa: S101, PT018 - Adam has laid them out
        return cls(layer.weight.detach(), layer.bias.detach(), *gradients)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight.T)

    def backward(self, x: Tensor, gradient: Tensor) -> None:
        """Gradients of the weights, from the input x, (n, in), and the gradient of the output, (n, out)."""
        torch.mm(gradient.T, x, out=self.weight_gradient)
        torch.sum(gradient, 0, out=self.bias_gradient)


def _backpropagate(layers: list[_Layer], noisy: Tensor, target: Tensor, mask: Tensor) -> None:
    """Fill in the gradients of the mean Huber loss of a minibatch, (n, F) each."""
    encode_in, encode_out, decode_in, decode_out = layers
    outer, outer_slope = _silu(encode_in.forward(noisy))
    code = encode_out.forward(outer)
    inner, inner_slope = _silu(decode_in.forward(code))
    residual = (decode_out.forward(inner) - target) * mask
    gradient = residual.clamp_(-1.0, 1.0).div_(residual.numel())
    decode_out.backward(inner, gradient)
    gradient = torch.mm(gradient, decode_out.weight).mul_(inner_slope)
    decode_in.backward(code, gradient)
    gradient = torch.mm(gradient, decode_in.weight)
    encode_out.backward(outer, gradient)
    gradient = torch.mm(gradient, encode_out.weight).mul_(outer_slope)
    encode_in.backward(noisy, gradient)


def _silu(x: Tensor) -> tuple[Tensor, Tensor]:
    """SiLU of x and its derivative."""
    gate = torch.sigmoid(x)
    value = x * gate
    return value, torch.addcmul(gate, value, 1.0 - gate)
