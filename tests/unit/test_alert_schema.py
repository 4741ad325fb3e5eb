"""The published schema of alerts: it is what the declaration says, and what is published fits it."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fakes import sample_alert

from streamdet.events import (
    ALERT_SCHEMA_VERSION,
    Alert,
    FeatureShare,
    LaneId,
    alert_schema,
)
from streamdet.sink.kafka_records import of_alert

PUBLISHED = Path(__file__).parents[2] / "deploy" / "schemas" / "alert.schema.json"
SCHEMA: dict[str, Any] = json.loads(PUBLISHED.read_text())
RENEW = (
    "python -c 'import json; from streamdet.events import alert_schema; print(json.dumps(alert_schema(), indent=2))' "
    "> deploy/schemas/alert.schema.json"
)
LANE = LaneId("plant", 2)
# Fields that alerts of this schema version may lack: an alert from before is one still.
LATER = ("reason", "confidence", "likely_start")


def alert(entity: str | None, actual: float | str | None) -> Alert:
    shares = [FeatureShare("x", actual, None, 1.0)]
    event = {"x": actual, "nested": {"a": [1, None]}}
    return sample_alert(5, LANE, entity=entity, features=shares, event=event)


def test_the_published_schema_is_made_from_the_declaration() -> None:
    assert alert_schema() == SCHEMA, f"renew it: {RENEW}"
    assert SCHEMA["title"] == f"streamdet alert, version {ALERT_SCHEMA_VERSION}"


def test_every_field_of_an_alert_is_described_and_required_unless_it_came_later() -> None:
    fields = SCHEMA["$defs"]["Alert"]
    assert list(fields["properties"]) == list(Alert.__struct_fields__)
    assert [*fields["required"], *LATER] == list(Alert.__struct_fields__)
    for name, field in fields["properties"].items():
        assert "$ref" in field or field["description"].endswith("."), name


def test_an_alert_from_before_missing_values_were_marked_is_still_one() -> None:
    fields = msgspec.to_builtins(alert("pump", 1.0))
    del fields["confidence"], fields["features"][0]["imputed"]
    _fits(fields, SCHEMA)
    read = msgspec.convert(fields, Alert)
    assert (read.confidence, read.features[0].imputed) == (1.0, False)


@pytest.mark.parametrize("entity", [None, "pump"])
@pytest.mark.parametrize("actual", [None, 1.5, "north"])
def test_what_is_published_has_the_fields_and_types_of_the_schema(
    entity: str | None, actual: float | str | None
) -> None:
    record = of_alert(alert(entity, actual), "plant.alerts", "streamdet/plant")
    _fits(json.loads(record.value), SCHEMA)
    assert dict(record.headers)["schema_version"] == ALERT_SCHEMA_VERSION.encode()


def test_an_alert_that_was_published_before_there_were_reasons_is_one_by_the_limit() -> None:
    fields = msgspec.to_builtins(alert("pump", 1.0))
    del fields["reason"]
    _fits(fields, SCHEMA)
    assert msgspec.convert(fields, Alert) == alert("pump", 1.0)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"score": "2"}, "a text for a number"),
        ({"id": None}, "no id"),
        ({"features": {}}, "no list"),
        ({"source": {"topic": "plant", "partition": "2", "offset": 5}}, "a text for a partition"),
    ],
)
def test_the_schema_refuses_what_is_no_alert(change: dict[str, Any], why: str) -> None:
    fields = {**msgspec.to_builtins(alert("pump", 1.0)), **change}
    with pytest.raises(AssertionError):
        _fits(fields, SCHEMA)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(fields, Alert)
    assert why


TYPES: dict[str, type | tuple[type, ...]] = {
    "boolean": bool,
    "string": str,
    "number": (int, float),
    "integer": int,
    "null": type(None),
    "object": dict,
    "array": list,
}


def _fits(value: Any, schema: dict[str, Any]) -> None:
    """As much of JSON schema as the schema of alerts uses; whatever else it came to use fails here."""
    known = {
        "$ref",
        "$defs",
        "$schema",
        "title",
        "description",
        "default",
        "type",
        "properties",
        "required",
        "items",
        "anyOf",
    }
    assert schema.keys() <= known | {"additionalProperties"}
    if "$ref" in schema:
        _fits(value, SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")])
        return
    if "anyOf" in schema:
        kinds = tuple(TYPES[option["type"]] for option in schema["anyOf"])
        assert isinstance(
            value, tuple(k for kind in kinds for k in (kind if isinstance(kind, tuple) else (kind,)))
        )
        return
    if "type" not in schema:  # anything
        return
    fitting: bool = isinstance(value, TYPES[schema["type"]])
    assert fitting, f"{value!r} is no {schema['type']}"
    for name in schema.get("required", ()):
        assert name in value
    for name, part in schema.get("properties", {}).items():
        if name in value:
            _fits(value[name], part)
    for item in value if schema["type"] == "array" else ():
        _fits(item, schema["items"])
