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
from typing import Any, Protocol, Self

import msgspec
from chaos_kafka import arrived
from kafka import KafkaProducer, TopicPartition

from streamdet.events import Alert

__all__ = [
    "LOOK_S", "WITHIN_S", "Process", "Running", "Spawn", "alerts_in", "arrived", "committed", "free_port",
    "interpreter", "publish", "until",
]  # fmt: skip

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


class Process(Protocol):
    """What `Running` needs of a process; `subprocess.Popen` has it."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, number: int, /) -> None: ...
    def kill(self) -> None: ...


# From arguments of `streamdet`, a folder to run it in, and a log.
Spawn = Callable[[Sequence[str], Path, Path], Process]


def interpreter(arguments: Sequence[str], folder: Path, log: Path) -> Process:
    """A Python of its own."""
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "streamdet", *arguments],
            cwd=folder,
            stdout=file,
            stderr=file,
            # So that it is found with the coverage of the tests switched on or off alike.
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )


class Running:
    """`streamdet run` in a folder of its own, with a log that can be waited on."""

    def __init__(self, folder: Path, settings: dict[str, Any], spawn: Spawn = interpreter) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # JSON is YAML too.
        (folder / "streamdet.yaml").write_text(json.dumps(settings))
        self.folder = folder
        number = len(list(folder.glob("log-*")))
        self._log_path = folder / f"log-{number}"
        http = settings.get("serve", {}).get("http")
        self._metrics_url = f"http://{http}/metrics"
        self._log_path.touch()  # before anybody looks for what it says
        self._process = spawn(["run", "-c", "streamdet.yaml"], folder, self._log_path)

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
        return self.metrics(name)[0]

    def metrics(self, *names: str) -> list[float]:
        """What several say at the same moment."""
        try:
            with urllib.request.urlopen(self._metrics_url, timeout=5) as answer:
                text = answer.read().decode()
        except OSError:
            return [0.0] * len(names)
        found = (re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE) for name in names)
        return [sum(map(float, values)) for values in found]

    def await_metric(self, name: str, value: float, within_s: float = WITHIN_S) -> None:
        until(lambda: self.metric(name) >= value or self._fail_if_ended(), f"{name} at {value}", within_s)

    def _fail_if_ended(self) -> bool:
        assert self._process.poll() is None, f"the worker ended:\n{self.log}"
        return False

    def signal(self, *numbers: signal.Signals) -> None:
        for number in numbers:
            self._process.send_signal(number)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def lanes(self) -> int:
        """How many partitions it has, by its own word."""
        counts = re.findall(r"lanes changed .* count=(\d+)", self.log)
        return int(counts[-1]) if counts else 0

    @property
    def back(self) -> bool:
        """Whether the partitions that it has are where they were, by its own word, and none judges again."""
        told = re.findall(
            r"lane=(\S+) (?:goes on at=(\d+) published_below=(\d+)|is back|starts cold)", self.log
        )
        behind = {lane: at != "" and int(at) < int(below) for lane, at, below in told}
        return bool(behind) and not any(behind.values())

    def ended(self, within_s: float = WITHIN_S) -> int:
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
