"""What holds for every store of checkpoints, and for a shelf on it.

A test module that imports these gives the fixtures: `store`, and `same_store`, another worker's view of it.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from streamdet.checkpoint.shelf import Shelf
from streamdet.checkpoint.store import NotThereError, Store
from streamdet.clock import SystemClock
from streamdet.errors import CheckpointError
from streamdet.events import LaneId

LANE = LaneId("sensors", 3)


def test_what_was_put_is_there_whole_until_it_is_deleted(store: Store) -> None:
    data = bytes(range(256)) * 5_000
    store.put("group/lanes/a", data)
    assert store.get("group/lanes/a") == data
    assert store.size("group/lanes/a") == len(data)
    store.put("group/lanes/a", bytearray(b"shorter"))
    assert store.get("group/lanes/a") == b"shorter"
    store.put("group/empty", b"")
    assert (store.get("group/empty"), store.size("group/empty")) == (b"", 0)
    store.delete("group/lanes/a")
    store.delete("group/lanes/a")
    with pytest.raises(NotThereError, match="group/lanes/a"):
        store.get("group/lanes/a")
    with pytest.raises(NotThereError, match="group/lanes/a"):
        store.size("group/lanes/a")


def test_names_are_those_below_a_folder_sorted(store: Store) -> None:
    assert store.names("") == store.names("group") == store.names("group/lanes/") == []
    for name in ("group/lanes/b", "group/lanes/a/1", "group/x", "group2/lanes/a", "group/lanes2"):
        store.put(name, b"x")
    assert store.names("group/lanes") == store.names("group/lanes/") == ["group/lanes/a/1", "group/lanes/b"]
    assert store.names("group") == ["group/lanes/a/1", "group/lanes/b", "group/lanes2", "group/x"]
    assert "group2/lanes/a" in store.names("")
    assert store.names("grou") == store.names("group/lanes/c/d") == []


def test_a_name_that_another_writer_put_or_deleted_meanwhile_is_seen(store: Store, same_store: Store) -> None:
    store.put("group/a", b"1")
    assert same_store.names("group") == ["group/a"]
    store.put("group/b", b"22")
    assert same_store.names("group") == ["group/a", "group/b"]
    assert same_store.size("group/b") == 2
    store.delete("group/a")
    assert same_store.names("group") == ["group/b"]


def test_only_the_first_creates(store: Store, same_store: Store) -> None:
    assert store.create("group/schema", b"first")
    assert not store.create("group/schema", b"second")
    assert not same_store.create("group/schema", b"third")
    assert store.get("group/schema") == b"first"
    assert store.names("group") == ["group/schema"]


@pytest.mark.parametrize("name", ["", "/etc/x", "../x", "a/../../x", "a/./x", "a//x", "a/", "a\0b"])
def test_no_name_leads_out_of_the_store(store: Store, name: str) -> None:
    for use in (store.get, store.size, store.delete, lambda name: store.put(name, b"")):
        with pytest.raises(CheckpointError, match="is no name"):
            use(name)


def test_a_shelf_keeps_finds_refuses_pins_and_prunes(store: Store, same_store: Store) -> None:
    shelf, other = (Shelf(place, "a group/..", 2, SystemClock()) for place in (store, same_store))
    state = {"weights": np.arange(5.0), "names": ["a", None]}
    assert shelf.lane(LANE, "id", None) is None
    assert not shelf.has_lane(LANE, "id")
    first, second, third = (shelf.put_lane(LANE, "id", at, {**state, "at": at}) for at in (10, 20, 30))
    assert first not in store.names("")
    found = other.lane(LANE, "id", 29)
    assert found is not None
    assert (found.name, found.state["at"], found.state["names"]) == (second, 20, ["a", None])
    assert found.state["weights"].tolist() == [0, 1, 2, 3, 4]
    assert other.lane(LANE, "id", 19) is None
    assert other.has_lane(LANE, "id")
    assert not other.has_lane(LANE, "id of a topic made anew")
    store.put(third, store.get(third)[:-1])
    found = other.lane(LANE, "id", None)
    assert found is not None
    assert found.name == second
    assert other.refused == {"torn": 1}
    other.pin(second)
    for at in (40, 50, 60):
        shelf.put_lane(LANE, "id", at, state)
    assert [entry.at for entry in shelf.entries()] == [20, 50, 60]
    assert shelf.agree_on_schema({"entity": "a"}) == other.agree_on_schema({"entity": "b"}) == {"entity": "a"}
    assert shelf.put_release("v1", state) is not None
    assert other.put_release("v1", state) is None
    assert other.newest_release() == "v1"


def test_two_workers_that_write_at_once_leave_whole_files_and_as_many_as_are_kept(
    store: Store, same_store: Store
) -> None:
    shelves = [Shelf(place, "group", 3, SystemClock()) for place in (store, same_store)]

    def write(shelf: Shelf) -> None:
        for at in range(0, 60, 5):
            shelf.put_lane(LANE, "", at, {"at": at})
            assert shelf.lane(LANE, "", None) is not None

    with ThreadPoolExecutor(2) as writers:
        list(writers.map(write, shelves))
    assert not shelves[0].refused
    shelves[0].prune()
    assert [entry.at for entry in shelves[0].entries()] == [50, 55, 55]
