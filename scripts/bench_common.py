"""What the benchmarks share: the events, the medians, and talk on standard error."""

import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np

Figures = dict[str, object]
COLUMNS = tuple(f"feature_{i}" for i in range(8))


class Never:
    """Nobody asks for a stop."""

    requested = False


def say(text: str) -> None:
    """A line for whoever waits."""
    print(text, file=sys.stderr, flush=True)


def spread(values: Sequence[float]) -> Figures:
    """Median, smallest and largest."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "rounds": len(values),
    }


def json_events(count: int, seed: int, anomalous_every: int | None = None) -> Iterator[bytes]:
    """JSON objects of about 240 bytes with 8 features that move together; every n-th one is far off."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(3, len(COLUMNS)))
    for start in range(0, count, 10_000):
        n = min(10_000, count - start)
        rows = rng.normal(size=(n, 3)) @ mixing + 0.3 * rng.normal(size=(n, len(COLUMNS)))
        if anomalous_every is not None:
            rows[anomalous_every - 1 :: anomalous_every] += 20.0
        for row in rows.round(6).tolist():
            yield json.dumps(
                {"machine": "press-17", "site": "north", **dict(zip(COLUMNS, row, strict=True))}
            ).encode()


def rounds(count: int, sides: dict[str, Callable[[int], float]]) -> dict[str, list[float]]:
    """Figures of each side, which take turns."""
    figures: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(count):
        for name, measure in sides.items():
            figures[name].append(measure(number))
            say(f"round {number + 1}/{count} {name}: {figures[name][-1]:,.0f}")
    return figures
