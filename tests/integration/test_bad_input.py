"""Bad records among good ones on a real topic: each ends as a dead letter that says why, and the others are judged."""

import json
import signal
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fakes import QUICK, SCHEMA, readings
from kafka_broker import MakeTopic
from kafka_local import Kafka
from live import Running, arrived, free_port, publish, until

pytestmark = pytest.mark.integration

GOOD: dict[str, Any] = {"ts": 1_750_000_000_000, "device": "d1", "temperature": 60, "pressure": 3, "flow": 10}


def good(**changed: Any) -> bytes:
    return json.dumps({**GOOD, **changed}).encode()


def without(name: str) -> bytes:
    return json.dumps({key: value for key, value in GOOD.items() if key != name}).encode()


# What becomes a dead letter, why, and what its error says.
BAD: dict[str, tuple[bytes | None, str, str]] = {
    "not JSON": (b'{"ts": 17', "invalid_syntax", "not JSON"),
    "no object": (b"[1, 2]", "not_an_object", "not list"),
    "an empty value": (b"", "invalid_syntax", "not JSON"),
    "a tombstone": (None, "tombstone", "no value"),
    "a missing entity": (without("device"), "missing_entity", "'device'"),
    "an entity of the wrong type": (good(device=[1]), "missing_entity", "'device'"),
    "invalid UTF-8": (b'{"device": "\xff\xfe"}', "invalid_encoding", "not UTF-8"),
    "deeply nested": (b'{"a": ' + b"[" * 5_000 + b"]" * 5_000 + b"}", "too_deep", "nested more than"),
    "the year 9999": (good(ts="9999-12-31T23:59:59Z"), "invalid_timestamp", "'ts'"),
    "no time": (without("ts"), "invalid_timestamp", "'ts'"),
    "a key twice": (
        b'{"ts": 1750000000000, "device": "a", "device": "b", "flow": 1}',
        "duplicate_key",
        "device",
    ),
    "no features at all": (b'{"ts": 1750000000000, "device": "d1"}', "no_features", "none of the features"),
    "five megabytes": (good(filler="x" * 5_000_000), "too_large", "input.max_record_bytes is 1048576"),
}
# What stays judgeable: one value of an otherwise good record is taken as missing, or the record is refused.
UNUSABLE: dict[str, bytes] = {
    "a text for a number": good(flow="ten"),
    "an object for a number": good(flow={"value": 10}),
    "infinity": good(flow=float("inf")),
    "not a number": good(flow=float("nan")),
    "a number beyond all bounds": good(flow=0).replace(b'"flow": 0', b'"flow": 1e999'),
}
# A value that is not there is missing, whatever is configured.
MISSING = [good(flow=None), without("flow")]


def mixed() -> tuple[list[bytes | None], list[int]]:
    """Good records with a bad or an unusable one after each ten, and where the bad ones are."""
    values: list[bytes | None] = []
    at: list[int] = []
    clean = iter(readings(600))
    for value in (*(value for value, _, _ in BAD.values()), *UNUSABLE.values(), *MISSING):
        values += [next(clean) for _ in range(10)]
        at.append(len(values))
        values.append(value)
    values += clean
    return values, at[: len(BAD)]


def settings(servers: str, topic: str, unusable: str) -> dict[str, Any]:
    features = {"numeric": list(SCHEMA.numeric), "categorical": list(SCHEMA.categorical)}
    return {
        **QUICK,
        "kafka": {"bootstrap_servers": servers},
        "input": {
            "topics": [topic],
            "group_id": f"g-{uuid.uuid4().hex[:8]}",
            "timestamp": "ts",
            "entity": "device",
            "features": features,
            "unusable": unusable,
        },
        "alerts": {"topic": f"{topic}.{unusable}.alerts"},
        "dead_letters": {"topic": f"{topic}.{unusable}.dead-letters"},
        "serve": {"http": f"127.0.0.1:{free_port()}"},
    }


def judged_or_rejected(worker: Running, n: int) -> bool:
    """Whether so many are; the counters of a batch are raised one after the other."""
    names = ("streamdet_events_judged_total", "streamdet_records_rejected_total")
    return sum(map(worker.metric, names)) >= n


def assert_balanced(worker: Running, polled: int, rejected: int) -> None:
    assert worker.metric("streamdet_records_polled_total") == polled
    assert worker.metric("streamdet_records_rejected_total") == rejected
    assert worker.metric("streamdet_events_judged_total") == polled - rejected


def test_every_bad_record_ends_as_a_dead_letter_and_all_others_are_judged(
    kafka: Kafka, kafka_admin: Any, make_topic: MakeTopic, tmp_path: Path
) -> None:
    """Two workers at once, one that takes unusable values as missing and one that refuses their records."""
    servers = kafka.bootstrap_servers
    topic = make_topic(config={"max.message.bytes": str(2**23)})
    values, at = mixed()
    publish(servers, topic, values)
    by_kind = {kind: settings(servers, topic, kind) for kind in ("missing", "reject")}
    with (
        Running(tmp_path / "missing", by_kind["missing"]) as tolerant,
        Running(tmp_path / "reject", by_kind["reject"]) as strict,
    ):
        for worker in (tolerant, strict):
            until(partial(judged_or_rejected, worker, len(values)), "all records judged or rejected")
        assert_balanced(tolerant, len(values), len(BAD))
        assert_balanced(strict, len(values), len(BAD) + len(UNUSABLE))
        assert tolerant.metric("streamdet_values_unusable_total") == len(UNUSABLE)
        assert strict.metric("streamdet_values_unusable_total") == 0
        # Those above name no site: no value of a category is a value too.
        assert tolerant.metric("streamdet_values_imputed_total") == len(UNUSABLE) + len(MISSING)
        assert strict.metric("streamdet_values_imputed_total") == len(MISSING)
        for worker in (tolerant, strict):
            worker.signal(signal.SIGTERM)
            assert worker.ended() == 0
            assert "Traceback" not in worker.log

    letters = {int(dict(r.headers)["offset"]): r for r in arrived(servers, f"{topic}.missing.dead-letters")}
    assert sorted(letters) == at
    for offset, (name, (value, reason, error)) in zip(at, BAD.items(), strict=True):
        letter = letters[offset]
        headers = {key: said.decode() for key, said in letter.headers}
        assert headers["reason"] == reason, name
        assert error in headers["error"], f"{name}: {headers['error']}"
        assert (headers["topic"], headers["partition"]) == (topic, "0")
        assert letter.key == b"k%d" % offset
        assert letter.value == (value or b""), name
        assert ("null_value" in headers) is (value is None)
        assert "truncated" not in headers

    refused = [dict(r.headers) for r in arrived(servers, f"{topic}.reject.dead-letters")]
    assert len(refused) == len(BAD) + len(UNUSABLE)
    assert sum(headers["reason"] == b"invalid_value" for headers in refused) == len(UNUSABLE)
    for kind in by_kind:
        kafka_admin.delete_topics([f"{topic}.{kind}.alerts", f"{topic}.{kind}.dead-letters"])
