"""Names for the workers of a folder, that outlive them.

A worker that was killed should come back under its name: Kafka then takes it for the same member of the group, and
does not wait until it has missed the old one. A lock of the system says which names are taken, and is free the moment
its process is gone, however it went.
"""

import fcntl
import os
import uuid
from pathlib import Path

from streamdet.checkpoint.store import LocalStore, Store
from streamdet.errors import CheckpointError

WORKERS_MAX = 1000
_UUID_CHARACTERS = 36
_NAME_CHARACTERS = 8


def take_name(store: Store) -> str | None:
    """The first free name of a folder, this process's for as long as it lives; None for stores without locks.

    Raises:
        CheckpointError: the folder cannot be written to, or all names are taken.
    """
    if not isinstance(store, LocalStore):
        return None
    folder = store.root / "instances"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(WORKERS_MAX):
            unique = _taken(folder / str(number))
            if unique is not None:
                return f"{number}-{unique[:_NAME_CHARACTERS]}"
    except OSError as error:
        raise CheckpointError(f"cannot take a name in {folder}: {error}") from error
    raise CheckpointError(f"all {WORKERS_MAX} names in {folder} are taken: give workers input.instance_id")


def _taken(path: Path) -> str | None:
    """What the file says, once this process holds its lock; None if another one does."""
    # A bare descriptor, never closed: the lock is to last until the process ends, and not beyond in its children.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    unique = os.pread(descriptor, _UUID_CHARACTERS, 0).decode("ascii", "replace")
    if len(unique) < _UUID_CHARACTERS:  # new, or its first owner was killed at this point
        unique = str(uuid.uuid4())
        os.pwrite(descriptor, unique.encode(), 0)
        os.fsync(descriptor)
    return unique
