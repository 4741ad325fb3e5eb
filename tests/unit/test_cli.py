"""The command line as scripts see it: exit codes, what goes to which stream, and that errors are sentences."""

import csv
import json
import logging
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from streamdet import cli
from streamdet.checkpoint.shelf import Shelf
from streamdet.checkpoint.store import open_store
from streamdet.clock import SystemClock
from streamdet.events import LaneId

COMMANDS = ("run", "replay", "record", "publish", "alerts", "init", "check", "checkpoints")
EVENTS = 700


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator["Call"]:
    """The command line sets log levels for its process, which is that of other tests too: they are put back."""
    loggers = logging.getLogger(), logging.getLogger("kafka")
    levels = [logger.level for logger in loggers]
    yield Call(monkeypatch, capsys)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


class Call:
    """Runs `streamdet ARGS` in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *args: object) -> Result:
        self._monkeypatch.setattr(sys, "argv", ["streamdet", *map(str, args)])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        said = self._capsys.readouterr()
        code = exited.value.code
        assert isinstance(code, int)
        return Result(code, said.out, said.err)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two machines with two related sensors; the last 20 events are broken."""
    chance = random.Random(0)
    path = tmp_path_factory.mktemp("recording") / "sensors.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ts", "device", "temperature", "pressure", "is_bad"])
        for i in range(EVENTS):
            temperature = chance.gauss(20, 1)
            bad = i >= EVENTS - 20
            pressure = 50.0 if bad else temperature / 10 + chance.gauss(0, 0.01)
            writer.writerow(
                [1_700_000_000 + i, f"m-{i % 2}", f"{temperature:.3f}", f"{pressure:.3f}", int(bad)]
            )
    return path


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "streamdet.yaml"
    path.write_text(
        "input: {topics: [sensors], timestamp: ts, entity: device, "
        "features: {numeric: [temperature, pressure]}}\n"
        "learning: {warmup: 300}\nlimit: {alert_rate: 0.005}\nmodel: {device: cpu}\n"
    )
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(call: Call, command: str) -> None:
    result = call(command, "--help")
    assert result.code == 0
    assert "Usage: streamdet" in result.out
    assert result.err == ""


def test_the_overview_names_every_command(call: Call) -> None:
    result = call("--help")
    assert result.code == 0
    assert all(f"  {command} " in result.out for command in COMMANDS)


def test_the_version_is_printed(call: Call) -> None:
    result = call("--version")
    assert result.code == 0
    assert result.out.startswith("streamdet ")


def one_line(result: Result) -> str:
    """What standard error says, which must be one sentence and no trace."""
    assert result.out == ""
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    return lines[0]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["replay"], "Missing argument"),
        (["replay", "x.csv", "--speed", "0"], "--speed"),
        (["record", "--topic", "t"], "Missing option"),
        (["record", "--topic", "t", "-o", "x", "--count", "0"], "--count"),
        (["run"], "Missing option"),
    ],
)
def test_bad_use_exits_with_2_and_usage(call: Call, args: Sequence[str], said: str) -> None:
    result = call(*args)
    assert result.code == 2
    assert said in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["alerts", "-b", "localhost:1"], "which alerts?"),
        (["alerts", "-b", "localhost:1", "--topic", "t", "--since", "soon"], "--since takes"),
        (["publish", "x.csv", "--topic", "t"], "which Kafka?"),
        (["publish", "x.csv", "--topic", "t", "-b", "localhost:1", "--speed", "fast"], "--speed takes max"),
        (["init"], "either a recording"),
        (["init", "x.csv", "--topic", "t"], "either a recording"),
        (["check", "-c", "nowhere.yaml"], "cannot read the configuration"),
        (["run", "-c", "nowhere.yaml"], "cannot read the configuration"),
    ],
)
def test_a_bad_request_exits_with_2_and_a_sentence(call: Call, args: Sequence[str], said: str) -> None:
    result = call(*args)
    assert result.code == 2
    assert said in one_line(result)


def test_a_missing_recording_exits_with_1_and_a_sentence(call: Call, tmp_path: Path) -> None:
    result = call("replay", tmp_path / "nowhere.csv")
    assert result.code == 1
    assert "does not exist" in one_line(result)


def test_every_unknown_key_is_named(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("input: {topics: [a], topic: b}\nmodle: {}\n")
    result = call("check", "-c", path)
    assert result.code == 2
    assert "input.topic: unknown key; known here: topics" in result.err
    assert "modle: unknown key; known here: kafka" in result.err
    assert "Traceback" not in result.err


def test_json_is_one_object_and_nothing_else(call: Call, recording: Path, settings: Path) -> None:
    result = call("replay", recording, "-c", settings, "--label", "is_bad", "--json")
    assert result.code == 0, result.err
    summary = json.loads(result.out)
    assert result.out.count("\n") == 1
    assert result.err == ""
    assert summary["events"] == EVENTS
    assert summary["rejected"] == 0
    assert summary["device"] == "cpu"
    assert summary["alerts"] >= 3  # of a run of twenty
    assert set(summary["metrics"]) >= {"roc_auc", "average_precision", "precision", "recall", "f1"}
    assert summary["metrics"]["roc_auc"] > 0.9
    assert summary["events_per_second"] > 0
    assert summary["seconds"] > 0


def test_replay_without_a_configuration_prints_a_summary_for_people(call: Call, recording: Path) -> None:
    result = call("replay", recording)
    assert result.code == 0, result.err
    assert f"{EVENTS} events judged, 0 rejected" in result.out


def test_replay_leaves_what_every_option_asks_for(
    call: Call, recording: Path, settings: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.csv"
    broken.write_text(recording.read_text() + "1700009999,m-0,not enough\n")
    paths = {name: tmp_path / name for name in ("alerts.jsonl", "scores.csv", "dead.jsonl", "report")}
    options = ["--alerts", paths["alerts.jsonl"], "--scores", paths["scores.csv"], "--label", "is_bad"]
    options += ["--dead-letters", paths["dead.jsonl"], "--report", paths["report"], "--speed", 1e6, "-v"]
    result = call("replay", broken, "-c", settings, *options, "--json")
    assert result.code == 0, result.err
    summary = json.loads(result.out)
    assert "INFO" in result.err
    alerts = [json.loads(line) for line in paths["alerts.jsonl"].read_text().splitlines()]
    assert len(alerts) == summary["alerts"]
    assert {alert["entity"] for alert in alerts} == {"m-0", "m-1"}
    with paths["scores.csv"].open() as file:
        scores = list(csv.DictReader(file))
    expected = ["timestamp", "entity", "raw_score", "limit", "score", "p_value", "mode", "flagged"]
    assert list(scores[0]) == expected
    assert len(scores) == summary["events"] == EVENTS
    assert len(paths["dead.jsonl"].read_text().splitlines()) == summary["rejected"] == 1
    assert Path(summary["report"]).is_file()


def test_scores_may_be_parquet(call: Call, recording: Path, settings: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    scores = tmp_path / "scores.parquet"
    assert call("replay", recording, "-c", settings, "--scores", scores).code == 0
    assert pq.read_table(scores).num_rows == EVENTS


def test_a_label_that_is_not_there_is_bad_use(call: Call, recording: Path) -> None:
    result = call("replay", recording, "--label", "nothing")
    assert result.code == 2
    assert "there is no such column; there are" in one_line(result)


def test_what_init_writes_passes_check_and_replays(call: Call, recording: Path, tmp_path: Path) -> None:
    written = tmp_path / "made.yaml"
    result = call("init", recording, "-o", written)
    assert result.code == 0, result.err
    assert result.out == ""
    result = call("check", "-c", written, "--offline")
    assert result.code == 0, result.err
    assert f"{written} is fine" in result.out
    result = call("replay", recording, "-c", written, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["events"] == EVENTS


def test_init_prints_to_standard_output_and_overwrites_nothing(
    call: Call, recording: Path, tmp_path: Path
) -> None:
    result = call("init", recording)
    assert result.code == 0
    assert "topics: [sensors]" in result.out
    mine = tmp_path / "mine.yaml"
    mine.write_text("precious")
    result = call("init", recording, "-o", mine)
    assert result.code == 2
    assert "is already there" in one_line(result)
    assert mine.read_text() == "precious"


def test_check_says_every_error_and_exits_with_2(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"input: {{topics: ['a b']}}\ncheckpoint: {{url: '{path}'}}\n")
    result = call("check", "-c", path, "--offline")
    assert result.code == 2
    assert result.err.count("error: ") == len(result.err.splitlines()) == 2
    assert "is fine" not in result.out


def test_check_without_kafka_says_so_soon(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("kafka: {bootstrap_servers: 'localhost:1'}\ninput: {topics: [a]}\n")
    result = call("check", "-c", path)
    assert result.code == 2
    assert "Kafka at localhost:1 cannot be reached" in result.err


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Shelf]:
    """A configuration, and the shelf of its group with four checkpoints of a lane, the last two of equal state."""
    config, folder = tmp_path / "streamdet.yaml", tmp_path / "state"
    config.write_text(f"input: {{topics: [plant], group_id: g}}\ncheckpoint: {{url: {folder}, keep: 2}}\n")
    shelf = Shelf(open_store(str(folder)), "g", 9, SystemClock())
    for at in (10, 20, 30, 30):
        shelf.put_lane(LaneId("plant", 3), "id", at, {"next_offset": at, "timeline": [[at, "v1"]]})
    return config, shelf


def listed(result: Result) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(result.out)["checkpoints"]
    return entries


def test_checkpoints_lists_what_a_group_has_with_digests_of_states(
    call: Call, saved: tuple[Path, Shelf]
) -> None:
    config, _ = saved
    result = call("checkpoints", "-c", config, "--json")
    assert result.code == 0
    entries = listed(result)
    assert [(e["kind"], e["topic"], e["partition"], e["at"]) for e in entries] == [
        ("lane", "plant", 3, at) for at in (10, 20, 30, 30)
    ]
    assert {e["version"] for e in entries} == {"v1"}
    digests = [e["digest"] for e in entries]
    assert digests[2] == digests[3]
    assert len(set(digests)) == 3
    shown = call("checkpoints", "-c", config).out.splitlines()
    assert shown[0].split()[:3] == ["kind", "partition", "at"]
    assert [line.split()[1:3] for line in shown[1:]] == [["plant/3", str(at)] for at in (10, 20, 30, 30)]


def test_checkpoints_prunes_all_but_the_newest_and_what_is_pinned(
    call: Call, saved: tuple[Path, Shelf]
) -> None:
    config, shelf = saved
    first = shelf.entries()[0].name
    kept = listed(call("checkpoints", "-c", config, "--pin", first, "--prune", "--json"))
    assert [(e["at"], e["pinned"]) for e in kept] == [(10, True), (30, False), (30, False)]
    kept = listed(call("checkpoints", "-c", config, "--unpin", first, "--prune", "--json"))
    assert [e["at"] for e in kept] == [30, 30]


def test_checkpoints_says_which_one_a_worker_would_refuse(call: Call, saved: tuple[Path, Shelf]) -> None:
    config, shelf = saved
    torn = shelf.entries()[1].name
    path = config.parent / "state" / torn
    path.write_bytes(path.read_bytes()[:100])
    result = call("checkpoints", "-c", config)
    assert result.code == 1
    (line,) = [line for line in result.out.splitlines() if "REFUSED" in line]
    assert torn in line
    assert "torn" in line


def test_checkpoints_of_a_group_that_has_none_are_said_to_be_none(call: Call, tmp_path: Path) -> None:
    config = tmp_path / "streamdet.yaml"
    config.write_text(f"checkpoint: {{url: {tmp_path / 'nowhere'}}}\n")
    result = call("checkpoints", "-c", config)
    assert (result.code, result.out) == (0, "")
    assert "no checkpoints of group 'streamdet'" in result.err
    result = call("checkpoints", "-c", config, "--pin", "absent")
    assert result.code == 1
    assert "there is no checkpoint" in result.err
    assert not (tmp_path / "nowhere").exists()
