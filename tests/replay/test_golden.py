"""Two recordings whose alerts are written down: a change of any of them is a decision, not an accident.

Which events are alerts, what model versions there were and what was rejected must be exactly the same; raw scores
may differ by 1e-4 of themselves, as another CPU rounds differently. After a change that is meant to change verdicts:

    STREAMDET_RENEW_GOLDEN=1 .venv/bin/python -m pytest tests/replay/test_golden.py

and the commit that holds the new files says what became better.
"""

import gzip
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fakes import QUICK, StopAfter, readings
from river.datasets import Shuttle

from streamdet.config import parse
from streamdet.events import Alert
from streamdet.replaying import Replay, replay

GOLDEN = Path(__file__).parent / "golden"
RENEW = "STREAMDET_RENEW_GOLDEN"


def shuttle(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The first 6,000 readings of the space shuttle, 9 sensors, with fine-tunes close together."""
    path = folder / "shuttle.csv"
    with gzip.open(Shuttle().path, "rt") as whole:
        header = next(whole).replace("anomaly", "label")
        path.write_text(header + "".join(itertools.islice(whole, 6_000)))
    return path, {"learning": {"every": 2_000, "lag": 1_000}}


def plant(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Made readings of entities, with words, gaps, anomalies and garbage."""
    path = folder / "plant.jsonl"
    made = readings(4_000, seed=7, spikes=range(650, 4_000, 333), missing=0.05)
    made[1_234] = b"{"
    path.write_bytes(b"".join((value or b"") + b"\n" for value in made))
    return path, {**QUICK, "input": {"timestamp": "ts", "entity": "device"}}


def outcome(recording: Path, settings: dict[str, Any], alerts: Path) -> dict[str, Any]:
    """What is written down of a replay."""
    device = {"model": {"device": "cpu"}}
    summary = replay(Replay([recording], alerts=alerts), parse({**settings, **device}), StopAfter())
    found = [msgspec.json.decode(line, type=Alert) for line in alerts.read_bytes().splitlines()]
    return {
        "events": summary["events"],
        "rejected": summary["rejected"],
        "model_versions": summary["model_versions"],
        "alerts": {alert.id: alert.raw_score for alert in found},
    }


@pytest.mark.parametrize("make", [shuttle, plant])
def test_a_recording_gives_the_alerts_that_are_written_down(
    make: Callable[[Path], tuple[Path, dict[str, Any]]], tmp_path: Path
) -> None:
    found = outcome(*make(tmp_path), tmp_path / "alerts.jsonl")
    path = GOLDEN / f"{make.__name__}.json"
    if os.environ.get(RENEW):
        path.write_text(json.dumps(found, indent=1) + "\n")
    golden = json.loads(path.read_text())
    assert list(found["alerts"]) == list(golden["alerts"])
    assert found == {**golden, "alerts": pytest.approx(golden["alerts"], rel=1e-4)}
