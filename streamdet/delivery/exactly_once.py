"""Alerts, dead letters and offsets in one transaction, so that a `read_committed` subscriber sees each alert once.

What was judged is held until a commit is due, and until that commit counted. Whatever goes wrong in a transaction, the
transactor is renewed, which ends the transaction for good, one way or the other; then the committed offsets tell
which way, and what did not count is sent again. Lanes that were lost meanwhile are left out: their new owner judges
from the last commit that counted. Why Kafka refuses what comes from a former owner: `KafkaSource.membership`.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from streamdet.clock import Clock
from streamdet.config import Commit
from streamdet.events import Alert, LaneId, Position, Reject

log = logging.getLogger(__name__)

# Held in memory at most, before no more is judged; a single batch may go beyond.
HELD_BYTES_MAX: Final = 32 * 1024 * 1024
# While one commit is under way, so many times what a commit takes may be judged for the next.
HELD_COMMITS_MAX: Final = 4
# So long a transaction under way is waited for once a stop was requested.
STOPPING_S: Final = 5.0


class Transaction(Protocol):
    """A transaction that was begun."""

    @property
    def done(self) -> bool:
        """Whether it ended, one way or the other."""

    @property
    def error(self) -> BaseException | None:
        """Why it failed, once it ended; None where it was committed."""


class Transactor(Protocol):
    """Makes transactions, one at a time."""

    def records(self, alerts: Sequence[Alert], rejects: Sequence[Reject]) -> Sequence[Any]:
        """As they are sent; each has a `size` in bytes."""

    def begin(
        self, records: Sequence[Any], positions: Mapping[LaneId, Position], membership: object
    ) -> Transaction:
        """Begin, send, and commit, all in the background."""

    def renew(self, error: BaseException | None) -> None:
        """End whatever was begun, for good; `error` is why.

        Raises:
            BrokerError: the error is one that repeating will not mend.
            BrokerUnavailableError: a stop was requested while waiting for Kafka.
        """

    def close(self) -> None:
        """Release what is held."""


class GroupSource(Protocol):
    """What a transaction needs of a source."""

    def membership(self, lanes: Iterable[LaneId]) -> tuple[object, frozenset[LaneId]]:
        """The member's standing in the group, None where it has none at present, and which lanes are its own."""

    def committed(self, lane: LaneId) -> Position | None:
        """What the group has committed for the lane."""


@dataclass(eq=False)
class Held:
    """What a lane gave that is not final."""

    position: Position
    records: list[Any]  # to be sent
    judged: int  # records of the input behind it

    @property
    def size(self) -> int:
        """Bytes to be sent."""
        return sum(record.size for record in self.records)


class Holding:
    """What lanes gave, and how much it is."""

    def __init__(self) -> None:
        self.lanes: dict[LaneId, Held] = {}
        self.bytes = 0
        self.judged = 0

    def add(self, lane: LaneId, held: Held) -> None:
        """Put it after what is there of the lane."""
        before = self.lanes.get(lane)
        if before is None:
            self.lanes[lane] = held
        else:
            before.position = held.position
            before.records += held.records
            before.judged += held.judged
        self.bytes += held.size
        self.judged += held.judged

    def pop(self, lane: LaneId) -> None:
        """Forget what is there of the lane."""
        held = self.lanes.pop(lane, None)
        if held is not None:
            self.bytes -= held.size
            self.judged -= held.judged


@dataclass(eq=False)
class UnderWay:
    """A commit that was begun and has not counted yet."""

    number: int
    lanes: dict[LaneId, Held]  # but those that were lost since
    judged: int  # records of the input behind it, of all lanes
    transaction: Transaction
    since_s: float


class ExactlyOnce:
    """A `Delivery` by transactions.

    Args:
        pace: how often to commit, and how long a transaction may take.
        source: whose offsets are committed.
        transactor: makes the transactions.
        clock: for the pace.
        stopped: whether a stop was requested; then a Kafka that is away is waited for less long.
    """

    def __init__(
        self,
        pace: Commit,
        source: GroupSource,
        transactor: Transactor,
        clock: Clock,
        stopped: Callable[[], bool],
    ) -> None:
        self._pace = pace
        self._source = source
        self._transactor = transactor
        self._clock = clock
        self._stopped = stopped
        self._held = Holding()
        self._under_way: UnderWay | None = None
        self._hurried = False
        self._ended = False  # what is under way has, and the committed offsets must tell whether it counted
        self._lost: set[LaneId] = set()  # lanes that were left out, and of which the worker does not know yet
        self._begun = 0
        self._begun_at_s = -math.inf
        self.final = 0
        self.records_final = 0
        self.outcomes: Counter[str] = Counter()

    @property
    def full(self) -> bool:
        """Whether no more should be judged before something is final."""
        return (
            self._held.bytes >= HELD_BYTES_MAX
            or self._held.judged >= HELD_COMMITS_MAX * self._pace.every_events
        )

    def hold(
        self,
        lane: LaneId,
        alerts: Sequence[Alert],
        rejects: Sequence[Reject],
        position: Position,
        records: int,
    ) -> None:
        """Keep it for the next commit."""
        self._held.add(lane, Held(position, list(self._transactor.records(alerts, rejects)), records))

    def turn(self) -> None:
        """See to what is under way, and begin the next commit if it is due."""
        self._see_to_it()
        if self._under_way is None and self._held.lanes and self._due():
            self._begin()

    def commit(self) -> int | None:
        """Begin to make all that is held final, due or not; None while that cannot be begun."""
        self._see_to_it()
        if self._under_way is None and self._held.lanes:
            self._begin()
        if self._held.lanes or self._lost:
            return None
        return self._begun if self._under_way is not None else self.final

    def drop(self, lanes: Collection[LaneId]) -> None:
        """Forget these lanes; if Kafka refuses what is under way, it goes out again without them."""
        self._lost.difference_update(lanes)
        for lane in lanes:
            self._held.pop(lane)
            if self._under_way is not None:
                self._under_way.lanes.pop(lane, None)

    def close(self) -> None:
        """Release the transactor; a transaction under way is aborted by Kafka."""
        self._transactor.close()

    def _due(self) -> bool:
        """Offsets alone are in no hurry: an alert should seldom find a commit under way."""
        every_ms = self._pace.every_ms if self._held.bytes else self._pace.offsets_every_ms
        waited_s = self._clock.monotonic_s() - self._begun_at_s
        return waited_s >= every_ms / 1000 or self._held.judged >= self._pace.every_events or self.full

    def _begin(self) -> None:
        """Send what is held of the lanes that are still this worker's, if it has a standing in the group."""
        membership, mine = self._source.membership(self._held.lanes)
        if membership is None:  # amid a rebalance, which goes on with the next poll
            return
        lanes = self._still(self._held.lanes, mine)
        self._held = Holding()
        if not lanes:
            return
        self._begun_at_s = self._clock.monotonic_s()
        self._begun += 1
        records = [record for held in lanes.values() for record in held.records]
        positions = {lane: held.position for lane, held in lanes.items()}
        transaction = self._transactor.begin(records, positions, membership)
        judged = sum(held.judged for held in lanes.values())
        self._under_way = UnderWay(self._begun, lanes, judged, transaction, self._begun_at_s)

    def _see_to_it(self) -> None:
        under_way = self._under_way
        if under_way is None:
            return
        if not self._ended:
            transaction = under_way.transaction
            if transaction.done and transaction.error is None:
                self._counted(under_way)
                return
            if not transaction.done and not self._late(under_way):
                return
            error = transaction.error if transaction.done else None
            log.warning("transaction failed reason=%s", error or "it took too long")
            # At a stop this happens once: a Kafka that does answer gets all the time there is for the next one.
            self._hurried = self._stopped()
            self._transactor.renew(error)
            self._ended = True
        self._find_out(under_way)

    def _late(self, under_way: UnderWay) -> bool:
        patience_s = self._pace.transaction_timeout_ms / 1000
        if self._stopped() and not self._hurried:
            patience_s = min(patience_s, STOPPING_S)
        return self._clock.monotonic_s() - under_way.since_s > patience_s

    def _find_out(self, under_way: UnderWay) -> None:
        """Did it count? It moved all offsets or none, so those of the lanes that are still ours tell."""
        membership, mine = self._source.membership(under_way.lanes)
        if membership is None:
            return
        self._ended = False
        lanes = self._still(under_way.lanes, mine)
        if not lanes:  # nobody here can tell; whoever has the lanes now goes on from where it left them
            self._under_way = None
            self.outcomes["lost"] += 1
            return
        if all(self._reached(lane, held.position) for lane, held in lanes.items()):
            under_way.judged = sum(held.judged for held in lanes.values())
            self._counted(under_way)
            return
        self.outcomes["aborted"] += 1
        self._under_way = None
        later, self._held = self._held, Holding()
        for holding in (lanes, later.lanes):
            for lane, held in holding.items():
                self._held.add(lane, held)
        self._begun_at_s = -math.inf  # due at once

    def _still(self, lanes: Mapping[LaneId, Held], mine: Collection[LaneId]) -> dict[LaneId, Held]:
        self._lost.update(lanes.keys() - mine)
        return {lane: held for lane, held in lanes.items() if lane in mine}

    def _reached(self, lane: LaneId, position: Position) -> bool:
        committed = self._source.committed(lane)
        return committed is not None and committed.offset >= position.offset

    def _counted(self, under_way: UnderWay) -> None:
        self._under_way = None
        self.final = under_way.number
        self.records_final += under_way.judged
        self.outcomes["committed"] += 1
