"""Events/s of the features of payments, on one core, beside those of the same events as plain records."""

import argparse
import time
from dataclasses import replace
from typing import Final

import numpy as np
from bench_common import Figures, rounds, spread

from streamdet.config import Batch
from streamdet.evaluate.simulate import simulate_cards
from streamdet.events import Events, LaneId, Schema
from streamdet.features.rows import LaneFeatures

RECORDS: Final = Schema(None, "customer", ("amount", "night"), ())
PAYMENTS: Final = replace(RECORDS, amount="amount", counterparts=("terminal",))
ENTITIES: Final = 10_000


def measure(given: argparse.Namespace) -> Figures:
    """Rows of simulated payments, in batches as the worker polls them."""
    batches = _batches()
    LaneFeatures(PAYMENTS, ENTITIES).transform(batches[0])  # compiles
    figures = rounds(
        given.rounds,
        {
            "payments": lambda _: _events_per_second(PAYMENTS, batches),
            "records": lambda _: _events_per_second(RECORDS, batches),
        },
    )
    ratios = [mine / theirs for mine, theirs in zip(figures["payments"], figures["records"], strict=True)]
    return {"events_per_second": spread(figures["payments"]), "vs_records": spread(ratios)}


def _batches() -> list[Events]:
    cards, most = simulate_cards(seed=1, days=60, customers=2_000, terminals=4_000), Batch().max_events
    customers, terminals = ([f"{n:06d}" for n in column] for column in (cards.customers, cards.terminals))
    numeric = np.column_stack([cards.amounts, cards.times_s % 86_400 < 6 * 3_600])
    return [
        Events(
            lane=LaneId("payments", 0),
            offsets=np.arange(at, min(at + most, len(cards))),
            times_ms=1_000 * cards.times_s[at : at + most],
            entities=customers[at : at + most],
            numeric=numeric[at : at + most],
            categorical=[],
            values=[b""] * len(customers[at : at + most]),
            counterparts=[terminals[at : at + most]],
        )
        for at in range(0, len(cards), most)
    ]


def _events_per_second(schema: Schema, batches: list[Events]) -> float:
    features = LaneFeatures(schema, ENTITIES)
    started_s = time.perf_counter()
    for events in batches:
        features.transform(events)
    return sum(map(len, batches)) / (time.perf_counter() - started_s)
