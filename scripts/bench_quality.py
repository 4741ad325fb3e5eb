"""ROC-AUC, average precision and alerts of a plain replay, no configuration, on labelled recordings.

Without arguments the recordings are River's Shuttle; others are named on the command line.
"""

import argparse
import csv
import gzip
import tempfile
from pathlib import Path

from bench_common import Figures, Never, say

from streamdet.config import Settings
from streamdet.replaying import Replay, replay


def measure(given: argparse.Namespace) -> Figures:
    """A row for each recording."""
    with tempfile.TemporaryDirectory() as folder:
        recordings = given.data or [_shuttle(Path(folder))]
        return {path.name: _row(path) for path in recordings}


def _row(path: Path) -> Figures:
    summary = replay(Replay([path]), Settings(), Never())
    metrics = {k: None if v is None else round(v, 4) for k, v in summary["metrics"].items()}
    rate = summary["alerts"] / max(summary["events_after_warmup"], 1)
    say(f"{path.name:<28} {metrics} alert_rate={rate:.5f}")
    return {**metrics, "events": summary["events"], "alerts": summary["alerts"], "alert_rate": round(rate, 6)}


def _shuttle(folder: Path) -> Path:
    from river import datasets

    path = folder / "shuttle.csv"
    with gzip.open(datasets.Shuttle().path, "rt") as source, path.open("w", newline="") as target:
        rows = csv.reader(source)
        header = next(rows)
        writer = csv.writer(target)
        writer.writerow([*header[:-1], "label"])
        writer.writerows(rows)
    return path
