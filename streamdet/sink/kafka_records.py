"""What alerts and dead letters look like as Kafka records, and how one is made to fit where it is too large.

An alert is a CloudEvent in binary mode: its attributes are headers, its value is the alert as JSON. A dead letter is
the record itself, key and value unchanged, with the reason and its origin in headers.
"""

from dataclasses import dataclass
from typing import Final

import msgspec

from streamdet.events import ALERT_SCHEMA_VERSION, Alert, LaneId, Reject

Headers = tuple[tuple[str, bytes], ...]

# An error message quotes the record; in a header it must not make the dead letter too large again.
ERROR_CHARS_MAX: Final = 1_000
# No device, card or account needs more; only for an alert that does not fit otherwise.
ENTITY_CHARS_MAX: Final = 200
# A record is sent in a batch, whose own head takes about 60 bytes, and lengths before each of its parts.
FRAME_BYTES: Final = 200


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A record to be sent."""

    topic: str
    key: bytes | None
    value: bytes
    headers: Headers
    alert: Alert | None = None  # what the value encodes, of an alert

    @property
    def size(self) -> int:
        """Bytes on the way to Kafka, rather too many than too few."""
        heads = sum(len(name) + len(value) + 4 for name, value in self.headers)
        return len(self.key or b"") + len(self.value) + heads + FRAME_BYTES


def of_alert(alert: Alert, topic: str, source: str) -> Outgoing:
    """An alert, keyed by its entity so that an entity's alerts keep their order; by its lane if there is none."""
    lane = LaneId(alert.source.topic, alert.source.partition)
    headers = (
        ("ce_specversion", b"1.0"),
        ("ce_id", alert.id.encode()),
        ("ce_source", source.encode()),
        ("ce_type", b"streamdet.alert"),
        ("ce_time", alert.event_time.encode()),
        ("content-type", b"application/json"),
        ("schema_version", ALERT_SCHEMA_VERSION.encode()),
    )
    key = (alert.entity or str(lane)).encode()
    return Outgoing(topic, key, msgspec.json.encode(alert), headers, alert)


def of_reject(reject: Reject, topic: str) -> Outgoing:
    """A record that could not be judged, with the reason beside it."""
    headers: Headers = (
        ("reason", reject.reason.value.encode()),
        ("error", reject.error[:ERROR_CHARS_MAX].encode(errors="replace")),
        ("topic", reject.lane.topic.encode()),
        ("partition", str(reject.lane.partition).encode()),
        ("offset", str(reject.offset).encode()),
        ("timestamp", str(reject.timestamp_ms).encode()),
    )
    if reject.value is None:
        # kafka-python refuses a record with neither key nor value; an empty value and a note say the same.
        return Outgoing(topic, reject.key, b"", (*headers, ("null_value", b"true")))
    return Outgoing(topic, reject.key, reject.value, headers)


def fitted(record: Outgoing, size_max: int) -> Outgoing:
    """The record, truncated if it is larger than that.

    A dead letter loses the end of its value, an alert its event, then its features, then the end of its entity's
    name. Headers say so, and how large the value was. What they take is not truncated.
    """
    if record.size <= size_max:
        return record
    headers = record.headers
    if not any(name == "truncated" for name, _ in headers):
        headers += (("truncated", b"true"), ("original_bytes", str(len(record.value)).encode()))
    if record.alert is not None:
        return _fitted_alert(record, record.alert, headers, size_max)
    room = max(size_max - Outgoing(record.topic, None, b"", headers).size, 0)
    key = None if record.key is None else record.key[:room]
    return Outgoing(record.topic, key, record.value[: room - len(key or b"")], headers)


def _fitted_alert(record: Outgoing, alert: Alert, headers: Headers, size_max: int) -> Outgoing:
    shrunk = record
    entity = None if alert.entity is None else alert.entity[:ENTITY_CHARS_MAX]
    steps: list[dict[str, object]] = [{"event": {}}, {"features": []}, {"entity": entity}]
    for less in steps:
        alert = msgspec.structs.replace(alert, **less)
        key = record.key if alert.entity is None else alert.entity.encode()
        shrunk = Outgoing(record.topic, key or record.key, msgspec.json.encode(alert), headers, alert)
        if shrunk.size <= size_max:
            break
    return shrunk
