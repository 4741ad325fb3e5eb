"""Resident memory after 1 million and after 10 million events: it may not grow with what was judged."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench_common import COLUMNS, Figures, Never, say

from streamdet.config import Settings
from streamdet.parts import Part
from streamdet.replaying import Replay, replay
from streamdet.source.recording import RecordingSource

ENTITIES = 1000
FILE_ROWS = 1_000_000


class Watch:
    """An observer that reads the resident memory when the stream has reached certain lengths."""

    def __init__(self, marks: Sequence[int]) -> None:
        self.resident_mb: dict[int, float] = {}
        self._marks = list(marks)
        self._seen = 0

    def judged(self, parts: Sequence[Part]) -> None:
        """Count a batch."""
        self._seen += sum(len(part.decoded.events) for part in parts)
        if self._marks and self._seen >= self._marks[0]:
            self.resident_mb[self._marks.pop(0)] = resident_mb()
            say(f"{self._seen:,} events: {resident_mb():.1f} MB")


def measure(given: argparse.Namespace) -> Figures:
    """Replay one file over and over as one stream, with a thousand entities."""
    events = given.events or 10_000_000
    first = events // 10
    watch = Watch([first, events])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stream.csv"
        say(f"writing {FILE_ROWS:,} rows")
        _write(path, min(FILE_ROWS, first))
        settings = Settings.model_validate(
            {"input": {"entity": "device", "features": {"numeric": list(COLUMNS)}}}
        )

        def observe(_: RecordingSource) -> Watch:
            return watch

        summary = replay(Replay([path] * 10), settings, Never(), observe)
    before, after = watch.resident_mb[first], watch.resident_mb[events]
    return {
        "events": events,
        "rss_mb_after_a_tenth": round(before, 1),
        "rss_mb_after_all": round(after, 1),
        "growth": round(after / before - 1, 4),
        "events_per_second": summary["events_per_second"],
    }


def resident_mb() -> float:
    """Of this process, now."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def _write(path: Path, rows: int) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    with path.open("w") as file:
        file.write(f"device,{','.join(COLUMNS)}\n")
        for start in range(0, rows, 10_000):
            values = rng.normal(size=(min(10_000, rows - start), len(COLUMNS))).round(3).tolist()
            names = rng.integers(0, ENTITIES, len(values)).tolist()
            file.writelines(
                f"device-{n},{','.join(map(str, row))}\n" for n, row in zip(names, values, strict=True)
            )
