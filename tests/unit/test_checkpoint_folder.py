"""Checkpoints: what was saved comes back or is refused with a reason; never half of it, never something else."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save

import streamdet
from streamdet.checkpoint.store import CheckpointFolder, read_checkpoint
from streamdet.errors import CheckpointError

STATE = {
    "lanes": {"sensors/3": {"next_offset": 17, "weights": np.arange(5.0), "flags": np.array([True, False])}},
    "model": {"scale": np.array([1.5, -2.0], np.float32), "count": np.array(3, np.int64)},
    "names": ["a", None, "é\ud800"],
    "nothing": np.zeros((0, 4)),
}

_keys = st.one_of(st.text(max_size=4), st.sampled_from(["sensors/0", "a/b", "a", "b", "x.y"]))
_arrays = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_]),
    hnp.array_shapes(min_dims=0, min_side=0),
)
_plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
    st.lists(st.one_of(st.none(), st.text(), st.integers()), max_size=4),
)
_states = st.dictionaries(
    _keys,
    st.recursive(
        st.one_of(_arrays, _plain), lambda inner: st.dictionaries(_keys, inner, max_size=3), max_leaves=8
    ),
    max_size=4,
)


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, np.ndarray):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()
    else:
        assert found == expected


@settings(max_examples=60)
@given(_states)
def test_a_state_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, state: dict[str, Any]
) -> None:
    folder = CheckpointFolder(tmp_path_factory.mktemp("state"), keep=1)
    assert_same(read_checkpoint(folder.save(state)), state)


def test_the_newest_of_several_is_loaded_and_only_so_many_are_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "new" / "folder", keep=3)
    assert folder.load() is None
    for n in range(6):
        folder.save({"n": n})
    loaded = folder.load()
    assert loaded is not None
    assert loaded["n"] == 5
    assert [read_checkpoint(path)["n"] for path in sorted((tmp_path / "new" / "folder").iterdir())] == [
        3,
        4,
        5,
    ]


def test_numbers_go_on_after_a_restart(tmp_path: Path) -> None:
    first = CheckpointFolder(tmp_path, keep=2).save({"n": 1})
    second = CheckpointFolder(tmp_path, keep=2).save({"n": 2})
    assert second.name > first.name


def test_a_file_torn_at_any_byte_is_refused_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = CheckpointFolder(tmp_path, keep=3)
    folder.save({"n": 1})
    newest = folder.save(STATE)
    whole = newest.read_bytes()
    for size in range(len(whole)):
        newest.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=newest.name):
            read_checkpoint(newest)
    loaded = folder.load()
    assert loaded is not None
    assert loaded["n"] == 1
    assert "checkpoint refused" in caplog.text


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_a_flipped_byte_anywhere_is_refused_or_changes_nothing(tmp_path: Path, flip: int) -> None:
    path = CheckpointFolder(tmp_path, keep=3).save(STATE)
    whole = path.read_bytes()
    payload = 8 + int.from_bytes(whole[:8], "little")
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
        try:
            found = read_checkpoint(path)
        except CheckpointError:
            continue
        assert at < payload, f"byte {at} of the payload"
        assert_same(found, STATE)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a checkpoint",
        b"\x80\x04\x95",
        save({"a": np.zeros(2)}),
        save({"a": np.zeros(2)}, {"format": "99", "tree": "{}", "sha256": ""}),
        save({"a": np.zeros(2)}, {"format": "1", "tree": "{}", "sha256": "0" * 64}),
        save({}, {"format": "1"}),
    ],
    ids=["empty", "text", "pickle", "bare", "newer", "tampered", "gutted"],
)
def test_a_foreign_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "000000000007.checkpoint.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="000000000007"):
        read_checkpoint(path)


def test_if_none_is_sound_loading_says_what_to_do_instead_of_starting_cold(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=3)
    for _ in range(2):
        folder.save(STATE).write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints .* empty the folder"):
        folder.load()


def test_files_of_other_names_are_nobodys_business(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep me")
    (tmp_path / "backup.checkpoint.safetensors").write_bytes(b"keep me, too")
    (tmp_path / "000000000009.checkpoint.part").write_bytes(b"half")
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.save({"n": 1})
    folder.save({"n": 2})
    loaded = folder.load()
    assert loaded is not None
    assert loaded["n"] == 2
    assert {p.name for p in tmp_path.iterdir()} >= {"notes.txt", "backup.checkpoint.safetensors"}


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CheckpointError, match="cannot write"):
            CheckpointFolder(path, keep=1).save({"n": 1})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_said_and_left_as_it_was(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=1)
    path = folder.save({"n": 1})
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="cannot write"):
            folder.save({"n": 2})
        assert list(tmp_path.iterdir()) == [path]
    finally:
        tmp_path.chmod(0o700)


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from streamdet.checkpoint.store import CheckpointFolder
from streamdet.errors import CheckpointError
folder = CheckpointFolder(Path(sys.argv[1]), keep=1)
folder.save({"n": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    folder.save({"n": 2, "weights": np.zeros(10_000)})
except CheckpointError as error:
    print("refused:", error)
"""


def test_a_write_that_fails_half_way_leaves_nothing_and_the_one_before_stays(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "refused: cannot write the checkpoint" in done.stdout
    assert len(list(tmp_path.iterdir())) == 1
    loaded = CheckpointFolder(tmp_path, keep=1).load()
    assert loaded is not None
    assert loaded["n"] == 1


def test_a_copy_of_a_checkpoint_is_a_checkpoint(tmp_path: Path) -> None:
    path = CheckpointFolder(tmp_path / "a", keep=1).save(STATE)
    (tmp_path / "b").mkdir()
    shutil.copy(path, tmp_path / "b" / path.name)
    loaded = CheckpointFolder(tmp_path / "b", keep=1).load()
    assert loaded is not None
    assert_same(loaded["lanes"], STATE["lanes"])


def test_a_state_that_json_cannot_say_is_a_defect_found_at_once(tmp_path: Path) -> None:
    for value in (float("nan"), object(), {1, 2}):
        with pytest.raises((TypeError, ValueError)):
            CheckpointFolder(tmp_path, keep=1).save({"value": value})
    assert list(tmp_path.iterdir()) == []


def test_nothing_in_the_package_loads_what_could_run_code() -> None:
    package = Path(streamdet.__file__).parent
    words = (
        "pickle",
        "torch.load",
        "eval(",
        "exec(",
        "marshal",
        "shelve",
        "yaml.load(",
        "allow_pickle=True",
        "dill",
    )
    found = [
        f"{path.relative_to(package)}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if any(word in line for word in words)
        and ".eval()" not in line
        and not line.lstrip().startswith(("#", '"'))
    ]
    assert found == []


def test_a_folder_belongs_to_one_worker_at_a_time(tmp_path: Path) -> None:
    first = CheckpointFolder(tmp_path, keep=3)
    first.take()
    with pytest.raises(CheckpointError, match="in use by another worker"):
        CheckpointFolder(tmp_path, keep=3).take()
    assert first.files() == []
