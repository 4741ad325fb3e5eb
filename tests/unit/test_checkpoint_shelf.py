"""What a group keeps: the newest sound state at or before an offset, and no more of it than asked for."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamdet.checkpoint.format import digest, pack
from streamdet.checkpoint.shelf import RELEASES_KEPT, Shelf
from streamdet.checkpoint.store import LocalStore
from streamdet.errors import CheckpointError
from streamdet.events import LaneId

LANE = LaneId("sensors", 3)
STATE: dict[str, Any] = {"weights": np.arange(5.0), "names": ["a", None]}


class SteppingClock:
    """Each look is a second later."""

    def __init__(self) -> None:
        self._now_ms = 1_700_000_000_000

    def now_ms(self) -> int:
        self._now_ms += 1000
        return self._now_ms

    def monotonic_s(self) -> float:
        return self._now_ms / 1000

    def sleep_s(self, seconds: float) -> None:
        raise AssertionError(seconds)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore("./state", tmp_path)


@pytest.fixture
def shelf(store: LocalStore) -> Shelf:
    return Shelf(store, "group", 3, SteppingClock())


def offsets(shelf: Shelf, kind: str = "lane") -> list[int]:
    return [entry.at for entry in shelf.entries() if entry.kind == kind]


def test_the_newest_at_or_before_an_offset_is_found(shelf: Shelf) -> None:
    names = {at: shelf.put_lane(LANE, "id", at, {**STATE, "at": at}) for at in (9, 10, 100)}
    for at_most, at in ((None, 100), (100, 100), (99, 10), (10, 10), (9, 9)):
        found = shelf.lane(LANE, "id", at_most)
        assert found is not None
        assert (found.name, found.state["at"]) == (names[at], at)
        assert found.about["next_offset"] == at
    assert shelf.lane(LANE, "id", 8) is None


def test_a_state_that_was_found_is_the_one_that_was_put(shelf: Shelf) -> None:
    shelf.put_lane(LANE, "id", 1, STATE)
    found = shelf.lane(LANE, "id", None)
    assert found is not None
    assert digest(found.state) == digest(STATE)


def test_of_two_with_the_same_offset_the_one_written_last_is_found(shelf: Shelf) -> None:
    for n in range(12):
        shelf.put_lane(LANE, "", 7, {"n": n})
    found = shelf.lane(LANE, "", 7)
    assert found is not None
    assert found.state["n"] == 11


def test_lanes_topics_made_anew_and_groups_do_not_see_each_other(store: LocalStore, shelf: Shelf) -> None:
    shelf.put_lane(LANE, "id", 1, STATE)
    assert shelf.lane(LaneId("sensors", 30), "id", None) is None
    assert shelf.lane(LaneId("sensor", 3), "id", None) is None
    assert shelf.lane(LANE, "", None) is None
    assert Shelf(store, "group2", 3, SteppingClock()).lane(LANE, "id", None) is None
    assert not shelf.has_lane(LANE, "another")
    assert shelf.has_lane(LANE, "id")


@pytest.mark.parametrize("text", ["..", ".", "a/../../b", "a b", "é\n", "-", "a-b", "%2E"])
def test_whatever_a_group_or_topic_is_called_it_stays_in_its_place(store: LocalStore, text: str) -> None:
    shelf = Shelf(store, text, 3, SteppingClock())
    lane = LaneId(text, 0)
    name = shelf.put_lane(lane, text, 1, STATE)
    assert len(name.split("/")) == 6
    assert (store.root / name).resolve().is_relative_to(store.root)
    assert shelf.lane(lane, text, None) is not None
    shelf.put_release(text, STATE)
    assert (shelf.newest_release(), shelf.release(text) is not None) == (text, True)
    assert [(entry.topic, entry.partition) for entry in shelf.entries() if entry.kind == "lane"] == [
        (text, 0)
    ]


def test_what_is_not_sound_is_refused_with_the_reason_and_the_one_before_is_used(
    store: LocalStore, shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    names = [shelf.put_lane(LANE, "id", at, {"at": at}) for at in (10, 20, 30)]
    torn, tampered = store.root / names[2], store.root / names[1]
    torn.write_bytes(torn.read_bytes()[:-9] + b"x")
    tampered.write_bytes(tampered.read_bytes().replace(b'{\\"at\\": 20}', b'{\\"at\\": 21}'))
    found = shelf.lane(LANE, "id", None)
    assert found is not None
    assert found.state["at"] == 10
    assert shelf.refused == {"torn": 1, "tampered": 1}
    assert f"checkpoint refused: {names[2]} is torn" in caplog.text
    assert f"checkpoint refused: {names[1]} is not what was written" in caplog.text


def test_what_lies_in_anothers_place_is_refused(
    store: LocalStore, shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    place = store.root / shelf.put_lane(LANE, "id", 10, STATE)
    others = [
        Shelf(store, "group2", 3, SteppingClock()).put_lane(LANE, "id", 10, STATE),
        shelf.put_lane(LaneId("sensors", 4), "id", 10, STATE),
        shelf.put_lane(LANE, "id before", 10, STATE),
        shelf.put_lane(LANE, "id", 11, STATE),
        shelf.put_learner(10, STATE),
    ]
    for other in others:
        shutil.copy(store.root / other, place)
        assert shelf.lane(LANE, "id", 10) is None, other
    assert shelf.refused == {"foreign": len(others)}
    assert "its partition is 4, expected 3" in caplog.text


def test_a_copy_of_a_group_is_a_group(store: LocalStore, shelf: Shelf, tmp_path: Path) -> None:
    shelf.put_lane(LANE, "id", 1, STATE)
    shutil.copytree(store.root / "group", tmp_path / "copy" / "group")
    assert (
        Shelf(LocalStore("", tmp_path / "copy"), "group", 3, SteppingClock()).lane(LANE, "id", 1) is not None
    )


def test_a_store_that_cannot_be_read_is_not_a_cold_start(store: LocalStore, shelf: Shelf) -> None:
    name = shelf.put_lane(LANE, "id", 1, STATE)
    (store.root / name).unlink()
    (store.root / name).symlink_to(store.root / name)
    with pytest.raises(CheckpointError, match="cannot read"):
        shelf.lane(LANE, "id", None)
    assert not shelf.refused


def test_what_another_worker_pruned_while_it_was_looked_for_is_passed_over(store: LocalStore) -> None:
    class Pruned(LocalStore):
        def names(self, prefix: str) -> list[str]:
            names = super().names(prefix)
            self.delete(names[-1])
            return names

    Shelf(store, "group", 3, SteppingClock()).put_lane(LANE, "id", 1, STATE)
    last = Shelf(store, "group", 3, SteppingClock()).put_lane(LANE, "id", 2, STATE)
    pruned = Shelf(Pruned("", store.root), "group", 3, SteppingClock())
    found = pruned.lane(LANE, "id", None)
    assert found is not None
    assert found.about["next_offset"] == 1
    assert not pruned.refused
    assert pruned.entries() == []
    assert not (store.root / last).exists()


def test_so_many_are_kept_and_pinned_ones_besides(store: LocalStore, shelf: Shelf) -> None:
    first = shelf.put_lane(LANE, "id", 0, STATE)
    shelf.pin(first)
    other = LaneId("sensors", 4)
    for at in range(1, 8):
        shelf.put_lane(LANE, "id", at, STATE)
        shelf.put_lane(other, "id", 10 * at, STATE)
        shelf.put_learner(at, STATE)
    assert offsets(shelf) == [0, 5, 6, 7, 50, 60, 70]
    assert offsets(shelf, "learner") == [5, 6, 7]
    assert [entry.name for entry in shelf.entries() if entry.pinned] == [first]
    shelf.unpin(first)
    shelf.unpin(first)
    shelf.prune()
    assert offsets(shelf) == [5, 6, 7, 50, 60, 70]
    Shelf(store, "group", 1, SteppingClock()).prune()
    assert (offsets(shelf), offsets(shelf, "learner")) == ([7, 70], [7])


def test_only_what_is_there_can_be_pinned(shelf: Shelf) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        shelf.pin("group/lanes/x")
    with pytest.raises(CheckpointError, match="is no name"):
        shelf.pin("../x")


def test_who_has_lost_a_lane_drops_nothing_of_its_new_owners(store: LocalStore, shelf: Shelf) -> None:
    owner = Shelf(store, "group", 3, SteppingClock())
    theirs = [owner.put_lane(LANE, "id", at, STATE) for at in (100, 110, 120)]
    for at in range(50, 60):
        shelf.put_lane(LANE, "id", at, STATE)
    assert offsets(shelf) == [57, 58, 59, 100, 110, 120]
    assert {entry.name for entry in shelf.entries()} > set(theirs)


def test_after_a_group_was_set_back_what_is_written_now_is_kept_and_found(shelf: Shelf) -> None:
    for at in (100, 110, 120):
        shelf.put_lane(LANE, "id", at, STATE)
    name = shelf.put_lane(LANE, "id", 7, STATE)
    found = shelf.lane(LANE, "id", 8)
    assert found is not None
    assert found.name == name
    shelf.put_lane(LANE, "id", 200, STATE)
    assert offsets(shelf) == [110, 120, 200]


def test_files_of_other_names_are_nobodys_business(store: LocalStore, shelf: Shelf) -> None:
    name = shelf.put_lane(LANE, "id", 1, STATE)
    folder = (store.root / name).parent
    others = ["notes.txt", "backup.safetensors", "²-x.safetensors", "00000000000000000009-x.safetensors.old"]
    for other in others:
        (folder / other).write_text("keep me")
    elsewhere = store.root / "group" / "lanes" / Path(name).name
    shutil.copy(store.root / name, elsewhere)
    for at in range(2, 9):
        shelf.put_lane(LANE, "id", at, STATE)
    shelf.prune()
    assert offsets(shelf) == [6, 7, 8]
    assert elsewhere.exists()
    assert {path.name for path in folder.iterdir()} > set(others)


def test_the_learner_that_has_seen_most_is_found(store: LocalStore, shelf: Shelf) -> None:
    assert shelf.learner() is None
    for seen in (9, 10):
        name = shelf.put_learner(seen, {"seen": seen})
    (store.root / shelf.put_learner(100, {"seen": 100})).write_bytes(b"torn")
    found = shelf.learner()
    assert found is not None
    assert (found.name, found.state["seen"], shelf.refused) == (name, 10, {"torn": 1})


def test_a_version_is_kept_once_and_the_newest_is_known_by_name(store: LocalStore, shelf: Shelf) -> None:
    assert shelf.newest_release() is None
    assert shelf.release("v-1") is None
    assert shelf.put_release("v-1", {"n": 1}) is not None
    assert shelf.put_release("1", {"n": 2}) is not None
    assert shelf.put_release("v-1", {"n": 3}) is None
    assert shelf.newest_release() == "1"
    assert (shelf.release("v-1"), shelf.release("1"), shelf.release("v")) == ({"n": 1}, {"n": 2}, None)
    (torn,) = (store.root / "group" / "models").glob("*-v-1.*")
    torn.write_bytes(b"torn")
    assert shelf.release("v-1") is None
    assert shelf.refused == {"torn": 1}


def test_releases_are_bounded(store: LocalStore, shelf: Shelf) -> None:
    data = pack("release", {}, {})
    for n in range(RELEASES_KEPT + 5):
        store.put(f"group/models/{n:015d}-v{n}.safetensors", data)
    shelf.put_release("new", STATE)
    kept = offsets(shelf, "release")
    assert (len(kept), kept[0]) == (RELEASES_KEPT, 6)


def test_a_release_comes_after_those_of_a_clock_that_is_ahead(store: LocalStore, shelf: Shelf) -> None:
    store.put("group/models/009999999999999-early.safetensors", pack("release", {}, {}))
    shelf.put_release("late", STATE)
    assert shelf.newest_release() == "late"


def test_the_first_schema_holds_for_all(store: LocalStore, shelf: Shelf) -> None:
    assert shelf.schema() is None
    other = Shelf(store, "group", 3, SteppingClock())
    assert shelf.agree_on_schema({"entity": "é"}) == {"entity": "é"}
    assert other.agree_on_schema({"entity": "b"}) == {"entity": "é"}
    assert other.schema() == {"entity": "é"}


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000])
def test_a_schema_that_is_none_is_said_with_what_to_do(store: LocalStore, shelf: Shelf, content: str) -> None:
    store.put("group/schema.json", content.encode())
    with pytest.raises(CheckpointError, match=r"group/schema.json in ./state is no .* delete it"):
        shelf.schema()


def test_a_list_says_what_there_is(shelf: Shelf) -> None:
    name = shelf.put_lane(LANE, "id", 17, STATE)
    shelf.pin(name)
    shelf.put_release("v1", STATE)
    lane, release = shelf.entries()
    assert lane[:6] == (name, "lane", "sensors", "id", 3, 17)
    assert (lane.pinned, lane.size > 100) == (True, True)
    assert (release.kind, release.topic, release.partition, release.pinned) == ("release", None, None, False)
    assert 1_700_000_000_000 < release.at < 1_700_001_000_000
