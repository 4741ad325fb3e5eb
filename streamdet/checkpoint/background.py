"""Saving beside judging: one thread that does jobs in order, and a loop that asks how they went."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

from streamdet.errors import CheckpointError


class Result(NamedTuple):
    """How a job went."""

    label: str
    error: CheckpointError | None
    seconds: float


class Background:
    """A thread for saving. All methods belong to the thread that made it."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._jobs: deque[Future[Result]] = deque()

    @property
    def busy(self) -> bool:
        """Whether a job is waiting or under way."""
        return any(not job.done() for job in self._jobs)

    def submit(self, label: str, job: Callable[[], object]) -> None:
        """Do this after all that was submitted before."""
        self._jobs.append(self._executor.submit(_done, label, job))

    def take_results(self) -> list[Result]:
        """What has ended since the last call, in order.

        A store that fails is a result; whatever else a job raised is a defect, and raised here.
        """
        results = []
        while self._jobs and self._jobs[0].done():
            results.append(self._jobs.popleft().result())
        return results

    def drain(self, timeout_s: float) -> bool:
        """Wait until nothing is left to do; False if that takes longer."""
        return not wait(self._jobs, timeout_s).not_done

    def close(self) -> None:
        """Finish the job under way and leave out those waiting; results can still be taken."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._jobs = deque(job for job in self._jobs if not job.cancelled())


def _done(label: str, job: Callable[[], object]) -> Result:
    started_s = time.monotonic()
    error = None
    try:
        job()
    except CheckpointError as failed:
        error = failed
    return Result(label, error, time.monotonic() - started_s)
