"""Names of workers: one each, and the same again for whoever comes after one that was killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from streamdet.checkpoint.names import take_name
from streamdet.checkpoint.store import LocalStore, open_store
from streamdet.errors import CheckpointError

HOLD = """
import sys
from pathlib import Path
from streamdet.checkpoint.names import take_name
from streamdet.checkpoint.store import LocalStore
print(take_name(LocalStore("x", Path(sys.argv[1]))), flush=True)
sys.stdin.read()
"""


class Holder:
    """A process that has taken a name."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        self.name = self._process.stdout.readline().strip()

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        with self._process:
            pass


def test_each_process_has_a_name_and_a_killed_one_leaves_it_to_the_next(tmp_path: Path) -> None:
    first, second = Holder(tmp_path), Holder(tmp_path)
    try:
        assert [name.split("-")[0] for name in (first.name, second.name)] == ["0", "1"]
        first.kill()
        third = Holder(tmp_path)
        assert third.name == first.name
        third.kill()
    finally:
        second.kill()
    assert take_name(LocalStore("x", tmp_path)) == first.name


def test_folders_have_names_of_their_own(tmp_path: Path) -> None:
    a, b = (take_name(LocalStore("x", tmp_path / folder)) for folder in "ab")
    assert a is not None
    assert b is not None
    assert a.startswith("0-")
    assert b.startswith("0-")
    assert a != b


def test_an_owner_that_was_killed_before_it_wrote_its_file_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "instances").mkdir()
    (tmp_path / "instances" / "0").write_bytes(b"\xff\xff")
    name = take_name(LocalStore("x", tmp_path))
    assert name is not None
    assert len(name) == len("0-12345678")
    assert (tmp_path / "instances" / "0").read_text().startswith(name[2:])


def test_a_store_without_locks_gives_no_names() -> None:
    assert take_name(open_store("memory://names")) is None


def test_a_folder_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    (tmp_path / "instances").write_text("")
    with pytest.raises(CheckpointError, match=f"cannot take a name in {tmp_path}/instances: "):
        take_name(LocalStore("x", tmp_path))


def test_a_name_does_not_outlive_its_process_in_the_programs_that_it_started(tmp_path: Path) -> None:
    take_name(LocalStore("x", tmp_path))
    file = tmp_path / "instances" / "0"
    (taken,) = (link for link in Path("/proc/self/fd").iterdir() if link.exists() and link.samefile(file))
    assert not os.get_inheritable(int(taken.name))
    os.close(int(taken.name))
