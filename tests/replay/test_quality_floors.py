"""How well the default detector finds what matters, on streams that come with dependencies: floors, not figures.

What it measures on recorded streams `scripts/bench quality` says; this notices when a change makes it worse.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from fakes import StopAfter
from river import datasets
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from streamdet.config import parse
from streamdet.events import Alert
from streamdet.replaying import Replay, replay

WARMUP = 400


def written(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(header)
        table.writerows(rows)
    return path


def test_shuttle_is_ranked_and_alerted_though_a_fourteenth_of_it_is_anomalous(tmp_path: Path) -> None:
    stream = [(*x.values(), int(y)) for x, y in datasets.Shuttle()]
    names = [f"s{i}" for i in range(len(stream[0]) - 1)]
    path = written(tmp_path / "shuttle.csv", [*names, "label"], stream)
    summary = replay(
        Replay([path]), parse({"model": {"device": "cpu"}, "limit": {"alert_rate": 0.005}}), StopAfter()
    )
    assert summary["metrics"]["roc_auc"] > 0.98
    assert summary["metrics"]["average_precision"] > 0.80
    assert summary["metrics"]["recall"] > 0.70
    assert summary["metrics"]["precision"] > 0.90


def test_of_the_water_flow_the_later_losses_are_told_and_little_else(tmp_path: Path) -> None:
    """Of its four anomalous segments the first lies in the warm-up, and the second one repeats it soon after."""
    flow: Any = datasets.WaterFlow()  # type: ignore[no-untyped-call]
    path = written(tmp_path / "water.csv", ["time", "flow"], ((x["Time"].isoformat(), y) for x, y in flow))
    alerts = tmp_path / "alerts.jsonl"
    replay(Replay([path], alerts=alerts), parse({"model": {"device": "cpu"}}), StopAfter())
    told = [msgspec.json.decode(line, type=Alert).source.offset for line in alerts.read_bytes().splitlines()]
    assert [row for row in told if 315 <= row < 345]  # the pumping operation
    assert [row for row in told if 873 <= row < 887]  # the last loss of water
    assert len(told) <= 6


def test_digits_that_change_from_low_to_high_are_followed(tmp_path: Path) -> None:
    """Digits up to 4, then those from 5 on: another normal. Those with pixels in disorder are anomalous in both."""
    pixels, digit = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    low, high = (rng.permutation(np.flatnonzero(which)) for which in (digit < 5, digit >= 5))
    rows = pixels[np.concatenate([low, high])]
    odd = (rng.random(len(rows)) < 0.03) & (np.arange(len(rows)) >= WARMUP)
    for i in np.flatnonzero(odd):
        mixed = rng.random(64) < 0.3
        rows[i, mixed] = rng.permutation(rows[i, mixed])
    header = [*(f"p{i}" for i in range(64)), "label"]
    path = written(
        tmp_path / "digits.csv", header, ((*row, int(o)) for row, o in zip(rows, odd, strict=True))
    )
    scores = tmp_path / "scores.csv"
    summary = replay(Replay([path], scores=scores), parse({"model": {"device": "cpu"}}), StopAfter())
    with scores.open(newline="") as file:
        raw = np.array([float(row["raw_score"] or "nan") for row in csv.DictReader(file)])
    settled = len(low) + WARMUP
    assert roc_auc_score(odd[WARMUP : len(low)], raw[WARMUP : len(low)]) > 0.95
    assert roc_auc_score(odd[settled:], raw[settled:]) > 0.95
    assert summary["metrics"]["precision"] > 0.5
