"""Judges a stream of each kind as a worker does, and says what was compiled after the worker had begun to judge.

A program, as what other tests have compiled in their process would count as compiled here too.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from fakes import Group, StopAfter, readings
from numba.core.dispatcher import Dispatcher

from streamdet.app import compile_kernels
from streamdet.events import LaneId, Schema
from streamdet.worker import run

LANE = LaneId("plant", 0)
N = 1_100  # the first model, and one that takes its limits over
AT_ONCE = 100
ONE_BY_ONE = 20
NOISE = {"k": 2, "n": 3, "cool_down_s": 60}


def compiled() -> set[tuple[str, str]]:
    """Each compiled loop, with the types of its arguments."""
    return {
        (f"{module.__name__}.{name}", str(signature))
        for module in list(sys.modules.values())
        if module.__name__.startswith("streamdet.")
        for name, loop in vars(module).items()
        if isinstance(loop, Dispatcher)
        for signature in loop.signatures
    }


def metric(n: int) -> list[bytes | None]:
    """One number of two devices."""
    values = np.random.default_rng(1).normal(size=n).tolist()
    return [msgspec.json.encode({"ts": 1_000 * i, "d": i % 2, "x": x}) for i, x in enumerate(values)]


def payments(n: int) -> list[bytes | None]:
    """Of some cards at some terminals."""
    rng = np.random.default_rng(1)
    amounts, cards, terminals = rng.gamma(2.0, 20.0, n), rng.integers(9, size=n), rng.integers(5, size=n)
    columns = zip(amounts.tolist(), cards.tolist(), terminals.tolist(), strict=True)
    return [
        msgspec.json.encode({"ts": 60_000 * i, "x": x, "d": d, "t": t}) for i, (x, d, t) in enumerate(columns)
    ]


def streams() -> Iterator[tuple[Schema, list[bytes | None], dict[str, Any]]]:
    """One of each kind, with its schema and what else is configured."""
    plant = ("temperature", "pressure", "flow")
    records = readings(N, spikes=range(700, N, 60), missing=0.05)
    records[750] = b"{"
    yield Schema("ts", "device", plant, ("site",)), records, {}
    for rule in ("rolling", "spot", "dspot", "conformal"):
        yield (
            Schema("ts", "device", plant, ()),
            records,
            {"limit": {"alert_rate": 0.01, "window": 1_000, "rule": rule}},
        )
    yield Schema("ts", "device", plant, ()), records, {"noise": NOISE}
    yield Schema("ts", "d", ("x",), ()), metric(N), {}
    yield Schema("ts", "d", ("x",), (), "x", ("t",)), payments(N), {}


def judge(folder: Path, schema: Schema, values: Sequence[bytes | None], given: dict[str, Any]) -> None:
    """By one worker in large batches, then by one that goes on with what that has saved, one by one."""
    group = Group(folder)
    for per_poll, batches in ((AT_ONCE, N // AT_ONCE - 1), (1, ONE_BY_ONE)):
        source, stop = group.source({LANE: values}, per_poll=per_poll), StopAfter(batches)
        run(group.worker(source, schema=schema, observers=[stop], **given), stop)


def main() -> None:
    """One line for each."""
    for i, (schema, values, given) in enumerate(streams()):
        compile_kernels(transactions=schema.transactions, metric=schema.metric)
        before = compiled()
        with tempfile.TemporaryDirectory() as folder:
            judge(Path(folder), schema, values, given)
        for name, signature in sorted(compiled() - before):
            sys.stdout.write(f"stream {i}: {name}{signature}\n")


if __name__ == "__main__":
    main()
