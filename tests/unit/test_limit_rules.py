"""What all rules of limits promise, and where each one ends."""

from typing import Literal, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from strategies import cuts, score_streams

from streamdet.config import Limit
from streamdet.events import Mode
from streamdet.threshold.limits import REFRESH, Judged, Limits, bytes_per_slot

Scores = NDArray[np.float64]
Rule = Literal["controlled", "rolling", "spot", "dspot", "conformal"]
RULES: tuple[Rule, ...] = get_args(Rule)
EXTRAPOLATING: tuple[Rule, ...] = ("controlled", "spot", "dspot")


def judge(limits: Limits, raw: Scores, *, alerting: bool = True) -> Judged:
    n = len(raw)
    return limits.judge(raw, np.zeros(n, np.int64), np.zeros(n, np.bool_), alerting=alerting)


def window_for(rate: float) -> int:
    """The smallest one that resolves the rate, or the default."""
    return max(int(10 / rate), 4096)


TAILS = {
    "exponential": lambda rng, n: rng.exponential(1.0, n),
    "heavier": lambda rng, n: rng.exponential(1.0, n) ** 1.3,
    "lighter": lambda rng, n: rng.gamma(3.0, 1.0, n),
    "lightest": lambda rng, n: np.abs(rng.standard_normal(n)),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("rate", [0.001, 0.01])
def test_the_asked_rate_is_realised_whatever_the_tail(rule: Rule, tail: str, rate: float) -> None:
    window, realised = window_for(rate), []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        limits = Limits(Limit(alert_rate=rate, window=window, rule=rule))
        judge(limits, TAILS[tail](rng, 2 * window), alerting=False)
        realised.append(judge(limits, TAILS[tail](rng, int(60 / rate))).flagged.mean())
    assert rate / 2 <= np.mean(realised) <= 2 * rate
    assert rate / 2.5 <= min(realised)
    assert max(realised) <= 2.5 * rate


@pytest.mark.parametrize("rule", EXTRAPOLATING)
@pytest.mark.parametrize("rate", [0.001, 0.0002])
def test_a_rate_that_the_window_cannot_resolve_is_extrapolated(rule: Rule, rate: float) -> None:
    realised = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        limits = Limits(Limit(alert_rate=rate, window=2_000, rule=rule))
        judge(limits, rng.exponential(1.0, 8_000), alerting=False)
        realised.append(judge(limits, rng.exponential(1.0, int(80 / rate))).flagged.mean())
    assert rate / 2 <= np.mean(realised) <= 2 * rate


SHIFTS = {"half as high again": lambda x: 1.5 * x, "3 nats up": lambda x: x + 3.0}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("rate", [0.001, 0.01])
def test_after_a_shift_of_level_the_rate_is_back_in_two_windows(rule: Rule, shift: str, rate: float) -> None:
    window, realised = window_for(rate), []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        limits = Limits(Limit(alert_rate=rate, window=window, rule=rule))
        judge(limits, rng.exponential(1.0, 4 * window))
        judge(limits, SHIFTS[shift](rng.exponential(1.0, 2 * window)))
        realised.append(judge(limits, SHIFTS[shift](rng.exponential(1.0, 4 * window))).flagged.mean())
    assert rate / 2 <= np.mean(realised) <= 2 * rate


@pytest.mark.parametrize("rate", [0.001, 0.01])
@pytest.mark.parametrize("rule", RULES)
def test_a_few_far_out_anomalies_do_not_hide_the_others(rule: Rule, rate: float) -> None:
    """2 % of the scores lie far out, one by one, from the first score on.

    controlled exempts them, spot and dspot never take them in: nearly all are flagged, and of the normal rows no more
    than asked for and no fewer than a fifth of that. rolling and conformal are excluded from both claims, as they hold
    the share of all scores that is flagged, anomalies included: of them it is bounded that they flag no more than twice
    the asked share of everything, which is what hides the anomalies.
    """
    rng = np.random.default_rng(1)
    anomalous = rng.random(100_000) < 0.02
    raw = np.where(anomalous, 25.0 * rng.lognormal(0.0, 0.15, 100_000), rng.exponential(1.0, 100_000))
    limits = Limits(Limit(alert_rate=rate, window=window_for(rate), rule=rule))
    judge(limits, raw[:400], alerting=False)
    late = slice(40_000, None)
    flagged, there = judge(limits, raw[400:]).flagged[late], anomalous[400:][late]
    if rule in EXTRAPOLATING:
        assert flagged[there].mean() > 0.95
        assert rate / 5 <= flagged[~there].mean() <= 2 * rate
    else:
        assert flagged.mean() <= 2 * rate


@pytest.mark.parametrize("rule", ["spot", "dspot"])
def test_what_lies_beyond_the_limit_of_a_tail_does_not_move_it(rule: Rule) -> None:
    rng = np.random.default_rng(2)
    limits = Limits(Limit(rule=rule))
    judge(limits, rng.exponential(1.0, 20_000))
    before = limits.lane_limit
    burst = judge(limits, 1e6 * rng.lognormal(0.0, 1.0, 500))
    assert burst.flagged.all()
    assert limits.lane_limit == pytest.approx(before, rel=0.03)


@pytest.mark.parametrize("rule", ["spot", "dspot"])
@pytest.mark.parametrize("shift", [lambda x: x + 40.0, lambda x: 30.0 * x], ids=["40 nats up", "30 times"])
def test_what_lasts_beyond_the_limit_is_normal_before_long(rule: Rule, shift: object) -> None:
    assert callable(shift)
    rng = np.random.default_rng(3)
    limits = Limits(Limit(rule=rule, alert_rate=0.01))
    judge(limits, rng.exponential(1.0, 20_000))
    judge(limits, shift(rng.exponential(1.0, 4 * 4096)))
    assert judge(limits, shift(rng.exponential(1.0, 20_000))).flagged.mean() <= 0.02


@pytest.mark.parametrize("rule", ["spot", "dspot"])
@pytest.mark.parametrize("beyond", [2.0, 10.0])
def test_after_a_lasting_step_in_a_tenth_of_the_scores_the_rate_is_back_in_two_windows(
    rule: Rule, beyond: float
) -> None:
    """From then on a tenth of the scores, one by one, lie this many spreads beyond what the limit was."""
    rate, window, before, after = 0.001, 4096, [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        limits = Limits(Limit(rule=rule, alert_rate=rate, window=window))
        judge(limits, rng.exponential(1.0, 4 * window))
        step = limits.lane_limit + beyond
        raw = rng.exponential(1.0, 6 * window) + step * (rng.random(6 * window) < 0.1)
        flagged = judge(limits, raw).flagged
        before.append(flagged[: window // 2].mean())
        after.append(flagged[2 * window :].mean())
    assert np.mean(before) > 0.05  # it is too much, and lasts, before it counts as normal
    assert rate / 2 <= np.mean(after) <= 2 * rate


@pytest.mark.parametrize("rule", ["spot", "dspot"])
@pytest.mark.parametrize(("length", "every"), [(1_500, 100_000), (150, 1_500)])
def test_each_row_of_an_incident_is_flagged_and_many_incidents_are_no_lasting_step(
    rule: Rule, length: int, every: int
) -> None:
    rng = np.random.default_rng(10)
    limits = Limits(Limit(rule=rule))
    judge(limits, rng.exponential(1.0, 20_000))
    before = limits.lane_limit
    raw, incident = rng.exponential(1.0, 30_000), np.arange(30_000) % every < length
    assert judge(limits, np.where(incident, 50.0 * raw.clip(0.5), raw)).flagged[incident].all()
    assert limits.lane_limit == pytest.approx(before, rel=0.15)


def test_the_moving_mean_follows_a_drift_that_the_base_alone_does_not() -> None:
    """A wave far longer than the mean runs over, and shorter than the window."""
    rng = np.random.default_rng(4)
    raw = rng.exponential(1.0, 60_000) + 10.0 + 6.0 * np.sin(np.arange(60_000) / 2_000.0)
    anomalous = rng.random(60_000) < 0.002
    raw += 12.0 * anomalous
    recall = {}
    for rule in ("spot", "dspot"):
        flagged = judge(Limits(Limit(rule=rule, alert_rate=0.002)), raw).flagged[20_000:]
        recall[rule] = flagged[anomalous[20_000:]].mean()
    assert recall["dspot"] > recall["spot"] + 0.2


def test_the_level_of_conformal_pays_back_what_was_flagged_too_often() -> None:
    """After a burst of misses it flags less than asked for, and then as much again."""
    rng = np.random.default_rng(5)
    limits = Limits(Limit(rule="conformal", alert_rate=0.01))
    judge(limits, rng.exponential(1.0, 20_000))
    before = limits.lane_limit
    judge(limits, np.full(20, before + 0.1))
    judge(limits, rng.exponential(1.0, REFRESH))
    assert limits.lane_limit > before + 0.2
    judge(limits, rng.exponential(1.0, 4_000))
    assert judge(limits, rng.exponential(1.0, 20_000)).flagged.mean() == pytest.approx(0.01, rel=0.3)


@given(st.data(), score_streams(), st.sampled_from(RULES))
def test_batches_and_restarts_do_not_matter(data: st.DataObject, raw: Scores, rule: Rule) -> None:
    settings = Limit(alert_rate=0.1, window=100, rule=rule)
    raw = np.tile(raw, 8)
    n = len(raw)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    slots = rng.integers(0, 3, n)
    fresh = (rng.random(n) < 0.002) & (slots > 0)
    whole = Limits(settings)
    expected = whole.judge(raw, slots, fresh, alerting=True)
    limits, parts = Limits(settings), []
    for start, stop in data.draw(cuts(n)):
        part = slice(start, stop)
        parts.append(limits.judge(raw[part], slots[part], fresh[part], alerting=True))
        state = limits.state()
        limits = Limits(settings)
        limits.restore(state)
    for name in Judged._fields:
        joined = np.concatenate([getattr(part, name) for part in parts])
        assert joined.tobytes() == getattr(expected, name).tobytes()
    for name, array in whole.state(3).items():
        assert array.tobytes() == limits.state(3)[name].tobytes()


@pytest.mark.parametrize("rule", RULES)
def test_slots_are_independent(rule: Rule) -> None:
    """Once an entity has a limit of its own, it is the same bits whatever another one does."""
    rng = np.random.default_rng(6)
    n = 12_000
    slots, raw = rng.integers(1, 4, n), rng.exponential(1.0, n)
    other = raw.copy()
    late = np.arange(n) >= n // 2
    other[late & (slots == 3)] *= 50.0
    none = np.zeros(n, np.bool_)
    settings = Limit(alert_rate=0.02, window=1_000, rule=rule)
    one, two = (Limits(settings).judge(scores, slots, none, alerting=True) for scores in (raw, other))
    own = slots != 3
    assert (one.mode[late & own] == Mode.ENTITY).all()
    assert one.limit[own].tobytes() == two.limit[own].tobytes()
    assert one.limit[slots == 3].tobytes() != two.limit[slots == 3].tobytes()


@pytest.mark.parametrize("rule", RULES)
def test_nothing_comes_of_scores_that_are_missing_and_no_score_breaks_a_limit(rule: Rule) -> None:
    settings = Limit(alert_rate=0.05, window=1_000, rule=rule)
    limits = Limits(settings)
    judge(limits, np.full(1_000, np.nan))
    assert {name: array.tobytes() for name, array in limits.state(1).items()} == {
        name: array.tobytes() for name, array in Limits(settings).state(1).items()
    }
    hostile = np.array([0.0, np.inf, 1e-300, 1e300, np.nan, 1.0, 5e-324])
    for raw in (np.tile(hostile, 700), np.zeros(3_000), np.full(3_000, 0.7), np.full(3_000, 1e9)):
        limits = Limits(settings)
        judged = judge(limits, raw)
        there = ~np.isnan(judged.limit)
        assert np.isfinite(judged.limit[there]).all()
        assert (judged.limit[there] > 0.0).all()
    assert not judge(limits, np.full(20_000, 1e3)).flagged[5_000:].any()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("factor", [0.3, 1.0, 2.5])
def test_a_new_model_version_takes_the_limit_to_its_scale(rule: Rule, factor: float) -> None:
    rng = np.random.default_rng(7)
    limits = Limits(Limit(alert_rate=0.01, window=2_000, rule=rule))
    judge(limits, rng.exponential(1.0, 10_000))
    before, held_out = limits.lane_limit, rng.exponential(1.0, 2_000)
    limits.rescale(held_out, factor * held_out)
    assert limits.lane_limit == pytest.approx(factor * before, rel=0.06)
    realised = judge(limits, factor * rng.exponential(1.0, 20_000)).flagged.mean()
    assert realised == pytest.approx(0.01, rel=0.5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("other", RULES)
def test_a_rule_takes_over_what_another_one_kept(rule: Rule, other: Rule) -> None:
    rng = np.random.default_rng(8)
    before = Limits(Limit(alert_rate=0.01, rule=other))
    judge(before, rng.exponential(1.0, 10_000))
    limits = Limits(Limit(alert_rate=0.01, rule=rule))
    limits.restore(before.state())
    assert limits.lane_limit == before.lane_limit
    realised = judge(limits, rng.exponential(1.0, 20_000)).flagged.mean()
    assert 0.005 <= realised <= 0.02


@pytest.mark.parametrize("rule", ["spot", "dspot"])
def test_a_tail_that_was_kept_in_other_columns_begins_anew_behind_the_limit_that_there_was(
    rule: Rule,
) -> None:
    rng = np.random.default_rng(11)
    before = Limits(Limit(alert_rate=0.01, rule=rule))
    judge(before, rng.exponential(1.0, 10_000))
    state = before.state()
    limits = Limits(Limit(alert_rate=0.01, rule=rule))
    limits.restore({**state, rule: state[rule][:, 1:]})
    assert limits.lane_limit == before.lane_limit
    assert 0.005 <= judge(limits, rng.exponential(1.0, 20_000)).flagged.mean() <= 0.02


def test_an_entity_has_a_tail_of_its_own_long_before_it_could_have_a_quantile() -> None:
    rng = np.random.default_rng(9)
    limits = Limits(Limit(alert_rate=1e-5, rule="spot"))
    n = 20_000
    judged = limits.judge(rng.exponential(1.0, n), np.ones(n, np.int64), np.zeros(n, np.bool_), alerting=True)
    assert (judged.mode[7_000:] == Mode.ENTITY).all()


def test_what_only_other_rules_keep_takes_no_room() -> None:
    plain = bytes_per_slot(Limit())
    assert plain == bytes_per_slot(Limit(rule="rolling", alert_rate=0.01))
    assert plain < bytes_per_slot(Limit(rule="spot")) < plain + 1_200
    assert not {"own", "spot", "dspot", "conformal"} & Limits(Limit()).state().keys()
