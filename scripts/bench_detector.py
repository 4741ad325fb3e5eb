"""Events/s of one core from recorded rows to verdicts, by what the data are, with all scorers on and learning beside.

Beside a detector of River that learns and scores event by event. Counted is processor time, that of the fine-tunes
included: what a worker needs of a core that it has for itself.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from bench_common import Figures, Never, rounds, say, spread
from pyarrow import parquet
from river.anomaly import HalfSpaceTrees

from streamdet.config import Settings
from streamdet.events import Floats
from streamdet.replaying import Replay, replay

EVENTS: Final = 500_000
FEATURES: Final = 10
# It takes them one by one at the same pace, however many there are.
PEER_EVENTS: Final = 10_000
KINDS: Final = ("metric", "sensors", "records")


def measure(given: argparse.Namespace) -> Figures:
    """Replays of seeded recordings with the default configuration, in turns with River's half-space trees."""
    events = given.events or EVENTS
    figures: Figures = {"events": events, "features": FEATURES}
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            rows, path = _rows(kind, events), Path(folder) / f"{kind}.parquet"
            parquet.write_table(pa.table({f"f{i}": column for i, column in enumerate(rows.T)}), path)
            _ours(path, kind, events, 0)  # compiles, and brings the file into memory
            say(f"{kind}:")
            found = rounds(
                given.rounds,
                {
                    "streamdet": partial(_ours, path, kind, events),
                    "river half-space trees": partial(_river, rows[:PEER_EVENTS]),
                },
            )
            ours, peer = found.values()
            ratios = [mine / theirs for mine, theirs in zip(ours, peer, strict=True)]
            figures[kind] = {"events_per_second": spread(ours), "vs_river_hst": spread(ratios)}
    return figures


def _rows(kind: str, n: int) -> Floats:
    """Normal rows, (n, columns): sensors wander together; records come in any order; a metric is one sensor."""
    rng = np.random.default_rng(0)
    columns = 1 if kind == "metric" else FEATURES
    causes = rng.normal(size=(n, 3))
    if kind != "records":
        causes = _wandering(causes)
    rows: Floats = causes @ rng.normal(size=(3, columns)) + 0.3 * rng.normal(size=(n, columns))
    return rows


def _wandering(steps: Floats) -> Floats:
    """Each cause holds on to 98 % of what it was, (n, 3)."""
    values = np.empty_like(steps)
    value = np.zeros(steps.shape[1])
    for i, step in enumerate(steps):
        value = 0.98 * value + 0.2 * step
        values[i] = value
    return values


def _ours(path: Path, kind: str, events: int, _: int) -> float:
    """Events/s of a whole replay, for each second of processor time."""
    settings = Settings.model_validate({"model": {"preset": kind}})
    started_s = time.process_time()
    replay(Replay([path]), settings, Never())
    return events / (time.process_time() - started_s)


def _river(rows: Floats, _: int) -> float:
    """Events/s of half-space trees with their defaults."""
    model: Any = HalfSpaceTrees(seed=0)  # its methods have no types
    events = [dict(enumerate(row)) for row in rows.tolist()]
    started_s = time.process_time()
    for event in events:
        model.score_one(event)
        model.learn_one(event)
    return len(rows) / (time.process_time() - started_s)
