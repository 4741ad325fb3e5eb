"""What the demo does with Kafka: topics, a publisher, a subscriber, and the worker as a process of its own.

Publisher and subscriber are threads of the demo; the worker is `streamdet run` as anybody would run it. None of them
outlives the demo, unless it is asked to leave the worker running.
"""

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from demo_streams import Stream
from kafka import errors
from kafka.admin import NewTopic
from kafka.structs import TopicPartition

from streamdet.alerts import subscribe
from streamdet.broker.client import admin, producer
from streamdet.clock import SystemClock
from streamdet.config import Kafka
from streamdet.errors import StreamdetError
from streamdet.events import Alert

CLOCK = SystemClock()
# Events that are due within this time go out together: a thread that woke for each would take the worker's core.
TICK_S = 0.005
# The worker finishes its batch, saves and leaves; beyond this something is wrong with it.
STOP_MAX_S = 30.0
LOG_TAIL_LINES = 20
# Becomes the worker once the kernel has promised to end it when the demo dies, be it of a SIGKILL: 1 is
# PR_SET_PDEATHSIG, and the parent may have died before that was in force. Only Linux can do this.
DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class DemoError(Exception):
    """What went wrong, for the user."""


class Cluster:
    """What the demo asks of Kafka besides reading and writing."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._admin = admin(Kafka(bootstrap_servers=bootstrap_servers))

    def create(self, *topics: str) -> None:
        """Topics of one partition; returns when brokers know them."""
        self._admin.create_topics([NewTopic(name, 1, 1) for name in topics], wait_for_metadata=True)

    def delete(self, *topics: str) -> None:
        """Remove those of the topics that are there."""
        there = set(self._admin.list_topics()) & set(topics)
        if there:
            self._admin.delete_topics(sorted(there))

    def reads(self, group: str) -> bool:
        """Whether a member of the group has been given its partitions."""
        found = self._ask(lambda: self._admin.describe_groups([group]))
        return found is not None and found[group]["group_state"] == "Stable" and bool(found[group]["members"])

    def committed(self, group: str, topic: str) -> int:
        """Where the group would go on in the topic; 0 before it has committed."""
        lane = TopicPartition(topic, 0)
        found = self._ask(lambda: self._admin.list_group_offsets({group: [lane]}))
        at = None if found is None else found[group].get(lane)
        return max(0, int(at.offset)) if at is not None else 0

    def has(self, topic: str) -> bool:
        """Whether the topic is there."""
        return topic in self._admin.list_topics()

    def close(self) -> None:
        """Give back the connection."""
        self._admin.close()

    @staticmethod
    def _ask(question: Callable[[], Any]) -> Any:  # noqa: ANN401 - kafka-python is untyped
        """The answer; None while the group's broker is still finding itself, as after its very first start."""
        try:
            return question()
        except errors.KafkaError as error:
            if error.retriable or isinstance(error, errors.GroupIdNotFoundError):
                return None
            raise


class Publisher(threading.Thread):
    """Publishes a stream at a steady pace, and notes when each event left."""

    def __init__(self, stream: Stream, topic: str, bootstrap_servers: str, rate: float) -> None:
        super().__init__(name="publisher", daemon=True)
        self.sent = 0
        self.published_ms = np.full(len(stream), np.nan)  # (n,) what Kafka has as CreateTime
        self.error: BaseException | None = None
        self._stream = stream
        self._topic = topic
        self._rate = rate
        self._ended = threading.Event()
        # Idempotent: sent again after a hiccup an event keeps its place, so that row i stays at offset i.
        self._producer = producer(Kafka(bootstrap_servers=bootstrap_servers), enable_idempotence=True)

    def run(self) -> None:
        """Until everything is out, or `stop`."""
        try:
            self._publish()
            self._producer.flush()
        except (errors.KafkaError, OSError) as error:
            self.error = error

    def stop(self) -> None:
        """End early; returns when the connection is closed."""
        self._ended.set()
        if self.ident is not None:
            self.join()
        self._producer.close(timeout=1)

    def _publish(self) -> None:
        began_s = CLOCK.monotonic_s()
        while self.sent < len(self._stream) and not self._ended.is_set() and self.error is None:
            due = min(len(self._stream), 1 + int((CLOCK.monotonic_s() - began_s) * self._rate))
            for i in range(self.sent, due):
                now_ms = CLOCK.now_ms()
                self.published_ms[i] = now_ms
                future = self._producer.send(
                    self._topic, self._stream.values[i], key=self._stream.keys[i], timestamp_ms=now_ms
                )
                future.add_errback(self._failed)
            self.sent = due
            self._ended.wait(max(TICK_S, began_s + self.sent / self._rate - CLOCK.monotonic_s()))

    def _failed(self, error: BaseException) -> None:
        self.error = error


class Subscriber(threading.Thread):
    """Receives alerts, and notes when each came."""

    def __init__(self, topic: str, bootstrap_servers: str) -> None:
        super().__init__(name="subscriber", daemon=True)
        self._received: queue.SimpleQueue[tuple[Alert, int]] = queue.SimpleQueue()  # alert, wall clock in ms
        self.error: BaseException | None = None
        self._ended = threading.Event()
        self._alerts = subscribe(
            topic, bootstrap_servers=bootstrap_servers, start="earliest", stopped=self._ended.is_set
        )

    def run(self) -> None:
        """Until `stop`."""
        try:
            for alert in self._alerts:
                self._received.put((alert, CLOCK.now_ms()))
        except StreamdetError as error:
            self.error = error

    def take(self, wait_s: float) -> list[tuple[Alert, int]]:
        """Alerts that came since, each with the wall clock in milliseconds; waits so long for a first one."""
        taken = []
        with contextlib.suppress(queue.Empty):
            taken.append(self._received.get(timeout=wait_s))
            while True:
                taken.append(self._received.get_nowait())
        return taken

    def stop(self) -> None:
        """End, and close the connection."""
        self._ended.set()
        if self.ident is not None:
            self.join()
        self._alerts.close()


class WorkerProcess:
    """`streamdet run` as a process whose log goes to a file."""

    def __init__(self, config: Path, log: Path, scores: Path | None, *, stays: bool = False) -> None:
        self.log = log
        command = [str(Path(sys.executable).with_name("streamdet")), "run", "-c", str(config)]
        command += ["--scores", str(scores)] if scores is not None else []
        if not stays and sys.platform == "linux":
            command = [sys.executable, "-c", DIE_WITH_PARENT, str(os.getpid()), *command]
        with log.open("ab") as file:
            # A session of its own: a Ctrl-C in the terminal is for the demo, which then ends the worker in order.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def check(self) -> None:
        """Raise `DemoError` with the end of its log if it is not running."""
        code = self._process.poll()
        if code is not None:
            raise DemoError(
                f"the worker ended by itself with exit code {code}; the end of {self.log}:\n{self.tail()}"
            )

    def wait(self) -> None:
        """Return only by raising, once it is gone."""
        self._process.wait()
        self.check()

    def tail(self) -> str:
        """The end of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return "\n".join(f"  {line}" for line in lines) or "  (it wrote nothing)"

    def finish(self) -> None:
        """Let it finish in order.

        Raises:
            DemoError: it was gone already, did not end, or not well.
        """
        self.check()
        self._process.terminate()
        try:
            code = self._process.wait(STOP_MAX_S)
        except subprocess.TimeoutExpired as error:
            raise DemoError(
                f"the worker did not end {STOP_MAX_S:.0f} s after SIGTERM; see {self.log}"
            ) from error
        if code != 0:
            raise DemoError(f"the worker ended with exit code {code}; the end of {self.log}:\n{self.tail()}")

    def kill(self) -> None:
        """Make sure that it is gone; first asked, then forced."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_MAX_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
