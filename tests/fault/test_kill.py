"""kill -9 at any moment: what subscribers see of committed records, and what the group remembers, are as without it."""

import contextlib
import random
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from chaos_kafka import Asking
from kafka_broker import MakeTopic
from kafka_local import Kafka
from live import until

from fault.crash import STEPS
from fault.life import Group, Stream, assert_equal, prepare, reference, streams
from fault.zygote import Zygote

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

KILLS = 50
EACH = 128  # records that wait for each life
WORK_MS = 400  # a kill by time comes so long after the first records at most
FEEDS_MAX = 20  # a step that has not come after so many more pieces does not come at all
# Steps that a worker does not come by with every poll and commit; a random kill waits for none of them.
RARE = [name for name in STEPS if any(word in name for word in ("init", "save", "prune", "renamed"))]
RARE += ["after-training", "after-release", "after-adoption"]
FREQUENT = [name for name in STEPS if name not in RARE]
# Small batches, and a commit for each: much that can be interrupted.
GIVEN: dict[str, dict[str, Any]] = {
    "input": {"batch": {"max_events": 16, "max_wait_ms": 20}},
    "commit": {"every_ms": 0, "offsets_every_ms": 0},
    "learning": {"every": 512, "lag": 200},
}


@pytest.fixture
def asking(kafka: Kafka) -> Iterator[Asking]:
    with contextlib.closing(Asking(kafka.bootstrap_servers)) as one:
        yield one


def random_crash(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return f"work:{rng.randrange(WORK_MS)}"
    return f"{rng.choice(FREQUENT)}:{rng.randint(1, 8)}"


def killed(group: Group, crash: str, written: Sequence[Stream]) -> None:
    """A worker is started and dies at a crash; it is fed as long as it has not come to it."""
    with group.worker(crash) as worker:

        def done_with(offsets: Sequence[int]) -> bool:
            return not worker.alive or group.committed() == offsets

        for _ in range(FEEDS_MAX):
            offsets = [stream.written for stream in written]
            until(lambda: done_with(offsets), f"{crash}, or {offsets} committed")  # noqa: B023 - called at once
            if not worker.alive:
                break
            for stream in written:
                stream.write(EACH // 2)
        assert not worker.alive, f"{crash} never came:\n{worker.log}"
        code = worker.ended()
        assert code == -signal.SIGKILL, f"ended by itself with exit code {code} before {crash}:\n{worker.log}"
    group.note(crash)


def finish(group: Group, written: Sequence[Stream]) -> list[int]:
    """A last worker comes to the end of the streams, and stops in order."""
    ends = [stream.written for stream in written]
    with group.worker() as last:
        group.finish(last, ends)
    return ends


def test_at_random_moments_with_learning_on(
    zygote: Zygote, asking: Asking, make_topic: MakeTopic, fault_seed: int, tmp_path: Path
) -> None:
    rng = random.Random(fault_seed)
    group = Group(zygote, asking, tmp_path / "killed", make_topic(), given=GIVEN)
    with streams(group, fault_seed, 2 * KILLS * EACH) as written:
        for _ in range(KILLS):
            written[0].write(EACH)
            killed(group, random_crash(rng), written)
        ends = finish(group, written)
    assert ends[0] >= KILLS * EACH
    assert_equal(group, reference(group, ends))


def test_at_every_named_step_when_it_first_comes_and_later(
    zygote: Zygote, asking: Asking, make_topic: MakeTopic, fault_seed: int, tmp_path: Path
) -> None:
    """In one life, one after the other: each start finds what the kill before it has left."""
    group = Group(zygote, asking, tmp_path / "killed", make_topic(), given=GIVEN)
    with streams(group, fault_seed, 2 * len(STEPS) * FEEDS_MAX * EACH // 2) as written:
        for name in STEPS:
            for passes in (1, 1 if "init" in name else 2 if name in RARE else 5):
                written[0].write(EACH // 2)
                killed(group, f"{name}:{passes}", written)
        ends = finish(group, written)
    assert_equal(group, reference(group, ends))


def test_three_lanes_at_random_moments_with_learning_off(
    zygote: Zygote, asking: Asking, make_topic: MakeTopic, fault_seed: int, tmp_path: Path
) -> None:
    rng = random.Random(fault_seed)
    # At the usual pace of commits, too: offsets alone go out seldom, alerts at once.
    given = {**GIVEN, "commit": {}, "learning": {"enabled": False}}
    group = Group(zygote, asking, tmp_path / "killed", make_topic(3), partitions=3, given=given)
    expected = group.beside("reference")
    with streams(group, fault_seed, KILLS * EACH) as written:
        prepare([group, expected], written)
        for _ in range(KILLS // 3):
            for stream in written:
                stream.write(EACH // 2)
            killed(group, random_crash(rng), written)
        ends = finish(group, written)
        assert finish(expected, written) == ends
    assert_equal(group, expected, learner=False)
