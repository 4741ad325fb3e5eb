"""Several tests at a time, some alone: those that break several brokers would wait in vain for them beside others."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def turn(folder: Path, *, alone: bool) -> Iterator[None]:
    """Begin when the tests of other processes, that take turns by the same folder, allow it.

    Whoever wants to be alone stands at the gate until the room is empty, and lets nobody pass meanwhile: otherwise
    others would come in by turns and it would never be its own.
    """
    with (folder / "gate").open("w") as gate, (folder / "room").open("w") as room:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        try:
            yield
        finally:
            # A child that the test has left behind would hold on to what is only closed.
            fcntl.flock(room, fcntl.LOCK_UN)
