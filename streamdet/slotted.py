"""What is kept by slot: arrays with a row per slot of an entity table, together in one named tuple."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np

from streamdet.events import State

Kept = TypeVar("Kept", bound=NamedTuple)


def with_room(kept: Kept, slots: int, empty: Callable[[int], Kept]) -> Kept:
    """The same with rows for so many slots at least, those that come as `empty` gives so many.

    There are twice as many each time, so that a row is copied a few times at most.
    """
    have = len(kept[0])
    if slots <= have:
        return kept
    pairs: Any = zip(kept, empty(max(slots, 2 * have) - have), strict=True)
    return kept._make(np.concatenate(pair) for pair in pairs)


def state_of(kept: NamedTuple, slots: int | None = None) -> dict[str, Any]:
    """The rows of the first slots, or of all, by name: views that later events change."""
    return {name: array[:slots] for name, array in kept._asdict().items()}


def restored(kind: type[Kept], state: State) -> Kept:
    """What gave this state, in arrays of its own."""
    return kind._make(np.array(state[name]) for name in kind._fields)
