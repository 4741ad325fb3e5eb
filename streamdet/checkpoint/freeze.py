"""A state as it is at one moment, while the loop goes on changing it.

A copy is cheap, fresh memory is not: the first touch of a page costs many times the copying of it. So large arrays are
copied into buffers that were allocated and touched beforehand, by the thread that saves.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamdet.events import State

# Smaller arrays are copied into memory that the allocator has at hand.
LARGE_BYTES = 1 << 16
# Entities come one by one: with so much room, a state outgrows its buffers a few times in its life.
ROOM = 1.25

_Array = NDArray[Any]
_Path = tuple[str, ...]
_Need = tuple[np.dtype[Any], tuple[int, ...]]  # dtype and shape


class Buffers:
    """Room for one frozen state. The one frozen last is valid until the next is."""

    def __init__(self) -> None:
        self._buffers: dict[_Path, _Array] = {}
        self._needed: dict[_Path, _Need] = {}

    def freeze(self, state: State) -> State | None:
        """A copy of the state, None where room for it has yet to be made: then `prepare` is due."""
        needed = {path: (array.dtype, array.shape) for path, array in _large_arrays(state, ())}
        if not all(self._has_room(path, need) for path, need in needed.items()):
            self._needed = needed
            return None
        frozen: State = _copied(state, (), self._into_buffer)
        return frozen

    def prepare(self) -> None:
        """Make the room that the last `freeze` missed: on any thread but the one that judges."""
        needed, self._needed = self._needed, {}
        if not needed:
            return
        for path in self._buffers.keys() - needed.keys():
            del self._buffers[path]
        for path, need in needed.items():
            if not self._has_room(path, need):
                self._buffers.pop(path, None)  # before its successor is made: both would be there at once
                self._buffers[path] = _touched(need)

    def _has_room(self, path: _Path, need: _Need) -> bool:
        buffer = self._buffers.get(path)
        dtype, shape = need
        return (
            buffer is not None
            and buffer.dtype == dtype
            and buffer.shape[1:] == shape[1:]
            and len(buffer) >= shape[0]
        )

    def _into_buffer(self, path: _Path, array: _Array) -> _Array:
        if not _is_large(array):
            return array.copy()
        frozen = self._buffers[path][: len(array)]
        np.copyto(frozen, array)
        return frozen


def freeze_now(state: State) -> State:
    """A copy of the state, however long the allocation takes: for the save at a stop, where nothing waits."""
    frozen: State = _copied(state, (), lambda _, array: array.copy())
    return frozen


def _is_large(array: _Array) -> bool:
    return array.ndim > 0 and array.nbytes >= LARGE_BYTES


def _large_arrays(node: object, path: _Path) -> Iterator[tuple[_Path, _Array]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _large_arrays(value, (*path, key))
    elif isinstance(node, np.ndarray) and _is_large(node):
        yield path, node


def _copied(node: Any, path: _Path, copy: Callable[[_Path, _Array], _Array]) -> Any:  # noqa: ANN401 - a tree
    """The tree with copies of its arrays and lists; what the lists hold is shared, as values never change."""
    if isinstance(node, Mapping):
        return {key: _copied(value, (*path, key), copy) for key, value in node.items()}
    if isinstance(node, np.ndarray):
        return copy(path, node)
    return list(node) if isinstance(node, list) else node


def _touched(need: _Need) -> _Array:
    dtype, (rows, *row) = need
    buffer = np.empty((int(rows * ROOM) + 1, *row), dtype)
    buffer.fill(0)  # `np.zeros` would leave the pages untouched until the first copy
    return buffer
