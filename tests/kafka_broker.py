"""A real Kafka for tests: one for the whole session, topics on it, and a private one that a test may take away.

Where no Kafka can be had, what needs it fails with the reason. It never skips: a green run means that the promises
about Kafka were tested.
"""

import contextlib
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import kafka_local
import pytest
from chaos_brokers import Brokers
from kafka_artifacts import KafkaUnavailable
from kafka_local import Kafka, running_kafka

__all__ = ["MakeTopic", "OwnKafka", "kafka", "kafka_admin", "make_topic", "own_kafka", "topic"]

SCRIPT_MAX_S = 150.0  # above the bound that the script itself keeps


@contextlib.contextmanager
def _kafka_or_failure(directory: Path, brokers: int, *, private: bool) -> Iterator[Kafka]:
    with contextlib.ExitStack() as stack:
        reason: KafkaUnavailable | None = None
        try:
            kafka = stack.enter_context(running_kafka(directory, brokers, private=private))
        except KafkaUnavailable as error:
            reason = error
        if reason is not None:
            pytest.fail(f"This test needs a Kafka and can get none: {reason}", pytrace=False)
        yield kafka
    # Pytest keeps the temporary folders of three sessions; a broker's files in them help nobody.
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """The session's Kafka: STREAMDET_TEST_BOOTSTRAP, else a container, else JVM processes."""
    with _kafka_or_failure(tmp_path_factory.mktemp("kafka"), brokers=1, private=False) as one:
        yield one


@pytest.fixture(scope="session")
def kafka_admin(kafka: Kafka) -> Iterator[Any]:
    """A KafkaAdminClient of the session's Kafka."""
    from kafka.admin import KafkaAdminClient

    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers.split(","))
    yield admin
    admin.close()


class MakeTopic(Protocol):
    """Creates a topic of its own for a test and returns its name."""

    def __call__(self, partitions: int = 1, config: dict[str, str] | None = None) -> str: ...


@pytest.fixture
def make_topic(kafka_admin: Any, request: pytest.FixtureRequest) -> Iterator[MakeTopic]:
    """A factory of topics; they are deleted after the test, since the cluster may be somebody's own."""
    names: list[str] = []
    stem = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name)[:80].strip("-")

    def make(partitions: int = 1, config: dict[str, str] | None = None) -> str:
        names.append(f"{stem}-{uuid.uuid4().hex[:8]}")
        create_topic(kafka_admin, names[-1], partitions, config)
        return names[-1]

    yield make
    if names:
        kafka_admin.delete_topics(names)


@pytest.fixture
def topic(make_topic: MakeTopic) -> str:
    """A topic of one partition."""
    return make_topic()


def create_topic(
    admin: Any, name: str, partitions: int = 1, config: dict[str, str] | None = None, replication: int = 1
) -> None:
    """Create a topic and return when brokers know of it.

    It keeps its records for good. Those of the tests have times of long ago, and every five minutes a broker would
    delete what it was just sent, before anybody has read it.
    """
    from kafka.admin import NewTopic

    kept = {"retention.ms": "-1", **(config or {})}
    topic = NewTopic(name, num_partitions=partitions, replication_factor=replication, topic_configs=kept)
    admin.create_topics([topic], wait_for_metadata=True)


class OwnKafka:
    """A private Kafka that the test stops, kills and brings back on the same ports with the same data."""

    def __init__(self, directory: Path, bootstrap_servers: str) -> None:
        self.bootstrap_servers = bootstrap_servers
        self.brokers = Brokers(directory)  # one by one: to kill, stop, pause
        self._directory = directory

    def stop(self) -> None:
        """Take it away in order."""
        self._script("stop", "--dir", str(self._directory))

    def start(self) -> None:
        """Bring back what doesn't run, and return when it is ready."""
        self.brokers.start()

    def create_topic(self, name: str, partitions: int = 1, replication: int = 1) -> str:
        """Create a topic on it and return its name."""
        from kafka.admin import KafkaAdminClient

        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap_servers.split(","))
        try:
            create_topic(admin, name, partitions, replication=replication)
        finally:
            admin.close()
        return name

    def kill(self, broker: int | None = None) -> None:
        """End one broker (1, 2, ...), or all, by SIGKILL, and return when it is gone."""
        for number in self.brokers.serving if broker is None else [broker]:
            self.brokers.kill(number)

    def _script(self, *args: str) -> None:
        command = [sys.executable, kafka_local.__file__, *args]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SCRIPT_MAX_S, check=False)
        assert done.returncode == 0, f"scripts/kafka {' '.join(args)} failed:\n{done.stderr}"


@pytest.fixture
def own_kafka(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[OwnKafka]:
    """A private Kafka; `@pytest.mark.parametrize("own_kafka", [3], indirect=True)` gives three brokers."""
    brokers: int = getattr(request, "param", 1)
    directory = tmp_path / "own-kafka"
    with _kafka_or_failure(directory, brokers, private=True) as one:
        own = OwnKafka(directory, one.bootstrap_servers)
        yield own
        own.kill()  # in order, the last of three would wait for the others until it is killed after all
