"""`scripts/demo`: publish a labelled recording into a real Kafka, let the worker judge it, say how good it was.

Guarantees: standard output has nothing but one JSON object with `--json`; whatever ends the demo, nothing that it
started goes on running, unless `--keep` asked for that; labels never enter Kafka.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import kafka_cluster
import msgspec
import numpy as np
from demo_kafka import CLOCK, Cluster, DemoError, Publisher, Subscriber, WorkerProcess
from demo_place import Place
from demo_show import Show
from demo_streams import STREAMS, Stream
from demo_summary import Run, Scores, near, summarise, told
from kafka.errors import KafkaError
from kafka_artifacts import ROOT, KafkaUnavailable, docker_answers, find_java, kafka_libs
from kafka_local import BOOTSTRAP_VARIABLE, Kafka, running_kafka

from streamdet.errors import StreamdetError
from streamdet.events import Alert

# Importing torch from a cold disk takes longest; beyond this something is wrong.
READY_MAX_S = 120.0
# The worker must get on at least this often.
STALLED_MAX_S = 60.0
# The last alerts are on their way when the last event is judged.
LAST_ALERTS_MAX_S = 10.0
ASK_INTERVAL_S = 0.5
WAIT_S = 0.1
# Besides the stream: Kafka and worker start, both stop, the report is drawn.
OVERHEAD_S = 25.0


def main() -> int:
    """The command line."""
    args = _parser().parse_args()
    # As exceptions that are no KeyboardInterrupt, for which subprocess would not wait until Kafka is gone.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    out = args.out if args.out is not None else ROOT / "out" / f"demo-{args.stream}"
    place = Place(out.resolve())
    try:
        if args.stop:
            place.stop_kept()
            return 0
        with Show(to_stderr=args.json) as show, place.taken():
            return _demo(args, place, show)
    except (DemoError, KafkaUnavailable, StreamdetError, KafkaError) as error:
        print(f"scripts/demo: {error}", file=sys.stderr)
        return 1


def _demo(args: argparse.Namespace, place: Place, show: Show) -> int:
    stream = STREAMS[args.stream]()
    if args.events is not None:
        stream = stream.first(args.events)
    rate = args.rate if args.rate is not None else stream.rate
    reason = _no_kafka()
    anomalous = "" if stream.anomalies is None else f", {stream.anomalies:,} of them anomalous"
    show.say(f"{stream.title}: {len(stream):,} events{anomalous}.")
    place.clear()
    if reason is not None:
        show.say(f"No Kafka here ({reason}): replaying the recording through the same loop without a broker.")
        _finish(_replayed(stream, place, show), place, show, as_json=args.json)
        return 0
    show.say(
        f"Starting Kafka and the worker, publishing {rate:,.0f} events/s, showing alerts as they come: "
        f"about {OVERHEAD_S + len(stream) / rate:.0f} s in all."
    )
    with contextlib.ExitStack() as stack:
        kafka = stack.enter_context(_kafka(place, keep=args.keep))
        topic = f"demo-{stream.name}"
        if kafka.kind == BOOTSTRAP_VARIABLE:
            topic += f"-{os.urandom(3).hex()}"  # the cluster is somebody's, and may know the name
        run = _on_kafka(stream, rate, kafka, topic, place, show, keep=args.keep)
        _finish(run, place, show, as_json=args.json)
        if args.keep:
            _keep(kafka, topic, place, show)
    return 0


def _no_kafka() -> str | None:
    """Why no Kafka can be had on this machine; None where one can be tried."""
    if os.environ.get(BOOTSTRAP_VARIABLE) or docker_answers():
        return None
    try:
        find_java()
        if shutil.which("mvn") is None:
            kafka_libs()  # there from an earlier time, or not to be had
    except KafkaUnavailable as error:
        return str(error).splitlines()[0].rstrip(".")
    return None


@contextlib.contextmanager
def _kafka(place: Place, *, keep: bool) -> Iterator[Kafka]:
    """A Kafka for the demo; with `keep`, one that outlives it where processes of this machine can."""
    if keep and not os.environ.get(BOOTSTRAP_VARIABLE) and _has_java():
        # No container, while there is a choice: its engine takes it away when the demo ends.
        yield from _lasting_kafka(place)
        return
    try:
        with running_kafka(place.kafka) as kafka:
            yield kafka
    finally:
        shutil.rmtree(place.kafka, ignore_errors=True)


def _has_java() -> bool:
    try:
        find_java()
    except KafkaUnavailable:
        return False
    return True


def _lasting_kafka(place: Place) -> Iterator[Kafka]:
    try:
        cluster = kafka_cluster.start(place.kafka, 1, 0)
        yield Kafka(cluster.bootstrap_servers, "scripts/kafka")
    except BaseException:
        kafka_cluster.stop(place.kafka)
        raise


def _on_kafka(
    stream: Stream, rate: float, kafka: Kafka, topic: str, place: Place, show: Show, *, keep: bool
) -> Run:
    """The stream through Kafka and the worker, to its end."""
    place.configure(stream, topic, kafka.bootstrap_servers)
    with contextlib.ExitStack() as stack:
        cluster = Cluster(kafka.bootstrap_servers)
        stack.callback(cluster.close)
        cluster.create(topic)
        if kafka.kind == BOOTSTRAP_VARIABLE and not keep:
            stack.callback(cluster.delete, topic, f"{topic}.alerts", f"{topic}.dead-letters")
        worker = WorkerProcess(place.config, place.log, place.scores)
        stack.callback(worker.kill)
        show.say(f"Kafka ({kafka.kind}) answers on {kafka.bootstrap_servers}; starting the worker ...")
        _until_reading(cluster, worker, topic)
        subscriber = Subscriber(f"{topic}.alerts", kafka.bootstrap_servers)
        stack.callback(subscriber.stop)
        publisher = Publisher(stream, topic, kafka.bootstrap_servers, rate)
        stack.callback(publisher.stop)
        subscriber.start()
        publisher.start()
        followed = _Followed(stream, publisher, subscriber, show)
        seconds = followed.to_the_end(cluster, worker, topic)
        worker.finish()
        scores = _scores(place, len(stream))
        followed.last_alerts(int(scores.flagged.sum()))
    return Run(stream, scores, followed.alerts, np.array(followed.latency_ms), seconds, kafka.kind)


def _until_reading(cluster: Cluster, worker: WorkerProcess, topic: str) -> None:
    """Return when the worker has its partition and its alerts topic is there."""
    began_s = CLOCK.monotonic_s()
    while not (cluster.reads(topic) and cluster.has(f"{topic}.alerts")):
        worker.check()
        if CLOCK.monotonic_s() - began_s > READY_MAX_S:
            raise DemoError(
                f"the worker is not ready after {READY_MAX_S:.0f} s; its log so far:\n{worker.tail()}"
            )
        CLOCK.sleep_s(WAIT_S)


class _Followed:
    """The stream on its way: alerts as they come, and how far the worker is."""

    def __init__(self, stream: Stream, publisher: Publisher, subscriber: Subscriber, show: Show) -> None:
        self.alerts: list[Alert] = []
        self.latency_ms: list[float] = []
        self._stream = stream
        self._publisher = publisher
        self._subscriber = subscriber
        self._show = show

    def to_the_end(self, cluster: Cluster, worker: WorkerProcess, topic: str) -> float:
        """Return when every event is judged and committed; the seconds that it took."""
        n, judged = len(self._stream), 0
        began_s = asked_s = moved_s = CLOCK.monotonic_s()
        self._show.start_stream(n)
        while judged < n:
            worker.check()
            for thread in (self._publisher, self._subscriber):
                if thread.error is not None:
                    raise DemoError(f"the {thread.name} failed: {thread.error}")
            self._receive()
            now_s = CLOCK.monotonic_s()
            if now_s - asked_s >= ASK_INTERVAL_S:
                before, judged, asked_s = judged, cluster.committed(topic, topic), now_s
                moved_s = now_s if judged > before else moved_s
            if now_s - moved_s > STALLED_MAX_S:
                raise DemoError(
                    f"the worker has judged nothing for {STALLED_MAX_S:.0f} s, {judged:,} of {n:,} events before; "
                    f"its log:\n{worker.tail()}"
                )
            self._show.stream(self._publisher.sent, judged, n, len(self.alerts), now_s - began_s)
        self._show.end_stream()
        return CLOCK.monotonic_s() - began_s

    def last_alerts(self, flagged: int) -> None:
        """Return when as many alerts came as events were flagged."""
        deadline_s = CLOCK.monotonic_s() + LAST_ALERTS_MAX_S
        while len(self.alerts) < flagged and CLOCK.monotonic_s() < deadline_s:
            self._receive()
        self._receive()  # one too many would be as wrong
        if len(self.alerts) != flagged:
            raise DemoError(f"{flagged:,} events were flagged, but {len(self.alerts):,} alerts came")

    def _receive(self) -> None:
        """Take what came; wait a little for a first one."""
        for alert, received_ms in self._subscriber.take(WAIT_S):
            offset = alert.source.offset
            latency_ms = received_ms - float(self._publisher.published_ms[offset])
            label = None if self._stream.labels is None else bool(self._stream.labels[offset])
            self.alerts.append(alert)
            self.latency_ms.append(latency_ms)
            self._show.alert(alert, label, latency_ms)


def _replayed(stream: Stream, place: Place, show: Show) -> Run:
    """The stream through the same loop, from a file."""
    place.configure(stream, f"demo-{stream.name}", None)
    place.recording.write_bytes(b"".join(value + b"\n" for value in stream.values))
    command = [str(Path(sys.executable).with_name("streamdet")), "replay", str(place.recording)]
    command += [
        "-c",
        str(place.config),
        "--json",
        "--alerts",
        str(place.alerts),
        "--scores",
        str(place.scores),
    ]
    began_s = CLOCK.monotonic_s()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise DemoError(f"streamdet replay ended with exit code {done.returncode}")
    seconds = CLOCK.monotonic_s() - began_s
    alerts = [msgspec.json.decode(line, type=Alert) for line in place.alerts.read_bytes().splitlines()]
    for alert in alerts:
        label = None if stream.labels is None else bool(stream.labels[alert.source.offset])
        show.alert(alert, label, None)
    return Run(stream, _scores(place, len(stream)), alerts, np.empty(0), seconds, None)


def _scores(place: Place, events: int) -> Scores:
    scores = Scores.read(place.scores)
    if len(scores) != events:
        raise DemoError(f"{events:,} events were published, but {len(scores):,} judged: see {place.log}")
    return scores


def _finish(run: Run, place: Place, show: Show, *, as_json: bool) -> None:
    summary = summarise(run, place.out)
    for line in told(summary):
        show.say(line)
    if as_json:
        print(json.dumps(summary))


def _keep(kafka: Kafka, topic: str, place: Place, show: Show) -> None:
    """Start the worker again, which goes on where it was, and leave it and Kafka running."""
    worker = WorkerProcess(place.config, place.log, None, stays=True)
    try:
        place.note_kept(worker.pid)
        with contextlib.closing(Cluster(kafka.bootstrap_servers)) as cluster:
            _until_reading(cluster, worker, topic)
        for line in (
            "",
            f"Kafka ({kafka.bootstrap_servers}) and the worker (log: {near(place.log)}) go on running.",
            f"  look   .venv/bin/streamdet alerts -c {near(place.config)} --since earliest --follow",
            f"  stop   scripts/demo --stop --out {near(place.out)}",
        ):
            show.say(line)
        if kafka.kind == "testcontainers":
            show.say("This Kafka is a container that ends with the demo: stop both with Ctrl-C here.")
            worker.wait()
    except BaseException:
        worker.kill()
        raise


def _end(number: int, _: FrameType | None) -> None:
    if threading.current_thread() is threading.main_thread():
        raise SystemExit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="Publish a labelled recording into a real Kafka at a steady pace, let the worker judge it, show "
        "alerts as they come, and say how good they were.",
        epilog="Exit codes: 0 done, 1 failed, 2 bad use. Where neither Java nor Docker can run a Kafka, the recording "
        "goes through the same loop without a broker.",
    )
    parser.add_argument(
        "--stream",
        choices=sorted(STREAMS),
        default="shuttle",
        help="what to publish: NASA shuttle sensors, water flow, simulated card payments (default: shuttle)",
    )
    parser.add_argument(
        "--rate", type=_above_0, metavar="R", help="events per second (default: 1000; water: 50)"
    )
    parser.add_argument("--events", type=_count, metavar="N", help="publish only the first N events")
    parser.add_argument(
        "--json", action="store_true", help="print the summary as one JSON object on standard output"
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave Kafka and the worker running, and say how to stop them"
    )
    parser.add_argument(
        "--stop", action="store_true", help="stop what --keep left running, and do nothing else"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: out/demo-STREAM)")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _above_0(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
