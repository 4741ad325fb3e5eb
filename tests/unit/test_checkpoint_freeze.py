"""Frozen states: as they were at that moment, in memory that was there before."""

import threading
from typing import Any

import numpy as np

from streamdet.checkpoint.freeze import LARGE_BYTES, Buffers, freeze_now

ROWS = LARGE_BYTES // 8


def state(rows: int = ROWS) -> dict[str, Any]:
    return {
        "limits": {"histogram": np.arange(2.0 * rows).reshape(rows, 2), "tokens": np.ones(3)},
        "names": ["a", "b"],
        "total": np.array(1.5),
        "count": 3,
    }


def prepared(for_state: dict[str, Any]) -> Buffers:
    buffers = Buffers()
    assert buffers.freeze(for_state) is None
    preparing = threading.Thread(target=buffers.prepare)
    preparing.start()
    preparing.join()
    return buffers


def assert_same(frozen: Any, expected: Any) -> None:
    np.testing.assert_equal(frozen, expected)
    assert frozen["limits"]["histogram"].dtype == expected["limits"]["histogram"].dtype


def test_a_frozen_state_does_not_follow_the_one_it_was_made_of() -> None:
    changing = state()
    buffers = prepared(changing)
    for frozen in (buffers.freeze(changing), freeze_now(changing)):
        assert_same(frozen, state())
        assert frozen is not None
        assert not np.shares_memory(frozen["limits"]["histogram"], changing["limits"]["histogram"])
    frozen = buffers.freeze(changing)
    changing["limits"]["histogram"][:] = -1
    changing["limits"]["tokens"][:] = -1
    changing["total"][...] = -1
    changing["names"].append("c")
    assert_same(frozen, state())


def test_freezing_again_takes_the_same_memory() -> None:
    buffers = prepared(state())
    first, second = buffers.freeze(state()), buffers.freeze(state())
    assert first is not None
    assert second is not None
    assert np.shares_memory(first["limits"]["histogram"], second["limits"]["histogram"])


def test_a_state_that_grows_a_little_has_room_and_one_that_grows_a_lot_is_prepared_for() -> None:
    buffers = prepared(state())
    assert_same(buffers.freeze(state(ROWS * 5 // 4)), state(ROWS * 5 // 4))
    assert buffers.freeze(state(ROWS * 2)) is None
    buffers.prepare()
    assert_same(buffers.freeze(state(ROWS * 2)), state(ROWS * 2))
    assert_same(buffers.freeze(state(ROWS)), state(ROWS))


def test_small_arrays_need_no_preparation() -> None:
    small = {"a": np.arange(5.0), "nothing": np.zeros((0, 1000))}
    np.testing.assert_equal(Buffers().freeze(small), small)


def test_another_dtype_or_width_is_prepared_for_and_what_is_needed_no_more_is_given_back() -> None:
    buffers = prepared(state())
    for other in (np.ones((ROWS, 4)), np.ones((ROWS, 2), np.int64), np.ones(ROWS)):
        changed = {"limits": {"histogram": other}}
        assert buffers.freeze(changed) is None
        buffers.prepare()
        np.testing.assert_equal(buffers.freeze(changed), changed)
    other_place = {"weights": np.ones(ROWS)}
    assert buffers.freeze(other_place) is None
    buffers.prepare()
    assert list(buffers._buffers) == [("weights",)]


def test_preparing_without_need_changes_nothing() -> None:
    buffers = prepared(state())
    buffers.prepare()
    assert_same(buffers.freeze(state()), state())


def test_keys_with_slashes_are_told_apart() -> None:
    alike = {"a/b": {"c": np.zeros(ROWS)}, "a": {"b/c": np.ones(ROWS)}}
    buffers = prepared(alike)
    np.testing.assert_equal(buffers.freeze(alike), alike)


def test_a_view_is_frozen_as_what_it_shows() -> None:
    view = {"a": np.arange(4.0 * ROWS).reshape(ROWS, 4)[::2, 1:3]}
    frozen = prepared(view).freeze(view)
    np.testing.assert_equal(frozen, view)
