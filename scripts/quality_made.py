"""Streams made from recordings, to try what these do not hold: drift, bursts of anomalies, and anomalies all over."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.random import Generator
from quality_stream import Stream, shuffled, warmup_rows

from streamdet.events import Floats, Ints

# Made streams are as long as it takes to see drift or bursts, and not longer: there are many of them.
STRESS_NORMAL_ROWS: Final = 6_000
# To one anomaly where they are mixed into everything.
MIXED_NORMAL: Final = 19

Arrange = Callable[[Stream, Generator], Ints]


@dataclass(frozen=True)
class Stress:
    """How to make a stream from a recording: which of its rows, in which order."""

    kind: str
    recording: str
    arrange: Arrange
    moving: bool = False  # levels and spreads of all columns move along


def _projections(values: Floats, count: int) -> Floats:
    """The values along their main directions, (n, count)."""
    spread = values.std(axis=0)
    z = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    _, directions = np.linalg.eigh(z.T @ z / len(z))
    # Rounded: where two rows are as good as equal, their order must not hang on the last digit.
    return np.asarray((z @ directions[:, ::-1][:, :count]).round(6))


def _ranks(values: Floats) -> Floats:
    """Where each value stands among all, from 0 to 1."""
    ranks = np.empty(len(values))
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values)) / max(len(values), 1)
    return ranks


def _normal(stream: Stream) -> Ints:
    return np.flatnonzero(~stream.labels)[:STRESS_NORMAL_ROWS]


def _scattered(stream: Stream, normal: Ints, positions: Floats, rng: Generator) -> Ints:
    """Normal rows in the order of their positions, rare anomalies among them at random."""
    anomalous = np.flatnonzero(stream.labels)
    few = min(len(anomalous), max(60, 3 * len(normal) // 100))
    anomalous = rng.choice(anomalous, few, replace=False)
    rows = np.concatenate([normal, anomalous])
    at = np.concatenate([positions, rng.random(few)])
    return rows[np.argsort(at, kind="stable")]


def along_a_direction(stream: Stream, rng: Generator) -> Ints:
    """Normal rows go from one end of their main direction to the other."""
    normal = _normal(stream)
    along = _ranks(_projections(stream.values[normal], 1)[:, 0])
    return _scattered(stream, normal, along + rng.normal(0.0, 0.03, len(normal)), rng)


def by_regimes(stream: Stream, rng: Generator) -> Ints:
    """Six kinds of normal rows take turns, the next one beginning before the last has ended."""
    normal = _normal(stream)
    first, second = _projections(stream.values[normal], 2).T
    kinds = 2 * (3 * _ranks(first)).astype(np.int64) + (2 * _ranks(second)).astype(np.int64)
    turn = rng.permutation(6)[kinds]
    return _scattered(stream, normal, _ranks(turn + 1.15 * rng.random(len(normal))), rng)


def as_recorded(stream: Stream, rng: Generator) -> Ints:
    """Normal rows in the order of the file."""
    normal = _normal(stream)
    return _scattered(stream, normal, np.arange(len(normal)) / len(normal), rng)


def in_bursts(count: int, shortest: int, longest: int) -> Arrange:
    """Normal rows at random, and `count` unbroken runs of anomalies that resemble each other."""

    def arrange(stream: Stream, rng: Generator) -> Ints:
        normal = rng.permutation(_normal(stream))
        anomalous = np.flatnonzero(stream.labels)
        alike = np.argsort(_projections(stream.values[anomalous], 1)[:, 0], kind="stable")
        kinds = rng.permutation(count)
        runs = [_run(part, rng, shortest, longest) for part in np.array_split(anomalous[alike], count)]
        calm = warmup_rows(len(normal)) * 3 // 2  # so that no burst reaches into the warm-up
        places = calm + np.sort(rng.choice(len(normal) - calm, count, replace=False))
        parts = np.split(normal, places)
        joined = [parts[0]]
        for kind, part in zip(kinds, parts[1:], strict=True):
            joined += [runs[kind], part]
        return np.concatenate(joined)

    return arrange


def _run(rows: Ints, rng: Generator, shortest: int, longest: int) -> Ints:
    length = min(len(rows), int(rng.integers(shortest, longest + 1)))
    start = int(rng.integers(0, len(rows) - length + 1))
    return rows[start : start + length]


def mixed(source: Stream, seed: int) -> Iterator[Stream]:
    """Rows at random, one in twenty anomalous all along; and the same without the anomalies of the first half.

    Of both the second half is judged: what the first of them finds less, it lost by learning among anomalies.
    """
    rng = np.random.default_rng(seed)
    normal, anomalous = rng.permutation(_normal(source)), rng.permutation(np.flatnonzero(source.labels))
    few = min(len(anomalous), len(normal) // MIXED_NORMAL)
    rows = np.concatenate([normal[: MIXED_NORMAL * few], anomalous[:few]])
    at = np.concatenate([np.linspace(0.0, 1.0, MIXED_NORMAL * few, endpoint=False), rng.random(few)])
    order = np.argsort(at, kind="stable")
    second = at[order] >= 0.5
    name = f"mixed/{source.name.rpartition('/')[2]}-{seed}"
    whole = replace(source, times=None).taken(rows[order], name, "mixed")
    yield replace(whole, judged=second)
    kept = second | ~whole.labels
    yield replace(whole.taken(kept, f"{name}-clean", "mixed-clean"), judged=second[kept])


def moved(values: Floats, rng: Generator) -> Floats:
    """The values on a level that wanders, and with a spread that doubles, by the end of the stream."""
    passed = np.linspace(0.0, 1.0, len(values))[:, None]
    pull, phase = rng.normal(0.0, 2.0, values.shape[1]), rng.uniform(0.0, 2 * np.pi, values.shape[1])
    level = pull * (passed + 0.3 * (np.sin(2 * np.pi * passed + phase) - np.sin(phase)))
    middle, spread = values.mean(axis=0), values.std(axis=0)
    return np.asarray(middle + (values - middle) * (1.0 + passed) + spread * level)


DRIFTS: Final = (
    Stress("direction", "tabular/statlog", along_a_direction),
    Stress("direction", "tabular/satimage-2", along_a_direction),
    Stress("direction", "tabular/annthyroid", along_a_direction),
    Stress("direction", "tabular/cardio", along_a_direction),
    Stress("regimes", "tabular/shuttle", by_regimes),
    Stress("regimes", "tabular/statlog", by_regimes),
    Stress("moving", "tabular/shuttle", as_recorded, moving=True),
    Stress("moving", "creditcard/day1_allfraud", as_recorded, moving=True),
)
MIXED: Final = (
    "tabular/shuttle",
    "tabular/satimage-2",
    "tabular/annthyroid",
    "tabular/cardio",
    "tabular/statlog",
    "nslkdd/KDDTrain20_full",
    "creditcard/day1_allfraud",
)
BURSTS: Final = (
    Stress("long", "tabular/shuttle", in_bursts(4, 200, 600)),
    Stress("short", "tabular/shuttle", in_bursts(20, 10, 40)),
    Stress("long", "nslkdd/KDDTrain20_full", in_bursts(4, 200, 600)),
    Stress("short", "nslkdd/KDDTrain20_full", in_bursts(20, 10, 40)),
    Stress("long", "tabular/statlog", in_bursts(4, 100, 300)),
    Stress("medium", "tabular/annthyroid", in_bursts(5, 40, 100)),
    Stress("short", "creditcard/day1_allfraud", in_bursts(5, 20, 50)),
    Stress("long-moving", "tabular/shuttle", in_bursts(4, 200, 600), moving=True),
    Stress("long-moving", "tabular/statlog", in_bursts(4, 100, 300), moving=True),
)


def made(stress: Stress, source: Stream, family: str, seed: int) -> Iterator[Stream]:
    """One made stream, and its very rows in shuffled order, where anomalies fall into the warm-up too."""
    rng = np.random.default_rng(seed)
    name = f"{family}/{stress.kind}-{source.name.rpartition('/')[2]}-{seed}"
    stream = replace(source, times=None).taken(stress.arrange(source, rng), name, family)
    if stress.moving:
        stream = replace(stream, values=moved(stream.values, rng))
    yield stream
    yield shuffled(stream, f"{name}-shuffled", f"{family}-shuffled")
