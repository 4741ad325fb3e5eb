"""One scale for all columns: set by the many, not by a few gross values, and finite whatever the numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamdet.models.scaling import KNEE, Scaler

_columns = st.one_of(
    st.lists(st.floats(-1e38, 1e38), min_size=1, max_size=40),
    st.lists(st.sampled_from([0.0, 1.0, -1.0, 1e38, -1e38]), min_size=1, max_size=40),
)


def fit(*columns: list[float] | NDArray[np.float64], floor: NDArray[np.float64] | None = None) -> Scaler:
    return Scaler.fit(np.stack([np.asarray(c, np.float64) for c in columns], axis=1), floor)


def z_of(scaler: Scaler, *values: float) -> list[float]:
    out: list[float] = scaler.transform(torch.tensor([[v] for v in values], dtype=torch.float32))[
        :, 0
    ].tolist()
    return out


@given(_columns, st.floats(-1e38, 1e38))
def test_any_finite_number_has_a_finite_place_on_any_scale(column: list[float], value: float) -> None:
    scaler = fit(column)
    assert torch.isfinite(scaler.location).all()
    assert (scaler.spread > 0).all()
    assert torch.isfinite(scaler.spread).all()
    assert np.isfinite(z_of(scaler, value, *column)).all()


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.lists(st.floats(-50, 50), min_size=1, max_size=20))
def test_the_squash_can_be_undone(location: float, spread: float, z: list[float]) -> None:
    scaler = Scaler(torch.tensor([location]), torch.tensor([spread]))
    rows = torch.tensor(z)[:, None] * spread + location
    back = scaler.inverse(scaler.transform(rows))
    assert torch.allclose(back, rows, rtol=1e-3, atol=1e-3 * spread + 1e-5 * abs(location))


@given(st.lists(st.floats(-1e30, 1e30), min_size=2, max_size=30))
def test_order_is_kept_and_the_middle_is_untouched(values: list[float]) -> None:
    scaler = Scaler(torch.tensor([0.0]), torch.tensor([1.0]))
    z = z_of(scaler, *sorted(values))
    assert z == sorted(z)
    for value, place in zip(sorted(values), z, strict=True):
        if abs(value) <= KNEE:
            assert place == pytest.approx(value)


@pytest.mark.parametrize("gross", [1e3, 1e6, 1e38])
def test_a_few_gross_values_do_not_set_the_scale(gross: float) -> None:
    rng = np.random.default_rng(0)
    clean = rng.normal(10.0, 2.0, 1000)
    dirty = np.concatenate([clean, np.full(10, gross)])
    scaler = fit(dirty)
    assert scaler.location.item() == pytest.approx(10.0, abs=0.4)
    assert scaler.spread.item() == pytest.approx(2.0, rel=0.35)


def test_a_constant_column_makes_any_step_away_from_it_visible() -> None:
    for level in (0.0, 1.0, -250.0, 1e6):
        scaler = fit(np.full(500, level))
        assert z_of(scaler, level) == [0.0]
        assert z_of(scaler, level + 0.01 * max(1.0, abs(level)))[0] > KNEE


def test_a_column_that_is_nearly_always_the_same_keeps_the_scale_of_its_rare_values() -> None:
    # The interquartile range is 0: a spread of 0 would make every other value an alarm.
    column = np.where(np.arange(1000) % 20 == 0, 5.0, 0.0)
    assert 0.5 < fit(column).spread.item() < 2.0


def test_the_floor_keeps_refits_from_seeing_less_and_less_spread() -> None:
    floor = np.array([3.0, 0.001])
    scaler = fit([1.0, 1.1, 0.9] * 50, [1.0, 2.0, 3.0] * 50, floor=floor)
    assert scaler.spread[0].item() == pytest.approx(3.0)
    assert scaler.spread[1].item() == pytest.approx(0.8165, rel=1e-3)


def test_columns_do_not_influence_each_other() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, 200), rng.normal(5, 3, 200)
    both, alone = fit(a, b), fit(b)
    assert both.location[1].item() == alone.location[0].item()
    assert both.spread[1].item() == alone.spread[0].item()
