"""Model versions of a group: what one shares the others find, and what cannot be had is said."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import WRITTEN_MAX_S, AwayStore, Group, SteppingClock
from strategies import normal_rows, schema_of

from streamdet.checkpoint.background import Background
from streamdet.checkpoint.freeze import freeze_now
from streamdet.checkpoint.shelf import Shelf
from streamdet.clock import SystemClock
from streamdet.errors import StoreUnavailableError
from streamdet.learn.trainer import Snapshot, train
from streamdet.models.release import Release
from streamdet.releases import KEPT, LOOK_EVERY_S, Releases

CPU = torch.device("cpu")
SCHEMA = schema_of(3)
ROWS = normal_rows(300, 3, seed=5)


@pytest.fixture(scope="module")
def made() -> list[Release]:
    """More versions than are kept at hand."""
    snapshots = (Snapshot(ROWS[:200], ROWS[200:], None, 0.0, at) for at in range(1, KEPT + 3))
    return [Release(train(s, None, SCHEMA, None, 0, CPU), warm=True, rows=ROWS[200:]) for s in snapshots]


def test_a_release_is_read_as_it_was_written_and_one_of_before_carries_limits_over(
    made: list[Release],
) -> None:
    state = replace(made[0], anew=True).state()
    read = Release.from_state(state, SCHEMA, CPU)
    assert (read.version.id, read.warm, read.anew) == (made[0].version.id, True, True)
    assert not Release.from_state({k: v for k, v in state.items() if k != "anew"}, SCHEMA, CPU).anew


class Member:
    """The releases of one worker."""

    def __init__(self, shelf: Shelf | None) -> None:
        self.clock, self.background = SteppingClock(), Background()
        self.releases = Releases(shelf, self.background, SCHEMA, CPU, self.clock)

    def publish(self, *releases: Release) -> None:
        for release in releases:
            self.releases.publish(release)
            assert self.background.drain(WRITTEN_MAX_S)

    def look(self) -> Release | None:
        """A look when its time has come, and the next turn."""
        self.clock.now_s += LOOK_EVERY_S
        self.releases.follow()
        assert self.background.drain(WRITTEN_MAX_S)
        self.releases.follow()
        assert [result.error for result in self.background.take_results() if result.error] == []
        return self.releases.newest


@pytest.fixture
def group(tmp_path: Path) -> Group:
    return Group(tmp_path)


@pytest.fixture
def members(group: Group) -> Iterator[tuple[Member, Member]]:
    both = Member(group.shelf), Member(group.shelf)
    yield both
    for member in both:
        member.background.close()


def test_what_one_publishes_the_others_have_within_a_look(
    members: tuple[Member, Member], made: list[Release]
) -> None:
    trainer, follower = members
    assert follower.look() is None
    for release in made[:3]:
        trainer.publish(release)
        found = follower.look()
        assert found is not None
        assert found.version.id == release.version.id
        assert found.warm
        assert np.array_equal(found.version.score(ROWS), release.version.score(ROWS))
        assert np.array_equal(found.rows.values, release.rows.values)


def test_looks_are_as_rare_as_they_may_be(members: tuple[Member, Member], made: list[Release]) -> None:
    trainer, follower = members
    follower.look()
    trainer.publish(made[0])
    follower.clock.now_s += LOOK_EVERY_S - 0.1
    for _ in range(3):
        follower.releases.follow()
        assert follower.background.drain(WRITTEN_MAX_S)
    assert follower.releases.newest is None
    assert follower.look() is not None


def test_at_the_start_the_newest_one_is_taken_up_at_once(
    members: tuple[Member, Member], made: list[Release]
) -> None:
    trainer, other = members
    trainer.publish(*made[:2])
    other.releases.look_now()
    assert other.releases.newest is not None
    assert other.releases.newest.version.id == made[1].version.id


def test_a_version_that_is_not_at_hand_any_more_is_read_from_the_store(
    members: tuple[Member, Member], made: list[Release], group: Group
) -> None:
    trainer, other = members
    trainer.publish(*made)
    for release in made:
        for member in members:
            found = member.releases.get(release.version.id)
            assert found is not None
            assert found.version.id == release.version.id
    assert trainer.releases.get(made[-1].version.id) is not None
    assert other.releases.get("unheard-of") is None
    assert len([entry for entry in group.shelf.entries() if entry.kind == "release"]) == len(made)


def test_a_version_published_twice_is_kept_once(
    members: tuple[Member, Member], made: list[Release], group: Group
) -> None:
    """As after a crash, when it is trained again."""
    for member in members:
        member.publish(made[0])
    assert len(group.shelf.entries()) == 1


def test_a_version_whose_file_is_damaged_is_not_taken_and_the_one_in_force_stays(
    members: tuple[Member, Member], made: list[Release], group: Group, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, follower = members
    trainer.publish(made[0])
    follower.look()
    trainer.publish(made[1])
    newest = max((group.folder / "group" / "models").iterdir())
    newest.write_bytes(newest.read_bytes()[:-1])
    found = follower.look()
    assert found is not None
    assert found.version.id == made[0].version.id
    assert follower.releases.get(made[1].version.id) is None
    assert "checkpoint refused" in caplog.text
    trainer.publish(made[2])
    found = follower.look()
    assert found is not None
    assert found.version.id == made[2].version.id


def test_a_store_that_is_away_is_said_and_the_next_look_finds_what_is_there(
    members: tuple[Member, Member], made: list[Release], group: Group, caplog: pytest.LogCaptureFixture
) -> None:
    members[0].publish(made[0])
    store = AwayStore("./state", group.folder)
    follower = Member(Shelf(store, "group", 3, SystemClock()))
    store.away = True
    with caplog.at_level(logging.WARNING):
        assert follower.look() is None
        with pytest.raises(StoreUnavailableError):
            follower.releases.get(made[0].version.id)
    assert caplog.text.count("the store does not answer") == 1
    store.away = False
    assert follower.look() is not None
    follower.background.close()


def test_a_version_of_a_learner_that_began_anew_does_not_replace_one_that_has_seen_the_warm_up(
    members: tuple[Member, Member], made: list[Release]
) -> None:
    trainer, follower = members
    cold = Release(made[1].version, warm=False, rows=made[1].rows)
    trainer.publish(made[0])
    trainer.publish(cold)
    for newest in (trainer.releases.newest, follower.look()):
        assert newest is not None
        assert newest.version.id == made[0].version.id
    trainer.publish(made[2])
    assert trainer.releases.newest is made[2]


def test_without_a_shelf_nothing_is_shared_and_what_is_at_hand_is_found(made: list[Release]) -> None:
    alone = Member(None)
    alone.publish(made[0])
    alone.releases.look_now()
    assert alone.look() is made[0]
    assert alone.releases.get(made[0].version.id) is made[0]
    assert alone.releases.get(made[1].version.id) is None
    alone.background.close()


def test_scores_that_carry_limits_over_are_made_once_for_all_lanes(made: list[Release]) -> None:
    first, second = made[:2]
    scores = second.scores_by(first.version)
    assert second.scores_by(first.version) is scores
    assert np.array_equal(scores, first.version.score(second.rows))
    assert len(second.without_rows().rows) == 0
    assert len(second.rows) == 100


def test_a_release_restored_is_the_one_that_was_saved(made: list[Release]) -> None:
    release = made[0]
    restored = Release.from_state(freeze_now(release.state()), SCHEMA, CPU)
    assert (restored.version.id, restored.warm) == (release.version.id, release.warm)
    assert np.array_equal(restored.version.score(ROWS), release.version.score(ROWS))
    assert np.array_equal(restored.rows.values, release.rows.values)
