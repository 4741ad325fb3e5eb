"""Milliseconds from an event's publication to its alert at a subscriber, at a steady pace, while fine-tunes run."""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from bench_common import COLUMNS, Figures, json_events, say
from kafka import KafkaAdminClient, KafkaProducer
from kafka_local import running_kafka

from streamdet.alerts import subscribe

TOPIC = "bench"
ANOMALOUS_EVERY = 250


def measure(given: argparse.Namespace) -> Figures:
    """A real worker in a process of its own; alerts of the warm-up do not exist, so none is left out."""
    events = given.events or 30 * given.rate
    with tempfile.TemporaryDirectory() as folder, running_kafka(Path(folder) / "kafka") as kafka:
        servers = kafka.bootstrap_servers
        admin = KafkaAdminClient(bootstrap_servers=servers)
        admin.create_topics({TOPIC: {"num_partitions": 1, "replication_factor": 1}})
        admin.close()
        config = _config(Path(folder), servers)
        log = Path(folder) / "worker.log"
        with log.open("w") as file:
            worker = subprocess.Popen(
                [sys.executable, "-m", "streamdet", "run", "-c", str(config)], stderr=file
            )
        try:
            _wait_for(log, "lanes changed", worker)
            latencies = _latencies_ms(servers, events, given.rate)
        finally:
            worker.terminate()
            worker.wait(30)
        adopted = log.read_text().count("model adopted") + log.read_text().count("model refused")
    return {
        "events": events,
        "events_per_second": given.rate,
        "alerts": len(latencies),
        "fine_tunes": adopted,
        "p50_ms": round(float(np.quantile(latencies, 0.5)), 1),
        "p99_ms": round(float(np.quantile(latencies, 0.99)), 1),
        "max_ms": round(float(np.max(latencies)), 1),
    }


def _config(folder: Path, servers: str) -> Path:
    path = folder / "streamdet.yaml"
    path.write_text(
        f"kafka: {{bootstrap_servers: '{servers}'}}\n"
        f"input: {{topics: [{TOPIC}], features: {{numeric: [{', '.join(COLUMNS)}]}}}}\n"
        "limit: {alert_rate: 0.005}\n"
        "learning: {every: 2000, lag: 1000}\n"
        f"checkpoint: {{url: '{folder}/state', every_s: 5}}\n"
    )
    return path


def _wait_for(log: Path, text: str, worker: "subprocess.Popen[bytes]") -> None:
    deadline_s = time.monotonic() + 60
    while text not in log.read_text():
        if worker.poll() is not None or time.monotonic() > deadline_s:
            raise RuntimeError(f"the worker did not get to {text!r}:\n{log.read_text()}")
        time.sleep(0.05)


def _latencies_ms(servers: str, events: int, rate: int) -> list[float]:
    latencies: list[float] = []
    done = threading.Event()
    subscription = subscribe(f"{TOPIC}.alerts", bootstrap_servers=servers, stopped=done.is_set)

    def receive() -> None:
        for alert in subscription:
            moment = np.datetime64(alert.event_time.rstrip("Z"), "ms").astype(np.int64)
            latencies.append(time.time_ns() / 1e6 - float(moment))

    receiver = threading.Thread(target=receive)
    receiver.start()
    _publish(servers, events, rate)
    time.sleep(2.0)  # what is on its way arrives; a later alert would be a defect that the count shows
    done.set()
    receiver.join()
    subscription.close()
    return latencies


def _publish(servers: str, events: int, rate: int) -> None:
    say(f"publishing {events:,} events at {rate:,}/s")
    producer = KafkaProducer(bootstrap_servers=servers, linger_ms=0)
    started_s = time.perf_counter()
    for i, value in enumerate(json_events(events, seed=0, anomalous_every=ANOMALOUS_EVERY)):
        ahead_s = started_s + i / rate - time.perf_counter()
        if ahead_s > 0.001:
            time.sleep(ahead_s)
        producer.send(TOPIC, value)
    producer.flush()
    producer.close()
