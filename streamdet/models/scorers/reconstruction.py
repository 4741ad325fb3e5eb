"""Reconstruction: what the autoencoder cannot restore of a row, as its columns do not move together as they used to."""

from collections.abc import Mapping
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamdet.models.autoencoder import Autoencoder, denoise
from streamdet.models.scorers import Block, Training, mean_of, padded_width

# On the CPU rows are scored in blocks of exactly this many, the last one padded: kernels are chosen by shape,
# and another shape may round differently.
ROWS = 256


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
        fine_tune = previous is not None
        return cls(denoise(network, training.z, training.seen, training.generator, fine_tune=fine_tune))

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


def _padded(layer: nn.Linear, device: torch.device) -> Weights:
    rows, columns = padded_width(layer.out_features), padded_width(layer.in_features)
    weight = torch.zeros(rows, columns)
    weight[: layer.out_features, : layer.in_features] = layer.weight.detach()
    bias = torch.zeros(rows)
    bias[: layer.out_features] = layer.bias.detach()
    return Weights(weight.to(device), bias.to(device))
