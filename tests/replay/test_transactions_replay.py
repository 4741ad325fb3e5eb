"""Transactions through the whole program: batches and restarts leave no trace, and alerts say why."""

import math
from pathlib import Path

import msgspec
import pytest
from fakes import FakeSink, Group, StopAfter, counted

from streamdet.app import configured_schema
from streamdet.checkpoint.format import digest
from streamdet.config import parse
from streamdet.evaluate.simulate import simulate_cards
from streamdet.events import LaneId
from streamdet.source.recording import RecordingSource
from streamdet.worker import run

N = 2_400
INPUT = {
    "timestamp": "timestamp",
    "entity": "customer",
    "features": {"numeric": ["amount"]},
    "transactions": {"amount": "amount", "counterparts": ["terminal"]},
    "max_entities": 60,  # fewer than there are: some have to leave
}


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("payments") / "payments.jsonl"
    events = list(simulate_cards(seed=2, days=20, customers=80, terminals=200).events())[:N]
    path.write_bytes(b"".join(msgspec.json.encode(event) + b"\n" for event in events))
    return path


def judged(recording: Path, folder: Path, most: int, *batches: float) -> tuple[FakeSink, list[str]]:
    """One worker after the other, each for so many batches of at most `most` records."""
    group, sink, source = Group(folder), FakeSink(), RecordingSource([recording], most)
    schema = configured_schema(parse({"input": INPUT}).input)
    for n in batches:
        stop, before, source = StopAfter(n), source, RecordingSource([recording], most)
        positions = {lane: before.committed(lane) for lane in before.lanes}
        source.commit({lane: at for lane, at in positions.items() if at is not None})
        run(group.worker(source, sink, observers=[stop], schema=schema, input=INPUT), stop)
    shelf = group.shelf
    (lane,) = {LaneId(e.topic, e.partition) for e in shelf.entries() if e.topic and e.partition is not None}
    states = [shelf.lane(lane, "", None), shelf.learner()]
    return sink, [digest(state.state) for state in states if state is not None]


def test_batches_and_restarts_leave_no_trace(recording: Path, tmp_path: Path) -> None:
    whole, kept = judged(recording, tmp_path / "whole", 10_000, math.inf)
    parts, kept_in_parts = judged(recording, tmp_path / "parts", 70, 11, 9, math.inf)
    assert len(whole.alerts) > 5
    assert [msgspec.structs.replace(alert, detected_at="") for alert in parts.alerts] == [
        msgspec.structs.replace(alert, detected_at="") for alert in whole.alerts
    ]
    assert len(kept) == 2
    assert kept_in_parts == kept


@pytest.mark.parametrize("most", [60, 80, 300])  # of 77 customers and 89 terminals
def test_entities_and_counterparts_that_had_to_leave_are_told_apart(
    recording: Path, tmp_path: Path, most: int
) -> None:
    schema, given = configured_schema(parse({"input": INPUT}).input), {**INPUT, "max_entities": most}
    worker = Group(tmp_path).worker(
        RecordingSource([recording], 500), FakeSink(), schema=schema, input=given, learning={"enabled": False}
    )
    run(worker, StopAfter())
    events = [msgspec.json.decode(line) for line in recording.read_bytes().splitlines()]
    for name, key in (("entities", "customer"), ("counterparts", "terminal")):
        distinct = len({event[key] for event in events})
        assert (counted(worker, f"streamdet_{name}_evicted") > 0) == (distinct > most)
