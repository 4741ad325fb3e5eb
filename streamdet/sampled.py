"""What a sample of events tells of its fields: for a person who is to decide which of them are judged."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

# Words in the name of a field whose value says whose event it is. In the order in which they are preferred.
_ENTITY_WORDS: Final = (
    *(
        "device",
        "machine",
        "host",
        "card",
        "customer",
        "account",
        "user",
        "client",
        "sensor",
        "station",
        "terminal",
    ),
    *("vehicle", "asset", "unit", "node", "server", "entity", "pump", "engine", "id"),
)
# Words in the names of fields that tell who pays what to whom.
_AMOUNT_WORDS: Final = frozenset({"amount", "amt", "price", "total", "paid"})
_PAYER_WORDS: Final = frozenset({"card", "customer", "account", "user", "client", "payer", "sender"})
_COUNTERPART_WORDS: Final = frozenset(
    {"merchant", "terminal", "shop", "store", "payee", "beneficiary", "recipient", "receiver"}
)
# Fewer values than this are kinds or sizes, not amounts.
_AMOUNTS_MIN: Final = 20
_WORDS: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")
# A whole number is a name only where the field is called a number: sensor_1 and host_load are measurements.
_NUMBER_WORDS: Final = frozenset({"id", "no", "nr", "number", "code"})
# More distinct values than this share: each event has its own, as a transaction has.
_DISTINCT_SHARE_MAX: Final = 0.95
# An event without an entity is a dead letter: a field that lacks more than these is none.
_MISSING_SHARE_MAX: Final = 0.01


@dataclass(frozen=True, slots=True)
class Column:
    """What was seen of a field in a sample of n events."""

    name: str
    kind: Literal["number", "text", "nested", "empty"]
    missing: float  # share of the events that lack it
    distinct: int
    low: float  # NaN if it has no numbers
    high: float
    integers: bool
    examples: tuple[str, ...]  # of texts

    @property
    def summary(self) -> str:
        """A few words, without the name."""
        if self.kind == "empty":
            return "never has a value"
        parts = []
        if self.kind == "number":
            same = self.low == self.high
            parts.append(f"always {self.low:g}" if same else f"{self.low:g} to {self.high:g}")
        elif self.kind == "text":
            values = "value" if self.distinct == 1 else "values"
            parts.append(f"{self.distinct:,} {values} such as {', '.join(self.examples)}")
        else:
            parts.append("objects or lists")
        if self.missing:
            parts.append(f"{_percent(self.missing)} missing")
        return "; ".join(parts)


def columns_of(sample: Sequence[Mapping[str, object]]) -> list[Column]:
    """The fields of a sample, in the order in which they first appear."""
    names = dict.fromkeys(name for event in sample for name in event)
    return [_column(name, [event.get(name) for event in sample]) for name in names]


def entity_candidate(columns: Sequence[Column], events: int) -> str | None:
    """The field that most likely names the device, card or account; None where none looks like one.

    Its name has to say so, and its values, texts or whole numbers, have to repeat.
    """
    ranked = [
        (rank, column.name)
        for column in columns
        if (rank := _rank(column)) is not None and _may_be_entity(column, events)
    ]
    return min(ranked)[1] if ranked else None


@dataclass(frozen=True, slots=True)
class Payments:
    """Fields of a sample that look as if they told what is paid, and to whom."""

    amount: str
    counterparts: tuple[str, ...]


def payments_candidate(columns: Sequence[Column], events: int, entity: str | None) -> Payments | None:
    """The fields of transactions; None where no amount is paid, or the entity is nobody who pays.

    Their names have to say so: an amount is a number of many values, none of them negative; the values of
    counterparts, like those of an entity, repeat.
    """
    amount = next((c.name for c in columns if _is_called(c, _AMOUNT_WORDS) and _may_be_amount(c)), None)
    payer = next((c for c in columns if c.name == entity), None)
    if amount is None or payer is None or not _is_called(payer, _PAYER_WORDS):
        return None
    others = (c for c in columns if c.name not in (entity, amount) and _is_called(c, _COUNTERPART_WORDS))
    return Payments(
        amount, tuple(c.name for c in others if _is_called_a_name(c) and _may_be_entity(c, events))
    )


def _column(name: str, values: Sequence[object]) -> Column:
    there = [v for v in values if v is not None and v != ""]
    numbers = [v for v in there if isinstance(v, bool | int | float)]
    texts = [v for v in there if isinstance(v, str)]
    finite = [float(v) for v in numbers if _is_finite(v)]
    kind: Literal["number", "text", "nested", "empty"] = "nested"
    if not there:
        kind = "empty"
    elif 2 * len(numbers) > len(there):
        kind = "number"
    elif 2 * len(texts) > len(there):
        kind = "text"
    distinct = dict.fromkeys(str(v) for v in there if isinstance(v, bool | int | float | str))
    return Column(
        name=name,
        kind=kind,
        missing=1 - len(there) / len(values),
        distinct=len(distinct),
        low=min(finite, default=math.nan),
        high=max(finite, default=math.nan),
        integers=all(isinstance(v, int) and not isinstance(v, bool) for v in numbers),
        examples=tuple(shown(text) for text in list(distinct)[:3]),
    )


def shown(text: str) -> str:
    """A value of the data as part of a comment: short, and on one line."""
    plain = "".join(c if c.isprintable() else "?" for c in text)
    return plain if len(plain) <= 24 else plain[:21] + "..."


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else f"{share:.1%}"


def _rank(column: Column) -> int | None:
    words = _words(column)
    ranks = [r for r, word in enumerate(_ENTITY_WORDS) if word in words or f"{word}id" in words]
    return min(ranks, default=None) if _is_called_a_name(column) else None


def _words(column: Column) -> list[str]:
    return [word.lower() for word in _WORDS.findall(column.name)]


def _is_called(column: Column, one_of: frozenset[str]) -> bool:
    words = _words(column)
    return any(word in one_of or word.removesuffix("id") in one_of for word in words)


def _is_called_a_name(column: Column) -> bool:
    words = _words(column)
    return column.kind == "text" or len(words) == 1 or not _NUMBER_WORDS.isdisjoint(words[-1:])


def _may_be_amount(column: Column) -> bool:
    return column.kind == "number" and column.low >= 0 and column.distinct >= _AMOUNTS_MIN


def _may_be_entity(column: Column, events: int) -> bool:
    named = column.kind == "text" or (column.kind == "number" and column.integers and column.low >= 0)
    repeated = 1 < column.distinct <= _DISTINCT_SHARE_MAX * events
    return named and repeated and column.missing <= _MISSING_SHARE_MAX
