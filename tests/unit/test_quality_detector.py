"""Variants of the detector in the benchmark: which there are, where they run, and that they do what they say."""

import numpy as np
import pytest
from quality_detector import Streamdet
from quality_stream import Stream

from streamdet.models.presets import PRESETS


def stream(family: str) -> Stream:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(700, 3))
    values[600] = 12.0
    labels = np.arange(700) == 600
    return Stream("made", family, ("a", "b", "c"), values, labels, 400, np.arange(700) >= 400)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("streamdet", (None, None, None)),
        ("streamdet:sensors", ("sensors", None, None)),
        ("streamdet:only-forest", (None, "forest", None)),
        ("streamdet:without-deviation", (None, None, "deviation")),
    ],
)
def test_a_name_tells_the_variant(name: str, fields: tuple[str | None, str | None, str | None]) -> None:
    found = Streamdet.called(name)
    assert found is not None
    assert (found.name, found.preset, found.only, found.without) == (name, *fields)


@pytest.mark.parametrize(
    "name", ["forest", "streamdet:", "streamdet:some", "streamdet:only-", "streamdet:only-some"]
)
def test_there_is_no_other_variant(name: str) -> None:
    assert Streamdet.called(name) is None


def test_a_scorer_alone_runs_where_the_preset_has_it() -> None:
    nearest, forest = Streamdet.called("streamdet:only-nearest"), Streamdet.called("streamdet:without-forest")
    assert nearest is not None
    assert forest is not None
    assert (nearest.suits(stream("smd")), nearest.suits(stream("tabular"))) == (True, False)
    assert (forest.suits(stream("smd")), forest.suits(stream("tabular"))) == (False, True)


def test_weights_count_while_a_variant_runs_and_are_as_before_after_it() -> None:
    before = dict(PRESETS)
    names = ("streamdet", "streamdet:only-deviation", "streamdet:without-deviation")
    raw = []
    for name in names:
        model = Streamdet.called(name)
        assert model is not None
        raw.append(model.run(stream("tabular"), 0).raw[400:])
        assert before == PRESETS
    whole, alone, left_out = raw
    assert not np.array_equal(whole, alone)
    assert not np.array_equal(whole, left_out)
    assert all(scores.argmax() == 200 for scores in raw)
