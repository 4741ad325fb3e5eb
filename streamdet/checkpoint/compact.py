"""A state tree as JSON and arrays, without what only takes room: zeros, and long lists spelt out.

What comes back is bit-identical. All work on large values goes slice by slice, as it runs beside a loop that must
not wait: a slice is a millisecond of work, and numpy gives the GIL back while it works on one.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamdet.events import State

Array = NDArray[Any]
# Elements of a slice; a multiple of 8, so that the bits of a mask fill whole bytes.
SLICE = 1 << 18
# Shorter lists stay JSON, which people can read, and smaller arrays are not worth a mask.
LONG_LIST = 256
SPARSE_MIN = 4096
# Items of a list in one call: joining or checking them holds the GIL.
LIST_SLICE = 1 << 14

# A mapping with one of these keys is not a mapping of the state, but says what stands in its place.
ARRAY = "$array"  # name of an array
SPARSE = "$sparse"  # names of mask and values; the shape is beside it
STRINGS = "$strings"  # names of text and lengths
INTS = "$ints"  # name of an array
_SHAPE = "shape"
# How a key of the state that looks like one of them is told apart.
_ESCAPE = "$"


class Part(NamedTuple):
    """An array as it goes into a file: its elements, in flat slices."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    slices: Sequence[Array]

    @property
    def nbytes(self) -> int:
        """Of all slices."""
        return sum(piece.nbytes for piece in self.slices)


def split(state: State) -> tuple[str, dict[str, Part]]:
    """The tree as JSON, and its arrays by name. Equal states give equal ones, whatever the order of their keys.

    Raises:
        TypeError: the tree holds something that is neither an array nor a value of JSON.
        ValueError: it holds a number that JSON cannot say.
    """
    splitter = _Splitter()
    tree = splitter.node(state, "")
    return json.dumps(tree, allow_nan=False), splitter.parts


def join(tree: str, arrays: Mapping[str, Array]) -> State:
    """The state that `split` took apart.

    Raises:
        ValueError, KeyError, TypeError, RecursionError: it did not come from `split`.
    """
    # Each array is taken once: a tree that names one a million times would make a state much larger than its file.
    left = dict(arrays)
    state = _joined(json.loads(tree), left)
    if not isinstance(state, dict):
        raise TypeError(f"the state is {type(state).__name__}, not a mapping")
    return state


def sliced(array: Array) -> list[Array]:
    """The elements of a contiguous array, (n,), as views of one slice each."""
    flat = array.reshape(-1)
    return [flat[start : start + SLICE] for start in range(0, flat.size, SLICE)]


class _Splitter:
    """Gathers the arrays of one tree."""

    def __init__(self) -> None:
        self.parts: dict[str, Part] = {}

    def node(self, node: object, path: str) -> object:
        """What stands in the JSON for a part of the tree."""
        if isinstance(node, Mapping):
            return {_escaped(key): self.node(node[key], f"{path}/{key}") for key in sorted(node)}
        if isinstance(node, np.ndarray):
            return self._array(np.asarray(node, order="C"), path)
        if isinstance(node, (list, tuple)) and len(node) >= LONG_LIST:
            return self._list(list(node), path)
        return node

    def _array(self, array: Array, path: str) -> object:
        if array.dtype.kind == "f" and array.size >= SPARSE_MIN:
            packed = _without_zeros(array)
            if packed is not None:
                mask, values = packed
                names = [self._add(mask, f"{path}.mask"), self._add(values, f"{path}.values")]
                return {SPARSE: names, _SHAPE: list(array.shape)}
        return {ARRAY: self._add(Part(array.dtype, array.shape, sliced(array)), path)}

    def _list(self, values: list[Any], path: str) -> object:
        kinds = _kinds(values)
        if kinds <= {str, type(None)}:
            text, lengths = _as_text(values)
            return {STRINGS: [self._add(text, f"{path}.text"), self._add(lengths, f"{path}.lengths")]}
        if kinds == {int}:
            ints = _as_ints(values)
            if ints is not None:
                return {INTS: self._add(ints, path)}
        return values

    def _add(self, part: Part, path: str) -> str:
        # The path alone is not unique, as keys may have slashes in them; nor may it have what UTF-8 cannot say.
        name = f"{len(self.parts)}{path.encode('ascii', 'backslashreplace').decode()}"
        self.parts[name] = part
        return name


def _escaped(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"the keys of a state are strings, {key!r} is not")
    return f"{_ESCAPE}{key}" if key.startswith(_ESCAPE) else key


def _kinds(values: list[Any]) -> set[type]:
    kinds: set[type] = set()
    for start in range(0, len(values), LIST_SLICE):
        kinds.update(map(type, values[start : start + LIST_SLICE]))
    return kinds


def _without_zeros(array: Array) -> tuple[Part, Part] | None:
    """Where the elements are that are not zero, as bits, and those elements; None if most of them are not.

    Zero is the bit pattern, not the number: -0.0 equals 0.0, and is kept.
    """
    pieces = sliced(array.reshape(-1).view(f"u{array.itemsize}"))
    if 2 * sum(int(np.count_nonzero(piece)) for piece in pieces) > array.size:
        return None
    masks, values = [], []
    for piece in pieces:
        mask = piece != 0
        masks.append(np.packbits(mask))
        values.append(piece[mask].view(array.dtype))
    return _flat(masks), _flat(values)


def _as_text(values: list[str | None]) -> tuple[Part, Part]:
    """All strings in one, and the number of characters of each, -1 for None."""
    texts, lengths = [], []
    for start in range(0, len(values), LIST_SLICE):
        piece = values[start : start + LIST_SLICE]
        text = "".join([value for value in piece if value is not None])
        texts.append(np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8))
        lengths.append(np.array([-1 if value is None else len(value) for value in piece], np.int32))
    return _flat(texts), _flat(lengths)


def _as_ints(values: list[int]) -> Part | None:
    try:
        pieces = [
            np.array(values[start : start + LIST_SLICE], np.int64)
            for start in range(0, len(values), LIST_SLICE)
        ]
    except OverflowError:  # JSON knows no largest number
        return None
    return _flat(pieces)


def _flat(pieces: list[Array]) -> Part:
    return Part(pieces[0].dtype, (sum(piece.size for piece in pieces),), pieces)


def _joined(node: Any, left: dict[str, Array]) -> Any:  # noqa: ANN401 - a tree
    if not isinstance(node, dict):
        return node
    for marker, restored in _RESTORED.items():
        if marker in node:
            return restored(node, left)
    return {key.removeprefix(_ESCAPE): _joined(value, left) for key, value in node.items()}


def _array(node: dict[str, Any], left: dict[str, Array]) -> Array:
    return left.pop(node[ARRAY])


def _with_zeros(node: dict[str, Any], left: dict[str, Array]) -> Array:
    mask, values = (left.pop(name) for name in node[SPARSE])
    size = math.prod(node[_SHAPE])
    # Held against each other before anything is allocated: a shape is easily said.
    if (mask.dtype, len(mask)) != (np.dtype(np.uint8), -(-size // 8)):
        raise ValueError(f"{len(mask)} bytes of mask for {size} elements")
    array = np.zeros(node[_SHAPE], values.dtype)
    array.reshape(-1)[np.unpackbits(mask, count=size).view(np.bool_)] = values
    return array


def _strings(node: dict[str, Any], left: dict[str, Array]) -> list[str | None]:
    data, lengths = (left.pop(name) for name in node[STRINGS])
    text = data.tobytes().decode("utf-8", "surrogatepass")
    ends = accumulate(np.maximum(lengths, 0).tolist(), initial=0)
    return [
        None if length < 0 else text[start:end]
        for length, (start, end) in zip(lengths.tolist(), pairwise(ends), strict=True)
    ]


def _ints(node: dict[str, Any], left: dict[str, Array]) -> list[int]:
    values: list[int] = left.pop(node[INTS]).tolist()
    return values


_RESTORED: dict[str, Callable[[dict[str, Any], dict[str, Array]], object]] = {
    ARRAY: _array,
    SPARSE: _with_zeros,
    STRINGS: _strings,
    INTS: _ints,
}
