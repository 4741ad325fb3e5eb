"""Limits: blind to the score they judge, at the asked rate, steady under bursts, and the same however batched."""

import math
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from strategies import cuts, score_streams, seeded_cuts

from streamdet.config import EXCEEDANCES_MIN, Limit
from streamdet.events import Mode
from streamdet.threshold.limits import SEEN_MIN, TOKENS_MAX, Judged, Limits

Scores = NDArray[np.float64]
Rule = Literal["controlled", "rolling", "spot", "dspot", "conformal"]
SMALL = Limit(alert_rate=0.1, window=100)
WARM = np.random.default_rng(1).exponential(1.0, 500)


def judge(
    limits: Limits,
    raw: Scores,
    slots: NDArray[np.int64] | None = None,
    fresh: NDArray[np.bool_] | None = None,
    *,
    alerting: bool = True,
) -> Judged:
    slots = np.zeros(len(raw), np.int64) if slots is None else slots
    fresh = np.zeros(len(raw), np.bool_) if fresh is None else fresh
    return limits.judge(raw, slots, fresh, alerting=alerting)


def bits(parts: list[Judged]) -> list[bytes]:
    return [np.concatenate(list(arrays)).tobytes() for arrays in zip(*parts, strict=True)]


def kept(limits: Limits, slots: int) -> list[bytes]:
    """The state of the slots in use; how much room there is beyond depends on batches."""
    return [array[:slots].tobytes() for array in limits.state().values()]


def warmed(settings: Limit, n: int = 20_000, seed: int = 0) -> Limits:
    limits = Limits(settings)
    judge(limits, np.random.default_rng(seed).exponential(1.0, n))
    return limits


# --- What a limit depends on ------------------------------------------------------------------------------------


@given(st.data(), score_streams(), st.booleans(), st.booleans())
def test_batches_and_restarts_do_not_matter(
    data: st.DataObject, raw: Scores, alerting: bool, restart: bool
) -> None:
    n = len(raw)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    raw = np.tile(raw, 8)  # long enough for entities to have limits of their own
    slots = rng.integers(0, 4, 8 * n)
    fresh = (rng.random(8 * n) < 0.002) & (slots > 0)
    whole = Limits(SMALL)
    expected = judge(whole, raw, slots, fresh, alerting=alerting)
    limits, parts = Limits(SMALL), []
    for start, stop in data.draw(cuts(8 * n)):
        part = slice(start, stop)
        parts.append(judge(limits, raw[part], slots[part], fresh[part], alerting=alerting))
        if restart:
            state = limits.state()
            limits = Limits(SMALL)
            limits.restore(state)
    assert bits(parts) == bits([expected])
    used = int(slots.max()) + 1
    assert kept(limits, used) == kept(whole, used)


@given(score_streams(), score_streams(), st.integers(0, 399))
def test_the_limit_for_a_score_has_seen_nothing_of_it_or_of_later_ones(
    before: Scores, after: Scores, at: int
) -> None:
    raw = np.tile(before, 4)
    n = min(at, len(raw))
    changed = np.concatenate([raw[:n], after])
    one, other = judge(Limits(SMALL), raw), judge(Limits(SMALL), changed)
    seen = slice(0, n)
    for field in ("flagged", "fed", "normal", "mode"):
        assert np.array_equal(getattr(one, field)[seen], getattr(other, field)[seen])
    both = min(n + 1, len(raw), len(changed))
    # The limit of the first score that differs is still the same.
    same = np.array_equal(one.limit[:both], other.limit[:both], equal_nan=True)
    assert same or np.isnan(raw[n]) or np.isnan(changed[n])


def test_a_restart_does_not_share_arrays_with_what_was_saved() -> None:
    limits = warmed(SMALL, 500)
    state = {name: array.copy() for name, array in limits.state().items()}
    other = Limits(SMALL)
    other.restore(state)
    saved = {name: array.copy() for name, array in state.items()}
    judge(other, np.full(500, 5.0))
    assert all(np.array_equal(state[name], saved[name], equal_nan=True) for name in saved)


# --- The asked rate ----------------------------------------------------------------------------------------------

SURPRISES = {
    "exponential": lambda rng, n: rng.exponential(1.0, n),
    "lognormal": lambda rng, n: rng.lognormal(0.0, 0.6, n),
    "gamma": lambda rng, n: rng.gamma(3.0, 1.0, n),
    "heavy": lambda rng, n: rng.lognormal(0.0, 1.2, n),
}
RULES: tuple[Rule, ...] = get_args(Rule)
RATES = [(0.001, 10_000), (0.003, 10_000), (0.01, 5_000), (0.05, 2_000)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", SURPRISES)
@pytest.mark.parametrize(("rate", "window"), RATES)
def test_the_realised_rate_is_within_a_factor_of_two_of_the_asked_one(
    rule: Rule, kind: str, rate: float, window: int
) -> None:
    realised = []
    n = int(60 / rate)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        limits = Limits(Limit(alert_rate=rate, window=window, rule=rule))
        judge(limits, SURPRISES[kind](rng, 3 * window), alerting=False)
        realised.append(judge(limits, SURPRISES[kind](rng, n)).flagged.mean())
    assert rate / 2 <= np.mean(realised) <= 2 * rate


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("factor", [3.0, 1 / 3])
@pytest.mark.parametrize("rate", [0.001, 0.01])
def test_the_rate_comes_back_after_the_scores_have_shifted(rule: Rule, factor: float, rate: float) -> None:
    settings = Limit(alert_rate=rate, window=10_000, rule=rule)
    realised = []
    for seed in range(4):
        limits, rng = warmed(settings, 30_000, seed), np.random.default_rng(seed + 100)
        judge(limits, factor * rng.exponential(1.0, 100_000))
        realised.append(judge(limits, factor * rng.exponential(1.0, int(100 / rate))).flagged.mean())
    assert rate / 2 <= np.mean(realised) <= 2 * rate


def test_the_limit_does_not_ratchet_down_as_one_fed_with_unflagged_scores_only_does() -> None:
    rate, n = 0.01, 60_000
    scores = np.random.default_rng(3).exponential(1.0, n)
    limits = Limits(Limit(alert_rate=rate, window=1000))
    realised = judge(limits, scores).flagged[n // 2 :].mean()
    assert realised <= 2 * rate
    # The naive way: what is over the limit is never fed.
    naive = Limits(Limit(alert_rate=rate, window=1000))
    flagged = 0
    for start, stop in pairwise(range(0, n + 1, 50)):
        part = scores[start:stop]
        over = part >= naive.lane_limit
        judge(naive, part[~over], alerting=False)
        flagged += int(over.sum()) if start >= n // 2 else 0
    assert flagged / (n // 2) > 3 * realised


# --- Bursts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "height"),
    [
        (0.001, 10.0),
        (0.001, 40.0),
        (0.001, 1e3),
        (0.01, 10.0),
        (0.01, 40.0),
        (0.01, 1e3),
    ],
)
def test_a_burst_of_a_thousand_anomalies_hardly_moves_the_limit(rate: float, height: float) -> None:
    limits = warmed(Limit(alert_rate=rate, window=10_000, rule="rolling"), 50_000)
    before = limits.lane_limit
    rng = np.random.default_rng(1)
    burst = judge(limits, height * rng.lognormal(0, 0.1, 1000))
    assert burst.flagged.mean() > 0.97
    judge(limits, rng.exponential(1.0, 64))
    assert before <= limits.lane_limit * 1.02
    assert limits.lane_limit < 1.6 * before
    assert burst.fed.sum() <= TOKENS_MAX + 2 * rate * 1000 + 1


def test_all_unflagged_scores_are_fed_and_of_flagged_ones_no_more_than_the_tokens_allow() -> None:
    rate = 0.01
    limits = warmed(Limit(alert_rate=rate, window=1000, rule="rolling"), 5000)
    rng = np.random.default_rng(2)
    raw = np.where(rng.random(20_000) < 0.2, 50.0, rng.exponential(1.0, 20_000))
    judged = judge(limits, raw)
    assert judged.fed[~judged.flagged].all()
    assert judged.fed[judged.flagged].sum() <= TOKENS_MAX + 2 * rate * 20_000 + 1


def test_false_alarms_of_ordinary_days_are_all_fed() -> None:
    limits = warmed(Limit(alert_rate=0.001, window=10_000), 50_000)
    judged = judge(limits, np.random.default_rng(9).exponential(1.0, 50_000))
    assert judged.fed.mean() > 0.9995


def test_nothing_flagged_or_near_the_limit_is_called_normal() -> None:
    limits = warmed(Limit(alert_rate=0.01, window=1000), 5000)
    judged = judge(limits, np.random.default_rng(5).exponential(1.0, 5000))
    assert not (judged.normal & judged.flagged).any()
    assert judged.normal.mean() == pytest.approx(0.9, abs=0.03)


# --- The controlled rule ---------------------------------------------------------------------------------------------

ASKED = 0.005


def two_states(rng: np.random.Generator, n: int, stays: float) -> NDArray[np.bool_]:
    """Whether a machine is in its rarer state, 5 % of the time; `stays` is the probability to remain there."""
    states = np.zeros(n, np.bool_)
    now, draws = False, rng.random(n)
    for i in range(n):
        now = draws[i] < (stays if now else 0.05 * (1 - stays) / 0.95)
        states[i] = now
    return states


def apart(rng: np.random.Generator, there: NDArray[np.bool_]) -> Scores:
    """Scores of a bulk, and far above it where asked for."""
    n = len(there)
    return np.where(there, 60.0 * rng.lognormal(0, 0.15, n), rng.gamma(4.0, 0.5, n))


@pytest.mark.parametrize("share", [0.03, 0.07, 0.12])
def test_anomalies_that_are_more_frequent_than_the_asked_rate_are_flagged_where_they_come_one_by_one(
    share: float,
) -> None:
    rng = np.random.default_rng(3)
    anomalous = rng.random(30_000) < share
    judged = judge(Limits(Limit(alert_rate=ASKED)), apart(rng, anomalous))
    late = slice(10_000, None)
    assert judged.flagged[late][anomalous[late]].mean() > 0.95
    assert ASKED / 2 <= judged.flagged[late][~anomalous[late]].mean() <= 2 * ASKED


def test_a_rolling_quantile_climbs_among_them_instead() -> None:
    rng = np.random.default_rng(3)
    anomalous = rng.random(30_000) < 0.07
    judged = judge(Limits(Limit(alert_rate=ASKED, rule="rolling")), apart(rng, anomalous))
    assert judged.flagged[10_000:][anomalous[10_000:]].mean() < 0.2


@pytest.mark.parametrize("stays", [0.9, 0.98])
def test_a_state_that_comes_in_runs_is_a_regime_unless_the_user_knows_better(stays: float) -> None:
    rng = np.random.default_rng(4)
    rare = two_states(rng, 40_000, stays)
    raw, late = apart(rng, rare), slice(10_000, None)
    judged = judge(Limits(Limit(alert_rate=ASKED)), raw)
    assert ASKED / 2 <= judged.flagged[late].mean() <= 2 * ASKED
    told = judge(Limits(Limit(alert_rate=ASKED, contaminated=True)), raw)
    assert told.flagged[late][rare[late]].mean() > 0.95


def test_an_incident_is_flagged_where_it_begins_and_where_it_gets_worse() -> None:
    limits = warmed(Limit(alert_rate=ASKED), 20_000)
    judged = judge(limits, np.array([40.0] * 6 + [39.0] * 6 + [80.0] + [79.0] * 3))
    assert np.flatnonzero(judged.flagged).tolist() == [0, 1, 2, 12]


def test_what_an_incident_goes_on_with_is_neither_learnt_nor_a_reference_though_it_is_not_flagged() -> None:
    limits = warmed(Limit(alert_rate=ASKED), 20_000)
    judged = judge(limits, np.full(15, 40.0))
    assert not judged.normal.any()
    assert judged.flagged.sum() == 3
    assert judged.fed.sum() <= TOKENS_MAX + 1
    judged = judge(limits, np.full(40, 60.0))
    assert judged.fed.sum() < 10


def test_what_is_over_the_usual_limit_is_what_is_flagged_and_what_an_incident_goes_on_with() -> None:
    limits = warmed(Limit(alert_rate=ASKED), 20_000)
    judged = judge(limits, np.array([1.0] + [40.0] * 15 + [1.0] * 20 + [40.0]))
    strange = np.concatenate([[1.0], np.full(15, 40.0), np.ones(20), [40.0]]) >= judged.usual
    assert np.flatnonzero(strange).tolist() == [*range(1, 16), 36]
    assert np.flatnonzero(judged.flagged).tolist() == [1, 2, 3, 36]
    assert judged.limit[10] > 40.0 > judged.usual[10]


@given(score_streams(), st.booleans())
def test_whatever_is_flagged_is_over_the_usual_limit_and_nothing_over_it_is_normal(
    raw: Scores, alerting: bool
) -> None:
    judged = judge(Limits(SMALL), np.concatenate([WARM, raw]), alerting=alerting)
    strange = np.concatenate([WARM, raw]) >= judged.usual
    assert not (judged.flagged & ~strange).any()
    assert not (judged.normal & strange).any()
    assert not (judged.usual > judged.limit).any()
    assert np.isnan(judged.usual[judged.mode < Mode.READY]).all()


@pytest.mark.parametrize("length", [20, 70, 300])
def test_an_incident_however_gross_does_not_hide_the_next_one(length: int) -> None:
    limits, rng = warmed(Limit(alert_rate=ASKED), 20_000), np.random.default_rng(5)
    before = limits.lane_limit
    judge(limits, 1000.0 * rng.lognormal(0, 0.1, length))
    judge(limits, rng.exponential(1.0, 256))
    assert limits.lane_limit < 8.0 * before
    assert judge(limits, np.full(3, 60.0)).flagged.all()


def test_after_a_pause_the_next_incident_is_flagged_like_the_first() -> None:
    limits = warmed(Limit(alert_rate=ASKED), 20_000)
    judge(limits, np.full(20, 40.0))
    judge(limits, np.full(20, 0.5))
    assert judge(limits, np.full(20, 35.0)).flagged[:3].all()


def test_a_machine_that_stands_still_is_not_flagged_now_and_then() -> None:
    rng = np.random.default_rng(6)
    limits = Limits(Limit(alert_rate=0.01))
    judge(limits, rng.exponential(1.0, 3000))
    assert not judge(limits, np.full(200_000, 0.7)).flagged[500:].any()


def test_what_an_older_version_kept_is_taken_over() -> None:
    limits = warmed(SMALL, 3000)
    old = ("histogram", "weight", "seen", "tokens", "limit", "admit")
    state = {name: array for name, array in limits.state().items() if name in old}
    other = Limits(SMALL)
    other.restore(state)
    assert other.lane_limit == limits.lane_limit
    realised = judge(other, np.random.default_rng(7).exponential(1.0, 5000)).flagged.mean()
    assert 0.05 <= realised <= 0.2


# --- Entities -------------------------------------------------------------------------------------------------------


def test_an_entity_has_its_own_limit_only_after_it_has_seen_enough() -> None:
    rate = 0.01
    limits = Limits(Limit(alert_rate=rate, window=1000))
    rng = np.random.default_rng(0)
    n = 2000
    judged = judge(limits, rng.exponential(1.0, n), np.ones(n, np.int64))
    own = judged.mode == Mode.ENTITY
    enough = int(EXCEEDANCES_MIN / rate)
    assert not own[:enough].any()
    assert own[enough + int(2 * rate * n) :].all()


def test_a_noisy_entity_does_not_decide_for_a_quiet_one() -> None:
    rate = 0.02
    limits = Limits(Limit(alert_rate=rate, window=2000))
    rng = np.random.default_rng(0)
    n = 40_000
    slots = rng.integers(1, 3, n)
    raw = rng.exponential(1.0, n) * np.where(slots == 1, 1.0, 20.0)
    judged = judge(limits, raw, slots)
    for slot in (1, 2):
        flagged = judged.flagged[n // 2 :][slots[n // 2 :] == slot]
        assert rate / 2 <= flagged.mean() <= 2 * rate


def test_a_new_owner_of_a_slot_starts_with_the_limit_of_the_lane() -> None:
    limits = Limits(Limit(alert_rate=0.02, window=1000))
    rng = np.random.default_rng(0)
    judge(limits, 50 * rng.exponential(1.0, 3000), np.ones(3000, np.int64))
    judge(limits, rng.exponential(1.0, 20_000))
    of_the_lane = limits.lane_limit
    taken_over = judge(limits, np.array([1.0]), np.array([1]), np.array([True]))
    assert taken_over.mode[0] == Mode.READY
    assert taken_over.limit[0] == of_the_lane


# --- What scores may be ---------------------------------------------------------------------------------------------


def test_without_a_model_events_are_cold_and_move_nothing() -> None:
    limits = Limits(SMALL)
    judged = judge(limits, np.full(1000, np.nan))
    assert (judged.mode == Mode.COLD).all()
    assert judged.normal.all()
    assert np.isnan(judged.limit).all()
    assert not judged.flagged.any()
    assert np.isnan(limits.lane_limit)
    assert kept(limits, 1) == kept(Limits(SMALL), 1)


def test_nothing_is_flagged_before_there_is_a_limit_or_while_not_alerting() -> None:
    judged = judge(Limits(SMALL), np.arange(1.0, 2 * SEEN_MIN))
    first = np.isnan(judged.limit)
    assert first[:SEEN_MIN].all()
    assert (judged.mode[first] == Mode.WARMING).all()
    assert not judged.flagged[first].any()
    quiet = judge(warmed(SMALL), np.full(100, 1e3), alerting=False)
    assert not quiet.flagged.any()
    assert (quiet.mode == Mode.WARMING).all()


@given(score_streams(), st.booleans())
def test_no_score_breaks_the_limits(raw: Scores, alerting: bool) -> None:
    limits = warmed(SMALL, 1000)
    judged = judge(limits, raw, alerting=alerting)
    finite = ~np.isnan(raw)
    assert (judged.limit[finite] > 0).all()
    assert np.isfinite(judged.limit[finite]).all()
    assert math.isfinite(limits.lane_limit)
    assert all(np.isfinite(array).all() for name, array in limits.state().items() if name != "cut")
    assert not np.isnan(limits.state()["cut"]).any()
    assert (judged.mode[~finite] == Mode.COLD).all()
    over = raw >= judged.limit
    assert np.array_equal(judged.flagged, over & alerting)


def test_an_infinite_score_is_as_high_as_can_be_and_does_not_pull_the_limit_down() -> None:
    limits = Limits(SMALL)
    judge(limits, np.tile([1.0, math.inf], 500), alerting=False)
    assert limits.lane_limit > 1e3


@pytest.mark.parametrize("rate", [0.001, 0.05])
@pytest.mark.parametrize(
    "levels", [np.array([0.0, 1e-6, 1e-300]), np.geomspace(0.5, 0.55, 60)], ids=["zero", "one bin"]
)
def test_a_stream_of_equal_scores_is_not_flagged_whatever_they_are(rate: float, levels: Scores) -> None:
    for level in levels:
        limits = Limits(Limit(alert_rate=rate, window=10_000))
        assert not judge(limits, np.full(1000, level)).flagged.any()


def test_a_stream_that_comes_to_a_standstill_is_not_flagged_for_ever() -> None:
    for level in np.geomspace(0.5, 0.55, 60):
        limits = warmed(Limit(alert_rate=0.05, window=1000), 3000)
        assert not judge(limits, np.full(10_000, level)).flagged.any()


def test_memory_does_not_grow_with_the_number_of_scores() -> None:
    limits = warmed(SMALL, 1000)
    before = {name: array.nbytes for name, array in limits.state().items()}
    judge(limits, np.random.default_rng(0).exponential(1.0, 200_000))
    assert {name: array.nbytes for name, array in limits.state().items()} == before


def test_weights_stay_exact_over_a_long_life() -> None:
    limits = Limits(SMALL)
    rng = np.random.default_rng(0)
    for _ in range(5):
        judge(limits, rng.exponential(1.0, 20_000))
    assert float(limits.state()["weight"][0]) <= 1.02e12
    assert float(limits.state()["high"][0]) == pytest.approx(-math.log(0.1), rel=0.35)


# --- A new model version --------------------------------------------------------------------------------------------


@given(st.floats(0.2, 5.0), st.integers(0, 99))
def test_limits_go_over_to_the_scale_of_a_new_version(factor: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    settings = Limit(alert_rate=0.01, window=2000)
    limits = warmed(settings, 10_000, seed)
    before = limits.lane_limit
    held_out = rng.exponential(1.0, 2000)
    limits.rescale(held_out, factor * held_out)
    assert limits.lane_limit == pytest.approx(factor * before, rel=0.06)


def test_rescaling_to_the_same_scale_changes_hardly_anything() -> None:
    limits = warmed(Limit(alert_rate=0.01, window=2000), 10_000)
    before = limits.lane_limit
    held_out = np.random.default_rng(0).exponential(1.0, 500)
    for _ in range(10):
        limits.rescale(held_out, held_out)
    assert limits.lane_limit == pytest.approx(before, rel=0.08)


def test_rescaling_with_ties_zeros_or_one_row_keeps_limits_finite() -> None:
    for before, after in (
        (np.zeros(50), np.zeros(50)),
        (np.ones(50), np.zeros(50)),
        (np.zeros(50), np.ones(50)),
        (np.array([1.0]), np.array([2.0])),
        (np.repeat([0.0, 1.0], 25), np.linspace(0, 3, 50)),
    ):
        limits = warmed(SMALL, 1000)
        limits.rescale(before, after)
        assert math.isfinite(limits.lane_limit)
        assert limits.lane_limit > 0


def test_many_small_batches_are_one_long_stream() -> None:
    raw = np.random.default_rng(8).exponential(1.0, 5000)
    whole = judge(Limits(SMALL), raw)
    limits = Limits(SMALL)
    parts = [judge(limits, raw[start:stop]) for start, stop in seeded_cuts(5000, 1000, 1)]
    assert bits(parts) == bits([whole])


# --- Of a metric, whose scores are nats -------------------------------------------------------------------------


def nominal(alert_rate: float = 0.001) -> Limits:
    return Limits(Limit(alert_rate=alert_rate), nominal=True)


@pytest.mark.parametrize("rate", [0.001, 0.01])
def test_the_limit_of_a_metric_is_the_surprise_that_was_asked_for_from_the_first_score_on(
    rate: float,
) -> None:
    raw = np.full(200, 0.5)
    raw[[10, 150]] = -math.log(rate) + 0.01
    judged = judge(nominal(rate), raw)
    assert judged.limit[0] == pytest.approx(-math.log(rate))
    assert np.flatnonzero(judged.flagged).tolist() == [10, 150]


def test_of_an_excursion_of_a_metric_one_row_is_flagged_and_what_is_worse_and_after_a_pause_the_next() -> (
    None
):
    raw = np.full(2_000, 0.5)
    raw[500:540] = 9.0
    raw[520] = 12.0
    raw[600] = 9.0  # not calm for long enough
    raw[1_000] = 9.0
    assert np.flatnonzero(judge(nominal(), raw).flagged).tolist() == [500, 520, 1_000]
