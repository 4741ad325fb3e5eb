"""Events/s from Kafka to verdicts, learning on, against a bare loop that polls and decodes and does nothing else."""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from bench_common import COLUMNS, Figures, json_events, rounds, say, spread
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.structs import TopicPartition
from kafka_local import running_kafka

from streamdet.app import build, compile_kernels, connect_delivery
from streamdet.broker.client import never
from streamdet.clock import SystemClock
from streamdet.codec.json import JsonCodec
from streamdet.config import Settings, parse
from streamdet.events import Schema
from streamdet.parts import Part
from streamdet.source.kafka import KafkaSource
from streamdet.worker import run

TOPIC = "bench"


class StopAfter:
    """An observer that times the events and asks for a stop after the last one."""

    def __init__(self, events: int) -> None:
        self.requested = False
        self._events = events
        self._seen = 0
        self._first = 0
        self._started_s: float | None = None
        self.per_second = 0.0

    def judged(self, parts: Sequence[Part]) -> None:
        """Count a batch; the clock starts with the first one, whose own events do not count."""
        now_s = time.perf_counter()
        n = sum(len(part.decoded.events) for part in parts)
        if self._started_s is None and n:
            self._started_s, self._first = now_s, n
        self._seen += n
        if self._seen >= self._events and self._started_s is not None:
            self.per_second = (self._seen - self._first) / (now_s - self._started_s)
            self.requested = True


def measure(given: argparse.Namespace) -> Figures:
    """Publish once, then let both sides read it in turns."""
    events = given.events or 400_000
    with tempfile.TemporaryDirectory() as folder, running_kafka(Path(folder)) as kafka:
        servers = kafka.bootstrap_servers
        size = _publish(servers, events)
        compile_kernels()
        sides = {
            "bare_loop": lambda _: _bare_loop(servers, events),
            "exactly_once": lambda number: _worker(servers, events, "exactly-once", number),
            "at_least_once": lambda number: _worker(servers, events, "at-least-once", number),
        }
        figures = rounds(given.rounds, sides)

    def against(one: str, other: str) -> Any:  # noqa: ANN401 - figures
        return spread([a / b for a, b in zip(figures[one], figures[other], strict=True)])

    return {
        "events": events,
        "bytes_per_event": round(size, 1),
        "events_per_second": spread(figures["exactly_once"]),
        "at_least_once_events_per_second": spread(figures["at_least_once"]),
        "bare_loop_events_per_second": spread(figures["bare_loop"]),
        "vs_bare_loop": against("exactly_once", "bare_loop"),
        "at_least_once_vs_bare_loop": against("at_least_once", "bare_loop"),
        "exactly_once_vs_at_least_once": against("exactly_once", "at_least_once"),
    }


def _publish(servers: str, events: int) -> float:
    say(f"publishing {events:,} events")
    KafkaAdminClient(bootstrap_servers=servers).create_topics(
        {TOPIC: {"num_partitions": 1, "replication_factor": 1}}
    )
    producer = KafkaProducer(bootstrap_servers=servers, linger_ms=20, batch_size=1 << 18)
    size = 0
    for value in json_events(events, seed=0, anomalous_every=1000):
        size += len(value)
        producer.send(TOPIC, value)
    producer.flush()
    producer.close()
    return size / events


def _settings(servers: str, delivery: str, number: int) -> Settings:
    return parse(
        {
            "delivery": delivery,
            "kafka": {"bootstrap_servers": servers},
            "input": {
                "topics": [TOPIC],
                "group_id": f"bench-{delivery}-{number}",
                "features": {"numeric": list(COLUMNS)},
            },
        }
    )


def _worker(servers: str, events: int, delivery: str, number: int) -> float:
    settings, clock = _settings(servers, delivery, number), SystemClock()
    schema = Schema(None, None, COLUMNS, ())
    stop = StopAfter(events)
    source = KafkaSource(settings, clock)
    worker = build(
        settings,
        schema=schema,
        source=source,
        delivery=connect_delivery(settings, source, None, clock, never),
        codec=JsonCodec(schema),
        clock=clock,
        observers=[stop],
    )
    run(worker, stop)
    return stop.per_second


def _bare_loop(servers: str, events: int) -> float:
    """What any worker in Python pays: kafka-python's poll and one typed decode per record."""
    fields: list[Any] = [(name, float) for name in COLUMNS]
    decode = msgspec.json.Decoder(msgspec.defstruct("Event", fields)).decode
    consumer = KafkaConsumer(
        bootstrap_servers=servers,
        enable_auto_commit=False,
        fetch_max_bytes=8 << 20,
        max_partition_fetch_bytes=8 << 20,
    )
    partition = TopicPartition(TOPIC, 0)
    consumer.assign([partition])
    consumer.seek_to_beginning(partition)
    seen, first, started_s = 0, 0, 0.0
    while seen < events:
        for records in consumer.poll(timeout_ms=500, max_records=4096).values():
            for record in records:
                decode(record.value)
            seen += len(records)
        if not first and seen:
            first, started_s = seen, time.perf_counter()
    seconds = time.perf_counter() - started_s
    consumer.close()
    return (seen - first) / seconds
