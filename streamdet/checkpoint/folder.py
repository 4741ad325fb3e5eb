"""Checkpoints in a folder: each one file, atomic, digest-checked, safetensors and JSON only.

A file is written under another name, forced to disk and renamed, so whatever carries a checkpoint's name is
whole unless the disk itself failed; the digest finds that out too. Loading takes the newest one that is sound and
says why it passed over others. Nothing in a checkpoint can run code.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from streamdet.errors import CheckpointError
from streamdet.events import State

log = logging.getLogger(__name__)

FORMAT = "1"
_SUFFIX = ".checkpoint.safetensors"
# Files of other names are somebody else's: a copy that was put aside is neither loaded nor dropped.
_NAME = re.compile(r"[0-9]{12}" + re.escape(_SUFFIX))
# Under this key a nested value of a tree is an array of the file; its JSON value is the name there.
_ARRAY = "$array"


class CheckpointFolder:
    """The checkpoints of one worker."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def take(self) -> None:
        """Keep other workers out of the folder for as long as this process lives.

        Raises:
            CheckpointError: another one has it, or it cannot be written to.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # A bare descriptor, held until the process ends; the system then gives the lock back, even after a kill.
            lock = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(
                f"{self._folder} is in use by another worker: give each a checkpoint.url of its own"
            ) from error
        except OSError as error:
            raise CheckpointError(f"cannot write to the checkpoint folder {self._folder}: {error}") from error

    def save(self, state: State) -> Path:
        """Write one more checkpoint and drop the oldest beyond those kept.

        Raises:
            CheckpointError: the folder cannot be written to; earlier checkpoints stay as they were.
        """
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        tree = json.dumps(_split(state, "", arrays), allow_nan=False)
        metadata = {"format": FORMAT, "tree": tree, "sha256": _digest(tree, arrays)}
        newest = self.files()[-1:]
        number = int(newest[0].name.removesuffix(_SUFFIX)) + 1 if newest else 1
        path = self._folder / f"{number:012d}{_SUFFIX}"
        part = path.with_suffix(".part")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.write(save(arrays, metadata))
                file.flush()
                os.fsync(file.fileno())
            part.rename(path)
            for old in self.files()[: -self._keep]:
                old.unlink()
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink()
            raise CheckpointError(f"cannot write the checkpoint {path}: {error}") from error
        return path

    def load(self) -> State | None:
        """The newest sound checkpoint, None if there is none at all.

        Raises:
            CheckpointError: there are checkpoints, and none of them is sound.
        """
        files = self.files()
        for path in reversed(files):
            try:
                return read_checkpoint(path)
            except CheckpointError as error:
                log.warning("checkpoint refused: %s", error)
        if files:
            raise CheckpointError(
                f"none of the {len(files)} checkpoints in {self._folder} can be used (see above): restore one from a "
                "backup, or empty the folder to start cold"
            )
        return None

    def files(self) -> list[Path]:
        """All checkpoints, the oldest first."""
        return sorted(path for path in self._folder.glob(f"*{_SUFFIX}") if _NAME.fullmatch(path.name))


def read_checkpoint(path: Path) -> State:
    """One checkpoint.

    Raises:
        CheckpointError: the file is torn, tampered with, or of another format.
    """
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is torn or no checkpoint: {error}") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {metadata.get('format')}, this version reads {FORMAT}")
    tree = metadata.get("tree", "")
    if metadata.get("sha256") != _digest(tree, arrays):
        raise CheckpointError(f"{path} is not what was written: its digest differs")
    state: State = _join(json.loads(tree), arrays)
    return state


def _split(node: object, path: str, arrays: dict[str, np.ndarray[Any, Any]]) -> object:
    """The tree without its arrays, which are moved out under a number and the path to them."""
    if isinstance(node, np.ndarray):
        name = f"{len(arrays)}{path}"  # the path alone is not unique: keys may have slashes in them
        arrays[name] = np.asarray(node, order="C")
        return {_ARRAY: name}
    if isinstance(node, Mapping):
        return {key: _split(value, f"{path}/{key}", arrays) for key, value in node.items()}
    return node


def _join(node: Any, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Any:  # noqa: ANN401 - a tree
    if isinstance(node, dict):
        if _ARRAY in node:
            return arrays[node[_ARRAY]]
        return {key: _join(value, arrays) for key, value in node.items()}
    return node


def _digest(tree: str, arrays: Mapping[str, np.ndarray[Any, Any]]) -> str:
    digest = hashlib.sha256(tree.encode())
    for name in sorted(arrays):
        digest.update(f"{name}{arrays[name].dtype}{arrays[name].shape}".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()
