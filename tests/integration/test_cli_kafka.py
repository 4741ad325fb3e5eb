"""Commands on a real broker, as processes of their own: exit codes, messages, signals."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from kafka import KafkaProducer
from kafka_broker import MakeTopic
from kafka_local import Kafka

from streamdet.source.parquet import recorded

pytestmark = pytest.mark.integration

# Importing torch takes seconds on a machine that is busy.
WITHIN_S = 60.0


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """What standard error says last, which is no trace."""
        assert "Traceback" not in self.err
        return self.err.splitlines()[-1]


class Command:
    """A `streamdet` process."""

    def __init__(self, *args: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "streamdet", *map(str, args)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )

    def end(self) -> Result:
        """Wait for it to end by itself."""
        try:
            out, err = self._process.communicate(timeout=WITHIN_S)
        finally:
            self._process.kill()
            self._process.wait()
        return Result(self._process.returncode, out, err)

    def interrupt_when(self, ready: Callable[[], bool]) -> Result:
        """Ctrl-C once something is so."""
        end_s = time.monotonic() + WITHIN_S
        while not ready():
            assert self._process.poll() is None, self.end()
            assert time.monotonic() < end_s, "not ready in time"
            time.sleep(0.02)  # another process gets on: there is nothing to wait on
        self._process.send_signal(signal.SIGINT)
        return self.end()


def call(*args: object) -> Result:
    return Command(*args).end()


def write(kafka: Kafka, topic: str, n: int) -> None:
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap_servers.split(","), linger_ms=5)
    for i in range(n):
        producer.send(topic, b'{"ts": %d, "device": "m-%d", "x": %d}' % (1_700_000_000 + i, i % 3, i % 7))
    producer.flush()
    producer.close()


@pytest.fixture
def settings(kafka: Kafka, tmp_path: Path) -> Callable[[str], Path]:
    """Writes a configuration with this `input` section."""

    def made(section: str) -> Path:
        path = tmp_path / "streamdet.yaml"
        path.write_text(
            f"kafka: {{bootstrap_servers: '{kafka.bootstrap_servers}'}}\ninput: {section}\n"
            f"checkpoint: {{url: '{tmp_path / 'state'}'}}\nmodel: {{device: cpu}}\n"
        )
        return path

    return made


Written = Callable[[str], Path]


def test_run_refuses_a_topic_that_does_not_exist(settings: Written) -> None:
    name = f"nowhere-{uuid.uuid4().hex[:8]}"
    result = call("run", "-c", settings(f"{{topics: [{name}]}}"))
    assert result.code == 1
    assert result.sentence.startswith(f"streamdet: topic '{name}' does not exist on Kafka at ")
    assert f"--create --topic {name}" in result.sentence


def test_run_refuses_an_unknown_key(settings: Written) -> None:
    result = call("run", "-c", settings("{topics: [a], topic: b}"))
    assert result.code == 2
    assert "input.topic: unknown key; known here: topics" in result.sentence


def test_run_refuses_to_read_nothing(settings: Written) -> None:
    result = call("run", "-c", settings("{topics: []}"))
    assert result.code == 2
    assert result.sentence.endswith("input.topics is empty: name at least one topic to read")


def test_check_asks_kafka_and_says_every_topic_that_is_missing(
    make_topic: MakeTopic, settings: Written
) -> None:
    there = make_topic(partitions=3)
    absent = [f"absent-{uuid.uuid4().hex[:8]}" for _ in range(2)]
    result = call("check", "-c", settings(f"{{topics: [{there}, {', '.join(absent)}]}}"))
    assert result.code == 2
    assert [line.split("'")[1] for line in result.err.splitlines()] == absent
    assert f"topic {there}.alerts: not there yet, will be created" in result.out
    assert "on 3 partitions, all read" in result.out


def test_what_init_writes_for_a_topic_passes_check(kafka: Kafka, topic: str, tmp_path: Path) -> None:
    write(kafka, topic, 200)
    path = tmp_path / "made.yaml"
    result = call("init", "--topic", topic, "-b", kafka.bootstrap_servers, "-o", path)
    assert result.code == 0, result.err
    text = path.read_text()
    assert f"topics: [{topic}]" in text
    assert "timestamp: ts" in text
    assert "- x  # 0 to 6" in text
    assert "#entity: device" in text
    result = call("check", "-c", path)
    assert result.code == 0, result.err
    assert "is fine" in result.out


def test_init_says_that_a_topic_is_empty(kafka: Kafka, topic: str) -> None:
    result = call("init", "--topic", topic, "-b", kafka.bootstrap_servers)
    assert result.code == 2
    assert "holds nothing to look at" in result.sentence


def test_a_recording_that_is_interrupted_is_whole(kafka: Kafka, topic: str, tmp_path: Path) -> None:
    write(kafka, topic, 70_000)  # more than the group of rows that is written first
    output = tmp_path / "out" / "r.recording"
    output.parent.mkdir()
    command = Command("record", "--topic", topic, "-o", output, "--follow", "-b", kafka.bootstrap_servers)
    result = command.interrupt_when(
        lambda: any(part.stat().st_size > 1_000 for part in output.parent.glob(".*.partial"))
    )
    assert result.code == 0, result.err
    records = list(recorded(output))
    assert 65_536 <= len(records) <= 70_000
    assert [r.offset for r in records] == list(range(len(records)))
    assert result.sentence == f"{len(records)} records of {topic} in {output}"
    assert list(output.parent.iterdir()) == [output]


def test_publish_and_record_report_what_they_did(kafka: Kafka, topic: str, tmp_path: Path) -> None:
    rows, output = tmp_path / "rows.csv", tmp_path / "r"
    rows.write_text("ts,x\n" + "".join(f"{1_700_000_000 + i},{i}\n" for i in range(25)))
    where = ("--topic", topic, "-b", kafka.bootstrap_servers)
    published = call("publish", rows, *where)
    assert (published.code, published.out) == (0, "")
    assert published.err == f"25 records published to {topic}\n"  # no display, as this is no terminal
    done = call("record", "-o", output, "--count", 10, *where)
    assert (done.code, done.out) == (0, "")
    assert done.err == f"10 records of {topic} in {output}\n"


def test_publishing_that_is_interrupted_delivers_what_it_says(
    kafka: Kafka, topic: str, tmp_path: Path
) -> None:
    rows, output = tmp_path / "rows.csv", tmp_path / "r"
    rows.write_text("x\n" + "".join(f"{i}\n" for i in range(1_000)))
    where = ("--topic", topic, "-b", kafka.bootstrap_servers)
    command = Command("publish", rows, "--speed", "50", *where)
    recorder = Command("record", "-o", output, "--follow", "--count", 3, *where)
    result = command.interrupt_when(output.exists)
    assert recorder.end().code == 0
    assert result.code == 1
    published = int(result.sentence.split()[0])
    assert 3 <= published < 1_000
    assert call("record", "-o", tmp_path / "all", *where).code == 0
    values = [r.value for r in recorded(tmp_path / "all")]
    assert values == [b'{"x":%d}' % i for i in range(published)]


@pytest.mark.parametrize("command", ["publish", "record"])
def test_a_missing_topic_is_a_sentence(kafka: Kafka, tmp_path: Path, command: str) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("x\n1\n")
    what = [rows] if command == "publish" else ["-o", tmp_path / "r"]
    result = call(command, *what, "--topic", "nowhere-at-all", "-b", kafka.bootstrap_servers)
    assert result.code == 1
    assert result.sentence.startswith("streamdet: topic 'nowhere-at-all' does not exist")
