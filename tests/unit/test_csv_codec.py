"""CSV rows to columns: numbers, words for nothing, quotes, and rows of another width."""

import math

import pytest
from strategies import CSV_GOOD, CSV_HEADER, SCHEMA

from streamdet.codec.csv import CsvCodec, parse_number
from streamdet.events import Reason, Schema


@pytest.mark.parametrize("word", ["", " ", "NA", "n/a", "NaN", "null", "NULL", "None", "-"])
def test_words_for_nothing_are_missing(word: str) -> None:
    number = parse_number(word)
    assert number is not None
    assert math.isnan(number)


@pytest.mark.parametrize(
    ("word", "number"), [("true", 1.0), ("FALSE", 0.0), (" 2 ", 2.0), ("1e3", 1000.0), ("-inf", -math.inf)]
)
def test_numbers_and_truth_are_numbers(word: str, number: float) -> None:
    assert parse_number(word) == number


def test_other_words_are_no_numbers() -> None:
    assert parse_number("warm") is None
    assert parse_number("1,5") is None


def test_columns_are_found_by_the_header_in_any_order() -> None:
    header = tuple(reversed(CSV_HEADER))
    columns = CsvCodec(SCHEMA, header).decode([b"ok,south,1,20.5,d9,2026-03-01T12:00:00Z"])
    assert columns.numeric.tolist() == [[20.5, 1.0]]
    assert columns.entities == ["d9"]
    assert columns.categorical == [["south"]]
    assert columns.timestamps == ["2026-03-01T12:00:00Z"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_may_stand_in_quotes(delimiter: str) -> None:
    row = delimiter.join(["t", '"d,1;\t|"', "1", "2", '"say ""hi""\nthere"', ""]).encode()
    columns = CsvCodec(SCHEMA, CSV_HEADER, delimiter).decode([row])
    assert columns.entities == ["d,1;\t|"]
    assert columns.categorical == [['say "hi"\nthere']]


@pytest.mark.parametrize(
    ("value", "reason", "hint"),
    [
        (b"a,b", Reason.INVALID_SYNTAX, "2 fields under a header of 6"),
        (CSV_GOOD + b",more", Reason.INVALID_SYNTAX, "7 fields under a header of 6"),
        (b"", Reason.INVALID_SYNTAX, "1 fields"),
        (CSV_GOOD.replace(b"ok", b'"open'), Reason.INVALID_SYNTAX, "not CSV"),
        (CSV_GOOD + b"\n" + CSV_GOOD, Reason.INVALID_SYNTAX, "not CSV"),
        (CSV_GOOD.replace(b"d1", b"\xe9"), Reason.INVALID_ENCODING, "at byte 21"),
    ],
)
def test_a_row_that_cannot_be_read_says_why(value: bytes, reason: Reason, hint: str) -> None:
    columns = CsvCodec(SCHEMA, CSV_HEADER).decode([CSV_GOOD, value, CSV_GOOD])
    assert columns.index.tolist() == [0, 2]
    (problem,) = columns.problems
    assert (problem.at, problem.reason) == (1, reason)
    assert hint in problem.error


def test_text_in_a_number_column_is_missing_and_counted_or_refused_where_asked() -> None:
    value = CSV_GOOD.replace(b"20.5", b"warm")
    lenient = CsvCodec(SCHEMA, CSV_HEADER).decode([value])
    assert (lenient.unusable, lenient.problems) == ([("temperature",)], [])
    assert math.isnan(lenient.numeric[0, 0])
    strict = CsvCodec(SCHEMA, CSV_HEADER, reject_unusable=True).decode([CSV_GOOD, value])
    assert strict.index.tolist() == [0]
    assert [(p.at, p.reason) for p in strict.problems] == [(1, Reason.INVALID_VALUE)]
    assert "temperature" in strict.problems[0].error


def test_words_for_nothing_are_not_refused_where_unusable_values_are() -> None:
    value = CSV_GOOD.replace(b"20.5", b"NA")
    assert not CsvCodec(SCHEMA, CSV_HEADER, reject_unusable=True).decode([value]).problems


def test_an_alert_shows_numbers_as_numbers_and_nothing_as_none() -> None:
    value = b'1700000000,d1,20.50,1e999,"a,b",'
    assert CsvCodec(SCHEMA, CSV_HEADER).original(value) == {
        "ts": 1700000000,
        "device": "d1",
        "temperature": 20.5,
        "pressure": "1e999",
        "site": "a,b",
        "note": None,
    }


def test_a_column_alone_may_be_empty_but_a_wide_field_is_not_refused_for_its_length() -> None:
    codec = CsvCodec(Schema(None, None, (), ("site",)), ("site",))
    columns = codec.decode([b"", b"x" * 200_000])
    assert columns.categorical == [[None, "x" * 200_000]]
    assert codec.original(b"x" * 200_000) == {"site": "x" * 200_000}
