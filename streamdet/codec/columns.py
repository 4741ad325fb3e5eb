"""What every codec gives: the fields of a schema as columns, and the records that could not be read."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from streamdet.events import Floats, Reason, Schema


class Problem(NamedTuple):
    """A record that could not be read."""

    at: int  # among the values given
    reason: Reason
    error: str


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """The readable ones of the values given to a codec; m rows."""

    index: NDArray[np.intp]  # (m,) which of the values
    timestamps: Sequence[object]  # m raw values: text, number or None; empty where the schema names no field
    entities: Sequence[str | None]  # m names; empty where the schema names no field
    numeric: Floats  # (m, D), NaN where missing, may be infinite
    categorical: Sequence[Sequence[str | None]]  # C columns of m values
    problems: Sequence[Problem] = field(default=())
    # m times the names of the fields with a value of another type, taken as missing; empty where no row has any
    unusable: Sequence[Sequence[str]] = ()
    counterparts: Sequence[Sequence[str | None]] = ()  # K columns of m names


class Codec(Protocol):
    """Reads record values in one format."""

    def decode(self, values: Sequence[bytes]) -> Columns:
        """All readable values as columns; the others as problems. Never raises for what a value says."""

    def original(self, value: bytes) -> dict[str, object]:
        """The fields of one readable value, all of them, as published in an alert."""


class Row(NamedTuple):
    """One record read with care, field by field."""

    timestamp: object
    entity: str | None
    numeric: tuple[float, ...]
    categorical: tuple[str | None, ...]
    unusable: tuple[str, ...]  # names of fields with a value of another type
    counterparts: tuple[str | None, ...] = ()


def gather(schema: Schema, rows: Sequence[tuple[int, Row]], problems: Sequence[Problem]) -> Columns:
    """Columns from rows read one by one."""
    numeric = np.array([row.numeric for _, row in rows], np.float64).reshape(len(rows), len(schema.numeric))
    return Columns(
        index=np.array([i for i, _ in rows], np.intp),
        timestamps=[row.timestamp for _, row in rows] if schema.timestamp is not None else (),
        entities=[row.entity for _, row in rows] if schema.entity is not None else (),
        numeric=numeric,
        categorical=[[row.categorical[c] for _, row in rows] for c in range(len(schema.categorical))],
        problems=problems,
        unusable=[row.unusable for _, row in rows],
        counterparts=[[row.counterparts[k] for _, row in rows] for k in range(len(schema.counterparts))],
    )
