"""How alerts and dead letters are made to fit; what they look like on a broker is in tests/integration."""

from typing import Any

import msgspec
from fakes import sample_alert
from hypothesis import given
from hypothesis import strategies as st

from streamdet.events import Alert, FeatureShare, LaneId, Reason, Reject
from streamdet.sink.kafka_records import Outgoing, fitted, of_alert, of_reject

HEADERS_MAX = 2_000


def alert(features: int = 1, **changes: Any) -> Alert:
    shares = [FeatureShare(f"f{i}", 90.0, 20.0, 1.0 / features) for i in range(features)]
    return sample_alert(**{"features": shares, "event": {"f0": 90.0}, **changes})


def reject(value: bytes | None, key: bytes | None) -> Reject:
    return Reject(LaneId("sensors", 0), 11, 1_000, key, value, Reason.INVALID_SYNTAX, "expected a number")


def read(record: Outgoing) -> Alert:
    return msgspec.json.decode(record.value, type=Alert)


def test_what_fits_is_left_alone() -> None:
    record = of_alert(alert(), "alerts", "streamdet/g")
    assert fitted(record, record.size) is record


@given(
    st.binary(max_size=20_000),
    st.none() | st.binary(max_size=5_000),
    st.integers(HEADERS_MAX, 2 * HEADERS_MAX),
)
def test_a_dead_letter_always_fits_and_begins_as_the_record_did(
    value: bytes, key: bytes | None, size_max: int
) -> None:
    record = of_reject(reject(value, key), "dead")
    small = fitted(record, size_max)
    assert small.size <= size_max
    assert value.startswith(small.value)
    assert (key or b"").startswith(small.key or b"")
    assert (dict(small.headers).get("original_bytes", b"%d" % len(small.value))) == b"%d" % len(value)


def test_truncating_again_keeps_the_size_of_the_original() -> None:
    record = fitted(fitted(of_reject(reject(b"x" * 50_000, b"k"), "dead"), 20_000), 3_000)
    assert [value for name, value in record.headers if name == "original_bytes"] == [b"50000"]
    assert record.size <= 3_000


def test_an_alert_loses_first_its_event_then_its_features_then_the_end_of_its_entity() -> None:
    large = alert(entity="é" * 5_000, features=200, event={"note": "n" * 50_000})
    record = of_alert(large, "alerts", "streamdet/g")
    without_event = fitted(record, record.size - 1)
    assert read(without_event) == msgspec.structs.replace(large, event={})
    without_features = fitted(without_event, without_event.size - 1)
    assert read(without_features) == msgspec.structs.replace(large, event={}, features=[])
    least = fitted(without_features, 1_000)
    assert read(least).entity == "é" * 200
    assert least.key == ("é" * 200).encode()
    assert least.size < HEADERS_MAX


def test_an_alert_without_an_entity_keeps_the_lane_as_its_key() -> None:
    record = fitted(of_alert(alert(entity=None), "alerts", "streamdet/g"), 10)
    assert record.key == b"sensors/0"
    assert read(record).entity is None
