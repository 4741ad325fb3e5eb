"""One checkpoint as bytes: safetensors, with the tree and what it is about as JSON in its metadata.

What `unpack` gives is what `pack` was given, bit for bit, or it raises: a digest covers all of it. Any safetensors
library can read the arrays. Nothing in a checkpoint can run code, and reading one takes memory in proportion to its
size, whatever the bytes. Not promised: protection from somebody who can write to the store; the digest has no key.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from streamdet.checkpoint.compact import Array, Part, join, sliced, split
from streamdet.errors import CheckpointError
from streamdet.events import State

FORMAT = "6"
_DTYPES = {
    np.dtype(np.bool_): "BOOL",
    np.dtype(np.int8): "I8",
    np.dtype(np.uint8): "U8",
    np.dtype(np.int16): "I16",
    np.dtype(np.uint16): "U16",
    np.dtype(np.int32): "I32",
    np.dtype(np.uint32): "U32",
    np.dtype(np.int64): "I64",
    np.dtype(np.uint64): "U64",
    np.dtype(np.float16): "F16",
    np.dtype(np.float32): "F32",
    np.dtype(np.float64): "F64",
}
_LENGTH_BYTES = 8  # of the header's length, with which a safetensors file begins
_METADATA = "__metadata__"


class Packed(NamedTuple):
    """What a checkpoint holds."""

    kind: str
    about: Mapping[str, Any]
    state: State
    digest: str  # of the state alone


class RefusedError(CheckpointError):
    """Bytes that are no sound checkpoint of this format; `reason` is a word for metrics."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def pack(kind: str, about: Mapping[str, Any], state: State) -> bytearray:
    """The bytes of a checkpoint; a bytearray, as a `bytes` could only be had by one more copy that holds the GIL.

    Raises:
        TypeError, ValueError: the state or `about` holds what a checkpoint cannot: a defect of the caller.
    """
    tree, parts = split(state)
    of_state = _digest(tree, parts)
    about_json = json.dumps(about, allow_nan=False)
    metadata = {
        "format": FORMAT,
        "kind": kind,
        "about": about_json,
        "tree": tree,
        "digest": of_state,
        "seal": _seal(kind, about_json, of_state),
    }
    return _file(metadata, parts)


def digest(state: State) -> str:
    """Hex SHA-256 of a state: equal for equal states, whatever they are about and whatever the order of their keys."""
    return _digest(*split(state))


def unpack(data: bytes | bytearray, name: str) -> Packed:
    """What was packed; `name` is for messages.

    Raises:
        RefusedError: the bytes are torn, tampered with, no checkpoint, or one of another format.
    """
    metadata, arrays = read_safetensors(data, name)
    if metadata.get("format") != FORMAT:
        raise RefusedError("format", _other_format(metadata.get("format"), name))
    try:
        kind, about, tree = metadata["kind"], metadata["about"], metadata["tree"]
        of_state = _digest(tree, {key: Part(a.dtype, a.shape, sliced(a)) for key, a in arrays.items()})
        if metadata["digest"] != of_state or metadata["seal"] != _seal(kind, about, of_state):
            raise RefusedError("tampered", f"{name} is not what was written: its digest differs")
        return Packed(kind, json.loads(about), join(tree, arrays), of_state)
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
        # The digest is right, the content is not: made by another program, with care.
        raise RefusedError("tampered", f"{name} is no checkpoint of streamdet: {error!r}") from error


def _other_format(found: str | None, name: str) -> str:
    if found is None:
        return f"{name} is no checkpoint: a safetensors file of another program"
    return (
        f"{name} is of format {found}, which this version (format {FORMAT}) does not read: run the version of "
        "streamdet that wrote it, or give this one another checkpoint.url"
    )


def _digest(tree: str, parts: Mapping[str, Part]) -> str:
    found = hashlib.sha256(tree.encode())
    for name in sorted(parts):
        part = parts[name]
        found.update(f"{name}{part.dtype}{part.shape}".encode("utf-8", "surrogatepass"))
        for piece in part.slices:
            found.update(piece.data)
    return found.hexdigest()


def _seal(kind: str, about: str, of_state: str) -> str:
    return hashlib.sha256(json.dumps([FORMAT, kind, about, of_state]).encode()).hexdigest()


def _file(metadata: Mapping[str, str], parts: Mapping[str, Part]) -> bytearray:
    """A safetensors file. Written here and not by its library, which would hold the GIL for all of it at once."""
    # Wider elements first, so that each array is aligned for readers that map the file.
    ordered = sorted(parts.items(), key=lambda item: -item[1].dtype.itemsize)
    header: dict[str, object] = {_METADATA: metadata}
    end = 0
    for name, part in ordered:
        start, end = end, end + part.nbytes
        header[name] = {
            "dtype": _code(name, part.dtype),
            "shape": part.shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    # Grown slice by slice: to make it as long as it will be would fill it with zeros first, in one go.
    data = bytearray(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
    for _, part in ordered:
        for piece in part.slices:
            data.extend(piece.view(np.uint8))
    return data


def _code(name: str, dtype: np.dtype[Any]) -> str:
    if dtype not in _DTYPES:
        raise TypeError(f"a checkpoint holds no arrays of {dtype!r} ({name})")
    return _DTYPES[dtype]


def read_safetensors(data: bytes | bytearray, name: str) -> tuple[dict[str, str], dict[str, Array]]:
    """Metadata and arrays of a safetensors file; RefusedError if it is torn, or none."""
    try:
        arrays = load(bytes(data))
        # The library has checked the header: it is JSON, as long as it says, and not deep.
        length = int.from_bytes(data[:_LENGTH_BYTES], "little")
        header = json.loads(bytes(data[_LENGTH_BYTES : _LENGTH_BYTES + length]))
    except (SafetensorError, LookupError, ValueError) as error:
        raise RefusedError("torn", f"{name} is torn or no checkpoint: {error}") from error
    return header.get(_METADATA) or {}, arrays
