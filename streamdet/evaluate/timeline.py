"""A whole stream as at most `BUCKETS_MAX` buckets: what a picture of it needs, in constant memory.

Buckets hold equally many neighbouring events each, in the order in which they came in. When all are full, neighbours
merge in pairs and each holds twice as many from then on. So the first event of a stream costs as much as the
billionth, and nothing that a picture must not miss (a score's peak, an alert, an anomaly) is ever thinned out: peaks
are kept as maxima, alerts and anomalies as counts.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamdet.events import Bools, Floats, Ints

# Twice the pixels of a wide picture; even, so that all buckets merge in pairs.
BUCKETS_MAX = 4096
# Events may be late by this share of the whole span before time no longer serves as an axis.
LATE_SHARE_MAX = 0.01

_COUNTS = ("scored", "flagged", "anomalous", "found", "limits")
_SUMS = ("raw", "limit")
_PEAKS = ("raw", "flagged", "false")


@dataclass(frozen=True, slots=True, eq=False)
class Buckets:
    """k neighbouring runs of events, in input order; every array is (k,)."""

    first: Ints  # number of the first event, from 0
    count: Ints
    time_ms: Ints  # of the first event
    raw_max: Floats  # highest raw score; NaN where none was scored
    raw_mean: Floats  # NaN where none was scored
    limit: Floats  # mean limit; NaN where there was none
    flagged: Ints
    anomalous: Ints  # 0 where there are no labels
    found: Ints  # anomalous and flagged
    found_max: (
        Floats  # highest raw score of a flagged event, with labels of a flagged and anomalous one; else NaN
    )
    false_max: Floats  # highest raw score of a flagged event that is labelled normal; else NaN
    scored: Bools  # any event of it has a score

    def __len__(self) -> int:
        return len(self.first)

    @property
    def missed(self) -> Ints:
        """Anomalous events that were not flagged, (k,)."""
        return self.anomalous - self.found


class Timeline:
    """Scores, limits, alerts and labels of a stream, thinned as it grows. State: some 400 KiB."""

    def __init__(self, buckets_max: int = BUCKETS_MAX) -> None:
        if buckets_max < 2 or buckets_max % 2:
            raise ValueError(f"buckets_max must be even and 2 or more, not {buckets_max}")
        self._max = buckets_max
        self._width = 1  # events in a full bucket
        self.events = 0
        self.labelled = False
        self._time_ms = np.zeros(buckets_max, np.int64)
        self._counts = {name: np.zeros(buckets_max, np.int64) for name in _COUNTS}
        self._sums = {name: np.zeros(buckets_max) for name in _SUMS}
        self._peaks = {name: np.full(buckets_max, -np.inf) for name in _PEAKS}
        self._earliest_ms: int | None = None
        self._latest_ms = 0
        self._late_ms_max = 0

    def __len__(self) -> int:
        return (self.events + self._width - 1) // self._width

    @property
    def in_order(self) -> bool:
        """Whether event time serves as an axis: it passes, and no event is late by more than 1 % of the whole."""
        if self._earliest_ms is None or self._latest_ms <= self._earliest_ms:
            return False
        return self._late_ms_max <= LATE_SHARE_MAX * (self._latest_ms - self._earliest_ms)

    def add(
        self, times_ms: Ints, raw: Floats, limit: Floats, flagged: Bools, anomalous: Bools | None = None
    ) -> None:
        """Add n events in input order.

        Args:
            times_ms: event times, (n,).
            raw: raw scores, (n,); NaN where there is none.
            limit: limits in force, (n,); NaN where there is none.
            flagged: whether an alert came of it, (n,).
            anomalous: what the labels say, (n,); None without labels.
        """
        n = len(times_ms)
        if not n:
            return
        self._observe_order(times_ms)
        self.labelled |= anomalous is not None
        while self.events + n > self._max * self._width:
            self._merge()
        bucket = (self.events + np.arange(n)) // self._width  # (n,), never falling
        starts = np.flatnonzero(np.diff(bucket, prepend=-1))  # (b,) where each of the b touched ones begins
        touched = slice(int(bucket[0]), int(bucket[-1]) + 1)
        begun = self.events % self._width != 0  # its first event, and so its time, came with an earlier call
        self._time_ms[touched][int(begun) :] = times_ms[starts][int(begun) :]
        truth = flagged if anomalous is None else anomalous
        scored, limited, hit = ~np.isnan(raw), ~np.isnan(limit), flagged & truth
        labels = np.zeros(n, np.bool_) if anomalous is None else anomalous
        counted = (scored, flagged, labels, hit & labels, limited)
        for name, values in zip(_COUNTS, counted, strict=True):
            self._counts[name][touched] += np.add.reduceat(values.astype(np.int64), starts)
        for name, sums in (("raw", np.where(scored, raw, 0.0)), ("limit", np.where(limited, limit, 0.0))):
            self._sums[name][touched] += np.add.reduceat(sums, starts)
        for name, which in zip(_PEAKS, (scored, hit & scored, flagged & ~truth & scored), strict=True):
            peaks = np.maximum.reduceat(np.where(which, raw, -np.inf), starts)
            self._peaks[name][touched] = np.maximum(self._peaks[name][touched], peaks)
        self.events += n

    def buckets(self) -> Buckets:
        """All that was added so far; a copy."""
        k = len(self)
        counts = {name: values[:k].copy() for name, values in self._counts.items()}
        peaks = {name: _or_nan(values[:k]) for name, values in self._peaks.items()}
        first = np.arange(k, dtype=np.int64) * self._width
        return Buckets(
            first=first,
            count=np.minimum(self.events - first, self._width),
            time_ms=self._time_ms[:k].copy(),
            raw_max=peaks["raw"],
            raw_mean=_mean(self._sums["raw"][:k], counts["scored"]),
            limit=_mean(self._sums["limit"][:k], counts["limits"]),
            flagged=counts["flagged"],
            anomalous=counts["anomalous"],
            found=counts["found"],
            found_max=peaks["flagged"],
            false_max=peaks["false"],
            scored=counts["scored"] > 0,
        )

    def _observe_order(self, times_ms: Ints) -> None:
        """Note how late an event can be after a later one."""
        before = times_ms[0] if self._earliest_ms is None else self._latest_ms
        reached = np.maximum(np.maximum.accumulate(times_ms), before)  # (n,) latest time so far
        self._late_ms_max = max(self._late_ms_max, int((reached - times_ms).max()))
        self._latest_ms = int(reached[-1])
        first = int(times_ms.min())
        self._earliest_ms = first if self._earliest_ms is None else min(self._earliest_ms, first)

    def _merge(self) -> None:
        """Neighbours become one, so that half of the buckets are free again."""
        half = self._max // 2
        self._time_ms[:half] = self._time_ms[::2]
        for kept in (*self._counts.values(), *self._sums.values()):
            kept[:half] = kept.reshape(half, 2).sum(axis=1)
            kept[half:] = 0
        for peaks in self._peaks.values():
            peaks[:half] = peaks.reshape(half, 2).max(axis=1)
            peaks[half:] = -np.inf
        self._width *= 2


def _or_nan(peaks: Floats) -> Floats:
    return np.where(np.isneginf(peaks), np.nan, peaks)


def _mean(sums: Floats, counts: NDArray[np.int64]) -> Floats:
    means: Floats = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
    return means
