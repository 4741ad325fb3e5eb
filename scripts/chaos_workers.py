"""Workers as processes that are killed, frozen, stopped, replaced, and left without disk space."""

import contextlib
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from chaos_brokers import until
from chaos_say import ChaosError, say

READY_MAX_S = 120.0
STOP_MAX_S = 60.0
UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


class Worker:
    """`streamdet run` with a log."""

    def __init__(self, name: str, folder: Path, settings: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(json.dumps(settings))  # JSON is YAML too
        self.name = name
        self.expected_to_end = False
        self._log = folder / f"{name}.log"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "streamdet", "run", "-c", f"{name}.yaml"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # a Ctrl-C in the terminal is for this program to handle
        )
        # By a pipe: a worker that may not write files can still say so.
        self._copying = threading.Thread(target=self._copy, daemon=True)
        self._copying.start()

    def _copy(self) -> None:
        assert self._process.stdout is not None
        said = self._process.stdout.fileno()
        with self._log.open("wb", buffering=0) as file:
            while chunk := os.read(said, 65_536):
                file.write(chunk)

    @property
    def log(self) -> str:
        """What it has said."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def ready(self) -> None:
        """Return when it judges."""
        until(
            lambda: "judging topics" in self.log or self.code is not None, f"{self.name} ready", READY_MAX_S
        )

    def signal(self, number: signal.Signals) -> None:
        """Nothing happens if it has ended."""
        if self.code is None:
            self._process.send_signal(number)

    def allow_files(self, *, allowed: bool) -> None:
        """Let it write files, or let each write fail as on a full disk."""
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(
                    self._process.pid, resource.RLIMIT_FSIZE, UNLIMITED if allowed else (0, UNLIMITED[1])
                )

    def stop(self) -> None:
        """In order."""
        self.expected_to_end = True
        self.signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_MAX_S)
        except subprocess.TimeoutExpired:
            raise ChaosError(f"{self.name} does not stop; its log is {self._log}") from None
        self._release()

    def kill(self) -> None:
        """As the kernel does it when memory is short."""
        self.expected_to_end = True
        self.signal(signal.SIGKILL)
        self._process.wait()
        self._release()

    def _release(self) -> None:
        self._copying.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def rss_peak_mb(self) -> float:
        """The most memory that it ever had resident; 0 if it has ended."""
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text()
        except OSError:
            return 0.0
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(found[1]) / 1024 if found else 0.0


class Fleet:
    """The workers of one group; those that end by themselves are noted and replaced."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.workers: list[Worker] = []
        self.rss_peak_mb = 0.0
        self.ended_by_themselves: list[str] = []
        self._folder, self._settings = folder, settings
        self._count = 0
        self._lock = threading.RLock()

    def start(self) -> Worker:
        """One more."""
        with self._lock:
            self._count += 1
            worker = Worker(f"worker-{self._count}", self._folder, self._settings)
            self.workers.append(worker)
        return worker

    def any(self, rng: random.Random) -> Worker:
        """One of those that run."""
        return rng.choice(self.workers)

    def kill(self, worker: Worker) -> None:
        """End it without warning."""
        self._forget(worker)
        worker.kill()

    def stop(self, worker: Worker) -> None:
        """End it in order."""
        self._forget(worker)
        worker.stop()

    def _forget(self, worker: Worker) -> None:
        with self._lock:
            worker.expected_to_end = True
            self.workers.remove(worker)

    def look(self) -> None:
        """Note memory; replace those that have ended by themselves."""
        with self._lock:
            workers = list(self.workers)
        for worker in workers:
            self.rss_peak_mb = max(self.rss_peak_mb, worker.rss_peak_mb())
            if worker.code is not None and not worker.expected_to_end:
                text = f"{worker.name} ended by itself with exit code {worker.code}"
                say(text)
                self.ended_by_themselves.append(text)
                with contextlib.suppress(ValueError):
                    self.kill(worker)
                self.start()

    def watch(self, end: threading.Event) -> None:
        """Look again and again."""
        while not end.wait(0.5):
            self.look()

    def stop_all(self) -> None:
        """In order, one by one."""
        for worker in list(self.workers):
            self.stop(worker)

    def kill_all(self) -> None:
        """Whatever state they are in."""
        for worker in list(self.workers):
            self.kill(worker)
