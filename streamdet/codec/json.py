"""JSON objects to columns: the whole batch at once, and record by record where that fails.

The fast way decodes all records with one typed call. Whatever it refuses is read again, record by record, with a
parser that says exactly what is wrong; so one bad record costs one reject, and both ways give the same columns.
"""

import json
import math
from collections.abc import Sequence
from itertools import chain
from operator import attrgetter
from typing import NamedTuple

import msgspec
import numpy as np

from streamdet.codec.columns import Columns, Problem, Row, gather
from streamdet.codec.keys import DEPTH_MAX, is_too_deep, suspects
from streamdet.events import Reason, Schema

_NUMBER = float | bool | None
_NAME = str | int | float | bool | None
_TIME = str | int | float | None


class JsonCodec:
    """Reads one JSON object per value. Fields that the schema does not name are passed over."""

    def __init__(self, schema: Schema, *, reject_unusable: bool = False) -> None:
        self._schema = schema
        self._reject_unusable = reject_unusable
        fields: list[tuple[str, object, object]] = []
        rename = {}

        def field(name: str, kind: object, default: object) -> str:
            attribute = f"f{len(fields)}"
            fields.append((attribute, kind, default))
            rename[attribute] = name
            return attribute

        numeric = [field(name, _NUMBER, math.nan) for name in schema.numeric]
        self._categorical = [attrgetter(field(name, _NAME, None)) for name in schema.categorical]
        self._counterparts = [attrgetter(field(name, _NAME, None)) for name in schema.counterparts]
        self._timestamp = (
            attrgetter(field(schema.timestamp, _TIME, None)) if schema.timestamp is not None else None
        )
        self._entity = (
            attrgetter(field(schema.entity, str | int | None, None)) if schema.entity is not None else None
        )
        # attrgetter of one name gives the bare value, of several a tuple; the extra name makes it always a tuple.
        self._numeric = attrgetter(*numeric, *numeric[-1:]) if numeric else None
        struct = msgspec.defstruct("Event", fields, rename=rename, gc=False)
        self._decoder = msgspec.json.Decoder(struct)

    def decode(self, values: Sequence[bytes]) -> Columns:
        """Columns of all readable values; see `Codec.decode`."""
        lines = b"\n".join(values)
        if lines.count(b"\n") == len(values) - 1 and _is_utf8(lines):
            try:
                events = self._decoder.decode_lines(lines)
            except (msgspec.MsgspecError, RecursionError):
                events = []
            if len(events) == len(values):
                doubtful = np.flatnonzero(suspects(lines, len(values))).tolist()
                if all(isinstance(parse_object(values[i]), dict) for i in doubtful):
                    return self._columns(events)
        return self._one_by_one(values)

    def original(self, value: bytes) -> dict[str, object]:
        """All fields of one readable value."""
        fields: dict[str, object] = json.loads(value, parse_constant=lambda _: None, parse_int=_integer)
        return fields

    def _columns(self, events: Sequence[object]) -> Columns:
        n, width = len(events), len(self._schema.numeric)
        if self._numeric is None:
            numeric = np.empty((n, 0))
        else:
            flat = chain.from_iterable(map(self._numeric, events))  # None becomes NaN
            numeric = np.fromiter(flat, np.float64, n * (width + 1)).reshape(n, width + 1)[:, :width]
        return Columns(
            index=np.arange(n, dtype=np.intp),
            timestamps=list(map(self._timestamp, events)) if self._timestamp else (),
            entities=[None if v is None else str(v) for v in map(self._entity, events)]
            if self._entity
            else (),
            numeric=numeric,
            categorical=[[_name(v) for v in map(get, events)] for get in self._categorical],
            counterparts=[[_name(v) for v in map(get, events)] for get in self._counterparts],
        )

    def _one_by_one(self, values: Sequence[bytes]) -> Columns:
        rows: list[tuple[int, Row]] = []
        problems: list[Problem] = []
        for i, value in enumerate(values):
            parsed = parse_object(value)
            if isinstance(parsed, dict):
                row = self._row(parsed)
                if not row.unusable or not self._reject_unusable:
                    rows.append((i, row))
                    continue
                error = f"unusable value in {', '.join(row.unusable)}"
                problems.append(Problem(i, Reason.INVALID_VALUE, error))
            else:
                reason, error = parsed
                problems.append(Problem(i, reason, error))
        return gather(self._schema, rows, problems)

    def _row(self, fields: dict[str, object]) -> Row:
        schema = self._schema
        unusable = []
        numeric = []
        for name in schema.numeric:
            number = _number(fields.get(name))
            if number is None:
                unusable.append(name)
            numeric.append(math.nan if number is None else number)
        names = []
        for name in schema.categorical + schema.counterparts:
            value = fields.get(name)
            if isinstance(value, dict | list | Constant):
                unusable.append(name)
                value = None
            names.append(_name(value))
        entity = fields.get(schema.entity) if schema.entity is not None else None
        return Row(
            timestamp=fields.get(schema.timestamp) if schema.timestamp is not None else None,
            entity=str(entity) if isinstance(entity, str | int) and not isinstance(entity, bool) else None,
            numeric=tuple(numeric),
            categorical=tuple(names[: len(schema.categorical)]),
            unusable=tuple(unusable),
            counterparts=tuple(names[len(schema.categorical) :]),
        )


class Constant(NamedTuple):
    """NaN, Infinity or -Infinity: no JSON, but written by many a program. Not a number, nor any other value."""

    name: str


class _Object(dict[str, object]):
    """A parsed object that remembers whether a key was named twice."""

    repeated: str | None = None


def parse_object(value: bytes) -> dict[str, object] | tuple[Reason, str]:
    """One JSON object, or the reason why it is none. NaN and Infinity, which are not JSON, are `Constant`s."""
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError as error:
        return Reason.INVALID_ENCODING, f"not UTF-8: {error.reason} at byte {error.start}"
    if is_too_deep(value):
        return Reason.TOO_DEEP, f"nested more than {DEPTH_MAX} deep"
    try:
        parsed = json.loads(text, object_pairs_hook=_object, parse_int=_integer, parse_constant=Constant)
    except ValueError as error:
        return Reason.INVALID_SYNTAX, f"not JSON: {error}"
    return _checked(parsed, text)


def _checked(parsed: object, text: str) -> dict[str, object] | tuple[Reason, str]:
    if not isinstance(parsed, _Object):
        return Reason.NOT_AN_OBJECT, f"a JSON object was expected, not {type(parsed).__name__}"
    if parsed.repeated is not None:
        return Reason.DUPLICATE_KEY, f"key {parsed.repeated!r} is there more than once"
    if "\\u" in text and not _is_sayable(parsed):
        return Reason.INVALID_ENCODING, "an escape is half of a surrogate pair, which is no text"
    return parsed


def _object(pairs: list[tuple[str, object]]) -> _Object:
    made = _Object(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        made.repeated = next(name for name in names if names.count(name) > 1)
    return made


def _integer(digits: str) -> int | float:
    """Python refuses to read integers of more than 4,300 digits; one that nobody asked for may stand anywhere."""
    try:
        return int(digits)
    except ValueError:
        return float(digits)


def _is_sayable(parsed: dict[str, object]) -> bool:
    """Whether UTF-8 can say every text in it; an alert that carries another could not be published."""
    try:
        json.dumps(parsed, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_utf8(text: bytes) -> bool:
    if text.isascii():
        return True
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _number(value: object) -> float | None:
    """NaN for null, None for what is no number."""
    if value is None:
        return math.nan
    if isinstance(value, bool | int | float):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    return None


def _name(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
