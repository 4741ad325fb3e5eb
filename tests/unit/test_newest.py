"""The newest usual rows: what is near to them, what gets among them, and how far they have moved."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from strategies import cuts

from streamdet.checkpoint.format import digest
from streamdet.events import DISTANCE, DRIFT
from streamdet.features import newest
from streamdet.features.newest import BEGINNING, LASTING, ROWS_MIN, Newest
from streamdet.models import scaling
from streamdet.models.presets import DRIFT_BEGINS, DRIFT_RAMP

COLUMNS = 4


def calm(n: int, seed: int = 0) -> NDArray[np.float32]:
    """Rows around 10, -10, 0 and 1e6, each column with a unit of its own."""
    rng = np.random.default_rng(seed)
    return (np.array([10, -10, 0, 1e6]) + np.array([1, 5, 0.01, 100]) * rng.normal(size=(n, COLUMNS))).astype(
        np.float32
    )


def spreads(columns: float) -> NDArray[np.float32]:
    """So many spreads in each column."""
    return (columns * np.array([1, 5, 0.01, 100])).astype(np.float32)


def followed(newest: Newest, values: NDArray[np.float32]) -> NDArray[np.float32]:
    return newest.follow(values, np.ones(values.shape, np.bool_))


@settings(max_examples=30)
@given(st.data(), st.integers(0, 99), st.floats(0.0, 0.5))
def test_batches_and_a_restart_leave_no_trace(data: st.DataObject, seed: int, missing: float) -> None:
    rng = np.random.default_rng(seed)
    values, n = calm(700, seed), 700
    values[300:500] += spreads(3.0)
    there = rng.random(values.shape) >= missing
    whole = Newest(COLUMNS)
    expected = whole.follow(values, there)
    newest, parts = Newest(COLUMNS), []
    for start, stop in data.draw(cuts(n)):
        parts.append(newest.follow(values[start:stop], there[start:stop]))
        again = Newest(COLUMNS)
        again.restore(newest.state())
        newest = again
    assert np.concatenate(parts).tobytes() == expected.tobytes()
    assert digest(newest.state()) == digest(whole.state())
    assert np.isfinite(expected).all()


def test_of_usual_rows_a_tenth_is_further_away_than_1_and_a_far_one_much_further() -> None:
    newest = Newest(COLUMNS)
    usual = followed(newest, calm(6_000))[1_000:, DISTANCE]
    assert (usual > 1.0).mean() == pytest.approx(0.1, abs=0.04)
    far, twin = calm(1, 7) + spreads(8.0), calm(6_000)[-1:]
    assert followed(newest, far)[0, DISTANCE] > 3.0
    assert followed(newest, twin)[0, DISTANCE] < 0.01


def test_the_first_rows_are_as_far_as_a_tenth_is_and_rows_without_values_too() -> None:
    newest = Newest(COLUMNS)
    assert followed(newest, calm(ROWS_MIN))[:, DISTANCE].tolist() == [1.0] * ROWS_MIN
    followed(newest, calm(500))
    before = digest(newest.state()["rows"])
    nothing = newest.follow(calm(3), np.zeros((3, COLUMNS), np.bool_))
    assert nothing[:, DISTANCE].tolist() == [1.0] * 3
    assert digest(newest.state()["rows"]) == before


def test_a_column_that_is_not_there_does_not_count() -> None:
    newest = Newest(COLUMNS)
    followed(newest, calm(1_000))
    row = calm(1, 5)
    row[0, 2] = 1e30
    there = np.ones(row.shape, np.bool_)
    there[0, 2] = False
    assert newest.follow(row, there)[0, DISTANCE] < 2.0


def test_a_burst_does_not_get_among_them_and_is_no_drift() -> None:
    newest = Newest(COLUMNS)
    followed(newest, calm(3_000))
    burst = followed(newest, calm(600, 1) + spreads(6.0))
    assert burst[-100:, DISTANCE].min() > 3.0
    assert burst[:, DRIFT].max() < DRIFT_BEGINS
    after = followed(newest, calm(600, 2))
    assert np.median(after[:, DISTANCE]) < 1.0


def test_what_lasts_is_the_stream_from_then_on() -> None:
    newest = Newest(COLUMNS)
    followed(newest, calm(3_000))
    moved = followed(newest, calm(LASTING + 1_000, 1) + spreads(6.0))
    assert np.median(moved[:LASTING, DISTANCE]) > 3.0
    assert np.median(moved[-500:, DISTANCE]) < 1.0
    assert moved[-1, DRIFT] > DRIFT_BEGINS + DRIFT_RAMP


def test_a_slow_drift_is_followed_and_told() -> None:
    values = calm(6_000)
    values += np.linspace(0.0, 6.0, 6_000)[:, None].astype(np.float32) * spreads(1.0)
    told = followed(Newest(COLUMNS), values)
    assert np.median(told[2_000:, DISTANCE]) < 1.0
    assert told[3_000:, DRIFT].min() > DRIFT_BEGINS
    still = followed(Newest(COLUMNS), calm(6_000))
    assert still[3_000:, DRIFT].max() < DRIFT_BEGINS


def test_anomalies_among_usual_rows_do_not_get_among_them_however_long() -> None:
    values = calm(12_000)
    values[BEGINNING::20] += spreads(8.0)
    told = followed(Newest(COLUMNS), values)
    assert told[BEGINNING + 2_000 :: 20, DISTANCE].min() > 2.0
    assert told[2_000:, DRIFT].max() < DRIFT_BEGINS


def test_after_long_standstill_a_step_is_as_far_as_it_is() -> None:
    values = np.full((60_000, COLUMNS), 7.0, np.float32)
    values[30_000:] += 1.0
    short, long = (followed(Newest(COLUMNS), values[first:]) for first in (29_000, 0))
    assert np.isfinite(long).all()
    assert long[30_000, DISTANCE] == pytest.approx(short[1_000, DISTANCE])
    assert long[-1, DISTANCE] < 1.0


def test_spreads_are_those_of_the_models() -> None:
    same = ("KNEE", "RELATIVE_SPREAD_MIN", "SPREAD_MIN")
    assert [getattr(newest, name) for name in same] == [getattr(scaling, name) for name in same]


def test_columns_that_stand_still_or_are_gross_give_numbers() -> None:
    values = calm(1_000)
    values[:, 0] = 7.0
    values[500:, 1] = 3e38
    told = followed(Newest(COLUMNS), values)
    assert np.isfinite(told).all()
    assert told[500, DISTANCE] > 2.0


@pytest.mark.parametrize("columns", [1, 8, 200])
def test_what_is_said_to_be_kept_is_what_is_kept(columns: int) -> None:
    kept = sum(array.nbytes for array in Newest(columns).state().values())
    assert newest.bytes_per_lane(columns) == pytest.approx(kept, abs=100)
