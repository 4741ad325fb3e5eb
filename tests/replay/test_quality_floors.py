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
from streamdet.evaluate.simulate import simulate_cards
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


def test_stolen_cards_and_bursts_of_payments_rank_first_by_the_raw_columns_alone(tmp_path: Path) -> None:
    """Simulated payments; into some, a thief's series of usual amounts at new terminals within minutes is put."""
    cards = simulate_cards(seed=5, days=30, customers=300, terminals=300)
    rng = np.random.default_rng(0)
    rows: list[tuple[Any, ...]] = [
        (int(second), *row[2:], int(scenario in (1, 3)), 0)
        for second, row, scenario in zip(cards.times_s, cards.rows(), cards.scenarios, strict=True)
    ]
    settled = len(rows) // 2
    for start in rng.choice(np.arange(settled, len(rows)), 15, replace=False):
        second, customer, _, amount = rows[start][:4]
        rows += [(second + 60 * k, customer, f"away{start}-{k}", amount, 1, int(k >= 5)) for k in range(10)]
    rows.sort(key=lambda row: row[0])
    header = ["ts", "customer", "terminal", "amount", "label", "late"]
    path = written(tmp_path / "payments.csv", header, rows)
    paid = {"amount": "amount", "counterparts": ["terminal"]}
    given = {
        "timestamp": "ts",
        "entity": "customer",
        "features": {"numeric": ["amount"]},
        "transactions": paid,
    }
    scores, alerts = tmp_path / "scores.csv", tmp_path / "alerts.jsonl"
    summary = replay(
        Replay([path], scores=scores, alerts=alerts),
        parse({"model": {"device": "cpu"}, "limit": {"alert_rate": 0.002}, "input": given}),
        StopAfter(),
    )
    with scores.open(newline="") as file:
        raw = np.array([float(row["raw_score"] or "nan") for row in csv.DictReader(file)])
    labels, late = (np.array([row[column] for row in rows]) == 1 for column in (4, 5))
    burst = labels & np.array([str(row[2]).startswith("away") for row in rows])
    usual, stolen = raw[settled:][~labels[settled:]], raw[settled:][(labels & ~burst)[settled:]]
    assert summary["metrics"]["average_precision"] > 0.75
    assert (raw[late] > np.quantile(usual, 0.995)).all()
    assert (stolen > np.quantile(usual, 0.995)).mean() > 0.65  # five times little is not much
    told = [
        msgspec.json.decode(line, type=Alert).features[0].name for line in alerts.read_bytes().splitlines()
    ]
    assert (
        {"amount", "terminal"}
        <= set(told)
        <= {"amount", "terminal", *bursts_of("customer"), *bursts_of("terminal")}
    )


def bursts_of(key: str) -> set[str]:
    return {f"{what}_{span} of {key}" for what in ("count", "sum") for span in ("1h", "24h", "7d")}
