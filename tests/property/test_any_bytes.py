"""Nothing vanishes: whatever the bytes, each record ends as one event or one reject, however records are batched."""

import json
import math
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import (
    CSV_GOOD,
    CSV_HEADER,
    GOOD_VALUE,
    HOSTILE,
    SCHEMA,
    csv_batches,
    csv_values,
    cuts,
    json_batches,
    json_values,
    part_of,
    records_of,
)

from streamdet.codec.columns import Codec
from streamdet.codec.csv import CsvCodec
from streamdet.codec.decoder import Decoded, Decoder
from streamdet.codec.json import JsonCodec
from streamdet.events import Records, Schema

MAX_BYTES = 1_048_576


def codec_of(kind: str, *, reject_unusable: bool) -> Codec:
    if kind == "json":
        return JsonCodec(SCHEMA, reject_unusable=reject_unusable)
    return CsvCodec(SCHEMA, CSV_HEADER, reject_unusable=reject_unusable)


def decoder_of(kind: str, *, reject_unusable: bool) -> Decoder:
    codec = codec_of(kind, reject_unusable=reject_unusable)
    return Decoder(codec, SCHEMA, MAX_BYTES, reject_unusable=reject_unusable)


def outcomes(decoded: Sequence[Decoded]) -> list[tuple[object, ...]]:
    """What became of each record, in offset order; numbers by their bits."""
    found: list[tuple[object, ...]] = []
    for d in decoded:
        e = d.events
        numbers = e.numeric.astype("<f8")
        numbers[np.isnan(numbers)] = np.nan
        found += [
            (
                int(e.offsets[i]),
                int(e.times_ms[i]),
                e.entities[i],
                numbers[i].tobytes(),
                tuple(column[i] for column in e.categorical),
                e.values[i],
            )
            for i in range(len(e))
        ]
        found += [(r.offset, r) for r in d.rejects]
    return sorted(found, key=lambda outcome: int(str(outcome[0])))


def assert_nothing_vanished(records: Records, decoded: Decoded) -> None:
    events, rejects = decoded.events, decoded.rejects
    offsets, rejected = events.offsets.tolist(), [r.offset for r in rejects]
    assert sorted(offsets + rejected) == records.offsets.tolist()
    assert offsets == sorted(offsets)
    assert rejected == sorted(rejected)
    n = len(events)
    assert len(events.entities) == len(events.times_ms) == len(events.values) == len(events.numeric) == n
    assert all(len(column) == n for column in events.categorical)
    assert not np.isinf(events.numeric).any()
    position = {offset: i for i, offset in enumerate(records.offsets.tolist())}
    for offset, value in zip(offsets, events.values, strict=True):
        assert value == records.values[position[offset]]
    for reject in rejects:
        i = position[reject.offset]
        assert (reject.lane, reject.timestamp_ms) == (records.lane, int(records.timestamps_ms[i]))
        assert (reject.key, reject.value) == (records.keys[i], records.values[i])
        assert reject.error


def one_by_one(decoder: Decoder, records: Records) -> list[Decoded]:
    return [decoder.decode(part_of(records, i, i + 1)) for i in range(len(records))]


def check(kind: str, values: list[bytes | None], *, reject_unusable: bool) -> None:
    decoder, records = decoder_of(kind, reject_unusable=reject_unusable), records_of(values)
    together = decoder.decode(records)
    assert_nothing_vanished(records, together)
    singly = one_by_one(decoder, records)
    assert outcomes([together]) == outcomes(singly)
    assert together.unusable == sum(d.unusable for d in singly)
    for value in together.events.values:
        # What was judged may be alerted on: its original fields must be printable as JSON.
        msgspec.json.encode(decoder.original(value))
    for text in (name for d in singly for name in d.events.entities):
        text.encode()


@given(json_batches, st.booleans())
@example([b'{"device":"d1","temperature":1} {"pressure":2}', b""], False)
@example([b'{"device":"d1","temperature":', b'1}{"device":"d2","pressure":3}'], False)
def test_each_json_record_ends_as_one_event_or_one_reject_and_its_neighbours_do_not_matter(
    values: list[bytes | None], reject_unusable: bool
) -> None:
    check("json", values, reject_unusable=reject_unusable)


@given(csv_batches, st.booleans())
def test_each_csv_record_ends_as_one_event_or_one_reject_and_its_neighbours_do_not_matter(
    values: list[bytes | None], reject_unusable: bool
) -> None:
    check("csv", values, reject_unusable=reject_unusable)


@pytest.mark.parametrize("kind", ["json", "csv"])
@given(data=st.data())
def test_a_batch_may_be_cut_anywhere(kind: str, data: st.DataObject) -> None:
    values = data.draw(json_batches if kind == "json" else csv_batches)
    decoder, records = decoder_of(kind, reject_unusable=False), records_of(values)
    parts = [
        decoder.decode(part_of(records, start, stop))
        for start, stop in data.draw(cuts(len(values)))
        if stop > start
    ]
    assert outcomes(parts) == outcomes([decoder.decode(records)] if values else [])


@pytest.mark.parametrize("kind", ["json", "csv"])
@given(data=st.data())
def test_good_records_around_a_bad_one_are_all_judged(kind: str, data: st.DataObject) -> None:
    good, bad = (GOOD_VALUE, json_values) if kind == "json" else (CSV_GOOD, csv_values)
    before, after = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
    records = records_of([good] * before + [data.draw(bad)] + [good] * after)
    decoded = decoder_of(kind, reject_unusable=False).decode(records)
    judged = set(decoded.events.offsets.tolist())
    assert judged >= set(np.delete(records.offsets, before).tolist())


@pytest.mark.parametrize("value", HOSTILE, ids=[repr(v[:30]) for v in HOSTILE])
def test_a_hostile_record_costs_no_more_than_itself(value: bytes) -> None:
    check("json", [GOOD_VALUE, value, GOOD_VALUE], reject_unusable=False)
    check("json", [GOOD_VALUE, value, GOOD_VALUE], reject_unusable=True)


@given(st.integers(1, 1200))
@example(64)
@example(65)
def test_nesting_is_refused_at_one_depth_however_deep_the_caller_stands(depth: int) -> None:
    value = GOOD_VALUE.replace(b'"d1"', b'"d1", "more": ' + b"[" * depth + b"]" * depth)
    decoder = decoder_of("json", reject_unusable=False)

    def nested(levels: int) -> list[tuple[object, ...]]:
        return nested(levels - 1) if levels else outcomes([decoder.decode(records_of([value, GOOD_VALUE]))])

    assert nested(0) == nested(300)


def test_five_megabytes_are_refused_unread_with_the_setting_that_allows_them() -> None:
    huge = b'{"device": "d1", "temperature": 1, "more": "%s"}' % (b"x" * 5_000_000)
    decoded = decoder_of("json", reject_unusable=False).decode(records_of([GOOD_VALUE, huge, GOOD_VALUE]))
    assert len(decoded.events) == 2
    (reject,) = decoded.rejects
    assert "input.max_record_bytes" in reject.error
    assert reject.value == huge


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.floats(), max_size=3), max_size=8))
def test_a_schema_of_names_alone_is_decoded_too(objects: list[dict[str, float]]) -> None:
    schema = Schema(None, None, (), ("a",))
    records = records_of([json.dumps(o).encode() for o in objects])
    decoder = Decoder(JsonCodec(schema), schema, MAX_BYTES, reject_unusable=False)
    decoded = decoder.decode(records)
    assert len(decoded.events) == sum(math.isfinite(o.get("a", math.nan)) for o in objects)
    assert outcomes([decoded]) == outcomes(one_by_one(decoder, records))
