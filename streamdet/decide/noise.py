"""What is held back of the verdicts of a lane, and what alerts whatever the model says.

In this order: a value outside its hard range; a deviation to the harmless side, or too small to matter; k of n; the
cool-down. The first that holds an event back is its reason. Limits and calibration have seen the scores by then, and
nothing here changes what they keep.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from streamdet.config import FeatureNoise, Settings
from streamdet.decide.damping import Damping
from streamdet.decide.explaining import Explained, explained_by
from streamdet.decide.harmless import FeatureRules
from streamdet.events import Bools, Cause, Events, Rows, Schema, State, Verdicts
from streamdet.features.rows import Featured
from streamdet.models.version import ModelVersion


class Sifted(NamedTuple):
    """Verdicts after the rules, and the explanations that these had to ask for; they cover every alert."""

    verdicts: Verdicts
    explained: Explained | None


class Sieve:
    """The noise rules of one lane."""

    def __init__(self, settings: Settings, schema: Schema) -> None:
        noise = settings.noise
        self._schema = schema
        self._features = FeatureRules.of(
            [noise.features.get(name, FeatureNoise()) for name in schema.numeric],
            sized=[name == schema.amount for name in schema.numeric],
        )
        self._damping = Damping(noise) if noise.damps else None
        self._nominal = -math.log(settings.limit.alert_rate)

    @classmethod
    def of(cls, settings: Settings, schema: Schema) -> "Sieve | None":
        """The sieve of a lane; None where nothing is configured."""
        return cls(settings, schema) if settings.noise.configured else None

    def sift(
        self, events: Events, featured: Featured, verdicts: Verdicts, version: ModelVersion | None
    ) -> Sifted:
        """Apply the rules to n events in order, scored by this version, None where there was no model yet."""
        ranged = np.asarray(featured.outside.any(axis=1))
        # Where entities are damped, an event after the flagged ones of its excursion may be what makes an alert.
        strange = np.logical_or(ranged, verdicts.flagged if self._damping is None else verdicts.strange)
        verdicts, reason = self._with_ranges(verdicts, ranged), verdicts.reason.copy()
        explained = self._explained(featured.rows, strange, version)
        if explained is not None:
            excuses = self._features.excuses(events.numeric[explained.which], explained.explanation)
            excused = (excuses != Cause.NONE) & ~ranged[explained.which]
            reason[explained.which[excused]] = excuses[excused]
            strange[explained.which[excused]] = False
        if self._damping is None:
            reason[ranged] = Cause.RANGE
        else:
            reasons = self._damping.reasons(
                events.times_ms,
                verdicts.raw,
                strange,
                verdicts.flagged,
                ranged,
                featured.slots,
                featured.fresh,
            )
            reason[strange] = reasons[strange]
        return Sifted(_published(replace(verdicts, reason=reason)), explained)

    def _explained(self, rows: Rows, strange: Bools, version: ModelVersion | None) -> Explained | None:
        """Why the strange ones are so, where a rule asks for it."""
        which = np.flatnonzero(strange)
        if version is None or not len(which) or not self._features.may_excuse:
            return None
        return Explained(which, explained_by(version, rows[which], self._schema))

    def _with_ranges(self, verdicts: Verdicts, ranged: Bools) -> Verdicts:
        """Raise what lies outside a hard range to its limit, or a nominal one before the first; learn none of it."""
        limit = np.where(ranged & np.isnan(verdicts.limit), self._nominal, verdicts.limit)
        raw = np.where(ranged, np.fmax(verdicts.raw, limit), verdicts.raw)
        return replace(
            verdicts, raw=raw, limit=limit, fed=verdicts.fed & ~ranged, normal=verdicts.normal & ~ranged
        )

    def state(self, slots: int) -> State:
        """What is kept of the first slots, in views that later events change; empty where no rule keeps anything."""
        return {} if self._damping is None else {"damping": self._damping.state(slots)}

    def restore(self, state: State) -> None:
        """Take back what `state` gave; what is not there begins as empty."""
        if self._damping is not None and "damping" in state:
            self._damping.restore(state["damping"])


def _published(verdicts: Verdicts) -> Verdicts:
    """Flag what is an alert by its reason; one amid an excursion is so by the limit without that."""
    flagged = (verdicts.reason == Cause.LIMIT) | (verdicts.reason == Cause.RANGE)
    limit = np.where(flagged & (verdicts.raw < verdicts.limit), verdicts.usual, verdicts.limit)
    return replace(verdicts, flagged=flagged, limit=limit)
