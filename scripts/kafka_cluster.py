"""One local Kafka cluster: its folder, its processes, its life.

A folder holds one cluster of one or three nodes, each a broker and a controller in one JVM process (KRaft), on
127.0.0.1. Everything of it is in the folder: configuration, log, data and a pid file per node.

Guaranteed: `start` returns when every broker answers and knows all the others, and a start that fails leaves no process
behind; `stop` returns when all processes are gone; a process is signalled only if its command line names this folder,
so a stale pid file harms nobody; two callers on one folder wait for each other. Records survive a stop and a kill of
the processes. Not guaranteed: anything against the loss of the machine or its power, nor that a client is authorised:
whoever reaches the loopback interface may do everything.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from kafka_artifacts import KafkaUnavailable, class_archive, find_java, kafka_libs, kafka_version, locked
from kafka_layout import (
    HOST,
    Cluster,
    Node,
    PortTaken,
    free_ports,
    load,
    new_cluster_id,
    require_free,
    write_configuration,
)
from kafka_progress import Progress

START_MAX_S = 120.0  # twenty times what a start takes: beyond it something is broken, not slow
START_USUAL_S = (1.0, 3.0)  # and for each broker, on two cores
STOP_MAX_S = 20.0
POLL_S = 0.05
LOG_TAIL_LINES = 20
PORT_TRIES = 3

# Collectors with threads of their own, and a bigger heap, cost start-up time and memory and gain nothing at this load.
JVM_FLAGS = (
    "-Xms64m",
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
)
# Several brokers on one machine are there to be taken away and brought back, not to be fast: without the optimising
# compiler a start takes 2.5 s of processor time instead of 4.
JVM_FLAGS_OF_SEVERAL = ("-XX:TieredStopAtLevel=1",)


def running(cluster: Cluster) -> dict[int, int]:
    """The process of each node that runs: node id -> pid."""
    pids = {node.node_id: _pid(node) for node in cluster.nodes}
    return {node_id: pid for node_id, pid in pids.items() if pid is not None}


def _pid(node: Node) -> int | None:
    try:
        pid = int(node.pid_file.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return pid if str(node.properties) in _command_line(pid) else None


def _command_line(pid: int) -> str:
    # Empty for a process that ended and waits for its parent to notice: it is as good as gone.
    if Path("/proc/self/cmdline").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    command = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def start(directory: Path, brokers: int | None, port: int | None) -> Cluster:
    """Run the folder's cluster and return when it is ready.

    `port` is the first broker's; 0 chooses free ones, None takes those that the folder's cluster had before. Nodes that
    run already are left alone, so this also brings a single killed broker back.
    """
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory / "lock"):
        cluster = load(directory)
        if cluster is not None and brokers not in (None, len(cluster.ports)):
            raise KafkaUnavailable(
                f"{directory} holds a cluster of {len(cluster.ports)}, not {brokers}: take another --dir, "
                "or stop it and remove the folder"
            )
        if cluster is not None and running(cluster):
            return _resume(cluster)
        if port is None and cluster is not None:
            require_free(cluster.ports)
            _launch(cluster, cluster.nodes)
            return cluster
        return _start_on_ports(
            directory, cluster, brokers or (len(cluster.ports) if cluster else 1), port or 0
        )


def _resume(cluster: Cluster) -> Cluster:
    missing = [node for node in cluster.nodes if node.node_id not in running(cluster)]
    if missing:
        _launch(cluster, missing)
    else:
        print(f"Kafka already runs in {cluster.directory} on {cluster.bootstrap_servers}.", file=sys.stderr)
    return cluster


def _start_on_ports(directory: Path, known: Cluster | None, brokers: int, port: int) -> Cluster:
    cluster_id = known.cluster_id if known else new_cluster_id()
    for attempt in range(1, PORT_TRIES + 1):
        ports = tuple(range(port, port + brokers)) if port else free_ports(brokers)
        require_free(ports)
        cluster = Cluster(directory, cluster_id, ports, free_ports(brokers, avoid=ports))
        write_configuration(cluster)
        try:
            _launch(cluster, cluster.nodes)
        except PortTaken:
            # A port chosen by us may be taken by somebody else before the JVM binds it. One that the user chose was
            # free a moment ago too, but then he has to decide.
            if port or attempt == PORT_TRIES:
                raise
            continue
        return cluster
    raise AssertionError("the loop returns or raises")


def archive_classes() -> None:
    """Have a broker keep its classes as they are in memory: loading them is half of what a start takes.

    A JVM that cannot use them, another version's or one of other jars, loads its classes as ever.
    """
    archive = class_archive()
    if archive.exists():
        return
    with locked(archive.with_suffix(".lock")), tempfile.TemporaryDirectory() as folder:
        if archive.exists():
            return
        print("Keeping the classes of Kafka for later starts:", file=sys.stderr)
        made = Path(folder) / archive.name
        ports = free_ports(2)
        cluster = Cluster(Path(folder), new_cluster_id(), ports[:1], ports[1:])
        write_configuration(cluster)
        _launch(cluster, cluster.nodes, [f"-XX:ArchiveClassesAtExit={made}"])
        stop(cluster.directory)
        if made.exists():  # no JVM has to be able to
            part = archive.with_suffix(".part")
            shutil.copyfile(made, part)
            part.replace(archive)


def _launch(cluster: Cluster, nodes: Sequence[Node], more_flags: Sequence[str] = ()) -> None:
    java, libs = find_java(), kafka_libs()
    flags = [*JVM_FLAGS, *_archived(), *more_flags]
    if len(cluster.nodes) > 1:
        flags += JVM_FLAGS_OF_SEVERAL
    what = f"Starting Kafka {kafka_version()}, {len(nodes)} broker{'s' if len(nodes) > 1 else ''}"
    progress = Progress(what, usual_s=START_USUAL_S[0] + START_USUAL_S[1] * len(nodes))
    processes: dict[int, subprocess.Popen[bytes]] = {}
    try:
        _format(cluster, [node for node in nodes if not (node.data / "meta.properties").exists()], java, libs)
        for node in nodes:
            processes[node.node_id] = _spawn(node, [str(java), *flags], libs)
        _wait_until_ready(cluster, nodes, processes, progress)
    except BaseException:
        # Whatever ends the start, an impatient user included, must not leave half a cluster behind.
        for process in processes.values():
            process.kill()
            process.wait()
        for node in nodes:
            node.pid_file.unlink(missing_ok=True)
        progress.done("failed")
        raise
    progress.done("ready")


def _archived() -> list[str]:
    """The flag by which a JVM takes its classes from the archive, if there is one."""
    archive = class_archive()
    return [f"-XX:SharedArchiveFile={archive}"] if archive.exists() else []


def _format(cluster: Cluster, nodes: Sequence[Node], java: Path, libs: Path) -> None:
    """Give each node's data folder the cluster's identity, side by side."""
    tool = [str(java), "-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", *_archived()]
    tool += ["-cp", f"{libs}/*", "kafka.tools.StorageTool"]
    tool += ["format", "--ignore-formatted", "-t", cluster.cluster_id, "-c"]
    with contextlib.ExitStack() as stack:
        runs = []
        for node in nodes:
            console = stack.enter_context(node.console.open("wb"))
            command = [*tool, str(node.properties)]
            runs.append(
                stack.enter_context(subprocess.Popen(command, stdout=console, stderr=subprocess.STDOUT))
            )
        for node, run in zip(nodes, runs, strict=True):
            if run.wait(START_MAX_S) != 0:
                raise KafkaUnavailable(
                    f"formatting {node.data} failed; the end of {node.console}:\n{_log_tail(node)}"
                )


def _spawn(node: Node, java: Sequence[str], libs: Path) -> "subprocess.Popen[bytes]":
    command = [*java, "-cp", f"{libs}/*"]
    command += [
        f"-Dlog4j2.configurationFile={node.directory}/log4j2.properties",
        f"-Dstreamdet.log={node.log}",
    ]
    command += ["kafka.Kafka", str(node.properties)]
    node.log.unlink(missing_ok=True)
    # The process notes its own pid before it becomes Java: written by us afterwards, a kill in between would leave a
    # broker that nobody knows of. The new session keeps a Ctrl-C in the terminal away from it.
    shell = ["/bin/sh", "-c", 'echo $$ >"$0" && exec "$@"', str(node.pid_file), *command]
    with node.console.open("wb") as console:
        return subprocess.Popen(
            shell,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=node.directory,
        )


def _wait_until_ready(
    cluster: Cluster,
    nodes: Sequence[Node],
    processes: "dict[int, subprocess.Popen[bytes]]",
    progress: Progress,
) -> None:
    waiting = list(nodes)
    while waiting:
        for node in nodes:
            if processes[node.node_id].poll() is not None:
                raise _failure(node, "ended while it started")
        if progress.elapsed_s > START_MAX_S:
            raise _failure(waiting[0], f"was not ready after {START_MAX_S:.0f} s")
        if _is_ready(waiting[0], brokers=len(cluster.nodes)):
            waiting.pop(0)
            continue
        progress.tick()
        time.sleep(POLL_S)


def _failure(node: Node, what: str) -> KafkaUnavailable:
    tail = _log_tail(node)
    causes = [line.strip() for line in tail.splitlines() if "Exception: " in line or "Error: " in line]
    error = PortTaken if "Address already in use" in tail else KafkaUnavailable
    return error(f"broker {node.node_id} {what}: {causes[0] if causes else 'see its log'}\n{tail}")


def _is_ready(node: Node, brokers: int) -> bool:
    """Whether this very broker answers and sees all brokers in service."""
    try:
        socket.create_connection((HOST, node.port), timeout=1).close()
    except OSError:
        return False
    members = _describe(f"{HOST}:{node.port}")
    return len(members) == brokers and not any(member.get("is_fenced") for member in members)


def answers(bootstrap_servers: str) -> bool:
    """Whether a Kafka answers there."""
    return bool(_describe(bootstrap_servers))


def _describe(bootstrap_servers: str) -> list[dict[str, object]]:
    from kafka.admin import KafkaAdminClient
    from kafka.errors import KafkaError

    try:
        admin = KafkaAdminClient(
            bootstrap_servers=bootstrap_servers.split(","),
            bootstrap_timeout_ms=5_000,
            request_timeout_ms=5_000,
        )
    except KafkaError:
        return []
    try:
        return list(admin.describe_cluster()["brokers"])
    except KafkaError:
        return []
    finally:
        admin.close()


def _log_tail(node: Node) -> str:
    lines: list[str] = []
    for path in (node.log, node.console):
        if path.exists():
            lines += path.read_text(errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-LOG_TAIL_LINES:]) or "  (it wrote nothing)"


def stop(directory: Path) -> None:
    """End the folder's processes, by SIGKILL those that SIGTERM doesn't end in time; the data stays."""
    cluster = load(directory)
    if cluster is None:
        print(f"No Kafka was ever started in {directory}.", file=sys.stderr)
        return
    with locked(cluster.directory / "lock"):
        pids = running(cluster)
        _signal(pids.values(), signal.SIGTERM)
        if not _wait_for(lambda: not running(cluster), STOP_MAX_S):
            left = running(cluster)
            pids_left = ", ".join(str(pid) for pid in sorted(left.values()))
            print(f"Not gone after {STOP_MAX_S:.0f} s, killing: {pids_left}.", file=sys.stderr)
            _signal(left.values(), signal.SIGKILL)
            _wait_for(lambda: not running(cluster), STOP_MAX_S)
        if running(cluster):
            raise KafkaUnavailable(
                f"processes {sorted(running(cluster).values())} survived SIGKILL; see `ps`"
            )
        for node in cluster.nodes:
            node.pid_file.unlink(missing_ok=True)
    print(f"Kafka in {cluster.directory} is {'stopped' if pids else 'not running'}.", file=sys.stderr)


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _wait_for(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(POLL_S)
    return True
