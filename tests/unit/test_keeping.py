"""Saving beside judging: never ahead of a commit, never in the way, and again where it failed."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import (
    QUICK,
    SCHEMA,
    WRITTEN_MAX_S,
    Group,
    SteppingClock,
    counted,
    crash,
    readings,
    save,
    turn,
    turn_until,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamdet.checkpoint.background import Background
from streamdet.checkpoint.format import digest
from streamdet.checkpoint.shelf import Shelf
from streamdet.checkpoint.store import LocalStore
from streamdet.clock import SystemClock
from streamdet.config import Checkpoint, parse
from streamdet.errors import CheckpointError
from streamdet.events import Alert, LaneId, Position, Reject
from streamdet.keeping import Keeper
from streamdet.lane import Lane
from streamdet.serve.metrics import Metrics
from streamdet.source import Source
from streamdet.worker import FAILING_INTERVALS

LANE, OTHER = LaneId("plant", 0), LaneId("plant", 1)
EVERY_S = 30.0
AT_ONCE: dict[str, Any] = {"commit": {"offsets_every_ms": 0}}


class Store(LocalStore):
    """A folder that notes what is put, and that can be full for some names."""

    def __init__(self, root: Path) -> None:
        super().__init__("./state", root)
        self.put_names: list[str] = []
        self.refused: tuple[str, ...] = ()

    def put(self, name: str, data: bytes | bytearray) -> None:
        if any(part in name for part in self.refused):
            raise CheckpointError("no space left")
        self.put_names.append(name)
        super().put(name, data)


class Parts:
    """A keeper and what is around it."""

    def __init__(self, folder: Path) -> None:
        self.group = Group(folder)
        self.clock = SteppingClock()
        self.background = Background()
        self.metrics = Metrics()
        settings = Checkpoint(every_s=EVERY_S)
        self.keeper = Keeper(self.group.shelf, self.background, settings, self.clock, self.metrics)

    def turn(self, lanes: dict[LaneId, Lane], final: int) -> None:
        """A turn of the loop, and what the background does until the next one."""
        self.keeper.turn(lanes, final)
        assert self.background.drain(WRITTEN_MAX_S)
        self.keeper.turn(lanes, final)


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    made = Parts(tmp_path)
    yield made
    made.background.close()


def lane_at(offset: int, lane: LaneId = LANE, slots: int = 1) -> Lane:
    made = Lane.new(lane, "", SCHEMA, parse(QUICK))
    made.next_offset = offset
    widen(made, slots)
    return made


def widen(lane: Lane, slots: int) -> None:
    """As if so many entities had come."""
    lane.features.entities.assign([f"d{i}" for i in range(slots - 1)])
    raw, at = np.ones(slots), np.arange(slots)
    lane.limits.judge(raw, at, np.zeros(slots, np.bool_), alerting=False)


def test_a_snapshot_is_written_only_once_its_commit_counted_and_is_of_the_moment_it_was_taken(
    parts: Parts,
) -> None:
    lane = lane_at(100)
    before = digest(lane.state())
    parts.keeper.freeze({LANE: lane}, None, 5)
    lane.next_offset = 200
    widen(lane, 9)
    parts.turn({LANE: lane}, 4)
    assert parts.group.saved(LANE) == []
    parts.turn({LANE: lane}, 5)
    assert parts.group.saved(LANE) == [100] == list(lane.saved_at)
    found = parts.group.shelf.lane(LANE, "", None)
    assert found is not None
    assert digest(found.state) == before
    assert counted_in(parts.metrics) == {"saved": 1}


def counted_in(metrics: Metrics) -> dict[str, float]:
    samples = (s for family in metrics.registry.collect() for s in family.samples)
    return {s.labels["outcome"]: s.value for s in samples if s.name == "streamdet_checkpoints_total"}


def test_while_one_waits_for_its_commit_no_other_is_due(parts: Parts) -> None:
    lane, due = lane_at(100), [parts.keeper.due]
    parts.clock.now_s += EVERY_S
    due.append(parts.keeper.due)
    parts.keeper.freeze({LANE: lane}, None, 5)
    parts.clock.now_s += 10 * EVERY_S
    due.append(parts.keeper.due)
    parts.turn({LANE: lane}, 5)
    due.append(parts.keeper.due)
    assert due == [False, True, False, True]


@pytest.mark.parametrize("back", [False, True])
def test_a_snapshot_with_a_lane_that_was_lost_before_the_commit_counted_makes_way_for_another(
    parts: Parts, back: bool
) -> None:
    """If it came back too: what was frozen was perhaps never committed, nor what the learner had learnt of it."""
    lane, other = lane_at(100), lane_at(7, OTHER)
    parts.keeper.freeze({LANE: lane, OTHER: other}, None, 5)
    lanes = {OTHER: other} | ({LANE: lane_at(50)} if back else {})
    parts.turn(lanes, 5)
    assert parts.group.saved(LANE) == parts.group.saved(OTHER) == []
    assert parts.keeper.due
    parts.keeper.freeze(lanes, None, 6)
    parts.turn(lanes, 6)
    assert parts.group.saved(LANE) == ([50] if back else [])
    assert parts.group.saved(OTHER) == [7]


def test_a_state_that_has_grown_puts_the_save_off_and_does_not_lose_it(parts: Parts) -> None:
    lane, lanes = lane_at(100, slots=10), {}
    lanes[LANE] = lane
    for n, slots in enumerate((10, 100, 110, 400)):  # up to a quarter more there is room for
        widen(lane, slots)
        lane.next_offset = 100 + n
        parts.clock.now_s += EVERY_S
        tries = 0
        while parts.keeper.due:
            parts.keeper.freeze(lanes, None, 0)
            parts.turn(lanes, 0)
            tries += 1
        assert tries == (2 if slots in (100, 400) else 1)
        found = parts.group.shelf.lane(LANE, "", None)
        assert found is not None
        assert digest(found.state) == digest(lane.state())


def test_without_a_shelf_nothing_is_ever_due(parts: Parts) -> None:
    keeper = Keeper(None, parts.background, Checkpoint(every_s=EVERY_S), parts.clock, parts.metrics)
    parts.clock.now_s += EVERY_S
    assert not keeper.due
    keeper.begin(lane_at(0))
    keeper.finish({LANE: lane_at(0)}, None)
    assert counted_in(parts.metrics) == {}


# --- in a worker ----------------------------------------------------------------------------------------------

VALUES = readings(1_300)


class Saving:
    """A worker whose store can fail."""

    def __init__(self, folder: Path, lanes: Collection[LaneId] = (LANE,)) -> None:
        self.group, self.store, self.clock = Group(folder), Store(folder), SteppingClock()
        self.source = self.group.source(dict.fromkeys(lanes, VALUES), per_poll=20, endless=True)
        shelf = Shelf(self.store, "group", 3, SystemClock())
        self.worker = self.group.worker(self.source, shelf=shelf, clock=self.clock, **AT_ONCE)
        self.worker.restore()

    def outcomes(self, outcome: str) -> float:
        return counted(self.worker, "streamdet_checkpoints_total", outcome=outcome)

    def interval(self) -> None:
        """Judge, and let the time for a save come."""
        at = self.worker.lanes[LANE].next_offset
        turn_until(self.worker, LANE, at + 1)  # more than one turn where an adoption waits for its run
        save(self.worker, self.clock)


@pytest.fixture
def saving(tmp_path: Path) -> Iterator[Saving]:
    made = Saving(tmp_path)
    yield made
    crash(made.worker)


def test_the_learner_is_written_before_the_lanes(tmp_path: Path) -> None:
    """A crash between them leaves lanes that are behind it, which are judged again."""
    saving = Saving(tmp_path, [LANE, OTHER])
    turn_until(saving.worker, LANE, 100)
    saving.store.put_names.clear()
    save(saving.worker, saving.clock)
    assert [name.split("/")[1] for name in saving.store.put_names] == ["learner", "lanes", "lanes"]
    crash(saving.worker)


def test_where_the_learner_cannot_be_written_no_lane_gets_ahead_of_it(saving: Saving) -> None:
    saving.interval()
    before = saving.group.saved(LANE)
    saving.store.refused = ("/learner/",)
    for _ in range(5):
        saving.interval()
    assert saving.group.saved(LANE) == before
    saving.store.refused = ()
    saving.interval()
    assert saving.group.saved(LANE)[-1] == saving.worker.lanes[LANE].next_offset


def test_a_store_that_fails_is_counted_said_and_tried_again_at_the_next_interval_while_judging_goes_on(
    saving: Saving, caplog: pytest.LogCaptureFixture
) -> None:
    turn_until(saving.worker, LANE, 260)  # between two adoptions, as a version that cannot be kept counts too
    assert saving.worker.background.drain(WRITTEN_MAX_S)
    saving.store.refused = ("group",)
    for failures in (1, 2):
        saving.interval()
        assert saving.outcomes("failed") == failures
        assert caplog.text.count("checkpoint failed: no space left") == failures
        for _ in range(3):  # not before the next interval
            turn(saving.worker)
        assert saving.outcomes("failed") == failures
    saving.store.refused = ()
    saved = saving.outcomes("saved")
    saving.interval()
    assert (saving.outcomes("saved"), saving.outcomes("failed")) == (saved + 1, 2)
    assert saving.group.saved(LANE)[-1] == saving.group.offsets[LANE]


def test_health_is_red_after_three_intervals_without_a_save_and_green_after_one(saving: Saving) -> None:
    health = saving.worker.health
    saving.store.refused = ("group",)
    for _ in range(FAILING_INTERVALS + 1):
        assert health.ready
        saving.interval()
    turn(saving.worker)
    assert not saving.worker.keeper.due
    saving.interval()
    assert health.reasons().keys() == {"checkpoint"}
    saving.store.refused = ()
    saving.interval()
    turn(saving.worker)
    assert health.ready


def test_a_store_that_fails_at_the_start_of_a_lane_holds_nothing_up(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.refused = ("group",)
    group = Group(tmp_path)
    worker = group.worker(group.source({LANE: VALUES}), shelf=Shelf(store, "group", 3, SystemClock()))
    worker.restore()
    turn_until(worker, LANE, 256)
    assert counted(worker, "streamdet_checkpoints_total", outcome="failed") > 0
    crash(worker)


class Slow:
    """A delivery whose commits count when the test says so."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.full = False
        self.final = 0
        self.records_final = 0
        self.outcomes: dict[str, int] = {}
        self._begun = 0
        self._held: dict[LaneId, Position] = {}
        self._under_way: dict[LaneId, Position] = {}

    def hold(
        self,
        lane: LaneId,
        alerts: Sequence[Alert],  # noqa: ARG002 - a delivery's
        rejects: Sequence[Reject],  # noqa: ARG002
        position: Position,
        records: int,  # noqa: ARG002
    ) -> None:
        self._held[lane] = position

    def turn(self) -> None:
        pass

    def commit(self) -> int | None:
        if self._held and not self._under_way:
            self._under_way, self._held = self._held, {}
            self._begun += 1
        return None if self._held else self._begun

    def count(self) -> None:
        """What is under way has counted."""
        self.source.commit(self._under_way)
        self._under_way = {}
        self.final = self._begun

    def drop(self, lanes: Collection[LaneId]) -> None:
        for lane in lanes:
            self._held.pop(lane, None)
            self._under_way.pop(lane, None)

    def close(self) -> None:
        pass


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(["turn", "count", "interval", "lose", "wait"]), max_size=25))
def test_nothing_is_ever_saved_ahead_of_the_committed_offset(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    saving = Saving(tmp_path_factory.mktemp("slow"), [LANE, OTHER])
    delivery = Slow(saving.source)
    saving.worker.delivery = delivery
    for step in steps:
        if step == "turn":
            turn(saving.worker)
        elif step == "count":
            delivery.count()
        elif step == "interval":
            saving.clock.now_s += EVERY_S
        elif step == "wait":
            assert saving.worker.background.drain(WRITTEN_MAX_S)
        elif OTHER in saving.source.lanes:
            saving.source.take_away(OTHER)
        else:
            saving.source.give(OTHER)
        assert saving.worker.background.drain(WRITTEN_MAX_S)
        for lane in (LANE, OTHER):
            assert max(saving.group.saved(lane), default=0) <= saving.group.offsets.get(lane, 0)
    delivery.count()
    for _ in range(6):  # and it is saved in the end
        saving.clock.now_s += EVERY_S
        turn(saving.worker)
        delivery.count()
        assert saving.worker.background.drain(WRITTEN_MAX_S)
    assert saving.group.saved(LANE)[-1] > 0
    crash(saving.worker)
