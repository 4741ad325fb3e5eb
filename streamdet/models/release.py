"""A model version as it is given to lanes: with the rows that carry limits over to it, and whether it may alert."""

from dataclasses import dataclass, field

import numpy as np
import torch

from streamdet.events import Floats, Rows, Schema, State
from streamdet.models.version import ModelVersion


@dataclass(frozen=True, eq=False)
class Release:
    """An adopted version. Lanes of all workers of a group get the same ones."""

    version: ModelVersion
    warm: bool  # trained on the whole warm-up: lanes alert by it
    rows: Rows  # recent normal rows that it was not trained on
    anew: bool = False  # learnt from rows of a new state alone: no limit can be carried over to it
    _scores: dict[str, Floats] = field(default_factory=dict)

    def scores_by(self, version: ModelVersion) -> Floats:
        """Scores of the rows by a version, (m,); kept, as all lanes ask for the same ones."""
        if version.id not in self._scores:
            self._scores[version.id] = version.score(self.rows)
        return self._scores[version.id]

    def without_rows(self) -> "Release":
        """What a lane needs to go on judging."""
        return Release(self.version, self.warm, self.rows[:0], self.anew)

    def state(self) -> State:
        """All of it, as arrays."""
        tensors = {name: tensor.numpy() for name, tensor in self.version.tensors().items()}
        return {
            "preset": self.version.preset,
            "tensors": tensors,
            "trained_at": self.version.trained_at,
            "warm": self.warm,
            "anew": self.anew,
            "rows": {"values": self.rows.values, "imputed": self.rows.imputed},
        }

    @classmethod
    def from_state(cls, state: State, schema: Schema, device: torch.device) -> "Release":
        """The release that gave this state, on a device."""
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in state["tensors"].items()}
        version = ModelVersion.from_tensors(
            state["preset"], schema.columns, len(schema.numeric), tensors, state["trained_at"], device
        )
        rows = Rows(np.array(state["rows"]["values"]), np.array(state["rows"]["imputed"]))
        return cls(version, state["warm"], rows, state.get("anew", False))
