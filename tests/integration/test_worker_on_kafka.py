"""The worker as a process on a real broker: what it publishes, how it stops, goes on, and waits for a broker."""

import itertools
import json
import signal
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fakes import QUICK, SCHEMA, StopAfter, readings
from kafka.admin import KafkaAdminClient
from kafka_broker import MakeTopic, OwnKafka
from kafka_local import Kafka
from live import Running, alerts_in, arrived, committed, free_port, publish, until
from river.datasets import Shuttle

from streamdet.config import parse
from streamdet.events import Alert
from streamdet.replaying import Replay, replay

pytestmark = pytest.mark.integration

ALERT_SCHEMA = Path(__file__).parents[2] / "deploy" / "schemas" / "alert.schema.json"


def shuttle(n: int) -> list[bytes]:
    """The first readings of the space shuttle, 9 sensors."""
    return [msgspec.json.encode(x) for x, _ in itertools.islice(Shuttle(), n)]


def quick(servers: str, topic: str, **given: Any) -> dict[str, Any]:
    """A configuration for `readings`, with little warm-up and metrics."""
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
        },
        "checkpoint": {"url": "./state", "every_s": 1},
        "serve": {"http": f"127.0.0.1:{free_port()}"},
        **given,
    }


def replayed(folder: Path, values: Sequence[bytes], settings: dict[str, Any] | None = None) -> list[Alert]:
    """What a replay of the same values says."""
    path, alerts = folder / "recording.jsonl", folder / "alerts.jsonl"
    path.write_bytes(b"\n".join(values) + b"\n")
    replay(Replay([path], alerts=alerts), parse(settings or {}), StopAfter())
    return [msgspec.json.decode(line, type=Alert) for line in alerts.read_bytes().splitlines()]


def test_two_lines_are_enough_and_a_life_with_a_restart_gives_what_a_replay_gives(
    kafka: Kafka, kafka_admin: Any, make_topic: MakeTopic, tmp_path: Path
) -> None:
    """From the first record to the last alert, with SIGTERM, a restart, and SIGINT."""
    topic, servers, values = make_topic(), kafka.bootstrap_servers, shuttle(5_000)
    two_lines = {"kafka": {"bootstrap_servers": servers}, "input": {"topics": [topic]}}
    publish(servers, topic, values[:3_000])
    with Running(tmp_path / "worker", two_lines) as worker:
        worker.await_log("inferred .*numeric=f1,f2,f3,f4,f5,f6,f7,f8,f9")
        worker.await_log("judging topics=")
        _await_committed(kafka_admin, topic, 3_000)
        worker.signal(signal.SIGTERM)
        assert worker.ended() == 0
        assert "SIGTERM: finishing the batch; once more to give up" in worker.log
        assert "stopped events=3000" in worker.log
    assert committed(kafka_admin, "streamdet", topic) == [3_000]
    lane = tmp_path / "worker" / "state" / "streamdet" / "lanes" / topic
    assert max(lane.rglob("*.safetensors")).name.startswith(f"{3_000:020d}-")

    publish(servers, topic, values[3_000:])
    with Running(tmp_path / "worker", two_lines) as worker:
        worker.await_log(f"lane={topic}/0 goes on at=3000 published_below=3000")
        _await_committed(kafka_admin, topic, 5_000)
        worker.signal(signal.SIGINT)
        assert worker.ended() == 0
        assert "stopped events=2000" in worker.log
    assert committed(kafka_admin, "streamdet", topic) == [5_000]

    alerts_topic = f"{topic}.alerts"
    found = alerts_in(servers, alerts_topic)
    expected = replayed(tmp_path, values)
    assert [a.source.offset for a in found] == [a.source.offset for a in expected]
    assert [a.raw_score for a in found] == [a.raw_score for a in expected]
    assert len(found) > 3
    assert arrived(servers, f"{topic}.dead-letters") == []
    schema = json.loads(ALERT_SCHEMA.read_text())
    for alert, record in zip(found, arrived(servers, alerts_topic), strict=True):
        assert list(json.loads(record.value)) == list(schema["$defs"]["Alert"]["properties"])
        headers = dict(record.headers)
        assert headers["ce_id"] == f"{topic}/0/{alert.source.offset}".encode() == alert.id.encode()
        assert (headers["ce_type"], headers["schema_version"]) == (b"streamdet.alert", b"1")
        assert sum(share.share for share in alert.features) == pytest.approx(1)
        assert alert.score == pytest.approx(alert.raw_score / alert.limit)
        assert alert.score >= 1
        fields = json.loads(values[alert.source.offset])
        assert alert.event == fields == {share.name: share.actual for share in alert.features}
        assert all(isinstance(share.expected, float) for share in alert.features)
    kafka_admin.delete_topics([alerts_topic, f"{topic}.dead-letters"])


def _offsets(servers: str, topic: str) -> list[int]:
    """Of the events that alerts are about."""
    return [alert.source.offset for alert in alerts_in(servers, f"{topic}.alerts")]


def _await_committed(admin: Any, topic: str, offset: int, group: str = "streamdet") -> None:
    until(lambda: committed(admin, group, topic) == [offset], f"{topic} committed up to {offset}")


def test_a_worker_waits_for_a_broker_gives_up_on_a_second_signal_and_loses_nothing_by_either(
    own_kafka: OwnKafka, tmp_path: Path
) -> None:
    """The broker is stopped and comes back; then it is killed, and the worker with it, and both come back."""
    servers = own_kafka.bootstrap_servers
    topic = own_kafka.create_topic("plant")
    values = [value or b"" for value in readings(2_500, spikes=(1_200, 1_900, 2_400))]
    publish(servers, topic, values[:1_400])
    settings = quick(servers, topic)
    with Running(tmp_path / "worker", settings) as worker:
        worker.await_metric("streamdet_records_polled_total", 1_400)
        own_kafka.stop()
        worker.await_log("kafka away client=source")
        own_kafka.start()
        publish(servers, topic, values[1_400:2_000])
        worker.await_metric("streamdet_records_polled_total", 2_000)
        worker.await_log("kafka back client=source")
        # The sink notices an outage only if it has something to say meanwhile.
        log = worker.log
        assert log.count("kafka away client=source") == log.count("kafka back client=source") == 1
        assert log.count("kafka away client=sink") == log.count("kafka back client=sink") <= 1
        assert "Traceback" not in log
        assert worker.metric("streamdet_events_judged_total") == 2_000
        until(lambda: {1_200, 1_900} <= set(_offsets(servers, topic)), "both anomalies in the alerts")
        assert len(set(_offsets(servers, topic))) == len(_offsets(servers, topic))

        own_kafka.kill()
        worker.signal(signal.SIGTERM, signal.SIGINT)
        assert worker.ended(within_s=5.0) == 1
        assert "again: giving up at once" in worker.log

    own_kafka.start()
    publish(servers, topic, values[2_000:])
    admin = KafkaAdminClient(bootstrap_servers=servers.split(","))
    with Running(tmp_path / "worker", settings) as worker:
        _await_committed(admin, topic, 2_500, settings["input"]["group_id"])
        worker.signal(signal.SIGTERM)
        assert worker.ended() == 0
    admin.close()
    found = sorted(_offsets(servers, topic))
    offline = {name: settings[name] for name in ("limit", "learning", "model", "input")}
    assert found == [alert.source.offset for alert in replayed(tmp_path, values, offline)]


def test_what_cannot_be_is_said_in_one_line_with_an_exit_code(
    kafka: Kafka, topic: str, tmp_path: Path
) -> None:
    servers = kafka.bootstrap_servers
    unknown_key = quick(servers, topic)
    unknown_key["input"] = {**unknown_key["input"], "topik": "x"}
    missing = f"nowhere-{uuid.uuid4().hex[:8]}"
    wrong = {
        "unknown key": (unknown_key, 2, "input.topik: unknown key; known here: topics, group_id"),
        "missing topic": (
            quick(servers, missing),
            1,
            f"streamdet: topic '{missing}' does not exist on Kafka at",
        ),
        "missing device": (
            quick(servers, topic, model={"device": "cuda:7", "strict": True}),
            1,
            "streamdet: ",
        ),
        "port taken": (
            quick(servers, topic, serve={"http": servers.split(",")[0]}),
            2,
            "serve.http: cannot listen",
        ),
    }
    # All at once: starting takes seconds, and none of them does more.
    started = {name: Running(tmp_path / name, settings) for name, (settings, _, _) in wrong.items()}
    for name, (_, code, said) in wrong.items():
        with started[name] as worker:
            assert worker.ended() == code, f"{name}: {worker.log}"
            last = worker.log.splitlines()[-2:]
            assert any(said in line for line in last), f"{name}: {worker.log}"
            assert "Traceback" not in worker.log
    assert "cuda:7" in started["missing device"].log.splitlines()[-1]
