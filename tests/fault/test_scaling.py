"""Workers come and go while events flow: alerts are those of one worker, and each event is judged once."""

import contextlib
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos_kafka import Asking
from kafka_broker import MakeTopic
from kafka_local import Kafka
from live import Running, until

from fault.life import Group, assert_equal, flowing, prepare, reference, streams
from fault.zygote import Zygote

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

PARTITIONS = 6
MORE = 200  # records of each partition that are judged before the next change


@pytest.fixture
def asking(kafka: Kafka) -> Iterator[Asking]:
    with contextlib.closing(Asking(kafka.bootstrap_servers)) as one:
        yield one


def made_final_by(worker: Running) -> int:
    """Records whose outcome it committed, by its last word."""
    (records,) = re.findall(r"stopped events=\d+ records_final=(\d+)", worker.log)
    return int(records)


def test_one_three_two_one(
    zygote: Zygote, asking: Asking, make_topic: MakeTopic, fault_seed: int, tmp_path: Path
) -> None:
    given = {"learning": {"enabled": False}}
    group = Group(zygote, asking, tmp_path / "scaled", make_topic(PARTITIONS), PARTITIONS, given)
    expected = group.beside("reference")
    with streams(group, fault_seed, 20_000) as written, contextlib.ExitStack() as stack:
        prepare([group, expected], written)
        prepared = sum(stream.written for stream in written)
        workers: list[Running] = []
        made_final: list[int] = []

        def scale(to: int) -> None:
            while len(workers) < to:
                workers.append(stack.enter_context(group.worker()))
            while len(workers) > to:
                leaving = workers.pop(0)
                leaving.signal(signal.SIGTERM)
                assert leaving.ended() == 0, leaving.log
                made_final.append(made_final_by(leaving))
            shares = {PARTITIONS // to}
            until(lambda: {worker.lanes for worker in workers} == shares, f"{to} workers share the lanes")
            group.note(f"{to} workers")
            at = [stream.written + MORE for stream in written]
            until(
                lambda: all(x >= y for x, y in zip(group.committed(), at, strict=True)),
                f"{to} workers judge in all lanes",
            )

        with flowing(written, each=20, every_s=0.1):
            for to in (1, 3, 2, 1):
                scale(to)
        ends = [stream.written for stream in written]
        group.await_committed(ends, *workers)
        last = workers.pop()
        group.finish(last, ends)
        made_final.append(made_final_by(last))
        with expected.worker() as alone:
            expected.finish(alone, ends)
    assert_equal(group, expected, learner=False)
    assert sum(made_final) == sum(ends) - prepared  # each record by one worker, however often its lane moved


def test_a_worker_that_was_expelled_ends_when_told_to(
    zygote: Zygote, asking: Asking, make_topic: MakeTopic, fault_seed: int, tmp_path: Path
) -> None:
    """It has no place in the group, so nothing of what it holds can be committed; and nothing has to be."""
    group = Group(zygote, asking, tmp_path / "expelled", make_topic())
    with streams(group, fault_seed, 5_000) as (stream,), group.worker() as first:
        stream.write(1_000)
        group.await_committed([1_000], first)
        with group.worker() as second:
            second.await_log("judging topics")
            with flowing([stream], each=20, every_s=0.1):
                first.signal(signal.SIGSTOP)
                until(lambda: second.lanes == 1, "the lane for the second")
                first.signal(signal.SIGTERM, signal.SIGCONT)
                assert first.ended() == 0, first.log
            ends = [stream.written]
            group.finish(second, ends)
    assert_equal(group, reference(group, ends))
