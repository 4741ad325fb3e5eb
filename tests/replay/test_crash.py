"""A worker that is killed anywhere and started again comes to where one comes that never was.

Killed: it is left as it is after a turn, with a save that was written, one that was not, or half of one. What it holds
of lane and learner in the end is compared by digest, its alerts by id and content.
"""

from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from fakes import WRITTEN_MAX_S, FakeSink, Group, SteppingClock, crash, readings, save, turn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamdet.checkpoint.format import digest
from streamdet.events import Alert, LaneId
from streamdet.learn.learner import FIRST_RUN

LANE = LaneId("plant", 0)
N = 1_900
SPIKES = (600, 900, 1_200, 1_400, 1_750)
VALUES = [b"{" if i in (100, 1_023, 1_324) else v for i, v in enumerate(readings(N, 5, SPIKES, missing=0.05))]
# Runs start at 64, 128, 256, 512 and 1,024 events; the last of these is adopted 256 later. One starts in the end and is
# under way.
QUICKER: dict[str, Any] = {"learning": {"warmup": 512, "every": 800, "lag": 300, "buffer": 512}}
NONE, WRITTEN, LOST, HALF = "none", "written", "lost", "half"


class Crash(NamedTuple):
    """After so many turns; what became of a save that was due then, and of the turns' commits."""

    turns: int
    saved: str
    per_poll: int
    commit_every: bool


class End(NamedTuple):
    """What a stream leaves."""

    lane: str
    learner: str
    alerts: dict[str, Alert]
    rejects: set[int]


def judge(folder: Path, crashes: list[Crash]) -> tuple[End, int]:
    """The whole stream, by a worker that is killed so often; and how many alerts were repeated."""
    group, sink, clock = Group(folder), FakeSink(), SteppingClock()
    for life in [*crashes, Crash(10**6, NONE, 250, commit_every=True)]:
        pace = {"offsets_every_ms": 0 if life.commit_every else 60_000}
        source = group.source({LANE: VALUES}, per_poll=life.per_poll)
        worker = group.worker(source, sink, clock=clock, commit=pace, **QUICKER)
        worker.restore()
        for _ in range(life.turns):
            if source.exhausted and not worker.lanes[LANE].repeating:
                break
            turn(worker)
        if life.saved != NONE:
            # Else a model that the turns have released would be taken for a file of the save.
            assert worker.background.drain(WRITTEN_MAX_S)
            before = set(folder.rglob("*.safetensors"))
            save(worker, clock)
            for path in set(folder.rglob("*.safetensors")) - before:
                if life.saved == LOST or (life.saved == HALF and "lanes" in path.parts):
                    path.unlink()
        crash(worker)
    assert worker.learner is not None
    end = End(
        digest(worker.lanes[LANE].state()),
        digest(worker.learner.state()),
        {alert.id: msgspec.structs.replace(alert, detected_at="") for alert in sink.alerts},
        {reject.offset for reject in sink.rejects},
    )
    return end, len(sink.ids) - len(end.alerts)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> End:
    end, repeated = judge(tmp_path_factory.mktemp("whole"), [])
    assert repeated == 0
    assert {int(name.rsplit("/", 1)[1]) for name in end.alerts} >= set(SPIKES)
    assert end.rejects == {100, 1_023, 1_324}
    return end


CRASHES = st.builds(
    Crash,
    st.integers(0, 14),
    st.sampled_from([NONE, WRITTEN, LOST, HALF]),
    st.integers(40, 700),
    st.booleans(),
)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(crashes=st.lists(CRASHES, min_size=1, max_size=4))
def test_crashes_anywhere_leave_no_trace(
    uninterrupted: End, tmp_path_factory: pytest.TempPathFactory, crashes: list[Crash]
) -> None:
    end, repeated = judge(tmp_path_factory.mktemp("crashed"), crashes)
    assert end == uninterrupted
    if all(life.commit_every for life in crashes):
        assert repeated == 0


def test_what_the_learner_has_learnt_takes_no_room_when_it_is_judged_again(tmp_path: Path) -> None:
    """Seven events before its first run, with all of them to judge again: not seven at a time."""
    group, clock = Group(tmp_path), SteppingClock()
    worker = group.worker(group.source({LANE: VALUES}, per_poll=57), clock=clock, **QUICKER)
    worker.restore()
    turn(worker)
    save(worker, clock)
    crash(worker)
    newest = max(path for path in tmp_path.rglob("*.safetensors") if "lanes" in path.parts)
    newest.unlink()

    worker = group.worker(group.source({LANE: VALUES}, per_poll=1_000), clock=clock, **QUICKER)
    worker.restore()
    assert worker.learner is not None
    assert (worker.lanes[LANE].next_offset, worker.learner.seen) == (0, 57)
    turns = [sum(len(part.records) for part in turn(worker)) for _ in range(2)]
    assert turns == [57, 7]
    assert worker.learner.seen == FIRST_RUN
    crash(worker)


@pytest.mark.parametrize("turns", range(3, 12))
@pytest.mark.parametrize("saved", [WRITTEN, HALF])
def test_a_crash_after_each_turn_around_adoptions_leaves_no_trace(
    uninterrupted: End, tmp_path: Path, turns: int, saved: str
) -> None:
    """Polls of 256 records: a turn ends at, before and after each count at which something changes."""
    end, _ = judge(
        tmp_path, [Crash(turns, saved, 256, commit_every=True), Crash(2, NONE, 100, commit_every=True)]
    )
    assert end == uninterrupted
