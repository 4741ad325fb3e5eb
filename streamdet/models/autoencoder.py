"""A small denoising autoencoder for rows of squashed z, all of it in this file.

Trained to restore rows from noisy ones (Vincent et al., ICML 2008), it learns how columns move together;
the mean absolute residual is the score. Widths follow the number of columns.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

# Rows are padded to a multiple of this in every layer. Matrix kernels then give a row the same bits wherever it
# stands in a block, which the promise of identical replay rests on.
ALIGNMENT = 8


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

    weight: Tensor  # (out, in), both multiples of ALIGNMENT
    bias: Tensor  # (out,)


class Reconstruction:
    """The trained network as a pure function, for scoring only."""

    def __init__(self, network: Autoencoder, device: torch.device) -> None:
        self._layers = [_padded(layer, device) for layer in network.layers()]

    def __call__(self, z: Tensor) -> Tensor:
        """Reconstruct z, (n, padded F), (n, padded F); padding columns are zero in and out."""
        first, second, third, fourth = self._layers
        code = functional.linear(functional.silu(functional.linear(z, *first)), *second)
        return functional.linear(functional.silu(functional.linear(code, *third)), *fourth)


def padded_width(columns: int) -> int:
    """The width of a row after padding."""
    return -(-columns // ALIGNMENT) * ALIGNMENT


def _padded(layer: nn.Linear, device: torch.device) -> Weights:
    rows, columns = padded_width(layer.out_features), padded_width(layer.in_features)
    weight = torch.zeros(rows, columns)
    weight[: layer.out_features, : layer.in_features] = layer.weight.detach()
    bias = torch.zeros(rows)
    bias[: layer.out_features] = layer.bias.detach()
    return Weights(weight.to(device), bias.to(device))
