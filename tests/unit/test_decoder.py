"""The rules that hold for every format: which records are rejects, why, and what a reject carries."""

import math

import numpy as np
import pytest
from strategies import CSV_GOOD, CSV_HEADER, GOOD_VALUE, LANE, SCHEMA, records_of

from streamdet.codec.csv import CsvCodec
from streamdet.codec.decoder import Decoder
from streamdet.codec.json import JsonCodec
from streamdet.config import Missing
from streamdet.events import Reason, Reject, Schema


def decoder_of(
    schema: Schema = SCHEMA,
    *,
    max_bytes: int = 1000,
    reject_unusable: bool = False,
    missing: Missing | None = None,
) -> Decoder:
    codec = JsonCodec(schema, reject_unusable=reject_unusable)
    return Decoder(codec, schema, max_bytes, reject_unusable=reject_unusable, missing=missing)


def reason_of(value: bytes | None, *, reject_unusable: bool = False) -> Reason | None:
    decoded = decoder_of(reject_unusable=reject_unusable).decode(records_of([GOOD_VALUE, value, GOOD_VALUE]))
    assert len(decoded.events) + len(decoded.rejects) == 3
    return decoded.rejects[0].reason if decoded.rejects else None


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, Reason.TOMBSTONE),
        (b'{"x": "%s"}' % (b"y" * 1000), Reason.TOO_LARGE),
        (b"\xff", Reason.INVALID_ENCODING),
        (b"{", Reason.INVALID_SYNTAX),
        (b"3", Reason.NOT_AN_OBJECT),
        (b"[" * 100, Reason.TOO_DEEP),
        (GOOD_VALUE.replace(b"{", b'{"ts": 1, '), Reason.DUPLICATE_KEY),
        (GOOD_VALUE.replace(b'"d1"', b'""'), Reason.MISSING_ENTITY),
        (GOOD_VALUE.replace(b'"d1"', b"null"), Reason.MISSING_ENTITY),
        (GOOD_VALUE.replace(b'"device": "d1", ', b""), Reason.MISSING_ENTITY),
        (GOOD_VALUE.replace(b"2026-03", b"2026-13"), Reason.INVALID_TIMESTAMP),
        (GOOD_VALUE.replace(b'"2026-03-01T12:00:00Z"', b"9" * 400), Reason.INVALID_TIMESTAMP),
        (b'{"ts": 1700000000, "device": "d1", "temperature": null, "pressure": "x"}', Reason.NO_FEATURES),
        (b'{"ts": 1700000000, "device": "d1", "temperature": 1e999}', Reason.NO_FEATURES),
        (b'{"ts": 1700000000, "device": "d1", "site": "north"}', None),
        (b'{"ts": 1700000000, "device": "d1", "pressure": 0}', None),
        (GOOD_VALUE.replace(b"20.5", b"Infinity"), None),
    ],
)
def test_each_kind_of_bad_record_has_its_reason_and_what_is_left_of_others_is_judged(
    value: bytes | None, reason: Reason | None
) -> None:
    assert reason_of(value) == reason


@pytest.mark.parametrize("written", [b"NaN", b"Infinity", b"-1e999", b'"warm"', b"[]", b"9" * 400])
def test_unusable_numbers_are_rejected_where_asked_and_else_missing_and_counted(written: bytes) -> None:
    value = GOOD_VALUE.replace(b"20.5", written)
    assert reason_of(value, reject_unusable=True) == Reason.INVALID_VALUE
    decoded = decoder_of().decode(records_of([value]))
    assert math.isnan(decoded.events.numeric[0, 0])
    assert decoded.events.numeric[0, 1] == 1.0
    assert decoded.unusable == 1


def test_null_is_missing_and_never_rejected_as_unusable() -> None:
    value = GOOD_VALUE.replace(b"20.5", b"null")
    assert reason_of(value, reject_unusable=True) is None
    assert decoder_of().decode(records_of([value])).unusable == 0


def test_a_reject_carries_where_it_came_from_and_what_it_was() -> None:
    records = records_of([GOOD_VALUE, b"{", GOOD_VALUE])
    (reject,) = decoder_of().decode(records).rejects
    assert reject == Reject(LANE, 102, 1_700_000_000_001, b"key-1", b"{", Reason.INVALID_SYNTAX, reject.error)
    assert "not JSON" in reject.error


def test_an_error_names_the_field_that_is_to_blame() -> None:
    for value, name in (
        (GOOD_VALUE.replace(b'"d1"', b"[]"), "device"),
        (GOOD_VALUE.replace(b"2026", b"soon"), "ts"),
    ):
        (reject,) = decoder_of().decode(records_of([value])).rejects
        assert repr(name) in reject.error


def test_a_record_with_several_faults_is_rejected_once() -> None:
    value = b'{"ts": "soon", "device": "", "temperature": "x"}'
    for reject_unusable in (False, True):
        decoded = decoder_of(reject_unusable=reject_unusable).decode(records_of([value, value]))
        assert len(decoded.rejects) == 2
        assert len(decoded.events) == 0


def test_without_a_time_field_the_time_of_the_record_counts() -> None:
    schema = Schema(None, "device", ("temperature",), ())
    events = decoder_of(schema).decode(records_of([b"{", GOOD_VALUE, GOOD_VALUE])).events
    assert events.times_ms.tolist() == [1_700_000_000_001, 1_700_000_000_002]


def test_without_an_entity_field_all_events_belong_to_the_stream() -> None:
    schema = Schema("ts", None, ("temperature",), ())
    assert list(decoder_of(schema).decode(records_of([GOOD_VALUE, b"{", GOOD_VALUE])).events.entities) == [
        "",
        "",
    ]


def test_a_batch_of_bad_records_and_an_empty_one_give_empty_columns() -> None:
    for values in ([], [None, None], [b"{", b"["]):
        decoded = decoder_of().decode(records_of(values))
        assert len(decoded.events) == 0
        assert decoded.events.numeric.shape == (0, 2)
        assert len(decoded.events.categorical) == 1
        assert len(decoded.rejects) == len(values)


def test_the_largest_record_allowed_is_judged() -> None:
    for limit, judged in ((len(GOOD_VALUE), 1), (len(GOOD_VALUE) - 1, 0)):
        assert len(decoder_of(max_bytes=limit).decode(records_of([GOOD_VALUE])).events) == judged


def test_csv_rows_follow_the_same_rules() -> None:
    decoder = Decoder(CsvCodec(SCHEMA, CSV_HEADER), SCHEMA, 1000, reject_unusable=False)
    values = [
        CSV_GOOD,
        CSV_GOOD.replace(b"d1", b""),
        b"soon" + CSV_GOOD[20:],
        CSV_GOOD.replace(b"20.5", b"inf"),
        None,
    ]
    decoded = decoder.decode(records_of(values))
    assert decoded.events.offsets.tolist() == [100, 106]
    assert [r.reason for r in decoded.rejects] == [
        Reason.MISSING_ENTITY,
        Reason.INVALID_TIMESTAMP,
        Reason.TOMBSTONE,
    ]
    assert np.isnan(decoded.events.numeric[1, 0])
    assert decoder.original(CSV_GOOD)["site"] == "north"


def test_a_record_timestamp_that_is_no_time_is_rejected_where_it_is_the_event_time() -> None:
    schema = Schema(None, "device", SCHEMA.numeric, SCHEMA.categorical)
    records = records_of([GOOD_VALUE] * 3)
    records.timestamps_ms[1] = 1_700_000_000_000_000_000  # nanoseconds
    decoded = decoder_of(schema).decode(records)
    assert [r.reason for r in decoded.rejects] == [Reason.INVALID_TIMESTAMP]
    assert len(decoded.events) == 2


def test_counterparts_are_names_and_a_missing_one_is_none() -> None:
    schema = Schema("ts", "card", ("amount",), (), "amount", ("terminal", "shop"))
    good = b'{"ts": 1750000000000, "card": 7, "amount": 1.5, "terminal": 12, "shop": "s"}'
    values = [
        good,
        b"{",
        good.replace(b"12", b"null"),
        good.replace(b"1.5", b"null"),
        good.replace(b', "shop": "s"', b""),
    ]
    codec = JsonCodec(schema)
    for some in (values, [good, values[2], values[4]]):  # record by record, and all at once
        events = Decoder(codec, schema, 1000, reject_unusable=False).decode(records_of(some)).events
        assert events.counterparts == [["12", "", "12"], ["s", "s", ""]]
    header = ("card", "amount", "shop", "terminal", "ts")
    rows = Decoder(CsvCodec(schema, header), schema, 1000, reject_unusable=False).decode(
        records_of([b"7,1.5,s,12,2026-03-01T12:00:00Z", b"7,x,s,12,soon", b"7,1.5,,12,2026-03-01T12:00:00Z"])
    )
    assert rows.events.counterparts == [["12", "12"], ["s", ""]]


def test_a_counterpart_that_is_no_name_is_missing_or_a_reason_to_reject() -> None:
    schema = Schema("ts", "card", ("amount",), (), "amount", ("terminal",))
    value = b'{"ts": 1750000000000, "card": 7, "amount": 1.5, "terminal": [1]}'
    for reject in (False, True):
        decoder = Decoder(JsonCodec(schema, reject_unusable=reject), schema, 1000, reject_unusable=reject)
        decoded = decoder.decode(records_of([value]))
        assert [reject_.reason for reject_ in decoded.rejects] == [Reason.INVALID_VALUE] * reject
        assert decoded.events.counterparts == [[""] * (not reject)]


# --- Missing numbers ------------------------------------------------------------------------------------------------

NUMBERS = Schema(None, None, ("flow", "errors"), ())


@pytest.mark.parametrize("value", [b'{"flow": 2}', b'{"flow": 2, "errors": null}'])
def test_absence_means_zero_only_where_that_is_said(value: bytes) -> None:
    missing = Missing(features={"errors": "zero"})
    events = decoder_of(NUMBERS, missing=missing).decode(records_of([value])).events
    assert events.numeric.tolist() == [[2.0, 0.0]]
    assert math.isnan(decoder_of(NUMBERS).decode(records_of([value])).events.numeric[0, 1])


def test_too_large_a_number_is_no_absent_one() -> None:
    missing = Missing(features={"errors": "zero"})
    decoded = decoder_of(NUMBERS, missing=missing).decode(records_of([b'{"flow": 2, "errors": 1e999}']))
    assert math.isnan(decoded.events.numeric[0, 1])
    assert decoded.unusable == 1


@pytest.mark.parametrize("written", [b'"none"', b"[]", b"{}", b"NaN"])
def test_what_is_no_number_is_no_absent_one_either(written: bytes) -> None:
    missing = Missing(features={"errors": "zero"})
    good, bad = b'{"flow": 2, "errors": 1}', b'{"flow": 2, "errors": %s}' % written
    for reject_unusable in (False, True):
        decoder = decoder_of(NUMBERS, reject_unusable=reject_unusable, missing=missing)
        decoded = decoder.decode(records_of([good, bad, b'{"flow": 2}']))
        assert decoded.events.numeric[:, 1].tolist() == [1.0, 0.0]
        (reject,) = decoded.rejects
        assert (reject.reason, decoded.unusable) == (Reason.INVALID_VALUE, 0)
        assert "errors" in reject.error
    # What is no number in another field is missing there, as ever.
    decoded = decoder_of(NUMBERS, missing=missing).decode(records_of([b'{"flow": "x", "errors": 1}']))
    assert (len(decoded.events), decoded.unusable) == (1, 1)


def test_text_in_a_column_of_a_file_where_absence_means_zero_is_a_dead_letter() -> None:
    decoder = Decoder(
        CsvCodec(SCHEMA, CSV_HEADER), SCHEMA, 1000, reject_unusable=False, missing=Missing(default="zero")
    )
    rows = [CSV_GOOD.replace(b"20.5", text) for text in (b"", b"warm", b"NA", b"1e999")]
    decoded = decoder.decode(records_of(rows))
    assert [reject.reason for reject in decoded.rejects] == [Reason.INVALID_VALUE]
    assert np.nan_to_num(decoded.events.numeric[:, 0], nan=-1.0).tolist() == [0.0, 0.0, -1.0]


def test_a_record_without_any_field_is_one_of_zeros_where_absence_means_that() -> None:
    missing = Missing(features={"errors": "zero"})
    events = decoder_of(NUMBERS, missing=missing).decode(records_of([b"{}"])).events
    assert events.numeric[0, 1] == 0.0
    assert math.isnan(events.numeric[0, 0])


def test_a_record_that_lacks_what_no_record_may_lack_is_rejected_and_the_field_is_named() -> None:
    decoder = decoder_of(NUMBERS, missing=Missing(features={"flow": "reject"}))
    decoded = decoder.decode(
        records_of([b'{"errors": 1}', b'{"flow": 1}', b'{"flow": "x", "errors": 1}', b"{}"])
    )
    assert decoded.events.numeric[:, 0].tolist() == [1.0]
    assert [reject.reason for reject in decoded.rejects] == [
        Reason.MISSING_VALUE,
        Reason.MISSING_VALUE,
        Reason.NO_FEATURES,
    ]
    assert "'flow'" in decoded.rejects[0].error
    assert "input.missing" in decoded.rejects[0].error
