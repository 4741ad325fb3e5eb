"""scripts/kafka as a user meets it: what it prints, how it exits, and what it leaves behind.

Every test runs the script itself in a folder and on ports of its own, so that nothing else on the machine is touched.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kafka_broker import OwnKafka
from kafka_local import Kafka, running_kafka

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "scripts" / "kafka"
GONE_MAX_S = 30.0

Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Script]:
    """Runs scripts/kafka on a folder of this test, which is empty of processes afterwards."""

    def run(*args: str, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
        command = [str(SCRIPT), *args, "--dir", str(tmp_path / "run")]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=150, check=False, env=env, cwd=tmp_path
        )

    yield run
    run("stop")


def bootstrap_of(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode == 0, done.stderr
    name, _, servers = done.stdout.strip().partition("=")
    assert name == "bootstrap.servers", done.stdout
    return servers


def pids_of(status: "subprocess.CompletedProcess[str]") -> list[int]:
    fields = dict(line.split("=", 1) for line in status.stdout.splitlines())
    return [int(pid) for pid in fields["pids"].split(",")]


def listens(server: str) -> bool:
    host, _, port = server.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def test_kafka_starts_once_and_stops_for_good(script: Script) -> None:
    servers = bootstrap_of(script("start", "--port", "0"))
    assert listens(servers)

    again = script("start", "--port", "0")
    assert bootstrap_of(again) == servers
    assert "already runs" in again.stderr

    status = script("status")
    assert status.returncode == 0
    assert status.stdout.splitlines()[0] == f"bootstrap.servers={servers}"
    assert len(pids_of(status)) == 1

    assert script("stop").returncode == 0
    assert not listens(servers)
    assert script("status").returncode == 1
    assert script("stop").returncode == 0


def test_start_names_the_taken_port_and_the_way_out(script: Script) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused = script("start", "--port", str(port))
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert len(refused.stderr.splitlines()) == 1
    assert f"port {port}" in refused.stderr
    assert "--port" in refused.stderr


def test_start_says_what_to_install_where_there_is_no_java(script: Script, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "env", "dirname", "cat", "cksum"):
        found = shutil.which(name)
        assert found is not None
        (tools / name).symlink_to(found)
    refused = script("start", "--port", "0", env={"PATH": str(tools)})
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
    assert "Java 17 or newer" in refused.stderr
    assert "JAVA_HOME" in refused.stderr


def test_start_says_what_to_install_where_java_is_too_old(script: Script, tmp_path: Path) -> None:
    java = tmp_path / "jdk" / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    java.chmod(0o755)
    path = f"{java.parent}:{os.environ['PATH']}"
    refused = script("start", "--port", "0", env={"PATH": path, "JAVA_HOME": str(java.parent.parent)})
    assert refused.returncode == 1
    assert "Java 11" in refused.stderr


def test_a_start_that_fails_shows_the_log_and_leaves_no_process(script: Script, tmp_path: Path) -> None:
    data = tmp_path / "run" / "node-1" / "data"
    data.mkdir(parents=True)
    (data / "meta.properties").write_text("damaged\n")
    failed = script("start", "--port", "0")
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert "broker 1 ended while it started" in failed.stderr
    assert "meta.properties" in failed.stderr or "node ID not found" in failed.stderr
    assert script("status").returncode == 1


def test_stop_spares_a_process_that_took_over_the_pid(script: Script, tmp_path: Path) -> None:
    bootstrap_of(script("start", "--port", "0"))
    [pid] = pids_of(script("status"))
    os.kill(pid, signal.SIGKILL)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        (tmp_path / "run" / "node-1" / "pid").write_text(f"{bystander.pid}\n")
        assert script("status").returncode == 1
        assert script("stop").returncode == 0
        assert bystander.poll() is None
        assert bystander.stdin is not None
        bystander.communicate(b"\n", timeout=10)
    assert bystander.returncode == 0


@pytest.mark.parametrize("own_kafka", [3], indirect=True)
def test_three_brokers_form_a_cluster_that_outlives_one_of_them(own_kafka: OwnKafka) -> None:
    from kafka import KafkaProducer
    from kafka.admin import KafkaAdminClient

    servers = own_kafka.bootstrap_servers.split(",")
    for server in servers:
        admin = KafkaAdminClient(bootstrap_servers=server)
        assert len(admin.describe_cluster()["brokers"]) == 3
        admin.close()
    topic = own_kafka.create_topic("replicated", partitions=3, replication=3)

    own_kafka.kill(broker=2)
    producer = KafkaProducer(bootstrap_servers=servers)
    futures = [producer.send(topic, b"x", partition=partition) for partition in range(3)]
    for future in futures:
        future.get(timeout=60)
    producer.close()

    own_kafka.start()
    assert all(listens(server) for server in servers)


def test_a_private_kafka_comes_back_on_its_port_with_its_records(own_kafka: OwnKafka) -> None:
    from kafka import KafkaConsumer, KafkaProducer

    topic = own_kafka.create_topic("kept")
    producer = KafkaProducer(bootstrap_servers=own_kafka.bootstrap_servers)
    producer.send(topic, b"before").get(timeout=30)
    producer.close()

    own_kafka.stop()
    assert not listens(own_kafka.bootstrap_servers)
    own_kafka.start()

    consumer = KafkaConsumer(
        topic, bootstrap_servers=own_kafka.bootstrap_servers, auto_offset_reset="earliest"
    )
    [records] = consumer.poll(timeout_ms=30_000).values()
    consumer.close()
    assert [record.value for record in records] == [b"before"]


def test_running_kafka_is_gone_after_its_user_was_killed(tmp_path: Path) -> None:
    user = (
        "import os, signal, sys; from pathlib import Path; from kafka_local import Kafka, running_kafka\n"
        "with running_kafka(Path(sys.argv[1]), private=True) as kafka:\n"
        "    print(kafka.bootstrap_servers, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", user, tmp_path / "kafka"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    server = done.stdout.strip()
    deadline_s = time.monotonic() + GONE_MAX_S
    while listens(server):
        assert time.monotonic() < deadline_s, "Kafka outlived its user"
        time.sleep(0.05)


def test_running_kafka_takes_the_given_cluster_first(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STREAMDET_TEST_BOOTSTRAP", kafka.bootstrap_servers)
    with running_kafka(tmp_path / "unused") as given:
        assert given.bootstrap_servers == kafka.bootstrap_servers
        assert given.kind == "STREAMDET_TEST_BOOTSTRAP"
    assert not (tmp_path / "unused").exists()
