"""The detector in the benchmark: a replay with the default configuration, a preset, or other weights of its scorers."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from bench_common import Never
from pyarrow import parquet
from quality_peers import Scored
from quality_stream import Stream

from streamdet.config import Settings
from streamdet.events import Bools, Floats, Mode
from streamdet.models.presets import PRESETS, SCORERS, Preset
from streamdet.replaying import Replay, replay

OURS: Final = "streamdet"
ONLY: Final = "only-"
WITHOUT: Final = "without-"
# What the detector finds most streams of a family to be; of those that are not named, records.
PRESET_OF: Final = {
    "smd": "sensors",
    "asd": "sensors",
    "nasa": "sensors",
    "skab": "sensors",
    "nab": "metric",
    "cards": "transactions",
}


@dataclass(frozen=True, eq=False)
class Judged:
    """The verdicts of a replay of n rows."""

    raw: Floats  # (n,), 0 where there was no model yet
    score: Floats  # (n,) raw in limits
    flagged: Bools  # (n,)
    ready: Bools  # (n,) after the warm-up
    seconds: float


@dataclass(frozen=True)
class Streamdet:
    """A replay with the default configuration, with a preset, or with one scorer alone or left out.

    Its name says which: `streamdet`, `streamdet:records`, `streamdet:only-forest`, `streamdet:without-forest`.
    """

    name: str
    preset: str | None = None
    only: str | None = None
    without: str | None = None
    seeded: bool = True
    rival: bool = False

    @classmethod
    def called(cls, name: str) -> "Streamdet | None":
        """The one with that name; None if there is none."""
        first, _, variant = name.partition(":")
        if first != OURS or (":" in name and not variant):
            return None
        if variant.startswith(ONLY):
            scorer = variant.removeprefix(ONLY)
            return cls(name, only=scorer) if scorer in SCORERS else None
        if variant.startswith(WITHOUT):
            scorer = variant.removeprefix(WITHOUT)
            return cls(name, without=scorer) if scorer in SCORERS else None
        return cls(name, variant or None) if variant in ("", *PRESETS) else None

    def suits(self, stream: Stream) -> bool:
        """Every stream suits; a scorer alone or left out, those of which the preset has it."""
        scorer = self.only or self.without
        return scorer is None or scorer in PRESETS[PRESET_OF.get(stream.family, "records")].weights

    def run(self, stream: Stream, seed: int) -> Scored:
        """Scores and flags of all rows."""
        judged = self.replayed(stream, seed)
        return Scored(judged.raw, judged.flagged, judged.seconds, judged.score)

    def replayed(self, stream: Stream, seed: int, alert_rate: float | None = None) -> Judged:
        """Verdicts of all rows, as they stand in the score file."""
        with tempfile.TemporaryDirectory() as folder:
            recording, scores = Path(folder) / "stream.csv", Path(folder) / "scores.parquet"
            stream.write(recording)
            what = Replay([recording], scores=scores)
            with _altered(self.only, self.without):
                summary = replay(what, self._settings(stream, seed, alert_rate), Never())
            table = parquet.read_table(scores, columns=["raw_score", "score", "mode", "flagged"])
        if len(table) != len(stream):
            raise SystemExit(f"{stream.name}: {len(table)} of {len(stream)} rows were judged")
        mode = table["mode"].to_numpy()
        return Judged(
            raw=np.nan_to_num(table["raw_score"].to_numpy(), nan=0.0),
            score=np.nan_to_num(table["score"].to_numpy(), nan=0.0),
            flagged=table["flagged"].to_numpy() == 1,
            ready=np.isin(mode, [Mode.READY.label, Mode.ENTITY.label]),
            seconds=summary["seconds"],
        )

    def _settings(self, stream: Stream, seed: int, alert_rate: float | None) -> Settings:
        tree: dict[str, Any] = {"model": {"seed": seed}}
        if self.preset is not None:
            tree["model"]["preset"] = self.preset
        if alert_rate is not None:
            tree["limit"] = {"alert_rate": alert_rate}
        if stream.entity is not None:
            fields = _judged_fields(stream, self.preset)
            tree["input"] = {"timestamp": "timestamp", "entity": stream.entity, **fields}
        return Settings.model_validate(tree)


@contextlib.contextmanager
def _altered(only: str | None, without: str | None) -> Iterator[None]:
    """Weigh the scorers of all presets so while the block runs."""
    before = dict(PRESETS)
    for name, preset in before.items():
        if (only or without) in preset.weights:
            PRESETS[name] = _alone(preset, only) if only else _left_out(preset, without)
    try:
        yield
    finally:
        PRESETS.update(before)


def _alone(preset: Preset, scorer: str) -> Preset:
    weights = {name: float(name == scorer) for name in preset.weights}
    return Preset(weights, preset.recent)


def _left_out(preset: Preset, scorer: str | None) -> Preset:
    """The others keep their proportions; one that no weight is left for counts nowhere."""
    rest = sum(weight for name, weight in preset.weights.items() if name != scorer)
    whole = sum(preset.weights.values())
    share = 1.0 if preset.strongest or preset.beyond else whole / rest
    return preset._replace(
        weights={name: 0.0 if name == scorer else share * weight for name, weight in preset.weights.items()},
        drifting=None if scorer == preset.drifting else preset.drifting,
    )


def _judged_fields(stream: Stream, preset: str | None) -> dict[str, Any]:
    """What a user would name; of transactions only what comes with each, nothing that was made of earlier ones."""
    if stream.amount is None or preset not in (None, "transactions"):
        return {"features": {"numeric": stream.columns, "categorical": tuple(stream.categories)}}
    numeric = tuple(name for name in stream.columns if name not in stream.derived)
    categorical = tuple(name for name in stream.categories if name not in stream.counterparts)
    return {
        "features": {"numeric": numeric, "categorical": categorical},
        "transactions": {"amount": stream.amount, "counterparts": stream.counterparts},
    }
