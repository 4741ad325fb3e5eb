"""Records to events and rejects: whatever a record holds, it ends as exactly one of the two."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamdet.codec.columns import Codec, Columns, Problem
from streamdet.codec.times import TIME_MS_MAX, TIME_MS_MIN, parse_times
from streamdet.config import Missing
from streamdet.events import Bools, Events, Ints, Reason, Records, Reject, Schema


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """One part of a batch: len(events) + len(rejects) = len(records)."""

    events: Events
    rejects: Sequence[Reject]
    unusable: int  # values that were taken as missing though something stood there


class Decoder:
    """Applies a codec and the rules that hold for every format."""

    def __init__(
        self,
        codec: Codec,
        schema: Schema,
        max_record_bytes: int,
        *,
        reject_unusable: bool,
        missing: Missing | None = None,
    ) -> None:
        missing = Missing() if missing is None else missing
        self._codec = codec
        self._zero = np.array(
            missing.which("zero", schema), np.bool_
        )  # (D,) absence, and nothing else, means 0
        self._required = np.flatnonzero(missing.which("reject", schema))  # columns that no event may lack
        self._schema = schema
        self._max_record_bytes = max_record_bytes
        self._reject_unusable = reject_unusable

    def decode(self, records: Records) -> Decoded:
        """Split the records of a lane into events and rejects, both in offset order."""
        readable, values, problems = self._readable(records)
        if not values:
            return Decoded(self._no_events(records), _rejects(records, problems), 0)
        columns = self._codec.decode(values)
        problems += [p._replace(at=int(readable[p.at])) for p in columns.problems]
        columns_at = readable[columns.index]
        infinite = np.isinf(columns.numeric)
        times_ms, keep = self._check(records, columns, columns_at, infinite, problems)
        if self._zero.any():
            columns.numeric[np.isnan(columns.numeric) & self._zero] = 0.0
        columns.numeric[infinite] = np.nan  # too large a number is not an absent one
        events = self._events(records, values, columns, columns_at, times_ms, keep)
        unusable = int(infinite[keep].sum())
        if columns.unusable:
            unusable += sum(len(columns.unusable[i]) for i in np.flatnonzero(keep).tolist())
        return Decoded(events, _rejects(records, problems), unusable)

    def original(self, value: bytes) -> dict[str, object]:
        """All fields of a record that was judged."""
        return self._codec.original(value)

    def _readable(self, records: Records) -> tuple[NDArray[np.intp], Sequence[bytes], list[Problem]]:
        """Positions and values of the records that a codec may look at."""
        limit = self._max_record_bytes
        values = [value for value in records.values if value is not None and len(value) <= limit]
        if len(values) == len(records):
            return np.arange(len(records)), values, []
        at, problems = [], []
        for i, value in enumerate(records.values):
            if value is None:
                problems.append(Problem(i, Reason.TOMBSTONE, "the record has no value"))
            elif len(value) > limit:
                error = f"{len(value)} bytes; input.max_record_bytes is {limit}"
                problems.append(Problem(i, Reason.TOO_LARGE, error))
            else:
                at.append(i)
        return np.array(at, np.intp), values, problems

    def _check(
        self,
        records: Records,
        columns: Columns,
        columns_at: NDArray[np.intp],
        infinite: Bools,
        problems: list[Problem],
    ) -> tuple[Ints, Bools]:
        """Event times, and which rows can be judged; what cannot is added to the problems."""
        m = len(columns_at)
        bad: list[tuple[Bools, Reason, str]] = []
        if self._schema.timestamp is None:
            times_ms = records.timestamps_ms[columns_at]
            usable = (times_ms >= TIME_MS_MIN) & (times_ms < TIME_MS_MAX)
            bad.append((~usable, Reason.INVALID_TIMESTAMP, "the record's own timestamp is not a time"))
        else:
            times_ms, usable = parse_times(columns.timestamps)
            bad.append((~usable, Reason.INVALID_TIMESTAMP, f"no usable time in {self._schema.timestamp!r}"))
        if self._schema.entity is not None:
            nameless = np.fromiter((not name for name in columns.entities), np.bool_, m)
            bad.append((nameless, Reason.MISSING_ENTITY, f"no usable name in {self._schema.entity!r}"))
        if self._reject_unusable:
            bad.append((np.asarray(infinite.any(axis=1)), Reason.INVALID_VALUE, "an infinite number"))
        for d in np.flatnonzero(self._zero).tolist() if columns.unusable else ():
            name = self._schema.numeric[d]
            wrong = np.fromiter((name in names for names in columns.unusable), np.bool_, m)
            error = f"unusable value in {name}, where input.missing lets absence alone mean zero"
            bad.append((wrong, Reason.INVALID_VALUE, error))
        there: Bools = np.isfinite(columns.numeric)
        empty: Bools = ~np.asarray((there | self._zero).any(axis=1))
        for column in columns.categorical:
            empty &= np.fromiter((value is None for value in column), np.bool_, m)
        bad.append((empty, Reason.NO_FEATURES, "none of the features has a usable value"))
        for d in self._required.tolist():
            error = f"no usable number in {self._schema.numeric[d]!r}, and input.missing says reject"
            bad.append((~there[:, d], Reason.MISSING_VALUE, error))
        keep = np.ones(m, np.bool_)
        for which, reason, error in bad:
            problems += [Problem(int(columns_at[i]), reason, error) for i in np.flatnonzero(which & keep)]
            keep &= ~which
        return times_ms, keep

    def _events(
        self,
        records: Records,
        values: Sequence[bytes],
        columns: Columns,
        columns_at: NDArray[np.intp],
        times_ms: Ints,
        keep: Bools,
    ) -> Events:
        entities, numeric, categorical, index = (
            columns.entities,
            columns.numeric,
            columns.categorical,
            columns.index,
        )
        counterparts = columns.counterparts
        if not keep.all():
            kept = np.flatnonzero(keep).tolist()
            columns_at, times_ms, numeric, index = (
                columns_at[kept],
                times_ms[kept],
                numeric[kept],
                index[kept],
            )
            entities = [entities[i] for i in kept] if entities else ()
            categorical = [[column[i] for i in kept] for column in categorical]
            counterparts = [[column[i] for i in kept] for column in counterparts]
        if len(index) < len(values):
            values = [values[i] for i in index.tolist()]
        return Events(
            lane=records.lane,
            offsets=records.offsets[columns_at],
            times_ms=times_ms,
            entities=[name or "" for name in entities] if entities else [""] * len(columns_at),
            numeric=numeric,
            categorical=categorical,
            values=values,
            order=None if records.order is None else records.order[columns_at],
            counterparts=[[name or "" for name in column] for column in counterparts],
        )

    def _no_events(self, records: Records) -> Events:
        none = np.empty(0, np.int64)
        numeric = np.empty((0, len(self._schema.numeric)))
        schema = self._schema
        categorical, counterparts = (
            [() for _ in names] for names in (schema.categorical, schema.counterparts)
        )
        return Events(records.lane, none, none, (), numeric, categorical, (), counterparts=counterparts)


def _rejects(records: Records, problems: list[Problem]) -> list[Reject]:
    return [
        Reject(
            lane=records.lane,
            offset=int(records.offsets[p.at]),
            timestamp_ms=int(records.timestamps_ms[p.at]),
            key=records.keys[p.at],
            value=records.values[p.at],
            reason=p.reason,
            error=p.error,
        )
        for p in sorted(problems)
    ]
