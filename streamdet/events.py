"""The values that flow through the program, in the order in which they arise.

Records come from a source, become events (or rejects), are judged into verdicts, and the flagged verdicts
become alerts. All are columnar and belong to one lane (topic-partition), so that order inside a lane is
the order of the arrays. Nothing here does anything: no I/O, no clock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
# What a part of the program keeps, for a checkpoint: arrays, and values that JSON can hold, by name, nested.
State = Mapping[str, Any]


# Beside each number stand recent means of it, with half of the weight on so many events of the entity. Each event moves
# them by such a step towards its value.
HALF_LIVES: Final = (5.0, 20.0)
RECENT_STEPS: Final = tuple(1.0 - 2.0 ** (-1.0 / half_life) for half_life in HALF_LIVES)

# Columns beside a metric: how far it is from its forecast, in its units, and four surprises in nats, see
# `features/expectation.py`.
EXPECTATION_COLUMNS: Final = 5
RESIDUAL, FORECAST, SHIFT, NOVELTY, STILLNESS = range(EXPECTATION_COLUMNS)

# Columns beside each row, see `features/newest.py`: how far it is from the newest rows, and these from those before.
NEWEST_COLUMNS: Final = 2
DISTANCE, DRIFT = range(NEWEST_COLUMNS)

# Columns beside a transaction, see `features/transactions.py`: its amount, and how rare the hour is to the entity; of
# each key, the entity first, what it usually pays with this transaction in it, seconds since its last transaction,
# counts and sums of 1 h, 24 h and 7 d, and what it usually paid before; of each counterpart, how unusual it is to meet.
AMOUNT, HOUR, KEYS = 0, 1, 2
KEY_COLUMNS: Final = 9
USUAL, GAP, COUNTS, SUMS, KNOWN = 0, 1, 2, 5, 8


def transaction_columns(keys: int) -> int:
    """How many columns transactions with so many keys have."""
    return KEYS + KEY_COLUMNS * keys + (keys - 1)


class LaneId(NamedTuple):
    """A topic-partition."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"

    @classmethod
    def parse(cls, text: str) -> "LaneId":
        """The lane that gave this text."""
        topic, _, partition = text.rpartition("/")
        return cls(topic, int(partition))


class Position(NamedTuple):
    """Where a lane goes on, as the group has it."""

    offset: int
    note: str = ""  # travels with the offset: here, the lane's newest adoptions


@dataclass(frozen=True, slots=True)
class Schema:
    """Which fields of a record mean what."""

    timestamp: str | None
    entity: str | None
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    amount: str | None = None  # of transactions; one of the numeric fields
    counterparts: tuple[str, ...] = ()  # of transactions: their keys besides the entity

    @property
    def columns(self) -> tuple[str, ...]:
        """The features, in the order of a row."""
        return self.numeric + self.categorical

    @property
    def metric(self) -> bool:
        """Whether there is one number and nothing else."""
        return len(self.numeric) == 1 and not self.categorical and not self.transactions

    @property
    def transactions(self) -> bool:
        """Whether an event is a payment, or whatever else an entity does with an amount."""
        return self.amount is not None

    @property
    def history(self) -> int:
        """How many columns tell what the history of a metric, or of the keys of a transaction, says."""
        if self.transactions:
            return transaction_columns(1 + len(self.counterparts))
        return EXPECTATION_COLUMNS if self.metric else 0

    @property
    def width(self) -> int:
        """How many columns a row has: the features, two recent means of each number, the newest rows, the history."""
        return len(self.columns) + 2 * len(self.numeric) + NEWEST_COLUMNS + self.history

    def as_state(self) -> State:
        """What `from_state` takes back."""
        state: dict[str, Any] = {
            "timestamp": self.timestamp,
            "entity": self.entity,
            "numeric": list(self.numeric),
            "categorical": list(self.categorical),
        }
        if self.transactions:
            state |= {"amount": self.amount, "counterparts": list(self.counterparts)}
        return state

    @classmethod
    def from_state(cls, state: State) -> "Schema":
        """The schema that gave this state."""
        return cls(
            state["timestamp"],
            state["entity"],
            tuple(state["numeric"]),
            tuple(state["categorical"]),
            state.get("amount"),
            tuple(state.get("counterparts", ())),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """What was polled from one lane, in offset order; n records."""

    lane: LaneId
    offsets: Ints  # (n,)
    timestamps_ms: Ints  # (n,) of the records, as Kafka has them
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]  # None: a tombstone
    order: Ints | None = None  # (n,) places in the batch, where it is known how lanes took turns

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def next_offset(self) -> int:
        """Where reading goes on after these records."""
        return int(self.offsets[-1]) + 1

    def first(self, n: int) -> "Records":
        """The first n of them."""
        order = None if self.order is None else self.order[:n]
        return Records(
            self.lane, self.offsets[:n], self.timestamps_ms[:n], self.keys[:n], self.values[:n], order
        )


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A micro-batch: what one poll brought, at most one part per lane."""

    parts: Sequence[Records]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def next_offsets(self) -> dict[LaneId, int]:
        """Where reading goes on in each lane of the batch."""
        return {part.lane: part.next_offset for part in self.parts}


@dataclass(frozen=True, slots=True, eq=False)
class Events:
    """Decoded records of one lane; n events, D numeric and C categorical columns."""

    lane: LaneId
    offsets: Ints  # (n,)
    times_ms: Ints  # (n,) event times, milliseconds since 1970-01-01 UTC
    entities: Sequence[str]  # n names; "" where the stream has no entity field
    numeric: Floats  # (n, D), NaN where missing
    categorical: Sequence[Sequence[str | None]]  # C columns of n values, None where missing
    values: Sequence[bytes]  # the original record values
    order: Ints | None = None  # (n,) as in the records
    counterparts: Sequence[Sequence[str]] = ()  # of transactions: K kinds of n names, "" where missing

    def __len__(self) -> int:
        return len(self.offsets)


@dataclass(frozen=True, eq=False)
class Rows:
    """Feature vectors of n events, W = `Schema.width` columns: features, recent means, newest rows, history."""

    values: NDArray[np.float32]  # (n, W), no NaN
    imputed: Bools  # (n, W), True where the value was missing and filled in

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, which: "slice | Bools | NDArray[np.intp]") -> "Rows":
        return Rows(self.values[which], self.imputed[which])

    @staticmethod
    def concatenate(parts: "list[Rows]") -> "Rows":
        """All rows, in order; at least one part."""
        if len(parts) == 1:
            return parts[0]
        return Rows(np.concatenate([p.values for p in parts]), np.concatenate([p.imputed for p in parts]))


class Reason(StrEnum):
    """Why a record could not be judged."""

    TOMBSTONE = "tombstone"
    TOO_LARGE = "too_large"
    INVALID_ENCODING = "invalid_encoding"
    INVALID_SYNTAX = "invalid_syntax"
    NOT_AN_OBJECT = "not_an_object"
    TOO_DEEP = "too_deep"
    DUPLICATE_KEY = "duplicate_key"
    INVALID_VALUE = "invalid_value"
    MISSING_ENTITY = "missing_entity"
    INVALID_TIMESTAMP = "invalid_timestamp"
    NO_FEATURES = "no_features"
    MISSING_VALUE = "missing_value"


@dataclass(frozen=True, slots=True)
class Reject:
    """A record that cannot be judged, with everything needed to find out why."""

    lane: LaneId
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    reason: Reason
    error: str


class Mode(IntEnum):
    """What a verdict rests on."""

    COLD = 0  # no model yet: no score
    WARMING = 1  # scored, but not yet alerted on
    READY = 2  # judged by the lane-wide limit
    ENTITY = 3  # judged by the entity's own limit

    @property
    def label(self) -> str:
        """The word used in alerts, score files and metrics."""
        return self.name.lower()


class Cause(IntEnum):
    """Why an event is an alert, or why it is none although it is over what is usual."""

    NONE = 0  # below what is usual
    LIMIT = 1  # an alert: at or over its limit
    RANGE = 2  # an alert: a value outside its hard range
    DIRECTION = 3  # held back: most of it is a deviation to the harmless side
    DEVIATION = 4  # held back: most of it is a deviation too small to matter
    K_OF_N = 5  # held back: too few of the entity's last events were strange
    COOL_DOWN = 6  # held back: no worse than an alert shortly before
    EXCURSION = 7  # held back by the limit: its excursion has been flagged before

    @property
    def label(self) -> str:
        """The word used in alerts, score files and metrics."""
        return self.name.lower()

    @property
    def holds_back(self) -> bool:
        """Whether an event is over what is usual, and for this reason no alert."""
        return self not in (Cause.NONE, Cause.LIMIT, Cause.RANGE)


@dataclass(frozen=True, slots=True, eq=False)
class Verdicts:
    """What was decided about n events of one lane."""

    raw: Floats  # (n,) surprise in nats, -ln p; NaN while cold
    limit: Floats  # (n,) in force before the event; NaN while cold
    mode: NDArray[np.uint8]  # (n,) values of Mode
    flagged: Bools  # (n,) published as an alert
    fed: Bools  # (n,) moved the limit; may also serve as reference for calibration
    normal: Bools  # (n,) well below the limit: the model may learn it
    usual: Floats  # (n,) the limit without what an excursion makes of it; NaN until there are alerts
    reason: NDArray[np.uint8]  # (n,) values of Cause

    def __getitem__(self, which: "NDArray[np.intp]") -> "Verdicts":
        return Verdicts(*(getattr(self, field.name)[which] for field in fields(self)))

    @staticmethod
    def concatenate(parts: "list[Verdicts]") -> "Verdicts":
        """All verdicts, in order; at least one part."""
        names = [field.name for field in fields(Verdicts)]
        return Verdicts(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))

    @property
    def held_back(self) -> dict[Cause, int]:
        """How many are over what is usual and no alerts, by the reason; every reason is there."""
        counts = np.bincount(self.reason, minlength=len(Cause))
        return {cause: int(counts[cause]) for cause in Cause if cause.holds_back}

    @property
    def strange(self) -> Bools:
        """Over what is usual, (n,): flagged, or what an excursion goes on with after that."""
        return self.raw >= self.usual

    @property
    def score(self) -> Floats:
        """Raw score as a multiple of the limit, (n,): 1 and above is anomalous."""
        return self.raw / self.limit

    @property
    def p_value(self) -> Floats:
        """Probability of a score at least this high on normal data, (n,)."""
        return np.exp(-self.raw)


def _said(description: str) -> msgspec.Meta:
    """A sentence that goes into the JSON schema of alerts."""
    return msgspec.Meta(description=description)


class FeatureShare(msgspec.Struct, frozen=True):
    """How one feature contributed to an alert."""

    name: str
    actual: Annotated[float | str | None, _said("Value of the event; null if it was missing.")]
    expected: Annotated[float | str | None, _said("What the model expected, in the units of the feature.")]
    share: Annotated[float, _said("Part of the surprise, 0 to 1; the shares of an alert sum to 1.")]
    # What was published before missing values were marked has no mark.
    imputed: Annotated[
        bool,
        _said("The value was missing: the recent mean or the last one stood for it, and its share is 0."),
    ] = False


class SourcePosition(msgspec.Struct, frozen=True):
    """Where the record lies in Kafka."""

    topic: str
    partition: int
    offset: int


class Alert(msgspec.Struct, frozen=True):
    """A flagged verdict as published; `deploy/schemas/alert.schema.json` is made from this declaration."""

    id: Annotated[str, _said("topic/partition/offset: the same however often the record is judged.")]
    event_time: Annotated[str, _said("When it happened: ISO 8601, UTC, milliseconds.")]
    detected_at: Annotated[str, _said("When it was judged: ISO 8601, UTC, milliseconds.")]
    entity: Annotated[str | None, _said("Device, card or account; null where the stream has no entities.")]
    score: Annotated[float, _said("raw_score / limit: 1 and above is anomalous.")]
    raw_score: Annotated[
        float, _said("Surprise in nats, -ln of the p-value; comparable over the whole stream.")
    ]
    limit: Annotated[float, _said("Raw score from which the event counted as anomalous.")]
    p_value: Annotated[float, _said("Probability of a score at least this high on normal data.")]
    severity: Annotated[str, _said("minor, major (score 1.5 and above) or critical (2.5 and above).")]
    mode: Annotated[
        str,
        _said(
            "ready: judged by the limit of the partition; entity: by the entity's own; cold or warming: before there "
            "are limits, by a hard range."
        ),
    ]
    features: Annotated[
        list[FeatureShare],
        _said(
            "All features, and of a transaction what its history tells; those outside their hard range first, then the "
            "largest share first."
        ),
    ]
    model_version: Annotated[
        str,
        _said(
            "Names the weights, scale and calibration that scored the event; empty before the first model."
        ),
    ]
    source: SourcePosition
    event: Annotated[dict[str, Any], _said("All fields of the record.")]
    # What was published before there were reasons has none.
    reason: Annotated[
        str, _said("limit: the score reached the limit; range: a value lies outside its hard range.")
    ] = Cause.LIMIT.label
    confidence: Annotated[
        float,
        _said(
            "What the alert rests on, 0 to 1: 1 - imputed features / all features, so 1 where no value was missing."
        ),
    ] = 1.0
    likely_start: Annotated[
        str,
        _said(
            "When it has likely begun: event time of the first of the strange rows right before it, or its own."
        ),
    ] = ""


ALERT_SCHEMA_VERSION = "1"


def alert_schema() -> dict[str, Any]:
    """The JSON schema of alerts."""
    schema = msgspec.json.schema(Alert)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"streamdet alert, version {ALERT_SCHEMA_VERSION}",
        **schema,
    }
