"""What the loop tells the metrics, once a batch."""

from collections.abc import Mapping, Sequence

import numpy as np

from streamdet.delivery import Delivery
from streamdet.events import Alert, LaneId, Mode
from streamdet.lane import Lane
from streamdet.learn.learner import Learner
from streamdet.parts import Part
from streamdet.serve.metrics import Metrics


def count(
    metrics: Metrics,
    lane: Lane,
    part: Part,
    alerts: Sequence[Alert],
) -> None:
    """One lane's part of a batch; events below what the lane has published were judged before."""
    metrics.polled.inc(len(part.records))
    modes = np.bincount(part.verdicts.mode, minlength=len(Mode))
    for mode in Mode:
        metrics.judged.labels(mode.label).inc(int(modes[mode]))
    for reject in part.decoded.rejects:
        metrics.rejected.labels(reject.reason).inc()
    for alert in alerts:
        metrics.alerts.labels(alert.severity).inc()
    metrics.flagged.inc(int(part.verdicts.flagged.sum()))
    metrics.realise(part.reached, int(modes[Mode.READY] + modes[Mode.ENTITY]))
    for cause, held_back in part.verdicts.held_back.items():
        metrics.held_back.labels(cause.label).inc(held_back)
    metrics.imputed.inc(int(np.isnan(part.decoded.events.numeric).sum()))
    metrics.unusable.inc(part.decoded.unusable)
    again = int((part.decoded.events.offsets < lane.published).sum())
    metrics.rejudged.inc(again)
    metrics.events += len(part.decoded.events) - again


def show(
    metrics: Metrics,
    lanes: Mapping[LaneId, Lane],
    lag: Mapping[LaneId, int],
    delivery: Delivery,
    learner: Learner | None,
) -> None:
    """What is a state rather than a count."""
    for lane, kept in lanes.items():
        metrics.limit.labels(lane.topic, str(lane.partition)).set(kept.limits.lane_limit)
        if kept.release is not None:
            metrics.model.set(kept.release.version.trained_at)
    for lane, behind in lag.items():
        metrics.lag.labels(lane.topic, str(lane.partition)).set(behind)
    metrics.final.set(delivery.records_final)
    for outcome, times in delivery.outcomes.items():
        metrics.commits.labels(outcome).set(times)
    metrics.entities.set(sum(len(kept.features.entities) for kept in lanes.values()))
    evicted = sum(kept.features.entities.evicted_total for kept in lanes.values())
    metrics.evicted.set(evicted)
    metrics.counterparts_evicted.set(sum(kept.features.evicted_total for kept in lanes.values()) - evicted)
    metrics.trains.set(learner is not None)
    if learner is not None:
        metrics.adopted.set(learner.adopted_total)
        metrics.waited.set(learner.waited_s)
        metrics.drift.labels("relearn").set(learner.relearnt_total)
        for reason, refused in learner.refused_total.items():
            metrics.refused.labels(reason).set(refused)
