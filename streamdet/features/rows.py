"""Events to rows: what is missing is imputed and marked, categories become rarities; per entity and in order.

The row of event n has seen nothing after event n. What lies outside its hard range is in its own row and in no other:
for all that follows it is as if it were missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamdet.compiled import compiled, inlined
from streamdet.config import Missing
from streamdet.events import NEWEST_COLUMNS, RECENT_STEPS, Bools, Events, Floats, Ints, Rows, Schema, State
from streamdet.features.categories import Rarity
from streamdet.features.entities import FIRST_SLOT, EntityTable
from streamdet.features.expectation import Expectation
from streamdet.features.newest import Newest
from streamdet.features.transactions import Transactions
from streamdet.slotted import with_room

_FAST, _SLOW = RECENT_STEPS
# Larger numbers would be infinite in float32. They are far enough out to stay what they are: extreme.
_VALUE_MAX = 1e38
# What the newest rows say where there are none: as far as a tenth of all, and no drift.
NOTHING_NEAR = (1.0, 0.0)


class Recent(NamedTuple):
    """What is remembered of the D numbers of each entity, and of the lane; NaN where none has come yet."""

    fast: Floats  # (S, D) recent means, see `HALF_LIVES`
    slow: Floats  # (S, D)
    last: Floats  # (S, D) last values; (S, 0) where none is asked for


@dataclass(frozen=True, slots=True, eq=False)
class Featured:
    """Rows of the events of a lane, and whose they are."""

    rows: Rows
    slots: Ints  # (n,)
    fresh: Bools  # (n,) the slot has a new owner from this event on
    usual: Ints  # (n, C) codes of the most frequent categories before the event
    outside: Bools  # (n, D) the number lies outside its hard range; a missing one does not


class LaneFeatures:
    """What is remembered of one lane to make rows: entities with their means and histories, categories, newest rows."""

    def __init__(
        self,
        schema: Schema,
        max_entities: int,
        missing: Missing | None = None,
        ranges: Sequence[tuple[float, float]] | None = None,
    ) -> None:
        """`ranges`: smallest and largest value that there may be of each of the D numbers; None: there is no bound."""
        self._schema = schema
        no_bounds = [(-np.inf, np.inf)] * len(schema.numeric)
        self._low, self._high = np.array(ranges or no_bounds, np.float64).reshape(-1, 2).T  # (D,) each
        self._repeats = np.array((missing or Missing()).which("last", schema), np.bool_)  # (D,)
        self._entities = EntityTable(max_entities)
        self._recent = self._none_seen(1)
        self._categories = [Rarity() for _ in schema.categorical]
        # What is judged by its history needs no others.
        self._newest = None if schema.history else Newest(len(schema.columns))
        self._expectation = Expectation(entities=schema.entity is not None) if schema.metric else None
        self._transactions = (
            Transactions(len(schema.counterparts), max_entities) if schema.amount is not None else None
        )
        self._amount = schema.numeric.index(schema.amount) if schema.amount is not None else 0

    @property
    def entities(self) -> EntityTable:
        """Which entities are kept."""
        return self._entities

    @property
    def evicted_total(self) -> int:
        """How many entities, and counterparts of transactions, have made room for others."""
        counterparts = self._transactions.evicted_total if self._transactions is not None else 0
        return self._entities.evicted_total + counterparts

    def transform(self, events: Events) -> Featured:
        """Rows of the events, in order."""
        n, numeric = len(events), len(self._schema.numeric)
        slots, fresh = self._entities.assign(events.entities)
        self._recent = with_room(self._recent, int(slots.max(initial=0)) + 1, self._none_seen)
        values = np.empty((n, self._schema.width), np.float32)
        imputed = np.zeros(values.shape, np.bool_)
        remembered = np.empty((n, numeric), np.float32)
        clipped = np.clip(events.numeric, -_VALUE_MAX, _VALUE_MAX)
        outside: Bools = (events.numeric < self._low) | (events.numeric > self._high)
        _fill(
            clipped,
            outside,
            slots,
            fresh,
            self._repeats,
            self._recent,
            len(self._schema.columns),
            values,
            imputed,
            remembered,
        )
        history = values.shape[1] - self._schema.history
        if self._expectation is not None:
            values[:, history:] = self._expectation.surprise(
                clipped[:, 0], events.times_ms, slots, fresh, outside[:, 0]
            )
            imputed[:, history:] = imputed[:, :1]
        if self._transactions is not None:
            values[:, history:] = self._transactions.facts(
                events.numeric[:, self._amount],
                events.times_ms,
                slots,
                fresh,
                events.counterparts,
                outside[:, self._amount],
            )
        usual = np.empty((n, len(self._categories)), np.int64)
        for c, (rarity, column) in enumerate(zip(self._categories, events.categorical, strict=True)):
            values[:, numeric + c], usual[:, c] = rarity.transform(column)
        features, newest = len(self._schema.columns), history - NEWEST_COLUMNS
        values[:, newest:history] = NOTHING_NEAR
        if self._newest is not None:
            there = ~imputed[:, :features]
            there[:, :numeric] &= ~outside
            usable = np.concatenate([remembered, values[:, numeric:features]], axis=1)
            values[:, newest:history] = self._newest.follow(usable, there)
        return Featured(Rows(values, imputed), slots, fresh, usual, outside)

    def category(self, column: int, code: int) -> str | None:
        """The value of a categorical column that the last `transform` gave this code; None for -1."""
        return self._categories[column].value(code)

    @property
    def slots(self) -> int:
        """How many slots are in use; those of the entities and the lane's own."""
        return len(self._entities) + FIRST_SLOT

    def state(self) -> State:
        """All that is remembered; the means are a view that changes with the next `transform`."""
        state = {
            "entities": self._entities.state(),
            "means": self._recent.slow[: self.slots],
            "fast_means": self._recent.fast[: self.slots],
            "categories": {str(i): rarity.state() for i, rarity in enumerate(self._categories)},
        }
        if self._repeats.any():
            state["last"] = self._recent.last[: self.slots]
        if self._newest is not None:
            state["newest"] = self._newest.state()
        if self._expectation is not None:
            state["expectation"] = self._expectation.state(self.slots)
        if self._transactions is not None:
            state["transactions"] = self._transactions.state(self.slots)
        return state

    def restore(self, state: State) -> None:
        """Take back what `state` gave."""
        self._entities.restore(state["entities"])
        slow, fast = np.array(state["means"]), np.array(state["fast_means"])
        self._recent = self._none_seen(len(slow))._replace(fast=fast, slow=slow)
        if self._repeats.any() and "last" in state:
            self._recent = self._recent._replace(last=np.array(state["last"]))
        for i, rarity in enumerate(self._categories):
            rarity.restore(state["categories"][str(i)])
        if self._newest is not None and "newest" in state:  # version 0.1 had none
            self._newest.restore(state["newest"])
        if self._expectation is not None and "expectation" in state:
            self._expectation.restore(state["expectation"])
        if self._transactions is not None and "transactions" in state:
            self._transactions.restore(state["transactions"])

    def _none_seen(self, slots: int) -> Recent:
        width = len(self._repeats)
        fast, slow = np.full((slots, width), np.nan), np.full((slots, width), np.nan)
        return Recent(fast, slow, np.full((slots, width if self._repeats.any() else 0), np.nan))


@inlined
def _stand_in(slot: int, d: int, repeat: bool, kept: Recent) -> float:  # pragma: no cover - compiled
    """The entity's last value or recent mean, else the lane's mean, else 0."""
    own, lane = kept.slow[slot, d], kept.slow[0, d]
    if repeat and not np.isnan(kept.last[slot, d]):
        own = kept.last[slot, d]
    if np.isnan(own):
        own = lane
    return 0.0 if np.isnan(own) else float(own)


@compiled
def _fill(
    numeric: Floats,
    outside: Bools,
    slots: Ints,
    fresh: Bools,
    repeats: Bools,
    kept: Recent,
    features: int,
    values: NDArray[np.float32],
    imputed: Bools,
    remembered: NDArray[np.float32],
) -> None:  # pragma: no cover - compiled
    """Copy (n, D) numbers into the rows, and their recent means, this event included, behind the features.

    Where a number is NaN, the entity's last value stands for it if the column `repeats`; otherwise the entity's recent
    mean, else the lane's, else 0. One that is `outside` is not remembered: among those that are, (n, D), the same
    stands for it.
    """
    width = numeric.shape[1]
    fast, slow, last = kept
    for i in range(len(numeric)):
        slot = slots[i]
        if fresh[i]:
            fast[slot] = np.nan
            slow[slot] = np.nan
            last[slot] = np.nan
        for d in range(width):
            value = numeric[i, d]
            missing = np.isnan(value)
            if missing or outside[i, d]:
                remembered[i, d] = _stand_in(slot, d, repeats[d], kept)
            else:
                remembered[i, d] = value
            if missing:
                value = remembered[i, d]
                imputed[i, d] = imputed[i, features + d] = imputed[i, features + width + d] = True
            elif not outside[i, d]:
                if repeats[d]:
                    last[slot, d] = value
                own = slow[slot, d]
                slow[slot, d] = value if np.isnan(own) else own + _SLOW * (value - own)
                own = fast[slot, d]
                fast[slot, d] = value if np.isnan(own) else own + _FAST * (value - own)
                if slot != 0:
                    lane = slow[0, d]
                    slow[0, d] = value if np.isnan(lane) else lane + _SLOW * (value - lane)
            values[i, d] = value
            mean = fast[slot, d]
            values[i, features + d] = value if np.isnan(mean) else mean
            mean = slow[slot, d]
            values[i, features + width + d] = value if np.isnan(mean) else mean
