"""Missing values as whoever is on call meets them: what stood for them, what an alert then rests on."""

import csv
import io
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fakes import QUICK, StopAfter

from streamdet.config import parse
from streamdet.errors import ConfigError
from streamdet.events import Alert
from streamdet.replaying import Replay, replay

N = 1_500
INPUT = {"features": {"numeric": ["temperature", "pressure", "errors"]}}


def station(**changes: Mapping[int, object]) -> list[dict[str, Any]]:
    """Readings of a station, with some fields changed in some of them; None takes a field away."""
    rng = np.random.default_rng(0)
    load = np.sin(np.arange(N) / 40) + 0.1 * rng.normal(size=N)
    readings: list[dict[str, Any]] = [
        {
            "temperature": round(20 + x + 0.1 * e, 4),
            "pressure": round(3 + 0.2 * x, 4),
            "errors": round(abs(e), 4),
        }
        for x, e in zip(load, rng.normal(size=N), strict=True)
    ]
    for name, at in changes.items():
        for i, value in at.items():
            readings[i][name] = value
    return [{name: value for name, value in reading.items() if value is not None} for reading in readings]


class Judged:
    """What a replay of readings gave."""

    def __init__(
        self,
        folder: Path,
        readings: list[dict[str, Any]],
        noise: Mapping[str, Any] | None = None,
        **given: Any,
    ) -> None:
        paths = [folder / name for name in ("station.jsonl", "alerts.jsonl", "dead.jsonl", "scores.csv")]
        paths[0].write_text("".join(json.dumps(reading) + "\n" for reading in readings))
        what = Replay([paths[0]], alerts=paths[1], dead_letters=paths[2], scores=paths[3])
        learning = {**QUICK["learning"], "enabled": noise is None}
        settings = {**QUICK, "input": {**INPUT, **given}, "noise": noise or {}, "learning": learning}
        self.summary = replay(what, parse(settings), StopAfter())
        alerts = [msgspec.json.decode(line, type=Alert) for line in paths[1].read_bytes().splitlines()]
        self.alerts = {alert.source.offset: alert for alert in alerts}
        self.dead = [json.loads(line) for line in paths[2].read_bytes().splitlines()]
        self.scores = paths[3].read_text()

    @cached_property
    def raw(self) -> list[str]:
        """Raw scores of all readings, as they are written."""
        return [row["raw_score"] for row in csv.DictReader(io.StringIO(self.scores))]


def imputed(alert: Alert) -> list[str]:
    return sorted(feature.name for feature in alert.features if feature.imputed)


def test_an_alert_says_which_sensor_was_silent_and_trusts_itself_less(tmp_path: Path) -> None:
    bad = station(temperature={1_200: 60.0, 1_300: 60.0}, pressure={1_300: None})
    judged = Judged(tmp_path, bad)
    whole, lacking = judged.alerts[1_200], judged.alerts[1_300]
    assert (imputed(whole), whole.confidence) == ([], 1.0)
    assert imputed(lacking) == ["pressure"]
    assert lacking.confidence == pytest.approx(2 / 3)
    assert lacking.features[0].name == "temperature"


def test_a_count_that_is_only_sent_when_there_is_one_is_zero_in_between(tmp_path: Path) -> None:
    counts = {i: 4.0 if i % 3 == 0 else None for i in range(N)} | {1_300: 90.0}
    readings = station(errors=counts, temperature={1_201: 60.0})
    judged = Judged(tmp_path, readings, missing={"features": {"errors": "zero"}})
    told = judged.alerts[1_300].features[0]
    assert (told.name, told.actual) == ("errors", 90.0)
    quiet = judged.alerts[1_201]
    assert (imputed(quiet), quiet.confidence) == ([], 1.0)
    assert {feature.name: feature.actual for feature in quiet.features}["errors"] == 0.0


def test_what_is_no_number_is_a_dead_letter_where_absence_means_zero(tmp_path: Path) -> None:
    readings = station(errors={700: "offline", 800: None})
    judged = Judged(tmp_path, readings, missing={"features": {"errors": "zero"}})
    assert (judged.summary["events"], judged.summary["rejected"]) == (N - 1, 1)
    (letter,) = judged.dead
    assert (letter["reason"], letter["offset"]) == ("invalid_value", 700)
    assert "errors" in letter["error"]


def test_a_reading_without_the_number_that_matters_is_a_dead_letter_with_its_name(tmp_path: Path) -> None:
    silent = {700: None, 900: None}
    judged = Judged(tmp_path, station(pressure=silent), missing={"features": {"pressure": "reject"}})
    assert (judged.summary["events"], judged.summary["rejected"]) == (N - 2, 2)
    assert [letter["reason"] for letter in judged.dead] == ["missing_value"] * 2
    assert all("'pressure'" in letter["error"] for letter in judged.dead)


def test_what_stands_for_missing_values_does_not_depend_on_batches(tmp_path: Path) -> None:
    silent = dict.fromkeys(range(0, N, 7))
    judged = [
        Judged(tmp_path, station(pressure=silent), missing={"default": "last"}, batch={"max_events": size})
        for size in (1, 333, 16_384)
    ]
    assert judged[0].scores == judged[1].scores == judged[2].scores
    by_mean = Judged(tmp_path, station(pressure=silent))
    assert by_mean.scores != judged[0].scores


@pytest.mark.parametrize("stand_in", ["mean", "last"])
def test_what_is_out_of_the_question_alerts_and_stands_for_no_missing_value(
    tmp_path: Path, stand_in: str
) -> None:
    broken, silent = dict.fromkeys(range(1_000, 1_004), -9_999.0), dict.fromkeys(range(1_004, 1_040))
    strange: dict[str, Any] = {"temperature": silent, "pressure": {1_030: 9.0}}
    given: dict[str, Any] = {"missing": {"default": stand_in}}
    ranged = {"features": {"temperature": {"range": [-50, 100]}}}
    bad, lacking = station(**strange), station(**strange)
    for i, value in broken.items():
        bad[i]["temperature"] = value
        del lacking[i]["temperature"]
    found, expected = Judged(tmp_path, bad, ranged, **given), Judged(tmp_path, lacking, ranged, **given)
    for i in broken:
        alert = found.alerts[i]
        assert (alert.reason, alert.features[0].name, alert.features[0].actual) == (
            "range",
            "temperature",
            -9_999.0,
        )
    assert found.alerts[1_030].features[0].name == "pressure"
    assert imputed(found.alerts[1_030]) == ["temperature"]
    others = [i for i in range(N) if i not in broken]
    assert [found.raw[i] for i in others] == [expected.raw[i] for i in others]
    without_range = Judged(tmp_path, bad, {}, **given)
    assert [without_range.raw[i] for i in others] != [expected.raw[i] for i in others]


def test_a_name_that_is_no_numeric_feature_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="pressur: there is no such feature; the numeric ones are temperature, pressure"
    ):
        Judged(tmp_path, station(), missing={"features": {"pressur": "last"}})
