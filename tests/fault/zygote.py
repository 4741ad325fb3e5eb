"""A parent that has imported and compiled everything a worker needs, and forks a worker for each order.

A worker takes seconds to start, nearly all of them for imports, and a hundred restarts would take minutes. A forked one
is at work after tens of milliseconds and runs the very command line: `streamdet.cli.main` with the arguments of the
order, in a folder, process group and log of its own, and with the parent's only thread as its only thread. The last
is what makes forking safe, so it is asserted before each fork.

Nothing is left behind: the parent ends its children when the client's end of its pipe closes, however that came about,
and the kernel ends them when the parent is killed.

As a program this is the parent; orders and answers are lines of JSON on standard input and output.
"""

import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

TESTS = Path(__file__).resolve().parents[1]
READY_MAX_S = 60.0
PR_SET_PDEATHSIG = 1
# Libraries that start threads when they are imported or first used are told not to.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "PYTHONUNBUFFERED": "1",
}


class Forked:
    """A process that the zygote forked, with what tests use of `subprocess.Popen`."""

    def __init__(self, zygote: "Zygote", pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._zygote = zygote

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            self.returncode = self._zygote.ask(poll=self.pid)["code"]
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once there is one."""
        end_s = time.monotonic() + (timeout if timeout is not None else float("inf"))
        while (code := self.poll()) is None:
            if time.monotonic() > end_s:
                raise subprocess.TimeoutExpired(f"worker {self.pid}", timeout or 0.0)
            time.sleep(0.002)
        return code

    def send_signal(self, number: int) -> None:
        """Nothing happens if it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Zygote:
    """The client's side: starts the parent, gives orders."""

    def __init__(self) -> None:
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "fault.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C in the terminal is the tests' business
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
        )
        assert self._answer() == {"ready": True}

    def fork(self, arguments: Sequence[str], folder: Path, log: Path, crash: str = "") -> Forked:
        """Run `streamdet ARGUMENTS` in the folder; it kills itself where `crash` says (see `crash.py`)."""
        order = {
            "run": list(arguments),
            "folder": str(folder.resolve()),
            "log": str(log.resolve()),
            "crash": crash,
        }
        return Forked(self, self.ask(**order)["pid"])

    def ask(self, **order: Any) -> dict[str, Any]:
        """What the parent answers."""
        assert self._parent.stdin is not None
        self._parent.stdin.write(json.dumps(order) + "\n")
        self._parent.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._parent.stdout is not None
        line = self._parent.stdout.readline()
        assert line, f"the zygote ended with exit code {self._parent.wait(READY_MAX_S)}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def kill(self) -> None:
        """End the parent as a crash would."""
        self._parent.kill()

    def close(self) -> None:
        """End it and all its children."""
        for pipe in (self._parent.stdin, self._parent.stdout):
            assert pipe is not None
            pipe.close()
        self._parent.wait(READY_MAX_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _prepare() -> None:
    """Import and compile what a worker needs; no thread may come of it."""
    import torch

    torch.set_num_threads(1)
    import torch.nested._internal.nested_tensor

    import streamdet.broker.publisher
    import streamdet.cli
    import streamdet.sink.kafka
    import streamdet.source.kafka  # noqa: F401
    from streamdet import app

    app.compile_kernels()
    gc.freeze()  # else each child touches, and copies, all objects when it ends: a second


def _threads() -> list[str]:
    return [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]


def _serve(children: dict[int, int | None]) -> dict[str, Any] | None:
    """Answer orders until there are no more: then None. In a child: the order that it is to carry out."""
    for line in sys.stdin:
        order = json.loads(line)
        if "poll" in order:
            pid = order["poll"]
            if children[pid] is None:
                ended, status = os.waitpid(pid, os.WNOHANG)
                children[pid] = os.waitstatus_to_exitcode(status) if ended else None
            answer: dict[str, Any] = {"code": children[pid]}
        else:
            threads = _threads()
            assert len(threads) == 1, f"forking is safe with one thread only, there are {threads}"
            parent, pid = os.getpid(), os.fork()
            if pid == 0:
                _settle_in(order, parent)
                return dict(order)
            children[pid] = None
            answer = {"pid": pid}
        _tell(answer)
    return None


def _tell(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _settle_in(order: dict[str, Any], parent: int) -> None:
    """What makes a fork a process of its own."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    os.setpgid(0, 0)
    os.chdir(order["folder"])
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for old, new in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(old, new)


def main() -> None:
    """The parent; and each of its children, which end as any program does."""
    _prepare()
    _tell({"ready": True})
    children: dict[int, int | None] = {}
    order = _serve(children)
    if order is None:
        for pid in [pid for pid, code in children.items() if code is None]:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        return
    from fault import crash
    from streamdet import cli

    sys.argv = ["streamdet", *order["run"]]
    crash.arm(order["crash"])
    cli.main()


if __name__ == "__main__":
    main()
