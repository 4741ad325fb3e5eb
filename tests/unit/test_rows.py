"""Rows: what is missing is filled in from the past and marked, and nothing looks ahead."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from strategies import cuts, events_of, some_events

from streamdet.checkpoint.format import digest
from streamdet.config import Missing, StandIn
from streamdet.events import EXPECTATION_COLUMNS, HALF_LIVES, NEWEST_COLUMNS, Events, Schema
from streamdet.features.rows import Featured, LaneFeatures

SCHEMA = Schema(None, "device", ("a", "b"), ("site",))
SLOW = HALF_LIVES[1]
NAN = math.nan


@st.composite
def _streams(draw: st.DrawFn) -> Events:
    n = draw(st.integers(1, 30))
    number = st.one_of(st.just(NAN), st.floats(-100, 100), st.sampled_from([1e300, -1e300, 0.0]))
    return events_of(
        draw(st.lists(st.sampled_from(["", "d1", "d2", "d3", "d4"]), min_size=n, max_size=n)),
        draw(st.lists(st.tuples(number, number), min_size=n, max_size=n)),
        draw(st.lists(st.sampled_from(["north", "south", "east", None]), min_size=n, max_size=n)),
    )


def bits(parts: list[Featured]) -> tuple[bytes, ...]:
    arrays: tuple[list[NDArray[np.generic]], ...] = (
        [p.rows.values for p in parts],
        [p.rows.imputed for p in parts],
        [p.slots for p in parts],
        [p.fresh for p in parts],
    )
    return tuple(np.concatenate(list(a)).tobytes() for a in arrays)


def means_of(features: LaneFeatures) -> NDArray[np.float64]:
    """The means of the slots in use; how much room there is beyond depends on batches."""
    kept: NDArray[np.float64] = features.state()["means"][: len(features.entities) + 1]
    return kept


@given(st.data(), _streams(), st.integers(1, 4), st.booleans(), st.sampled_from(["mean", "last"]))
def test_batches_and_restarts_do_not_matter(
    data: st.DataObject, events: Events, max_entities: int, restart: bool, default: StandIn
) -> None:
    missing = Missing(default=default, features={"b": "last"})
    whole = LaneFeatures(SCHEMA, max_entities, missing)
    expected = whole.transform(events)
    features, parts = LaneFeatures(SCHEMA, max_entities, missing), []
    for start, stop in data.draw(cuts(len(events))):
        parts.append(features.transform(some_events(events, start, stop)))
        if restart:
            state = features.state()
            features = LaneFeatures(SCHEMA, max_entities, missing)
            features.restore(state)
    assert bits(parts) == bits([expected])
    assert np.array_equal(means_of(features), means_of(whole), equal_nan=True)
    assert features.state()["entities"] == whole.state()["entities"]


@given(_streams(), st.integers(0, 30), st.integers(1, 4))
def test_later_events_do_not_change_earlier_rows(events: Events, cut: int, max_entities: int) -> None:
    first = some_events(events, 0, cut)
    together = LaneFeatures(SCHEMA, max_entities).transform(events)
    alone = LaneFeatures(SCHEMA, max_entities).transform(first)
    assert together.rows.values[: len(first)].tobytes() == alone.rows.values.tobytes()


@given(_streams(), st.integers(1, 4))
def test_rows_are_finite_and_hold_what_was_there(events: Events, max_entities: int) -> None:
    rows = LaneFeatures(SCHEMA, max_entities).transform(events).rows
    assert np.isfinite(rows.values).all()
    assert (rows.imputed[:, :2] == np.isnan(events.numeric)).all()
    assert not rows.imputed[:, 2].any()
    assert (rows.imputed[:, 3:5] == rows.imputed[:, :2]).all()
    assert (rows.imputed[:, 5:7] == rows.imputed[:, :2]).all()
    assert not rows.imputed[:, 7:].any()
    there = ~rows.imputed[:, :2] & (np.abs(events.numeric) < 1e38)
    assert np.array_equal(rows.values[:, :2][there], events.numeric[there].astype(np.float32))


def test_a_missing_value_is_the_entitys_recent_mean_else_the_lanes_else_zero() -> None:
    features = LaneFeatures(SCHEMA, 10)
    rows = features.transform(
        events_of(
            ["d1", "d1", "d1", "d2", "d2"],
            [(NAN, 1), (10, 1), (NAN, 1), (NAN, 1), (30, 1)],
            ["north"] * 5,
        )
    ).rows
    assert rows.values[:, 0].tolist() == [0.0, 10.0, 10.0, 10.0, 30.0]
    assert rows.imputed[:, 0].tolist() == [True, False, True, True, False]
    # The entity's own mean from now on, not the lane's.
    assert features.transform(events_of(["d2"], [(NAN, 1)], ["north"])).rows.values[0, 0] == 30.0


def test_the_recent_mean_follows_the_stream_with_its_half_life() -> None:
    features = LaneFeatures(Schema(None, None, ("a",), ()), 10)
    features.transform(events_of([""] * 100, [(0.0,)] * 100))
    features.transform(events_of([""] * int(SLOW), [(10.0,)] * int(SLOW)))
    assert features.transform(events_of([""], [(NAN,)])).rows.values[0, 0] == pytest.approx(5.0)


def test_beside_each_number_stand_its_recent_means_of_the_entity_with_this_event_in_them() -> None:
    features = LaneFeatures(Schema(None, None, ("a", "b"), ()), 10)
    events = events_of(["d1", "d2", "d1"], [(0.0, 1.0), (100.0, 1.0), (8.0, NAN)])
    rows = features.transform(events).rows
    fast, slow = (8.0 * (1 - 2 ** (-1 / half_life)) for half_life in (5.0, 20.0))
    assert rows.values[2, :6].tolist() == pytest.approx([8.0, 1.0, fast, 1.0, slow, 1.0])
    assert rows.imputed[2, :6].tolist() == [False, True] * 3


def test_an_entity_that_made_room_leaves_nothing_of_its_own_to_its_successor() -> None:
    features = LaneFeatures(SCHEMA, 1)
    rows = features.transform(
        events_of(["d1", "d2", "d2", "d1"], [(10, 1), (50, 1), (60, 1), (NAN, 1)], ["north"] * 4)
    ).rows
    lane = 10.0 + (1 - 2 ** (-1 / SLOW)) * 40.0
    lane += (1 - 2 ** (-1 / SLOW)) * (60.0 - lane)
    assert rows.values[3, 0] == pytest.approx(lane)


def test_numbers_beyond_float32_stay_extreme_and_finite() -> None:
    rows = LaneFeatures(SCHEMA, 1).transform(events_of(["d1"], [(1e300, -1e300)], ["north"])).rows
    assert rows.values[0, :2].tolist() == pytest.approx([1e38, -1e38], rel=1e-6)


def test_a_schema_of_one_kind_gives_rows_of_that_kind() -> None:
    names = LaneFeatures(Schema(None, None, (), ("site",)), 1).transform(events_of([""], [()], ["north"]))
    assert names.rows.values.shape == (1, 1 + NEWEST_COLUMNS)
    numbers = LaneFeatures(Schema(None, None, ("a",), ()), 1).transform(events_of([""], [(1.0,)]))
    assert numbers.rows.values[0, :3].tolist() == [1.0, 1.0, 1.0]
    assert numbers.rows.values.shape == (1, 3 + NEWEST_COLUMNS + EXPECTATION_COLUMNS)


def test_the_last_value_of_the_same_entity_stands_for_one_that_is_missing() -> None:
    features = LaneFeatures(Schema(None, "device", ("a", "b"), ()), 2, Missing(features={"a": "last"}))
    names = ["d1", "d2", "d1", "d1", "d2", "d1", "d3", "d1"]
    numbers = [(1.0, 1.0), (9.0, 9.0), (5.0, 5.0), (NAN, NAN), (NAN, NAN), (NAN, 5.0), (7.0, 7.0), (NAN, NAN)]
    rows = features.transform(events_of(names, numbers)).rows
    assert rows.values[[3, 4, 5], 0].tolist() == [5.0, 9.0, 5.0]
    assert rows.imputed[[3, 4, 5], 0].all()
    assert 1.0 < rows.values[3, 1] < 5.0  # the recent mean
    assert features.state()["last"].shape == (3, 2)


def test_an_entity_that_comes_back_after_it_made_room_has_no_last_value() -> None:
    features = LaneFeatures(Schema(None, "device", ("a",), ()), 1, Missing(default="last"))
    rows = features.transform(events_of(["d1", "d2", "d1"], [(1.0,), (9.0,), (NAN,)])).rows
    assert rows.values[2, 0] not in (1.0, 9.0)  # the mean of the lane


def test_a_state_from_before_last_values_were_asked_for_begins_without_them() -> None:
    schema = Schema(None, "device", ("a",), ())
    before = LaneFeatures(schema, 2)
    before.transform(events_of(["d1", "d1"], [(1.0,), (5.0,)]))
    assert "last" not in before.state()
    features = LaneFeatures(schema, 2, Missing(default="last"))
    features.restore(before.state())
    rows = features.transform(events_of(["d1", "d1", "d1"], [(NAN,), (3.0,), (NAN,)])).rows
    assert 1.0 < rows.values[0, 0] < 5.0
    assert rows.values[2, 0] == 3.0


METRIC = Schema(None, "device", ("a",), ())
PAID = Schema(None, "device", ("a", "b"), (), "a", ("shop",))


@given(st.data(), st.sampled_from([SCHEMA, METRIC, PAID]), _streams(), st.integers(1, 4))
def test_what_is_outside_its_range_is_in_its_own_row_and_else_as_if_it_were_missing(
    data: st.DataObject, schema: Schema, events: Events, max_entities: int
) -> None:
    places = [("a", "b").index(name) for name in schema.numeric]
    shops = [["s1", "s2"][i % 2] for i in range(len(events))]
    events = replace(
        events,
        numeric=events.numeric[:, places],
        categorical=events.categorical[: len(schema.categorical)],
        counterparts=[shops] * len(schema.counterparts),
    )
    outside = np.abs(events.numeric) > 50.0
    outside[:, 1:] = False
    without = replace(events, numeric=np.where(outside, NAN, events.numeric))
    ranges = [(-50.0, 50.0), *[(-math.inf, math.inf)] * (len(places) - 1)]
    missing = Missing(default="last")
    features, other = (LaneFeatures(schema, max_entities, missing, ranges) for _ in range(2))
    told, expected = features.transform(events), other.transform(without)
    assert (told.outside == outside).all()
    inside = ~outside.any(axis=1)
    assert told.rows.values[inside].tobytes() == expected.rows.values[inside].tobytes()
    first = np.clip(events.numeric[:, 0], -1e38, 1e38).astype(np.float32)
    assert (told.rows.values[~inside, 0] == first[~inside]).all()
    assert not told.rows.imputed[~inside, 0].any()
    assert digest(features.state()) == digest(other.state())
    in_parts = LaneFeatures(schema, max_entities, missing, ranges)
    parts = [in_parts.transform(some_events(events, *cut)) for cut in data.draw(cuts(len(events)))]
    assert bits(parts) == bits([told])


def test_a_metric_outside_its_range_is_a_surprise_and_its_history_does_not_remember_it() -> None:
    rng = np.random.default_rng(0)
    calm = rng.normal(10.0, 1.0, 1_000)
    calm[900] = 500.0
    schema = Schema(None, None, ("a",), ())
    kept, ranged = LaneFeatures(schema, 1), LaneFeatures(schema, 1, ranges=[(0.0, 100.0)])
    usual, spared = (
        features.transform(events_of([""] * 1_000, calm.reshape(-1, 1).tolist())).rows.values[:, -4:].max(1)
        for features in (kept, ranged)
    )
    assert spared[900] == usual[900] > 10.0
    assert usual[901:910].max() > 10.0
    assert spared[901:910].max() < 5.0
