"""What a worker counts, in Prometheus' terms. Updated once a batch, never per event.

Names, units and labels are part of the contract with dashboards and alert rules; labels are bounded by the code
or the configuration, never by the data.
"""

import math
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from streamdet.events import LaneId

# The realised alert rate is told from the events in which so many alerts were asked for.
ALERTS_TOLD_FROM: Final = 20


class Metrics:
    """The metrics of one worker, on a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.polled = Counter("streamdet_records_polled", "Records polled", registry=r)
        self.judged = Counter("streamdet_events_judged", "Events judged, by mode", ["mode"], registry=r)
        self.rejected = Counter("streamdet_records_rejected", "Records dead-lettered", ["reason"], registry=r)
        self.alerts = Counter("streamdet_alerts", "Alerts published", ["severity"], registry=r)
        self.flagged = Counter(
            "streamdet_events_flagged",
            "Events that are alerts: at or over their limit and not held back, or outside a hard range",
            registry=r,
        )
        self.held_back = Counter(
            "streamdet_events_held_back",
            "Events over what is usual that are no alerts, by what holds them back",
            ["reason"],
            registry=r,
        )
        self.rejudged = Counter(
            "streamdet_events_rejudged", "Events judged again after a restart", registry=r
        )
        self.imputed = Counter("streamdet_values_imputed", "Missing values filled in", registry=r)
        self.unusable = Counter(
            "streamdet_values_unusable",
            "Values of another type than their field's, taken as missing",
            registry=r,
        )
        self.evicted = Gauge("streamdet_entities_evicted", "Entities that made room for others", registry=r)
        self.counterparts_evicted = Gauge(
            "streamdet_counterparts_evicted",
            "Counterparts of transactions that made room for others",
            registry=r,
        )
        self.entities = Gauge("streamdet_entities", "Entities kept", registry=r)
        self.device = Gauge("streamdet_device_info", "What the model runs on", ["device"], registry=r)
        self.model = Gauge("streamdet_model_trained_at_events", "Events seen by the model in use", registry=r)
        self.adopted = Gauge("streamdet_models_adopted", "Model versions adopted", registry=r)
        self.refused = Gauge(
            "streamdet_models_refused", "Candidates refused by the gate", ["reason"], registry=r
        )
        self.drift = Gauge(
            "streamdet_drifts",
            "Rises of the scores that came to stay, by what was done about them",
            ["action"],
            registry=r,
        )
        self.waited = Gauge(
            "streamdet_adoption_wait_seconds", "Seconds spent waiting for a fine-tune", registry=r
        )
        self.limit = Gauge("streamdet_limit_nats", "Limit of a lane", ["topic", "partition"], registry=r)
        self.lag = Gauge(
            "streamdet_consumer_lag_records", "Records behind", ["topic", "partition"], registry=r
        )
        self.asked_rate = Gauge(
            "streamdet_alert_rate_asked", "Share of normal events to be flagged", registry=r
        )
        self.realised_rate = Gauge(
            "streamdet_alert_rate_realised",
            "Share of the newest events judged against a limit that reached it, held back as noise or not; NaN before "
            "the first",
            registry=r,
        )
        self.realised_rate.set(math.nan)
        self.checkpoints = Counter("streamdet_checkpoints", "Checkpoints by outcome", ["outcome"], registry=r)
        self.checkpoint_seconds = Gauge(
            "streamdet_checkpoint_seconds", "Seconds that the newest checkpoint of a lane took", registry=r
        )
        self.checkpoints_refused = Gauge(
            "streamdet_checkpoints_refused", "Checkpoints passed over, by reason", ["reason"], registry=r
        )
        self.cold_starts = Counter(
            "streamdet_cold_starts", "Partitions begun without a checkpoint", registry=r
        )
        self.commits = Gauge("streamdet_commits", "Commits by outcome", ["outcome"], registry=r)
        self.final = Gauge(
            "streamdet_records_final",
            "Records whose outcome is committed; summed over the workers of a group each counts once",
            registry=r,
        )
        self.held_up = Gauge(
            "streamdet_held_up_seconds",
            "How long judging has waited for commits, this time or the last",
            registry=r,
        )
        self.trains = Gauge("streamdet_trains", "1 where this worker trains for its group", registry=r)
        self.adoptions = Counter(
            "streamdet_adoptions", "Changes of model version, over all lanes", registry=r
        )
        self.lost = Gauge(
            "streamdet_records_lost", "Records deleted from a topic before they were read", registry=r
        )
        self.events = 0  # judged for the first time
        self._recent_events = math.inf
        self._limited = self._reached = 0.0  # by events that weigh 1/e so many later

    def ask(self, alert_rate: float) -> None:
        """Say which share of normal events is to be flagged."""
        self.asked_rate.set(alert_rate)
        self._recent_events = ALERTS_TOLD_FROM / alert_rate

    def realise(self, reached: int, limited: int) -> None:
        """Count events that were judged against a limit, and of them those that reached it."""
        if limited == 0:
            return
        kept = math.exp(-limited / self._recent_events)
        self._limited = kept * self._limited + limited
        self._reached = kept * self._reached + reached
        self.realised_rate.set(self._reached / self._limited)

    def drop_lane(self, lane: LaneId) -> None:
        """Stop showing a lane that is another worker's now."""
        for gauge in (self.limit, self.lag):
            gauge.remove_by_labels({"topic": lane.topic, "partition": str(lane.partition)})
