"""A stream of the benchmark: rows in their order, labels, and which rows count."""

import csv
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv as arrow_csv

from streamdet.events import Bools, Floats

Texts = NDArray[np.object_]

SHUFFLE_SEED: Final = 1


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
    # Columns made of earlier rows: a detector that keeps these itself does not get them.
    derived: tuple[str, ...] = ()

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
