"""The loop: judge every record; publish, then commit; learn only after judging.

Guarantees: every record polled ends as judged or as a dead letter; alerts and dead letters have arrived before the
offsets behind them are committed; state changes at event counts alone. Not guaranteed here: that an alert is
published only once. What was published after the last commit is published again after a crash, with the same ids.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from streamdet.checkpoint.store import CheckpointFolder
from streamdet.clock import Clock
from streamdet.codec.decoder import Decoded, Decoder
from streamdet.config import Settings
from streamdet.decide import explain, judge
from streamdet.errors import CheckpointError
from streamdet.events import Alert, Batch, Floats, LaneId, Mode, Rows, Schema, State, Verdicts
from streamdet.features.rows import Featured, LaneFeatures
from streamdet.learn.learner import Learner
from streamdet.models.version import ModelVersion
from streamdet.serve.metrics import Metrics
from streamdet.sink import Sink
from streamdet.source import Source
from streamdet.threshold.rolling import RollingLimits

log = logging.getLogger(__name__)

# Alerts are flushed with every batch; offsets may lag this far, as a commit costs a round trip.
COMMIT_EVERY_S = 0.2
# A lane that comes later than this after a start has been judged by somebody else meanwhile: what was saved of it
# would set it back.
SAVED_LANES_S = 60.0


class StopSignal(Protocol):
    """Whether somebody wants the worker to end."""

    requested: bool


@dataclass(eq=False)
class Lane:
    """All that is kept for one topic-partition."""

    features: LaneFeatures
    limits: RollingLimits
    # Records below were published before a restart: they are judged again, for the state, but not published.
    published: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What became of one lane's share of a batch."""

    lane: LaneId
    decoded: Decoded
    featured: Featured
    verdicts: Verdicts


class Observer(Protocol):
    """Sees what was judged, after it was published: score files, reports, progress."""

    def judged(self, parts: Sequence[Part]) -> None:
        """One micro-batch."""


@dataclass(eq=False)
class Worker:
    """What the loop works with."""

    settings: Settings
    schema: Schema
    source: Source
    decoder: Decoder
    sink: Sink
    learner: Learner
    metrics: Metrics
    clock: Clock
    checkpoint: CheckpointFolder | None = None
    saved: State | None = None
    observers: Sequence[Observer] = ()
    model: ModelVersion | None = None
    lanes: dict[LaneId, Lane] = field(default_factory=dict)
    _saved_lanes: dict[str, Any] = field(default_factory=dict)
    _offsets: dict[LaneId, int] = field(default_factory=dict)
    _processed: dict[LaneId, int] = field(default_factory=dict)
    _full: set[LaneId] = field(default_factory=set)
    _warm: bool = False
    _committed_at_s: float = -math.inf
    _saved_at_s: float = 0.0
    _restored_at_s: float = 0.0

    def restore(self) -> None:
        """Take back what was saved, or say that this is a cold start; begin the lanes that are known already."""
        self._saved_at_s = self._restored_at_s = self.clock.monotonic_s()
        if self.saved is None:
            self.metrics.cold_starts.inc()
            log.info(
                "cold start: no checkpoint; no alerts in the first %d events", self.settings.learning.warmup
            )
        else:
            self._take_back(self.saved)
            self.saved = None
        # A recording knows its lanes before the first poll, which would read from its beginning.
        self.follow()

    def _take_back(self, state: State) -> None:
        if "model" in state:
            self.model = self.learner.load_model(state["model"])
        self.learner.restore(state["learner"], self.model)
        self._saved_lanes = dict(state["lanes"])
        self._warm = self.learner.warm
        log.info("restored events=%d lanes=%d", self.learner.seen, len(self._saved_lanes))

    def follow(self) -> None:
        """Begin the lanes that the group gave to this worker, and drop those that it took away."""
        mine = self.source.lanes
        if self._saved_lanes and self.clock.monotonic_s() - self._restored_at_s > SAVED_LANES_S:
            log.info("forgot the saved state of %d lanes that other workers have", len(self._saved_lanes))
            self._saved_lanes = {}
        for lane in [known for known in self.lanes if known not in mine]:
            del self.lanes[lane]
            self._offsets.pop(lane, None)
            self._processed.pop(lane, None)
            self.metrics.drop_lane(lane)
        for lane in sorted(mine - self.lanes.keys()):
            self.lanes[lane] = self._begin(lane)

    def judge(self, batch: Batch) -> list[Part]:
        """Verdicts on a batch. One scoring launch for all of it; learns nothing."""
        self._notice_rewinds(batch)
        decoded = [self.decoder.decode(part) for part in batch.parts]
        featured = [self.lanes[d.events.lane].features.transform(d.events) for d in decoded]
        raw = self._score([f.rows for f in featured])
        alerting = self.learner.warm
        parts, start = [], 0
        for d, f in zip(decoded, featured, strict=True):
            lane, n = d.events.lane, len(d.events)
            limits = self.lanes[lane].limits
            verdicts = judge(raw[start : start + n], f.slots, f.fresh, limits, alerting=alerting)
            parts.append(Part(lane, d, f, verdicts))
            start += n
        return parts

    def publish(self, batch: Batch, parts: Sequence[Part]) -> None:
        """Alerts and dead letters out, flushed; then the offsets behind them."""
        alerts = [alert for part in parts for alert in self._alerts(part)]
        rejects = [r for p in parts for r in p.decoded.rejects if r.offset >= self.lanes[p.lane].published]
        if alerts or rejects:
            self.sink.publish(alerts, rejects)
            self.sink.flush()
        self._processed |= batch.next_offsets
        for lane, offset in batch.next_offsets.items():
            self._offsets[lane] = max(offset, self.lanes[lane].published)
        if self.clock.monotonic_s() - self._committed_at_s >= COMMIT_EVERY_S:
            self.commit()
        self._count(batch, parts, alerts)
        for observer in self.observers:
            observer.judged(parts)

    def learn(self, parts: Sequence[Part]) -> None:
        """Let the learner see what was judged, and change the model if its count has come."""
        limits = [lane.limits.lane_limit for lane in self.lanes.values()]
        limit = max((x for x in limits if not math.isnan(x)), default=math.nan)
        self.learner.observe(_as_they_came(parts), self.model, limit)
        if self.learner.warm and not self._warm:
            self._warm = True
            log.info("warm-up ended events=%d", self.learner.seen)
        before, self.model = self.model, self.learner.adopt(self.model)
        if before is not None and self.model is not None and self.model is not before:
            held_out = self.learner.held_out()
            old, new = before.score(held_out), self.model.score(held_out)
            for lane in self.lanes.values():
                lane.limits.rescale(old, new)

    def _notice_rewinds(self, batch: Batch) -> None:
        """A topic made anew begins at 0 again: what was published below belongs to the old one."""
        for part in batch.parts:
            expected = self._processed.get(part.lane, 0)
            if part.offsets[0] < expected:
                log.warning(
                    "lane=%s went back from %d to %d: all of it counts as new",
                    part.lane,
                    expected,
                    part.offsets[0],
                )
                self.lanes[part.lane].published = 0

    def commit(self) -> None:
        """Make the offsets of all that was published the group's."""
        if self._offsets:
            self.source.commit(self._offsets)
            self._offsets = {}
        self._committed_at_s = self.clock.monotonic_s()

    def save_if_due(self) -> None:
        """Save a checkpoint when the time for it has come; a failure is said, counted, and tried again later."""
        if self.checkpoint is None:
            return
        if self.clock.monotonic_s() - self._saved_at_s >= self.settings.checkpoint.every_s:
            self.save()

    def save(self) -> None:
        """Save a checkpoint of everything judged so far, once the offsets behind it are committed.

        A restart cannot use one that is ahead of the committed offsets: what lies between would be missing from it.
        """
        self._saved_at_s = self.clock.monotonic_s()
        if self.checkpoint is None:
            return
        self.commit()
        try:
            path = self.checkpoint.save(self.state())
        except CheckpointError as error:
            self.metrics.checkpoints.labels("failed").inc()
            log.error("checkpoint failed: %s", error)  # noqa: TRY400 - the message says it all
        else:
            self.metrics.checkpoints.labels("saved").inc()
            log.debug("checkpoint saved path=%s", path)

    def state(self) -> State:
        """Model, learner and lanes as one, with the offsets up to which they have seen everything."""
        state: dict[str, Any] = {
            "group_id": self.settings.input.group_id,
            "schema": {
                "timestamp": self.schema.timestamp,
                "entity": self.schema.entity,
                "numeric": list(self.schema.numeric),
                "categorical": list(self.schema.categorical),
            },
            "learner": self.learner.state(),
            "lanes": {
                str(lane): {
                    "next_offset": self._processed[lane],
                    "features": kept.features.state(),
                    "limits": kept.limits.state(),
                }
                for lane, kept in self.lanes.items()
                if lane in self._processed
            },
        }
        if self.model is not None:
            state["model"] = self.learner.save_model(self.model)
        return state

    def close(self) -> None:
        """Leave the group and release everything; what was published has been committed before."""
        self.learner.close()
        self.sink.close()
        self.source.close()

    def _begin(self, lane: LaneId) -> Lane:
        kept = Lane(
            LaneFeatures(self.schema, self.settings.input.max_entities), RollingLimits(self.settings.limit)
        )
        committed = self.source.committed(lane)
        saved = self._saved_lanes.pop(str(lane), None)
        if saved is None:
            if self._warm:
                log.info("lane=%s starts without state: no alerts before it has a limit of its own", lane)
            return kept
        if committed is not None and saved["next_offset"] > committed:
            log.warning(
                "lane=%s starts cold: its checkpoint is at offset %d, ahead of the committed %d",
                lane,
                saved["next_offset"],
                committed,
            )
            return kept
        entities = len(saved["features"]["entities"]["names"])
        if entities > self.settings.input.max_entities:
            log.warning(
                "lane=%s starts cold: its checkpoint has %d entities, input.max_entities is now %d",
                lane,
                entities,
                self.settings.input.max_entities,
            )
            return kept
        kept.features.restore(saved["features"])
        kept.limits.restore(saved["limits"])
        kept.published = saved["next_offset"] if committed is None else committed
        self._processed[lane] = saved["next_offset"]
        self.source.seek(lane, saved["next_offset"])
        log.info("lane=%s goes on at=%d published_below=%d", lane, saved["next_offset"], kept.published)
        return kept

    def _score(self, rows: list[Rows]) -> Floats:
        total = sum(len(part) for part in rows)
        if self.model is None or not total:
            return np.full(total, np.nan)
        return self.model.score(Rows.concatenate(rows))

    def _alerts(self, part: Part) -> list[Alert]:
        events, lane = part.decoded.events, self.lanes[part.lane]
        which = np.flatnonzero(part.verdicts.flagged & (events.offsets >= lane.published))
        if self.model is None or not len(which):
            return []
        return explain(
            events,
            part.featured,
            part.verdicts,
            which,
            model=self.model,
            features=lane.features,
            schema=self.schema,
            originals=[self.decoder.original(events.values[i]) for i in which.tolist()],
            detected_at_ms=self.clock.now_ms(),
        )

    def _count(self, batch: Batch, parts: Sequence[Part], alerts: Sequence[Alert]) -> None:
        metrics = self.metrics
        metrics.polled.inc(len(batch))
        for part in parts:
            modes = np.bincount(part.verdicts.mode, minlength=len(Mode))
            for mode in Mode:
                metrics.judged.labels(mode.label).inc(int(modes[mode]))
            for reject in part.decoded.rejects:
                metrics.rejected.labels(reject.reason).inc()
            metrics.flagged.inc(int(part.verdicts.flagged.sum()))
            metrics.imputed.inc(int(part.featured.rows.imputed.sum()))
            metrics.unusable.inc(part.decoded.unusable)
            again = part.decoded.events.offsets < self.lanes[part.lane].published
            metrics.rejudged.inc(int(again.sum()))
            limit = self.lanes[part.lane].limits.lane_limit
            metrics.limit.labels(part.lane.topic, str(part.lane.partition)).set(limit)
        for alert in alerts:
            metrics.alerts.labels(alert.severity).inc()
        self._count_entities()
        for lane, records in self.source.lag().items():
            metrics.lag.labels(lane.topic, str(lane.partition)).set(records)
        if self.model is not None:
            metrics.model.set(self.model.trained_at)
        metrics.adopted.set(self.learner.adopted_total)
        metrics.waited.set(self.learner.waited_s)
        for reason, count in self.learner.refused_total.items():
            metrics.refused.labels(reason).set(count)

    def _count_entities(self) -> None:
        tables = {lane: kept.features.entities for lane, kept in self.lanes.items()}
        self.metrics.entities.set(sum(len(table) for table in tables.values()))
        self.metrics.evicted.set(sum(table.evicted_total for table in tables.values()))
        for lane, table in tables.items():
            if table.evicted_total and lane not in self._full:
                self._full.add(lane)
                log.warning(
                    "lane=%s has more than input.max_entities=%d entities: the least recently seen ones make room, "
                    "and start anew when they return",
                    lane,
                    self.settings.input.max_entities,
                )


def order_of_arrival(parts: Sequence[Part]) -> NDArray[np.intp] | None:
    """Which of the events of all parts, laid end to end, came first, second, ...; None if they are in order."""
    known = [part.decoded.events.order for part in parts if part.decoded.events.order is not None]
    if len(parts) < 2 or len(known) < len(parts):
        return None
    return np.argsort(np.concatenate(known))


def _as_they_came(parts: Sequence[Part]) -> list[tuple[Rows, Verdicts]]:
    """Rows and verdicts for the learner: across lanes in the order of arrival, where that is known.

    One model learns from all lanes, so their order counts; lane by lane it would depend on how the batch was cut.
    """
    pairs = [(part.featured.rows, part.verdicts) for part in parts]
    order = order_of_arrival(parts)
    if order is None:
        return pairs
    rows = Rows.concatenate([rows for rows, _ in pairs])[order]
    return [(rows, Verdicts.concatenate([verdicts for _, verdicts in pairs])[order])]


def run(w: Worker, stop: StopSignal) -> None:
    """Judge until the source ends or a stop is requested; then finish the batch, commit, save and leave."""
    try:
        w.restore()
        while not (stop.requested or w.source.exhausted):
            batch = w.source.poll(w.learner.room())  # never crosses a point where the model may change
            w.follow()
            parts = w.judge(batch)  # a bad record is a value, not an exception
            w.publish(batch, parts)  # flush, then commit
            w.learn(parts)  # only what was judged normal; adopts at fixed event counts
            w.save_if_due()
        w.commit()
        w.save()
    finally:
        w.close()
