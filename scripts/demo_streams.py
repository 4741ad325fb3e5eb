"""What the demo can publish: events without their labels, the labels beside them, and a configuration that fits.

Labels never go into Kafka: row i of `labels` belongs to the event at offset i.
"""

import csv
import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from streamdet.evaluate.simulate import simulate_cards
from streamdet.events import Bools

# 7 % anomalies are no anomalies: of those in the shuttle recording every tenth stays.
SHUTTLE_KEPT = 10
CARDS_SEED = 7


@dataclass(frozen=True)
class Stream:
    """A stream to publish; n events."""

    name: str
    title: str
    origin: str  # a sentence or two: where it comes from, and what was done to it
    values: Sequence[bytes]  # n JSON objects
    keys: Sequence[bytes | None]  # n
    labels: Bools | None  # (n,) anomalous or not; None where nobody knows
    rate: float  # events per second, if the user asks for no other
    settings: Mapping[str, Any] = field(default_factory=dict)  # sections of the configuration

    def __len__(self) -> int:
        return len(self.values)

    @property
    def anomalies(self) -> int | None:
        """How many events are labelled anomalous; None without labels."""
        return None if self.labels is None else int(self.labels.sum())

    def first(self, n: int) -> "Stream":
        """Only the first n events."""
        if n >= len(self):
            return self
        labels = None if self.labels is None else self.labels[:n]
        origin = f"{self.origin} Here only the first {n:,} of {len(self):,} events."
        return replace(self, values=self.values[:n], keys=self.keys[:n], labels=labels, origin=origin)


def shuttle() -> Stream:
    """Sensor readings of a NASA space shuttle, as they come with River."""
    from river import datasets

    values, labels, anomalous = [], [], 0
    for fields in _rows(Path(datasets.Shuttle().path)):
        label = fields.pop("anomaly") == "1"
        anomalous += label
        if not label or anomalous % SHUTTLE_KEPT == 0:
            values.append(_json({name: int(value) for name, value in fields.items()}))
            labels.append(label)
    settings = {
        "input": {"features": {"numeric": [f"f{i}" for i in range(1, 10)]}},
        "limit": {"alert_rate": 0.006},
    }
    return Stream(
        "shuttle",
        "Shuttle",
        f"NASA shuttle sensor readings (river.datasets.Shuttle, 9 sensors) in the order of the file; of its "
        f"{anomalous:,} anomalous rows every tenth stays, as 7 % anomalies would be no anomalies.",
        values,
        [None] * len(values),
        np.array(labels),
        1000.0,
        settings,
    )


def water() -> Stream:
    """Hourly water flow through a pipeline, as it comes with River."""
    from river import datasets

    values = [
        _json({"time": fields["Time"], "flow": float(fields["Water flow [l/s]"])})
        for fields in _rows(
            Path(datasets.WaterFlow().path)  # type: ignore[no-untyped-call]
        )
    ]
    settings = {
        "input": {"timestamp": "time", "features": {"numeric": ["flow"]}},
        # Two months by the hour are few events: learn from the first eleven days.
        "limit": {"alert_rate": 0.01, "window": 1000},
        "learning": {"warmup": 256, "every": 512, "lag": 64, "buffer": 512},
    }
    return Stream(
        "water",
        "Water flow",
        "Hourly flow through a pipeline branch, March to May 2022 (river.datasets.WaterFlow). Its authors speak of "
        "four anomalous segments, but no labels come with it: there is no precision and no recall.",
        values,
        [None] * len(values),
        None,
        50.0,
        settings,
    )


def cards() -> Stream:
    """Simulated card payments with known fraud."""
    payments = simulate_cards(CARDS_SEED, days=40, customers=500, terminals=1000)
    events = list(payments.events())
    _, large, terminal, leaked = np.bincount(payments.scenarios, minlength=4).tolist()
    settings = {
        "input": {
            "timestamp": "timestamp",
            "entity": "customer",
            "features": {"numeric": ["amount"]},
            "transactions": {"amount": "amount", "counterparts": ["terminal"]},
        },
        "limit": {"alert_rate": 0.006},
    }
    return Stream(
        "cards",
        "Card payments",
        f"Simulated payments of 500 customers at 1,000 terminals in 40 days (seed {CARDS_SEED}), with three kinds of "
        f"fraud: {large:,} large amounts, {leaked:,} payments with leaked card data (five times the customer's usual "
        f"amount), {terminal:,} at compromised terminals, which no amount and no habit tells.",
        [_json(event) for event in events],
        [str(event["customer"]).encode() for event in events],
        payments.labels,
        1000.0,
        settings,
    )


STREAMS: Mapping[str, Callable[[], Stream]] = {"shuttle": shuttle, "water": water, "cards": cards}


def _rows(path: Path) -> Iterator[dict[str, str]]:
    # Read as it lies: River's own reader would turn times into objects that have to be written out again.
    with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
        yield from csv.DictReader(file)


def _json(fields: Mapping[str, object]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()
