"""Rows with one bad feature each: which ones, how bad, and that all features have their turns."""

import numpy as np
import pytest
from bench_explain import APART, CALM, spoiled
from quality_stream import Stream

N = 3_000


def made(constant: bool = False) -> Stream:
    """Three numbers, of which one may be constant, and a category."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(N, 3)) * (1.0, 50.0, 0.01)
    if constant:
        values[:, 1] = 7.0
    words = rng.choice(np.array(["a", "b"], object), N)
    yes = np.ones(N, np.bool_)
    return Stream("made", "tabular", ("x", "y", "z"), values, ~yes, 0, yes, categories={"word": words})


@pytest.mark.parametrize("constant", [False, True])
def test_one_feature_is_spoiled_in_rows_far_apart_beyond_the_warm_up(constant: bool) -> None:
    before = made(constant)
    bad = spoiled(before, 1)
    differs = np.column_stack(
        [before.values != bad.stream.values, before.categories["word"] != bad.stream.categories["word"]]
    )
    assert np.flatnonzero(differs.any(axis=1)).tolist() == bad.rows.tolist()
    assert (differs[bad.rows].sum(axis=1) == 1).all()
    names = np.array(["x", "y", "z", "word"])[differs[bad.rows].argmax(axis=1)].tolist()
    assert names == list(bad.features)
    assert np.diff(bad.rows).min() >= APART
    assert bad.rows[0] >= CALM
    counts = [names.count(name) for name in ("x", "y", "z", "word")]
    assert max(counts) - min(counts) <= 1


def test_a_spoiled_value_lies_beyond_nearly_all_others_and_both_ways() -> None:
    before = made()
    bad = spoiled(before, 2)
    numbers = [
        (row, "xyz".index(name)) for row, name in zip(bad.rows, bad.features, strict=True) if name in "xyz"
    ]
    moved = np.array(
        [(bad.stream.values[at] - before.values[at]) / before.values[:, at[1]].std() for at in numbers]
    )
    assert 5.5 < np.abs(moved).min() < 7.0
    assert 13.0 < np.abs(moved).max() < 15.5
    assert 0.3 < (moved > 0).mean() < 0.7
    assert (spoiled(before, 2).stream.values == bad.stream.values).all()
    assert (spoiled(before, 3).stream.values != bad.stream.values).any()
