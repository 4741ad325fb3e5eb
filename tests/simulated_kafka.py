"""Kafka as it promises to be, in memory and in one thread, where time passes only when a test says so.

What a test cannot bring about with a real one, it can here: a crash, a pause, a rebalance or a lost answer between
any two requests of a transaction. Modelled are

- transactions (KIP-98): records of an open one are hidden, and hide what comes after them in their partition; a commit
  is decided at one moment and marked partition by partition after that, in any order; a producer that begins anew
  fences the one before it, and what that had begun is completed if it was decided, else aborted; so does the time-out;
- offsets in a transaction (KIP-447): refused from whoever is not a member, or is one of another generation; not to be
  had while a transaction over them is open;
- a group with cooperative assignment in two steps (KIP-429) and static members (KIP-345): a lane goes from its owner in
  one generation and comes to the next one in a later generation, when the owner has joined again without it; who gives
  no sign of life for the session time-out is expelled; who comes back under a name takes the place of who had it.

Not modelled: brokers that fail, retention, idempotent repetition of a request inside a producer, max.poll.interval.ms,
and records that a client fetched before it was paused, other than that a member that hears nothing goes on reading.
A request that comes too late for its transaction is refused, as brokers do since KIP-890.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

import numpy as np
from fakes import SteppingClock
from kafka import errors

from streamdet.errors import BrokerError
from streamdet.events import Alert, Batch, LaneId, Position, Records, Reject
from streamdet.sink.kafka_records import Outgoing, of_alert, of_reject

TOPIC, ALERTS, DEAD_LETTERS = "plant", "plant.alerts", "plant.dead-letters"
# The alerts of one transaction come to several partitions, each with a marker of its own.
PARTITIONS = {ALERTS: 2, DEAD_LETTERS: 1}
SESSION_S = 20.0
TRANSACTION_S = 15.0
FIRST_MS = 1_700_000_000_000


class Stored(NamedTuple):
    """A record of the input."""

    offset: int
    value: bytes | None


class Phase(Enum):
    """How far a transaction has come."""

    ONGOING = auto()
    COMMITTING = auto()  # decided, not marked everywhere
    ABORTING = auto()
    ENDED = auto()


@dataclass(eq=False)
class Decision:
    """What one transaction made final, in the moment in which that was decided."""

    records: list[Outgoing]
    offsets: dict[LaneId, Position]


@dataclass(eq=False)
class Txn:
    """A transaction as its coordinator sees it."""

    producer: str
    since_s: float
    phase: Phase = Phase.ONGOING
    records: list[Outgoing] = field(default_factory=list)
    offsets: dict[LaneId, tuple[int, Position]] = field(default_factory=dict)  # with their place in the log
    unmarked: list["Log | None"] = field(default_factory=list)  # None: the log of the offsets


class Log:
    """A partition of a topic that is written to."""

    def __init__(self) -> None:
        self.entries: list[tuple[Outgoing, Txn]] = []
        self.marks: dict[Txn, bool] = {}  # whether it was committed

    def visible(self) -> Iterator[Outgoing]:
        """What a `read_committed` subscriber gets: nothing at or after the first record of an open transaction."""
        for record, txn in self.entries:
            if txn not in self.marks:
                return
            if self.marks[txn]:
                yield record


@dataclass(eq=False)
class Producer:
    """A transactional id."""

    epoch: int = -1
    current: Txn | None = None


class Membership(NamedTuple):
    """What a transaction shows of its sender's standing in the group."""

    member: str
    generation: int
    instance: str | None


@dataclass(eq=False)
class Member:
    """A member as the coordinator of the group sees it."""

    instance: str | None
    seen_s: float
    joining: bool = False
    generation: int = -1
    owned: frozenset[LaneId] = frozenset()  # by its own account, when it last joined
    assigned: frozenset[LaneId] = frozenset()


class Group:
    """The coordinator of the consumer group."""

    def __init__(self, lanes: Iterable[LaneId]) -> None:
        self.lanes = frozenset(lanes)
        self.members: dict[str, Member] = {}
        self.generation = 0
        self.rebalancing = False
        self._instances: dict[str, str] = {}
        self._made = 0

    def taken(self, instance: str | None) -> bool:
        """Whether somebody has that name."""
        return instance in self._instances

    def check(self, who: Membership) -> None:
        """Refuse offsets from whoever may not commit them."""
        if not who.member and who.generation < 0:  # nobody asks a producer that names no group
            return
        if who.instance is not None and self._instances.get(who.instance, who.member) != who.member:
            raise errors.FencedInstanceIdError(who.instance)
        # kafka-python says the same of both: the group went on without this member.
        if who.member not in self.members:
            raise errors.CommitFailedError("UNKNOWN_MEMBER_ID")
        if who.generation != self.generation:
            raise errors.CommitFailedError("ILLEGAL_GENERATION")

    def join(self, name: str, instance: str | None, owned: Set[LaneId], now_s: float) -> str:
        """Take part in the next generation; a member that is new gets a name."""
        if name not in self.members:
            self._made += 1
            name, before = f"member-{self._made}", self._instances.get(instance or "")
            if before is not None and instance is not None:
                self._instances[instance] = name
                self.members[name] = self.members.pop(before)
                self.members[name].seen_s = now_s
                if not self.rebalancing:  # it has the place of who had the name, and nobody else notices
                    return name
            else:
                self.members[name] = Member(instance, now_s)
                if instance is not None:
                    self._instances[instance] = name
        member = self.members[name]
        member.owned, member.joining, member.seen_s = frozenset(owned), True, now_s
        self.rebalancing = True
        self._complete()
        return name

    def leave(self, name: str) -> None:
        """Go at once."""
        member = self.members.pop(name, None)
        if member is None:
            return
        if member.instance is not None:
            del self._instances[member.instance]
        self.rebalance()

    def rebalance(self) -> None:
        """Have everybody join again."""
        self.rebalancing = bool(self.members)
        self._complete()

    def expire(self, now_s: float) -> None:
        """Expel whoever gave no sign of life."""
        for name in [n for n, member in self.members.items() if now_s - member.seen_s > SESSION_S]:
            self.leave(name)

    def _complete(self) -> None:
        if not self.rebalancing or not all(member.joining for member in self.members.values()):
            return
        self.rebalancing = False
        self.generation += 1
        owners = self._owners()
        for name, lanes in self._target(owners).items():
            member = self.members[name]
            # What somebody still has comes later, once he has joined without it.
            member.assigned = frozenset(lane for lane in lanes if owners.get(lane, name) == name)
            member.joining, member.generation = False, self.generation

    def _owners(self) -> dict[LaneId, str]:
        """Who has which lane; of two that say so, who was here last."""
        owners: dict[LaneId, str] = {}
        for name, member in sorted(self.members.items(), key=lambda item: item[1].generation):
            owners |= dict.fromkeys(member.owned & self.lanes, name)
        return owners

    def _target(self, owners: Mapping[LaneId, str]) -> dict[str, list[LaneId]]:
        """Evenly, and to who has it already where that can be."""
        names = sorted(self.members, key=lambda name: -sum(owner == name for owner in owners.values()))
        share, more = divmod(len(self.lanes), max(len(names), 1))
        quota = {name: share + (i < more) for i, name in enumerate(names)}
        target = {
            name: sorted(lane for lane, owner in owners.items() if owner == name)[: quota[name]]
            for name in names
        }
        left = sorted(self.lanes.difference(*target.values()))
        for name in names:
            while left and len(target[name]) < quota[name]:
                target[name].append(left.pop(0))
        return target


class SimulatedKafka:
    """The cluster.

    `decisions` are the commits in the order in which they were decided. `wait` is what happens while a client waits
    for offsets that an open transaction holds back: time passes, unless a test has something else happen too.
    """

    def __init__(self, clock: SteppingClock, partitions: int = 1) -> None:
        self.clock = clock
        self.input: dict[LaneId, list[Stored]] = {LaneId(TOPIC, p): [] for p in range(partitions)}
        self.logs = {(topic, p): Log() for topic, n in PARTITIONS.items() for p in range(n)}
        self.group = Group(self.input)
        self.decisions: list[Decision] = []
        self.sources: list[SimulatedSource] = []
        self.wait: Callable[[], None] = lambda: self.tick(1.0)
        self._producers: dict[str, Producer] = {}
        self._committed: dict[LaneId, tuple[int, Position]] = {}
        self._appended = 0

    def put(self, lane: LaneId, value: bytes | None, gap: int = 0) -> None:
        """Append a record to the input; a gap is what compaction and markers leave before it."""
        stored = self.input[lane]
        stored.append(Stored((stored[-1].offset + 1 if stored else 0) + gap, value))

    def set_committed(self, lane: LaneId, position: Position) -> None:
        """Commit without a transaction."""
        self._appended += 1
        self._committed[lane] = (self._appended, position)

    def visible(self, topic: str) -> list[Outgoing]:
        """What a `read_committed` subscriber of a topic has got so far."""
        return [record for (name, _), log in self.logs.items() if name == topic for record in log.visible()]

    def unstable(self, lane: LaneId) -> bool:
        """Whether an open transaction holds the committed offset of the lane back."""
        return any(lane in txn.offsets and None in txn.unmarked for txn in self._open())

    def committed(self, lane: LaneId) -> Position | None:
        """What is committed for the lane; waits until that is certain."""
        while self.unstable(lane):
            self.wait()
        found = self._committed.get(lane)
        return None if found is None else found[1]

    def tick(self, seconds: float) -> None:
        """Time passes: whoever is alive says so, who is not is expelled, and what is open for too long is aborted."""
        end_s = self.clock.now_s + seconds
        while self.clock.now_s < end_s:
            self.clock.now_s = min(self.clock.now_s + 1.0, end_s)
            for source in self.sources:
                source.heartbeat()
            self.group.expire(self.clock.now_s)
            for producer in self._producers.values():
                txn = producer.current
                late = txn is not None and self.clock.now_s - txn.since_s > TRANSACTION_S
                if txn is not None and late and txn.phase is Phase.ONGOING:
                    producer.epoch += 1
                    txn.phase = Phase.ABORTING
            while self.mark():  # takes milliseconds
                pass

    # What producers ask for.

    def init(self, name: str) -> int:
        """Begin anew under a transactional id: whatever was begun under it ends, and its producer is fenced."""
        producer = self._producers.setdefault(name, Producer())
        if producer.current is not None and producer.current.phase is Phase.ONGOING:
            producer.current.phase = Phase.ABORTING
        self._end_markers(producer)
        producer.epoch += 1
        return producer.epoch

    def send(self, name: str, epoch: int, record: Outgoing) -> None:
        """A record of the transaction that is open, or that this begins."""
        txn = self._ongoing(name, epoch)
        partition = zlib.crc32(record.key or b"") % PARTITIONS[record.topic]
        log = self.logs[record.topic, partition]
        log.entries.append((record, txn))
        txn.records.append(record)
        if log not in txn.unmarked:
            txn.unmarked.append(log)

    def send_offsets(
        self, name: str, epoch: int, offsets: Mapping[LaneId, Position], who: Membership
    ) -> None:
        """Offsets of the transaction that is open, or that this begins."""
        txn = self._ongoing(name, epoch)
        self.group.check(who)
        self._appended += 1
        txn.offsets |= {lane: (self._appended, position) for lane, position in offsets.items()}
        if None not in txn.unmarked:
            txn.unmarked.append(None)

    def end(self, name: str, epoch: int) -> None:
        """Decide that the transaction counts. The answer may come before it is marked anywhere."""
        txn = self._ongoing(name, epoch)
        txn.phase = Phase.COMMITTING
        self.decisions.append(Decision(txn.records, {lane: at for lane, (_, at) in txn.offsets.items()}))

    def mark(self, which: int = 0) -> bool:
        """Mark a decided transaction in one of its partitions; False if there is nothing to mark."""
        unmarked = [
            (txn, log) for txn in self._open() if txn.phase is not Phase.ONGOING for log in txn.unmarked
        ]
        if unmarked:
            self._mark(*unmarked[which % len(unmarked)])
        return bool(unmarked)

    def _mark(self, txn: Txn, log: Log | None) -> None:
        counts = txn.phase is Phase.COMMITTING
        txn.unmarked.remove(log)
        if log is not None:
            log.marks[txn] = counts
        elif counts:
            for lane, at in txn.offsets.items():
                self._committed[lane] = max(at, self._committed.get(lane, at))
        if not txn.unmarked:
            self._forget(txn)

    def _forget(self, txn: Txn) -> None:
        txn.phase = Phase.ENDED
        self._producers[txn.producer].current = None

    def _ongoing(self, name: str, epoch: int) -> Txn:
        producer = self._producers[name]
        if producer.epoch != epoch:
            raise errors.ProducerFencedError(name)
        self._end_markers(producer)  # a client whose last transaction is not marked yet is told to wait
        if producer.current is None:
            producer.current = Txn(name, self.clock.now_s)
        return producer.current

    def _end_markers(self, producer: Producer) -> None:
        txn = producer.current
        if txn is None or txn.phase is Phase.ONGOING:
            return
        for log in [*txn.unmarked]:
            self._mark(txn, log)
        if producer.current is not None:  # it was empty
            self._forget(txn)

    def _open(self) -> list[Txn]:
        return [p.current for p in self._producers.values() if p.current is not None]


class SimulatedSource:
    """A `Source` of one member of the group.

    `deaf`: it hears nothing of the group and gives no sign of life, but reads on what it had. `dead`: its process is
    gone. `waiting` is called with each poll, for what happens elsewhere while a worker waits.
    """

    def __init__(
        self,
        kafka: SimulatedKafka,
        instance: str | None = None,
        *,
        stays: bool = False,
        per_poll: int = 64,
        rejoins_at_once: bool = False,
    ) -> None:
        self.deaf = self.dead = False
        self.waiting: Callable[[], None] | None = None
        self._kafka = kafka
        self._instance = instance
        self._stays = stays
        self._per_poll = per_poll
        self._rejoins_at_once = rejoins_at_once
        self._rejoins = False
        self._name = ""
        self._generation = -1
        self._assigned: frozenset[LaneId] = frozenset()
        self._revoked: set[LaneId] = set()
        self._lanes: frozenset[LaneId] = frozenset()
        self._joined = Membership("", -1, instance)
        self._next: dict[LaneId, int] = {}
        kafka.sources.append(self)

    @property
    def exhausted(self) -> bool:
        return False

    @property
    def lanes(self) -> Set[LaneId]:
        return self._lanes

    @property
    def leads(self) -> bool:
        used = [lane for lane, stored in self._kafka.input.items() if stored]
        return min(used, default=min(self._kafka.input)) in self._lanes

    def topic_id(self, topic: str) -> str:  # noqa: ARG002 - a Kafka that is too old for them
        return ""

    def poll(self, max_events: int) -> Batch:
        if self.waiting is not None:
            self.waiting()
        if not self.deaf:
            self.hear()
        polled = self._read(min(max_events, self._per_poll))
        before = self._lanes
        if self._update():
            for part in [part for part in polled if part.lane not in self._lanes & before]:
                self._next[part.lane] = int(part.offsets[0])
                polled.remove(part)
        return Batch(polled)

    def hear(self) -> None:
        """What the client does with the group by itself: take part in rebalances, note what is taken away."""
        group, now_s = self._kafka.group, self._kafka.clock.now_s
        if self._name and self._name not in group.members:
            if self._instance is not None and group.taken(self._instance):
                raise BrokerError(f"another worker has taken the name {self._instance}")
            self._revoked |= self._assigned
            self._assigned, self._name, self._rejoins = frozenset(), "", False
        if not self._name:
            self._name = group.join("", self._instance, frozenset(), now_s)
        member = group.members[self._name]
        if self._rejoins or (group.rebalancing and not member.joining):
            self._rejoins = False
            group.join(self._name, self._instance, self._assigned, now_s)
        if not member.joining and member.generation != self._generation:
            self._take_over(member)

    def _take_over(self, member: Member) -> None:
        revoked = self._assigned - member.assigned
        for lane in member.assigned - self._assigned:
            self._next.pop(lane, None)
        self._revoked |= revoked
        self._assigned, self._generation = member.assigned, member.generation
        self._rejoins = bool(revoked)
        if revoked and self._rejoins_at_once:
            self.hear()

    def _read(self, wanted: int) -> list[Records]:
        parts = []
        share = max(wanted // max(len(self._assigned), 1), 1)
        for lane in sorted(self._assigned):
            if lane not in self._next:
                if self._kafka.unstable(lane):
                    continue
                committed = self._kafka.committed(lane)
                self._next[lane] = 0 if committed is None else committed.offset
            found = [s for s in self._kafka.input[lane] if s.offset >= self._next[lane]][: min(share, wanted)]
            if found:
                wanted -= len(found)
                parts.append(_records(lane, found))
                self._next[lane] = parts[-1].next_offset
        return parts

    def _update(self) -> bool:
        expelled = False
        member = self._kafka.group.members.get(self._name)
        settled = member is not None and not member.joining and member.generation == self._generation
        if self.deaf or settled:
            who = Membership(self._name, self._generation, self._instance)
            expelled = self._joined.member not in ("", who.member)
            self._joined = who
        lost, self._revoked = self._revoked, set()
        if expelled:
            lost |= self._assigned
        if not lost and self._assigned == self._lanes:
            return False
        self._lanes = self._assigned - lost
        return True

    def seek(self, lane: LaneId, offset: int) -> None:
        if lane in self._assigned:
            self._next[lane] = offset

    def committed(self, lane: LaneId) -> Position | None:
        return self._kafka.committed(lane)

    def membership(self, lanes: Iterable[LaneId]) -> tuple[Membership, frozenset[LaneId]]:
        mine = self._lanes & (self._assigned - self._revoked)
        return self._joined, mine.intersection(lanes)

    def lag(self) -> Mapping[LaneId, int]:
        return {}

    def commit(self, positions: Mapping[LaneId, Position]) -> bool:
        who, mine = self.membership(positions)
        try:
            self._kafka.group.check(who)
        except errors.KafkaError:
            return False
        for lane in mine:
            self._kafka.set_committed(lane, positions[lane])
        return len(mine) == len(positions)

    def heartbeat(self) -> None:
        """A sign of life, if there is life."""
        member = self._kafka.group.members.get(self._name)
        if member is not None and not (self.deaf or self.dead):
            member.seen_s = self._kafka.clock.now_s

    def close(self) -> None:
        self.dead = True
        if not self._stays:
            self._kafka.group.leave(self._name)


def _records(lane: LaneId, found: Sequence[Stored]) -> Records:
    offsets = np.array([stored.offset for stored in found], np.int64)
    keys = [b"%d" % stored.offset for stored in found]
    return Records(lane, offsets, FIRST_MS + 1_000 * offsets, keys, [stored.value for stored in found])


class Attempt:
    """A transaction on its way, one request at a time; the last step is the answer to the last request."""

    def __init__(self, requests: Sequence[Callable[[], None]]) -> None:
        self.done = False
        self.error: BaseException | None = None
        self._requests = list(requests)

    @property
    def steps_left(self) -> int:
        """Requests yet to be made, and the answer."""
        return 0 if self.done else len(self._requests) + 1

    def step(self) -> None:
        """Make the next request, or take the answer to the last one."""
        if self.done:
            return
        if not self._requests:
            self.done = True
            return
        try:
            self._requests.pop(0)()
        except errors.KafkaError as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Give up, whatever has been asked for by now."""
        self.error = error
        self.done = True


class SimulatedTransactor:
    """A `Transactor` whose transactions go on when they are told to.

    `left_behind` has attempts of producers that were given up: what they ask for may still come to Kafka.
    """

    def __init__(self, kafka: SimulatedKafka, name: str, *, offsets_first: bool = False) -> None:
        self.attempt: Attempt | None = None
        self.left_behind: list[Attempt] = []
        self.renewals: list[BaseException | None] = []
        self._kafka = kafka
        self._name = name
        self._offsets_first = offsets_first
        self._epoch = kafka.init(name)

    def records(self, alerts: Sequence[Alert], rejects: Sequence[Reject]) -> list[Outgoing]:
        return [of_alert(alert, ALERTS, "streamdet/test") for alert in alerts] + [
            of_reject(reject, DEAD_LETTERS) for reject in rejects
        ]

    def begin(
        self, records: Sequence[Outgoing], positions: Mapping[LaneId, Position], membership: object
    ) -> Attempt:
        assert isinstance(membership, Membership)
        assert self.attempt is None or self.attempt.done, "one transaction at a time"
        kafka, name, epoch = self._kafka, self._name, self._epoch

        def sending(record: Outgoing) -> Callable[[], None]:
            return lambda: kafka.send(name, epoch, record)

        requests = [sending(record) for record in records]
        place = 0 if self._offsets_first else len(requests)
        requests.insert(place, lambda: kafka.send_offsets(name, epoch, dict(positions), membership))
        requests.append(lambda: kafka.end(name, epoch))
        self.attempt = Attempt(requests)
        return self.attempt

    def step(self) -> None:
        """Let the transaction under way go on."""
        if self.attempt is not None:
            self.attempt.step()

    def renew(self, error: BaseException | None) -> None:
        self.renewals.append(error)
        if isinstance(error, errors.AuthorizationError | errors.InvalidTopicError):
            raise BrokerError(f"Kafka refused: {error}") from error
        self.close()
        self._epoch = self._kafka.init(self._name)

    def close(self) -> None:
        if self.attempt is not None and not self.attempt.done:
            self.left_behind.append(self.attempt)
        self.attempt = None
