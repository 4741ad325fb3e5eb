"""How a lane comes back: from which checkpoint, with which versions where, and what is said where it cannot."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import (
    WRITTEN_MAX_S,
    AwayStore,
    FakeSink,
    FakeSource,
    Group,
    SteppingClock,
    StopAfter,
    counted,
    crash,
    readings,
    save,
    turn,
    turn_until,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamdet.checkpoint.format import digest
from streamdet.checkpoint.shelf import Shelf
from streamdet.clock import SystemClock
from streamdet.errors import CheckpointError
from streamdet.events import Batch, LaneId, Records
from streamdet.lane import read
from streamdet.learn.learner import Learner
from streamdet.releases import LOOK_EVERY_S
from streamdet.worker import FIRST_MODEL_S, STORE_RETRY_S, Worker, run

LANE, OTHER = LaneId("plant", 0), LaneId("plant", 1)
END = 1_500
SPIKES = (700, 1_200, 1_450)
VALUES = readings(END, spikes=SPIKES)
SAVED = (300, 600, 1_100, 1_400)
# Runs of the quick settings start at 64, 128, 256, 512 and 1,024 events; the last is adopted 256 events later.
ADOPTED = [64, 128, 256, 512, 1_280]
AT_ONCE: dict[str, Any] = {"commit": {"offsets_every_ms": 0}}
NEVER = StopAfter()


class WithGaps(FakeSource):
    """A lane of which compaction has taken every seventh record, those around adoptions among them."""

    def poll(self, max_events: int) -> Batch:
        parts = []
        for part in super().poll(max_events).parts:
            there = np.flatnonzero((part.offsets % 7 != 4) & ~np.isin(part.offsets, [513, 514, 515])).tolist()
            keys, values = [part.keys[i] for i in there], [part.values[i] for i in there]
            parts.append(Records(part.lane, part.offsets[there], part.timestamps_ms[there], keys, values))
        return Batch([part for part in parts if len(part)])


class Life:
    """What a worker left behind that saved now and then and was killed at the end, and what was its state then."""

    def __init__(self, folder: Path, kind: type[FakeSource] = FakeSource) -> None:
        self.group, self.kind, clock = Group(folder, keep=1_000), kind, SteppingClock()
        source, self.sink, seen = self.source(per_poll=100), FakeSink(), StopAfter()
        worker = self.group.worker(source, self.sink, clock=clock, observers=[seen], **AT_ONCE)
        worker.restore()
        for offset in SAVED:
            turn_until(worker, LANE, offset)
            save(worker, clock)
        while not source.exhausted:
            turn(worker)
        assert worker.background.drain(WRITTEN_MAX_S)  # a version that was adopted just before the end too
        crash(worker)
        assert worker.learner is not None
        self.lane = digest(worker.lanes[LANE].state())
        self.learner = digest(worker.learner.state())
        self.timeline = [adoption.offset for adoption in worker.lanes[LANE].timeline]
        self.found = verdicts(seen)

    def source(self, group: Group | None = None, **how: Any) -> FakeSource:
        group = self.group if group is None else group
        return self.kind({LANE: VALUES}, group.offsets, notes=group.notes, **how)


def verdicts(seen: StopAfter, lane: LaneId = LANE) -> dict[int, tuple[float, float, bool]]:
    """Score, limit and verdict by offset; NaN as -1, so that they can be compared."""
    found: dict[int, tuple[float, float, bool]] = {}
    for part in seen.parts:
        if part.lane == lane:
            columns = part.verdicts.raw, part.verdicts.limit, part.verdicts.flagged
            numbers = zip(*(np.nan_to_num(column, nan=-1.0).tolist() for column in columns), strict=True)
            found.update(zip(part.decoded.events.offsets.tolist(), numbers, strict=True))
    return found


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    return Life(tmp_path_factory.mktemp("life"))


@pytest.fixture(scope="module")
def life_with_gaps(tmp_path_factory: pytest.TempPathFactory) -> Life:
    return Life(tmp_path_factory.mktemp("gaps"), WithGaps)


@pytest.fixture
def group(life: Life, tmp_path: Path) -> Group:
    return life.group.copied(tmp_path)


def files(group: Group, what: str) -> list[Path]:
    """Those of lanes, of the learner or of models, oldest first."""
    return sorted((group.folder / "group" / what).rglob("*.safetensors"))


def forget_beyond(group: Group, offset: int, *, of: Sequence[str] = ("lanes", "learner")) -> None:
    """Delete what was saved later."""
    for what in of:
        for path in files(group, what):
            if int(path.name.split("-")[0]) > offset:
                path.unlink()


def begun(group: Group, **given: Any) -> Worker:
    """A worker that has just taken the lane up."""
    worker = group.worker(group.source({LANE: VALUES}), **given)
    worker.restore()
    return worker


def test_a_lane_goes_on_from_the_newest_checkpoint_at_or_before_its_committed_offset(group: Group) -> None:
    at = group.saved(LANE)
    assert at[0] == 0
    assert len(at) == 1 + len(SAVED)
    for committed, expected in ((at[3], at[3]), (at[3] - 1, at[2]), (at[4] + 1, at[4]), (1, 0)):
        group.offsets[LANE] = committed
        worker = begun(group)
        assert worker.lanes[LANE].next_offset == expected
        assert worker.lanes[LANE].published == committed
        assert ("seek", LANE, expected) in getattr(worker.source, "journal")  # noqa: B009 - a FakeSource has one
        assert counted(worker, "streamdet_cold_starts_total") == 0
        crash(worker)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[: len(data) // 2], "torn"),
        (lambda _: b"", "torn"),
        (lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:], "tampered"),
    ],
)
def test_a_checkpoint_that_is_not_sound_is_refused_and_counted_and_the_one_before_is_taken(
    group: Group, damage: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    newest = files(group, "lanes")[-1]
    newest.write_bytes(damage(newest.read_bytes()))
    shelf = group.shelf
    worker = begun(group, shelf=shelf)
    assert worker.lanes[LANE].next_offset == group.saved(LANE)[-2]
    assert shelf.refused == {reason: 1}
    assert "checkpoint refused" in caplog.text
    crash(worker)


def test_without_a_sound_checkpoint_a_lane_starts_cold_where_the_group_is_and_that_is_said_and_counted(
    group: Group, caplog: pytest.LogCaptureFixture
) -> None:
    for path in files(group, "lanes"):
        path.write_bytes(b"")
    shelf, seen = group.shelf, StopAfter()
    group.offsets[LANE] = 1_000
    worker = group.worker(group.source({LANE: VALUES}), shelf=shelf, observers=[seen])
    run(worker, NEVER)
    assert seen.offsets(LANE) == list(range(1_000, END))
    assert counted(worker, "streamdet_cold_starts_total") == 1
    assert counted(worker, "streamdet_checkpoints_refused", reason="torn") == shelf.refused["torn"] >= 3
    assert f"lane={LANE} starts cold at=1000: no usable checkpoint at or before that offset in" in caplog.text


@pytest.mark.parametrize("lost", ["unsound", "ahead", "none"])
def test_where_it_is_asked_for_a_lane_does_not_start_without_its_state(group: Group, lost: str) -> None:
    for path in files(group, "lanes"):
        if lost == "unsound":
            path.write_bytes(b"")
        elif lost == "none" or path.name.startswith("0" * 20):
            path.unlink()
    group.offsets[LANE] = 200
    source = group.source({LANE: VALUES})
    said = "no checkpoint of it" if lost == "none" else "no usable checkpoint"
    with pytest.raises(
        CheckpointError, match=f"{LANE} cannot go on at its committed offset 200: {said}.*strict: false"
    ):
        run(group.worker(source, checkpoint={"strict": True}), NEVER)
    assert source.journal[-1] == "close source"
    assert group.offsets[LANE] == 200


def test_a_lane_of_which_nothing_was_committed_may_begin_even_then(tmp_path: Path) -> None:
    group = Group(tmp_path)
    worker = begun(group, checkpoint={"strict": True})
    assert worker.lanes[LANE].next_offset == 0
    crash(worker)


def test_a_checkpoint_of_more_entities_than_may_be_kept_is_not_used_and_that_is_said(
    group: Group, caplog: pytest.LogCaptureFixture
) -> None:
    worker = begun(group, input={"entity": "device", "max_entities": 3})
    assert "its checkpoint has 4 entities, input.max_entities is now 3" in caplog.text
    assert worker.lanes[LANE].next_offset == worker.lanes[LANE].published == END
    assert counted(worker, "streamdet_cold_starts_total") == 1
    crash(worker)
    with pytest.raises(CheckpointError, match="4 entities"):
        begun(group, input={"entity": "device", "max_entities": 3}, checkpoint={"strict": True})


def test_a_lane_is_never_beyond_what_the_learner_has_learnt_if_there_is_an_older_checkpoint(
    group: Group, life: Life
) -> None:
    """Or the learner would miss what lies between; and it sees nothing twice."""
    forget_beyond(group, 700, of=["learner"])
    seen = StopAfter()
    worker = group.worker(group.source({LANE: VALUES}, per_poll=90), observers=[seen], **AT_ONCE)
    worker.restore()
    assert worker.learner is not None
    learnt = worker.learner.positions[LANE]
    assert worker.lanes[LANE].next_offset == learnt == group.saved(LANE)[2]
    turn_until(worker, LANE, END)
    assert digest(worker.learner.state()) == life.learner
    assert digest(worker.lanes[LANE].state()) == life.lane
    crash(worker)


def test_where_there_is_no_such_checkpoint_the_newest_of_all_is_better_than_none(group: Group) -> None:
    forget_beyond(group, 700, of=["learner"])
    for path in files(group, "lanes")[:-1]:
        path.unlink()
    worker = begun(group)
    assert worker.lanes[LANE].next_offset == group.saved(LANE)[-1]
    crash(worker)


def repeated(life: Life, group: Group, per_poll: int) -> tuple[Worker, StopAfter]:
    """A worker that does not train has judged again all that was judged."""
    seen, source = StopAfter(), life.source(group, per_poll=per_poll)
    source.leading = False
    worker = group.worker(source, observers=[seen])
    worker.restore()
    while not source.exhausted:
        turn(worker)
    crash(worker)
    return worker, seen


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(per_poll=st.integers(1, 700), at=st.sampled_from([0, *SAVED]), gaps=st.booleans())
def test_recorded_adoptions_are_repeated_at_the_same_offsets_however_batches_are_cut(
    life: Life,
    life_with_gaps: Life,
    tmp_path_factory: pytest.TempPathFactory,
    per_poll: int,
    at: int,
    gaps: bool,
) -> None:
    original = life_with_gaps if gaps else life
    group = original.group.copied(tmp_path_factory.mktemp("copy"))
    forget_beyond(group, at + 50)
    worker, seen = repeated(original, group, max(per_poll, 20) if at < 1_000 else per_poll)
    found = verdicts(seen)
    assert found == {offset: original.found[offset] for offset in found}
    assert max(found) == max(original.found)
    assert [adoption.offset for adoption in worker.lanes[LANE].timeline] == original.timeline
    assert digest(worker.lanes[LANE].state()) == original.lane
    assert not worker.lanes[LANE].ahead


def test_adoptions_are_where_their_counts_came(life: Life) -> None:
    assert life.timeline == ADOPTED
    assert [a.offset for a in read(life.group.notes[LANE])] == ADOPTED


def test_what_is_judged_again_is_not_published_again(life: Life, group: Group) -> None:
    forget_beyond(group, 50)
    source, sink = group.source({LANE: VALUES}), FakeSink()
    source.leading = False
    run(group.worker(source, sink), NEVER)
    assert sink.ids == []
    assert {alert.source.offset for alert in life.sink.alerts} >= set(SPIKES)


def test_where_a_lane_is_back_is_said_once_when_it_judges_nothing_again(
    group: Group, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    worker = begun(group)
    until = worker.lanes[LANE].published
    assert worker.lanes[LANE].next_offset < until
    assert "is back" not in caplog.text
    turn_until(worker, LANE, until)
    turn(worker)
    turn(worker)
    assert caplog.text.count(f"lane={LANE} is back at={until}") == 1
    crash(worker)


def test_a_version_that_is_gone_from_the_store_is_said_and_left_out(
    life: Life, group: Group, caplog: pytest.LogCaptureFixture
) -> None:
    forget_beyond(group, 350)
    *kept, gone, last = files(group, "models")
    gone.unlink()
    worker, seen = repeated(life, group, per_poll=200)
    assert (
        f"lane={LANE} cannot adopt version={gone.stem.split('-')[1]} at=512 again: it is gone" in caplog.text
    )
    versions = [adoption.version for adoption in worker.lanes[LANE].timeline]
    assert versions == [path.stem.split("-")[1] for path in (*kept, last)]
    assert max(verdicts(seen)) == END - 1
    assert not worker.lanes[LANE].repeating


@pytest.mark.parametrize("per_poll", [200, 512 - 300])
def test_a_lane_waits_for_a_version_that_cannot_be_read_where_it_was_adopted(
    life: Life, group: Group, caplog: pytest.LogCaptureFixture, per_poll: int
) -> None:
    forget_beyond(group, 350)
    store, clock = AwayStore("./state", group.folder), SteppingClock()
    store.part = "models"
    seen, source = StopAfter(), life.source(group, per_poll=per_poll)
    source.leading = False
    shelf = Shelf(store, "group", group.keep, SystemClock())
    worker = group.worker(source, observers=[seen], clock=clock, shelf=shelf)
    worker.restore()
    turn_until(worker, LANE, ADOPTED[2] + 1)
    store.away = True
    for _ in range(6):
        turn(worker)
        clock.now_s += STORE_RETRY_S
    assert worker.lanes[LANE].next_offset == ADOPTED[3]
    assert list(worker.health.reasons()) == ["store"]
    store.away = False
    while not source.exhausted:
        turn(worker)
    crash(worker)
    assert verdicts(seen) == {offset: life.found[offset] for offset in verdicts(seen)}
    assert max(verdicts(seen)) == END - 1
    assert caplog.text.count("judging waits for the checkpoints") == 1
    assert not worker.health.reasons()


def test_a_topic_made_anew_starts_cold_and_is_published_from_its_beginning(tmp_path: Path) -> None:
    group, sink = Group(tmp_path), FakeSink()
    source = group.source({LANE: VALUES}, per_poll=100)
    source.topic_ids["plant"] = "one"
    worker = group.worker(source, sink, **AT_ONCE)
    worker.restore()
    turn_until(worker, LANE, END)
    assert set(SPIKES) <= {alert.source.offset for alert in sink.alerts}
    sink.alerts.clear()

    source.topic_ids["plant"] = "two"  # and its offsets are gone with it, as Kafka has it
    group.offsets.clear()
    group.notes.clear()
    source.seek(LANE, 0)
    turn(worker)
    assert worker.lanes[LANE].topic_id == "two"
    assert worker.lanes[LANE].published == 0
    assert counted(worker, "streamdet_cold_starts_total") == 2
    assert len(worker.lanes[LANE].features.entities) <= 4
    assert worker.learner is not None
    assert worker.learner.positions[LANE] == worker.lanes[LANE].next_offset
    turn_until(worker, LANE, END)
    assert set(SPIKES) <= {alert.source.offset for alert in sink.alerts}
    assert group.offsets == {LANE: END}
    crash(worker)
    assert {entry.topic_id for entry in group.shelf.entries() if entry.topic} == {"one", "two"}


# --- several workers ------------------------------------------------------------------------------------------

STREAMS: Mapping[LaneId, Sequence[bytes | None]] = {
    LANE: VALUES,
    OTHER: readings(END, seed=9, spikes=(800, 1_100, 1_400)),
}
# One version of the end of the warm-up, for good: what comes later depends on who trains on what.
STATIC: dict[str, Any] = {**AT_ONCE, "learning": {"warmup": 512, "enabled": False}}


class Member:
    """A worker of the group, with a source and a shelf of its own."""

    def __init__(self, group: Group, lanes: Sequence[LaneId], *, leads: bool, **given: Any) -> None:
        self.clock, self.sink, self.seen = SteppingClock(), FakeSink(), StopAfter()
        self.source = group.source(STREAMS, per_poll=100, endless=True)
        self.source.leading = leads
        for lane in STREAMS.keys() - set(lanes):
            self.source.take_away(lane)
        self.worker = group.worker(self.source, self.sink, clock=self.clock, observers=[self.seen], **given)
        self.worker.restore()

    def until(self, lane: LaneId, offset: int) -> None:
        turn_until(self.worker, lane, offset)

    def look(self) -> None:
        """Let the time for a look pass, and take up what it found."""
        self.clock.now_s += LOOK_EVERY_S
        turn(self.worker)
        assert self.worker.background.drain(20.0)
        turn(self.worker)

    def learner(self) -> Learner | None:
        return self.worker.learner

    @property
    def version(self) -> str | None:
        newest = self.worker.releases.newest
        return None if newest is None else newest.version.id


@pytest.fixture(scope="module")
def stayed(tmp_path_factory: pytest.TempPathFactory) -> Member:
    """A worker that has both lanes to the end."""
    member = Member(Group(tmp_path_factory.mktemp("stayed")), list(STREAMS), leads=True, **STATIC)
    for lane in STREAMS:
        member.until(lane, END)
    crash(member.worker)
    return member


def assert_as_if_it_had_stayed(stayed: Member, lane: LaneId, *members: Member) -> None:
    expected, found = verdicts(stayed.seen, lane), {}
    for member in members:
        for offset, verdict in verdicts(member.seen, lane).items():
            assert verdict == expected[offset], offset
            found[offset] = verdict
    assert found == expected
    ids = [id_ for member in members for id_ in member.sink.ids if id_.startswith(str(lane))]
    assert sorted(ids) == sorted(id_ for id_ in stayed.sink.ids if id_.startswith(str(lane)))
    assert len(ids) > 2


def test_a_lane_moves_with_its_state_and_gives_the_verdicts_it_would_have_given(
    stayed: Member, tmp_path: Path
) -> None:
    group = Group(tmp_path)
    first = Member(group, list(STREAMS), leads=True, **STATIC)
    second = Member(group, [], leads=False, **STATIC)
    first.until(OTHER, 700)
    save(first.worker, first.clock)
    first.until(OTHER, 950)
    first.source.take_away(OTHER)
    second.source.give(OTHER)
    turn(first.worker)
    assert set(first.worker.lanes) == {LANE}
    second.look()
    assert second.worker.lanes[OTHER].published >= 950
    assert counted(second.worker, "streamdet_cold_starts_total") == 0
    for member, lane in ((first, LANE), (second, OTHER)):
        member.until(lane, END)
        crash(member.worker)
    assert counted(second.worker, "streamdet_events_rejudged_total") > 100
    assert_as_if_it_had_stayed(stayed, OTHER, first, second)
    assert_as_if_it_had_stayed(stayed, LANE, first)


def test_what_a_worker_saves_of_a_lane_that_it_has_lost_unawares_spoils_nothing(
    stayed: Member, tmp_path: Path
) -> None:
    group = Group(tmp_path)
    first = Member(group, list(STREAMS), leads=True, **STATIC)
    first.until(OTHER, 700)
    save(first.worker, first.clock)
    second = Member(group, [OTHER], leads=False, **STATIC)
    first.source.offsets = dict(group.offsets)  # what it commits from here on, Kafka refuses
    first.source.notes = dict(group.notes)
    second.until(OTHER, 1_200)
    save(second.worker, second.clock)
    newest = group.saved(OTHER)[-1]
    for offset in range(750, 1_150, 75):  # more often than checkpoints are kept
        first.until(OTHER, offset)
        save(first.worker, first.clock)
    second.until(OTHER, 1_300)
    crash(first.worker)
    crash(second.worker)
    assert group.saved(OTHER)[-1] == newest
    third = Member(group, [OTHER], leads=False, **STATIC)
    assert third.worker.lanes[OTHER].next_offset == newest
    third.until(OTHER, END)
    crash(third.worker)
    expected = verdicts(stayed.seen, OTHER)
    assert all(expected[offset] == verdict for offset, verdict in verdicts(third.seen, OTHER).items())


def test_who_does_not_lead_takes_over_the_newest_version_within_a_look_and_trains_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    group = Group(tmp_path)
    trainer, follower = (Member(group, [lane], leads=lane == LANE) for lane in (LANE, OTHER))
    assert follower.version is None
    for offset in (300, 600, 1_400):
        with caplog.at_level(logging.INFO):
            trainer.until(LANE, offset)
            assert trainer.worker.background.drain(20.0)
            follower.look()
        assert follower.version == trainer.version
        assert f"model taken over version={trainer.version}" in caplog.text
        release = follower.worker.lanes[OTHER].release
        assert release is not None
        assert release.version.id == trainer.version
    assert follower.worker.learner is None
    assert counted(follower.worker, "streamdet_trains") == 0
    assert counted(trainer.worker, "streamdet_trains") == 1
    assert follower.worker.lanes[OTHER].alerting
    for member in (trainer, follower):
        crash(member.worker)


def test_the_lead_moves_with_what_was_learnt_and_may_come_back(tmp_path: Path) -> None:
    group = Group(tmp_path)
    first = Member(group, [LANE], leads=True)
    second = Member(group, [OTHER], leads=False)
    first.until(LANE, 700)
    save(first.worker, first.clock)
    before = first.learner()
    assert before is not None
    learnt, saved = before.seen, first.worker.lanes[LANE].next_offset

    first.source.leading, second.source.leading = False, True
    first.look()
    second.look()
    later = second.learner()
    assert first.learner() is None
    assert later is not None
    assert later.seen >= learnt
    assert later.positions[LANE] == saved
    others = later.seen - second.worker.lanes[OTHER].next_offset
    second.until(OTHER, 1_000)
    assert later.seen - second.worker.lanes[OTHER].next_offset == others
    save(second.worker, second.clock)

    first.source.leading, second.source.leading = True, False
    second.look()
    first.look()
    assert second.learner() is None
    last = first.learner()
    assert last is not None
    assert last.seen >= later.seen
    assert last.positions[LANE] == first.worker.lanes[LANE].next_offset
    for member in (first, second):
        crash(member.worker)


def test_who_does_not_lead_waits_for_a_first_model_and_then_goes_on_without_one_saying_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    member = Member(Group(tmp_path), [LANE], leads=False)
    for waited_s in (0.0, FIRST_MODEL_S / 2, FIRST_MODEL_S - 0.1):
        member.clock.now_s = 1_000.0 + waited_s
        assert member.worker.room() == 0
        assert turn(member.worker) == []
    assert "no model came" not in caplog.text
    member.clock.now_s = 1_000.0 + FIRST_MODEL_S
    assert sum(len(part.records) for part in turn(member.worker)) > 0
    member.until(LANE, 500)
    assert caplog.text.count(f"no model came within {FIRST_MODEL_S:.0f} s") == 1
    assert counted(member.worker, "streamdet_events_judged_total", mode="cold") == 500
    crash(member.worker)
