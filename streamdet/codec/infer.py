"""Guessing a schema from the first records, where none is configured."""

from collections.abc import Mapping, Sequence

from streamdet.codec.times import parse_times
from streamdet.errors import ConfigError
from streamdet.events import Schema

SAMPLE = 1000
# In the order in which they are preferred; compared without case, `_`, `-`, `@` and spaces.
_TIME_NAMES = ("timestamp", "eventtime", "ts", "datetime", "time", "date", "createdat", "observedat", "t")
# A text column with more distinct values than this share of its rows is an identifier: each value is as rare as
# any other, so rarity says nothing.
_IDENTIFIER_SHARE = 0.9
_IDENTIFIER_ROWS_MIN = 50


def infer_schema(
    sample: Sequence[Mapping[str, object]],
    *,
    label: str | None,
    timestamp: str | None = None,
    entity: str | None = None,
    keys: Sequence[str] = (),
) -> Schema:
    """A schema for records like these: the time column by name and content, numbers numeric, text categorical.

    The column that `label` names, and identifiers, are left out. `timestamp` and `entity` are taken as they are, and
    `keys` are no features.

    Raises:
        ConfigError: there is no column to judge.
    """
    names = list(dict.fromkeys(name for record in sample for name in record))
    values = {name: [r[name] for r in sample if r.get(name) not in (None, "")] for name in names}
    if timestamp is None:
        timestamp = _time_column(values)
    numeric, categorical = [], []
    for name in names:
        if name in (label, timestamp, entity, *keys) or not values[name]:
            continue
        kind = _kind(values[name])
        if kind == "number":
            numeric.append(name)
        elif kind == "text" and not _is_identifier(values[name]):
            categorical.append(name)
    if not numeric and not categorical:
        raise ConfigError(
            f"no column to judge among {', '.join(names) or 'none'}: expected at least one with numbers or repeated "
            "text; name the fields under input.features"
        )
    return Schema(timestamp, entity, tuple(numeric), tuple(categorical))


def _time_column(values: Mapping[str, Sequence[object]]) -> str | None:
    folded = {"".join(c for c in name.lower() if c.isalnum()): name for name in reversed(list(values))}
    for wanted in _TIME_NAMES:
        name = folded.get(wanted)
        if name is not None and _are_times(values[name]):
            return name
    return next(
        (name for name, column in values.items() if _kind(column) == "text" and _are_times(column)), None
    )


def _are_times(column: Sequence[object]) -> bool:
    """Whether nearly all are ISO 8601, or Unix times since 2001: smaller numbers are as likely a row count."""
    if not column:
        return False
    times_ms, usable = parse_times(column)
    plausible = usable & (times_ms >= 1_000_000_000_000) if _kind(column) == "number" else usable
    return bool(plausible.mean() >= 0.95)


def _kind(column: Sequence[object]) -> str:
    """What most of the values are."""
    numbers = sum(isinstance(value, bool | int | float) for value in column)
    texts = sum(isinstance(value, str) for value in column)
    if numbers * 2 > len(column):
        return "number"
    return "text" if texts * 2 > len(column) else "nested"


def _is_identifier(column: Sequence[object]) -> bool:
    texts = [value for value in column if isinstance(value, str)]  # of another type one may be a list
    return len(texts) >= _IDENTIFIER_ROWS_MIN and len(set(texts)) > _IDENTIFIER_SHARE * len(texts)
