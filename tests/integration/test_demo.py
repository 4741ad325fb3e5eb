"""scripts/demo as a user meets it: what it prints, how it ends, and that nothing of it goes on running.

Most tests lend it the session's Kafka, which is also a way that users have; one lets it run its own.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from demo_streams import STREAMS, shuttle
from kafka_local import BOOTSTRAP_VARIABLE, Kafka

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parent.parent.parent
DEMO = ROOT / "scripts" / "demo"
PROMISED = {
    "events", "alerts", "precision", "recall", "roc_auc", "latency_ms_p50", "latency_ms_p99", "kafka",
}  # fmt: skip
SHORT = ("--events", "4000", "--rate", "2000")
LONG = ("--events", "40000", "--rate", "1000")
DONE_MAX_S = 150.0
GONE_MAX_S = 30.0


@pytest.fixture
def on_session_kafka(kafka: Kafka) -> dict[str, str]:
    """An environment in which the demo takes the session's Kafka."""
    return {**os.environ, BOOTSTRAP_VARIABLE: kafka.bootstrap_servers}


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Callable[..., "subprocess.CompletedProcess[str]"]]:
    """Runs the demo to its end, writing into the test's folder."""

    def run(*args: str, env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
        command = [str(DEMO), *args, "--out", str(tmp_path / "out")]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=DONE_MAX_S, check=False, env=env
        )

    yield run
    run("--stop", env=dict(os.environ))


def running_in(folder: Path) -> list[int]:
    """Processes that have the folder, or Kafka's folder that belongs to it, in their command line."""
    listed = subprocess.run(
        ["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True, check=True
    ).stdout
    kafka = ROOT / ".kafka" / "demo"
    return [
        int(line.split(maxsplit=1)[0])
        for line in listed.splitlines()[1:]
        if str(folder) in line or f"{kafka}/{folder.name}-" in line
    ]


def until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + GONE_MAX_S
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.05)


def read_until(stream: IO[str], text: str) -> str:
    """Lines up to the first that has the text in it."""
    lines = []
    for line in stream:
        lines.append(line)
        if text in line:
            return "".join(lines)
    pytest.fail(f"ended without {text!r}:\n{''.join(lines)}")


def test_the_summary_is_the_only_thing_on_standard_output(
    demo: Callable[..., "subprocess.CompletedProcess[str]"], on_session_kafka: dict[str, str], tmp_path: Path
) -> None:
    done = demo(*SHORT, "--json", env=on_session_kafka)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)

    assert summary.keys() >= PROMISED
    assert summary["events"] == 4000
    assert summary["kafka"] == BOOTSTRAP_VARIABLE
    assert summary["alerts"] == done.stderr.count("x limit") > 0
    assert summary["roc_auc"] > 0.97
    assert 0 < summary["latency_ms_p50"] <= summary["latency_ms_p99"]
    assert "every tenth stays" in done.stderr
    assert Path(summary["picture"]).read_bytes()[:4] == b"\x89PNG"
    assert "<html" in Path(summary["report"]).read_text(encoding="utf-8")
    assert not running_in(tmp_path / "out")


def test_after_ctrl_c_nothing_goes_on_running(tmp_path: Path) -> None:
    """With a Kafka of its own, and while the stream runs."""
    out = tmp_path / f"interrupted-{os.getpid()}"
    env = {name: value for name, value in os.environ.items() if name != BOOTSTRAP_VARIABLE}
    command = [str(DEMO), *LONG, "--json", "--out", str(out)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        try:
            read_until(demo.stderr, "x limit")
            demo.send_signal(signal.SIGINT)
            _, rest = demo.communicate(timeout=GONE_MAX_S)
        finally:
            demo.terminate()

    assert demo.returncode == 128 + signal.SIGINT, rest
    assert "Traceback" not in rest
    until(lambda: not running_in(out), "still running after Ctrl-C")


def test_a_worker_that_dies_is_told_with_the_end_of_its_log(
    on_session_kafka: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [str(DEMO), *LONG, "--out", str(out)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=on_session_kafka
    ) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        try:
            read_until(demo.stdout, "x limit")
            worker = _worker_of(out)
            os.kill(worker, signal.SIGKILL)
            _, told = demo.communicate(timeout=GONE_MAX_S)
        finally:
            demo.terminate()

    assert demo.returncode == 1
    assert f"exit code {-signal.SIGKILL}" in told
    assert str(out / "worker.log") in told
    assert "Traceback" not in told
    assert not running_in(out)


def test_keep_leaves_the_worker_running_until_stop(
    demo: Callable[..., "subprocess.CompletedProcess[str]"], on_session_kafka: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    kept = demo(*SHORT, "--json", "--keep", env=on_session_kafka)
    assert kept.returncode == 0, kept.stderr
    assert f"scripts/demo --stop --out {out}" in kept.stderr
    assert _worker_of(out)

    again = demo(*SHORT, env=on_session_kafka)
    assert again.returncode == 1
    assert "an earlier demo still runs" in again.stderr

    streamdet = Path(sys.executable).with_name("streamdet")
    alerts = subprocess.run(
        [streamdet, "alerts", "-c", out / "streamdet.yaml", "--since", "earliest"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert len(alerts.stdout.splitlines()) == json.loads(kept.stdout)["alerts"]

    assert demo("--stop", env=on_session_kafka).returncode == 0
    assert not running_in(out)


def test_without_java_and_docker_the_recording_is_replayed(tmp_path: Path) -> None:
    """scripts/_setup needs a PATH; what follows it must get on without one."""
    hidden = {"JAVA_HOME", BOOTSTRAP_VARIABLE}
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    env |= {"PATH": str(tmp_path), "DOCKER_HOST": f"unix://{tmp_path}/no-docker"}
    command = [
        sys.executable,
        str(DEMO.with_name("demo_main.py")),
        *SHORT,
        "--json",
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DONE_MAX_S, check=False, env=env)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)

    told = [line for line in done.stderr.splitlines() if "without a broker" in line]
    assert len(told) == 1
    assert "Java" in told[0]
    assert summary.keys() >= PROMISED
    assert summary["kafka"] is summary["latency_ms_p50"] is summary["latency_ms_p99"] is None
    assert summary["events"] == 4000
    assert summary["alerts"] > 0


@pytest.mark.parametrize("arguments", [("--rate", "0"), ("--events", "0"), ("--stream", "unheard-of")])
def test_bad_use_is_told_before_anything_starts(
    demo: Callable[..., "subprocess.CompletedProcess[str]"], arguments: tuple[str, ...], tmp_path: Path
) -> None:
    done = demo(*arguments, env=dict(os.environ))

    assert done.returncode == 2
    assert arguments[0] in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_shuttle_stream_is_what_its_summary_says() -> None:
    stream = shuttle()

    assert (len(stream), stream.anomalies) == (45_937, 351)
    assert stream.labels is not None
    # The file begins with an anomalous row, which goes: only the tenth of them stays.
    first = {"f1": 53, "f2": 0, "f3": 82, "f4": 0, "f5": 52, "f6": -5, "f7": 29, "f8": 30, "f9": 2}
    assert json.loads(stream.values[0]) == first


@pytest.mark.parametrize("name", sorted(STREAMS))
def test_no_label_is_among_what_is_published(name: str) -> None:
    stream = STREAMS[name]()
    fields = {field for value in stream.values[:100] for field in json.loads(value)}

    assert not fields & {"label", "anomaly", "scenario", "fraud"}
    assert len(stream.values) == len(stream.keys)
    assert stream.labels is None or np.shape(stream.labels) == (len(stream),)


def _worker_of(out: Path) -> int:
    """The one worker whose configuration lies in the folder."""
    (pid,) = running_in(out / "streamdet.yaml")
    return pid
