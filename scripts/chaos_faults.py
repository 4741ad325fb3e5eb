"""What is done to brokers and workers, in an order and at a pace that a seed decides.

Brokers and workers have their troubles at the same time, each kind one after the other: so a majority of brokers is
always up, and a worker is hit while a broker is away too.
"""

import random
import signal
import threading
from collections.abc import Callable

from chaos_brokers import Brokers
from chaos_kafka import Asking
from chaos_say import say
from chaos_workers import Fleet

Fault = Callable[[], None]

PAUSE_S = (0.5, 5.0)  # between two faults of a kind
AWAY_S = (0.0, 4.0)  # of a broker or a worker that was ended
WORKERS_MIN, WORKERS_MAX = 2, 3


class Troubles:
    """Faults of one kind, again and again until told to end; a fault once begun is undone before the end."""

    def __init__(self, rng: random.Random, end: threading.Event) -> None:
        self.count = 0
        self._rng = rng
        self._end = end
        self.faults: list[Fault] = []

    def run(self) -> None:
        """In random order, with random pauses; each as often as any other."""
        while not self._end.is_set():
            for fault in self._rng.sample(self.faults, len(self.faults)):
                if self._end.wait(self._rng.uniform(*PAUSE_S)):
                    return
                self.count += 1
                fault()

    def _wait(self, bounds: tuple[float, float]) -> None:
        self._end.wait(self._rng.uniform(*bounds))


class BrokerTroubles(Troubles):
    """What happens to brokers, of which two are always up."""

    def __init__(
        self,
        brokers: Brokers,
        leaders: dict[str, Callable[[], int]],
        session_s: float,
        rng: random.Random,
        end: threading.Event,
    ) -> None:
        super().__init__(rng, end)
        self._brokers = brokers
        self._leaders = leaders
        self._silent_s = (1.0, 2.0 * session_s)
        self.faults = [self.kill, self.kill, self.restart, self.silence]

    def _chosen(self) -> tuple[str, int]:
        name = self._rng.choice(sorted(self._leaders))
        return name, self._leaders[name]()

    def kill(self) -> None:
        """SIGKILL, and after a while back."""
        name, number = self._chosen()
        say(f"kill broker {number}, {name}")
        self._brokers.kill(number)
        self._wait(AWAY_S)
        self._brokers.start()
        say(f"broker {number} back")

    def restart(self) -> None:
        """All in order, one by one."""
        for number in self._brokers.numbers:
            if self._end.is_set():
                return
            say(f"restart broker {number}")
            self._brokers.stop(number)
            self._brokers.start()

    def silence(self) -> None:
        """SIGSTOP, and after a while SIGCONT."""
        name, number = self._chosen()
        say(f"silence broker {number}, {name}")
        self._brokers.pause(number)
        self._wait(self._silent_s)
        self._brokers.resume(number)
        say(f"broker {number} goes on")


class WorkerTroubles(Troubles):
    """What happens to workers, of which there are two or three."""

    def __init__(self, fleet: Fleet, session_s: float, rng: random.Random, end: threading.Event) -> None:
        super().__init__(rng, end)
        self._fleet = fleet
        self._frozen_s = (session_s + 1.0, session_s + 5.0)
        self.faults = [self.kill, self.kill, self.freeze, self.replace, self.scale, self.fill_disk]

    def kill(self) -> None:
        """SIGKILL, and after a while another one."""
        worker = self._fleet.any(self._rng)
        say(f"kill {worker.name}")
        self._fleet.kill(worker)
        self._wait(AWAY_S)
        self._fleet.start().ready()

    def freeze(self) -> None:
        """SIGSTOP for longer than the group waits for it, then SIGCONT."""
        worker = self._fleet.any(self._rng)
        say(f"freeze {worker.name}")
        worker.signal(signal.SIGSTOP)
        try:
            self._wait(self._frozen_s)
        finally:
            worker.signal(signal.SIGCONT)
        say(f"{worker.name} goes on")

    def replace(self) -> None:
        """Another one first, then SIGTERM: as an upgrade does it."""
        worker = self._fleet.any(self._rng)
        say(f"replace {worker.name}")
        self._fleet.start().ready()
        self._fleet.stop(worker)

    def scale(self) -> None:
        """One more or one less."""
        running = len(self._fleet.workers)
        more = running <= WORKERS_MIN or (running < WORKERS_MAX and self._rng.random() < 0.5)
        if more:
            say("one more worker")
            self._fleet.start().ready()
        else:
            worker = self._fleet.any(self._rng)
            say(f"stop {worker.name}")
            self._fleet.stop(worker)

    def fill_disk(self) -> None:
        """No worker can write a file for a while; what they read is there."""
        say("no room on the disk")
        workers = list(self._fleet.workers)
        for worker in workers:
            worker.allow_files(allowed=False)
        try:
            self._wait((2.0, 8.0))
        finally:
            for worker in workers:
                worker.allow_files(allowed=True)
        say("room on the disk again")


def leaders(asking: Asking, group: str, topic: str, alerts_topic: str) -> dict[str, Callable[[], int]]:
    """Brokers with a part in what is going on, by the part."""
    return {
        "leader of an input partition": lambda: asking.leader(topic),
        "leader of an alerts partition": lambda: asking.leader(alerts_topic),
        "coordinator of transactions": asking.transaction_coordinator,
        "coordinator of the group": lambda: asking.group_coordinator(group),
    }
