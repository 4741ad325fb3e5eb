"""The life of a group of workers that is broken on purpose, and its comparison with an uninterrupted one.

All that is needed to repeat a failure is in what a failed comparison says: the seed, each fault with what was committed
then, which alerts are missing, repeated or unlike between which faults, and where the logs are.
"""

import contextlib
import json
import signal
import threading
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from chaos_kafka import Asking
from chaos_published import Difference, Published, difference, position, published
from fakes import QUICK, SCHEMA, readings
from kafka import KafkaProducer
from live import Running, free_port, until

from fault.zygote import Zygote
from streamdet.checkpoint.format import Packed, unpack
from streamdet.checkpoint.shelf import RELEASE, Shelf
from streamdet.checkpoint.store import open_store
from streamdet.clock import SystemClock

DRAINED_S = 60.0
WARMUP = QUICK["learning"]["warmup"] + 100
EACH_PREPARED = 200


@dataclass(eq=False)
class Group:
    """A consumer group with its settings, outputs and checkpoint folder, and all workers it ever had."""

    zygote: Zygote
    asking: Asking
    folder: Path
    topic: str
    partitions: int = 1
    given: dict[str, dict[str, Any]] = field(default_factory=dict)
    name: str = field(default_factory=lambda: f"g-{uuid.uuid4().hex[:8]}")
    faults: list[str] = field(default_factory=list)
    _workers: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        """Quick ones for `fakes.readings`, and what this group was given."""
        base: dict[str, dict[str, Any]] = {
            **QUICK,
            "kafka": {"bootstrap_servers": self.asking.servers},
            "input": {
                "topics": [self.topic],
                "group_id": self.name,
                "timestamp": "ts",
                "entity": "device",
                "features": {"numeric": list(SCHEMA.numeric), "categorical": list(SCHEMA.categorical)},
                "session_timeout_ms": 6_000,
            },
            "alerts": {"topic": f"{self.topic}.{self.name}.alerts"},
            "dead_letters": {"topic": f"{self.topic}.{self.name}.dead-letters"},
            "checkpoint": {"url": str(self.folder / "state"), "every_s": 0.2},
        }
        return {name: {**base.get(name, {}), **self.given.get(name, {})} for name in base | self.given}

    def beside(self, folder: str) -> "Group":
        """Another group with the same settings on the same topic."""
        return Group(
            self.zygote, self.asking, self.folder.parent / folder, self.topic, self.partitions, self.given
        )

    def worker(self, crash: str = "", *, metrics: bool = False) -> Running:
        """One more worker; it kills itself at a crash (see `crash.py`)."""
        self._workers += 1
        settings = self.settings
        if metrics:
            settings["serve"] = {"http": f"127.0.0.1:{free_port()}"}
        return Running(
            self.folder / f"worker-{self._workers}",
            settings,
            lambda arguments, folder, log: self.zygote.fork(arguments, folder, log, crash),
        )

    def committed(self) -> list[int]:
        """Where the group stands in each partition; 0 where it has committed nothing."""
        return [max(at, 0) for at in self.asking.committed(self.name, self.topic, self.partitions)]

    def await_committed(self, offsets: Sequence[int], *workers: Running) -> None:
        """Return when the group stands there; fail if one of its workers ends before."""

        def there() -> bool:
            for worker in workers:
                assert worker.alive, f"a worker ended:\n{worker.log}"
            return self.committed() == list(offsets)

        until(there, f"{self.name} committed {list(offsets)}", DRAINED_S)

    def finish(self, worker: Running, offsets: Sequence[int]) -> None:
        """Let a worker come to the end, and stop it in order."""
        self.await_committed(offsets, worker)
        # Where earlier workers have committed it all, this one may still be on its way there, or not even listen.
        until(lambda: worker.back or not worker.alive, f"{self.name} back where it was", DRAINED_S)
        worker.signal(signal.SIGTERM)
        code = worker.ended()
        assert code == 0, f"exit code {code}:\n{worker.log}"

    def note(self, fault: str) -> None:
        """Remember a fault with what was committed when it had happened."""
        self.faults.append(f"{len(self.faults) + 1:>4} {fault:<32} committed {self.committed()}")

    def published(self) -> Published:
        """What a subscriber to committed records has seen."""
        settings = self.settings
        return published(self.asking.servers, settings["alerts"]["topic"], settings["dead_letters"]["topic"])

    def states(self) -> dict[str, Packed]:
        """The newest checkpoint of each lane and of the learner, by kind, partition and offset."""
        store = open_store(self.settings["checkpoint"]["url"])
        newest: dict[str, tuple[int, str]] = {}
        for entry in Shelf(store, self.name, 1, SystemClock()).entries():
            if entry.kind != RELEASE:
                name = f"{entry.kind} {entry.partition}"
                newest[name] = max(newest.get(name, (-1, "")), (entry.at, entry.name))
        return {f"{name} at {at}": unpack(store.get(file), file) for name, (at, file) in newest.items()}


class Stream:
    """Records of one partition, with spikes and bad ones all over, written piece by piece."""

    def __init__(self, servers: str, topic: str, seed: int, n: int, partition: int = 0) -> None:
        self.values = readings(n, seed=seed, spikes=range(40, n, 97))
        self.values[70::151] = [b"garbage"] * len(self.values[70::151])
        self.written = 0
        self._topic, self._partition = topic, partition
        self._producer = KafkaProducer(
            bootstrap_servers=servers.split(","), acks="all", linger_ms=2, request_timeout_ms=5_000
        )

    def write(self, n: int) -> int:
        """Write so many more; return how many there are when Kafka has them."""
        for value in self.values[self.written : self.written + n]:
            self._producer.send(self._topic, value, key=b"k", partition=self._partition)
        self._producer.flush()
        self.written = min(self.written + n, len(self.values))
        return self.written

    def close(self) -> None:
        self._producer.close()


@contextlib.contextmanager
def streams(group: "Group", seed: int, n: int) -> Iterator[list[Stream]]:
    """One for each partition of the group's topic."""
    with contextlib.ExitStack() as stack:
        made = [Stream(group.asking.servers, group.topic, seed + p, n, p) for p in range(group.partitions)]
        for one in made:
            stack.callback(one.close)
        yield made


@contextlib.contextmanager
def flowing(written: Sequence[Stream], each: int, every_s: float) -> Iterator[None]:
    """Write so many records to each, again and again, while the block runs."""
    end = threading.Event()

    def write() -> None:
        while not end.wait(every_s):
            for one in written:
                one.write(each)

    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(write)
        try:
            yield
        finally:
            end.set()
        done.result(timeout=DRAINED_S)


def prepare(groups: Sequence["Group"], written: Sequence[Stream]) -> None:
    """Bring several groups to where their runs over several lanes must be the same.

    One model learns from all lanes, in the order in which Kafka hands their records over, which no second run repeats;
    and a lane takes a version up where it happens to be when that is there. So learning is off, and all that is ever
    learnt is the warm-up, from the records of one lane alone. Then some records go to every lane: each has taken the
    only model up at its first record, and stands at the same offset with the same limits in every group.
    """
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(group.worker()) for group in groups]
        written[0].write(WARMUP)
        at = [stream.written for stream in written]
        for group, worker in zip(groups, workers, strict=True):
            group.await_committed(at, worker)
        for stream in written:
            stream.write(EACH_PREPARED)
        at = [stream.written for stream in written]
        for group, worker in zip(groups, workers, strict=True):
            group.finish(worker, at)


def reference(group: Group, offsets: Sequence[int]) -> Group:
    """Another group with the same settings on the same topic, from its beginning to its end without interruption."""
    other = Group(
        group.zygote,
        group.asking,
        group.folder.parent / "reference",
        group.topic,
        group.partitions,
        group.given,
    )
    with other.worker() as worker:
        other.finish(worker, offsets)
    return other


def assert_equal(group: Group, expected: Group, *, learner: bool = True) -> None:
    """Fail, with all that is needed to find out why, unless both published and remember the same."""
    found, wanted = group.published(), expected.published()
    differs = difference(found, wanted)
    assert not differs, _explained(group, differs, found, wanted)
    states, as_expected = group.states(), expected.states()
    if not learner:  # which saw the records of several lanes in another order
        for packed in (states, as_expected):
            for name in [name for name in packed if name.startswith("learner")]:
                del packed[name]
    unlike = [
        f"{name} differs in {', '.join(_unlike(states[name].state, as_expected[name].state))}"
        for name in states.keys() & as_expected.keys()
        if states[name].digest != as_expected[name].digest
    ]
    assert states.keys() == as_expected.keys(), f"logs in {group.folder}"
    assert not unlike, "\n".join([f"states differ; logs in {group.folder}", *unlike, *group.faults])


def _unlike(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two trees differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(one.keys() | other.keys())
        return [found for key in keys for found in _unlike(one.get(key), other.get(key), f"{path}/{key}")]
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        same = one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()
    else:
        same = one == other
    return [] if same else [path]


def _explained(group: Group, differs: Difference, found: Published, wanted: Published) -> str:
    lines = [f"{differs}; logs in {group.folder}", "faults, each with what was committed after it:"]
    lines += group.faults
    for kind in ("missing", "unexpected", "repeated", "unlike"):
        for name in getattr(differs, kind)[:20]:
            _, partition, offset = position(name)
            lines.append(f"{kind}: {name} {_when(group.faults, partition, offset)}")
    for name in differs.unlike[:3]:
        lines += [name, f"  found    {found[name][0]}", f"  expected {wanted[name][0]}"]
    return "\n".join(lines)


def _when(faults: Sequence[str], partition: int, offset: int) -> str:
    """After which fault an offset was first committed."""
    for fault in faults:
        offsets = json.loads(fault[fault.rindex("[") :])
        if offsets[partition] > offset:
            return f"was committed before fault {fault.split()[0]}"
    return "was committed after the last fault"
