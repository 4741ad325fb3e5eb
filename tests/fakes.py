"""Source, sink and clock in memory for tests of the worker, streams for it to judge, and a worker put together.

Source and sink note what was asked of them in one journal. The source behaves as a consumer group does: lanes can
be taken away and given back, and after that reading goes on at the committed offset. The contract tests hold for
both as for the real ones.
"""

import math
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from streamdet.app import build
from streamdet.checkpoint.shelf import Shelf
from streamdet.checkpoint.store import LocalStore, open_store
from streamdet.clock import Clock, SystemClock
from streamdet.codec.json import JsonCodec
from streamdet.config import parse
from streamdet.delivery.at_least_once import AtLeastOnce
from streamdet.errors import StoreUnavailableError
from streamdet.events import (
    Alert,
    Batch,
    FeatureShare,
    LaneId,
    Mode,
    Position,
    Records,
    Reject,
    Schema,
    SourcePosition,
)
from streamdet.parts import Observer, Part
from streamdet.sink import Sink
from streamdet.source import Source
from streamdet.worker import Worker


class SteppingClock:
    """Time that passes only when somebody waits or the test says so."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def now_ms(self) -> int:
        return int(self.now_s * 1000)

    def monotonic_s(self) -> float:
        return self.now_s

    def sleep_s(self, seconds: float) -> None:
        assert seconds > 0
        self.now_s += seconds


class FakeSource:
    """Lanes of given values. `offsets` and `notes` are what the group has committed; they outlive the source.

    Args:
        lanes: values by lane; the offset of a value is its place.
        offsets: what the group has committed; changed by `commit`.
        notes: what was committed with the offsets; lanes without a note are left out, and `commit` changes it too.
        journal: takes one line for each call that changes anything.
        endless: never exhausted, as a topic is.
        per_poll: records of one poll, at most.

    `before_poll` holds what is to happen before the first, second, ... poll, those for 0 records included. Set
    `leading` to what `leads` is to say, and an entry of `topic_ids` where topics are told apart.
    """

    def __init__(
        self,
        lanes: Mapping[LaneId, Sequence[bytes | None]],
        offsets: dict[LaneId, int] | None = None,
        journal: list[Any] | None = None,
        *,
        notes: dict[LaneId, str] | None = None,
        endless: bool = False,
        per_poll: int = 1_000_000,
    ) -> None:
        self.stored = dict(lanes)
        self.offsets = {} if offsets is None else offsets
        self.notes = {} if notes is None else notes
        self.leading = True
        self.topic_ids: dict[str, str] = {}
        self.journal = [] if journal is None else journal
        self.before_poll: dict[int, Callable[[], None]] = {}
        self._polls = 0
        self._endless = endless
        self._per_poll = per_poll
        self._mine = set(self.stored)
        self._given: set[LaneId] = set()  # known, but nothing of them has come yet
        self._next = {lane: self.offsets.get(lane, 0) for lane in self.stored}

    @property
    def exhausted(self) -> bool:
        return not self._endless and all(self._next[ln] >= len(self.stored[ln]) for ln in self._mine)

    @property
    def lanes(self) -> Set[LaneId]:
        return frozenset(self._mine)

    @property
    def leads(self) -> bool:
        return self.leading

    def topic_id(self, topic: str) -> str:
        return self.topic_ids.get(topic, "")

    def take_away(self, lane: LaneId) -> None:
        """Another member of the group has the lane from now on."""
        self._mine.remove(lane)

    def give(self, lane: LaneId) -> None:
        """The lane is this worker's, and goes on where the group committed."""
        self._mine.add(lane)
        self._given.add(lane)
        self._next[lane] = self.offsets.get(lane, 0)

    def poll(self, max_events: int) -> Batch:
        self._polls += 1
        self.before_poll.get(self._polls, lambda: None)()
        self.journal.append("poll")
        left = min(max_events, self._per_poll)
        share = max(left // max(len(self._mine), 1), 1)
        parts = []
        given, self._given = self._given, set()
        for lane in sorted(self._mine - given):
            start = self._next[lane]
            values = self.stored[lane][start : start + min(share, left)]
            if values:
                offsets = np.arange(start, start + len(values), dtype=np.int64)
                keys = [b"%d" % offset for offset in offsets.tolist()]
                parts.append(Records(lane, offsets, 1_700_000_000_000 + 1_000 * offsets, keys, list(values)))
                self._next[lane] = start + len(values)
                left -= len(values)
        return Batch(parts)

    def seek(self, lane: LaneId, offset: int) -> None:
        self.journal.append(("seek", lane, offset))
        self._next[lane] = offset

    def committed(self, lane: LaneId) -> Position | None:
        if lane not in self.offsets:
            return None
        return Position(self.offsets[lane], self.notes.get(lane, ""))

    def lag(self) -> Mapping[LaneId, int]:
        return {}

    def commit(self, positions: Mapping[LaneId, Position]) -> bool:
        self.journal.append(("commit", dict(positions)))
        for lane, position in positions.items():
            self.offsets[lane] = position.offset
            self.notes.pop(lane, None)
            if position.note:
                self.notes[lane] = position.note
        return True

    def close(self) -> None:
        self.journal.append("close source")


SENSORS = LaneId("sensors", 0)


def sample_alert(offset: int = 7, lane: LaneId = SENSORS, **changes: Any) -> Alert:
    """One whose content does not matter, but for what is given."""
    whole = Alert(
        id=f"{lane}/{offset}",
        event_time="2026-03-01T12:00:00.000Z",
        detected_at="2026-03-01T12:00:00.250Z",
        entity="pump-4",
        score=2.5,
        raw_score=20.0,
        limit=8.0,
        p_value=2e-9,
        severity="major",
        mode="ready",
        features=[FeatureShare("temperature", 90.0, 20.0, 1.0)],
        model_version="0123456789ab",
        source=SourcePosition(lane.topic, lane.partition, offset),
        event={"temperature": 90.0},
    )
    return msgspec.structs.replace(whole, **changes)


class AwayStore(LocalStore):
    """A folder that cannot be read while it is away, or what has `part` in its name cannot."""

    away = False
    part = ""

    def names(self, prefix: str) -> list[str]:
        if self.away and self.part in prefix:
            raise StoreUnavailableError("the store does not answer")
        return super().names(prefix)


class FakeSink:
    """Keeps what arrived; hands over on `flush`, which can be told to fail."""

    def __init__(self, journal: list[Any] | None = None) -> None:
        self.journal = [] if journal is None else journal
        self.alerts: list[Alert] = []
        self.rejects: list[Reject] = []
        self.flush_error: Exception | None = None
        self._handed: list[tuple[Sequence[Alert], Sequence[Reject]]] = []

    @property
    def ids(self) -> list[str]:
        """Of the alerts that arrived."""
        return [alert.id for alert in self.alerts]

    def publish(self, alerts: Sequence[Alert], rejects: Sequence[Reject]) -> None:
        self.journal.append("publish")
        self._handed.append((list(alerts), list(rejects)))

    def flush(self) -> None:
        self.journal.append("flush")
        if self.flush_error is not None:
            raise self.flush_error
        for alerts, rejects in self._handed:
            self.alerts += alerts
            self.rejects += rejects
        self._handed = []

    def close(self) -> None:
        self.journal.append("close sink")


class StopAfter:
    """A stop that is requested once so many batches were judged; also an observer that sees what was judged."""

    def __init__(self, batches: float = math.inf) -> None:
        self._left = batches
        self.requested = batches <= 0
        self.parts: list[Part] = []

    def judged(self, parts: Sequence[Part]) -> None:
        self.parts += parts
        self._left -= 1
        self.requested = self._left <= 0

    def offsets(self, lane: LaneId) -> list[int]:
        """Of the events of a lane, in the order in which they were judged."""
        return [o for part in self.parts if part.lane == lane for o in part.decoded.events.offsets.tolist()]

    def modes(self, lane: LaneId) -> list[Mode]:
        """Of the verdicts of a lane, in the order in which they were given."""
        return [Mode(m) for part in self.parts if part.lane == lane for m in part.verdicts.mode.tolist()]


SCHEMA = Schema("ts", "device", ("temperature", "pressure", "flow"), ("site",))
# As little warm-up as there may be, and fine-tunes close together: streams in tests are short.
QUICK: dict[str, Any] = {
    "model": {"device": "cpu"},
    "limit": {"alert_rate": 0.01, "window": 1_000},
    "learning": {"warmup": 512, "every": 1_280, "lag": 300, "buffer": 512},
}


def reading(
    i: int, rng: np.random.Generator, *, entities: int = 4, missing: float = 0.0, spike: bool = False
) -> bytes:
    """One event of a plant: readings that follow each other, and how many degrees too hot a spike is."""
    device = int(rng.integers(entities))
    load = float(np.sin(i / 50 + device)) + 0.1 * float(rng.standard_normal())
    fields: dict[str, object] = {
        "ts": 1_750_000_000_000 + 1_000 * i,
        "device": f"d{device}",
        "temperature": round(60 + 5 * load + 0.3 * float(rng.standard_normal()), 3),
        "pressure": round(3 + 0.5 * load + 0.02 * float(rng.standard_normal()), 3),
        "flow": round(10 - 2 * load + 0.1 * float(rng.standard_normal()), 3),
        "site": "north" if device % 2 else "south",
    }
    if missing and rng.random() < missing:
        del fields["flow"]
    if spike:
        fields["temperature"] = 140.0
    return msgspec.json.encode(fields)


def readings(n: int, seed: int = 1, spikes: Collection[int] = (), **how: Any) -> list[bytes | None]:
    """A stream of them; those at `spikes` are anomalous."""
    rng = np.random.default_rng(seed)
    return [reading(i, rng, spike=i in spikes, **how) for i in range(n)]


def worker_over(
    source: Source,
    sink: Sink,
    *,
    schema: Schema = SCHEMA,
    clock: Clock | None = None,
    shelf: Shelf | None = None,
    observers: Sequence[Observer] = (),
    **settings: Any,
) -> Worker:
    """A worker put together as the program does it, on JSON and with quick settings, which the given ones replace."""
    given = parse({**QUICK, **settings})
    clock = SteppingClock() if clock is None else clock
    return build(
        given,
        schema=schema,
        source=source,
        delivery=AtLeastOnce(given.commit, source, sink, clock),
        codec=JsonCodec(schema, reject_unusable=given.input.unusable == "reject"),
        clock=clock,
        shelf=shelf,
        observers=observers,
    )


class Group:
    """What outlives a worker: what its group has committed, and what it keeps in a folder.

    Each worker has a source and a view of the shelf of its own, as if it were a process of its own.
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder = folder
        self.keep = keep
        self.offsets: dict[LaneId, int] = {}
        self.notes: dict[LaneId, str] = {}

    def copied(self, folder: Path) -> "Group":
        """The same, for a test to change."""
        other = Group(folder, self.keep)
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        other.offsets |= self.offsets
        other.notes |= self.notes
        return other

    @property
    def shelf(self) -> Shelf:
        """A view of what is kept. Names of releases begin with the time: so it is one that passes."""
        return Shelf(open_store(str(self.folder)), "group", self.keep, SystemClock())

    def source(self, lanes: Mapping[LaneId, Sequence[bytes | None]], **how: Any) -> FakeSource:
        """A member's view of the topic."""
        return FakeSource(lanes, self.offsets, notes=self.notes, **how)

    def worker(self, source: Source, sink: Sink | None = None, **given: Any) -> Worker:
        """A member, with what `worker_over` takes."""
        sink = FakeSink() if sink is None else sink
        checkpoint = {"keep": self.keep, **given.pop("checkpoint", {})}
        return worker_over(source, sink, **{"shelf": self.shelf, "checkpoint": checkpoint, **given})

    def saved(self, lane: LaneId) -> list[int]:
        """The next offsets of the checkpoints that there are of a lane."""
        entries = self.shelf.entries()
        return [e.at for e in entries if (e.topic, e.partition) == (lane.topic, lane.partition)]


# A file takes milliseconds; a test that has to wait for longer has failed.
WRITTEN_MAX_S = 20.0


def turn(worker: Worker) -> list[Part]:
    """Once round the loop of `run`, without an end."""
    batch = worker.follow(worker.source.poll(worker.room()))
    parts = worker.judge(batch)
    worker.publish(parts)
    worker.learn(parts)
    worker.save_if_due()
    worker.health.beat()
    return parts


def turn_until(worker: Worker, lane: LaneId, offset: int) -> None:
    """Go round until the lane has come so far, which must be within its values."""
    while lane not in worker.lanes or worker.lanes[lane].next_offset < offset:
        turn(worker)


def save(worker: Worker, clock: SteppingClock) -> None:
    """Let the time for a save come, and go round until it is written and taken note of."""
    clock.now_s += worker.settings.checkpoint.every_s
    for _ in range(4):  # room for the snapshot, taking note of that, the snapshot, taking note of that
        worker.save_if_due()
        assert worker.background.drain(WRITTEN_MAX_S)


def crash(worker: Worker) -> None:
    """Leave the worker where it is, as a kill does; only its threads end, and what they had not begun is lost."""
    worker.background.close()
    if worker.learner is not None:
        worker.learner.close()


def counted(worker: Worker, name: str, **labels: str) -> float:
    """What a metric of the worker says, over all its labels but those given."""
    return sum(
        sample.value
        for family in worker.metrics.registry.collect()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
