"""A worker whose folder was written by version 0.1 goes on where that left off."""

import gzip
from pathlib import Path
from typing import Any

import pytest
from fakes import (
    QUICK,
    SCHEMA,
    FakeSink,
    FakeSource,
    SteppingClock,
    StopAfter,
    counted,
    readings,
    worker_over,
)

from streamdet.app import take_over
from streamdet.checkpoint.shelf import Shelf
from streamdet.checkpoint.store import LocalStore
from streamdet.config import Settings, parse
from streamdet.events import LaneId, Mode, Schema
from streamdet.worker import run

GOLDEN = Path(__file__).parent.parent / "golden" / "checkpoint-format-1.safetensors.gz"
LANE = LaneId("plant", 0)
SAVED = 700  # events behind the golden file
VALUES = readings(SAVED) + readings(100, seed=2, spikes=(50,))


def settings_of(group_id: str = "streamdet", **given: Any) -> Settings:
    return parse({**QUICK, "input": {"group_id": group_id, **given}})


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    (tmp_path / "000000000001.checkpoint.safetensors").write_bytes(gzip.decompress(GOLDEN.read_bytes()))
    return LocalStore(str(tmp_path), tmp_path)


def shelf_of(store: LocalStore, group_id: str = "streamdet") -> Shelf:
    return Shelf(store, group_id, 3, SteppingClock())


def test_it_goes_on_with_its_limits_its_model_and_its_count(store: LocalStore) -> None:
    shelf, seen, sink = shelf_of(store), StopAfter(), FakeSink()
    take_over(store, shelf, settings_of(entity="device"), lambda _: "")
    schema = shelf.schema()
    assert schema is not None
    assert Schema.from_state(schema) == SCHEMA
    worker = worker_over(FakeSource({LANE: VALUES}, {LANE: SAVED}), sink, shelf=shelf, observers=[seen])
    run(worker, StopAfter())
    assert counted(worker, "streamdet_cold_starts_total") == 0
    assert set(seen.modes(LANE)) <= {Mode.READY, Mode.ENTITY}
    assert f"{LANE}/{SAVED + 50}" in sink.ids
    assert worker.learner is not None
    assert worker.learner.seen == len(VALUES)


@pytest.mark.parametrize(
    "other", [settings_of("theirs"), settings_of(entity="machine")], ids=["group", "schema"]
)
def test_what_another_stream_left_is_left_alone(store: LocalStore, other: Settings) -> None:
    shelf = shelf_of(store, other.input.group_id)
    take_over(store, shelf, other, lambda _: "")
    assert shelf.schema() is None
    assert shelf.entries() == []
