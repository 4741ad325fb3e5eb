"""The folder of a local Kafka cluster: what is in it, on which ports it is, how its nodes are configured.

A folder holds one cluster: `cluster.json` says who belongs together, `node-1`, `node-2`, ... hold configuration, log,
data and pid of one process each. Nothing in here starts or stops anything.
"""

import base64
import json
import random
import socket
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kafka_artifacts import KafkaUnavailable

HOST = "127.0.0.1"

LOG4J = """\
rootLogger.level = INFO
rootLogger.appenderRef.file.ref = FILE
appender.file.type = RollingFile
appender.file.name = FILE
appender.file.fileName = ${sys:streamdet.log}
appender.file.filePattern = ${sys:streamdet.log}.%i
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = [%d] %p %m (%c)%n
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 10MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 1
"""


@dataclass(frozen=True)
class Node:
    """One process of the cluster and the files it has."""

    directory: Path
    node_id: int
    port: int
    controller_port: int

    @property
    def properties(self) -> Path:
        """What Kafka is told, written anew at each start."""
        return self.directory / "server.properties"

    @property
    def data(self) -> Path:
        """Records and metadata."""
        return self.directory / "data"

    @property
    def log(self) -> Path:
        """Kafka's log, bounded by rolling over."""
        return self.directory / "server.log"

    @property
    def console(self) -> Path:
        """What the process wrote where no log takes it: the JVM's own words."""
        return self.directory / "console.log"

    @property
    def pid_file(self) -> Path:
        """The process's own note of its pid."""
        return self.directory / "pid"


@dataclass(frozen=True)
class Cluster:
    """What `cluster.json` in the folder says: who belongs together, and on which ports."""

    directory: Path
    cluster_id: str
    ports: tuple[int, ...]
    controller_ports: tuple[int, ...]

    @property
    def bootstrap_servers(self) -> str:
        """What a client needs to know."""
        return ",".join(f"{HOST}:{port}" for port in self.ports)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """One for each broker, numbered from 1."""
        pairs = zip(self.ports, self.controller_ports, strict=True)
        return tuple(
            Node(self.directory / f"node-{node_id}", node_id, port, controller_port)
            for node_id, (port, controller_port) in enumerate(pairs, start=1)
        )


def load(directory: Path) -> Cluster | None:
    """The cluster that was made in this folder, running or not."""
    directory = directory.resolve()
    try:
        fields = json.loads((directory / "cluster.json").read_text())
    except FileNotFoundError:
        return None
    return Cluster(directory, fields["cluster_id"], tuple(fields["ports"]), tuple(fields["controller_ports"]))


class PortTaken(KafkaUnavailable):
    """Somebody else listens there."""


def require_free(ports: Sequence[int]) -> None:
    """Refuse ports on which somebody listens, by name."""
    for port in ports:
        if not _is_free(port):
            raise PortTaken(
                f"port {port} on {HOST} is taken by another program: choose one with --port P, "
                "or let --port 0 find a free one"
            )


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As Java does it: without this, connections that ended a minute ago make a port look taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def free_ports(count: int, avoid: Sequence[int] = ()) -> tuple[int, ...]:
    """Random free ports below the range from which the kernel gives ports to outgoing connections.

    In that range a port could be lost to a connection while its broker is restarted, or a client that keeps trying to
    reach a stopped broker could connect to itself.
    """
    candidates = random.sample(range(15_000, 32_000), 200)
    ports = [port for port in candidates if port not in avoid and _is_free(port)][:count]
    if len(ports) < count:
        raise PortTaken(f"found no {count} free ports on {HOST} between 15000 and 32000")
    return tuple(ports)


def new_cluster_id() -> str:
    """A random id in the form that Kafka gives them."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass  # Kafka's own ids never begin with a dash either: a command line would take it for an option
    return text


def write_configuration(cluster: Cluster) -> None:
    """Write what the processes read; `cluster.json` last, and whole."""
    for node in cluster.nodes:
        node.directory.mkdir(exist_ok=True)
        node.properties.write_text(_properties(cluster, node))
        (node.directory / "log4j2.properties").write_text(LOG4J)
    fields = asdict(cluster)
    del fields["directory"]
    part = cluster.directory / "cluster.json.part"
    part.write_text(json.dumps(fields))
    part.replace(cluster.directory / "cluster.json")


def _properties(cluster: Cluster, node: Node) -> str:
    brokers = len(cluster.nodes)
    in_sync_min = 2 if brokers > 1 else 1
    voters = ",".join(f"{one.node_id}@{HOST}:{one.controller_port}" for one in cluster.nodes)
    settings = {
        "process.roles": "broker,controller",
        "node.id": node.node_id,
        "controller.quorum.voters": voters,
        "listeners": f"PLAINTEXT://{HOST}:{node.port},CONTROLLER://{HOST}:{node.controller_port}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{node.port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": node.data,
        # A topic that nobody created is a typing error, and must look like one.
        "auto.create.topics.enable": "false",
        "default.replication.factor": brokers,
        "min.insync.replicas": in_sync_min,
        "offsets.topic.replication.factor": brokers,
        "transaction.state.log.replication.factor": brokers,
        "transaction.state.log.min.isr": in_sync_min,
        "share.coordinator.state.topic.replication.factor": brokers,
        "share.coordinator.state.topic.min.isr": in_sync_min,
        # Sized for one machine: the defaults (50 partitions each) cost seconds at the first group and transaction.
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.num.partitions": 4,
        "share.coordinator.state.topic.num.partitions": 1,
        "group.initial.rebalance.delay.ms": 0,
        "num.network.threads": 2,
        "num.io.threads": 4,
        "background.threads": 2,
        # The default, 128 MiB taken at the start, is a quarter of this heap.
        "log.cleaner.dedupe.buffer.size": 8 * 1024 * 1024,
    }
    if brokers > 1:
        # A broker that is gone is noticed after 4 s instead of 9: there are several because somebody tries that out.
        settings |= {"broker.session.timeout.ms": 4_000, "broker.heartbeat.interval.ms": 1_000}
    return "".join(f"{name}={value}\n" for name, value in settings.items())
