"""A model version: scale, scorers, their calibration and feature order, which change together and never apart.

Scoring is a pure function of (model version, row): nothing is learned from it, and on the CPU a row gets the same
bits whatever else is in its batch.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from streamdet.events import NEWEST_COLUMNS, RECENT_STEPS, RESIDUAL, Bools, Floats, Rows
from streamdet.models.calibration import SCORE_MIN, Calibration
from streamdet.models.presets import CALIBRATED, COMPARING, NOT_APART, PRESETS, SCORERS
from streamdet.models.scaling import Scaler
from streamdet.models.scorers import Block, Scorer, mean_of, padded_width
from streamdet.models.scorers.habits import Velocity
from streamdet.models.scorers.reconstruction import ROWS, Reconstruction
from streamdet.threshold.apart import beginning_of_those_apart

# Rows of no surprise at all are explained as if they had this much of it.
SURPRISE_MIN = 1e-6
# A column that is no further from its recent mean than so many spreads has not moved: else one that is stuck among
# others that go up and down would never be named.
MOVES = 1.0
# Where no scorer finds anything, all columns that were there share alike.
EQUAL_SHARE = 1e-9

Row32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Explanation:
    """What the model expected of n rows."""

    expected: Floats  # (n, F), in the units of the features
    share: Floats  # (n, F + H), non-negative, each row sums to 1; H columns of the history of transactions, else none
    usual: Floats  # (n, H) of that history, in its units; NaN where the model does not tell


@dataclass(frozen=True, eq=False)
class Member:
    """A scorer and what its scores mean."""

    scorer: Scorer
    calibration: Calibration

    def to(self, device: torch.device) -> "Member":
        """The same on another device."""
        return Member(self.scorer.to(device), self.calibration.to(device))


@dataclass(frozen=True, eq=False)
class ModelVersion:
    """Everything needed to score a row.

    Rows have the F columns, of which the first `numeric` are numbers, then their recent means: twice as many columns,
    which presets without recent means leave out.
    """

    preset: str
    columns: tuple[str, ...]
    numeric: int
    scaler: Scaler
    members: Mapping[str, Member]  # by name
    combined: Calibration
    trained_at: int  # events seen when the training rows were taken
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def width(self) -> int:
        """How many of the columns of a row are used."""
        return row_width(self.preset, len(self.columns), self.numeric)

    @cached_property
    def id(self) -> str:
        """Twelve hexadecimal digits that name exactly these numbers."""
        digest = hashlib.sha256("\n".join((self.preset, str(self.numeric), *self.columns)).encode())
        for name, tensor in sorted(self.tensors().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()[:12]

    def tensors(self) -> dict[str, Tensor]:
        """All numbers by name, on the CPU; `from_tensors` takes them back."""
        named = {"scaler.location": self.scaler.location, "scaler.spread": self.scaler.spread}
        for name, member in self.members.items():
            named |= {f"{name}.{key}": value for key, value in member.scorer.tensors().items()}
            named |= _numbers(f"{name}.calibration", member.calibration)
        named |= _numbers("combined", self.combined)
        return {name: value.detach().cpu().contiguous() for name, value in named.items()}

    @classmethod
    def from_tensors(
        cls,
        preset: str,
        columns: tuple[str, ...],
        numeric: int,
        tensors: dict[str, Tensor],
        trained_at: int,
        device: torch.device,
    ) -> "ModelVersion":
        """The version that gave these tensors."""
        members = {}
        for name in PRESETS[preset].weights:
            prefix, calibration = f"{name}.", f"{name}.calibration"
            own = {
                key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)
            }
            scorer = SCORERS[name].from_tensors(
                {key: tensor for key, tensor in own.items() if not key.startswith("calibration.")}
            )
            members[name] = Member(scorer, _calibration(calibration, tensors, pareto=name not in CALIBRATED))
        return cls(
            preset,
            columns,
            numeric,
            Scaler(tensors["scaler.location"], tensors["scaler.spread"]),
            members,
            _calibration("combined", tensors, pareto=False),
            trained_at,
            device,
        )

    def score(self, rows: Rows) -> Floats:
        """Surprise of each row in nats, (n,)."""
        if not len(rows):
            return np.empty(0)
        return self._scoring.surprise(rows).astype(np.float64)

    def raw_scores(self, rows: Rows) -> dict[str, Floats]:
        """What each scorer says of each row before calibration, (n,), by name."""
        return {name: scores.astype(np.float64) for name, scores in self._scoring.raw(rows).items()}

    def apart(self, raw_scores: Mapping[str, Floats]) -> Bools:
        """Which rows, in the order of their arrival, lie apart from the others and come one by one, (n,).

        By a weighted geometric mean of their raw scores: together these tell more than each of them, and a calibration
        that has seen such rows takes them for usual.
        """
        weights = PRESETS[self.preset].weights
        n = len(next(iter(raw_scores.values())))
        together = np.zeros(n)
        for name, scores in raw_scores.items() if n else ():
            if name not in NOT_APART:
                nats = np.log(np.maximum(scores, SCORE_MIN))
                together += weights[name] * (nats - np.median(nats))
        scores = np.exp(together)
        return scores >= beginning_of_those_apart(scores)

    def unexplained(self, rows: Rows) -> float:
        """Typical residual as a share of typical deviation: free of the scale, which differs between versions."""
        return self._scoring.unexplained(rows)

    def explain(self, rows: Rows) -> Explanation:
        """Expected value and share of the surprise per column."""
        return self._scoring.explain(rows)

    def newest(self, rows: Rows) -> Row32:
        """What rows say of the newest ones before each, (n, NEWEST_COLUMNS)."""
        first = len(self.columns) + 2 * self.numeric
        return rows.values[:, first : first + NEWEST_COLUMNS]

    @property
    def reconstruction(self) -> Reconstruction:
        """The network, which every preset has."""
        scorer = self.members["reconstruction"].scorer
        assert isinstance(scorer, Reconstruction)  # noqa: S101
        return scorer

    @cached_property
    def _scoring(self) -> "_Scoring":
        return _Scoring(self)


def row_width(preset: str, columns: int, numeric: int) -> int:
    """How many columns of a row a preset uses, of `columns` features and the recent means of the numeric ones."""
    return columns + (2 * numeric if PRESETS[preset].recent else 0)


class _Scoring:
    """A version laid out on its device."""

    def __init__(self, version: ModelVersion) -> None:
        self._device = version.device
        self._columns, self._numeric = len(version.columns), version.numeric
        self._used = version.width
        self._padded = padded_width(version.width)
        self._newest = len(version.columns) + 2 * version.numeric  # where they begin
        self._history = self._newest + NEWEST_COLUMNS
        self._preset = PRESETS[version.preset]
        self._scaler = version.scaler.to(version.device)
        self._members = {name: member.to(version.device) for name, member in version.members.items()}
        self._combined = version.combined.to(version.device)
        self._network = version.reconstruction.to(version.device)

    @torch.inference_mode()
    def surprise(self, rows: Rows) -> Row32:
        """Calibrated and combined, (n,); see `ModelVersion.score`."""
        block = self._block(rows)
        surprises = {
            name: member.calibration.surprise(member.scorer.score(block))
            for name, member in self._members.items()
        }
        together = self._preset.combine(surprises, block.newest)
        scores: Row32 = self._combined.surprise(together)[: len(rows)].cpu().numpy()
        return scores

    @torch.inference_mode()
    def raw(self, rows: Rows) -> dict[str, Row32]:
        """Before calibration, (n,) each; see `ModelVersion.raw_scores`."""
        block = self._block(rows)
        return {
            name: member.scorer.score(block)[: len(rows)].cpu().numpy()
            for name, member in self._members.items()
        }

    @torch.inference_mode()
    def unexplained(self, rows: Rows) -> float:
        """See `ModelVersion.unexplained`."""
        block, n = self._block(rows), len(rows)
        residual = self._network.score(block)[:n].median()
        deviation = ((block.z.abs() * block.seen).sum(1) / block.there)[:n].median()
        return float(residual.clamp_min(1e-9) / deviation.clamp_min(1e-9))

    @torch.inference_mode()
    def explain(self, rows: Rows) -> Explanation:
        """Shares weigh the scorers that can tell by their surprise; see `ModelVersion.explain`."""
        block, n = self._block(rows), len(rows)
        velocity = self._members["velocity"].scorer if "velocity" in self._members else None
        history = block.history if isinstance(velocity, Velocity) else block.history[:, :0]
        moved = self._moved(block)
        whole = functional.pad(EQUAL_SHARE * block.seen[:, : self._columns], (0, history.shape[1]))
        for name, member in self._members.items():
            parts = member.scorer.parts(block)
            if parts is None:
                continue
            # One that goes by the history has parts of that too.
            alone = parts.shape[1] == self._padded
            scores = mean_of(parts, block) if alone else member.scorer.score(block)
            telling = self._preset.telling(name, member.calibration.surprise(scores))
            of_columns = self._folded(parts)
            if name in COMPARING:
                of_columns = of_columns * moved.clamp_min(MOVES)
            told = of_columns if alone else torch.cat([of_columns, parts[:, self._padded :]], 1)
            whole[:, : told.shape[1]] += self._preset.weights[name] * _shared_out(told, telling)
        share = whole / whole.sum(1, keepdim=True).clamp_min(1e-12)
        # What the network restores for a row far outside of what it knows is far out itself: the expectation is
        # held within the range of normal rows.
        restored = self._network.restore(block.z)[:, : self._used].clamp(-2.0, 2.0)
        expected = self._scaler.inverse(restored)[:n, : self._columns].cpu().numpy().astype(np.float64)
        if "expectation" in self._members:
            residual = rows.values[:, self._history + RESIDUAL].astype(np.float64)
            expected[:, 0] = rows.values[:, 0] - residual
        usual = velocity.usual(history) if isinstance(velocity, Velocity) else history
        return Explanation(
            expected, share[:n].cpu().numpy().astype(np.float64), usual[:n].cpu().numpy().astype(np.float64)
        )

    def _folded(self, parts: Tensor) -> Tensor:
        """Parts of the columns, (n, F), with those of the faster recent means added to their number's.

        A mean counts as much as its number at most, and the slower one not at all: they tell of the rows before too,
        and of a gross value among these for long.
        """
        own = parts[:, : self._columns].clone()
        if self._preset.recent:
            numbers, fast = own[:, : self._numeric], slice(self._columns, self._columns + self._numeric)
            numbers += torch.minimum(numbers, parts[:, fast])
        return own

    def _moved(self, block: Block) -> Tensor:
        """How far each column is from its recent mean before the row, else from typical values, in spreads, (n, F)."""
        before = self._scaler.location.repeat(len(block.values), 1)
        if self._preset.recent:
            numeric, slow = self._numeric, self._columns + self._numeric
            mean, step = block.values[:, slow : slow + numeric], RECENT_STEPS[-1]
            before[:, :numeric] = (mean - step * block.values[:, :numeric]) / (1.0 - step)
        before = self._scaler.transform(before)
        return (block.z[:, : self._used] - before)[:, : self._columns].abs()

    def _block(self, rows: Rows) -> Block:
        """Rows as scorers see them; on the CPU their number is a multiple of what the network takes at a time."""
        n, total = len(rows), -(-len(rows) // ROWS) * ROWS
        wider = (0, self._padded - self._used, 0, total - n)
        raw = functional.pad(torch.from_numpy(rows.values[:, : self._used]), (0, 0, 0, total - n)).to(
            self._device
        )
        seen = torch.from_numpy((~rows.imputed[:, : self._used]).astype(np.float32))
        seen = functional.pad(seen, wider).to(self._device)
        padding = (0, self._padded - self._used)
        z = functional.pad(self._scaler.transform(raw), padding)
        beside = torch.from_numpy(rows.values[:, self._newest :])
        beside = functional.pad(beside, (0, 0, 0, total - n)).to(self._device)
        newest, history = beside[:, :NEWEST_COLUMNS], beside[:, NEWEST_COLUMNS:]
        return Block(functional.pad(raw, padding), z, seen, seen.sum(1).clamp_min(1.0), newest, history, n)


def _numbers(name: str, calibration: Calibration) -> dict[str, Tensor]:
    return {f"{name}.knots": calibration.knots, f"{name}.tail_scale": calibration.tail_scale}


def _calibration(name: str, tensors: Mapping[str, Tensor], *, pareto: bool) -> Calibration:
    return Calibration(tensors[f"{name}.knots"], tensors[f"{name}.tail_scale"], pareto)


def _shared_out(parts: Tensor, whole: Tensor) -> Tensor:
    """Split `whole`, (n,), in proportion to `parts`, (n, P)."""
    whole = whole.clamp_min(SURPRISE_MIN)  # (n,) of no surprise there would be nothing to share
    return parts * (whole / parts.sum(1).clamp_min(1e-12)).unsqueeze(1)
