"""The loop: judge every record; make what it gave final; learn only after judging.

Guarantees: every record polled ends as judged or as a dead letter; alerts and dead letters are final no later than the
offsets behind them (`streamdet.delivery`); a lane comes back from the newest checkpoint at or before its committed
offset, and nothing below that offset is published; state changes at event counts and recorded offsets alone.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from streamdet.checkpoint.background import Background
from streamdet.checkpoint.shelf import Shelf
from streamdet.clock import Clock
from streamdet.codec.decoder import Decoder
from streamdet.config import Settings
from streamdet.counting import count, show
from streamdet.decide import explain, judge
from streamdet.delivery import Delivery
from streamdet.errors import BrokerUnavailableError, StoreUnavailableError
from streamdet.events import Alert, Batch, Floats, LaneId, Rows, Schema
from streamdet.keeping import Keeper
from streamdet.lane import Lane
from streamdet.lanes import Lanes
from streamdet.learn.learner import Learner
from streamdet.parts import Observer, Part, new_to
from streamdet.releases import Releases
from streamdet.serve.health import STARTING, Health
from streamdet.serve.metrics import Metrics
from streamdet.source import Source

log = logging.getLogger(__name__)

# Who does not train waits so long for a first model before it judges without one.
FIRST_MODEL_S: Final = 10.0
# A batch is bounded by the source; this is no bound.
ANY: Final = 2**31
# A checkpoint that failed is bad news once it has failed for so many intervals.
FAILING_INTERVALS: Final = 3
# Judging may wait so long for commits before it is said.
HELD_UP_S: Final = 1.0
# How often a store that is away is asked again, while what it has is needed.
STORE_RETRY_S: Final = 2.0
# What committing may take at a stop: a rebalance, or a broker that fails over.
FINISH_S: Final = 30.0


class StopSignal(Protocol):
    """Whether somebody wants the worker to end."""

    requested: bool


@dataclass(eq=False)
class Worker:
    """What the loop works with."""

    settings: Settings
    schema: Schema
    source: Source
    decoder: Decoder
    delivery: Delivery
    make_learner: Callable[[], Learner]
    lanes: Lanes
    releases: Releases
    keeper: Keeper
    background: Background
    metrics: Metrics
    health: Health
    clock: Clock
    shelf: Shelf | None = None
    lost: Callable[[], int] = lambda: 0  # records that were deleted from a topic before they were read
    trains: bool = True  # False: models come by a recorded timeline alone
    observers: Sequence[Observer] = ()
    learner: Learner | None = None
    _started_s: float = 0.0
    _patient: bool = True
    _held_up_since_s: float | None = None
    _held_up_said: bool = False
    _store_away_since_s: float | None = None
    _store_retry_s: float = -math.inf
    _full: set[LaneId] = field(default_factory=set)

    def restore(self) -> None:
        """Take up the newest model there is, and begin the lanes that are known already."""
        self._started_s = self.clock.monotonic_s()
        self.releases.look_now()
        # A recording knows its lanes before the first poll, which would read from its beginning.
        self.follow(Batch(()))
        self.health.green(STARTING)

    def room(self) -> int:
        """How many records may be judged before something has to happen; 0: none, for the moment."""
        if self._held_up() or self._store_away_since_s is not None:
            return 0
        if self.learner is not None:
            room = self.learner.room()
            return room and room + self._learnt_ahead(self.learner)
        if self.trains and self.releases.newest is None and self._patient:
            if self.clock.monotonic_s() - self._started_s < FIRST_MODEL_S:
                return 0
            self._patient = False
            log.warning(
                "no model came within %.0f s from the worker that trains: judging without, no alerts until one comes",
                FIRST_MODEL_S,
            )
        return ANY

    def _held_up(self) -> bool:
        """Whether judging waits for commits; it is said once that lasts, and when it is over."""
        now_s = self.clock.monotonic_s()
        if not self.delivery.full:
            if self._held_up_said:
                log.warning("judging goes on after %.1f s", now_s - (self._held_up_since_s or now_s))
            self._held_up_since_s, self._held_up_said = None, False
            return False
        if self._held_up_since_s is None:
            self._held_up_since_s = now_s
        elif now_s - self._held_up_since_s >= HELD_UP_S and not self._held_up_said:
            self._held_up_said = True
            log.warning("judging waits for commits: Kafka takes alerts, dead letters or offsets too slowly")
        self.metrics.held_up.set(now_s - self._held_up_since_s)
        return True

    def follow(self, batch: Batch) -> Batch:
        """Begin the lanes that the group gave to this worker, and drop those that it took away.

        Returns the batch, shortened where it crosses an offset at which a lane has to change versions. A store that is
        away is waited for, without records: to go on without what it has would be another life of the lane.
        """
        gone = self.lanes.gone
        self.delivery.drop(gone)
        for lane in gone:
            self.lanes.drop(lane)
        self._forget(gone)
        if self.clock.monotonic_s() < self._store_retry_s:
            return self._put_back(batch)
        try:
            batch = self._take_up(batch)
        except StoreUnavailableError as error:
            self._await_store(error)
            return self._put_back(batch)
        self._store_is_back()
        return batch

    def _take_up(self, batch: Batch) -> Batch:
        before = self.learner
        self._lead_or_follow()
        for lane in self.lanes.come:
            self.lanes.begin(lane, None if self.learner is None else self.learner.positions.get(lane))
        if self.learner is not None:
            self._introduce(self.learner)
            if self.learner is not before:
                batch = self._put_back(batch)  # it may cross a count at which this learner starts or adopts
        self.lanes.adopt()
        batch = self.lanes.shorten(batch)
        self._forget(self.lanes.rewound)
        return batch if self.learner is None else self._fit(batch, self.learner)

    def judge(self, batch: Batch) -> list[Part]:
        """Verdicts on a batch. One scoring launch for all lanes of one model version; learns nothing."""
        decoded = [self.decoder.decode(part) for part in batch.parts]
        featured = [self.lanes[d.events.lane].features.transform(d.events) for d in decoded]
        raw = self._score(
            [(self.lanes[d.events.lane], f.rows) for d, f in zip(decoded, featured, strict=True)]
        )
        parts = []
        for records, d, f, scores in zip(batch.parts, decoded, featured, raw, strict=True):
            lane = self.lanes[records.lane]
            verdicts = judge(scores, f.slots, f.fresh, lane.limits, alerting=lane.alerting)
            since_ms = lane.onset.follow(verdicts.normal, d.events.times_ms, f.slots, f.fresh)
            reached, explained = int(verdicts.flagged.sum()), None
            if lane.sieve is not None:
                verdicts, explained = lane.sieve.sift(d.events, f, verdicts, lane.version)
            parts.append(
                Part(records.lane, records, d, f, verdicts, since_ms, reached, lane.release, explained)
            )
        return parts

    def publish(self, parts: Sequence[Part]) -> None:
        """Hand over alerts, dead letters and offsets; they become final together, at the pace of commits."""
        for part in parts:
            lane = self.lanes[part.lane]
            alerts = self._alerts(part)
            rejects = [reject for reject in part.decoded.rejects if reject.offset >= lane.published]
            lane.next_offset = part.records.next_offset
            if lane.next_offset > lane.published:
                self.delivery.hold(lane.id, alerts, rejects, lane.position, len(part.records))
            count(self.metrics, lane, part, alerts)
        self.delivery.turn()
        if parts:
            for observer in self.observers:
                observer.judged(parts)
        self._report()

    def learn(self, parts: Sequence[Part]) -> None:
        """Let the learner see what was judged, and change the model if its count has come."""
        if self.learner is not None:
            limits = [lane.limits.lane_limit for lane in self.lanes.values()]
            limit = max((x for x in limits if not math.isnan(x)), default=math.nan)
            known = self.learner.positions
            reached = {part.lane: part.records.next_offset for part in parts}
            beyond = {lane: at for lane, at in reached.items() if at >= known.get(lane, 0)}
            self.learner.observe(new_to(known, parts), beyond, limit)
            release = self.learner.adopt()
            if release is not None:
                self.releases.publish(release)
        try:
            self.lanes.adopt()
        except StoreUnavailableError as error:
            self._await_store(error)

    def save_if_due(self) -> None:
        """Save a checkpoint in the background when the time for it has come."""
        if self.keeper.due and self.lanes:
            commit = self.delivery.commit()
            if commit is not None:
                self.keeper.freeze(self.lanes, self.learner, commit)
        self.keeper.turn(self.lanes, self.delivery.final)
        self._report_saving()

    def _report_saving(self) -> None:
        failing_s = FAILING_INTERVALS * self.settings.checkpoint.every_s
        since_s = self.keeper.failed_since_s
        if since_s is None or not self.lanes:  # without lanes there is nothing to save
            self.health.green("checkpoint")
        elif self.clock.monotonic_s() - since_s > failing_s:
            self.health.red("checkpoint", "no checkpoint could be saved for a while: see the log")

    def finish(self) -> None:
        """Make everything final, then save: what a clean stop leaves behind is not judged again.

        Raises:
            BrokerUnavailableError: Kafka, or the group, does not let it; nothing is lost by that.
        """
        end_s = self.clock.monotonic_s() + FINISH_S
        while (commit := self.delivery.commit()) is None or self.delivery.final < commit:
            if self.clock.monotonic_s() > end_s:
                raise BrokerUnavailableError(
                    f"could not commit within {FINISH_S:.0f} s of the stop: the last records will be judged again, by "
                    "whoever has the partitions next"
                )
            self.follow(self.source.poll(0))
        self.keeper.finish(self.lanes, self.learner)

    def close(self) -> None:
        """Leave the group and release everything."""
        if self.learner is not None:
            self.learner.close()
        self.background.close()
        self.delivery.close()
        self.source.close()

    @property
    def seen(self) -> int:
        """Events judged for the first time, since the start."""
        return self.metrics.events

    def _await_store(self, error: StoreUnavailableError) -> None:
        now_s = self.clock.monotonic_s()
        self._store_retry_s = now_s + STORE_RETRY_S
        if self._store_away_since_s is None:
            self._store_away_since_s = now_s
            self.health.red("store", "checkpoints cannot be read, and are needed to go on: see the log")
            log.error("judging waits for the checkpoints: %s", error)

    def _store_is_back(self) -> None:
        if self._store_away_since_s is not None:
            away_s = self.clock.monotonic_s() - self._store_away_since_s
            log.warning("the checkpoints can be read again: judging goes on after %.1f s", away_s)
            self._store_away_since_s = None
            self.health.green("store")

    def _introduce(self, learner: Learner) -> None:
        """Let the learner know where it began to learn of lanes that it does not know; save one that begins itself."""
        new = not learner.positions
        for lane, kept in self.lanes.items():
            learner.positions.setdefault(lane, kept.next_offset)
        if new and not learner.seen and self.lanes:
            self.keeper.begin_learner(learner)

    def _learnt_ahead(self, learner: Learner) -> int:
        """How far lanes that are judged again are behind what was learnt of them; those records take no room."""
        learnt = learner.positions
        return sum(max(learnt.get(lane, 0) - kept.next_offset, 0) for lane, kept in self.lanes.items())

    def _fit(self, batch: Batch, learner: Learner) -> Batch:
        """The batch with no more records that are new to the learner than it has room for."""
        room = learner.room()
        if len(batch) <= room:
            return batch
        parts = []
        for part in batch.parts:
            known = int(np.searchsorted(part.offsets, learner.positions.get(part.lane, 0)))
            n = min(known + room, len(part))
            room -= n - known
            if n < len(part):
                self.source.seek(part.lane, int(part.offsets[n]))
            if n:
                parts.append(part.first(n))
        return Batch(parts)

    def _put_back(self, batch: Batch) -> Batch:
        for part in batch.parts:
            self.source.seek(part.lane, int(part.offsets[0]))
        return Batch(())

    def _forget(self, lanes: Sequence[LaneId]) -> None:
        if self.learner is not None:
            for lane in lanes:
                self.learner.forget(lane)

    def _lead_or_follow(self) -> None:
        """Train if the lane whose owner trains is this worker's; else take over what another one trains."""
        leads = self.trains and self.source.leads
        if leads and self.learner is None:
            found = self.shelf.learner() if self.shelf is not None else None
            self.learner = self.make_learner()
            if found is not None:
                self.learner.restore(found.state)
                log.info("learner goes on events=%d from=%s", self.learner.seen, found.name)
                # Not what the store has: that may have learnt from events which are about to be judged again.
                self.releases.newest = self.learner.release
                if self.learner.release is not None:
                    self.releases.keep(self.learner.release)
        elif not leads and self.learner is not None:
            log.info("another worker trains from now on")
            self.learner.close(wait=False)
            self.learner = None
        if self.learner is None and self.trains:
            self.releases.follow()

    def _score(self, parts: Sequence[tuple[Lane, Rows]]) -> list[Floats]:
        """Raw scores of each part; NaN where its lane has no model yet."""
        scores: list[Floats] = [np.full(len(rows), np.nan) for _, rows in parts]
        versions = {lane.release.version.id: lane.release.version for lane, _ in parts if lane.release}
        for name, version in versions.items():
            which = [
                i for i, (lane, _) in enumerate(parts) if lane.release and lane.release.version.id == name
            ]
            scored = version.score(Rows.concatenate([parts[i][1] for i in which]))
            ends = np.cumsum([len(parts[i][1]) for i in which])
            for i, part in zip(which, np.split(scored, ends[:-1]), strict=True):
                scores[i] = part
        return scores

    def _alerts(self, part: Part) -> list[Alert]:
        events, lane = part.decoded.events, self.lanes[part.lane]
        which = np.flatnonzero(part.verdicts.flagged & (events.offsets >= lane.published))
        if not len(which):
            return []
        return explain(
            events,
            part.featured,
            part.verdicts,
            which,
            model=None if part.release is None else part.release.version,
            features=lane.features,
            schema=self.schema,
            originals=[self.decoder.original(events.values[i]) for i in which.tolist()],
            since_ms=part.since_ms[which],
            detected_at_ms=self.clock.now_ms(),
            explained=part.explained,
        )

    def _report(self) -> None:
        """What is a state rather than a count."""
        lost = self.lost()
        self.metrics.lost.set(lost)
        if lost:  # until somebody restarts the worker: nothing brings them back
            self.health.red("records", f"{lost} records were deleted before they were read: see the log")
        if self.shelf is not None:
            for reason, times in self.shelf.refused.items():
                self.metrics.checkpoints_refused.labels(reason).set(times)
        show(self.metrics, self.lanes, self.source.lag(), self.delivery, self.learner)
        for lane, kept in self.lanes.items():
            if kept.features.evicted_total and lane not in self._full:
                self._full.add(lane)
                log.warning(
                    "lane=%s has more than input.max_entities=%d entities, or counterparts of a kind: the least "
                    "recently seen ones make room, and start anew when they return",
                    lane,
                    self.settings.input.max_entities,
                )


def run(w: Worker, stop: StopSignal) -> None:
    """Judge until the source ends or a stop is requested; then finish the batch, commit, save and leave."""
    try:
        w.restore()
        while not (stop.requested or w.source.exhausted):
            batch = w.source.poll(w.room())  # never crosses a point where the model may change
            batch = w.follow(batch)  # the group gives and takes lanes
            parts = w.judge(batch)  # a bad record is a value, not an exception
            w.publish(parts)  # exactly-once: one transaction with the offsets
            w.learn(parts)  # only what was judged normal; adopts at fixed event counts
            w.save_if_due()
            w.health.beat()
        w.finish()
    finally:
        w.close()
