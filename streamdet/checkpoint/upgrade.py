"""Checkpoints of format 1, which version 0.1 wrote: one file for all that a worker had, straight in the folder.

They are read so that the lanes go on where they were. Version 0.1 did not keep the rows that carry limits over
to a version, nor which version was adopted where: lanes have the version in force, and an empty timeline. Nor did it
keep recent means beside each number, but for one: that one, and the numbers themselves, stand in for them. A metric
begins its history anew, and no rows were in quarantine.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from streamdet.checkpoint.compact import Array
from streamdet.checkpoint.format import RefusedError, read_safetensors
from streamdet.errors import CheckpointError
from streamdet.events import DISTANCE, NEWEST_COLUMNS, LaneId, Schema, State

log = logging.getLogger(__name__)

_NAME = re.compile(r"[0-9]{12}\.checkpoint\.safetensors")
_FORMAT = "1"
_ARRAY = "$array"


class Upgraded(NamedTuple):
    """What one worker of version 0.1 had, as this version keeps it."""

    name: str
    group_id: str
    schema: State
    learner: State
    lanes: Mapping[LaneId, State]


def upgraded(folder: Path, warmup: int) -> Upgraded | None:
    """The newest sound checkpoint of format 1 in a folder; None if it holds none at all.

    A version trained on `warmup` events or more may alert.

    Raises:
        CheckpointError: there are some, and none is sound.
    """
    paths = sorted(path for path in folder.glob("*") if _NAME.fullmatch(path.name))
    for path in reversed(paths):
        try:
            return _upgraded(path, warmup)
        except RefusedError as error:
            log.warning("checkpoint refused: %s", error)
    if paths:
        raise CheckpointError(
            f"{folder} was written by version 0.1 (format {_FORMAT}), and none of its {len(paths)} checkpoints can be "
            "used (see above): restore one from a backup, or move them away to start cold"
        )
    return None


def _upgraded(path: Path, warmup: int) -> Upgraded:
    saved = _read(path)
    try:
        schema = Schema.from_state(saved["schema"])
        release = None if saved["model"] is None else _release(saved["model"], schema, warmup)
        lanes = {_lane_id(name): _lane(lane, release) for name, lane in saved["lanes"].items()}
        positions = {name: lane["next_offset"] for name, lane in saved["lanes"].items()}
        learner = {
            **_wider(saved["learner"], schema),
            "positions": positions,
            "quarantine": {**_no_rows(schema), "normal": np.zeros(0, np.bool_), "fed": np.zeros(0, np.bool_)},
            **_with(release),
        }
        return Upgraded(path.name, saved["group_id"], saved["schema"], learner, lanes)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise RefusedError("foreign", f"{path} is no checkpoint of a worker: {error!r}") from error


def _lane_id(name: str) -> LaneId:
    topic, _, partition = name.rpartition("/")
    return LaneId(topic, int(partition))


def _lane(lane: State, release: State | None) -> State:
    limits = {**lane["limits"], "histogram": lane["limits"]["histogram"].astype(np.float32)}
    features = {**lane["features"], "fast_means": lane["features"]["means"]}
    return {**lane, "features": features, "limits": limits, "timeline": [], **_with(release)}


def _wider(node: Any, schema: Schema) -> Any:  # noqa: ANN401 - a tree
    """The tree with all rows in it as wide as they are now."""
    if not isinstance(node, dict):
        return node
    wider = {key: _wider(value, schema) for key, value in node.items()}
    for name in {"values", "imputed"} & node.keys():
        numbers = node[name][:, : len(schema.numeric)]
        newest = np.zeros((len(numbers), NEWEST_COLUMNS), node[name].dtype)
        newest[:, DISTANCE] = name == "values"  # as far as where there are too few rows to tell
        rows = np.concatenate([node[name], numbers, numbers, newest], axis=1)
        wider[name] = np.pad(rows, ((0, 0), (0, schema.width - rows.shape[1])))
    return wider


def _no_rows(schema: Schema) -> State:
    shape = 0, schema.width
    return {"values": np.zeros(shape, np.float32), "imputed": np.zeros(shape, np.bool_)}


def _release(model: State, schema: Schema, warmup: int) -> State:
    rows = _no_rows(schema)
    tensors = {_tensor_name(name): tensor for name, tensor in model["tensors"].items()}
    warm = model["trained_at"] >= warmup
    return {**model, "preset": "plain", "tensors": tensors, "warm": warm, "rows": rows}


def _tensor_name(name: str) -> str:
    """What a tensor of version 0.1 is called now."""
    part, _, rest = name.partition(".")
    if part == "network":
        return f"reconstruction.{rest}"
    calibrated = {"deviation": "deviation", "residual": "reconstruction"}.get(part)
    return name if calibrated is None else f"{calibrated}.calibration.{rest}"


def _with(release: State | None) -> State:
    return {} if release is None else {"release": release}


def _read(path: Path) -> Any:  # noqa: ANN401 - a tree
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error}") from error
    metadata, arrays = read_safetensors(data, str(path))
    tree = metadata.get("tree", "")
    if (metadata.get("format"), metadata.get("sha256")) != (_FORMAT, _digest(tree, arrays)):
        raise RefusedError("tampered", f"{path} is not what version 0.1 wrote: its digest differs")
    return _joined(json.loads(tree), arrays)


def _joined(node: Any, arrays: Mapping[str, Array]) -> Any:  # noqa: ANN401 - a tree
    if not isinstance(node, dict):
        return node
    if _ARRAY in node:
        return arrays[node[_ARRAY]]
    return {key: _joined(value, arrays) for key, value in node.items()}


def _digest(tree: str, arrays: Mapping[str, Array]) -> str:
    found = hashlib.sha256(tree.encode())
    for name in sorted(arrays):
        found.update(f"{name}{arrays[name].dtype}{arrays[name].shape}".encode())
        found.update(arrays[name].tobytes())
    return found.hexdigest()
