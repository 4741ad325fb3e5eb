"""Whatever happens to workers, group and store: what was judged is published once, and nothing is forgotten.

A machine of hypothesis drives up to three workers, put together as the program does it, over a simulated Kafka. It
crashes them between any two stages of a turn, steps their transactions request by request, pauses them until the
group has expelled them and lets them go on, loses answers, delivers requests after their sender's death, fails the
store and tears what is in it. After each of this, and once all has come to rest:

- what one transaction makes final are exactly the alerts and dead letters of the offsets that it moves, with the
  content that an uninterrupted run gives them, so nothing is told twice, left out, or told after the offset behind it;
- committed offsets never go back, and no checkpoint is ahead of them;
- in the end the state of the lanes, and of the learner, is that of the uninterrupted run.
"""

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pytest
from fakes import SCHEMA, FakeSink, FakeSource, SteppingClock, StopAfter, reading, worker_over
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from kafka import errors
from simulated_kafka import (
    ALERTS,
    DEAD_LETTERS,
    TOPIC,
    TRANSACTION_S,
    Attempt,
    SimulatedKafka,
    SimulatedSource,
)
from simulated_kafka import SimulatedTransactor as Transactor

from streamdet.app import build
from streamdet.checkpoint.background import Result
from streamdet.checkpoint.format import digest
from streamdet.checkpoint.shelf import Shelf
from streamdet.checkpoint.store import FsspecStore, Store, open_store
from streamdet.codec.json import JsonCodec
from streamdet.config import Settings, parse
from streamdet.delivery.exactly_once import ExactlyOnce
from streamdet.errors import BrokerError, BrokerUnavailableError, CheckpointError, StoreUnavailableError
from streamdet.events import Batch, LaneId, Position
from streamdet.keeping import Keeper
from streamdet.lane import Lane
from streamdet.lanes import Lanes
from streamdet.learn.learner import Learner
from streamdet.models import autoencoder
from streamdet.parts import Part
from streamdet.sink.kafka_records import Outgoing, of_alert, of_reject
from streamdet.worker import Worker, run

KEEP = 3
SEEDS = 3  # of streams
# Alerts as frequent as may be: each of them tells whether the state behind it is right.
QUICK: dict[str, Any] = {
    "input": {"group_id": "g"},
    "model": {"device": "cpu"},
    "limit": {"alert_rate": 0.1, "window": 200},
    "commit": {"every_ms": 0, "offsets_every_ms": 0, "every_events": 40},
    "checkpoint": {"every_s": 1.0, "keep": KEEP},
}
FROZEN = {**QUICK, "learning": {"enabled": False, "warmup": 256, "every": 512, "lag": 0, "buffer": 256}}
LEARNING = {**QUICK, "learning": {"warmup": 256, "every": 256, "lag": 64, "buffer": 256}}
BAD = (None, b"{", b"\xff", b"[]", b'{"ts": 1, "ts": 2}')
# Polls may bring a few records each, of all that there is.
ROUNDS_MAX = 1_000


@dataclass(frozen=True, eq=False)
class World:
    """What does not change from one run of the machine to the next."""

    given: dict[str, Any]
    lanes_max: int
    begin: int  # offset from which on the machine has records to judge
    length: int  # of them, in each lane
    learns: bool
    pace: int = 1  # times what a flow says

    @property
    def settings(self) -> Settings:
        return parse(self.given)


SEVERAL = World(FROZEN, lanes_max=3, begin=200, length=500, learns=False)
ONE = World(LEARNING, lanes_max=1, begin=450, length=450, learns=True)
FROM_THE_START = World(LEARNING, lanes_max=1, begin=0, length=900, learns=True, pace=4)


def lane(partition: int) -> LaneId:
    return LaneId(TOPIC, partition)


@cache
def script(world: World, seed: int, partition: int) -> list[tuple[int, bytes | None]]:
    """The records of a lane, each with the gap before its offset."""
    rng = np.random.default_rng([seed, partition])
    values: list[tuple[int, bytes | None]] = []
    for i in range(world.length):
        value: bytes | None = reading(world.begin + i, rng, missing=0.05, spike=rng.random() < 0.1)
        if rng.random() < 0.05:
            value = BAD[rng.integers(len(BAD))]
        gap = int(rng.integers(1, 5)) if rng.random() < 0.05 else 0
        values.append((gap + (world.begin if i == 0 else 0), value))
    return values


# The uninterrupted run.


class Files(dict[str, bytes]):
    """All that a store has."""

    def of(self, store: Store) -> "Files":
        self.update({name: store.get(name) for name in store.names("")})
        return self


_stores = iter(range(10**9))


def new_store(files: Mapping[str, bytes] | None = None) -> FsspecStore:
    store = open_store(f"memory://exactly-once-{next(_stores)}")
    assert isinstance(store, FsspecStore)
    for name, data in (files or {}).items():
        store.put(name, data)
    return store


def empty(store: Store) -> None:
    for name in store.names(""):
        store.delete(name)


@cache
def base(world: World) -> Files:
    """What a worker leaves behind that has judged what lies below `begin`; all of it pinned."""
    if world.begin == 0:
        return Files()
    values = {}
    for partition in range(world.lanes_max):
        rng = np.random.default_rng([7, partition])
        values[lane(partition)] = [reading(i, rng) for i in range(world.begin)]
    clock, store = SteppingClock(), new_store()
    shelf = Shelf(store, "g", KEEP, clock)
    worker = worker_over(FakeSource(values), FakeSink(), clock=clock, shelf=shelf, **world.given)
    run(worker, StopAfter())
    for entry in shelf.entries():
        shelf.pin(entry.name)
    files = Files().of(store)
    empty(store)
    return files


@dataclass(frozen=True)
class Reference:
    """What an uninterrupted run over a lane gives: what it tells by offset, and its state at the end."""

    alerts: Mapping[int, object]
    dead_letters: Mapping[int, object]
    lane: str
    learner: str


@cache
def reference(world: World, seed: int, partition: int, length: int) -> Reference:
    clock = SteppingClock()
    kafka = SimulatedKafka(clock, partition + 1)
    for gap, value in script(world, seed, partition)[:length]:
        kafka.put(lane(partition), value, gap)
    if world.begin:
        kafka.set_committed(lane(partition), Position(world.begin))
    store, source, sink = new_store(base(world)), SimulatedSource(kafka), FakeSink()
    worker = worker_over(source, sink, clock=clock, shelf=Shelf(store, "g", KEEP, clock), **world.given)
    worker.make_learner = at_once(worker.make_learner)
    worker.restore()
    quiet = 0
    while quiet < 3:
        batch = turn(worker)
        quiet = 0 if len(batch) else quiet + 1
    learner = "" if worker.learner is None else digest(worker.learner.state())
    empty(store)
    return Reference(
        {alert.source.offset: told(of_alert(alert, ALERTS, "streamdet/test")) for alert in sink.alerts},
        {reject.offset: told(of_reject(reject, DEAD_LETTERS)) for reject in sink.rejects},
        digest(worker.lanes[lane(partition)].state()),
        learner,
    )


def reference_runs(world: World) -> None:
    """Those that tell what is due."""
    for seed in range(SEEDS):
        for partition in range(world.lanes_max):
            reference(world, seed, partition, world.length)


def told(record: Outgoing) -> object:
    """All that a subscriber gets of a record, but when it was judged."""
    if record.topic == DEAD_LETTERS:
        return record.key, record.value, record.headers
    alert = msgspec.json.decode(record.value)
    del alert["detected_at"]
    return record.key, alert, record.headers


def place(record: Outgoing) -> tuple[LaneId, int]:
    """Where the record lies of which this tells."""
    if record.topic == DEAD_LETTERS:
        headers = dict(record.headers)
        return LaneId(headers["topic"].decode(), int(headers["partition"])), int(headers["offset"])
    source = msgspec.json.decode(record.value)["source"]
    return LaneId(source["topic"], source["partition"]), source["offset"]


def turn(worker: Worker) -> Batch:
    """The body of the loop."""
    batch = worker.follow(worker.source.poll(worker.room()))
    parts = worker.judge(batch)
    worker.publish(parts)
    worker.learn(parts)
    worker.save_if_due()
    return batch


# A worker whose every part goes on when it is told to.


class AtOnce:
    """An executor without a thread: training is over when it begins."""

    def submit(self, job: Callable[..., Any], *args: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_result(job(*args))
        return future

    def shutdown(self, **_: bool) -> None:
        pass


def at_once(make: Callable[[], Learner]) -> Callable[[], Learner]:
    def made() -> Learner:
        learner = make()
        learner.close()
        learner._executor = AtOnce()  # type: ignore[assignment]
        return learner

    return made


class SteppedBackground:
    """A `Background` without a thread."""

    def __init__(self) -> None:
        self.jobs: deque[tuple[str, Callable[[], object]]] = deque()
        self.results: list[Result] = []

    @property
    def busy(self) -> bool:
        return bool(self.jobs)

    def submit(self, label: str, job: Callable[[], object]) -> None:
        self.jobs.append((label, job))

    def step(self) -> None:
        """Do the next job."""
        if self.jobs:
            label, job = self.jobs.popleft()
            error = None
            try:
                job()
            except CheckpointError as failed:
                error = failed
            self.results.append(Result(label, error, 0.0))

    def take_results(self) -> list[Result]:
        results, self.results = self.results, []
        return results

    def drain(self, _timeout_s: float) -> bool:
        while self.jobs:
            self.step()
        return True

    def close(self) -> None:
        self.jobs.clear()


class MoodyStore:
    """A store that fails while it is told to."""

    def __init__(self, store: Store) -> None:
        self.url = store.url
        self.fails = False
        self._store = store

    def put(self, name: str, data: bytes | bytearray) -> None:
        self._willing().put(name, data)

    def get(self, name: str) -> bytes:
        return self._willing().get(name)

    def size(self, name: str) -> int:
        return self._willing().size(name)

    def names(self, prefix: str) -> list[str]:
        return self._willing().names(prefix)

    def delete(self, name: str) -> None:
        self._willing().delete(name)

    def create(self, name: str, data: bytes | bytearray) -> bool:
        return self._willing().create(name, data)

    def _willing(self) -> Store:
        if self.fails:
            raise StoreUnavailableError("the store is away")
        return self._store


@dataclass(frozen=True)
class Habits:
    """What differs between clusters and deployments."""

    named: bool  # static members, with transactional ids that stay the same
    stays: bool  # when closed, until the session time-out
    rejoins_at_once: bool
    offsets_first: bool
    per_poll: int


@dataclass(frozen=True)
class Flow:
    """How life goes on after something happened: all that are awake go round so often."""

    turns: int
    records: int  # that come to each lane, before each turn
    steps: int  # of a transaction, after each turn
    saves: int  # jobs in the background, after each turn
    stages: int  # of one more turn, which is not finished, of one worker
    requests: int  # of a transaction, which is perhaps not finished, of that worker
    which: int


FLOWS = st.builds(
    Flow,
    turns=st.integers(0, 5),
    records=st.integers(0, 12),
    steps=st.sampled_from((0, 1, 4, 30)),
    saves=st.sampled_from((0, 1, 4)),
    stages=st.integers(0, 5),
    requests=st.integers(0, 5),
    which=st.integers(0, 2),
)


def happening(**arguments: Any) -> Callable[[Callable[..., None]], Any]:
    """A rule after which life goes on: hypothesis leaves rules out of most runs, and then nothing would go on."""

    def made(act: Callable[..., None]) -> Any:
        def acted(self: "Machine", flow: Flow, **given: Any) -> None:
            act(self, **given)
            self.go_on(flow)

        acted.__name__ = act.__name__
        a_rule: Any = rule(flow=FLOWS, **arguments)
        return a_rule(acted)

    return made


class Process:
    """A worker, and how far it has come in its turn."""

    def __init__(
        self, world: World, kafka: SimulatedKafka, store: Store, name: str, number: int, habits: Habits
    ) -> None:
        given, clock = world.settings, kafka.clock
        self.name = name
        self.paused = self.stopping = False
        self.source = SimulatedSource(
            kafka,
            name if habits.named else None,
            stays=habits.stays,
            per_poll=habits.per_poll * world.pace,
            rejoins_at_once=habits.rejoins_at_once,
        )
        self.transactor = Transactor(
            kafka, name if habits.named else f"{name}-{number}", offsets_first=habits.offsets_first
        )
        self.delivery = ExactlyOnce(given.commit, self.source, self.transactor, clock, lambda: self.stopping)
        shelf = Shelf(store, "g", KEEP, clock)
        shelf._unique = (
            f"{number:08d}"  # drawn at random otherwise: the same machine would do different things
        )
        self.worker = build(
            given,
            schema=SCHEMA,
            source=self.source,
            delivery=self.delivery,
            codec=JsonCodec(SCHEMA),
            clock=clock,
            shelf=shelf,
        )
        self.background = SteppedBackground()
        worker: Any = self.worker
        worker.background = worker.keeper._background = worker.releases._background = self.background
        worker.make_learner = at_once(worker.make_learner)
        self._at = 0
        self._batch = Batch(())
        self._parts: list[Part] = []
        self._stages: list[Callable[[], None]] = [
            self._poll, self._follow, self._judge, self._publish, self._learn, worker.save_if_due,
        ]  # fmt: skip

    def stage(self) -> None:
        """The next part of a turn."""
        at, self._at = self._at, (self._at + 1) % len(self._stages)
        self._stages[at]()

    def turn(self) -> None:
        """What is left of a turn."""
        self.stage()
        while self._at:
            self.stage()

    def rest(self) -> None:
        """What is left of a turn, if one was begun."""
        if self._at:
            self.turn()

    def _poll(self) -> None:
        self._batch = self.source.poll(self.worker.room())

    def _follow(self) -> None:
        self._batch = self.worker.follow(self._batch)

    def _judge(self) -> None:
        self._parts = self.worker.judge(self._batch)

    def _publish(self) -> None:
        self.worker.publish(self._parts)

    def _learn(self) -> None:
        self.worker.learn(self._parts)

    @property
    def idle(self) -> bool:
        """Whether all it has judged is final and saved."""
        delivery = self.delivery
        return delivery._under_way is None and not delivery._held.lanes and not self.background.busy


class Machine(RuleBasedStateMachine):
    """Drives a world; see the head of this file."""

    world: World
    processes_max = 3

    def __init__(self) -> None:
        super().__init__()
        self.running: list[Process] = []
        self.left_behind: list[tuple[Attempt, bool]] = []  # and whether its process lives on
        self.made = 0
        self.begun = False

    @initialize(
        partitions=st.integers(1, 3),
        seed=st.integers(0, SEEDS - 1),
        habits=st.builds(
            Habits, st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.sampled_from((8, 32))
        ),
        others_go_on=st.booleans(),
        processes=st.integers(1, 3),
    )
    def begin(self, partitions: int, seed: int, habits: Habits, others_go_on: bool, processes: int) -> None:
        world = self.world
        self.seed, self.habits, self.others_go_on = seed, habits, others_go_on
        self.kafka = SimulatedKafka(SteppingClock(), min(partitions, world.lanes_max))
        self.kafka.wait = self.meanwhile
        self.store = new_store(base(world))
        self.moody = MoodyStore(self.store)
        self.lanes = sorted(self.kafka.input)
        self.decided = dict.fromkeys(self.lanes, world.begin)
        self.seen_committed = dict(self.decided)
        self.checked = 0
        for name in self.lanes:
            if world.begin:
                self.kafka.set_committed(name, Position(world.begin))
            self.produce(name, 3)
        self.begun = True
        for i in range(processes):
            self.launch(i)
        self.go_on(Flow(turns=4, records=5, steps=9, saves=3, stages=0, requests=0, which=0))

    # What goes on outside.

    def go_on(self, flow: Flow) -> None:
        """Life goes on."""
        for _ in range(flow.turns):
            for name in self.lanes:
                self.produce(name, flow.records * self.world.pace)
            self.kafka.tick(0.3)
            for process in self.awake:
                self.go_round(process, flow.steps, flow.saves)
        if self.awake:
            process = self.awake[flow.which % len(self.awake)]
            if all(self.alive(process, process.stage) for _ in range(flow.stages)):
                for _ in range(flow.requests):
                    process.transactor.step()

    def go_round(self, process: Process, steps: int, saves: int) -> None:
        if self.alive(process, process.turn):
            for _ in range(steps):
                process.transactor.step()
            for _ in range(saves):
                process.background.step()

    def produce(self, name: LaneId, n: int) -> None:
        """Records come."""
        stored = self.kafka.input[name]
        for gap, value in script(self.world, self.seed, name.partition)[len(stored) :][:n]:
            self.kafka.put(name, value, gap)

    @happening(seconds=st.sampled_from((0.1, 1.0, 6.0, 16.0, 25.0)))
    def pass_time(self, seconds: float) -> None:
        self.kafka.tick(seconds)

    @happening(which=st.integers(0, 5))
    def mark(self, which: int) -> None:
        """A marker of a decided transaction is written."""
        self.kafka.mark(which)

    @happening(fails=st.booleans())
    def let_the_store(self, fails: bool) -> None:
        self.moody.fails = fails

    @happening(what=st.sampled_from(("g/lanes", "g/learner")), which=st.integers(0, 2))
    def tear(self, what: str, which: int) -> None:
        """The newest file of a lane, or of the learner, is torn; a way back is left: see `way_back`."""
        folders: dict[str, list[str]] = {}
        names = self.store.names(what)
        for name in names:
            if not name.endswith(".pin") and f"{name}.pin" not in names:
                folders.setdefault(name.rpartition("/")[0], []).append(name)
        if folders:
            newest = folders[sorted(folders)[which % len(folders)]][-1]
            whole = self.store.get(newest)
            self.store.put(newest, whole[:100])
            if not self.way_back():
                self.store.put(newest, whole)

    def way_back(self) -> bool:
        """Whether each lane has a sound state, and the learner one that has seen each lane at least up to there."""
        shelf = Shelf(self.store, "g", KEEP, self.kafka.clock)
        learner = shelf.learner()
        positions = learner.state["positions"] if learner is not None else {}
        if self.world.learns and learner is None:
            return False
        return all(shelf.lane(name, "", positions.get(str(name))) is not None for name in self.lanes)

    def meanwhile(self) -> None:
        """Somebody waits: time passes, and the transactions of all that are awake go on, or they do not."""
        if self.others_go_on:
            for process in self.awake:
                process.transactor.step()
        self.kafka.tick(1.0)

    # What workers do.

    @property
    def awake(self) -> list[Process]:
        return [process for process in self.running if not process.paused]

    @precondition(lambda self: self.awake)
    @happening(which=st.integers(0, 2), steps=st.integers(1, 20))
    def step(self, which: int, steps: int) -> None:
        """A transaction goes on."""
        for _ in range(steps):
            self.awake[which % len(self.awake)].transactor.step()

    @precondition(lambda self: self.awake)
    @happening(which=st.integers(0, 2))
    def hear(self, which: int) -> None:
        """The client of a worker goes on with the group by itself, between two polls."""
        process = self.awake[which % len(self.awake)]
        if not process.source.deaf:
            self.alive(process, process.source.hear)

    @precondition(lambda self: self.awake)
    @happening(which=st.integers(0, 2), arrives=st.booleans())
    def lose_answer(self, which: int, arrives: bool) -> None:
        """The next request of a transaction, which may or may not arrive, has no answer."""
        attempt = self.awake[which % len(self.awake)].transactor.attempt
        if attempt is not None and not attempt.done:
            if arrives:
                attempt.step()
            attempt.fail(errors.KafkaConnectionError("no answer"))

    @precondition(lambda self: self.left_behind)
    @happening(which=st.integers(0, 9))
    def arrive_late(self, which: int) -> None:
        """A request arrives whose sender is dead, or has given up."""
        attempt, lives = self.left_behind.pop(which % len(self.left_behind))
        attempt.step()
        if lives and not attempt.done:
            self.left_behind.append((attempt, lives))

    @precondition(lambda self: len(self.running) < self.processes_max)
    @happening(name=st.integers(0, 2))
    def start(self, name: int) -> None:
        """A worker starts; one that had its name may still be there, asleep."""
        if not any(process.name == f"w{name}" for process in self.awake):
            self.launch(name)

    def launch(self, name: int) -> None:
        self.made += 1
        process = Process(self.world, self.kafka, self.moody, f"w{name}", self.made, self.habits)
        self.running.append(process)
        self.alive(process, process.worker.restore)

    @precondition(lambda self: self.running)
    @happening(which=st.integers(0, 2), returns=st.booleans())
    def crash(self, which: int, returns: bool) -> None:
        """A worker is gone, with all it had in memory; a request of it may be under way. It may be started again."""
        process = self.running.pop(which % len(self.running))
        process.source.dead = True
        process.transactor.close()
        self.left_behind += [(attempt, False) for attempt in process.transactor.left_behind]
        if returns:
            self.launch(int(process.name[1:]))

    @precondition(lambda self: self.awake)
    @happening(which=st.integers(0, 2), deaf=st.booleans())
    def pause(self, which: int, deaf: bool) -> None:
        """A worker is stopped, or hears nothing of its group any more."""
        process = self.awake[which % len(self.awake)]
        process.source.deaf = True
        process.paused = not deaf

    @precondition(lambda self: any(process.source.deaf for process in self.running))
    @happening(which=st.integers(0, 2), hears=st.booleans())
    def resume(self, which: int, hears: bool) -> None:
        """A worker goes on where it was, and may not know for a while what happened in its absence."""
        deaf = [process for process in self.running if process.source.deaf]
        process = deaf[which % len(deaf)]
        process.paused = False
        process.source.deaf = not hears

    @precondition(lambda self: self.awake)
    @happening(which=st.integers(0, 2))
    def stop(self, which: int) -> None:
        """A worker ends as it should."""
        process = self.awake[which % len(self.awake)]
        if process.source.deaf or not self.alive(process, process.rest):
            return
        process.stopping = True
        process.source.waiting = self.going_on_beside(process)
        if self.alive(process, process.worker.finish):
            self.end(process)

    def going_on_beside(self, process: Process) -> Callable[[], None]:
        waited = iter(range(300))

        def go_on() -> None:
            assert next(waited, None) is not None, "a worker that was asked to stop does not end"
            for one in self.awake:
                if one is process or self.alive(one, one.turn):
                    for _ in range(20):
                        one.transactor.step()
            self.kafka.tick(0.5)

        return go_on

    def alive(self, process: Process, act: Callable[[], object]) -> bool:
        """Have a worker do something; False if it ended over it."""
        try:
            act()
        except BrokerError as error:
            if "taken the name" not in str(error):
                raise
            self.end(process)
        except BrokerUnavailableError:  # it could not commit in time: judged again by whoever comes
            if not process.stopping:
                raise
            self.end(process)
        self.left_behind += [(attempt, True) for attempt in process.transactor.left_behind]
        process.transactor.left_behind.clear()
        return process in self.running

    def end(self, process: Process) -> None:
        self.running.remove(process)
        process.worker.close()

    # What holds at any time.

    @invariant()
    def holds(self) -> None:
        self.each_commit_makes_final_what_lies_between_its_offsets()
        self.a_subscriber_sees_nothing_twice()
        self.committed_offsets_never_go_back()
        self.no_checkpoint_is_ahead_of_what_is_committed()

    def expected(self, name: LaneId) -> Reference:
        return reference(self.world, self.seed, name.partition, self.world.length)

    def each_commit_makes_final_what_lies_between_its_offsets(self) -> None:
        for decision in self.kafka.decisions[self.checked :]:
            due: list[tuple[str, LaneId, int, object]] = []
            for name, at in decision.offsets.items():
                before, self.decided[name] = self.decided[name], at.offset
                assert at.offset >= before, f"{name} was set back from {before} to {at.offset}"
                due += self.due(name, before, at.offset)
            found = [(record.topic, *place(record), told(record)) for record in decision.records]
            by_place = sorted(found, key=lambda one: one[:3]), sorted(due, key=lambda one: one[:3])
            assert [one[:3] for one in by_place[0]] == [one[:3] for one in by_place[1]]
            assert by_place[0] == by_place[1]
        self.checked = len(self.kafka.decisions)

    def due(self, name: LaneId, start: int, stop: int) -> list[tuple[str, LaneId, int, object]]:
        expected = self.expected(name)
        return [
            (topic, name, offset, content)
            for topic, by_offset in ((ALERTS, expected.alerts), (DEAD_LETTERS, expected.dead_letters))
            for offset, content in by_offset.items()
            if start <= offset < stop
        ]

    def a_subscriber_sees_nothing_twice(self) -> None:
        for topic in (ALERTS, DEAD_LETTERS):
            seen = [place(record) for record in self.kafka.visible(topic)]
            assert len(seen) == len(set(seen))

    def committed_offsets_never_go_back(self) -> None:
        for name in self.lanes:
            if name not in self.kafka._committed:
                continue
            at = self.kafka._committed[name][1].offset
            assert self.seen_committed[name] <= at <= self.decided[name]
            self.seen_committed[name] = at

    def no_checkpoint_is_ahead_of_what_is_committed(self) -> None:
        for name in self.store.names("g/lanes"):
            parts = name.split("/")
            one = lane(int(parts[4]))
            if one in self.decided and not name.endswith(".pin"):
                assert int(parts[5].partition("-")[0]) <= self.decided[one], name

    # The end.

    def teardown(self) -> None:
        if not self.begun:
            return
        try:
            self.come_to_rest()
            self.compare()
        finally:
            empty(self.store)

    def come_to_rest(self) -> None:
        """Everything goes on until nothing is left to do."""
        self.moody.fails = False
        for attempt, _ in self.left_behind:
            attempt.step()
        self.left_behind.clear()
        for process in self.running:
            process.paused = process.source.deaf = False
        for i in range(ROUNDS_MAX):
            if not self.running:
                self.launch(0)
            for process in self.awake:
                self.go_round(process, steps=50, saves=50)
            self.kafka.tick(1.0)
            self.each_commit_makes_final_what_lies_between_its_offsets()
            if i > 5 and self.rests():
                self.kafka.tick(
                    2 * TRANSACTION_S
                )  # what the dead left open holds subscribers back until then
                return
            if i == 100:
                # A static member that comes back amid the two steps of a rebalance is given what it had, and no third
                # generation follows by itself: the lane that was on its way belongs to nobody until something happens.
                self.kafka.group.rebalance()
        raise AssertionError("the workers do not come to rest")

    def rests(self) -> bool:
        last = {name: self.kafka.input[name][-1].offset for name in self.lanes}
        reached = [*self.decided.items()]  # and by those that judge again what is committed
        reached += [(n, kept.next_offset) for one in self.running for n, kept in one.worker.lanes.items()]
        return all(at > last[name] for name, at in reached) and all(process.idle for process in self.running)

    def compare(self) -> None:
        everything = sorted(
            one[:3]
            for name in self.lanes
            for one in self.due(name, self.world.begin, self.kafka.input[name][-1].offset + 1)
        )
        visible = [r for topic in (ALERTS, DEAD_LETTERS) for r in self.kafka.visible(topic)]
        assert sorted((record.topic, *place(record)) for record in visible) == everything
        for process in self.running:
            for name, kept in process.worker.lanes.items():
                length = len(self.kafka.input[name])
                at_end = reference(self.world, self.seed, name.partition, length)
                assert digest(kept.state()) == at_end.lane
                if self.world.learns:
                    assert process.worker.learner is not None
                    assert digest(process.worker.learner.state()) == at_end.learner


class SeveralLanes(Machine):
    world = SEVERAL


class OneLaneThatLearns(Machine):
    world = ONE


class OneLaneFromTheStart(Machine):
    world = FROM_THE_START


@pytest.fixture(autouse=True)
def short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder, "STEPS_FIRST", 8)
    monkeypatch.setattr(autoencoder, "STEPS_FINE_TUNE", 4)


# Without the phase that explains a failure, which traces every line and takes minutes.
HARD = settings(
    stateful_step_count=25,
    max_examples=30 if settings.get_current_profile_name() == "ci" else 150,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
)
# A failure is expected, and need not be small.
BROKEN = settings(
    HARD, derandomize=True, database=None, print_blob=False, max_examples=200, phases=(Phase.generate,)
)


def test_several_lanes_are_published_once_and_their_state_is_kept() -> None:
    run_state_machine_as_test(SeveralLanes, settings=HARD)


def test_one_lane_that_learns_is_published_once_and_its_learner_is_kept() -> None:
    run_state_machine_as_test(OneLaneThatLearns, settings=HARD)


def test_one_lane_that_learns_from_the_start_is_published_once_and_its_learner_is_kept() -> None:
    run_state_machine_as_test(OneLaneFromTheStart, settings=HARD)


# The machine finds what is broken on purpose.


def forgetting_what_was_published(begin: Callable[..., None]) -> Callable[..., None]:
    def begun(lanes: Lanes, name: LaneId, learnt: int | None) -> None:
        begin(lanes, name, learnt)
        lanes[name].published = 0

    return begun


def not_waiting_for_the_commit(turn: Callable[..., None]) -> Callable[..., None]:
    return lambda keeper, lanes, _final: turn(keeper, lanes, 2**62)


def as_if_nothing_counted(_reached: Callable[..., bool]) -> Callable[..., bool]:
    return lambda *_: False


def as_if_all_counted(_reached: Callable[..., bool]) -> Callable[..., bool]:
    return lambda *_: True


def as_if_all_were_still_here(membership: Callable[..., Any]) -> Callable[..., Any]:
    return lambda source, lanes: (membership(source, lanes)[0], frozenset(lanes))


def without_repeating_adoptions(_recall: Callable[..., None]) -> Callable[..., None]:
    return lambda *_: None


@pytest.mark.parametrize(
    ("machine", "owner", "name", "broken"),
    [
        (SeveralLanes, ExactlyOnce, "_reached", as_if_nothing_counted),
        (SeveralLanes, ExactlyOnce, "_reached", as_if_all_counted),
        (SeveralLanes, Lanes, "begin", forgetting_what_was_published),
        (SeveralLanes, Keeper, "turn", not_waiting_for_the_commit),
        (OneLaneThatLearns, Lane, "recall", without_repeating_adoptions),
    ],
)
def test_the_machine_finds_what_is_broken_on_purpose(
    monkeypatch: pytest.MonkeyPatch,
    machine: type[Machine],
    owner: type,
    name: str,
    broken: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> None:
    reference_runs(machine.world)  # by what is whole
    monkeypatch.setattr(owner, name, broken(getattr(owner, name)))
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=BROKEN)
