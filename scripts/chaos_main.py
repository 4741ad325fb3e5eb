"""Breaks a group of workers and its three brokers at random for some minutes, and counts what was lost or repeated.

Events flow at a steady pace over several partitions, some of them spikes that any model flags. At the end everything is
mended and what is left is judged. Then one worker that nobody disturbs judges the same records as another group, and
what the two groups published is compared, as a subscriber to committed records sees it.

    faults         things that were broken
    events         records that flowed
    lost           alerts and dead letters of the undisturbed worker that are missing, planted spikes without an alert,
                   and records that nobody has committed
    repeated       ids of alerts and dead letters that are there more than once
    alerts_equal   whether alerts and dead letters are the same in all but the time of detection
    max_rss_mb     the most memory that a worker had resident
    longest_gap_s  the longest time without a commit while events flowed; a majority of brokers was up all the time

Alerts of several workers are well defined where learning has ended: both groups first warm up alone, from records of
one partition, and learn nothing after that; and each partition has taken that model up before anything is broken.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from chaos_brokers import Brokers, until
from chaos_faults import BrokerTroubles, WorkerTroubles, leaders
from chaos_kafka import Asking
from chaos_published import Difference, Published, difference, published
from chaos_say import ChaosError, say
from chaos_stream import FEATURES, Feed
from chaos_workers import Fleet
from kafka.admin import NewTopic
from kafka.errors import KafkaError
from kafka_artifacts import ROOT, KafkaUnavailable
from kafka_local import running_kafka

SEED_VARIABLE = "STREAMDET_FAULT_SEED"
PARTITIONS = 4
RATE = 300.0  # events/s
SESSION_S = 6.0
WARMUP = 512
PREPARED_EACH = 500
DRAIN_MAX_S = 180.0
LOOK_S = 0.2
GAP_TO_SAY_S = 5.0
TOPIC = "plant"


@dataclass(frozen=True)
class Summary:
    """What is printed."""

    faults: int
    events: int
    lost: int
    repeated: int
    alerts_equal: bool
    max_rss_mb: float
    longest_gap_s: float

    @property
    def good(self) -> bool:
        """Whether all promises were kept."""
        return self.lost == 0 and self.repeated == 0 and self.alerts_equal


class Group:
    """A consumer group: its workers, where it stands, what it published."""

    def __init__(self, name: str, asking: Asking, folder: Path) -> None:
        self.name = name
        self.alerts_topic, self.dead_letters_topic = f"{TOPIC}.{name}.alerts", f"{TOPIC}.{name}.dead-letters"
        self._asking = asking
        self.fleet = Fleet(
            folder / name,
            {
                "kafka": {"bootstrap_servers": asking.servers},
                "input": {
                    "topics": [TOPIC],
                    "group_id": name,
                    "timestamp": "ts",
                    "entity": "device",
                    "features": FEATURES,
                    "session_timeout_ms": int(SESSION_S * 1000),
                },
                "alerts": {"topic": self.alerts_topic},
                "dead_letters": {"topic": self.dead_letters_topic},
                "model": {"device": "cpu"},
                "limit": {"alert_rate": 0.01, "window": 1_000},
                "learning": {"enabled": False, "warmup": WARMUP, "every": 1_280, "lag": 300, "buffer": 512},
                "checkpoint": {"url": str(folder / name / "state"), "every_s": 1.0},
            },
        )

    def committed(self, within_s: float = 60.0) -> list[int]:
        """In each partition."""
        return [max(at, 0) for at in self._asking.committed(self.name, TOPIC, PARTITIONS, within_s)]

    def ends(self) -> list[int]:
        """Where the records end."""
        return self._asking.ends(TOPIC, PARTITIONS)

    def drain(self) -> int:
        """Return when all records are committed, or when it takes too long; how many are not."""
        with contextlib.suppress(TimeoutError):
            until(lambda: self.committed() == self.ends(), f"all of {self.name} committed", DRAIN_MAX_S)
        return sum(self.ends()) - sum(self.committed())

    def published(self) -> Published:
        """What a subscriber sees."""
        return published(self._asking.servers, self.alerts_topic, self.dead_letters_topic)


def prepare(groups: list[Group], feed: Feed) -> None:
    """All groups with the only model that there will be, in use in each partition."""
    for group in groups:
        group.fleet.start()
    for n, partitions in ((WARMUP + 100, [0]), (PREPARED_EACH, range(PARTITIONS))):
        feed.write(n, partitions, spikes=False)
        feed.flush()
        for group in groups:
            if group.drain():
                raise ChaosError(f"{group.name} does not get through the warm-up; see its log")
    for group in groups:
        group.fleet.stop_all()


class Gaps:
    """The longest time without a commit."""

    def __init__(self, group: Group) -> None:
        self.longest_s = 0.0
        self._group = group

    def watch(self, end: threading.Event) -> None:
        """Look again and again; where Kafka does not answer, there is nothing new."""
        moved_s, before = time.monotonic(), 0
        while not end.wait(LOOK_S):
            with contextlib.suppress(KafkaError, OSError):
                now = sum(self._group.committed(within_s=0.0))
                if now > before:
                    gap_s = time.monotonic() - moved_s
                    if gap_s > GAP_TO_SAY_S:
                        say(f"nothing was committed in the last {gap_s:.1f} s")
                    moved_s, before = time.monotonic(), now
            self.longest_s = max(self.longest_s, time.monotonic() - moved_s)


def troubled(
    group: Group, feed: Feed, asking: Asking, brokers: Brokers, minutes: float, rng: random.Random
) -> tuple[int, float]:
    """Let events flow and break things; the number of faults, and the longest gap."""
    end, gaps = threading.Event(), Gaps(group)
    hit = leaders(asking, group.name, TOPIC, group.alerts_topic)
    for worker in [group.fleet.start() for _ in range(2)]:
        worker.ready()
    of_brokers = BrokerTroubles(brokers, hit, SESSION_S, random.Random(rng.random()), end)
    of_workers = WorkerTroubles(group.fleet, SESSION_S, random.Random(rng.random()), end)
    flowing = threading.Event()
    with ThreadPoolExecutor(5) as threads:
        jobs = [
            threads.submit(feed.flow, RATE, flowing),
            threads.submit(gaps.watch, flowing),
            threads.submit(group.fleet.watch, flowing),
        ]
        breaking = [threads.submit(of_brokers.run), threads.submit(of_workers.run)]
        try:
            wait(minutes * 60, [*jobs, *breaking])
            say("mending everything")
            end.set()
            settle(breaking)
            brokers.start()
        finally:  # also of what failed
            end.set()
            flowing.set()
        settle(jobs)
    if feed.error is not None:
        raise ChaosError(f"a planted spike was not written: {feed.error}")
    return of_brokers.count + of_workers.count, gaps.longest_s


def wait(seconds: float, jobs: "list[Future[None]]") -> None:
    """Return after so many seconds, or when a job has failed."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s and not any(job.done() for job in jobs):
        time.sleep(0.2)


def settle(jobs: "list[Future[None]]") -> None:
    """Wait for the jobs; raise what one of them raised."""
    for job in jobs:
        job.result()


def compare(group: Group, expected: Group, feed: Feed) -> tuple[Difference, set[str]]:
    """How the alerts and dead letters differ, and the planted spikes without an alert."""
    found, wanted = group.published(), expected.published()
    blind = feed.planted - wanted.keys()
    if blind or not feed.planted:
        raise ChaosError(
            f"the undisturbed worker has missed {len(blind)} of {len(feed.planted)} spikes: nothing is proven"
        )
    differs = difference(found, wanted)
    say(f"{len(wanted):,} alerts and dead letters, {len(feed.planted):,} planted spikes: {differs}")
    return differs, feed.planted - found.keys()


def chaos(args: argparse.Namespace, stack: contextlib.ExitStack) -> Summary:
    """The whole run."""
    rng = random.Random(args.seed)
    directory = args.out / "kafka"
    stack.callback(shutil.rmtree, directory, ignore_errors=True)  # when nothing runs there any more
    kafka = stack.enter_context(running_kafka(directory, args.brokers, private=True))
    brokers = Brokers(directory)
    asking = stack.enter_context(contextlib.closing(Asking(kafka.bootstrap_servers)))
    asking.ask(
        lambda admin: admin.create_topics(
            [NewTopic(TOPIC, num_partitions=PARTITIONS, replication_factor=args.brokers)],
            wait_for_metadata=True,
        )
    )
    group, expected = Group("troubled", asking, args.out), Group("undisturbed", asking, args.out)
    for one in (group, expected):
        stack.callback(one.fleet.kill_all)
    feed = stack.enter_context(
        contextlib.closing(Feed(kafka.bootstrap_servers, TOPIC, PARTITIONS, args.seed))
    )
    say("warming up")
    prepare([group, expected], feed)
    before = sum(group.ends())
    say(f"breaking things for {args.minutes:g} minutes")
    faults, gap_s = troubled(group, feed, asking, brokers, args.minutes, rng)
    say("judging what is left")
    left = group.drain()
    group.fleet.look()
    group.fleet.stop_all()
    say("judging all of it undisturbed")
    expected.fleet.start()
    if expected.drain():
        raise ChaosError("the undisturbed worker does not come to the end; see its log")
    expected.fleet.stop_all()
    differs, unseen = compare(group, expected, feed)
    if group.fleet.ended_by_themselves:
        raise ChaosError("; ".join(group.fleet.ended_by_themselves))
    return Summary(
        faults=faults,
        events=sum(group.ends()) - before,
        lost=left + len({*differs.missing, *unseen}),
        repeated=len(differs.repeated),
        alerts_equal=not differs,
        max_rss_mb=round(group.fleet.rss_peak_mb, 1),
        longest_gap_s=round(gap_s, 1),
    )


def _end(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, required=True, help="how long things are broken")
    parser.add_argument(
        "--seed", type=int, help=f"of all random choices; default: {SEED_VARIABLE}, or a new one"
    )
    parser.add_argument("--brokers", type=int, choices=(3,), default=3, help="how many (3)")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "chaos", help="logs and state")
    parser.add_argument(
        "--json", action="store_true", help="nothing on standard output but the summary on one line"
    )
    return parser


@contextlib.contextmanager
def _cleaning_up() -> Iterator[contextlib.ExitStack]:
    """However this ends, all that was begun is undone; a second signal does not come between."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    with contextlib.ExitStack() as stack:
        try:
            yield stack
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)


def main() -> int:
    """The command line: 0 where all promises were kept, 1 where not, 2 for bad use."""
    args = _parser().parse_args()
    if args.seed is None:
        args.seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**31))
    args.out = args.out.resolve()
    say(f"seed {args.seed}, logs in {args.out}")
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    try:
        with _cleaning_up() as stack:
            summary = chaos(args, stack)
    except (ChaosError, KafkaUnavailable, KafkaError, TimeoutError, RuntimeError) as error:
        print(f"scripts/chaos: {error}; seed {args.seed}, logs in {args.out}", file=sys.stderr)
        return 1
    fields: dict[str, Any] = asdict(summary)
    print(json.dumps(fields) if args.json else json.dumps(fields, indent=2))
    return 0 if summary.good else 1


if __name__ == "__main__":
    # The admin and the producer log each attempt to reach a broker that was taken away on purpose.
    import logging

    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    sys.exit(main())
