"""Each rule of limits through the whole program: planted anomalies are alerts, the asked rate is the realised one."""

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fakes import QUICK, SENSORS, FakeSink, FakeSource, StopAfter, counted, readings, worker_over

from streamdet.config import parse
from streamdet.events import Alert
from streamdet.replaying import Replay, replay
from streamdet.worker import run

RULES = ("controlled", "rolling", "spot", "dspot", "conformal")
ASKED = 0.01
PLANTED = range(2_000, 8_000, 397)
EVENTS = 8_000


def settings(rule: str) -> dict[str, Any]:
    return {
        **QUICK,
        "input": {"timestamp": "ts", "entity": "device"},
        "limit": {"rule": rule, "alert_rate": ASKED, "window": 1_000},
    }


@pytest.mark.parametrize("rule", RULES)
def test_planted_anomalies_are_alerts_and_few_others_are(rule: str, tmp_path: Path) -> None:
    recording, alerts = tmp_path / "plant.jsonl", tmp_path / "alerts.jsonl"
    recording.write_bytes(b"".join((v or b"") + b"\n" for v in readings(EVENTS, seed=3, spikes=PLANTED)))
    summary = replay(Replay([recording], alerts=alerts), parse(settings(rule)), StopAfter())
    lines = alerts.read_bytes().splitlines()
    offsets = {msgspec.json.decode(line, type=Alert).source.offset for line in lines}
    assert len(offsets & set(PLANTED)) >= 0.9 * len(PLANTED)
    others = offsets - set(PLANTED)
    assert len(others) <= 2 * ASKED * summary["events_after_warmup"]


@pytest.mark.parametrize("rule", RULES)
def test_the_metrics_say_the_asked_and_the_realised_rate(rule: str) -> None:
    values, judged = readings(4_000, seed=4, spikes=PLANTED), StopAfter()
    source = FakeSource({SENSORS: values}, per_poll=500)
    worker = worker_over(source, FakeSink(), observers=[judged], **settings(rule))

    def shown(name: str) -> float:
        value = worker.metrics.registry.get_sample_value(name)
        assert value is not None
        return value

    assert shown("streamdet_alert_rate_asked") == ASKED
    assert math.isnan(shown("streamdet_alert_rate_realised"))  # nothing was judged against a limit
    run(worker, StopAfter())
    flagged = [part.verdicts.flagged.sum() for part in judged.parts]
    limited = [(part.verdicts.mode >= 2).sum() for part in judged.parts]
    # 2,000 events later one weighs 1/e, so that of these the last ones count for more, but none for less than a sixth.
    assert shown("streamdet_alert_rate_realised") == pytest.approx(sum(flagged) / sum(limited), rel=0.5)
    assert 0.0 < shown("streamdet_alert_rate_realised") < 3 * ASKED


def realised(values: list[bytes | None], noise: dict[str, Any]) -> tuple[float, int, int]:
    """The realised rate that the metrics tell after these values, how many alerts there were, and by a range."""
    source, sink = FakeSource({SENSORS: values}, per_poll=250), FakeSink()
    # Without what a model would learn of other rows, as it does where some lie outside a hard range.
    learning = {**QUICK["learning"], "enabled": False}
    worker = worker_over(source, sink, **{**settings("controlled"), "learning": learning}, noise=noise)
    run(worker, StopAfter())
    assert counted(worker, "streamdet_events_flagged_total") == len(sink.alerts)
    by_range = sum(alert.reason == "range" for alert in sink.alerts)
    return counted(worker, "streamdet_alert_rate_realised"), len(sink.alerts), by_range


def test_the_realised_rate_is_that_of_the_limit_whatever_noise_rules_make_of_it() -> None:
    values = readings(4_000, seed=4, spikes=range(2_000, 4_000, 97))
    plain, alerts, _ = realised(values, {})
    assert plain > ASKED / 2
    held_back, fewer, _ = realised(values, {"cool_down_s": 1_000_000, "worse": 1_000})
    assert fewer < alerts / 3
    assert held_back == plain


def test_what_is_outside_a_hard_range_and_below_the_limit_has_not_reached_it() -> None:
    values = readings(4_000, seed=4)
    for i in range(2_000, 4_000, 10):  # more than there has been before, and soon nothing strange
        values[i] = msgspec.json.encode({**msgspec.json.decode(values[i] or b""), "flow": 13.0})
    plain, alerts, _ = realised(values, {})
    ranged, more, by_range = realised(values, {"features": {"flow": {"range": [None, 12.99]}}})
    assert by_range == 200
    assert more > alerts + 100
    # Not the same, as later rows remember nothing of those outside; with these counted it would be 0.08.
    assert ranged == pytest.approx(plain, abs=0.003)
