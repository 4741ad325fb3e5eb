"""Any of three brokers may die, be restarted or fall silent, and a worker too, while events flow."""

import contextlib
import random
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from chaos_kafka import Asking
from kafka_broker import OwnKafka
from live import Running, until

from fault.life import Group, Stream, assert_equal, flowing, reference, streams
from fault.zygote import Zygote

pytestmark = [pytest.mark.integration, pytest.mark.alone, pytest.mark.timeout(480)]

# A broker that is silent still takes connections: each client waits out its timeout on it, one after the other.
FAULTS_WITHIN_S = 90.0


class Trouble:
    """A cluster of three, a group of two workers with a lane between them, and records that keep coming."""

    def __init__(self, own: OwnKafka, group: Group, stream: Stream, workers: Sequence[Running]) -> None:
        self.brokers = own.brokers
        self.asking = group.asking
        self.group, self.stream, self.workers = group, stream, workers

    def await_progress(self, during: str) -> None:
        """Return when something is committed that was written after now."""
        written = self.stream.written + 1
        until(lambda: self.group.committed()[0] > written, f"progress during {during}", FAULTS_WITHIN_S)
        self.group.note(during)

    def owner(self) -> Running:
        """The worker that has the lane, by its own word."""
        (one,) = [worker for worker in self.workers if worker.lanes == 1]
        return one

    def kill(self, name: str, find: Callable[[], int]) -> None:
        """Take a broker away and bring it back."""
        broker = find()
        self.brokers.kill(broker)
        self.await_progress(f"without {name}, broker {broker}")
        self.brokers.start()
        self.await_progress(f"broker {broker} back")

    def restart_all(self) -> None:
        """One by one."""
        for broker in self.brokers.numbers:
            self.brokers.stop(broker)
            self.brokers.start()
            self.await_progress(f"broker {broker} restarted")

    def silence_broker(self) -> None:
        """Longer than its session with the other two."""
        broker = self.asking.leader(self.group.topic)
        self.brokers.pause(broker)
        until(lambda: self.asking.leader(self.group.topic) != broker, "another leader", FAULTS_WITHIN_S)
        self.await_progress(f"with broker {broker} silent")
        self.brokers.resume(broker)
        self.await_progress(f"broker {broker} back")

    def silence_worker(self) -> None:
        """Longer than its session with the group: the other one takes over; it comes back as if nothing were."""
        silent = self.owner()
        silent.signal(signal.SIGSTOP)
        self.await_progress("with a silent worker")
        silent.signal(signal.SIGCONT)
        until(lambda: silent.lanes == 0, "a worker that knows that it lost its lane")
        self.await_progress("a silent worker back")


@pytest.mark.parametrize("own_kafka", [3], indirect=True)
def test_nothing_is_lost_or_repeated_whatever_one_of_them_does(
    own_kafka: OwnKafka, zygote: Zygote, fault_seed: int, tmp_path: Path
) -> None:
    """With learning on: one lane, so that the order of its records is the same in any run."""
    rng = random.Random(fault_seed)
    with contextlib.closing(Asking(own_kafka.bootstrap_servers)) as asking:
        topic = own_kafka.create_topic("plant", replication=3)
        group = Group(zygote, asking, tmp_path / "troubled", topic)
        with (
            streams(group, fault_seed, 200_000) as (stream,),
            group.worker() as first,
            group.worker() as second,
        ):
            until(lambda: first.lanes + second.lanes == 1, "a group")
            trouble = Trouble(own_kafka, group, stream, [first, second])
            outputs = group.settings["alerts"]["topic"]
            faults: list[Callable[[], None]] = [
                lambda: trouble.kill("the leader of the input", lambda: asking.leader(topic)),
                lambda: trouble.kill("the leader of the alerts", lambda: asking.leader(outputs)),
                lambda: trouble.kill("the coordinator of transactions", asking.transaction_coordinator),
                lambda: trouble.kill(
                    "the coordinator of the group", lambda: asking.group_coordinator(group.name)
                ),
                trouble.restart_all,
                trouble.silence_broker,
                trouble.silence_worker,
                trouble.silence_worker,
            ]
            rng.shuffle(faults)
            with flowing([stream], each=20, every_s=0.1):
                trouble.await_progress("nothing")
                for fault in faults:
                    fault()
            ends = [stream.written]
            group.await_committed(ends, first, second)
            for worker in (first, second):
                worker.signal(signal.SIGTERM)
                assert worker.ended() == 0, worker.log
        assert_equal(group, reference(group, ends))
