"""What is slow makes the worker slow, and no larger: it holds a bounded number of records, says so, and goes on."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import kafka_cluster
import kafka_layout
import pytest
from chaos_kafka import Asking
from kafka_broker import OwnKafka
from live import Running, until

from fault.life import Group, streams
from fault.zygote import Zygote
from streamdet.worker import HELD_UP_S

pytestmark = [pytest.mark.integration, pytest.mark.timeout(170)]

N = 6_000
EVERY_EVENTS = 100
BATCH = 200
# The delivery's own bound of what is held, and the batch that may go beyond it; so much again is under way.
HELD_MAX = 2 * (4 * EVERY_EVENTS + BATCH)
GIVEN: dict[str, dict[str, Any]] = {
    "commit": {"every_events": EVERY_EVENTS},
    "input": {"batch": {"max_events": BATCH, "max_wait_ms": 20}},
}


@contextmanager
def throttled(pids: list[int], run_s: float, stop_s: float) -> Iterator[None]:
    """Let processes run for a moment at a time only."""
    over = threading.Event()

    def throttle() -> None:
        while not over.is_set():
            for number, seconds in ((signal.SIGSTOP, stop_s), (signal.SIGCONT, run_s)):
                for pid in pids:
                    os.kill(pid, number)
                over.wait(seconds)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=throttle)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def held(worker: Running) -> float:
    """Records polled whose outcome is not final, of one answer: between two, more would be polled."""
    polled, final = worker.metrics("streamdet_records_polled_total", "streamdet_records_final")
    return polled - final


def test_a_broker_that_is_slow_slows_the_worker_which_holds_no_more_and_loses_nothing(
    own_kafka: OwnKafka, zygote: Zygote, fault_seed: int, tmp_path: Path
) -> None:
    topic = own_kafka.create_topic("plant")
    cluster = kafka_layout.load(tmp_path / "own-kafka")
    assert cluster is not None
    brokers = list(kafka_cluster.running(cluster).values())
    asking = Asking(own_kafka.bootstrap_servers)
    group = Group(zygote, asking, tmp_path / "group", topic, given=GIVEN)
    with closing(asking), streams(group, fault_seed, N) as (stream,), group.worker(metrics=True) as worker:
        stream.write(500)
        worker.await_metric("streamdet_records_final", 500)
        # Whatever the machine does in a second, there is more to judge than that, and Kafka is away for longer.
        worker.signal(signal.SIGSTOP)
        stream.write(N)
        most = 0.0
        with throttled(brokers, run_s=0.1, stop_s=1.5 * HELD_UP_S):
            worker.signal(signal.SIGCONT)
            until(lambda: "judging waits for commits" in worker.log, "the worker says that it waits")
            for _ in range(40):
                most = max(most, held(worker))
        until(lambda: "judging goes on after" in worker.log, "the worker says that it goes on")
        group.finish(worker, [N])
    assert 0 < most <= HELD_MAX
    copies = [len(found) for found in group.published().values()]
    assert set(copies) == {1}
    assert len(copies) >= len(stream.values[70::151])  # the dead letters alone
