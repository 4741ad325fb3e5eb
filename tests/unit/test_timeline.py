"""A timeline stays small, and what a picture must not miss is in it, however the stream was cut into batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamdet.evaluate.timeline import BUCKETS_MAX, Timeline
from streamdet.events import Bools, Floats, Ints

Stream = tuple[Ints, Floats, Floats, Bools, Bools]


def stream(n: int, seed: int = 0) -> Stream:
    rng = np.random.default_rng(seed)
    raw = rng.exponential(size=n)
    raw[: n // 10] = np.nan  # not scored yet
    limit = np.where(np.isnan(raw), np.nan, 5.0)
    flagged = np.nan_to_num(raw) >= 5.0
    anomalous = rng.random(n) < 0.02
    return np.arange(n, dtype=np.int64) * 1000, raw, limit, flagged, anomalous


def of(events: Stream, sizes: list[int], buckets_max: int, *, labels: bool = True) -> Timeline:
    line = Timeline(buckets_max)
    start = 0
    for size in [*sizes, len(events[0])]:
        times, raw, limit, flagged, anomalous = events
        part = slice(start, start + size)
        line.add(times[part], raw[part], limit[part], flagged[part], anomalous[part] if labels else None)
        start += size
    return line


@given(n=st.integers(1, 300), sizes=st.lists(st.integers(0, 90), max_size=8), half=st.integers(1, 20))
def test_buckets_are_what_their_events_say_whatever_the_batches(n: int, sizes: list[int], half: int) -> None:
    events = stream(n, seed=n)
    times, raw, _, flagged, anomalous = events
    buckets = of(events, sizes, buckets_max=2 * half).buckets()

    assert len(buckets) <= 2 * half
    assert buckets.count.sum() == n
    for i, (first, count) in enumerate(zip(buckets.first, buckets.count, strict=True)):
        mine = slice(first, first + count)
        assert buckets.time_ms[i] == times[first]
        scored = raw[mine][~np.isnan(raw[mine])]
        assert buckets.scored[i] == bool(len(scored))
        assert buckets.flagged[i] == flagged[mine].sum()
        assert buckets.anomalous[i] == anomalous[mine].sum()
        assert buckets.missed[i] == (anomalous & ~flagged)[mine].sum()
        np.testing.assert_equal(buckets.raw_max[i], scored.max() if len(scored) else np.nan)
        np.testing.assert_allclose(buckets.raw_mean[i], scored.mean() if len(scored) else np.nan)
        np.testing.assert_allclose(buckets.limit[i], 5.0 if len(scored) else np.nan)
        for peak, which in ((buckets.found_max, anomalous), (buckets.false_max, ~anomalous)):
            hits = raw[mine][(flagged & which)[mine]]
            np.testing.assert_equal(peak[i], hits.max() if len(hits) else np.nan)


def test_a_long_stream_keeps_its_peak_and_its_counts_in_few_buckets() -> None:
    n = 1_000_000
    events = stream(n)
    _, raw, _, flagged, anomalous = events
    raw[654_321] = 1e6
    line = of(events, [4096] * (n // 4096), BUCKETS_MAX)
    buckets = line.buckets()

    assert BUCKETS_MAX / 2 <= len(buckets) <= BUCKETS_MAX
    assert np.nanmax(buckets.raw_max) == 1e6
    assert (buckets.flagged.sum(), buckets.anomalous.sum()) == (flagged.sum(), anomalous.sum())


def test_a_batch_larger_than_all_buckets_is_taken_in_one_go() -> None:
    line = of(stream(1000), [], buckets_max=4)

    assert line.events == 1000
    assert line.buckets().count.tolist() == [256, 256, 256, 232]


def test_without_labels_all_alerts_count_as_alerts_and_none_as_false() -> None:
    events = stream(500)
    line = of(events, [], buckets_max=500, labels=False)
    buckets = line.buckets()

    assert not line.labelled
    assert buckets.anomalous.sum() == 0
    assert np.isnan(buckets.false_max).all()
    assert (~np.isnan(buckets.found_max)).sum() == (buckets.flagged > 0).sum() == events[3].sum()


def test_nothing_added_is_no_bucket() -> None:
    line = Timeline()

    assert len(line) == len(line.buckets()) == 0
    assert not line.in_order


@pytest.mark.parametrize(
    ("times_ms", "in_order"),
    [
        (np.arange(1000), True),
        (np.arange(1000) + np.tile([0, 5], 500), True),  # devices that are a little behind
        (np.zeros(1000, np.int64), False),  # no time passes
        (np.arange(1000)[::-1], False),
        (np.where(np.arange(1000) == 10, 10**9, np.arange(1000)), False),  # one clock in the far future
        (np.where(np.arange(1000) == 990, 0, np.arange(1000)), False),  # one event very late
    ],
)
@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_time_is_an_axis_only_where_it_passes_in_order(times_ms: Ints, in_order: bool, batch: int) -> None:
    line = Timeline()
    for start in range(0, 1000, batch):
        part = times_ms[start : start + batch]
        ones = np.ones(len(part))
        line.add(part, ones, ones, np.zeros(len(part), np.bool_))

    assert line.in_order is in_order


def test_an_odd_number_of_buckets_is_refused() -> None:
    with pytest.raises(ValueError, match="even"):
        Timeline(3)
