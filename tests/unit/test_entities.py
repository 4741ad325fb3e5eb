"""Who has which slot: a bounded table that compares whole names and lets the least recently seen go."""

from collections import OrderedDict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from strategies import cuts

from streamdet.features.entities import FIRST_SLOT, EntityTable

_names = st.lists(st.sampled_from(["", "a", "b", "c", "d", "e", "f"]), max_size=40)


class LeastRecentlySeen:
    """The reference: one event at a time, as simple as can be."""

    def __init__(self, max_entities: int) -> None:
        self._max = max_entities
        self._slots: OrderedDict[str, int] = OrderedDict()
        self.evicted = 0

    def see(self, name: str) -> tuple[int, bool]:
        if not name:
            return 0, False
        known = name in self._slots
        if not known and len(self._slots) == self._max:
            _, slot = self._slots.popitem(last=False)
            self.evicted += 1
        else:
            slot = self._slots.get(name, FIRST_SLOT + len(self._slots))
        self._slots[name] = slot
        self._slots.move_to_end(name)
        return slot, not known


@given(_names, st.integers(1, 5))
def test_slots_are_those_of_a_least_recently_seen_table(names: list[str], max_entities: int) -> None:
    table, reference = EntityTable(max_entities), LeastRecentlySeen(max_entities)
    slots, fresh = table.assign(names)
    expected = [reference.see(name) for name in names]
    assert slots.tolist() == [slot for slot, _ in expected]
    assert fresh.tolist() == [new for _, new in expected]
    assert table.evicted_total == reference.evicted
    assert len(table) <= max_entities


@given(st.data(), _names, st.integers(1, 5), st.booleans())
def test_batches_and_restarts_do_not_matter(
    data: st.DataObject, names: list[str], max_entities: int, restart: bool
) -> None:
    whole = EntityTable(max_entities)
    slots, fresh = whole.assign(names)
    table, parts = EntityTable(max_entities), []
    for start, stop in data.draw(cuts(len(names))):
        parts.append(table.assign(names[start:stop]))
        if restart:
            state = table.state()
            table = EntityTable(max_entities)
            table.restore(state)
    assert np.concatenate([s for s, _ in parts]).tolist() == slots.tolist()
    assert np.concatenate([f for _, f in parts]).tolist() == fresh.tolist()
    assert table.state() == whole.state()


@given(_names, st.integers(1, 6), st.integers(1, 6))
def test_a_smaller_table_takes_back_those_that_were_seen_last_and_tells_where_their_rows_were(
    names: list[str], before: int, after: int
) -> None:
    whole, fewer = EntityTable(before), EntityTable(after)
    slots, _ = whole.assign(names)
    rows = fewer.restore(whole.state())
    last_seen = {name: slot for name, slot in zip(names, slots.tolist(), strict=True) if name}
    last_seen = {name: last_seen[name] for name in whole.state()["names"][-after:]}
    state = fewer.state()
    assert [int(rows[slot]) for slot in state["slots"]] == list(last_seen.values())
    assert state["names"] == list(last_seen)
    assert sorted(state["slots"]) == list(range(FIRST_SLOT, FIRST_SLOT + len(last_seen)))
    assert (rows[0], len(rows)) == (0, len(fewer) + FIRST_SLOT)
    assert fewer.evicted_total == whole.evicted_total + len(whole) - len(fewer)
    if after >= before:
        assert state == whole.state()


@given(st.lists(st.text(max_size=3), min_size=1, max_size=30))
def test_different_names_never_share_a_slot(names: list[str]) -> None:
    slots, _ = EntityTable(100).assign(names)
    assert len({(name, slot) for name, slot in zip(names, slots.tolist(), strict=True)}) == len(set(names))
    assert len(set(slots.tolist())) == len(set(names))


def test_names_of_equal_32_bit_hashes_are_told_apart() -> None:
    # CRC-32 of both is 0x4ddb0c25; other tables have shared a model between such devices.
    slots, fresh = EntityTable(10).assign(["plumless", "buckeroo", "plumless"])
    assert slots.tolist() == [1, 2, 1]
    assert fresh.tolist() == [True, True, False]


def test_an_entity_that_comes_back_after_it_made_room_starts_anew() -> None:
    table = EntityTable(2)
    slots, fresh = table.assign(["a", "b", "c", "a"])
    assert slots.tolist() == [1, 2, 1, 2]
    assert fresh.all()
    assert table.evicted_total == 2
