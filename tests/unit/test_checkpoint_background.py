"""Jobs beside the loop: in order, a store that fails is a result, a defect is raised where it is seen."""

import threading

import pytest

from streamdet.checkpoint.background import Background
from streamdet.errors import CheckpointError


def test_jobs_are_done_in_order_on_another_thread_and_tell_how_they_went() -> None:
    done: list[str] = []
    background = Background()
    assert not background.busy
    for label in ("a", "b", "c"):
        background.submit(label, lambda: done.append(threading.current_thread().name))
    assert background.drain(10.0)
    assert not background.busy
    results = background.take_results()
    assert [(result.label, result.error) for result in results] == [("a", None), ("b", None), ("c", None)]
    assert all(result.seconds >= 0 for result in results)
    assert background.take_results() == []
    (thread,) = set(done)
    assert thread.startswith("checkpoint")
    background.close()


def test_a_job_under_way_is_busy_and_its_result_comes_later() -> None:
    background, go = Background(), threading.Event()
    background.submit("slow", lambda: go.wait(10.0))
    background.submit("next", lambda: None)
    assert background.busy
    assert background.take_results() == []
    assert not background.drain(0.01)
    go.set()
    assert background.drain(10.0)
    assert [result.label for result in background.take_results()] == ["slow", "next"]
    background.close()


def test_a_store_that_fails_does_not_end_the_thread() -> None:
    def full() -> None:
        raise CheckpointError("no space left")

    background = Background()
    background.submit("first", full)
    background.submit("second", lambda: None)
    background.drain(10.0)
    first, second = background.take_results()
    assert (str(first.error), second.error) == ("no space left", None)
    background.close()


def test_a_defect_is_raised_to_whoever_asks() -> None:
    def broken() -> None:
        raise ZeroDivisionError

    background = Background()
    background.submit("first", broken)
    background.submit("second", lambda: None)
    background.drain(10.0)
    with pytest.raises(ZeroDivisionError):
        background.take_results()
    assert [result.label for result in background.take_results()] == ["second"]
    background.close()


def test_closing_finishes_the_job_under_way_and_leaves_out_the_rest() -> None:
    background, started, go = Background(), threading.Event(), threading.Event()
    done: list[int] = []

    def slow() -> None:
        started.set()
        go.wait(10.0)
        done.append(1)

    background.submit("slow", slow)
    background.submit("left out", lambda: done.append(2))
    started.wait(10.0)
    threading.Timer(0.05, go.set).start()
    background.close()
    assert done == [1]
    assert [result.label for result in background.take_results()] == ["slow"]
    assert not background.busy
