"""What is closed holds no connection any more.

Python's warnings of forgotten sockets cannot tell ours from those that kafka-python forgets where brokers are taken
away (`conftest.py`); so the sockets of this process are counted here, with a broker that stays.
"""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import sample_alert
from kafka_local import Kafka
from live import until

from streamdet.alerts import subscribe
from streamdet.clock import SystemClock
from streamdet.config import Settings, parse
from streamdet.sink.kafka import KafkaSink
from streamdet.sink.kafka_transaction import KafkaTransactor
from streamdet.source.kafka import KafkaSource

pytestmark = pytest.mark.integration


def sockets() -> set[str]:
    """Those that this process has open."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = str(link.readlink())
        except FileNotFoundError:  # the one that lists them, or closed meanwhile
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


def source(given: Settings) -> Callable[[], None]:
    one = KafkaSource(given, SystemClock(), instance="a")
    until(lambda: len(one.poll(10)) == 0 and bool(one.lanes), "an assignment")
    return one.close


def sink(given: Settings) -> Callable[[], None]:
    one = KafkaSink(given, SystemClock())
    one.publish([sample_alert()], [])
    one.flush()
    return one.close


def transactor(given: Settings) -> Callable[[], None]:
    one = KafkaTransactor(given, "one", SystemClock())
    one.renew(None)  # the one before is closed too
    return one.close


def subscription(given: Settings) -> Callable[[], None]:
    one = subscribe(given.input.topics[0], bootstrap_servers=given.kafka.bootstrap_servers, follow=False)
    assert list(one) == []
    return one.close


@pytest.mark.parametrize("opened", [source, sink, transactor, subscription])
def test_what_is_closed_leaves_no_socket(
    kafka: Kafka, topic: str, opened: Callable[[Settings], Callable[[], None]]
) -> None:
    given = parse(
        {
            "kafka": {"bootstrap_servers": kafka.bootstrap_servers},
            "input": {"topics": [topic], "group_id": topic},
        }
    )
    before, threads = sockets(), threading.active_count()
    close = opened(given)
    assert sockets() - before
    close()
    until(lambda: not sockets() - before, "no socket that was not there before")
    until(lambda: threading.active_count() <= threads, "no more threads than before")
