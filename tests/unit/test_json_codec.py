"""JSON to columns: what each kind of value becomes, in the fast way and in the careful one."""

import json
import math

import numpy as np
import pytest
from strategies import GOOD_VALUE, SCHEMA

from streamdet.codec.json import JsonCodec, parse_object
from streamdet.codec.keys import DEPTH_MAX
from streamdet.events import Reason, Schema

# Readable, but not in the fast way: beside it every value is read with care.
CAREFUL = GOOD_VALUE.replace(b"20.5", b"NaN")


def decode_one(value: bytes, *, beside: bytes = GOOD_VALUE) -> dict[str, object]:
    columns = JsonCodec(SCHEMA).decode([value, beside])
    assert columns.index.tolist() == [0, 1]
    return {
        "ts": columns.timestamps[0],
        "device": columns.entities[0],
        "temperature": columns.numeric[0, 0],
        "pressure": columns.numeric[0, 1],
        "site": columns.categorical[0][0],
        "unusable": sum(map(len, columns.unusable)),
    }


@pytest.mark.parametrize("beside", [GOOD_VALUE, CAREFUL], ids=["fast", "careful"])
@pytest.mark.parametrize(
    ("field", "written", "meant"),
    [
        ("temperature", "1", 1.0),
        ("temperature", "true", 1.0),
        ("temperature", "false", 0.0),
        ("temperature", "9007199254740993", 9007199254740992.0),
        ("temperature", "-1e-3", -0.001),
        ("device", "7", "7"),
        ("device", "-0", "0"),
        ("device", '"7"', "7"),
        ("device", '" d1 "', " d1 "),
        ("device", "null", None),
        ("site", "null", None),
        ("site", "true", "true"),
        ("site", "false", "false"),
        ("site", "3", "3"),
        ("site", "3.0", "3.0"),
        ("site", "18446744073709551616", "18446744073709551616"),
        ("site", '"\\u00e9\\ud83d\\ude00"', "é😀"),
        ("ts", "1700000000.5", 1700000000.5),
    ],
)
def test_a_value_means_the_same_in_both_ways(field: str, written: str, meant: object, beside: bytes) -> None:
    fields = json.loads(GOOD_VALUE)
    del fields[field]
    value = json.dumps(fields)[:-1] + f', "{field}": {written}}}'
    assert decode_one(value.encode(), beside=beside)[field] == meant


@pytest.mark.parametrize("written", ["1.0", "1.5", "true", "[]", "{}"])
def test_an_entity_that_is_no_name_is_none(written: str) -> None:
    assert decode_one(GOOD_VALUE.replace(b'"d1"', written.encode()))["device"] is None


@pytest.mark.parametrize("written", ['"20.5"', "{}", "[1]", '"warm"'])
def test_a_number_of_another_type_is_missing_and_counted(written: str) -> None:
    found = decode_one(GOOD_VALUE.replace(b"20.5", written.encode()))
    assert math.isnan(float(str(found["temperature"])))
    assert found["unusable"] == 1


def test_a_number_of_another_type_is_refused_by_name_where_asked() -> None:
    value = GOOD_VALUE.replace(b"20.5", b'"warm"').replace(b'"north"', b"[]")
    columns = JsonCodec(SCHEMA, reject_unusable=True).decode([GOOD_VALUE, value, GOOD_VALUE])
    assert columns.index.tolist() == [0, 2]
    (problem,) = columns.problems
    assert (problem.at, problem.reason) == (1, Reason.INVALID_VALUE)
    assert "temperature, site" in problem.error


def test_missing_fields_and_nulls_are_missing_values_and_not_counted_as_unusable() -> None:
    for value in (b'{"temperature": null}', b"{}"):
        found = decode_one(value)
        assert math.isnan(float(str(found["temperature"])))
        assert (found["device"], found["site"], found["ts"], found["unusable"]) == (None, None, None, 0)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", Reason.INVALID_SYNTAX),
        (b"  ", Reason.INVALID_SYNTAX),
        (b'{"a": 1} {"b": 2}', Reason.INVALID_SYNTAX),
        (b'{"a": 1', Reason.INVALID_SYNTAX),
        (b'{"a": 01}', Reason.INVALID_SYNTAX),
        (b"\xef\xbb\xbf{}", Reason.INVALID_SYNTAX),
        (b"{'a': 1}", Reason.INVALID_SYNTAX),
        (b"[]", Reason.NOT_AN_OBJECT),
        (b"null", Reason.NOT_AN_OBJECT),
        (b'"text"', Reason.NOT_AN_OBJECT),
        (b"\xff", Reason.INVALID_ENCODING),
        (b'{"a": "\\ud800"}', Reason.INVALID_ENCODING),
        (b'{"a": [{"\\udc00x": 1}]}', Reason.INVALID_ENCODING),
        (b'{"a": 1, "a": 1}', Reason.DUPLICATE_KEY),
        (b'{"a": 1, "\\u0061": 2}', Reason.DUPLICATE_KEY),
        (b"[" * (DEPTH_MAX + 1), Reason.TOO_DEEP),
        (b"[" * 1_000_000, Reason.TOO_DEEP),
    ],
)
def test_what_cannot_be_read_says_why(value: bytes, reason: Reason) -> None:
    parsed = parse_object(value)
    assert not isinstance(parsed, dict)
    assert parsed[0] == reason
    columns = JsonCodec(SCHEMA).decode([GOOD_VALUE, value, GOOD_VALUE])
    assert columns.index.tolist() == [0, 2]
    assert [(p.at, p.reason) for p in columns.problems] == [(1, reason)]


def test_a_key_is_not_repeated_if_it_stands_in_different_objects() -> None:
    assert parse_object(b'{"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}]}') == {
        "a": {"a": 1},
        "b": [{"a": 1}, {"a": 2}],
    }


def test_nesting_up_to_the_bound_is_read_and_brackets_in_text_do_not_count() -> None:
    inner = b"[" * (DEPTH_MAX - 1) + b"]" * (DEPTH_MAX - 1)
    assert isinstance(parse_object(b'{"a": %s}' % inner), dict)
    assert isinstance(parse_object(b'{"a": "%s\\"%s"}' % (b"[" * 500, b"{" * 500)), dict)


def test_an_alert_shows_all_original_fields_with_nan_as_none() -> None:
    assert JsonCodec(SCHEMA).original(b'{"temperature": NaN, "other": {"x": [1, -Infinity]}}') == {
        "temperature": None,
        "other": {"x": [1, None]},
    }


def test_a_number_of_thousands_of_digits_is_infinite_and_harmless_where_nobody_asked_for_it() -> None:
    digits = b"9" * 5000
    assert decode_one(GOOD_VALUE.replace(b"20.5", digits))["temperature"] == math.inf
    value = GOOD_VALUE.replace(b"{", b'{"more": %s, ' % digits)
    assert decode_one(value)["temperature"] == 20.5
    assert JsonCodec(SCHEMA).original(value)["more"] == math.inf


def test_names_that_are_no_identifiers_are_fields_like_others() -> None:
    schema = Schema("", "class", ("a b", "1", "f0"), ("__init__",))
    value = b'{"": 1700000000, "class": "c", "a b": 1, "1": 2, "f0": 3, "__init__": "x"}'
    columns = JsonCodec(schema).decode([value])
    assert columns.numeric.tolist() == [[1.0, 2.0, 3.0]]
    assert (columns.timestamps, columns.entities) == ([1700000000], ["c"])
    assert columns.categorical == [["x"]]


def test_one_numeric_field_alone_is_a_column() -> None:
    columns = JsonCodec(Schema(None, None, ("a",), ())).decode([b'{"a": 1}', b'{"a": 2}', b"{}"])
    assert columns.numeric.shape == (3, 1)
    assert np.isnan(columns.numeric[2, 0])
