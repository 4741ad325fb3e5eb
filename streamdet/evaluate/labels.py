"""Labels of a recording, read beside the judging and never by it."""

import csv
from collections.abc import Sequence

import numpy as np

from streamdet.codec.csv import parse_number
from streamdet.codec.json import parse_object
from streamdet.events import Bools

_ANOMALOUS = frozenset({"true", "yes", "y", "anomaly", "anomalous", "abnormal", "fraud", "attack"})


class CsvLabels:
    """The label column of CSV rows."""

    def __init__(self, header: Sequence[str], delimiter: str, label: str) -> None:
        self._at = header.index(label)
        self._delimiter = delimiter

    def read(self, values: Sequence[bytes]) -> Bools:
        """Whether each of n readable rows is labelled anomalous, (n,)."""
        rows = (next(csv.reader([v.decode("utf-8")], delimiter=self._delimiter)) for v in values)
        return np.fromiter((is_anomalous(row[self._at]) for row in rows), np.bool_, len(values))


class JsonLabels:
    """The label field of JSON objects."""

    def __init__(self, label: str) -> None:
        self._label = label

    def read(self, values: Sequence[bytes]) -> Bools:
        """Whether each of n readable objects is labelled anomalous, (n,)."""
        return np.fromiter((self._read(value) for value in values), np.bool_, len(values))

    def _read(self, value: bytes) -> bool:
        fields = parse_object(value)
        return isinstance(fields, dict) and is_anomalous(fields.get(self._label))


def is_anomalous(label: object) -> bool:
    """A number other than 0, true, or a word for it."""
    if isinstance(label, str):
        number = parse_number(label)
        if number is None or np.isnan(number):
            return label.strip().lower() in _ANOMALOUS
        return number != 0
    return isinstance(label, bool | int | float) and bool(label)
