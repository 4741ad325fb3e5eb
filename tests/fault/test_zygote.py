"""The machinery itself: forks are whole processes, die where they are told to, and none is left behind."""

import os
import signal
from pathlib import Path

import pytest
from live import until

from fault.crash import STEPS, target
from fault.zygote import Zygote


def test_a_fork_runs_the_command_line_with_its_own_folder_log_and_exit_code(
    zygote: Zygote, tmp_path: Path
) -> None:
    (tmp_path / "bad.yaml").write_text("input: {topik: x}")
    log = tmp_path / "log"
    assert zygote.fork(["check", "-c", "bad.yaml"], tmp_path, log).wait(30) == 2
    assert "input.topik: unknown key" in log.read_text()
    assert zygote.fork(["--version"], tmp_path, log).wait(30) == 0


def test_none_is_left_behind_whether_the_zygote_is_closed_or_killed(tmp_path: Path) -> None:
    """Each child waits for a Kafka that is not there."""
    (tmp_path / "c.yaml").write_text("{kafka: {bootstrap_servers: '127.0.0.1:1'}, input: {topics: [t]}}")

    def waiting(zygote: Zygote, name: str) -> int:
        log = tmp_path / name
        child = zygote.fork(["run", "-c", "c.yaml"], tmp_path, log)
        log.touch()
        until(lambda: "kafka away" in log.read_text(), "a child at work")
        return child.pid

    with Zygote() as closed:
        pids = [waiting(closed, "first")]
        os.kill(pids[0], signal.SIGSTOP)
    with Zygote() as killed:
        pids.append(waiting(killed, "second"))
        killed.kill()
        until(lambda: not any(map(_lives, pids)), "the end of both", within_s=10)


def _lives(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("name", STEPS)
def test_every_step_names_something_that_there_is(name: str) -> None:
    """Else its kill would never come."""
    assert callable(target(STEPS[name]))
