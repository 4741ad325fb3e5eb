"""Habits: how a transaction stands to what its keys usually do, as their history told it when the row was made.

Five scorers, each with a calibration of its own: the amount against what the entity usually pays, the amount against
all amounts, how much and how often the keys pay at the moment, how rarely the entity meets its counterpart, and how
rarely it pays at this hour of the day. What is kept by key is in `features/transactions.py`.
"""

import math
from collections.abc import Mapping
from typing import Final, Self

import numpy as np
import torch
from torch import Tensor

from streamdet.events import (
    AMOUNT,
    COUNTS,
    GAP,
    HOUR,
    KEY_COLUMNS,
    KEYS,
    KNOWN,
    SUMS,
    USUAL,
)
from streamdet.models.scorers import Block, Training, Unfitted

# An amount against the usual one is at least this: so much smaller is as small.
RATIO_MIN: Final = 0.02
# A number would be infinite over what is smaller.
AMOUNT_MIN: Final = 1e-30
# Logarithms of counts and sums have at least this spread: of a key that never had two in an hour, two are not much.
SPREAD_MIN: Final = 0.1
# The spread is laid from the median to this quantile of normal rows.
FAR_PROBABILITY: Final = 0.02
_NATS: Final = math.log(0.5 / FAR_PROBABILITY)
# Of a key, what tells its pace: the gap, counts and sums.
_PACE: Final = KNOWN - GAP


class Habit(Unfitted):
    """The amount as a multiple of what the entity usually pays."""

    def score(self, block: Block) -> Tensor:
        """Times as much, (n,)."""
        history = block.history
        return history[:, AMOUNT] / history[:, KEYS + USUAL].clamp_min(AMOUNT_MIN) + RATIO_MIN

    def parts(self, block: Block) -> Tensor:
        """All of it is the amount's; (n, P + H)."""
        return _of_history(block, {AMOUNT: self.score(block)})


class Level(Unfitted):
    """The amount, whoever pays it."""

    def score(self, block: Block) -> Tensor:
        """In its own units, (n,)."""
        return block.history[:, AMOUNT].contiguous()

    def parts(self, block: Block) -> Tensor:
        """All of it is the amount's; (n, P + H)."""
        return _of_history(block, {AMOUNT: self.score(block)})


class Hour(Unfitted):
    """How rarely the entity pays at this hour of the day."""

    def score(self, block: Block) -> Tensor:
        """Times rarer than if it paid at any hour, (n,)."""
        return block.history[:, HOUR].contiguous()

    def parts(self, block: Block) -> Tensor:
        """All of it is the hour's; (n, P + H)."""
        return _of_history(block, {HOUR: self.score(block)})


class Novelty(Unfitted):
    """How rarely the entity meets its counterpart, of several kinds the rarest."""

    def score(self, block: Block) -> Tensor:
        """Transactions of the entity to each of those with this counterpart, (n,); 0 where there is none."""
        novelties = _novelties(block.history)
        return novelties.amax(1) if novelties.shape[1] else torch.zeros_like(block.there)

    def parts(self, block: Block) -> Tensor:
        """Each counterpart's; (n, P + H)."""
        novelties = _novelties(block.history)
        first = block.history.shape[1] - novelties.shape[1]
        return _of_history(block, {first + k: novelties[:, k] for k in range(novelties.shape[1])})


class Velocity:
    """How short the last gap and how large the counts and sums of the keys are: the strangest of them."""

    def __init__(self, location: Tensor, spread: Tensor) -> None:
        self.location = location  # (keys * 7,) medians of what `_paces` gives
        self.spread = spread  # (keys * 7,) positive

    @classmethod
    def fit(cls, training: Training, previous: Self | None) -> Self:  # noqa: ARG003 - learnt anew
        """Learn what is usual of each."""
        paces = _paces(training.history).cpu().numpy()
        location, far = np.quantile(paces, [0.5, 1.0 - FAR_PROBABILITY], axis=0)
        spread = np.maximum(far - location, SPREAD_MIN) / _NATS
        return cls(torch.tensor(location, dtype=torch.float32), torch.tensor(spread, dtype=torch.float32))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The scorer that gave these tensors."""
        return cls(tensors["location"], tensors["spread"])

    def tensors(self) -> dict[str, Tensor]:
        """What is usual."""
        return {"location": self.location, "spread": self.spread}

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        return type(self)(self.location.to(device), self.spread.to(device))

    def score(self, block: Block) -> Tensor:
        """The largest of the deviations, (n,), each in nats of an exponential distribution."""
        return self._deviations(block).amax(1)

    def parts(self, block: Block) -> Tensor:
        """The deviations at least half as large as the largest; (n, P + H)."""
        deviations = self._deviations(block)
        telling = torch.where(deviations >= 0.5 * deviations.amax(1, keepdim=True), deviations, 0.0)
        firsts = (KEYS + k * KEY_COLUMNS for k in range(keys_of(block.history.shape[1])))
        columns = [first + column for first in firsts for column in range(GAP, KNOWN)]
        return _of_history(block, {column: telling[:, k] for k, column in enumerate(columns)})

    def usual(self, history: Tensor) -> Tensor:
        """What the columns of a history, (n, H), usually are, in their units, (n, H); NaN where it cannot tell.

        The amount is that of the entity's habit, sums go with what the key usually pays; neither has seen the row.
        """
        usual = torch.full_like(history, torch.nan)
        usual[:, AMOUNT] = history[:, KEYS + KNOWN]
        for k, key in enumerate(self.location.view(-1, _PACE)):
            first = KEYS + k * KEY_COLUMNS
            usual[:, first + GAP] = (-key[0]).expm1()
            usual[:, first + COUNTS : first + KNOWN] = key[1:].exp()
            usual[:, first + SUMS : first + KNOWN] *= history[:, [first + KNOWN]]
        return usual

    def _deviations(self, block: Block) -> Tensor:
        return ((_paces(block.history) - self.location) / self.spread).clamp_min(0.0)


def keys_of(columns: int) -> int:
    """How many keys the transactions of a history of so many columns have."""
    return columns // (KEY_COLUMNS + 1)


def _novelties(history: Tensor) -> Tensor:
    """Of each counterpart, (n, keys - 1)."""
    return history[:, KEYS + KEY_COLUMNS * keys_of(history.shape[1]) :]


def _paces(history: Tensor) -> Tensor:
    """The shorter the gap and the larger a count or a sum is, the larger; logarithms, (n, keys * 7).

    Sums count in multiples of what the key usually pays.
    """
    parts = []
    for k in range(keys_of(history.shape[1])):
        own = history[:, KEYS + k * KEY_COLUMNS : KEYS + (k + 1) * KEY_COLUMNS]
        usual = own[:, [USUAL]].clamp_min(AMOUNT_MIN)
        times = own[:, SUMS:KNOWN] / usual
        parts += [
            -own[:, [GAP]].log1p(),
            own[:, COUNTS:SUMS].clamp_min(1.0).log(),
            times.clamp_min(RATIO_MIN).log(),
        ]
    return torch.cat(parts, 1)


def _of_history(block: Block, parts: Mapping[int, Tensor]) -> Tensor:
    """Parts, (n,) each, of columns of the history, behind the others, which have none; (n, P + H)."""
    padded = block.z.shape[1]
    placed = torch.zeros(len(block.z), padded + block.history.shape[1], device=block.z.device)
    for column, part in parts.items():
        placed[:, padded + column] = part
    return placed
