"""Labelled recordings as streams: which rows come in which order, which are for warming up, and which are judged.

A folder of recordings holds `smd/`, `asd/`, `nasa/`, `skab/`, `tabular/`, `nslkdd/`, `creditcard/`, `cards_sim/` and
`nab/`: CSV files, compressed or not, with a header, an optional `timestamp`, and `label` (0 or 1). What is not there is
left out. Labels decide nothing but which streams of frequent or drifting anomalies are made, and how scores are judged.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.random import Generator
from numpy.typing import NDArray
from pyarrow import csv as arrow_csv

from streamdet.events import Bools, Floats, Ints

Texts = NDArray[np.object_]

# A recording's parts that are no numbers, whatever they look like.
_KEYS: Final = ("timestamp", "customer_id", "terminal_id")
SMD_TRAIN_ROWS: Final = 8_000
TABULAR_ROWS: Final = 20_000
SKAB_FITTING_ROWS: Final = 400
CARDS_JUDGED_FROM_DAY: Final = 14
SHUFFLE_SEED: Final = 1
STRESS_SEEDS: Final = (0, 1, 2)
# Made streams are as long as it takes to see drift or bursts, and not longer: there are many of them.
STRESS_NORMAL_ROWS: Final = 6_000
# Fewer labelled anomalies than this among the judged rows would make any figure a matter of luck.
ANOMALIES_MIN: Final = 3

MULTIVARIATE_SENSORS: Final = ("smd", "asd", "nasa", "skab")


@dataclass(frozen=True, eq=False)
class Stream:
    """A stream of n rows with d numbers each, and what it takes to judge the scores of its rows."""

    name: str
    family: str
    columns: tuple[str, ...]  # of the d numbers
    values: Floats  # (n, d)
    labels: Bools  # (n,) anomalous or not
    warmup: int  # rows at the beginning that a static model may be fitted on
    judged: Bools  # (n,) rows that count
    times: Texts | None = None  # (n,) ISO 8601 without zone
    categories: Mapping[str, Texts] = field(default_factory=dict)  # (n,) each
    entity: str | None = None  # name of the key column
    keys: Texts | None = None  # (n,) the key column
    windows: tuple[tuple[int, int], ...] = ()  # first and last row of each labelled window
    hopeless: Bools | None = None  # (n,) anomalies that leave no trace in the columns
    amount: str | None = None  # of transactions: the column that is paid
    counterparts: tuple[str, ...] = ()  # of transactions: the categories that name who is paid
    derived: tuple[
        str, ...
    ] = ()  # columns made of earlier rows: a detector that keeps them itself does not get them

    def __len__(self) -> int:
        return len(self.labels)

    def taken(self, rows: NDArray[Any], name: str, family: str | None = None) -> "Stream":
        """The stream of these rows in this order; warm-up and judged rows are those of a table of that length."""
        n = len(self.labels[rows])
        warmup = warmup_rows(n)
        return replace(
            self,
            name=name,
            family=self.family if family is None else family,
            values=self.values[rows],
            labels=self.labels[rows],
            warmup=warmup,
            judged=np.arange(n) >= warmup,
            times=None if self.times is None else self.times[rows],
            categories={key: column[rows] for key, column in self.categories.items()},
            keys=None if self.keys is None else self.keys[rows],
            windows=(),
            hopeless=None if self.hopeless is None else self.hopeless[rows],
        )

    def digest(self) -> str:
        """The same for equal streams, and for no others."""
        facts = [self.name, self.columns, self.warmup, self.entity, sorted(self.categories)]
        sha = hashlib.sha256(json.dumps(facts).encode())
        for numbers in (self.values, self.labels, self.judged):
            sha.update(np.ascontiguousarray(numbers).tobytes())
        for texts in (self.times, self.keys, *(self.categories[name] for name in sorted(self.categories))):
            sha.update(b"-" if texts is None else "\n".join(texts).encode())
        return sha.hexdigest()[:16]

    def write(self, path: Path) -> None:
        """Write a CSV recording: timestamp and key where there are any, categories, numbers, label."""
        parts: dict[str, Any] = {}
        if self.times is not None:
            parts["timestamp"] = pa.array(self.times, pa.string())
        if self.entity is not None:
            parts[self.entity] = pa.array(self.keys, pa.string())
        parts |= {name: pa.array(column, pa.string()) for name, column in self.categories.items()}
        parts |= {name: pa.array(self.values[:, i]) for i, name in enumerate(self.columns)}
        parts["label"] = pa.array(self.labels.astype(np.int8))
        # Quotes, which pyarrow puts around every text, would have to be taken off again row by row.
        options = arrow_csv.WriteOptions(include_header=False, quoting_style="none")
        with path.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(parts)
        with path.open("ab") as body:
            arrow_csv.write_csv(pa.table(parts), body, options)


def warmup_rows(n: int) -> int:
    """A tenth of a table, 50 rows at least and 2,000 at most."""
    return min(max(n // 10, 50), 2000)


def shuffled(stream: Stream, name: str, family: str | None = None, rows: int | None = None) -> Stream:
    """The rows in an order that the seed of all shuffles gives; of them only the first `rows`."""
    order = np.random.default_rng(SHUFFLE_SEED).permutation(len(stream))
    return stream.taken(order[:rows], name, family)


# Reading recordings


def _read(path: Path, name: str, family: str) -> Stream:
    """A recording as one stream in file order, to be cut and marked by whoever knows its protocol."""
    types = {key: pa.string() for key in _KEYS}
    table = arrow_csv.read_csv(path, convert_options=arrow_csv.ConvertOptions(column_types=types))
    texts = {
        column.name: table[column.name].to_numpy()
        for column in table.schema
        if pa.types.is_string(column.type)
    }
    numeric = [c for c in table.column_names if c not in texts and c != "label"]
    values = np.column_stack([table[c].to_numpy().astype(np.float64) for c in numeric])
    labels = table["label"].to_numpy().astype(np.bool_)
    times = texts.pop("timestamp", None)
    return Stream(
        name, family, tuple(numeric), values, labels, 0, np.ones(len(labels), np.bool_), times, texts
    )


def _judged_from(stream: Stream, warmup: int, first: int) -> Stream:
    return replace(stream, warmup=warmup, judged=np.arange(len(stream)) >= first)


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern))


def _halves(root: Path, family: str, *, whole: bool) -> Iterator[Stream]:
    """A train half that a test half follows, of which the second is judged."""
    for path in _files(root / family, "*_test.csv.gz"):
        name = f"{family}/{path.name.removesuffix('_test.csv.gz')}"
        train, test = _read(_train(path), name, family), _read(path, name, family)
        rows = None if whole or family != "smd" else SMD_TRAIN_ROWS
        kept = slice(-min(rows or len(train), len(train)), None)
        joined = replace(
            test,
            values=np.concatenate([train.values[kept], test.values]),
            labels=np.concatenate([train.labels[kept], test.labels]),
        )
        fitted = len(joined.labels) - len(test)
        yield _judged_from(joined, fitted, fitted)


def _train(test: Path) -> Path:
    return test.with_name(test.name.replace("_test", "_train"))


def _skab(root: Path) -> Iterator[Stream]:
    for folder in ("valve1", "other"):
        for path in _files(root / "skab" / folder, "*.csv"):
            stream = _read(path, f"skab/{folder}/{path.stem}", "skab")
            yield _judged_from(stream, SKAB_FITTING_ROWS, SKAB_FITTING_ROWS)


def _tabular(root: Path, *, whole: bool) -> Iterator[Stream]:
    rows = None if whole else TABULAR_ROWS
    for path in _files(root / "tabular", "*.csv.gz"):
        if path.name == "memstream_syn.csv.gz":  # one value that drifts: a family of its own
            continue
        name = f"tabular/{path.name.removesuffix('.csv.gz')}"
        table = _read(path, name, "tabular")
        yield table.taken(np.arange(len(table))[:rows], f"{name}/file")
        yield shuffled(table, f"{name}/shuffled", rows=rows)


def _syn(root: Path) -> Iterator[Stream]:
    for path in _files(root / "tabular", "memstream_syn.csv.gz"):
        table = _read(path, "syn", "syn")
        yield table.taken(np.arange(len(table)), "syn")


def _last_two_thirds(folder: Path, pattern: str, family: str) -> Iterator[Stream]:
    for path in _files(folder, pattern):
        stream = _read(path, f"{family}/{path.name.removesuffix('.csv.gz')}", family)
        yield _judged_from(stream, warmup_rows(len(stream)), len(stream) // 3)


def _cards(root: Path) -> Iterator[Stream]:
    for path in _files(root / "cards_sim", "cards_*.csv.gz"):
        stream = _read(path, "cards", "cards")
        assert stream.times is not None
        days = _days(stream.times)
        texts = dict(stream.categories)
        keys = texts.pop("customer_id")
        yield replace(
            stream,
            categories=texts,
            entity="customer_id",
            amount="amount",
            counterparts=("terminal_id",),
            derived=tuple(name for name in stream.columns if name.startswith(("cust_", "term_"))),
            keys=keys,
            warmup=warmup_rows(len(stream)),
            judged=days - days[0] >= CARDS_JUDGED_FROM_DAY,
            hopeless=_compromised_terminal(path.with_name("fraud_scenarios.csv"), len(stream)),
        )


def _days(times: Texts) -> Ints:
    return times.astype("datetime64[D]").astype(np.int64)


def _compromised_terminal(path: Path, n: int) -> Bools:
    """Frauds with ordinary amounts at a terminal that nobody knows to be compromised."""
    told = np.zeros(n, np.bool_)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            told[int(row["row"])] = row["scenario"] == "2"
    return told


def _nab(root: Path) -> Iterator[Stream]:
    from quality_nab import probation_rows

    listed = root / "nab" / "windows.json"
    if not listed.exists():
        return
    for name, windows in sorted(json.loads(listed.read_text()).items()):
        stream = _read(root / "nab" / name, f"nab/{name.removesuffix('.csv')}", "nab")
        assert stream.times is not None
        probation = probation_rows(len(stream))
        yield replace(
            _judged_from(stream, probation, probation), windows=tuple(window_rows(stream.times, windows))
        )


def window_rows(times: Texts, windows: list[list[str]]) -> Iterator[tuple[int, int]]:
    """First and last row of each window; of rows with the same time the first one counts.

    Raises:
        ValueError: a window begins or ends where there is no row.
    """
    first: dict[datetime, int] = {}
    for row, time in enumerate(times):
        first.setdefault(datetime.fromisoformat(time), row)
    for left, right in windows:
        edges = first.get(datetime.fromisoformat(left)), first.get(datetime.fromisoformat(right))
        if edges[0] is None or edges[1] is None:
            raise ValueError(f"window {left} to {right}: there is no row at one of its edges")
        yield edges[0], edges[1]


# Streams that drift, and streams whose anomalies come in bursts, made from recordings

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


def _stress(root: Path, family: str) -> Iterator[Stream]:
    kind = family.removesuffix("-shuffled")
    for stress in {"drift": DRIFTS, "burst": BURSTS}[kind]:
        path = root / f"{stress.recording}.csv.gz"
        if path.exists():
            source = _read(path, stress.recording, kind)
            for seed in STRESS_SEEDS:
                yield from (stream for stream in made(stress, source, kind, seed) if stream.family == family)


# All of them

FAMILIES: Final[Mapping[str, Callable[[Path, bool], Iterator[Stream]]]] = {
    "smd": lambda root, whole: _halves(root, "smd", whole=whole),
    "asd": lambda root, whole: _halves(root, "asd", whole=whole),
    "nasa": lambda root, whole: _halves(root, "nasa", whole=whole),
    "skab": lambda root, _: _skab(root),
    "tabular": lambda root, whole: _tabular(root, whole=whole),
    "nsl": lambda root, _: _last_two_thirds(root / "nslkdd", "*_5pct.csv.gz", "nsl"),
    "creditcard": lambda root, _: _last_two_thirds(root / "creditcard", "*.csv.gz", "creditcard"),
    "cards": lambda root, _: _cards(root),
    "syn": lambda root, _: _syn(root),
    "nab": lambda root, _: _nab(root),
    "drift": lambda root, _: _stress(root, "drift"),
    "drift-shuffled": lambda root, _: _stress(root, "drift-shuffled"),
    "burst": lambda root, _: _stress(root, "burst"),
    "burst-shuffled": lambda root, _: _stress(root, "burst-shuffled"),
}


def streams(root: Path, family: str, *, whole: bool = False) -> Iterator[Stream]:
    """The streams of a family, in the same order each time; none where the recordings are not there.

    `whole` leaves no rows out of the longest recordings.
    """
    for stream in FAMILIES[family](root, whole):
        if family == "nab" or (stream.labels & stream.judged).sum() >= ANOMALIES_MIN:
            yield stream


def normal_streams(root: Path) -> Iterator[Stream]:
    """Streams without a labelled anomaly, to see how many of their rows are flagged.

    Train halves, recordings without anomalies, and recordings of which the anomalous rows are taken out.
    """
    for family in ("smd", "asd", "nasa"):
        for path in _files(root / family, "*_train.csv.gz"):
            yield _read(path, f"{family}/{path.name.removesuffix('.csv.gz')}", family)
    for path in _files(root / "skab" / "anomaly-free", "*.csv"):
        yield _read(path, f"skab/{path.stem}", "skab")
    yield from (stream for stream in _nab(root) if not stream.windows)
    for family in ("tabular", "syn", "nsl", "creditcard", "cards"):
        for stream in FAMILIES[family](root, False):
            if not stream.name.endswith(("/shuffled", "_1pct")):  # the same rows again
                yield stream.taken(~stream.labels, f"{stream.name}-normal")
