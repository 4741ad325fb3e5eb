"""Labelled recordings as streams: which rows come in which order, which are for warming up, and which are judged.

A folder of recordings holds `smd/`, `asd/`, `nasa/`, `skab/`, `tabular/`, `nslkdd/`, `creditcard/`, `cards_sim/` and
`nab/`: CSV files, compressed or not, with a header, an optional `timestamp`, and `label` (0 or 1). What is not there is
left out. Labels decide nothing but which streams of frequent or drifting anomalies are made, and how scores are judged.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from pyarrow import csv as arrow_csv
from quality_made import BURSTS, DRIFTS, MIXED, made, mixed
from quality_stream import Stream, Texts, shuffled, warmup_rows

from streamdet.events import Bools, Ints

# A recording's parts that are no numbers, whatever they look like.
_KEYS: Final = ("timestamp", "customer_id", "terminal_id")
SMD_TRAIN_ROWS: Final = 8_000
TABULAR_ROWS: Final = 20_000
SKAB_FITTING_ROWS: Final = 400
CARDS_JUDGED_FROM_DAY: Final = 14
STRESS_SEEDS: Final = (0, 1, 2)
# Fewer labelled anomalies than this among the judged rows would make any figure a matter of luck.
ANOMALIES_MIN: Final = 3

MULTIVARIATE_SENSORS: Final = ("smd", "asd", "nasa", "skab")


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


def _stress(root: Path, family: str) -> Iterator[Stream]:
    kind = family.removesuffix("-shuffled")
    for stress in {"drift": DRIFTS, "burst": BURSTS}[kind]:
        path = root / f"{stress.recording}.csv.gz"
        if path.exists():
            source = _read(path, stress.recording, kind)
            for seed in STRESS_SEEDS:
                yield from (stream for stream in made(stress, source, kind, seed) if stream.family == family)


def _mixed(root: Path, family: str) -> Iterator[Stream]:
    for recording in MIXED:
        path = root / f"{recording}.csv.gz"
        if path.exists():
            source = _read(path, recording, family)
            for seed in STRESS_SEEDS:
                yield from (stream for stream in mixed(source, seed) if stream.family == family)


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
    "mixed": lambda root, _: _mixed(root, "mixed"),
    "mixed-clean": lambda root, _: _mixed(root, "mixed-clean"),
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
