"""`scripts/chaos` for some minutes: what it counts, and that it leaves nothing running."""

import json
import signal
import subprocess
from pathlib import Path

import pytest
from kafka_artifacts import ROOT
from live import until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

MINUTES = 3
OVERHEAD_MAX_S = 600


def command(out: Path, seed: int, minutes: float) -> list[str]:
    script = str(ROOT / "scripts" / "chaos")
    return [script, "--minutes", str(minutes), "--seed", str(seed), "--json", "--out", str(out)]


def test_nothing_is_lost_or_repeated_in_three_minutes(fault_seed: int, tmp_path: Path) -> None:
    done = subprocess.run(
        command(tmp_path / "out", fault_seed, MINUTES),
        capture_output=True,
        text=True,
        timeout=MINUTES * 60 + OVERHEAD_MAX_S,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    (line,) = done.stdout.splitlines()
    summary = json.loads(line)
    assert list(summary) == [
        "faults", "events", "lost", "repeated", "alerts_equal", "max_rss_mb", "longest_gap_s",
    ]  # fmt: skip
    assert (summary["lost"], summary["repeated"], summary["alerts_equal"]) == (0, 0, True)
    assert summary["faults"] >= 3 * MINUTES
    assert summary["events"] > 0
    assert not living_in(tmp_path)


def test_it_leaves_nothing_running_when_it_is_told_to_end_amid_a_fault(
    fault_seed: int, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        started = subprocess.Popen(command(tmp_path / "out", fault_seed, 5), stdout=file, stderr=file)
    try:
        until(lambda: "kill " in log.read_text() or started.poll() is not None, "a fault", 150)
        started.send_signal(signal.SIGTERM)
        assert started.wait(120) == 128 + signal.SIGTERM, log.read_text()
    finally:
        started.kill()
    assert not living_in(tmp_path)


def living_in(folder: Path) -> list[str]:
    """Processes that work in a folder, as workers and brokers do in theirs."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            where = (process / "cwd").resolve(strict=True)
        except OSError:
            continue
        if where.is_relative_to(folder):
            found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found
