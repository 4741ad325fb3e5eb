"""Rarity: each event's from those before it, by a formula that can be checked by hand, however batched."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import cuts

from streamdet.features.categories import HALF_LIFE, Rarity

_values = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f", None]), max_size=60)


def by_hand(values: list[str | None]) -> list[float]:
    """The formula of the module, event by event, without a bound on values."""
    counts: dict[str | None, float] = {}
    out = []
    keep = 0.5 ** (1 / HALF_LIFE)
    for value in values:
        known = len(counts) + (value not in counts)
        total = sum(counts.values())
        out.append(-math.log((counts.get(value, 0.0) + 0.5) / (total + 0.5 * (known + 1))))
        counts[value] = counts.get(value, 0.0) + 1.0
        counts = {name: count * keep for name, count in counts.items()}
    return out


@given(_values)
def test_rarity_is_what_the_formula_says(values: list[str | None]) -> None:
    rarities, _ = Rarity().transform(values)
    assert rarities.tolist() == pytest.approx(by_hand(values), rel=1e-9)


@given(st.data(), _values, st.integers(1, 5), st.booleans())
def test_batches_and_restarts_do_not_matter(
    data: st.DataObject, values: list[str | None], values_max: int, restart: bool
) -> None:
    whole = Rarity(values_max)
    expected, _ = whole.transform(values)
    rarity, parts = Rarity(values_max), [np.empty(0)]
    for start, stop in data.draw(cuts(len(values))):
        parts.append(rarity.transform(values[start:stop])[0])
        if restart:
            state = rarity.state()
            rarity = Rarity(values_max)
            rarity.restore(state)
    assert np.concatenate(parts).tobytes() == expected.tobytes()
    for name, kept in whole.state().items():
        assert np.array_equal(rarity.state()[name], kept)


@given(_values, _values, st.integers(1, 5))
def test_later_events_do_not_change_earlier_rarities(
    before: list[str | None], after: list[str | None], values_max: int
) -> None:
    together, _ = Rarity(values_max).transform(before + after)
    alone, _ = Rarity(values_max).transform(before)
    assert together[: len(before)].tobytes() == alone.tobytes()


@given(_values)
def test_the_usual_value_is_the_most_frequent_one_before_the_event_and_never_the_missing_one(
    values: list[str | None],
) -> None:
    rarity = Rarity()
    _, usual = rarity.transform(values)
    for i in range(min(len(values), 40)):
        counts = {value: values[:i].count(value) for value in values[:i] if value is not None}
        named = rarity.value(int(usual[i]))
        assert (named is None) == (not counts)
        assert named is None or counts[named] >= max(counts.values()) - 1


@given(_values, st.integers(1, 5))
def test_the_number_of_values_kept_is_bounded(values: list[str | None], values_max: int) -> None:
    rarity = Rarity(values_max)
    rarity.transform(values)
    assert len(rarity.state()["values"]) <= values_max


def test_frequent_values_survive_when_room_is_made() -> None:
    rarity = Rarity(100)
    rarity.transform(["often"] * 500 + [f"once-{i}" for i in range(1000)])
    (often, new), usual = rarity.transform(["often", "new"])
    assert often < 2.0 < new
    assert {rarity.value(int(code)) for code in usual} == {"often"}


def test_a_new_value_is_rarer_than_known_ones_and_a_common_one_is_hardly_rare() -> None:
    rarity = Rarity()
    rarity.transform(["a"] * 900 + ["b"] * 100)
    a, b, new, missing = (rarity.transform([value])[0][0] for value in ("a", "b", "new", None))
    assert a < 0.2 < b < 3.0 < new
    assert missing > 3.0


def test_what_was_common_becomes_rare_when_it_is_not_seen_for_long() -> None:
    rarity = Rarity()
    rarity.transform(["a"] * 5000)
    rarity.transform(["b"] * int(10 * HALF_LIFE))
    assert rarity.transform(["a"])[0][0] > 6.0


def test_counts_stay_finite_for_ever() -> None:
    rarity = Rarity()
    for _ in range(6):
        out, _ = rarity.transform(["a", "b"] * 50_000)
    assert np.isfinite(out).all()
    assert out[-1] == pytest.approx(math.log(2), rel=0.05)
    assert float(np.max(rarity.state()["counts"])) < 1e18


def test_before_any_event_no_value_is_the_usual_one() -> None:
    rarity = Rarity()
    _, usual = rarity.transform(["a"])
    assert rarity.value(int(usual[0])) is None
