"""Rows wait before they are learnt, and those before an incident that shows late are not learnt at all."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streamdet.events import Bools, Rows
from streamdet.learn.quarantine import ROWS, STRANGE_SHARE_MAX, Quarantine, Released

N = 5 * ROWS


def numbered(n: int) -> Rows:
    return Rows(np.arange(n, dtype=np.float32).reshape(n, 1), np.zeros((n, 1), np.bool_))


def released(normal: Bools, cuts: list[int], *, restart_at: int = -1) -> list[Released]:
    """What comes out, in the order in which it does, when the rows go in between these cuts."""
    rows, fed, quarantine, out = numbered(len(normal)), np.ones(len(normal), np.bool_), Quarantine(1), []
    for number, (first, end) in enumerate(itertools.pairwise([0, *sorted(cuts), len(normal)])):
        if number == restart_at:
            before, quarantine = quarantine, Quarantine(1)
            quarantine.restore({name: np.copy(array) for name, array in before.state().items()})
        out.append(quarantine.add(rows[first:end], normal[first:end], fed[first:end], first))
    return out


def learnt(parts: list[Released]) -> list[int]:
    return [int(v) for part in parts for v in part.rows.values[part.normal, 0]]


def test_rows_come_out_in_order_once_so_many_have_followed() -> None:
    parts = released(np.ones(N, np.bool_), [10, 300])
    assert [len(part.rows) for part in parts] == [0, 300 - ROWS, N - 300]
    assert learnt(parts) == list(range(N - ROWS))
    assert [part.first for part in parts[1:]] == [0, 300 - ROWS]


def test_rows_just_before_an_incident_are_not_learnt_and_those_after_it_are_again() -> None:
    normal = np.ones(N, np.bool_)
    normal[2 * ROWS : 3 * ROWS] = False
    kept = set(learnt(released(normal, [])))
    late = int(ROWS * (1 - STRANGE_SHARE_MAX))
    assert kept == {*range(2 * ROWS - late + 1), *range(3 * ROWS, N - ROWS)}


def test_what_serves_as_reference_is_not_held_back_by_an_incident() -> None:
    normal = np.zeros(N, np.bool_)
    parts = released(normal, [])
    assert not learnt(parts)
    assert parts[0].fed.all()


@given(
    cuts=st.lists(st.integers(0, N), max_size=6),
    restart_at=st.integers(0, 6),
    strange=st.lists(st.integers(0, N - 1), max_size=4),
)
def test_neither_batches_nor_a_restart_matter(cuts: list[int], restart_at: int, strange: list[int]) -> None:
    normal = np.ones(N, np.bool_)
    for first in strange:
        normal[first : first + ROWS] = False
    assert learnt(released(normal, cuts, restart_at=restart_at)) == learnt(released(normal, []))
