"""The brokers of a cluster one by one: to kill, stop, pause and bring back. Brokers are numbered from 1."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import kafka_cluster
import kafka_local
from kafka_layout import Cluster, load

WITHIN_S = 60.0
START_MAX_S = 150.0  # above the bound that the script itself keeps
LOOK_S = 0.05  # between two looks at something that cannot be waited on


def until(done: Callable[[], object], what: str, within_s: float = WITHIN_S) -> None:
    """Return when it is so.

    Raises:
        TimeoutError: it is not in time.
    """
    end_s = time.monotonic() + within_s
    while not done():
        if time.monotonic() > end_s:
            raise TimeoutError(f"not within {within_s:.0f} s: {what}")
        time.sleep(LOOK_S)


class Brokers:
    """The processes of a cluster that `kafka_cluster` started in a folder."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._paused: dict[int, int] = {}

    @property
    def numbers(self) -> list[int]:
        """All of them, running or not."""
        return [node.node_id for node in self._cluster.nodes]

    @property
    def serving(self) -> list[int]:
        """Those that run and are not paused."""
        return [number for number in kafka_cluster.running(self._cluster) if number not in self._paused]

    def kill(self, number: int) -> None:
        """End it by SIGKILL; return when it is gone."""
        self._end(number, signal.SIGKILL)

    def stop(self, number: int) -> None:
        """End it in order; return when it is gone."""
        self._end(number, signal.SIGTERM)

    def pause(self, number: int) -> None:
        """Stop the process where it is: its connections stay, and it says nothing."""
        pid = kafka_cluster.running(self._cluster)[number]
        os.kill(pid, signal.SIGSTOP)
        self._paused[number] = pid

    def resume(self, number: int) -> None:
        """Let a paused one go on."""
        os.kill(self._paused.pop(number), signal.SIGCONT)

    def start(self) -> None:
        """Bring back what does not run; return when all brokers are in service."""
        for number in list(self._paused):
            self.resume(number)
        # By the script, in a process of its own: what starts brokers is their parent, and would have to wait for them.
        command = [
            sys.executable,
            kafka_local.__file__,
            "start",
            "--dir",
            str(self._directory),
            "--port",
            "last",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_MAX_S, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"brokers do not come back:\n{done.stderr}")

    def _end(self, number: int, how: signal.Signals) -> None:
        os.kill(kafka_cluster.running(self._cluster)[number], how)
        until(lambda: number not in kafka_cluster.running(self._cluster), f"broker {number} gone")

    @property
    def _cluster(self) -> Cluster:
        cluster = load(self._directory)
        assert cluster is not None, f"no cluster in {self._directory}"
        return cluster
