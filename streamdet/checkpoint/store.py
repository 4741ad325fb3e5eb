"""Where bytes are kept by name: a folder of this machine, or whatever file system fsspec knows.

A name is whole or not there: a folder gets each file under another name first, forced to disk and renamed, and object
stores show an object when all of it has come. Names are relative, with "/" between their parts.
"""

import contextlib
import fcntl
import itertools
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from streamdet.errors import CheckpointError, ConfigError, StoreUnavailableError

_PART = re.compile(r".*\.part-\d+-\d+")
_S3 = {"s3", "s3a"}
# The worker lives without a store for a while, and says so; a thread that waits for minutes says nothing.
S3_WAITS = {
    "connect_timeout": 5,
    "read_timeout": 10,
    "retries": {"mode": "standard", "total_max_attempts": 2},
}
_S3_ATTEMPTS = 1  # of s3fs, around those
# The least that S3 takes as a part. Whatever is sent at once is copied at once, and holds the GIL for so long.
_S3_CHUNK_BYTES = 5 << 20


class NotThereError(CheckpointError):
    """The store has nothing of that name."""


class Store(Protocol):
    """Bytes by name. All methods raise StoreUnavailableError where the store fails, with url and reason."""

    url: str

    def put(self, name: str, data: bytes | bytearray) -> None:
        """Keep these bytes; whoever reads meanwhile finds what was there before, or all of them."""

    def get(self, name: str) -> bytes:
        """The bytes of that name; NotThereError if there is none."""

    def size(self, name: str) -> int:
        """Their number; NotThereError if there is none."""

    def names(self, prefix: str) -> list[str]:
        """Whatever lies below that folder, sorted; nothing if there is no such folder. Never what is unfinished."""

    def delete(self, name: str) -> None:
        """Forget that name; it may be forgotten already."""

    def create(self, name: str, data: bytes | bytearray) -> bool:
        """Keep these bytes unless the name is taken; False if it is."""


def open_store(url: str) -> Store:
    """The store at a folder or a URL.

    S3 and its like are reached as their tools reach them: by AWS_ACCESS_KEY_ID and the other variables of the AWS
    command line or its profiles, a server that is not Amazon's by AWS_ENDPOINT_URL=http://host:port.

    Raises:
        ConfigError: nothing is known that could read such a URL.
    """
    scheme, colon, path = url.partition("://")
    if not colon:
        return LocalStore(url, Path(url))
    if scheme == "file":
        return LocalStore(url, Path(path))
    from fsspec.core import url_to_fs

    options = {"config_kwargs": S3_WAITS} if scheme in _S3 else {}
    try:
        file_system, root = url_to_fs(url, skip_instance_cache=True, **options)
    except ImportError as error:
        raise ConfigError(f"checkpoint.url {url} {_missing(scheme, error)}") from error
    except ValueError as error:
        raise ConfigError(
            f"checkpoint.url {url} cannot be used: {error}; it is a folder, or a URL such as s3://bucket/path"
        ) from error
    if scheme not in _S3:
        return FsspecStore(url, file_system, root)
    file_system.retries = _S3_ATTEMPTS
    return FsspecStore(url, file_system, root, _S3_CHUNK_BYTES)


def _missing(scheme: str, error: ImportError) -> str:
    if scheme in _S3:
        return "needs the s3 extra: pip install 'streamdet[s3]'"
    return f"needs a package that is not installed: {error}"


def _checked(name: str) -> str:
    if "\0" in name or not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise CheckpointError(f"{name!r} is no name in a checkpoint store: it would lead out of it")
    return name


class LocalStore:
    """A folder, which several workers of this machine may share."""

    def __init__(self, url: str, root: Path) -> None:
        self.url = url
        self.root = root
        # From anywhere: workers in containers have the same process number, and may share the folder.
        self._numbers = itertools.count(secrets.randbelow(1 << 32))
        self._clear()

    def put(self, name: str, data: bytes | bytearray) -> None:
        """Write beside, force to disk, rename."""
        with self._whole(name, data) as (part, path):
            part.rename(path)

    def create(self, name: str, data: bytes | bytearray) -> bool:
        """Write beside, force to disk, link; a link, unlike a rename, replaces nothing."""
        with self._whole(name, data) as (part, path):
            try:
                path.hardlink_to(part)
            except FileExistsError:
                return False
        return True

    def get(self, name: str) -> bytes:
        """All of the file."""
        with self._reading(name) as path:
            return path.read_bytes()

    def size(self, name: str) -> int:
        """Bytes of the file."""
        with self._reading(name) as path:
            return path.stat().st_size

    def names(self, prefix: str) -> list[str]:
        """All files below the folder."""
        return [name for name in self._files(prefix) if not _PART.fullmatch(name)]

    def delete(self, name: str) -> None:
        """Remove the file if it is there."""
        path = self.root / _checked(name)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreUnavailableError(f"cannot delete the checkpoint {path}: {error}") from error

    @contextlib.contextmanager
    def _whole(self, name: str, data: bytes | bytearray) -> Iterator[tuple[Path, Path]]:
        """The data on disk under a passing name, and the path where it belongs."""
        path = self.root / _checked(name)
        part = path.with_name(f"{path.name}.part-{os.getpid()}-{next(self._numbers)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("xb", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # while it is held, nobody takes this for a leftover
                _write(file.fileno(), data)
                os.fsync(file.fileno())
                yield part, path
            _sync_folder(path.parent)
        except OSError as error:
            raise StoreUnavailableError(f"cannot write the checkpoint {path}: {error}") from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink()

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[Path]:
        path = self.root / _checked(name)
        try:
            yield path
        except FileNotFoundError as error:
            raise NotThereError(f"there is no checkpoint {path}") from error
        except OSError as error:
            raise StoreUnavailableError(f"cannot read the checkpoint {path}: {error}") from error

    def _files(self, prefix: str) -> list[str]:
        folder = self.root / _checked(prefix.strip("/")) if prefix.strip("/") else self.root
        found = []

        def unreadable(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                raise StoreUnavailableError(f"cannot list the checkpoints in {folder}: {error}") from error

        for parent, _, files in os.walk(folder, onerror=unreadable):
            found += [(Path(parent) / file).relative_to(self.root).as_posix() for file in files]
        return sorted(found)

    def _clear(self) -> None:
        """Remove what writers that were killed left unfinished.

        A writer holds a lock on its file, which the system frees with its process. The number in the name would not
        tell: another container has the same ones.
        """
        for name in filter(_PART.fullmatch, self._files("")):
            with contextlib.suppress(OSError), (self.root / name).open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (self.root / name).unlink()


def _write(descriptor: int, data: bytes | bytearray) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _sync_folder(folder: Path) -> None:
    """Force the folder's list of names to disk: a rename is not there for good before that."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FsspecStore:
    """A file system of fsspec's, below a root; several machines may share it.

    With `chunk_bytes`, which S3 knows, large data goes in parts, one after the other. A writer that is killed then
    leaves parts behind that no list shows; buckets have a lifecycle rule to clear them.
    """

    def __init__(
        self,
        url: str,
        file_system: Any,  # noqa: ANN401 - fsspec has no types
        root: str,
        chunk_bytes: int | None = None,
    ) -> None:
        self.url = url
        self._chunk_bytes = chunk_bytes
        self._file_system = file_system
        self._root = root.rstrip("/")

    def put(self, name: str, data: bytes | bytearray) -> None:
        """Write the object, which is there when all of it is."""
        with self._saying(f"write {name}"):
            self._pipe(name, data, "overwrite")

    def create(self, name: str, data: bytes | bytearray) -> bool:
        """Write the object unless it exists; where the file system has no such request, by looking first."""
        with self._saying(f"create {name}"):
            try:
                self._pipe(name, data, "create")
            except FileExistsError:
                return False
            except Exception:
                # Where two create an object at the same moment, S3 answers a conflict, not that it exists, and what
                # that is raised as is for the library of each store to choose. Nothing is hushed up: unless the object
                # is there now, it goes on.
                if self._file_system.exists(self._path(name)):
                    return False
                raise
            return True

    def get(self, name: str) -> bytes:
        """The whole object."""
        with self._saying(f"read {name}"):
            return bytes(self._file_system.cat_file(self._path(name)))

    def size(self, name: str) -> int:
        """Bytes of the object."""
        with self._saying(f"look at {name}"):
            self._file_system.invalidate_cache()
            return int(self._file_system.size(self._path(name)))

    def names(self, prefix: str) -> list[str]:
        """All objects below the folder."""
        folder = self._path(prefix.strip("/")) if prefix.strip("/") else self._root
        with self._saying(f"list {prefix}"):
            self._file_system.invalidate_cache()  # other workers write there too
            try:
                found = self._file_system.find(folder)
            except FileNotFoundError:
                return []
            # A path that ends in "/" stands for a folder, which some tools put into object stores.
            return sorted(path.removeprefix(f"{self._root}/") for path in found if not path.endswith("/"))

    def delete(self, name: str) -> None:
        """Remove the object if it is there."""
        with self._saying(f"delete {name}"), contextlib.suppress(FileNotFoundError):
            self._file_system.rm_file(self._path(name))

    def _pipe(self, name: str, data: bytes | bytearray, mode: str) -> None:
        path = self._path(name)
        if self._chunk_bytes is None:
            self._file_system.pipe_file(path, bytes(data), mode=mode)
        else:
            self._file_system.pipe_file(path, data, mode=mode, chunksize=self._chunk_bytes, max_concurrency=1)

    def _path(self, name: str) -> str:
        return f"{self._root}/{_checked(name)}"

    @contextlib.contextmanager
    def _saying(self, doing: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise NotThereError(f"cannot {doing} in {self.url}: it is not there") from error
        except CheckpointError:
            raise
        except Exception as error:  # file systems raise what the libraries below them raise
            raise StoreUnavailableError(
                f"cannot {doing} in {self.url}: {type(error).__name__}: {error}"
            ) from error
