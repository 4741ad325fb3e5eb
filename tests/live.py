"""A worker as a process of its own on a real Kafka, and what tests ask of it and of Kafka: records, offsets, metrics.

Nothing here sleeps to give somebody time: `until` asks again and again, and fails at its deadline.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from streamdet.events import Alert

WITHIN_S = 60.0
LOOK_S = 0.02  # between two looks at something that cannot be waited on


def until(done: Callable[[], bool], what: str, within_s: float = WITHIN_S) -> None:
    """Return when it is so; fail when it is not in time."""
    end_s = time.monotonic() + within_s
    pause = threading.Event()
    while not done():
        assert time.monotonic() < end_s, f"not within {within_s:.0f} s: {what}"
        pause.wait(LOOK_S)


def publish(servers: str, topic: str, values: Sequence[bytes | None], partition: int = 0) -> None:
    """Write the values in order, with keys; return when Kafka has them."""
    producer = KafkaProducer(bootstrap_servers=servers.split(","), max_request_size=2**24, linger_ms=5)
    for i, value in enumerate(values):
        producer.send(topic, value, key=b"k%d" % i, partition=partition)
    producer.flush()
    producer.close()


def arrived(servers: str, topic: str) -> list[Any]:
    """All records of a topic."""
    consumer = KafkaConsumer(
        bootstrap_servers=servers.split(","), max_partition_fetch_bytes=2**26, fetch_max_wait_ms=50
    )
    partitions = [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic))]
    consumer.assign(partitions)
    consumer.seek_to_beginning()
    ends = consumer.end_offsets(partitions)
    records: list[Any] = []
    end_s = time.monotonic() + WITHIN_S
    while any(consumer.position(tp) < end for tp, end in ends.items()):
        assert time.monotonic() < end_s, f"{topic} is not to be read to its end"
        for polled in consumer.poll(timeout_ms=200).values():
            records += polled
    consumer.close()
    return records


def alerts_in(servers: str, topic: str) -> list[Alert]:
    """The alerts on a topic, as they are typed."""
    return [msgspec.json.decode(record.value, type=Alert) for record in arrived(servers, topic)]


def committed(admin: Any, group: str, topic: str, partitions: int = 1) -> list[int]:
    """Where a group goes on in each partition; -1 where it has committed nothing."""
    lanes = [TopicPartition(topic, p) for p in range(partitions)]
    found = admin.list_group_offsets({group: lanes})[group]
    return [int(found[lane].offset) if lane in found else -1 for lane in lanes]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Running:
    """`streamdet run` in a folder of its own, with a log that can be waited on."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # JSON is YAML too.
        (folder / "streamdet.yaml").write_text(json.dumps(settings))
        self.folder = folder
        number = len(list(folder.glob("log-*")))
        self._log_path = folder / f"log-{number}"
        http = settings.get("serve", {}).get("http")
        self._metrics_url = f"http://{http}/metrics"
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "streamdet", "run", "-c", "streamdet.yaml"],
                cwd=folder,
                stdout=log,
                stderr=log,
                # So that it is found with the coverage of the tests switched on or off alike.
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    def await_log(self, pattern: str, within_s: float = WITHIN_S) -> None:
        """Return when the log says so; fail if the worker ends before."""

        def said() -> bool:
            ended = self._process.poll() is not None
            if re.search(pattern, self.log):
                return True
            assert not ended, f"the worker ended before it said {pattern!r}:\n{self.log}"
            return False

        until(said, f"{pattern!r} in the log", within_s)

    def metric(self, name: str) -> float:
        """What a metric says, over all its labels; 0 while nobody answers."""
        try:
            with urllib.request.urlopen(self._metrics_url, timeout=5) as answer:
                text = answer.read().decode()
        except OSError:
            return 0.0
        found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
        return sum(map(float, found))

    def await_metric(self, name: str, value: float, within_s: float = WITHIN_S) -> None:
        until(lambda: self.metric(name) >= value or self._fail_if_ended(), f"{name} at {value}", within_s)

    def _fail_if_ended(self) -> bool:
        assert self._process.poll() is None, f"the worker ended:\n{self.log}"
        return False

    def signal(self, *numbers: signal.Signals) -> None:
        for number in numbers:
            self._process.send_signal(number)

    def ended(self, within_s: float = 30.0) -> int:
        """The exit code."""
        return self._process.wait(within_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
