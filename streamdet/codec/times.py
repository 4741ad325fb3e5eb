"""Event times: ISO 8601 text or Unix time, to milliseconds since 1970-01-01 UTC."""

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import cast

import numpy as np

from streamdet.events import Bools, Ints

# Outside of these an event time is a mistake, such as the year 9999 that stands for "never".
TIME_MS_MIN = 0
TIME_MS_MAX = int(datetime(2200, 1, 1, tzinfo=UTC).timestamp()) * 1000
_NOT_A_TIME = np.iinfo(np.int64).min
# A Unix time tells its unit by its size: in seconds, this is the year 5138; in milliseconds, 1973.
_UNIT_STEP = 1e11
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
# Lines that numpy and the standard library read alike; of other texts numpy guesses more than it should.
_UTC_LINES = re.compile(r"(?:\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d{1,6})?Z?\n)*+", re.ASCII)
# As many digits as a date without dashes has: 20260301.
_DATE_DIGITS = 8


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
    try:
        lines = "\n".join(cast("Sequence[str]", values)) + "\n"
    except TypeError:
        return None
    if _UTC_LINES.fullmatch(lines) is None or lines.count("\n") != len(values):
        return None
    try:
        return np.array(lines.replace("Z", "").splitlines(), "datetime64[ms]").astype(np.int64)
    except ValueError:
        return None


def _parse(value: object) -> int:
    if isinstance(value, str):
        return _from_text(value.strip())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _NOT_A_TIME
    return _from_number(value)


def _from_text(text: str) -> int:
    """Numbers first: the standard library takes 1612101012345 for a quarter to midnight in 1612."""
    if len(text) != _DATE_DIGITS:
        try:
            return _from_number(float(text))
        except ValueError:
            pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return _NOT_A_TIME
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // _MILLISECOND


def _from_number(value: float) -> int:
    try:
        number = float(value)
    except OverflowError:
        return _NOT_A_TIME
    if not math.isfinite(number):
        return _NOT_A_TIME
    # Rounded, not cut: 1.001 * 1000 is less than 1001, and a float has not all digits of nanoseconds.
    if abs(number) < _UNIT_STEP:
        return round(number * 1000)
    if abs(number) < _UNIT_STEP * 1e3:
        return round(number)
    if abs(number) < _UNIT_STEP * 1e6:
        return round(number / 1e3)
    return round(number / 1e6) if abs(number) < _UNIT_STEP * 1e9 else _NOT_A_TIME
