"""A real Kafka on this machine, for demo, tests and trying things out: `scripts/kafka`, and `running_kafka` for Python.

`running_kafka` takes the first that it can get: the cluster that STREAMDET_TEST_BOOTSTRAP names, a container where a
Docker engine answers, JVM processes of the Kafka that deploy/kafka/pom.xml pins. It guarantees that the Kafka it
started is gone when the caller is, however the caller ends (a SIGKILL too): a keeper process of its own session waits
for the caller's end of a pipe to close. It does not guarantee that of `scripts/kafka start`, whose Kafka stays until
`stop`.

This file needs nothing but the standard library, kafka-python, and testcontainers where Docker is used.
"""

import argparse
import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import kafka_cluster
from kafka_artifacts import ROOT, KafkaUnavailable, docker_answers, find_java, kafka_libs
from kafka_layout import load

DEFAULT_DIR = ROOT / ".kafka" / "run"
DEFAULT_PORT = 9092
PORT_MAX = 65_533  # the last that leaves room for three brokers
BOOTSTRAP_VARIABLE = "STREAMDET_TEST_BOOTSTRAP"


@dataclass(frozen=True)
class Kafka:
    """A Kafka that answers, and who runs it."""

    bootstrap_servers: str
    kind: str  # 'scripts/kafka', 'testcontainers' or 'STREAMDET_TEST_BOOTSTRAP'


@contextlib.contextmanager
def running_kafka(directory: Path, brokers: int = 1, *, private: bool = False) -> Iterator[Kafka]:
    """A Kafka for the length of a `with` block; `directory` is where JVM processes keep their files.

    `private` asks for JVM processes in `directory` whatever else there is, for callers that stop brokers; so do several
    brokers.

    Raises:
        KafkaUnavailable: no Kafka can be had; the message says why and what to do.
    """
    private = private or brokers > 1
    given = os.environ.get(BOOTSTRAP_VARIABLE)
    if given and not private:
        if not kafka_cluster.answers(given):
            raise KafkaUnavailable(f"no Kafka answers at {given}, which {BOOTSTRAP_VARIABLE} names")
        yield Kafka(given, BOOTSTRAP_VARIABLE)
        return
    command = [
        sys.executable,
        __file__,
        "hold",
        "--dir",
        str(directory),
        "--brokers",
        str(brokers),
        "--port",
        "0",
    ]
    command += ["--private"] if private else []
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as keeper:
        # Leaving the block closes the pipe, which is what the keeper waits for, and then waits for the keeper.
        assert keeper.stdout is not None
        first, second = keeper.stdout.readline(), keeper.stdout.readline()
        if not second:
            raise KafkaUnavailable(
                first.removeprefix("error=").strip() or "Kafka's keeper ended without a word"
            )
        yield Kafka(second.removeprefix("bootstrap.servers=").strip(), first.removeprefix("kind=").strip())


def hold(directory: Path, brokers: int, port: int | None, *, private: bool) -> None:
    """Run a Kafka until standard input closes. On standard output: kind and bootstrap.servers, or the error."""
    try:
        with contextlib.ExitStack() as stack:
            if not private and brokers == 1 and docker_answers():
                kind, bootstrap_servers = "testcontainers", stack.enter_context(_container())
            else:
                # Also after a failed start, and for what others started meanwhile in this folder.
                stack.callback(kafka_cluster.stop, directory)
                kind, bootstrap_servers = (
                    "scripts/kafka",
                    kafka_cluster.start(directory, brokers, port).bootstrap_servers,
                )
            print(f"kind={kind}\nbootstrap.servers={bootstrap_servers}", flush=True)
            sys.stdin.read()
    except KafkaUnavailable as error:
        print(error, file=sys.stderr)
        print(f"error={str(error).splitlines()[0]}", flush=True)
        raise SystemExit(1) from error


@contextlib.contextmanager
def _container() -> Iterator[str]:
    from testcontainers.community.kafka import KafkaContainer

    container = KafkaContainer().with_kraft()
    # Like the JVM processes' configuration where it matters to a client; one broker can't replicate to three.
    container.with_env("KAFKA_AUTO_CREATE_TOPICS_ENABLE", "false")
    container.with_env("KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR", "1")
    container.with_env("KAFKA_TRANSACTION_STATE_LOG_MIN_ISR", "1")
    container.with_env("KAFKA_TRANSACTION_STATE_LOG_NUM_PARTITIONS", "4")
    with container:
        yield container.get_bootstrap_server()


def _start(args: argparse.Namespace) -> int:
    print(f"bootstrap.servers={kafka_cluster.start(args.dir, args.brokers, args.port).bootstrap_servers}")
    return 0


def _stop(args: argparse.Namespace) -> int:
    kafka_cluster.stop(args.dir)
    return 0


def _status(args: argparse.Namespace) -> int:
    cluster = load(args.dir)
    pids = kafka_cluster.running(cluster) if cluster else {}
    if cluster is None or not pids:
        print(f"Kafka is not running in {args.dir}.", file=sys.stderr)
        return 1
    print(f"bootstrap.servers={cluster.bootstrap_servers}")
    print(f"pids={','.join(str(pid) for pid in pids.values())}")
    missing = [str(node.node_id) for node in cluster.nodes if node.node_id not in pids]
    if missing:
        print(f"Not running: broker {', '.join(missing)}; `start` brings it back.", file=sys.stderr)
    return 1 if missing else 0


def _fetch(_: argparse.Namespace) -> int:
    find_java()
    kafka_libs()
    kafka_cluster.archive_classes()
    return 0


def _hold(args: argparse.Namespace) -> int:
    hold(args.dir, args.brokers or 1, args.port, private=args.private)
    return 0


def _port(text: str) -> int | None:
    if text == "last":
        return None
    if not text.isdecimal() or not 0 <= int(text) <= PORT_MAX:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a port from 0 to {PORT_MAX} nor 'last'")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/kafka",
        description="Run a real Apache Kafka (KRaft) on 127.0.0.1: for trying things out, demo and tests.",
        epilog="Exit codes: 0 done (status: running), 1 failed (status: not running), 2 bad use.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text)
        one.set_defaults(run=run)
        return one

    start = command("start", _start, "start it and print bootstrap.servers=... when every broker answers")
    stop = command("stop", _stop, "stop it; the data stays, and the next start goes on with it")
    status = command("status", _status, "print bootstrap.servers=... and pids=..., if it runs")
    keep = command("hold", _hold, "start it, keep it until standard input closes, then stop it")
    command("fetch", _fetch, "only download it and prepare its classes, so that each start is quick")
    for one in (start, stop, status, keep):
        one.add_argument(
            "--dir",
            type=Path,
            default=DEFAULT_DIR,
            help="where its files are (default: .kafka/run in the repository)",
        )
    for one in (start, keep):
        one.add_argument(
            "--brokers", type=int, choices=(1, 3), help="how many (default: 1, or what --dir holds)"
        )
        one.add_argument(
            "--port",
            type=_port,
            default=DEFAULT_PORT,
            metavar="P",
            help="port of the first broker, the others follow; 0 finds free ones, "
            f"'last' takes those of the last start (default: {DEFAULT_PORT})",
        )
    keep.add_argument(
        "--private", action="store_true", help="JVM processes, also where a Docker engine answers"
    )
    return parser


def _end(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    """The command line."""
    args = _parser().parse_args()
    # As an exception, so that a start that is cut off takes its processes with it.
    signal.signal(signal.SIGTERM, _end)
    # A broker that is still starting refuses connections: kafka-python warns of each, and there is nothing to warn of.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    try:
        return int(args.run(args))
    except KafkaUnavailable as error:
        print(f"scripts/kafka: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
