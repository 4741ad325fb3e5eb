"""Noise rules through the whole program, from the YAML that a user writes: two pumps, and a plant."""

import csv
import json
import re
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fakes import FakeSink, FakeSource, Group, StopAfter, counted, readings, worker_over

from streamdet.checkpoint.format import digest
from streamdet.config import load, parse
from streamdet.errors import ConfigError
from streamdet.events import Alert, Cause, LaneId
from streamdet.replaying import Replay, replay
from streamdet.worker import run

# Two pumps take turns, an event a second; by what they show at which second.
PRESSURE = {
    800: 1.0,  # the first one falls
    1_000: 5.0, 1_200: 5.0, 1_202: 5.2, 1_204: 5.1, 1_206: 5.0,  # and rises
    1_301: 5.0,  # the second one rises
}  # fmt: skip
BEGINNING = """
    model: {device: cpu}
    input: {timestamp: ts, entity: pump, features: {numeric: [pressure]}}
"""
LANE = LaneId("plant", 0)
RULES: dict[str, Any] = {
    "k": 2,
    "n": 6,
    "cool_down_s": 200,
    "features": {
        "temperature": {"direction": "up", "range": [None, 135]},
        "pressure": {"min_deviation": 0.1, "min_relative_deviation": 0.05},
    },
}


def pumps(folder: Path, odd: dict[int, float]) -> Path:
    rng = np.random.default_rng(0)
    usual = (3 + 0.1 * rng.standard_normal(1_600)).round(4).tolist()
    rows = [f"{1_750_000_000 + i},p{i % 2},{odd.get(i, usual[i])}" for i in range(1_600)]
    path = folder / "pumps.csv"
    path.write_text("\n".join(["ts,pump,pressure", *rows]) + "\n")
    return path


class Run:
    """What a replay of the pumps gave, with a configuration of that noise."""

    def __init__(self, folder: Path, noise: str = "", odd: dict[int, float] = PRESSURE) -> None:
        config, alerts, self.scores = (folder / name for name in ("c.yaml", "alerts.jsonl", "scores.csv"))
        config.write_text(textwrap.dedent(BEGINNING) + textwrap.dedent(noise))
        what = Replay([pumps(folder, odd)], alerts=alerts, scores=self.scores)
        self.summary = replay(what, load(config), StopAfter())
        self.alerts = [msgspec.json.decode(line, type=Alert) for line in alerts.read_bytes().splitlines()]

    @property
    def when(self) -> list[int]:
        return [alert.source.offset for alert in self.alerts]


def test_without_rules_every_flag_is_an_alert_by_the_limit(tmp_path: Path) -> None:
    found = Run(tmp_path)
    assert found.when == [800, 1_000, 1_200, 1_204, 1_206, 1_301]
    assert {alert.reason for alert in found.alerts} == {"limit"}
    header = found.scores.read_text().splitlines()[0]
    assert header == '"timestamp","entity","raw_score","limit","score","p_value","mode","flagged"'


def test_pump_pressure_falling_is_harmless(tmp_path: Path) -> None:
    found = Run(tmp_path, "noise: {features: {pressure: {direction: up}}}")
    assert found.when == [1_000, 1_200, 1_204, 1_206, 1_301]
    assert found.summary["held_back"]["direction"] == 1
    with found.scores.open() as file:
        rows = list(csv.DictReader(file))
    assert (rows[800]["reason"], rows[800]["flagged"]) == ("direction", "0")
    assert float(rows[800]["score"]) > 1.0
    assert (rows[1_000]["reason"], rows[799]["reason"]) == ("limit", "none")


def test_a_cool_down_is_of_event_time_and_of_each_pump_alone(tmp_path: Path) -> None:
    found = Run(tmp_path, "noise: {cool_down_s: 300}")
    assert found.when == [800, 1_200, 1_301]
    assert [alert.entity for alert in found.alerts] == ["p0", "p0", "p1"]
    assert found.summary["held_back"]["cool_down"] == 3


def test_three_of_five_alerts_on_the_row_that_makes_it_three(tmp_path: Path) -> None:
    found = Run(tmp_path, "noise: {k: 3, n: 5}")
    assert 1_206 in found.when
    assert not {800, 1_000, 1_200, 1_204, 1_301} & set(found.when)
    assert all(alert.score >= 1.0 and alert.reason == "limit" for alert in found.alerts)


def test_a_hard_range_alerts_in_the_warm_up_and_says_so(tmp_path: Path) -> None:
    found = Run(tmp_path, "noise: {features: {pressure: {range: [0, 8]}}}", {20: 8.1, 150: -1.0})
    cold, warming = (alert for alert in found.alerts if alert.source.offset < 200)
    assert [(alert.reason, alert.mode) for alert in (cold, warming)] == [
        ("range", "cold"),
        ("range", "warming"),
    ]
    assert (cold.model_version, cold.features[0].expected, cold.features[0].share) == ("", None, 1.0)
    assert len(warming.model_version) == 12
    assert cold.raw_score == cold.limit > 0
    assert warming.score >= 1.0


def test_the_report_says_why_each_alert_is_one_and_how_many_are_none(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    rule = "noise: {features: {pressure: {direction: up, range: [0, 8]}}}"
    config.write_text(textwrap.dedent(BEGINNING) + rule)
    recording = pumps(tmp_path, {20: 8.1, 800: 1.0, 1_200: 5.0})
    rows = recording.read_text().splitlines()
    rows[701] = rows[701].rpartition(",")[0] + ","  # one value is missing
    recording.write_text("\n".join(rows) + "\n")
    summary = replay(Replay([recording], report=tmp_path / "report"), load(config), StopAfter())
    page = (tmp_path / "report" / "report.html").read_text()
    reasons = re.findall(r"<td>(limit|range)</td>", page)
    assert reasons == ["limit", "range"]  # newest first
    assert len(reasons) == summary["alerts"]
    held_back = page.partition("<h2>Held back</h2>")[2].partition("<h2>")[0]
    assert f"<tr><th>direction</th><td>{summary['held_back']['direction']}</td></tr>" in held_back
    assert summary["held_back"]["direction"] > 0


def test_a_range_alert_names_the_feature_outside_first() -> None:
    values = readings(900)
    fields = msgspec.json.decode(values[800] or b"")
    values[800] = msgspec.json.encode({**fields, "temperature": 140.0, "flow": -0.01})
    sink = FakeSink()
    rules = {"flow": {"range": [0, None]}}
    run(worker_over(FakeSource({LANE: values}), sink, noise={"features": rules}), StopAfter())
    (alert,) = [alert for alert in sink.alerts if alert.source.offset == 800]
    assert alert.reason == "range"
    first, second, *_ = alert.features
    assert first.name == "flow"
    assert second.name == "temperature"
    assert second.share > first.share


# --- A plant with all rules at once ---------------------------------------------------------------------------

VALUES = readings(
    2_000, 3, spikes=(30, 700, 701, 705, 1_100, 1_101, 1_500, 1_502, 1_503, 1_900), missing=0.05
)


def judged(
    group: Group, per_poll: int, noise: dict[str, Any], stop: StopAfter, end: int = len(VALUES)
) -> FakeSink:
    """What a worker that goes on where the group is publishes before it stops, at this offset at the latest."""
    sink = FakeSink()
    source = group.source({LANE: VALUES[:end]}, per_poll=per_poll)
    run(group.worker(source, sink, observers=[stop], noise=noise), stop)
    return sink


def alerts_of(sink: FakeSink) -> list[Alert]:
    return [msgspec.structs.replace(alert, detected_at="") for alert in sink.alerts]


def state_of(group: Group) -> str:
    found = group.shelf.lane(LANE, "", len(VALUES))
    assert found is not None
    return digest(found.state)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Alert], str]:
    group, seen = Group(tmp_path_factory.mktemp("whole")), StopAfter()
    alerts = alerts_of(judged(group, 10_000, RULES, seen))
    assert {alert.reason for alert in alerts} == {"limit", "range"}
    reasons = {
        int(offset): Cause(int(reason))
        for part in seen.parts
        for offset, reason in zip(part.decoded.events.offsets, part.verdicts.reason, strict=True)
    }
    assert [reasons[at] for at in (30, 1_446, 1_447)] == [Cause.RANGE, Cause.K_OF_N, Cause.LIMIT]
    assert [reasons[at] for at in (1_502, 1_503)] == [Cause.RANGE, Cause.COOL_DOWN]
    return alerts, state_of(group)


# One more strange event makes two of six, or is within the cool-down.
@pytest.mark.parametrize("stop", [31, 1_447, 1_503])
def test_neither_batches_nor_a_stop_change_what_is_held_back(
    whole: tuple[list[Alert], str], tmp_path: Path, stop: int
) -> None:
    group = Group(tmp_path)
    first = judged(group, 70, RULES, StopAfter(), stop)
    assert group.offsets[LANE] == stop
    second = judged(group, 333, RULES, StopAfter())
    assert (alerts_of(first) + alerts_of(second), state_of(group)) == whole


@pytest.mark.parametrize(
    "noise",
    [
        {"features": {"temperature": {"direction": "down"}, "flow": {"min_deviation": 0.5}}},
        {"cool_down_s": 100, "worse": 1.1},
        {"k": 2, "n": 4, "features": {"temperature": {"direction": "down"}}},
    ],
)
def test_held_back_and_published_are_the_candidates_and_nothing_else_changes(
    noise: dict[str, Any], tmp_path: Path
) -> None:
    plain, ruled = StopAfter(), StopAfter()
    before_rules = alerts_of(judged(Group(tmp_path / "plain"), 10_000, {}, plain))
    alerts = alerts_of(judged(Group(tmp_path / "ruled"), 10_000, noise, ruled))
    reasons: Counter[int] = Counter()
    for before, after in zip(plain.parts, ruled.parts, strict=True):
        strange = before.verdicts.strange
        np.testing.assert_array_equal(after.verdicts.raw, before.verdicts.raw)
        np.testing.assert_array_equal(after.verdicts.normal, before.verdicts.normal)
        np.testing.assert_array_equal(after.verdicts.fed, before.verdicts.fed)
        assert ((after.verdicts.reason != Cause.NONE) == strange).all()
        assert (after.verdicts.flagged == (after.verdicts.reason == Cause.LIMIT)).all()
        assert not after.verdicts.normal[strange].any()
        reasons.update(after.verdicts.reason[strange].tolist())
    assert reasons[Cause.LIMIT] == len(alerts)
    assert [alert for alert in before_rules if alert.id in {a.id for a in alerts}] == alerts
    assert sum(n for cause, n in reasons.items() if Cause(cause).holds_back) > 0


def test_a_rule_that_says_nothing_changes_nothing(tmp_path: Path) -> None:
    plain = judged(Group(tmp_path / "plain"), 10_000, {}, StopAfter())
    rules = {"features": {"temperature": {"range": [-1e9, 1e9]}}}
    idle = judged(Group(tmp_path / "idle"), 10_000, rules, StopAfter())
    assert alerts_of(idle) == alerts_of(plain)


def test_rules_may_change_between_two_runs(tmp_path: Path) -> None:
    group, plain, damped = Group(tmp_path), StopAfter(10), StopAfter()
    judged(group, 100, {}, plain)
    assert 0 < group.offsets[LANE] < 1_000
    alerts = judged(group, 100, {"cool_down_s": 500}, damped).alerts
    assert 0 < len(alerts) < sum(part.verdicts.strange.sum() for part in damped.parts)
    assert any(part.verdicts.held_back[Cause.COOL_DOWN] for part in damped.parts)
    assert plain.offsets(LANE) + damped.offsets(LANE) == list(range(len(VALUES)))


def test_what_is_held_back_is_counted_by_reason() -> None:
    rules = {"features": {"temperature": {"direction": "down"}}}
    seen = StopAfter()
    worker = worker_over(FakeSource({LANE: VALUES}), FakeSink(), observers=[seen], noise=rules)
    run(worker, StopAfter())
    held_back: Counter[Cause] = Counter()
    for part in seen.parts:
        held_back.update(part.verdicts.held_back)
    assert held_back[Cause.DIRECTION] > 0
    for cause, n in held_back.items():
        assert counted(worker, "streamdet_events_held_back_total", reason=cause.label) == n


def test_a_rule_for_a_feature_that_is_not_there_is_refused_before_the_first_event(tmp_path: Path) -> None:
    path = tmp_path / "plant.jsonl"
    path.write_text(json.dumps({"ts": 1_750_000_000, "pressure": 1.0, "site": "north"}) + "\n")
    for name, what in (("presure", "the numeric ones are pressure"), ("site", "categorical")):
        given = parse({"noise": {"features": {name: {"direction": "up"}}}})
        with pytest.raises(ConfigError, match=rf"noise\.features\.{name}: .*{what}"):
            replay(Replay([path]), given, StopAfter())
