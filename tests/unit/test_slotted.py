"""What is kept by slot: however it grew, it is what was written, and empty beyond."""

from typing import NamedTuple

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streamdet.events import Floats, Ints
from streamdet.slotted import restored, state_of, with_room


class Some(NamedTuple):
    """Something by slot."""

    seen: Ints  # (S,)
    means: Floats  # (S, 3)


def nothing(slots: int) -> Some:
    return Some(np.zeros(slots, np.int64), np.full((slots, 3), np.nan))


@given(st.lists(st.integers(0, 40), max_size=20))
def test_rows_stay_as_they_were_written_while_there_come_more(slots: list[int]) -> None:
    kept, written = nothing(1), nothing(100)
    for i, slot in enumerate(slots, 1):
        kept = with_room(kept, slot + 1, nothing)
        for some in (kept, written):
            some.seen[slot] = i
            some.means[slot] = i
    for array, expected in zip(kept, written, strict=True):
        np.testing.assert_array_equal(array, expected[: len(array)])


def test_growing_one_by_one_copies_each_row_a_few_times_only() -> None:
    kept, copied = nothing(1), 0
    for slot in range(1_000):
        before, kept = kept, with_room(kept, slot + 1, nothing)
        copied += len(before.seen) * (before is not kept)
    assert copied < 3_000


def test_what_is_restored_is_what_was_kept_and_does_not_change_with_it() -> None:
    kept = nothing(4)
    kept.means[2] = 5.0
    back = restored(Some, state_of(kept, 3))
    kept.means[2] = 6.0
    assert (len(back.seen), back.means[2].tolist()) == (3, [5.0] * 3)
    assert len(state_of(kept)["seen"]) == 4
