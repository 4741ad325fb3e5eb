"""Since when: the stretch of strange rows that an event stands in, per entity and in order."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import msgspec
import numpy as np
from fakes import StopAfter
from hypothesis import given
from hypothesis import strategies as st
from strategies import cuts

from streamdet.checkpoint.format import digest
from streamdet.config import parse
from streamdet.decide import Onset
from streamdet.decide.onset import CALM
from streamdet.events import Alert, Ints
from streamdet.replaying import Replay, replay

# Strange rows are written as x, normal ones as a dot; they come a second after each other.


def since(rows: str, slots: Sequence[int] | None = None, fresh: Sequence[int] = ()) -> list[int]:
    """In seconds, of each row."""
    n = len(rows)
    at = np.zeros(n, np.int64) if slots is None else np.array(slots, np.int64)
    anew = np.isin(np.arange(n), fresh)
    normal = np.array([row == "." for row in rows])
    told = Onset().follow(normal, 1000 * np.arange(n, dtype=np.int64), at, anew)
    return [int(at) for at in told // 1000]


def test_a_stretch_begins_with_its_first_row_and_ends_when_all_is_calm() -> None:
    assert CALM == 3
    assert since("..xx.x..x...x") == [0, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 11, 12]


def test_each_entity_has_a_stretch_of_its_own_and_a_new_owner_none() -> None:
    assert since("x.xxx", slots=[1, 2, 1, 2, 1]) == [0, 1, 0, 3, 0]
    assert since("xxx", slots=[1, 1, 1], fresh=[2]) == [0, 0, 2]


def test_an_event_that_comes_late_began_no_later_than_it_happened() -> None:
    normal, zeros = np.zeros(2, np.bool_), np.zeros(2, np.int64)
    told = Onset().follow(normal, np.array([9_000, 4_000]), zeros, np.zeros(2, np.bool_))
    assert told.tolist() == [9_000, 4_000]


@given(st.data(), st.integers(1, 80), st.integers(0, 99))
def test_batches_and_a_restart_leave_no_trace(data: st.DataObject, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    normal, slots = rng.random(n) < 0.5, rng.integers(0, 4, n)
    times, fresh = rng.integers(0, 10_000, n), rng.random(n) < 0.1
    whole, onset, parts = Onset(), Onset(), list[Ints]()
    expected = whole.follow(normal, times, slots, fresh)
    for start, stop in data.draw(cuts(n)):
        part = slice(start, stop)
        parts.append(onset.follow(normal[part], times[part], slots[part], fresh[part]))
        again = Onset()
        again.restore(onset.state(4))
        onset = again
    assert np.array_equal(np.concatenate(parts), expected)
    used = int(slots.max()) + 1
    assert digest(onset.state(used)) == digest(whole.state(used))


def test_an_alert_on_what_has_crept_up_says_when_that_began(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    values = np.cumsum(rng.normal(size=(3_000, 3)) * 0.05, axis=0) * 0.1 + rng.normal(size=(3_000, 3)) * 0.1
    values[2_000:2_060, 0] += np.linspace(0.0, 6.0, 60)
    recording, alerts = tmp_path / "plant.csv", tmp_path / "alerts.jsonl"
    lines = [f"2026-01-01T{i // 3600:02}:{i // 60 % 60:02}:{i % 60:02}Z,{a:.4f},{b:.4f},{c:.4f}" for i, (a, b, c) in enumerate(values)]  # fmt: skip # noqa: E501
    recording.write_text("time,a,b,c\n" + "\n".join(lines) + "\n")
    settings = parse({"model": {"device": "cpu"}, "limit": {"alert_rate": 0.001}})
    replay(Replay([recording], alerts=alerts), settings, StopAfter())
    told = [msgspec.json.decode(line, type=Alert) for line in alerts.read_bytes().splitlines()]
    (first, *_) = [alert for alert in told if 2_000 <= alert.source.offset < 2_060]
    began, happened = (datetime.fromisoformat(at) for at in (first.likely_start, first.event_time))
    assert 2 <= (happened - began).total_seconds() <= first.source.offset - 2_000 + 3
    assert all(alert.likely_start <= alert.event_time for alert in told)
