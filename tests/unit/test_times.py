"""Event times: whatever the form, to the millisecond, and the same whatever stands beside it."""

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamdet.codec.times import TIME_MS_MAX, parse_times

MS_2001, MS_2200 = 1_000_000_000_000, TIME_MS_MAX - 1
_moments = st.integers(MS_2001, MS_2200)
_raw = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=30),
    st.datetimes(timezones=st.sampled_from([None, UTC, timezone(timedelta(hours=5, minutes=30))])).map(
        lambda moment: moment.isoformat()
    ),
    st.from_regex(
        r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?( ?Z|[+-]05:?00)?"
    ),
    st.from_regex(
        r"20[0-9]{2}-0[1-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9](\.[0-9]{1,6})?Z?", fullmatch=True
    ),
    st.sampled_from(
        [10**400, [], {}, "2026-03-01T12:00:00\x00", "2026-03-01T12:00:00ZZ", "NaT", "now", "today"]
    ),
)


def ms(value: object) -> int | None:
    times, usable = parse_times([value])
    return int(times[0]) if usable[0] else None


@given(st.lists(_raw, max_size=6))
@example(["2026-03-01T12:00:00-0500"])
def test_a_time_means_the_same_whatever_stands_beside_it(values: list[object]) -> None:
    times, usable = parse_times(values)
    alone = [parse_times([value]) for value in values]
    assert usable.tolist() == [bool(u[0]) for _, u in alone]
    assert times[usable].tolist() == [int(t[0]) for t, u in alone if u[0]]


@given(
    _moments, st.sampled_from([UTC, None, timezone(timedelta(hours=-7)), timezone(timedelta(minutes=345))])
)
@example(1_577_836_800_123, UTC)
def test_iso_8601_is_exact_to_the_millisecond_in_every_zone(moment_ms: int, zone: timezone | None) -> None:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=moment_ms)
    text = moment.replace(tzinfo=None).isoformat() if zone is None else moment.astimezone(zone).isoformat()
    assert ms(text) == moment_ms
    # Beside a text that takes the careful way, too.
    assert parse_times([text, "soon"])[0][0] == moment_ms


@given(_moments)
@example(1_612_101_012_345)  # as a date and a time of day it would be the year 1612
@example(1_577_836_801_001)
def test_unix_times_are_read_in_any_unit_as_number_and_as_text(moment_ms: int) -> None:
    for number in (moment_ms / 1000, moment_ms, moment_ms * 1000, moment_ms * 1_000_000):
        assert ms(number) == pytest.approx(moment_ms, abs=0.5)
        assert ms(str(number)) == pytest.approx(moment_ms, abs=0.5)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        "",
        "soon",
        "never",
        -1,
        "-5",
        1e300,
        10**400,
        float("nan"),
        float("inf"),
        [],
        {"a": 1},
        1e20,
        "9999-12-31T00:00:00Z",
        "1969-12-31T23:59:59Z",
        "2026-02-30T00:00:00Z",
        "2026-03-01T12:00:00ZZ",
    ],
)
def test_what_is_no_time_of_this_age_is_unusable(value: object) -> None:
    assert ms(value) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20260301", "2026-03-01T00:00:00Z"),
        ("2026-03-01", "2026-03-01T00:00:00Z"),
        ("2026-03-01 12:00:00", "2026-03-01T12:00:00Z"),
        (" 2026-03-01T12:00:00+02:00 ", "2026-03-01T10:00:00Z"),
        ("2026-03-01T12:00:00.999999999Z", "2026-03-01T12:00:00.999Z"),
    ],
)
def test_other_ways_to_write_a_time_mean_the_same(text: str, expected: str) -> None:
    assert ms(text) == ms(expected) is not None


def test_no_values_give_no_times() -> None:
    times, usable = parse_times([])
    assert times.dtype == np.int64
    assert usable.dtype == np.bool_
    assert len(times) == 0
