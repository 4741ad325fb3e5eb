"""The folder of a demo: what lies in it, who may use it, and what `--keep` left running there."""

import contextlib
import fcntl
import os
import shutil
import signal
import zlib
from collections.abc import Iterator
from pathlib import Path

import kafka_cluster
import yaml
from demo_kafka import CLOCK, STOP_MAX_S, DemoError
from demo_streams import Stream
from kafka_artifacts import ROOT
from kafka_layout import load

from streamdet.evaluate.report import PAGE, PICTURE, SUMMARY

WAIT_S = 0.1


class Place:
    """Paths of one demo, all in `out` but for Kafka's own files."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.config = out / "streamdet.yaml"
        self.log = out / "worker.log"
        self.scores = out / "scores.csv"
        self.state = out / "state"
        self.recording = out / "stream.jsonl"
        self.alerts = out / "alerts.jsonl"
        self._kept = out / "worker.pid"
        # One folder for each `out`, so that two demos are never in each other's way.
        self.kafka = ROOT / ".kafka" / "demo" / f"{out.name}-{zlib.crc32(bytes(out)):08x}"

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Hold the place for this demo; the kernel lets go of it however the demo ends.

        Raises:
            DemoError: another demo holds it, or one left its worker and Kafka running there.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        self.kafka.parent.mkdir(parents=True, exist_ok=True)
        with (self.out / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DemoError(
                    f"another demo writes to {self.out}: wait for it, or choose --out DIR"
                ) from None
            cluster = load(self.kafka)
            if self._kept_pid() is not None or (cluster is not None and kafka_cluster.running(cluster)):
                raise DemoError(f"an earlier demo still runs (--keep): scripts/demo --stop --out {self.out}")
            yield

    def clear(self) -> None:
        """Remove what an earlier demo left, and nothing else: `--out` may name any folder."""
        for folder in (self.kafka, self.state):
            shutil.rmtree(folder, ignore_errors=True)
        reported = [self.out / name for name in (PAGE, PICTURE, SUMMARY)]
        for file in [self.config, self.log, self.scores, self.recording, self.alerts, self._kept, *reported]:
            file.unlink(missing_ok=True)

    def configure(self, stream: Stream, topic: str, bootstrap_servers: str | None) -> None:
        """Write the worker's configuration."""
        settings = {section: dict(values) for section, values in stream.settings.items()}
        settings["input"] = {"topics": [topic], "group_id": topic, **settings["input"]}
        settings["checkpoint"] = {"url": str(self.state)}
        if bootstrap_servers is not None:
            settings = {"kafka": {"bootstrap_servers": bootstrap_servers}, **settings}
        text = yaml.safe_dump(settings, sort_keys=False)
        self.config.write_text(f"# Written by scripts/demo. {stream.title}.\n{text}", encoding="utf-8")

    def note_kept(self, pid: int) -> None:
        """Remember the worker that goes on running."""
        self._kept.write_text(f"{pid}\n")

    def stop_kept(self) -> None:
        """End what `--keep` left running, the worker first.

        Raises:
            DemoError: the worker does not end.
        """
        pid = self._kept_pid()
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            deadline_s = CLOCK.monotonic_s() + STOP_MAX_S
            while self._kept_pid() is not None:
                if CLOCK.monotonic_s() > deadline_s:
                    raise DemoError(f"the worker (process {pid}) does not end; see {self.log}")
                CLOCK.sleep_s(WAIT_S)
        self._kept.unlink(missing_ok=True)
        kafka_cluster.stop(self.kafka)
        shutil.rmtree(self.kafka, ignore_errors=True)

    def _kept_pid(self) -> int | None:
        """The worker left running; None if there is none. A pid alone proves nothing: numbers are used again."""
        try:
            pid = int(self._kept.read_text())
            os.kill(pid, 0)
            command = Path(f"/proc/{pid}/cmdline")
            ours = (
                not command.parent.parent.joinpath("self").exists()
                or bytes(self.config) in command.read_bytes()
            )
        except (FileNotFoundError, ProcessLookupError, PermissionError, ValueError):
            return None
        return pid if ours else None
