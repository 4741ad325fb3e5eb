"""Checkpoints as bytes: what was packed comes back bit for bit, or is refused with a reason; never half of it."""

import hashlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load, save

import streamdet
from streamdet.checkpoint.compact import LIST_SLICE, LONG_LIST, SLICE, SPARSE_MIN
from streamdet.checkpoint.format import FORMAT, RefusedError, _seal, digest, pack, unpack
from streamdet.errors import CheckpointError

ABOUT = {"topic": "sensors", "partition": 3}
SPARSE = np.zeros((SPARSE_MIN // 8, 16))
SPARSE[5:8, 3] = 1.5, -0.0, np.nan
STATE: dict[str, Any] = {
    "lane": {"next_offset": 17, "weights": np.arange(5.0), "flags": np.array([True, False])},
    "model": {"scale": np.array([1.5, -2.0], np.float32), "count": np.array(3, np.int64)},
    "names": ["a", None, "é\ud800"],
    "nothing": np.zeros((0, 4)),
    "histogram": SPARSE,
    "entities": [f"device-{i}" for i in range(LONG_LIST)],
    "slots": list(range(LONG_LIST)),
}

_keys = st.one_of(
    st.text(max_size=4),
    st.sampled_from(["sensors/0", "a/b", "a", "x.y", "$array", "$sparse", "$$ints", "shape", "\ud800"]),
)
_dtypes = st.sampled_from([np.float16, np.float32, np.float64, np.int64, np.int8, np.uint32, np.bool_])
_arrays = hnp.arrays(_dtypes, hnp.array_shapes(min_dims=0, min_side=0))
_floats = st.sampled_from([np.float16, np.float32, np.float64])
_mostly_zero = hnp.arrays(_floats, st.integers(SPARSE_MIN - 1, SPARSE_MIN + 9), fill=st.just(0.0))
_plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
    st.lists(st.one_of(st.none(), st.text(), st.integers()), max_size=4),
)
_items = st.sampled_from(
    [
        ["a", "é", "\ud800", "\udc00", ""],
        ["a", None],
        [1, -5],
        [1, 2**63],
        [True, 1],
        [[1, "v"], None],
        [1.5, 2],
    ]
)
_long_lists = st.builds(lambda items, n: (items * n)[:n], _items, st.integers(LONG_LIST - 1, LONG_LIST + 9))
_states = st.dictionaries(
    _keys,
    st.recursive(
        st.one_of(_arrays, _mostly_zero, _plain, _long_lists),
        lambda inner: st.dictionaries(_keys, inner, max_size=3),
        max_leaves=8,
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
    elif isinstance(expected, list):
        assert list(map(type, found)) == list(map(type, expected))
        assert found == expected
    else:
        assert found == expected


@settings(max_examples=100)
@given(_states)
def test_a_state_comes_back_as_it_was(state: dict[str, Any]) -> None:
    packed = unpack(pack("lane", ABOUT, state), "x")
    assert (packed.kind, packed.about, packed.digest) == ("lane", ABOUT, digest(state))
    assert_same(packed.state, state)


def test_arrays_that_are_restored_can_be_written_to() -> None:
    state = unpack(pack("lane", ABOUT, STATE), "x").state
    state["histogram"][0] = 1.0
    state["lane"]["weights"][0] = 1.0


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_an_array_of_mostly_zeros_is_small_and_comes_back_bit_for_bit(dtype: type) -> None:
    bits = np.zeros(SLICE + 4321, f"u{np.dtype(dtype).itemsize}")
    negative_zero = 1 << (8 * bits.itemsize - 1)
    bits[:: SLICE // 8] = negative_zero
    bits[1 :: SLICE // 8] = np.iinfo(bits.dtype).max  # a NaN with a payload
    bits[-1] = 1  # denormal
    array: np.ndarray[Any, Any] = bits.view(dtype)
    packed = pack("lane", {}, {"a": array})
    assert len(packed) < array.size / 8 + 2000
    assert unpack(packed, "x").state["a"].tobytes() == array.tobytes()


def test_an_array_that_is_not_mostly_zeros_takes_its_own_size_and_no_more() -> None:
    array = np.arange(2 * SLICE, dtype=np.float32)
    assert len(pack("lane", {}, {"a": array})) < array.nbytes + 2000


def test_arrays_that_are_views_come_back_as_what_they_showed() -> None:
    array = np.arange(float(8 * SPARSE_MIN)).reshape(-1, 4)
    for view in (array[::2, ::-1], array.T, array[5:5]):
        assert_same(unpack(pack("lane", {}, {"a": view}), "x").state["a"], np.array(view, order="C"))


def test_long_lists_of_names_and_numbers_are_arrays_in_the_file() -> None:
    n = 3 * LIST_SLICE + 7
    state = {
        "names": [f"d\ud800{i}" for i in range(n)],
        "values": [None, *(f"é{i}" for i in range(n))],
        "slots": list(range(n)),
    }
    packed = pack("lane", {}, state)
    assert max(array.nbytes for array in load(bytes(packed)).values()) > n
    assert int.from_bytes(packed[:8], "little") < 2000
    assert_same(unpack(packed, "x").state, state)


def test_equal_states_have_equal_digests_and_others_have_not() -> None:
    turned = {key: STATE[key] for key in reversed(STATE)}
    assert digest(turned) == digest(STATE) == unpack(pack("x", {"at": 1}, STATE), "x").digest
    others: list[dict[str, Any]] = [
        {**STATE, "names": ["a"]},
        {**STATE, "nothing": np.zeros((4, 0))},
        {**STATE, "slots": [-1, *STATE["slots"][1:]]},
        {**STATE, "histogram": np.abs(SPARSE)},
    ]
    assert len({digest(state) for state in (STATE, *others)}) == 1 + len(others)


def test_any_safetensors_library_reads_the_arrays() -> None:
    arrays = load(bytes(pack("lane", ABOUT, STATE)))
    assert any(np.array_equal(array, STATE["lane"]["weights"]) for array in arrays.values())


def test_bytes_torn_anywhere_are_refused() -> None:
    whole = pack("lane", ABOUT, {key: STATE[key] for key in ("lane", "model", "names", "nothing")})
    for size in range(len(whole)):
        with pytest.raises(CheckpointError, match="some-file is torn"):
            unpack(whole[:size], "some-file")
    with pytest.raises(CheckpointError, match="some-file is torn"):
        unpack(whole + b"\0", "some-file")


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_a_flipped_byte_anywhere_is_refused_or_changes_nothing(flip: int) -> None:
    whole = pack("lane", ABOUT, {**STATE, "entities": [], "slots": []})
    payload = 8 + int.from_bytes(whole[:8], "little")
    for at in range(len(whole)):
        whole[at] ^= flip
        try:
            found = unpack(whole, "x")
        except CheckpointError:
            pass
        else:
            assert at < payload, f"byte {at} of the payload"
            assert (found.kind, found.about) == ("lane", ABOUT)
            assert_same(found.state["histogram"], SPARSE)
        whole[at] ^= flip


@pytest.mark.parametrize("key", ["kind", "about", "tree", "digest", "seal"])
def test_nothing_of_what_a_file_says_can_be_exchanged(key: str) -> None:
    whole, other = (_taken_apart(pack(kind, {"n": n}, {"n": n})) for kind, n in (("lane", 1), ("learner", 2)))
    with pytest.raises(RefusedError, match="digest differs") as refused:
        unpack(save({}, {**whole, key: other[key]}), "x")
    assert refused.value.reason == "tampered"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "torn"),
        (b"not a checkpoint", "torn"),
        (b"\x80\x04\x95", "torn"),
        (b"\xff" * 64, "torn"),
        (save({"a": np.zeros(2)}), "format"),
        (save({"a": np.zeros(2)}, {"format": "99", "tree": "{}"}), "format"),
        (save({"a": np.zeros(2)}, {"format": "1", "tree": "{}", "sha256": "0" * 64}), "format"),
        (save({}, {"format": FORMAT}), "tampered"),
    ],
    ids=["empty", "text", "pickle", "ones", "bare", "newer", "older", "gutted"],
)
def test_foreign_bytes_are_refused_by_name_and_with_a_word_for_metrics(content: bytes, reason: str) -> None:
    with pytest.raises(RefusedError, match="some-file") as refused:
        unpack(content, "some-file")
    assert refused.value.reason == reason


def test_another_format_is_refused_with_what_to_do() -> None:
    with pytest.raises(
        CheckpointError, match=r"is of format 1, which this version \(format 6\) does not read: run"
    ):
        unpack(save({}, {"format": "1"}), "some-file")


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    for content in (data, len(data).to_bytes(8, "little") + data):
        with pytest.raises(RefusedError):
            unpack(content, "x")


@pytest.mark.parametrize(
    "tree",
    [
        '{"a": {"$sparse": ["m", "v"], "shape": [1000000000, 1000000000]}}',
        '{"a": {"$sparse": ["m", "v"], "shape": [-8]}}',
        '{"a": {"$sparse": ["m", "v"], "shape": [9007199254740993000000]}}',
        '{"a": {"$array": "m"}, "b": {"$array": "m"}}',
        '{"a": {"$array": "x"}}',
        '{"a": {"$array": []}}',
        '{"a": {"$strings": ["m", "m"]}}',
        '{"a": ' * 100_000,
        "[" * 100_000 + "]" * 100_000,
        '{"a": 1' + "0" * 10_000 + "}",
        "no JSON",
        "[]",
        '{"$array": "m"}',
    ],
    ids=lambda tree: tree[:50],
)
def test_a_tree_made_by_another_program_with_care_is_refused_and_takes_no_memory(tree: str) -> None:
    arrays: dict[str, np.ndarray[Any, Any]] = {"m": np.zeros(1, np.uint8), "v": np.zeros(0)}
    of_state = hashlib.sha256(tree.encode())
    for name, array in sorted(arrays.items()):
        of_state.update(f"{name}{array.dtype}{array.shape}".encode())
        of_state.update(array.tobytes())
    metadata = {
        "format": FORMAT, "kind": "lane", "about": "{}", "tree": tree,
        "digest": of_state.hexdigest(), "seal": _seal("lane", "{}", of_state.hexdigest()),
    }  # fmt: skip
    with pytest.raises(RefusedError, match="no checkpoint of streamdet"):
        unpack(save(arrays, metadata), "x")


@pytest.mark.parametrize(
    "value",
    [float("nan"), object(), {1, 2}, {1: 2}, b"bytes", np.zeros(2, complex), np.zeros(2, ">f4"), np.array([object()])],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_a_checkpoint_cannot_hold_is_a_defect_found_at_once(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        pack("lane", {}, {"value": value})


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


def _longest_gap_s(work: Callable[[], object]) -> float:
    """For how long another thread, which would run each millisecond, was kept waiting by this work."""
    gaps_s: list[float] = []
    done = threading.Event()

    def tick() -> None:
        last_s = time.monotonic()
        while not done.wait(0.001):
            now_s = time.monotonic()
            gaps_s.append(now_s - last_s)
            last_s = now_s

    ticking = threading.Thread(target=tick)
    ticking.start()
    work()
    done.set()
    ticking.join()
    return max(gaps_s)


def test_packing_a_hundred_thousand_entities_is_quick_and_small_and_lets_other_threads_run() -> None:
    entities = 100_000
    rng = np.random.default_rng(0)
    histogram = np.zeros((entities, 320), np.float32)
    histogram[:, 120:200] = rng.random((entities, 80))
    state = {
        "names": [f"device-{i:06d}" for i in range(entities)],
        "slots": list(range(entities)),
        "means": rng.random((entities, 8)),
        "limits": {"histogram": histogram, **{name: rng.random(entities) for name in "abcde"}},
    }
    started_s = time.monotonic()
    packed = pack("lane", {}, state)
    assert time.monotonic() - started_s < 5.0
    assert len(packed) < 60_000_000
    # One of a few: a busy machine keeps threads waiting, too, but not each time.
    assert any(_longest_gap_s(lambda: pack("lane", {}, state)) < 0.05 for _ in range(12))
    assert_same(unpack(packed, "x").state["limits"]["histogram"], histogram)


def _taken_apart(whole: bytearray) -> dict[str, str]:
    length = int.from_bytes(whole[:8], "little")
    metadata: dict[str, str] = json.loads(whole[8 : 8 + length])["__metadata__"]
    return metadata
