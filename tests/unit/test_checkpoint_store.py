"""Stores: whole or not there, and never silent about what failed. Remote ones are in tests/integration."""

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from store_promises import *  # noqa: F403 - the tests that hold for every store

from streamdet.checkpoint.store import FsspecStore, LocalStore, Store, open_store
from streamdet.errors import CheckpointError, ConfigError

PART = "group/a.part-4242-0"


@pytest.fixture(params=["folder", "file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return {
        "folder": str(tmp_path / "new" / "folder"),
        "file": (tmp_path / "new folder").as_uri().replace("%20", " "),
        "memory": f"memory://{uuid.uuid4()}/folder",
    }[str(request.param)]


@pytest.fixture
def store(url: str) -> Store:
    return open_store(url)


@pytest.fixture
def same_store(url: str) -> Store:
    return open_store(url)


def test_an_unknown_scheme_is_a_bad_configuration() -> None:
    with pytest.raises(ConfigError, match=r"checkpoint.url ssss://x cannot be used: .* such as s3://"):
        open_store("ssss://x")


WITHOUT = """
import sys
sys.modules.update(s3fs=None, gcsfs=None)
from streamdet.checkpoint.store import open_store
from streamdet.errors import ConfigError
for url in sys.argv[1:]:
    try:
        open_store(url)
    except ConfigError as error:
        print(error)
"""


def test_a_package_that_is_missing_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, "s3://bucket/x", "gs://bucket"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    s3, gs = done.stdout.splitlines()
    assert s3 == "checkpoint.url s3://bucket/x needs the s3 extra: pip install 'streamdet[s3]'"
    assert gs.startswith("checkpoint.url gs://bucket needs a package that is not installed: ")
    assert "gcsfs" in gs


def test_whatever_a_remote_file_system_raises_is_said_with_the_url() -> None:
    class Broken:
        def __getattr__(self, name: str) -> object:
            def fail(*_: object, **__: object) -> None:
                raise RuntimeError("no route")

            return fail

    store = FsspecStore("s3://bucket/x", Broken(), "bucket/x")
    for use in (store.get, store.size, store.names, store.delete):
        with pytest.raises(CheckpointError, match="group/a in s3://bucket/x: RuntimeError: no route"):
            use("group/a")
    for write in (store.put, store.create):
        with pytest.raises(CheckpointError, match="group/a in s3://bucket/x: RuntimeError: no route"):
            write("group/a", b"")


def test_a_writer_that_was_killed_leaves_nothing_in_its_place_and_the_next_clears_up(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from streamdet.checkpoint import store\n"
        "store._write = lambda fd, data: (os.write(fd, data[:5]), os.kill(os.getpid(), signal.SIGKILL))\n"
        "store.LocalStore('x', Path(sys.argv[1])).put('group/a', b'0123456789')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert done.returncode == -9
    (left,) = (tmp_path / "group").iterdir()
    assert (left.name.startswith("a.part-"), left.read_bytes()) == (True, b"01234")
    store = LocalStore("x", tmp_path)
    assert store.names("") == []
    assert list((tmp_path / "group").iterdir()) == []


def test_what_a_living_writer_has_not_finished_is_left_alone_and_not_listed(tmp_path: Path) -> None:
    store = LocalStore("x", tmp_path)
    with store._whole("group/a", b"0123456789") as (part, path):
        other = LocalStore("x", tmp_path)
        assert other.names("") == []
        assert part.read_bytes() == b"0123456789"
        part.rename(path)
    assert other.names("") == ["group/a"]


def test_files_of_other_names_are_nobodys_business(tmp_path: Path) -> None:
    (tmp_path / "notes.part").write_text("keep me")
    LocalStore("x", tmp_path).put("a", b"1")
    assert (tmp_path / "notes.part").read_text() == "keep me"


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        store = LocalStore("x", folder)
        for write in (store.put, store.create):
            with pytest.raises(CheckpointError, match=f"cannot write the checkpoint {folder}/a: "):
                write("a", b"1")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_said_and_left_as_it_was(tmp_path: Path) -> None:
    store = LocalStore("x", tmp_path)
    store.put("a", b"1")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="cannot write"):
            store.put("b", b"2")
        with pytest.raises(CheckpointError, match="cannot delete"):
            store.delete("a")
        assert store.names("") == ["a"]
    finally:
        tmp_path.chmod(0o700)


FULL = """
import resource, sys
from pathlib import Path
from streamdet.checkpoint.store import LocalStore
from streamdet.errors import CheckpointError
store = LocalStore("x", Path(sys.argv[1]))
store.put("group/a", b"1")
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for write, name in ((store.put, "group/a"), (store.put, "group/b"), (store.create, "group/c")):
    try:
        write(name, bytes(80_000))
    except CheckpointError as error:
        print("refused:", error)
"""


def test_a_write_that_fails_half_way_leaves_nothing_and_what_was_there_stays(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("refused: cannot write the checkpoint") == 3
    assert [path.name for path in (tmp_path / "group").iterdir()] == ["a"]
    assert LocalStore("x", tmp_path).get("group/a") == b"1"


def test_a_file_that_cannot_be_read_is_said_and_is_not_taken_for_one_that_is_not_there(
    tmp_path: Path,
) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match=f"cannot read the checkpoint {tmp_path}/folder: .*directory"):
        LocalStore("x", tmp_path).get("folder")
