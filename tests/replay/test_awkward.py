"""Data as plants and payment systems send them: what a person on call is told of by default, and what not."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fakes import StopAfter
from numpy.typing import NDArray

from streamdet.config import parse
from streamdet.events import Alert
from streamdet.replaying import Replay, replay

N = 4_000
AT = 3_000  # where what is awkward begins
SOON = 30  # rows within which somebody wants to know
# Flags besides those for what was planted: the asked rate of 0.1 % of 3,600 rows, and as many again and some.
CALM_MAX = 12

Columns = dict[str, NDArray[Any]]


def plant(n: int = N, seed: int = 0) -> Columns:
    """Three sensors that follow one load, and a set point that nobody changes."""
    rng = np.random.default_rng(seed)
    load = np.sin(2 * np.pi * np.arange(n) / 500)
    for i in range(1, n):
        load[i] += 0.9 * (load[i - 1] - math.sin(2 * math.pi * (i - 1) / 500)) + 0.05 * rng.normal()
    return {
        "temperature": 60 + 5 * load + 0.3 * rng.normal(size=n),
        "pressure": 3 + 0.5 * load + 0.03 * rng.normal(size=n),
        "flow": 10 - 2 * load + 0.1 * rng.normal(size=n),
        "set_point": np.full(n, 50.0),
    }


def metric(n: int = N, seed: int = 0) -> Columns:
    """One number that goes up and down with the day, every five minutes."""
    return {
        "load": 100 + 20 * np.sin(2 * np.pi * np.arange(n) / 288) + np.random.default_rng(seed).normal(size=n)
    }


@dataclass(frozen=True)
class Found:
    """What was told of a stream."""

    alerts: Mapping[int, Alert]  # by row
    rejected: int

    def first(self, start: int = AT, rows: int = SOON) -> Alert:
        """The first alert from a row on; fails where none comes soon."""
        soon = [row for row in self.alerts if start <= row < start + rows]
        assert soon, f"no alert in rows {start} to {start + rows}; there are some at {sorted(self.alerts)}"
        return self.alerts[min(soon)]

    def besides(self, *planted: range) -> list[int]:
        """Rows with alerts that were not planted."""
        return [row for row in self.alerts if not any(row in rows for rows in planted)]


def told(
    folder: Path,
    columns: Columns,
    *,
    times_ms: NDArray[np.int64] | None = None,
    absent: Mapping[str, range] | None = None,
) -> Found:
    """Replay the rows at the default settings; NaN is null, and `absent` fields are left out."""
    n = len(next(iter(columns.values())))
    times_ms = 1_750_000_000_000 + 300_000 * np.arange(n) if times_ms is None else times_ms
    recording, alerts = folder / "stream.jsonl", folder / "alerts.jsonl"
    with recording.open("w") as file:
        for i in range(n):
            row: dict[str, object] = {"ts": int(times_ms[i])}
            for name, values in columns.items():
                if i not in (absent or {}).get(name, range(0)):
                    value = values[i]
                    row[name] = value if isinstance(value, str) else None if np.isnan(value) else float(value)
            file.write(json.dumps(row) + "\n")
    summary = replay(Replay([recording], alerts=alerts), parse({"model": {"device": "cpu"}}), StopAfter())
    found = [msgspec.json.decode(line, type=Alert) for line in alerts.read_bytes().splitlines()]
    return Found({alert.source.offset: alert for alert in found}, summary["rejected"])


@pytest.mark.parametrize("stream", [plant, metric])
def test_nothing_awkward_is_nearly_nothing_told(stream: Callable[[], Columns], tmp_path: Path) -> None:
    assert len(told(tmp_path, stream()).alerts) <= CALM_MAX


def test_a_set_point_that_starts_to_move_is_told_and_named(tmp_path: Path) -> None:
    columns = plant()
    columns["set_point"][AT:] = 51.0
    found = told(tmp_path, columns)
    assert found.first().features[0].name == "set_point"


def test_a_sensor_that_drops_to_zero_is_told_and_named(tmp_path: Path) -> None:
    columns = plant()
    columns["flow"][AT:] = 0.0
    assert told(tmp_path, columns).first().features[0].name == "flow"


def test_a_sensor_that_is_stuck_is_told(tmp_path: Path) -> None:
    columns = plant()
    columns["temperature"][AT : AT + 300] = columns["temperature"][AT]
    assert told(tmp_path, columns).first(rows=250).features[0].name == "temperature"


def test_another_unit_is_told_and_named(tmp_path: Path) -> None:
    columns = plant()
    columns["pressure"][AT:] *= 1_000
    assert told(tmp_path, columns).first().features[0].name == "pressure"


def test_a_metric_that_steps_drops_stands_still_or_changes_its_unit_is_told(tmp_path: Path) -> None:
    for change in ("step", "zero", "still", "unit"):
        columns = metric()
        load = columns["load"]
        if change == "step":
            load[AT:] += 60
        elif change == "zero":
            load[AT:] = 0
        elif change == "still":
            load[AT : AT + 60] = load[AT]
        else:
            load[AT:] *= 1_000
        found = told(tmp_path, columns)
        assert found.first(), change


def test_a_counter_that_resets_neither_floods_anybody_nor_hides_the_others(tmp_path: Path) -> None:
    columns = plant()
    columns["energy"] = np.cumsum(np.abs(columns["flow"]))
    columns["energy"][AT:] -= columns["energy"][AT]
    columns["temperature"][AT - 500] += 35.0
    columns["temperature"][AT + 500] += 35.0
    found = told(tmp_path, columns)
    assert found.first(AT - 500, 1).features[0].name == "temperature"
    assert found.first(AT + 500, 1).features[0].name == "temperature"
    assert len(found.alerts) <= 3 * CALM_MAX


def test_missing_values_are_no_news_and_are_marked(tmp_path: Path) -> None:
    columns = plant()
    rng = np.random.default_rng(1)
    for name in ("temperature", "pressure", "flow"):
        columns[name][rng.random(N) < 0.1] = np.nan
    columns["temperature"][AT] = 95.0
    columns["flow"][AT] = np.nan
    found = told(tmp_path, columns)
    alert = found.first(rows=1)
    assert alert.features[0].name == "temperature"
    assert [f.actual for f in alert.features if f.name == "flow"] == [None]
    assert len(found.besides(range(AT, AT + 5))) <= CALM_MAX


def test_a_feature_that_disappears_and_comes_back_leaves_the_others_watched(tmp_path: Path) -> None:
    columns = plant()
    columns["temperature"][AT + 200] = 95.0
    found = told(tmp_path, columns, absent={"flow": range(AT, AT + 500)})
    assert found.first(AT + 200, 1).features[0].name == "temperature"
    # While it is away, a model that has learnt it judges the others by what stands for it.
    assert len(found.besides(range(AT + 200, AT + 205))) <= CALM_MAX + 4


@pytest.mark.parametrize("stream", [plant, metric])
def test_times_that_repeat_go_back_or_leap_reject_nothing_and_tell_nothing(
    stream: Callable[[], Columns], tmp_path: Path
) -> None:
    rng = np.random.default_rng(2)
    steps = rng.exponential(300_000, N).astype(np.int64)
    steps[rng.random(N) < 0.1] = 0
    steps[rng.random(N) < 0.02] = -600_000
    steps[AT] = 86_400_000 * 3
    found = told(tmp_path, stream(), times_ms=1_750_000_000_000 + np.cumsum(steps))
    assert found.rejected == 0
    assert len(found.alerts) <= CALM_MAX


def test_heavy_tails_are_told_no_more_often_than_asked(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    found = told(tmp_path, {f"amount_{i}": rng.standard_t(2, N) for i in range(3)})
    assert len(found.alerts) <= CALM_MAX


def test_a_category_that_was_never_there_is_told_and_named_once_it_is_usual_it_is_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    columns: Columns = {
        "amount": rng.lognormal(3, 1, N),
        "duration": rng.exponential(5, N),
        "channel": np.array(["web", "shop", "phone"], object)[rng.integers(0, 3, N)],
    }
    columns["channel"][AT] = "telex"
    columns["channel"][AT + 300 :][rng.random(N - AT - 300) < 0.2] = "app"
    found = told(tmp_path, columns)
    assert found.first(rows=1).features[0].name == "channel"
    assert found.first(AT + 300).features[0].name == "channel"
    assert len(found.besides(range(AT, AT + 1), range(AT + 300, AT + 400))) <= CALM_MAX


def test_a_field_that_appears_is_no_feature_and_no_news(tmp_path: Path) -> None:
    columns = plant()
    columns["vibration"] = np.random.default_rng(5).normal(size=N)
    found = told(tmp_path, columns, absent={"vibration": range(AT)})
    assert found.rejected == 0
    assert {share.name for alert in found.alerts.values() for share in alert.features} <= columns.keys() - {
        "vibration"
    }
    assert not [row for row in found.alerts if AT <= row < AT + SOON]
