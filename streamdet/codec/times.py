"""Event times: ISO 8601 text or Unix time, to milliseconds since 1970-01-01 UTC."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from streamdet.events import Bools, Ints

# Outside of these an event time is a mistake, such as the year 9999 that stands for "never".
TIME_MS_MIN = 0
TIME_MS_MAX = int(datetime(2200, 1, 1, tzinfo=UTC).timestamp()) * 1000
_NOT_A_TIME = np.iinfo(np.int64).min
# A Unix time tells its unit by its size: in seconds, this is the year 5138; in milliseconds, 1973.
_UNIT_STEP = 1e11


def parse_times(values: Sequence[object]) -> tuple[Ints, Bools]:
    """Milliseconds of n raw values and whether each is a time within bounds, (n,) both.

    Text without a zone is UTC. A number is in seconds, milli-, micro- or nanoseconds, whichever gives a year between
    1973 and 5138.
    """
    times = _all_iso(values)
    if times is None:
        times = np.array([_parse(value) for value in values], np.int64)
    usable = (times >= TIME_MS_MIN) & (times < TIME_MS_MAX)
    return times, usable


def _all_iso(values: Sequence[object]) -> Ints | None:
    """The fast way: all text, all in UTC or without a zone."""
    texts = []
    for value in values:
        if not isinstance(value, str) or len(value) < 19 or ("+" in value) or value[-6:-5] == "-":
            return None
        texts.append(value.removesuffix("Z"))
    try:
        return np.array(texts, "datetime64[ms]").astype(np.int64)
    except ValueError:
        return None


def _parse(value: object) -> int:
    if isinstance(value, str):
        text = value.strip()
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            return _from_number(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return math.floor(moment.timestamp() * 1000)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _NOT_A_TIME
    return _from_number(value)


def _from_number(value: str | float) -> int:
    try:
        number = float(value)
    except ValueError:
        return _NOT_A_TIME
    if not math.isfinite(number):
        return _NOT_A_TIME
    if abs(number) < _UNIT_STEP:
        return math.floor(number * 1000)
    if abs(number) < _UNIT_STEP * 1e3:
        return math.floor(number)
    if abs(number) < _UNIT_STEP * 1e6:
        return math.floor(number / 1e3)
    return math.floor(number / 1e6) if abs(number) < _UNIT_STEP * 1e9 else _NOT_A_TIME
