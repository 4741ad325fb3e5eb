"""Memory does not grow with the length of a stream.

Ten million events are measured by `scripts/bench memory`; here the same claim holds for a stream that is short
enough for every run of the tests. Measured in a process of its own: what other tests leave behind would count too.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

import numpy as np
import pytest

from streamdet.events import Batch, LaneId, Position, Records
from streamdet.parts import Part

LANE = LaneId("plant", 0)
EARLY, LATE = 200_000, 600_000
GROWTH_MAX = 1.10


class LongSource:
    """The same 20,000 values again and again, but for the entity names, of which there are ever new ones."""

    def __init__(self, values: Sequence[bytes], n: int) -> None:
        self._values = values
        self._left = n
        self._next = 0

    @property
    def exhausted(self) -> bool:
        return self._left == 0

    @property
    def lanes(self) -> Set[LaneId]:
        return {LANE}

    @property
    def leads(self) -> bool:
        return True

    def topic_id(self, topic: str) -> str:  # noqa: ARG002
        return ""

    def poll(self, max_events: int) -> Batch:
        n = min(max_events, 4096, self._left)
        if n == 0:  # an adoption waits for its run
            return Batch(())
        offsets = np.arange(self._next, self._next + n, dtype=np.int64)
        values = [self._values[i % len(self._values)] % (i // 50) for i in offsets.tolist()]
        self._next += n
        self._left -= n
        return Batch([Records(LANE, offsets, offsets, [None] * n, values)])

    def seek(self, lane: LaneId, offset: int) -> None:
        raise NotImplementedError

    def committed(self, lane: LaneId) -> Position | None:  # noqa: ARG002
        return None

    def lag(self) -> Mapping[LaneId, int]:
        return {}

    def commit(self, positions: Mapping[LaneId, Position]) -> bool:  # noqa: ARG002
        return True

    def close(self) -> None:
        pass


class ResidentMemory:
    """Notes how much memory is resident after so many events."""

    def __init__(self) -> None:
        self._judged = 0
        self._wanted = [EARLY, LATE]
        self.measured_kb: list[int] = []

    def judged(self, parts: Sequence[Part]) -> None:
        self._judged += sum(len(part.decoded.events) for part in parts)
        if self._wanted and self._judged >= self._wanted[0]:
            del self._wanted[0]
            status = Path("/proc/self/status").read_text()
            self.measured_kb.append(int(status.split("VmRSS:")[1].split()[0]))


def measure() -> list[int]:
    """Resident memory early and late in a stream with ever new entities."""
    from fakes import FakeSink, StopAfter, readings, worker_over

    from streamdet.worker import run

    values = [(value or b"").replace(b':"d', b':"%d-') for value in readings(20_000)]
    memory = ResidentMemory()
    source = LongSource(values, LATE)
    worker = worker_over(
        source,
        FakeSink(),
        observers=[memory],
        input={"entity": "device", "max_entities": 1_000},
        limit={"alert_rate": 0.001, "window": 10_000},
        learning={"warmup": 1_000, "every": 20_000, "lag": 10_000},
    )
    run(worker, StopAfter())
    return memory.measured_kb


@pytest.mark.timeout(150)
def test_resident_memory_does_not_grow_with_the_stream() -> None:
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=140, check=True)
    early_kb, late_kb = json.loads(done.stdout)
    assert late_kb < GROWTH_MAX * early_kb, f"{early_kb} kB after {EARLY} events, {late_kb} kB after {LATE}"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.stdout.write(json.dumps(measure()))
