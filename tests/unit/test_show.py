"""What a terminal and a pipe are shown."""

import io

import msgspec
import pytest
from rich.console import Console

from streamdet.events import Alert, FeatureShare, SourcePosition
from streamdet.show import alert_line, progress, show_alerts, summary_lines

ALERT = Alert(
    id="sensors/0/7",
    event_time="2026-11-22T10:00:00.000Z",
    detected_at="2026-11-22T10:00:00.012Z",
    entity="press-17",
    score=2.75,
    raw_score=19.25,
    limit=7.0,
    p_value=4.3e-9,
    severity="critical",
    mode="entity",
    features=[
        FeatureShare("pressure", 12.3456, 4.5, 0.75),
        FeatureShare("site", "north", None, 0.15),
        FeatureShare("flow", None, 1.0, 0.08),
        FeatureShare("speed", 1.0, 1.0, 0.02),
    ],
    model_version="0123456789ab",
    source=SourcePosition("sensors", 0, 7),
    event={"pressure": 12.3456},
)
METRICS = dict.fromkeys(("roc_auc", "average_precision", "precision", "recall", "f1"))
SUMMARY = {
    "events": 12_345,
    "rejected": 6,
    "alerts": 78,
    "held_back": {"direction": 0, "excursion": 5},
    "drift": {"relearn": 0},
    "seconds": 0.5,
    "events_per_second": 24_690.0,
    "device": "cpu",
    "metrics": METRICS,
    "events_after_warmup": 11_345,
    "anomalous_after_warmup": None,
}


def test_in_a_pipe_an_alert_is_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    show_alerts([ALERT, ALERT], as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert [msgspec.json.decode(line, type=Alert) for line in lines] == [ALERT, ALERT]


def test_a_line_of_the_table_names_the_three_largest_shares() -> None:
    line = alert_line(ALERT)
    assert "press-17" in line
    assert "2.75" in line
    assert "pressure 12.35 (expected 4.5) 75%; site north (expected missing) 15%; flow missing" in line
    assert "speed" not in line


def test_a_line_of_the_table_says_the_reason_where_it_is_not_the_limit() -> None:
    assert "  pressure 12.35" in alert_line(ALERT)
    assert "  range: pressure 12.35" in alert_line(msgspec.structs.replace(ALERT, reason="range"))


def test_a_summary_says_what_rules_have_held_back_and_is_silent_where_there_are_none() -> None:
    assert not any("held back" in line for line in summary_lines(SUMMARY))
    held_back = {"direction": 1_200, "k_of_n": 3, "cool_down": 0, "excursion": 5}
    told = "held back, by the reason: direction 1,200, k of n 3, excursion 5"
    assert told in summary_lines(SUMMARY | {"held_back": held_back})


def test_a_summary_says_how_often_the_model_was_learnt_anew_if_it_was() -> None:
    assert not any("anew" in line for line in summary_lines(SUMMARY))
    told = "learnt anew after a change that came to stay: 2 times"
    assert told in summary_lines(SUMMARY | {"drift": {"relearn": 2}})


def test_a_line_of_the_table_stays_one_line_in_a_narrow_terminal() -> None:
    out = io.StringIO()
    Console(file=out, width=60).print(alert_line(ALERT), no_wrap=True, overflow="ellipsis")
    assert len(out.getvalue().splitlines()) == 1


def test_a_summary_without_labels_has_no_metrics() -> None:
    lines = summary_lines(SUMMARY)
    assert lines[0] == "12,345 events judged, 6 rejected, 78 alerts"
    assert not any("labelled" in line for line in lines)


def test_a_summary_with_labels_says_what_they_are_held_against() -> None:
    labelled = {"metrics": METRICS | {"roc_auc": 0.98765}, "anomalous_after_warmup": 21}
    assert (
        "against 21 labelled anomalies among 11,345 events after the warm-up: roc auc 0.988"
        in summary_lines(SUMMARY | labelled)
    )


def test_a_recording_that_ends_in_the_warm_up_is_said_to_be_too_short() -> None:
    assert "shorter than learning.warmup" in summary_lines(SUMMARY | {"events_after_warmup": 0})[-1]


def test_there_is_no_progress_bar_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as watch:
        assert watch is None
    assert capsys.readouterr().err == ""
