"""Verdicts and alerts: one scale, deterministic ids, and an explanation that adds up."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from strategies import LANE, events_of, model_of, names_of

from streamdet.config import Limit
from streamdet.decide import explain, judge, severity
from streamdet.events import Alert, Cause, Events, Mode, Schema, Verdicts
from streamdet.features.rows import LaneFeatures
from streamdet.threshold.limits import Limits

NUMERIC = names_of(6)[:5]
SCHEMA = Schema("ts", "device", NUMERIC, ("site",))
N = 20


def some() -> tuple[Events, LaneFeatures]:
    rng = np.random.default_rng(0)
    numeric = rng.normal(0, 1, (N, 5))
    numeric[3, 1] = np.nan
    events = events_of(["d1", ""] * (N // 2), numeric.tolist(), ["north", "south", None, "north"] * (N // 4))
    return replace(events, offsets=1000 + np.arange(N, dtype=np.int64)), LaneFeatures(SCHEMA, 10)


def verdicts_of(raw: float = 12.0, limit: float = 6.0, mode: Mode = Mode.READY) -> Verdicts:
    yes = np.ones(N, np.bool_)
    modes, reasons = np.full(N, mode, np.uint8), np.full(N, Cause.LIMIT, np.uint8)
    return Verdicts(np.full(N, raw), np.full(N, limit), modes, yes, yes, ~yes, np.full(N, limit), reasons)


def alerts_of(which: list[int], verdicts: Verdicts | None = None) -> list[Alert]:
    events, features = some()
    return explain(
        events,
        features.transform(events),
        verdicts_of() if verdicts is None else verdicts,
        np.array(which, np.int64),
        model=replace(model_of(), columns=SCHEMA.columns),
        features=features,
        schema=SCHEMA,
        originals=[{"n": i} for i in which],
        since_ms=events.times_ms[which] - 1_500,
        detected_at_ms=1_700_000_100_007,
    )


def test_a_score_is_a_multiple_of_the_limit_and_the_p_value_goes_with_the_raw_score() -> None:
    limits = Limits(Limit(alert_rate=0.1, window=100))
    raw = np.random.default_rng(0).exponential(1.0, 2000)
    nobody = np.zeros(2000, np.int64), np.zeros(2000, np.bool_)
    verdicts = judge(raw, *nobody, limits, alerting=True)
    judged = verdicts.mode >= Mode.READY
    assert ((verdicts.score[judged] >= 1.0) == verdicts.flagged[judged]).all()
    assert verdicts.p_value == pytest.approx(np.exp(-raw))
    assert np.isnan(verdicts.score[~judged & np.isnan(verdicts.limit)]).all()


@pytest.mark.parametrize(
    ("score", "word"),
    [
        (1.0, "minor"),
        (1.49, "minor"),
        (1.5, "major"),
        (2.49, "major"),
        (2.5, "critical"),
        (float("inf"), "critical"),
    ],
)
def test_severity_follows_the_score(score: float, word: str) -> None:
    assert severity(score) == word


def test_an_alert_says_where_the_record_lies_and_its_id_is_made_of_that_alone() -> None:
    first, second = alerts_of([4, 7])
    assert first.id == f"{LANE.topic}/{LANE.partition}/1004"
    assert (first.source.topic, first.source.partition, first.source.offset) == (*LANE, 1004)
    assert second.id == f"{LANE.topic}/{LANE.partition}/1007"
    assert (first.event, second.event) == ({"n": 4}, {"n": 7})


def test_an_alert_says_how_far_over_which_limit_and_who_judged() -> None:
    (alert,) = alerts_of([0], verdicts_of(raw=9.0, limit=5.0, mode=Mode.ENTITY))
    assert alert.score == pytest.approx(1.8)
    assert (alert.raw_score, alert.limit, alert.severity, alert.mode) == (9.0, 5.0, "major", "entity")
    assert alert.p_value == pytest.approx(np.exp(-9.0))
    assert len(alert.model_version) == 12


def test_times_are_iso_8601_in_utc_to_the_millisecond() -> None:
    (alert,) = alerts_of([7])
    assert alert.event_time == "2023-11-14T22:13:20.007Z"
    assert alert.detected_at == "2023-11-14T22:15:00.007Z"


def test_a_stream_without_entities_has_alerts_without_one() -> None:
    named, nameless = alerts_of([0, 1])
    assert (named.entity, nameless.entity) == ("d1", None)


def test_shares_come_largest_first_sum_to_one_and_cover_every_feature_once() -> None:
    for alert in alerts_of(list(range(N))):
        shares = [feature.share for feature in alert.features]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1.0, abs=1e-5)
        assert sorted(f.name for f in alert.features) == sorted(SCHEMA.columns)


def test_features_show_what_was_there_and_what_was_expected() -> None:
    events, _ = some()
    (alert,) = alerts_of([3])
    features = {feature.name: feature for feature in alert.features}
    assert features[NUMERIC[0]].actual == float(events.numeric[3, 0])
    assert isinstance(features[NUMERIC[0]].expected, float)
    assert features[NUMERIC[1]].actual is None  # it was missing
    assert features[NUMERIC[1]].share == 0.0
    assert features["site"].actual == "north"
    (late,) = alerts_of([N - 1])
    assert next(f for f in late.features if f.name == "site").expected == "north"
    (missing,) = alerts_of([2])
    assert next(f for f in missing.features if f.name == "site").actual is None


def test_an_alert_marks_what_was_imputed_and_rests_on_the_rest() -> None:
    lacking, whole = alerts_of([3, 4])
    assert [feature.name for feature in lacking.features if feature.imputed] == [NUMERIC[1]]
    assert lacking.confidence == pytest.approx(5 / 6)
    assert not any(feature.imputed for feature in whole.features)
    assert whole.confidence == 1.0


def test_an_alert_can_always_be_written_as_json() -> None:
    for alert in alerts_of([0, 1, 2, 3], verdicts_of(raw=1e300, limit=1e-3)):
        read = msgspec.json.decode(msgspec.json.encode(alert), type=Alert)
        assert read.id == alert.id
        assert read.features == alert.features


def test_no_flags_give_no_alerts() -> None:
    assert alerts_of([]) == []


def test_an_explanation_does_not_depend_on_which_other_alerts_the_batch_has() -> None:
    together = alerts_of([2, 5, 9])
    assert alerts_of([5])[0] == together[1]


def test_the_expected_category_is_that_of_the_events_before() -> None:
    events, features = some()
    events = replace(events, categorical=[["north"] * 5 + ["south"] * (N - 5)])
    (alert,) = explain(
        events,
        features.transform(events),
        verdicts_of(),
        np.array([3]),
        model=replace(model_of(), columns=SCHEMA.columns),
        features=features,
        schema=SCHEMA,
        originals=[{}],
        since_ms=events.times_ms[3:4],
        detected_at_ms=0,
    )
    assert next(f for f in alert.features if f.name == "site").expected == "north"
