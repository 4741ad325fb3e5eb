"""Replay is the same program: the same recording gives the same verdicts, however it is cut, paced or interrupted.

Scores are compared as files, byte by byte; what a worker keeps, by the digests of its newest checkpoints.
"""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fakes import QUICK, FakeSink, Group, StopAfter, readings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamdet.checkpoint.format import digest
from streamdet.config import parse
from streamdet.errors import ConfigError
from streamdet.events import Alert, LaneId
from streamdet.replaying import Replay, replay
from streamdet.sink.recording import RecordingWriter
from streamdet.source.recording import RecordingSource
from streamdet.worker import run

LANE = LaneId("plant", 0)
N = 2_700
SPIKES = (700, 1_100, 1_101, 1_500, 1_900, 2_300, 2_650)
GARBAGE: dict[int, bytes] = {5: b"{", 300: b"\xff", 900: b"nothing", 1_099: b"[1]", 2_000: b'{"ts": "never"}'}
# The runs of the quick settings start at 256, 512, 1,024 and 2,304, and are adopted 0, 0, 300 and 300 events later.
STOPS = (1, 256, 1_024, 1_100, 1_324, 2_400)


def stream(seed: int = 3) -> list[bytes]:
    """Entities, categories, missing values, anomalies and garbage."""
    made = readings(N, seed, SPIKES, missing=0.05)
    return [GARBAGE.get(i, value or b"") for i, value in enumerate(made)]


VALUES = stream()


def written(folder: Path, values: Sequence[bytes]) -> Path:
    path = folder / "plant.jsonl"
    path.write_bytes(b"".join(value + b"\n" for value in values))
    return path


def partitioned(folder: Path, turns: int) -> Path:
    """The same values, so many at a time to each of three partitions."""
    path, offsets = folder / "topic.parquet", [0, 0, 0]
    with RecordingWriter(path) as writer:
        for i, value in enumerate(VALUES):
            partition = i // turns % 3
            writer.write("plant", partition, offsets[partition], 1_750_000_000_000 + i, None, value)
            offsets[partition] += 1
    return path


def verdicts(alerts: Sequence[Alert]) -> list[Alert]:
    """Alerts without the moment in which they were found."""
    return [msgspec.structs.replace(alert, detected_at="") for alert in alerts]


class Outcome:
    """The files and the summary of a replay."""

    def __init__(self, folder: Path, recordings: Sequence[Path], speed: float | None, **given: Any) -> None:
        tree = {**QUICK, "input": {"timestamp": "ts", "entity": "device", **given}}
        out = {name: folder / name for name in ("alerts.jsonl", "scores.csv", "rejects.jsonl")}
        what = Replay(
            recordings,
            alerts=out["alerts.jsonl"],
            scores=out["scores.csv"],
            dead_letters=out["rejects.jsonl"],
            speed=speed,
        )
        self.summary = replay(what, parse(tree), StopAfter())
        self.scores = out["scores.csv"].read_bytes()
        lines = out["alerts.jsonl"].read_bytes().splitlines()
        self.alerts = [msgspec.json.decode(line, type=Alert) for line in lines]
        self.rejects = [json.loads(line) for line in out["rejects.jsonl"].read_bytes().splitlines()]

    @property
    def verdicts(self) -> list[Alert]:
        return verdicts(self.alerts)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("recording"), VALUES)


@pytest.fixture(scope="module")
def reference(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The replay that all others are compared with."""
    return Outcome(tmp_path_factory.mktemp("reference"), [recording], None)


def test_the_planted_anomalies_are_found_and_garbage_ends_as_dead_letters(reference: Outcome) -> None:
    assert {alert.source.offset for alert in reference.alerts} >= set(SPIKES)
    assert [letter["offset"] for letter in reference.rejects] == sorted(GARBAGE)
    assert reference.summary["events"] + reference.summary["rejected"] == N
    assert reference.summary["alerts"] == len(reference.alerts) < 60
    assert reference.summary["model_versions"] >= 3


@pytest.mark.parametrize("max_events", [1, 64, 1_000_000])
def test_batches_of_any_size_give_the_same_bytes(
    recording: Path, reference: Outcome, tmp_path: Path, max_events: int
) -> None:
    other = Outcome(tmp_path, [recording], None, batch={"max_events": max_events})
    assert other.scores == reference.scores
    assert other.verdicts == reference.verdicts


@settings(max_examples=2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(max_events=st.integers(2, 5_000))
def test_batches_of_a_random_size_do_too(
    recording: Path, reference: Outcome, tmp_path: Path, max_events: int
) -> None:
    other = Outcome(tmp_path, [recording], None, batch={"max_events": max_events})
    assert other.scores == reference.scores
    assert other.verdicts == reference.verdicts


def test_a_paced_replay_gives_the_same_bytes(recording: Path, reference: Outcome, tmp_path: Path) -> None:
    other = Outcome(tmp_path, [recording], speed=2_000.0)
    assert other.scores == reference.scores
    assert other.verdicts == reference.verdicts


def test_a_stream_in_several_files_is_one_stream(reference: Outcome, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("one.jsonl", "two.jsonl")]
    for path, values in zip(paths, (VALUES[:1_111], VALUES[1_111:]), strict=True):
        path.write_bytes(b"".join(value + b"\n" for value in values))
    other = Outcome(tmp_path, paths, None)
    assert other.scores == reference.scores
    assert other.verdicts == reference.verdicts


@pytest.mark.parametrize("turns", [7])
def test_batches_of_any_size_give_the_same_bytes_for_partitions_that_take_turns(
    tmp_path: Path, turns: int
) -> None:
    """One model learns from all partitions, so the order between them counts too."""
    path = partitioned(tmp_path, turns)
    one, other = (
        Outcome(tmp_path, [path], None, batch={"max_events": max_events}) for max_events in (50, 4096)
    )
    assert one.scores == other.scores
    # In a micro-batch a partition's alerts come together, so how they take turns is a matter of its size.
    by_id = [sorted(which.verdicts, key=lambda alert: alert.id) for which in (one, other)]
    assert by_id[0] == by_id[1]


def test_a_replay_of_several_partitions_stops_and_goes_on_in_each(tmp_path: Path) -> None:
    path = partitioned(tmp_path, turns=7)

    def judge(name: str, *batches: float) -> tuple[FakeSink, dict[str, str]]:
        """One worker after the other, each for so many batches."""
        group, sink, source = Group(tmp_path / name), FakeSink(), RecordingSource([path], 90)
        for n in batches:
            stop, before, source = StopAfter(n), source, RecordingSource([path], 90)
            positions = {lane: before.committed(lane) for lane in before.lanes}
            source.commit({lane: at for lane, at in positions.items() if at is not None})
            run(group.worker(source, sink, observers=[stop]), stop)
        return sink, kept(group)

    whole, kept_whole = judge("whole", math.inf)
    halves, kept_in_two = judge("halves", 13, math.inf)
    assert verdicts(halves.alerts) == verdicts(whole.alerts)
    assert halves.rejects == whole.rejects
    assert len(kept_whole) == 4
    assert kept_whole == kept_in_two


@settings(max_examples=2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(1, N - 1), seed=st.integers(10, 1_000))
def test_what_comes_later_does_not_change_a_verdict(
    reference: Outcome, tmp_path: Path, n: int, seed: int
) -> None:
    changed = [*VALUES[:n], *stream(seed)[n:]]
    other = Outcome(tmp_path, [written(tmp_path, changed)], None)
    judged = n - sum(at < n for at in GARBAGE)
    assert other.scores.splitlines()[: 1 + judged] == reference.scores.splitlines()[: 1 + judged]
    before = [alert for alert in reference.verdicts if alert.source.offset < n]
    assert other.verdicts[: len(before)] == before


def kept(group: Group) -> dict[str, str]:
    """Digests of the newest state of each lane and of the learner."""
    shelf = group.shelf
    lanes = {LaneId(e.topic, e.partition) for e in shelf.entries() if e.topic and e.partition is not None}
    found = {str(lane): shelf.lane(lane, "", None) for lane in lanes} | {"learner": shelf.learner()}
    return {name: digest(state.state) for name, state in found.items() if state is not None}


class Interrupted:
    """A stream judged by one worker after the other, each until its part of the records is at an end."""

    def __init__(self, folder: Path) -> None:
        self.group = Group(folder, keep=1_000)
        self.sink = FakeSink()

    def judge(self, until: int) -> None:
        """Go on until this offset."""
        source = self.group.source({LANE: VALUES[:until]}, per_poll=500)
        run(self.group.worker(source, self.sink), StopAfter())

    @property
    def files(self) -> set[Path]:
        """All that is kept."""
        return {path for path in self.group.folder.rglob("*") if path.is_file()}

    def lose_all_but(self, files: set[Path]) -> None:
        """As after a crash before the others were written; the models were, when they were adopted."""
        for path in self.files - files:
            if path.parent.name != "models":
                path.unlink()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    whole = Interrupted(tmp_path_factory.mktemp("whole"))
    whole.judge(N)
    return whole


def assert_same(one: Interrupted, other: Interrupted) -> None:
    assert verdicts(one.sink.alerts) == verdicts(other.sink.alerts)
    assert one.sink.rejects == other.sink.rejects
    assert kept(one.group) == kept(other.group)


@pytest.mark.parametrize("stop", STOPS)
def test_a_stop_and_a_restart_leave_no_trace(uninterrupted: Interrupted, tmp_path: Path, stop: int) -> None:
    halves = Interrupted(tmp_path)
    halves.judge(stop)
    halves.judge(N)
    assert_same(halves, uninterrupted)


@settings(max_examples=2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.lists(st.integers(1, N), min_size=2, max_size=3))
def test_several_stops_anywhere_leave_no_trace(
    uninterrupted: Interrupted, tmp_path_factory: pytest.TempPathFactory, stops: list[int]
) -> None:
    parts = Interrupted(tmp_path_factory.mktemp("parts"))
    for stop in [*sorted(stops), N]:
        parts.judge(stop)
    assert_same(parts, uninterrupted)


@pytest.mark.parametrize(("saved", "committed"), [(200, 1_105), (1_100, 1_400), (1_250, 1_250)])
def test_after_a_crash_nothing_is_lost_or_repeated_if_offsets_were_committed(
    uninterrupted: Interrupted, tmp_path: Path, saved: int, committed: int
) -> None:
    """The newest checkpoint is older than what was published and committed."""
    crashed = Interrupted(tmp_path)
    crashed.judge(saved)
    old = crashed.files
    crashed.judge(committed)
    crashed.lose_all_but(old)
    crashed.judge(N)
    assert_same(crashed, uninterrupted)
    ids = crashed.sink.ids
    assert len(set(ids)) == len(ids)


def test_after_a_crash_before_the_commit_alerts_are_repeated_with_the_same_ids(
    uninterrupted: Interrupted, tmp_path: Path
) -> None:
    crashed = Interrupted(tmp_path)
    crashed.judge(1_000)
    old, position = crashed.files, (crashed.group.offsets[LANE], crashed.group.notes[LANE])
    crashed.judge(2_000)
    crashed.lose_all_but(old)
    crashed.group.offsets[LANE], crashed.group.notes[LANE] = position
    crashed.judge(N)
    ids = crashed.sink.ids
    assert set(ids) == set(uninterrupted.sink.ids)
    assert len(ids) > len(set(ids))
    assert kept(crashed.group) == kept(uninterrupted.group)


def csv_rows(n: int = 2_000) -> str:
    """A CSV as people have it: a time as text, an empty cell here and there, words, a label, and a broken row."""
    rng = np.random.default_rng(4)
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["when", "line", "temp", "speed", "label"])
    for i in range(n):
        bad = i >= 1_200 and i % 200 == 0
        temp = 95.0 if bad else 60 + float(rng.normal())
        when = f"2026-03-01T{i // 3600:02d}:{i // 60 % 60:02d}:{i % 60:02d}Z"
        speed = "" if rng.random() < 0.02 else round(float(rng.normal()), 3)
        table.writerow([when, "ab"[i % 2], round(temp, 3), speed, int(bad)])
        if i == 500:
            out.write("2026-03-01T00:00:00Z,a\n")
    return out.getvalue()


def test_a_csv_needs_no_configuration_at_all(tmp_path: Path) -> None:
    path, alerts = tmp_path / "line.csv", tmp_path / "alerts.jsonl"
    path.write_text(csv_rows())
    summary = replay(Replay([path], alerts=alerts), parse({}), StopAfter())
    assert (summary["events"], summary["rejected"]) == (2_000, 1)
    assert summary["metrics"]["roc_auc"] > 0.99
    assert summary["metrics"]["recall"] >= 0.5  # of four, where one alert is asked for
    found = [msgspec.json.decode(line, type=Alert) for line in alerts.read_bytes().splitlines()]
    assert all(sorted(share.name for share in alert.features) == ["line", "speed", "temp"] for alert in found)
    assert all(alert.features[0].name == "temp" for alert in found if alert.event["label"] == 1)
    assert min(alert.event_time for alert in found if alert.event["label"] == 1) == "2026-03-01T00:20:00.000Z"


def test_a_label_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "line.csv"
    path.write_text(csv_rows(10))
    with pytest.raises(
        ConfigError, match="--label nope: there is no such column; there are label, line, speed"
    ):
        replay(Replay([path], label="nope"), parse({}), StopAfter())
