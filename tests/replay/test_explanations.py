"""What an alert names is what is wrong: floors, not figures, which `scripts/bench explain` prints."""

import numpy as np
from bench_explain import SPOILED, explained, shuttle
from quality_stream import Stream

ROWS = 2_400


def sensors() -> Stream:
    """A plant of which ten numbers follow two slow ones, and four stand still."""
    rng = np.random.default_rng(0)
    slow = np.column_stack([np.sin(np.arange(ROWS) / period) for period in (40.0, 170.0)])
    moving = slow @ rng.normal(size=(2, 10)) + 0.1 * rng.normal(size=(ROWS, 10))
    values = np.column_stack([moving, np.full((ROWS, 4), (0.0, 1.0, 20.0, -3.0))])
    yes = np.ones(ROWS, np.bool_)
    return Stream("plant", "sensors", tuple(f"s{i}" for i in range(14)), values, ~yes, 0, yes)


def test_the_one_bad_feature_of_a_shuttle_reading_has_the_largest_share() -> None:
    found = explained(shuttle(), 0)
    assert found["spoiled"] >= SPOILED
    assert found["first"] >= 0.95
    assert found["among_three"] >= 0.99


def test_a_bad_sensor_is_named_though_another_one_was_bad_thirty_readings_before() -> None:
    found = explained(sensors(), 0)
    assert found["first"] >= 0.95
