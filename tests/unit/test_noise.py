"""What is held back and why, in the words of people on call; and what alerts whatever the model says."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import cuts, events_of, untrained

from streamdet.config import FeatureNoise, Noise, parse
from streamdet.decide.damping import Damping
from streamdet.decide.harmless import FeatureRules
from streamdet.decide.noise import Sieve, Sifted
from streamdet.events import Cause, Mode, Schema, Verdicts
from streamdet.features.rows import LaneFeatures
from streamdet.models.version import Explanation

SCHEMA = Schema("ts", "device", ("pressure", "temperature"), ())


# --- Direction and deviation ------------------------------------------------------------------------------


def excuse(
    actual: Sequence[float],
    share: Sequence[float] = (0.9, 0.05, 0.05),
    expected: Sequence[float] = (3.0, 60.0, math.nan),
    **rules: Any,
) -> Cause:
    """What excuses an event with this pressure and this temperature."""
    features = FeatureRules.of([FeatureNoise(**rules.get(name, {})) for name in SCHEMA.numeric])
    explanation = Explanation(np.array([expected]), np.array([share]), np.empty((1, 0)))
    return Cause(int(features.excuses(np.array([actual]), explanation)[0]))


def test_pump_pressure_falling_is_harmless_and_rising_is_not() -> None:
    rules: Any = {"pressure": {"direction": "up"}}
    assert excuse([1.0, 60.0], **rules) == Cause.DIRECTION
    assert excuse([5.0, 60.0], **rules) == Cause.NONE
    assert excuse([5.0, 60.0], pressure={"direction": "down"}) == Cause.DIRECTION
    assert excuse([1.0, 60.0], pressure={"direction": "both"}) == Cause.NONE


def test_a_degree_and_a_half_is_nothing_to_get_up_for() -> None:
    of_temperature = [0.1, 0.8, 0.1]
    rules: Any = {"temperature": {"min_deviation": 2.0}}
    assert excuse([3.0, 61.5], of_temperature, **rules) == Cause.DEVIATION
    assert excuse([3.0, 58.5], of_temperature, **rules) == Cause.DEVIATION
    assert excuse([3.0, 62.0], of_temperature, **rules) == Cause.NONE


def test_either_minimum_has_to_be_reached_in_units_and_in_parts_of_what_is_expected() -> None:
    both: Any = {"pressure": {"min_deviation": 0.5, "min_relative_deviation": 0.2}}
    assert excuse([3.55, 60.0], **both) == Cause.DEVIATION
    assert excuse([3.65, 60.0], **both) == Cause.NONE
    assert excuse([0.55, 60.0], expected=(0.1, 60.0, math.nan), **both) == Cause.DEVIATION
    assert excuse([-3.7, 60.0], expected=(-3.0, 60.0, math.nan), **both) == Cause.NONE


def test_an_alert_stays_where_half_or_more_of_it_is_about_something_else() -> None:
    rules: Any = {"pressure": {"direction": "up"}}
    assert excuse([1.0, 90.0], [0.5, 0.5, 0.0], **rules) == Cause.NONE
    assert excuse([1.0, 90.0], [0.51, 0.49, 0.0], **rules) == Cause.DIRECTION


def test_excuses_add_up_and_the_larger_one_is_the_reason() -> None:
    rules: Any = {"pressure": {"direction": "up"}, "temperature": {"min_deviation": 2.0}}
    assert excuse([1.0, 61.0], [0.3, 0.4, 0.3], **rules) == Cause.DEVIATION
    assert excuse([1.0, 61.0], [0.4, 0.3, 0.3], **rules) == Cause.DIRECTION


def test_what_is_judged_by_its_size_deviates_by_its_size() -> None:
    share, size = np.array([[1.0]]), np.array([[50.0]])
    explanation = Explanation(size, share, np.empty((1, 0)))

    def excused(amount: float, sized: bool, **rules: Any) -> Cause:
        features = FeatureRules.of([FeatureNoise(**rules)], [sized])
        return Cause(int(features.excuses(np.array([[amount]]), explanation)[0]))

    assert excused(-900.0, True, direction="up") == excused(900.0, True, direction="up") == Cause.NONE
    assert excused(-900.0, True, direction="down") == Cause.DIRECTION
    assert excused(-40.0, True, min_deviation=20.0) == Cause.DEVIATION
    assert excused(-900.0, False, direction="up") == Cause.DIRECTION


def test_a_missing_value_excuses_nothing() -> None:
    rules: Any = {"pressure": {"direction": "up", "min_deviation": 100.0}}
    assert excuse([math.nan, 90.0], **rules) == Cause.NONE


# --- k of n and cool-down ---------------------------------------------------------------------------------


@dataclass
class Device:
    """One entity, as slowly and plainly as can be."""

    strange: list[bool] = field(default_factory=list)
    raised: bool = False
    owed: bool = False
    last: tuple[int, float, bool] | None = None

    def reason(
        self, settings: Noise, time_ms: int, raw: float, *, strange: bool, flagged: bool, ranged: bool
    ) -> Cause:
        self.strange = [*self.strange, strange][-settings.n :]
        count = sum(self.strange)
        self.raised = self.raised and count > 0
        if not strange:
            return Cause.NONE
        enough = count >= settings.k
        rising = settings.k > 1 and enough and not self.raised
        self.raised = self.raised or enough
        if not enough and not ranged:
            return Cause.K_OF_N
        if not (flagged or ranged or rising or self.owed):
            return Cause.EXCURSION
        if self.last is not None:
            at_ms, before, was_ranged = self.last
            near = abs(time_ms - at_ms) < 1000 * settings.cool_down_s
            if near and not (raw > settings.worse * before or (ranged and not was_ranged)):
                self.owed = True
                return Cause.COOL_DOWN
        if self.last is not None and abs(time_ms - self.last[0]) < 1000 * settings.cool_down_s:
            time_ms = max(time_ms, self.last[0])
        self.last, self.owed = (time_ms, raw, ranged), False
        return Cause.RANGE if ranged else Cause.LIMIT


@dataclass(frozen=True)
class Stream:
    """Events to be damped: seconds, raw scores, and what limits and ranges said; arrays (n,) in Damping's order."""

    arrays: tuple[Any, ...]

    @classmethod
    def of(
        cls,
        seconds: Sequence[float],
        raw: Sequence[float],
        strange: Sequence[float] | None = None,
        flagged: Sequence[float] | None = None,
        ranged: Sequence[bool] | None = None,
        slots: Sequence[int] | None = None,
        fresh: Sequence[bool] | None = None,
    ) -> "Stream":
        n = len(raw)
        ranged = [False] * n if ranged is None else ranged
        flagged = [score >= 1.0 for score in raw] if flagged is None else flagged
        strange = flagged if strange is None else strange
        either = [bool(a or b or c) for a, b, c in zip(strange, flagged, ranged, strict=True)]
        return cls(
            (
                np.array([round(1000 * s) for s in seconds], np.int64),
                np.array(raw, np.float64),
                *(np.array(flags, np.bool_) for flags in (either, flagged, ranged)),
                np.zeros(n, np.int64) if slots is None else np.array(slots, np.int64),
                np.zeros(n, np.bool_) if fresh is None else np.array(fresh, np.bool_),
            )
        )

    def __len__(self) -> int:
        return len(self.arrays[0])

    def judged(self, damping: Damping, start: int = 0, stop: int | None = None) -> list[Cause]:
        reasons = damping.reasons(*(array[start:stop] for array in self.arrays))
        return [Cause(int(reason)) for reason in reasons]


def reasons(stream: Stream, **noise: Any) -> list[Cause]:
    return stream.judged(Damping(Noise(**noise)))


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    n = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    share = draw(st.sampled_from([0.1, 0.5, 0.9]))
    slots, seen, fresh = rng.integers(0, 3, n), set(), []
    for slot in slots.tolist():
        fresh.append(slot > 0 and (slot not in seen or rng.random() < 0.05))
        seen.add(slot)
    strange = rng.random(n) < share
    seconds = np.arange(n) + rng.normal(0, 3, n).round()
    return Stream.of(
        seconds.tolist(),
        rng.choice([1.0, 1.1, 1.3, 2.0, 4.0], n).tolist(),
        strange.tolist(),
        (strange & (rng.random(n) < 0.5)).tolist(),
        (rng.random(n) < 0.1).tolist(),
        slots.tolist(),
        fresh,
    )


_noises = st.builds(
    lambda k, more, cool_down_s, worse: Noise(
        k=k,
        n=min(k + more, 64) if k > 1 else 1,
        cool_down_s=cool_down_s,
        worse=worse if cool_down_s else 1.2,
    ),
    st.sampled_from([1, 2, 3, 64]),
    st.sampled_from([0, 1, 5, 63]),
    st.sampled_from([0.0, 5.0, 30.0]),
    st.sampled_from([1.0, 1.2]),
)


@given(streams(), _noises)
def test_reasons_are_those_that_one_would_find_by_hand(stream: Stream, noise: Noise) -> None:
    devices: dict[int, Device] = {}
    expected = []
    for time_ms, raw, strange, flagged, ranged, slot, fresh in zip(*stream.arrays, strict=True):
        if fresh:
            devices.pop(int(slot), None)
        device = devices.setdefault(int(slot), Device())
        expected.append(device.reason(noise, time_ms, raw, strange=strange, flagged=flagged, ranged=ranged))
    assert stream.judged(Damping(noise)) == expected


@given(streams(), _noises, st.data())
def test_neither_batches_nor_a_stop_change_a_reason(
    stream: Stream, noise: Noise, data: st.DataObject
) -> None:
    whole = stream.judged(Damping(noise))
    damping, found = Damping(noise), []
    for start, stop in data.draw(cuts(len(stream))):
        found += stream.judged(damping, start, stop)
        resumed = Damping(noise)
        resumed.restore({name: array.copy() for name, array in damping.state(3).items()})
        damping = resumed
    assert found == whole


@given(streams(), _noises)
def test_every_strange_event_is_published_or_held_back_and_no_other(stream: Stream, noise: Noise) -> None:
    found = np.array(stream.judged(Damping(noise))) != Cause.NONE
    assert (found == stream.arrays[2]).all()


def test_one_bad_reading_is_a_glitch_and_three_of_five_are_a_fault() -> None:
    glitches = Stream.of(range(9), [2, 0, 0, 0, 2, 0, 0, 0, 2])
    assert set(reasons(glitches, k=3, n=5)) == {Cause.NONE, Cause.K_OF_N}
    fault = Stream.of(range(5), [2, 0, 2, 0, 2])
    assert reasons(fault, k=3, n=5)[2:] == [Cause.K_OF_N, Cause.NONE, Cause.LIMIT]


def test_k_of_n_counts_what_the_limit_no_longer_flags_as_its_excursion_goes_on() -> None:
    fault = Stream.of(range(5), [2.0] * 5, strange=[True] * 5, flagged=[True] + [False] * 4)
    assert reasons(fault, k=3, n=5) == [Cause.K_OF_N] * 2 + [Cause.LIMIT] + [Cause.EXCURSION] * 2


def test_k_of_n_alerts_once_for_a_fault_that_flickers_and_again_for_the_next_fault() -> None:
    flickers, calm = [2.0, 0.0] * 10, [0.0] * 4
    stream = Stream.of(range(44), [*flickers, *calm, *flickers], strange=[*flickers, *calm, *flickers],
                       flagged=[False] * 44)  # fmt: skip
    alerts = [i for i, reason in enumerate(reasons(stream, k=2, n=4)) if reason == Cause.LIMIT]
    assert alerts == [2, 26]


def test_in_the_cool_down_only_what_is_worse_rings_again() -> None:
    stream = Stream.of([0, 10, 20, 30, 40], [5.0, 5.0, 5.9, 6.1, 7.0])
    assert reasons(stream, cool_down_s=600, worse=1.2) == [
        Cause.LIMIT, Cause.COOL_DOWN, Cause.COOL_DOWN, Cause.LIMIT, Cause.COOL_DOWN,
    ]  # fmt: skip


def test_the_cool_down_is_over_after_its_time_and_not_before() -> None:
    stream = Stream.of([0, 599.999, 600], [5.0, 5.0, 5.0])
    assert reasons(stream, cool_down_s=600)[1:] == [Cause.COOL_DOWN, Cause.LIMIT]


def test_what_was_held_back_and_has_not_stopped_when_the_cool_down_ends_alerts_then() -> None:
    flagged = [True, True, False, False, False, False]
    stream = Stream.of([0, 300, 400, 600, 700, 800], [5.0] * 6, strange=[True] * 6, flagged=flagged)
    assert reasons(stream, cool_down_s=600) == [
        Cause.LIMIT, Cause.COOL_DOWN, Cause.COOL_DOWN, Cause.LIMIT, Cause.EXCURSION, Cause.EXCURSION,
    ]  # fmt: skip


def test_the_cool_down_of_one_pump_does_not_touch_another() -> None:
    stream = Stream.of(range(4), [5.0] * 4, slots=[1, 2, 1, 2], fresh=[True, True, False, False])
    assert reasons(stream, cool_down_s=600) == [Cause.LIMIT] * 2 + [Cause.COOL_DOWN] * 2


def test_a_clock_that_is_once_far_ahead_does_not_silence_an_entity() -> None:
    stream = Stream.of([0, 10**9, 1000, 1001], [5.0] * 4)
    assert reasons(stream, cool_down_s=600) == [Cause.LIMIT] * 3 + [Cause.COOL_DOWN]


def test_a_worse_alert_that_comes_late_does_not_cut_the_cool_down_short() -> None:
    stream = Stream.of([1_000, 500, 1_550], [5.0, 9.0, 9.0])
    assert reasons(stream, cool_down_s=600) == [Cause.LIMIT, Cause.LIMIT, Cause.COOL_DOWN]


def test_a_hard_range_needs_no_k_of_n_and_rings_amid_a_cool_down_once() -> None:
    no = [False] * 4
    stream = Stream.of(range(4), [9.0, 5.0, 5.0, 5.0], flagged=[True, *no[:3]], ranged=[False, *[True] * 3])
    assert reasons(stream, cool_down_s=600) == [Cause.LIMIT, Cause.RANGE, Cause.COOL_DOWN, Cause.COOL_DOWN]
    alone = Stream.of([0], [5.0], flagged=[False], ranged=[True])
    assert reasons(alone, k=5, n=5) == [Cause.RANGE]


# --- All together -----------------------------------------------------------------------------------------


def sifted(
    raw: Sequence[float],
    numeric: Sequence[Sequence[float]],
    mode: Mode = Mode.READY,
    usual: float = 4.0,
    limit: float = 5.0,
    **noise: Any,
) -> Sifted:
    """Verdicts on events of one device at a time with these scores, by a model that has learnt nothing."""
    n = len(raw)
    events = events_of(["d1"] * n, numeric)
    settings = parse({"noise": noise, "limit": {"alert_rate": 0.001}})
    scores, known = np.array(raw, np.float64), mode >= Mode.READY
    limits = np.full(n, limit if known else math.nan)
    flagged, strange = (scores >= limits), (scores >= usual) & known
    reason = np.where(flagged, Cause.LIMIT, np.where(strange, Cause.EXCURSION, Cause.NONE)).astype(np.uint8)
    verdicts = Verdicts(
        scores, limits, np.full(n, mode, np.uint8), flagged, ~flagged, ~strange,
        np.full(n, usual if known else math.nan), reason,
    )  # fmt: skip
    version = replace(untrained(2), numeric=2) if known else None
    sieve, features = Sieve(settings, SCHEMA), LaneFeatures(SCHEMA, 10, ranges=settings.noise.ranges(SCHEMA))
    return sieve.sift(events, features.transform(events), verdicts, version)


NORMAL = [3.0, 60.0]


def test_a_value_outside_its_hard_range_alerts_whatever_the_model_says_and_is_not_learnt() -> None:
    rules: Any = {"temperature": {"range": [0, 120]}}
    found, _ = sifted([1.0, 1.0, 9.0], [NORMAL, [3.0, 121.0], [3.0, -1.0]], features=rules)
    assert found.reason.tolist() == [Cause.NONE, Cause.RANGE, Cause.RANGE]
    assert found.flagged.tolist() == [False, True, True]
    assert found.raw.tolist() == [1.0, 5.0, 9.0]
    assert found.score[1:].tolist() == [1.0, 1.8]
    assert found.normal.tolist() == [True, False, False]
    assert found.fed.tolist() == [True, False, False]


@pytest.mark.parametrize(("mode", "raw"), [(Mode.COLD, math.nan), (Mode.WARMING, 2.0), (Mode.WARMING, 8.0)])
def test_a_hard_range_alerts_in_the_warm_up_by_a_nominal_limit(mode: Mode, raw: float) -> None:
    found, _ = sifted([raw, raw], [NORMAL, [3.0, 121.0]], mode, features={"temperature": {"range": [0, 120]}})
    nominal = -math.log(0.001)
    assert found.reason.tolist() == [Cause.NONE, Cause.RANGE]
    assert (found.raw[1], found.limit[1]) == (np.fmax(raw, nominal), nominal)
    assert np.isnan(found.limit[0])


def test_a_range_may_be_open_and_its_ends_belong_to_it() -> None:
    rules: Any = {"temperature": {"range": [None, 120]}, "pressure": {"range": [0, None]}}
    found, _ = sifted([1.0] * 4, [[0.0, 120.0], [-0.1, 60.0], [1e9, -1e9], [math.nan, 120.1]], features=rules)
    assert found.flagged.tolist() == [False, True, False, True]


@pytest.mark.parametrize("damping", [{}, {"cool_down_s": 60}])
def test_what_is_outside_its_range_alerts_in_a_harmless_direction_too(damping: dict[str, Any]) -> None:
    rules: Any = {
        "pressure": {"min_deviation": 1e9, "range": [0.5, None]},
        "temperature": {"min_deviation": 1e9},
    }
    found, _ = sifted([9.0], [[0.1, 60.0]], features=rules, **damping)
    assert found.reason.tolist() == [Cause.RANGE]


def test_an_event_that_is_excused_does_not_count_for_k_of_n() -> None:
    all_excused = {name: {"min_deviation": 1e9} for name in SCHEMA.numeric}
    found, explained = sifted([9.0] * 4, [NORMAL] * 4, k=2, n=3, features=all_excused)
    assert explained is not None
    assert set(found.reason.tolist()) == {Cause.DEVIATION}
    assert not found.flagged.any()


def test_an_alert_amid_an_excursion_is_over_the_limit_that_it_is_held_against() -> None:
    found, _ = sifted([4.5] * 3, [NORMAL] * 3, k=3, n=3)  # usual up to 4, flagged from 5
    assert found.reason.tolist() == [Cause.K_OF_N, Cause.K_OF_N, Cause.LIMIT]
    assert found.limit.tolist() == [5.0, 5.0, 4.0]
    assert found.score[2] >= 1.0


def test_only_what_a_rule_asks_for_is_explained_and_each_alert_among_it() -> None:
    assert sifted([1.0, 9.0], [NORMAL] * 2, cool_down_s=600).explained is None
    rules: Any = {"pressure": {"direction": "up", "range": [0, 10]}}
    found, explained = sifted([1.0, 9.0, 1.0, 4.5], [NORMAL, NORMAL, [11.0, 60.0], NORMAL], features=rules)
    assert explained is not None
    assert explained.which.tolist() == [1, 2]
    assert set(np.flatnonzero(found.flagged)) <= {1, 2}


def test_nothing_is_kept_where_no_rule_needs_it() -> None:
    assert Sieve.of(parse({}), SCHEMA) is None
    rules: Any = {"temperature": {"range": [0, 120]}}
    sieve = Sieve.of(parse({"noise": {"features": rules}}), SCHEMA)
    assert sieve is not None
    assert sieve.state(3) == {}
    damped = Sieve(parse({"noise": {"cool_down_s": 60}}), SCHEMA)
    assert damped.state(3)["damping"].keys() >= {"strange", "raw", "time_ms"}
    sieve.restore(damped.state(3))  # rules may change between runs
    damped.restore({})
