"""A guess at the schema: what a user would have named, from names and contents."""

import pytest

from streamdet.codec.infer import infer_schema
from streamdet.errors import ConfigError
from streamdet.events import Schema

N = 100


def sample(**columns: object) -> list[dict[str, object]]:
    """Records with a constant, or the values of a list, in each field."""
    return [{name: c[i] if isinstance(c, list) else c for name, c in columns.items()} for i in range(N)]


ISO = [f"2026-03-01T12:{i // 60:02d}:{i % 60:02d}Z" for i in range(N)]


def test_numbers_are_numeric_repeated_text_categorical_and_the_time_column_neither() -> None:
    schema = infer_schema(sample(ts=ISO, temperature=20.5, on=True, site="north"), label=None)
    assert schema == Schema("ts", None, ("temperature", "on"), ("site",))


def test_the_label_is_never_a_feature() -> None:
    schema = infer_schema(sample(a=1, label=0, fraud=0), label="label")
    assert schema.columns == ("a", "fraud")
    assert infer_schema(sample(a=1, label="normal"), label="label").columns == ("a",)
    assert infer_schema(sample(ts=ISO, label=ISO, a=1), label="label").columns == ("a",)


@pytest.mark.parametrize(
    "name", ["timestamp", "event_time", "TS", "dateTime", "Time", "date", "created-at", "@timestamp"]
)
def test_the_time_column_is_found_by_name_however_it_is_written(name: str) -> None:
    assert infer_schema(sample(**{"other": ISO, name: ISO, "a": 1}), label=None).timestamp == name


def test_the_better_name_wins_and_the_other_time_column_is_no_category() -> None:
    schema = infer_schema(sample(date=ISO, timestamp=ISO, a=1), label=None)
    assert schema == Schema("timestamp", None, ("a",), ())


@pytest.mark.parametrize("scale", [1, 1000, 1_000_000])
def test_unix_times_are_a_time_column(scale: int) -> None:
    times = [(1_700_000_000 + i) * scale for i in range(N)]
    assert infer_schema(sample(time=times, a=1), label=None).timestamp == "time"


def test_numbers_that_count_rows_or_seconds_since_the_start_are_no_times() -> None:
    schema = infer_schema(sample(Time=list(range(N)), t=[i * 0.5 for i in range(N)], a=1), label=None)
    assert schema == Schema(None, None, ("Time", "t", "a"), ())


def test_a_time_column_of_any_name_is_found_by_its_text_but_not_by_its_numbers() -> None:
    assert infer_schema(sample(a=1, measured=ISO), label=None).timestamp == "measured"
    assert (
        infer_schema(sample(a=1, measured=[1_700_000_000 + i for i in range(N)]), label=None).timestamp
        is None
    )


def test_a_time_column_without_any_value_is_none() -> None:
    assert infer_schema(sample(timestamp=None, a=1), label=None) == Schema(None, None, ("a",), ())


def test_a_column_that_is_named_like_a_time_and_holds_none_is_a_feature() -> None:
    assert infer_schema(sample(time="morning", a=1), label=None) == Schema(None, None, ("a",), ("time",))


def test_identifiers_are_left_out_but_a_short_sample_is_no_ground_to_call_it_one() -> None:
    identifiers = [f"id-{i}" for i in range(N)]
    assert infer_schema(sample(id=identifiers, a=1), label=None).categorical == ()
    assert infer_schema(sample(id=identifiers, a=1)[:10], label=None).categorical == ("id",)


def test_given_time_and_entity_are_taken_as_they_are() -> None:
    schema = infer_schema(
        sample(ts=ISO, when="x", device="d1", a=1), label=None, timestamp="when", entity="device"
    )
    assert (schema.timestamp, schema.entity, schema.numeric) == ("when", "device", ("a",))


def test_fields_that_come_late_are_missing_or_mostly_null_count_too() -> None:
    late: list[dict[str, object]] = [{"a": None, "b": 2.5}, {"c": ""}, {"d": None}]
    early: list[dict[str, object]] = [{"a": 1}]
    assert infer_schema(early * 50 + late * 5, label=None) == Schema(None, None, ("a", "b"), ())


def test_nested_values_are_left_out_and_now_and_then_one_among_text_does_no_harm() -> None:
    mixed: list[object] = ["x", "y", ["z"], {"z": 1}] * (N // 4)
    schema = infer_schema(sample(a=1, nested=[{"b": 1}] * N, list=[[1, 2]] * N, mixed=mixed), label=None)
    assert schema.columns == ("a",)
    mostly: list[object] = ["x", "y", "x", ["z"]] * (N // 4)
    assert infer_schema(sample(a=1, mostly=mostly), label=None).categorical == ("mostly",)


def test_a_huge_number_in_a_time_column_does_no_harm() -> None:
    times: list[object] = [1_700_000_000 + i for i in range(N - 1)]
    assert infer_schema(sample(ts=[*times, 10**400], a=1), label=None).timestamp == "ts"


@pytest.mark.parametrize("records", [[], [{}], [{"a": None}], [{"label": 1}], [{"a": [1]}]])
def test_a_sample_without_a_column_to_judge_is_refused_with_what_to_do(
    records: list[dict[str, object]],
) -> None:
    with pytest.raises(ConfigError, match=r"input\.features"):
        infer_schema(records, label="label")
