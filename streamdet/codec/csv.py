"""CSV rows to columns. A value is one row as it stands in the file, without its line end."""

import csv
import math
from collections.abc import Sequence

import numpy as np

from streamdet.codec.columns import Columns, Problem, Row, gather
from streamdet.events import Floats, Reason, Schema

_TRUTH = {"true": 1.0, "false": 0.0}
# What spreadsheets, databases and pandas write where there is no value.
_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "-"})


class CsvCodec:
    """Reads rows under one header. Columns that the schema does not name are passed over."""

    def __init__(
        self, schema: Schema, header: Sequence[str], delimiter: str = ",", *, reject_unusable: bool = False
    ) -> None:
        self._schema = schema
        self._header = tuple(header)
        self._delimiter = delimiter
        self._reject_unusable = reject_unusable
        position = {name: i for i, name in enumerate(header)}
        self._numeric = [position[name] for name in schema.numeric]
        self._categorical = [position[name] for name in schema.categorical]
        self._counterparts = [position[name] for name in schema.counterparts]
        self._timestamp = position[schema.timestamp] if schema.timestamp is not None else None
        self._entity = position[schema.entity] if schema.entity is not None else None

    def decode(self, values: Sequence[bytes]) -> Columns:
        """Columns of all readable values; see `Codec.decode`."""
        rows = self._split_all(values)
        if rows is None:
            return self._one_by_one(values)
        try:
            numeric = _matrix(rows, self._numeric)
        except ValueError:  # something that is no number: find out where
            return self._one_by_one(values)
        return Columns(
            index=np.arange(len(rows), dtype=np.intp),
            timestamps=[row[self._timestamp] or None for row in rows] if self._timestamp is not None else (),
            entities=[row[self._entity] or None for row in rows] if self._entity is not None else (),
            numeric=numeric,
            categorical=[[row[i] or None for row in rows] for i in self._categorical],
            counterparts=[[row[i] or None for row in rows] for i in self._counterparts],
        )

    def original(self, value: bytes) -> dict[str, object]:
        """All fields of one readable value; numbers as numbers."""
        fields = self._split(value.decode("utf-8"))
        return {name: _plain(text) for name, text in zip(self._header, fields, strict=True)}

    def width(self, value: bytes) -> int:
        """How many fields a row has; 0 if it is no row at all."""
        try:
            return len(next(csv.reader([value.decode("utf-8")], delimiter=self._delimiter, strict=True), []))
        except (UnicodeDecodeError, csv.Error):
            return 0

    def _split_all(self, values: Sequence[bytes]) -> list[list[str]] | None:
        """All rows, or None if any cannot be read or is not as wide as the header."""
        try:
            rows = [self._split(value.decode("utf-8")) for value in values]
        except (UnicodeDecodeError, csv.Error):
            return None
        width = len(self._header)
        return rows if all(len(row) == width for row in rows) else None

    def _split(self, text: str) -> list[str]:
        """The fields of one row: nothing else is to be said about a row without quotes and line ends."""
        if '"' in text or "\n" in text or "\r" in text:
            return next(csv.reader([text], delimiter=self._delimiter, strict=True))
        return text.split(self._delimiter)

    def _one_by_one(self, values: Sequence[bytes]) -> Columns:
        rows: list[tuple[int, Row]] = []
        problems: list[Problem] = []
        for i, value in enumerate(values):
            read = self._row(value)
            if not isinstance(read, Row):
                problems.append(Problem(i, *read))
            elif read.unusable and self._reject_unusable:
                error = f"unusable value in {', '.join(read.unusable)}"
                problems.append(Problem(i, Reason.INVALID_VALUE, error))
            else:
                rows.append((i, read))
        return gather(self._schema, rows, problems)

    def _row(self, value: bytes) -> Row | tuple[Reason, str]:
        try:
            text = value.decode("utf-8")
        except UnicodeDecodeError as error:
            return Reason.INVALID_ENCODING, f"not UTF-8: {error.reason} at byte {error.start}"
        try:
            fields = self._split(text)
        except csv.Error as error:
            return Reason.INVALID_SYNTAX, f"not CSV: {error}"
        if len(fields) != len(self._header):
            return Reason.INVALID_SYNTAX, f"{len(fields)} fields under a header of {len(self._header)}"
        numbers = [parse_number(fields[i]) for i in self._numeric]
        return Row(
            timestamp=fields[self._timestamp] or None if self._timestamp is not None else None,
            entity=fields[self._entity] or None if self._entity is not None else None,
            numeric=tuple(math.nan if n is None else n for n in numbers),
            categorical=tuple(fields[i] or None for i in self._categorical),
            unusable=tuple(self._header[i] for i, n in zip(self._numeric, numbers, strict=True) if n is None),
            counterparts=tuple(fields[i] or None for i in self._counterparts),
        )


def parse_number(text: str) -> float | None:
    """The number that a field says: NaN if it is empty or says that there is none, None if it is something else."""
    try:
        return float(text)
    except ValueError:
        word = text.strip().lower()
        return math.nan if word in _MISSING else _TRUTH.get(word)


def _matrix(rows: Sequence[Sequence[str]], columns: Sequence[int]) -> Floats:
    out = np.empty((len(rows), len(columns)))
    for k, i in enumerate(columns):
        out[:, k] = [float(row[i]) if row[i] else math.nan for row in rows]
    return out


def _plain(text: str) -> object:
    number = parse_number(text)
    if number is None or not math.isfinite(number):
        return text or None
    return int(number) if number.is_integer() and abs(number) < 2**53 else number
