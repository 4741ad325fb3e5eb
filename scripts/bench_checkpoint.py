"""What saving costs the loop: the stall of a save, batches beside it, how long it takes and how large it is.

One lane, as a worker has it: names, means and categories per entity, and limits whose histograms have seen a few
hundred scores each. The loop judges without a pause, so the thread that saves always has somebody to keep waiting.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from bench_common import COLUMNS, Figures, say, spread

from streamdet.checkpoint.background import Background
from streamdet.checkpoint.freeze import Buffers
from streamdet.checkpoint.shelf import Shelf
from streamdet.checkpoint.store import LocalStore
from streamdet.clock import SystemClock
from streamdet.config import Limit
from streamdet.events import Events, Floats, Ints, LaneId, Schema, State
from streamdet.features.rows import LaneFeatures
from streamdet.threshold.limits import Limits

ENTITIES = (50_000, 100_000)
LANE = LaneId("bench", 0)
SCHEMA = Schema("ts", "device", COLUMNS, ("site",))
SAVES = 25
SCORES_PER_ENTITY = 300
BATCH = 2_048
QUIET_BATCHES = 100  # after each save, to compare with


@dataclass
class Measured:
    """Of all saves with so many entities."""

    stall_ms: list[float] = field(default_factory=list)
    save_s: list[float] = field(default_factory=list)
    batch_ms_saving: list[float] = field(default_factory=list)
    batch_ms_quiet: list[float] = field(default_factory=list)
    size_mb: float = 0.0
    bins: float = 0.0


class Judging:
    """A lane with all its entities, and batches to go on with."""

    def __init__(self, entities: int) -> None:
        self._rng = np.random.default_rng(0)
        self._names = [f"device-{i:06d}" for i in range(entities)]
        self._features = LaneFeatures(SCHEMA, entities)
        self._limits = Limits(Limit())
        self._usual = self._rng.normal(0.0, 0.5, entities + 1)  # log of what an entity mostly scores, by slot
        everyone = self._features.transform(self._events(np.arange(entities)))
        fresh = everyone.fresh
        for _ in range(SCORES_PER_ENTITY):
            self._limits.judge(self._scores(everyone.slots), everyone.slots, fresh, alerting=True)
            fresh = np.zeros_like(fresh)

    def state(self) -> State:
        """As a worker gives it."""
        return {
            "next_offset": 1,
            "features": self._features.state(),
            "limits": self._limits.state(len(self._names) + 1),
        }

    def batch(self) -> Callable[[], object]:
        """Judge one; its events are made before."""
        events = self._events(self._rng.integers(0, len(self._names), BATCH))

        def judge() -> None:
            featured = self._features.transform(events)
            self._limits.judge(self._scores(featured.slots), featured.slots, featured.fresh, alerting=True)

        return judge

    def _events(self, who: Ints) -> Events:
        n = len(who)
        return Events(
            lane=LANE,
            offsets=np.arange(n),
            times_ms=np.arange(n),
            entities=[self._names[i] for i in who.tolist()],
            numeric=self._rng.normal(size=(n, len(COLUMNS))),
            categorical=[["north"] * n],
            values=[b""] * n,
        )

    def _scores(self, slots: Ints) -> Floats:
        scores: Floats = np.exp(self._usual[slots] + 0.8 * self._rng.normal(size=len(slots)))
        return scores


def measure(given: argparse.Namespace) -> Figures:  # noqa: ARG001 - all benchmarks are called alike
    """Save again and again while batches are judged."""
    figures: Figures = {}
    say(f"{'entities':>9} {'stall ms: median':>17} {'p99':>6} {'worst':>6} {'save s':>7} {'MB':>6} "
        f"{'batch p99 ms: saving':>21} {'quiet':>6}")  # fmt: skip
    for entities in ENTITIES:
        with tempfile.TemporaryDirectory() as folder:
            measured = _saves(Judging(entities), Path(folder))
        say(f"{entities:>9,} {np.median(measured.stall_ms):>17.1f} {_p99(measured.stall_ms):>6.1f} "
            f"{max(measured.stall_ms):>6.1f} {np.median(measured.save_s):>7.2f} {measured.size_mb:>6.1f} "
            f"{_p99(measured.batch_ms_saving):>21.2f} {_p99(measured.batch_ms_quiet):>6.2f}")  # fmt: skip
        figures[f"{entities}_entities"] = {
            "stall": _spread(measured.stall_ms, "ms"),
            "save": _spread(measured.save_s, "s"),
            "size": {"median": round(measured.size_mb, 1), "unit": "MB"},
            "batch_while_saving": _spread(measured.batch_ms_saving, "ms"),
            "batch_otherwise": _spread(measured.batch_ms_quiet, "ms"),
            "bins_in_use_per_entity": round(measured.bins, 1),
        }
    return figures


def _saves(judging: Judging, folder: Path) -> Measured:
    shelf = Shelf(LocalStore("bench", folder), "bench", 3, SystemClock())
    buffers, background, measured = Buffers(), Background(), Measured()
    assert buffers.freeze(judging.state()) is None
    buffers.prepare()
    measured.bins = float(np.count_nonzero(judging.state()["limits"]["histogram"], axis=1).mean())
    for number in range(SAVES):
        started_s = time.perf_counter()
        frozen = buffers.freeze(judging.state())
        stall_s = time.perf_counter() - started_s
        assert frozen is not None
        measured.stall_ms.append(1e3 * stall_s)
        background.submit("save", partial(shelf.put_lane, LANE, "", number, frozen))
        while background.busy:
            measured.batch_ms_saving.append(_timed_ms(judging.batch()))
        (result,) = background.take_results()
        measured.save_s.append(stall_s + result.seconds)
        measured.batch_ms_quiet += [_timed_ms(judging.batch()) for _ in range(QUIET_BATCHES)]
    background.close()
    measured.size_mb = shelf.entries()[-1].size / 1e6
    return measured


def _timed_ms(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - started_s)


def _p99(values: Sequence[float]) -> float:
    return float(np.quantile(values, 0.99))


def _spread(values: Sequence[float], unit: str) -> Figures:
    return {**spread(values), "p99": _p99(values), "unit": unit}
