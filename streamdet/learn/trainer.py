"""Training: from a snapshot of normal rows to a candidate model version.

A pure function of the snapshot, the version before it and the seed, so that a replay trains the same model. Rows
come in two parts: those to learn from, and held-out ones on which scores are calibrated, as a model knows
its training rows too well.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from streamdet.events import NEWEST_COLUMNS, Floats, Rows, Schema
from streamdet.models.calibration import Calibration
from streamdet.models.presets import CALIBRATED, PRESETS, SCORERS, preset_of
from streamdet.models.scaling import Scaler
from streamdet.models.scorers import Training
from streamdet.models.version import Member, ModelVersion, row_width

# A refit may not see less than this share of the spread of the warm-up.
SPREAD_FLOOR = 0.5
# During the warm-up nobody has judged the rows: this share, the most deviating ones, is not learnt. With less,
# anomalies that are mixed into everything cost more (`scripts/bench quality --families mixed,mixed-clean`); with more,
# normal rows that were left out are told as anomalies soon after.
WARMUP_TRIM = 0.04


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What a training run sees."""

    training: Rows
    held_out: Rows
    spread_floor: Floats | None  # (W,)
    trim: float  # share of training rows to leave out
    at: int  # events seen


def train(
    snapshot: Snapshot,
    previous: ModelVersion | None,
    schema: Schema,
    preset: str | None,
    seed: int,
    device: torch.device,
) -> ModelVersion:
    """Fit scale and scorers, then calibrate on the held-out rows. Without a preset the rows tell which.

    Starts from the weights of `previous` where there is one of the same preset. Deterministic on the CPU.
    """
    columns, numeric = schema.columns, len(schema.numeric)
    if preset is None:
        preset = (
            "transactions" if schema.transactions else preset_of(snapshot.training, len(columns), numeric)
        )
    if previous is not None and previous.preset != preset:
        previous = None
    used = row_width(preset, len(columns), numeric)
    rows, floor = _narrowed(snapshot.training, used), snapshot.spread_floor
    history = snapshot.training.values[:, len(columns) + 2 * numeric + NEWEST_COLUMNS :]
    floor = None if floor is None else floor[:used]
    scaler = Scaler.fit(rows.values.astype(np.float64), floor)
    if snapshot.trim > 0:
        kept = _least_deviating(rows, scaler, snapshot.trim)
        rows, history = rows[kept], history[kept]
        scaler = Scaler.fit(rows.values.astype(np.float64), floor)
    values = torch.from_numpy(rows.values).to(device)
    training = Training(
        values,
        scaler.to(device).transform(values),
        torch.from_numpy((~rows.imputed).astype(np.float32)).to(device),
        torch.Generator().manual_seed((seed * 1_000_003 + snapshot.at) % 2**63),
        torch.from_numpy(np.ascontiguousarray(history)).to(device),
    )
    flat = Calibration.fit(np.ones(1), pareto=True)
    members = {}
    for name in PRESETS[preset].weights:
        before = None if previous is None else previous.members[name].scorer
        members[name] = Member(SCORERS[name].fit(training, before), flat)
    version = ModelVersion(preset, columns, numeric, scaler, members, flat, snapshot.at, device)
    # A model of rows that nobody has judged, or of a new state, has no scale that could be kept.
    return _calibrated(version, snapshot.held_out, previous if snapshot.trim == 0 else None)


def spread_floor(rows: Rows) -> Floats:
    """The least spread of every later version, (W,), by the rows that the first one was trained on."""
    return SPREAD_FLOOR * Scaler.fit(rows.values.astype(np.float64), None).spread.numpy().astype(np.float64)


def _narrowed(rows: Rows, used: int) -> Rows:
    return Rows(np.ascontiguousarray(rows.values[:, :used]), np.ascontiguousarray(rows.imputed[:, :used]))


def _least_deviating(rows: Rows, scaler: Scaler, share: float) -> NDArray[np.intp]:
    """Which rows are left without this share, in order."""
    deviation = scaler.transform(torch.from_numpy(rows.values)).abs().mean(1).numpy()
    keep = np.argsort(deviation, kind="stable")[: len(rows) - int(share * len(rows))]
    return np.sort(keep)


def _calibrated(version: ModelVersion, held_out: Rows, previous: ModelVersion | None) -> ModelVersion:
    """Fit the calibrations, that of the combination on what those of the scorers give.

    Without the rows that lie apart: a twentieth of anomalies among the references would make every later one as usual
    as that. The scale of the combination follows that of `previous`, as far as the preset keeps it.
    """
    raw_scores = version.raw_scores(held_out)
    among = ~version.apart(raw_scores)
    preset, members, surprises = PRESETS[version.preset], {}, {}
    for name, all_scores in raw_scores.items():
        scores = all_scores[among]
        calibration = Calibration.none() if name in CALIBRATED else Calibration.fit(scores, pareto=True)
        members[name] = Member(version.members[name].scorer, calibration)
        surprises[name] = calibration.surprise(torch.from_numpy(scores).float())
    combined = Calibration.none()
    if not preset.strongest:
        newest = torch.from_numpy(version.newest(held_out[among]))
        together = preset.combine(surprises, newest).numpy()
        combined = Calibration.fit(together.astype(np.float64), pareto=False)
    calibrated = replace(version, members=members, combined=combined)
    if previous is None or preset.renewal == 1.0:
        return calibrated
    kept = combined.drawn_towards(previous.score(held_out), calibrated.score(held_out), preset.renewal)
    return replace(calibrated, combined=kept)
