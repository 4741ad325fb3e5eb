"""A live run over several partitions, replayed by the timeline that it left, gives the same verdicts."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from fakes import QUICK, SCHEMA, FakeSink, FakeSource, SteppingClock, StopAfter, readings, worker_over

from streamdet.checkpoint.shelf import Shelf
from streamdet.checkpoint.store import open_store
from streamdet.config import Settings, parse
from streamdet.errors import ConfigError
from streamdet.events import Alert, LaneId
from streamdet.replaying import Replay, replay
from streamdet.sink.recording import RecordingWriter
from streamdet.worker import run

LANES = {
    LaneId("plant", p): readings(1_800, seed=p, spikes=range(900, 1_800, 130), missing=0.02) for p in range(3)
}
GROUP = "live"


def settings_of(folder: Path, **given: Any) -> Settings:
    features = {"numeric": list(SCHEMA.numeric), "categorical": list(SCHEMA.categorical)}
    read = {"group_id": GROUP, "timestamp": "ts", "entity": "device", "features": features, **given}
    return parse({**QUICK, "input": read, "checkpoint": {"url": str(folder / "state")}})


def live(folder: Path) -> list[Alert]:
    """The alerts of a worker that read the lanes in turns of its own."""
    clock, sink = SteppingClock(), FakeSink()
    shelf = Shelf(open_store(str(folder / "state")), GROUP, 3, clock)
    source = FakeSource(LANES, per_poll=97)
    run(worker_over(source, sink, shelf=shelf, clock=clock, input={"group_id": GROUP}), StopAfter())
    return sink.alerts


def recorded(folder: Path) -> Path:
    """The lanes one after the other: no order between them is told."""
    path = folder / "plant.parquet"
    with RecordingWriter(path) as writer:
        for lane, values in LANES.items():
            for offset, value in enumerate(values):
                writer.write(*lane, offset, 1_700_000_000_000 + 1_000 * offset, None, value)
    return path


def told(alerts: list[Alert]) -> dict[str, Alert]:
    return {alert.id: msgspec.structs.replace(alert, detected_at="") for alert in alerts}


@pytest.mark.parametrize("batch", [50, 4_096])
def test_the_same_versions_at_the_same_offsets_give_the_same_verdicts(tmp_path: Path, batch: int) -> None:
    expected = live(tmp_path)
    assert len({alert.model_version for alert in expected}) > 1
    assert len({alert.source.partition for alert in expected}) == 3
    out = tmp_path / "alerts.jsonl"
    what = Replay([recorded(tmp_path)], alerts=out, timeline=str(tmp_path / "state"))
    summary = replay(what, settings_of(tmp_path, batch={"max_events": batch}), StopAfter())
    assert summary["model_versions"] == 0
    assert told([msgspec.json.decode(line, type=Alert) for line in out.read_bytes().splitlines()]) == told(
        expected
    )


def test_partitions_without_a_timeline_are_named(tmp_path: Path) -> None:
    what = Replay([recorded(tmp_path)], timeline=str(tmp_path / "state"))
    with pytest.raises(ConfigError, match=r"no checkpoint of plant/0, plant/1, plant/2"):
        replay(what, settings_of(tmp_path), StopAfter())
