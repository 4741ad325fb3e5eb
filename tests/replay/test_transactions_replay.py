"""Transactions through the whole program: batches and restarts leave no trace, and alerts say why."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fakes import FakeSink, Group, StopAfter, counted

from streamdet.app import configured_schema
from streamdet.checkpoint.format import digest
from streamdet.config import parse
from streamdet.evaluate.simulate import simulate_cards
from streamdet.events import Alert, FeatureShare, LaneId
from streamdet.replaying import Replay, replay
from streamdet.source.recording import RecordingSource
from streamdet.worker import run

N = 2_400
INPUT = {
    "timestamp": "timestamp",
    "entity": "customer",
    "features": {"numeric": ["amount"]},
    "transactions": {"amount": "amount", "counterparts": ["terminal"]},
    "max_entities": 60,  # fewer than there are: some have to leave
}


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("payments") / "payments.jsonl"
    events = list(simulate_cards(seed=2, days=20, customers=80, terminals=200).events())[:N]
    path.write_bytes(b"".join(msgspec.json.encode(event) + b"\n" for event in events))
    return path


def judged(recording: Path, folder: Path, most: int, *batches: float) -> tuple[FakeSink, list[str]]:
    """One worker after the other, each for so many batches of at most `most` records."""
    group, sink, source = Group(folder), FakeSink(), RecordingSource([recording], most)
    schema = configured_schema(parse({"input": INPUT}).input)
    for n in batches:
        stop, before, source = StopAfter(n), source, RecordingSource([recording], most)
        positions = {lane: before.committed(lane) for lane in before.lanes}
        source.commit({lane: at for lane, at in positions.items() if at is not None})
        run(group.worker(source, sink, observers=[stop], schema=schema, input=INPUT), stop)
    shelf = group.shelf
    (lane,) = {LaneId(e.topic, e.partition) for e in shelf.entries() if e.topic and e.partition is not None}
    states = [shelf.lane(lane, "", None), shelf.learner()]
    return sink, [digest(state.state) for state in states if state is not None]


def test_batches_and_restarts_leave_no_trace(recording: Path, tmp_path: Path) -> None:
    whole, kept = judged(recording, tmp_path / "whole", 10_000, math.inf)
    parts, kept_in_parts = judged(recording, tmp_path / "parts", 70, 11, 9, math.inf)
    assert len(whole.alerts) > 5
    assert [msgspec.structs.replace(alert, detected_at="") for alert in parts.alerts] == [
        msgspec.structs.replace(alert, detected_at="") for alert in whole.alerts
    ]
    assert len(kept) == 2
    assert kept_in_parts == kept


# --- What people say of amounts ---------------------------------------------------------------------------------------

# Payments that stand out, by their places in the recording: of a card that was never seen, and of one that pays often.
FIRST, PAID, REFUNDED = 1_800, 1_900, 2_000


def alerts_of(recording: Path, folder: Path, **noise: Any) -> dict[int, Alert]:
    """What a replay of the recording with these three in it publishes, by their places."""
    events = [json.loads(line) for line in recording.read_text().splitlines()]
    often = events[FIRST]["customer"]
    events[FIRST] |= {"customer": "new", "amount": 50_000.0}
    events[PAID] |= {"customer": often, "amount": 5_000.0}
    events[REFUNDED] |= {"customer": often, "amount": -5_000.0}
    payments, alerts = folder / "payments.jsonl", folder / "alerts.jsonl"
    payments.write_text("".join(json.dumps(event) + "\n" for event in events))
    settings = parse({"input": {**INPUT, "max_entities": 1_000}, "model": {"device": "cpu"}, "noise": noise})
    replay(Replay([payments], alerts=alerts), settings, StopAfter())
    decoded = [msgspec.json.decode(line, type=Alert) for line in alerts.read_bytes().splitlines()]
    return {alert.source.offset: alert for alert in decoded}


def amount_of(alert: Alert) -> FeatureShare:
    (amount,) = [feature for feature in alert.features if feature.name == "amount"]
    return amount


def test_an_alert_says_what_was_known_of_the_card_before_the_payment(recording: Path, tmp_path: Path) -> None:
    alerts = alerts_of(recording, tmp_path)
    for at, actual in ((FIRST, 50_000.0), (PAID, 5_000.0), (REFUNDED, -5_000.0)):
        told = amount_of(alerts[at])
        assert told.actual == actual
        assert isinstance(told.expected, float)
        assert 1.0 < told.expected < 250.0


def test_a_first_payment_is_as_many_times_too_large_as_it_looks(recording: Path, tmp_path: Path) -> None:
    rules = {"amount": {"min_relative_deviation": 5.0}}
    assert {FIRST, PAID, REFUNDED} <= alerts_of(recording, tmp_path, features=rules).keys()


@pytest.mark.parametrize(("direction", "matters"), [("up", True), ("down", False)])
def test_a_large_refund_is_a_large_amount(
    recording: Path, tmp_path: Path, direction: str, matters: bool
) -> None:
    alerts = alerts_of(recording, tmp_path, features={"amount": {"direction": direction}})
    assert [at in alerts for at in (FIRST, PAID, REFUNDED)] == [matters] * 3


def test_those_who_know_no_refunds_say_so_by_a_range(recording: Path, tmp_path: Path) -> None:
    alerts = alerts_of(recording, tmp_path, features={"amount": {"direction": "down", "range": [0, None]}})
    assert alerts[REFUNDED].reason == "range"
    assert not {FIRST, PAID} & alerts.keys()


# --- A card by night --------------------------------------------------------------------------------------------------


def paying_by_day(path: Path, hour: float) -> Sequence[int]:
    """Writes payments of cards that only pay between 8 and 18 o'clock, but for three of one card; where these are."""
    cards = simulate_cards(seed=5, days=60, customers=60, terminals=100)
    days, seconds = np.divmod(cards.times_s, 86_400)
    times_s = days * 86_400 + (seconds * 10 // 24) + 8 * 3_600
    often = int(np.bincount(cards.customers).argmax())
    burst = np.flatnonzero((cards.customers == often) & (cards.scenarios == 0))[-3:]
    times_s[burst] = days[burst[0]] * 86_400 + int(hour * 3_600) + 600 * np.arange(3)
    order = np.argsort(times_s, kind="stable")
    rows = zip(
        times_s[order], cards.customers[order], cards.terminals[order], cards.amounts[order], strict=True
    )
    with path.open("w") as file:
        for time_s, customer, terminal, amount in rows:
            names = f'"customer":"c{customer}","terminal":"t{terminal}"'
            file.write(f'{{"timestamp":{time_s},{names},"amount":{amount}}}\n')
    places: Sequence[int] = np.flatnonzero(np.isin(order, burst)).tolist()
    return places


def test_a_card_that_has_always_paid_by_day_is_noticed_at_night(tmp_path: Path) -> None:
    told = {}
    for hour in (3.0, 13.0):
        payments, alerts = tmp_path / f"{hour}.jsonl", tmp_path / f"{hour}.alerts.jsonl"
        burst = paying_by_day(payments, hour)
        settings = parse({"input": INPUT, "model": {"device": "cpu"}, "limit": {"alert_rate": 0.005}})
        replay(Replay([payments], alerts=alerts), settings, StopAfter())
        decoded = [msgspec.json.decode(line, type=Alert) for line in alerts.read_bytes().splitlines()]
        told[hour] = {
            alert.source.offset: alert.features[0] for alert in decoded if alert.source.offset in burst
        }
    assert told[13.0] == {}
    assert len(told[3.0]) >= 2
    for first in told[3.0].values():
        assert first.name == "time_of_day of customer"
        assert str(first.actual).startswith("03:")


@pytest.mark.parametrize("most", [60, 80, 300])  # of 77 customers and 89 terminals
def test_entities_and_counterparts_that_had_to_leave_are_told_apart(
    recording: Path, tmp_path: Path, most: int
) -> None:
    schema, given = configured_schema(parse({"input": INPUT}).input), {**INPUT, "max_entities": most}
    worker = Group(tmp_path).worker(
        RecordingSource([recording], 500), FakeSink(), schema=schema, input=given, learning={"enabled": False}
    )
    run(worker, StopAfter())
    events = [msgspec.json.decode(line) for line in recording.read_bytes().splitlines()]
    for name, key in (("entities", "customer"), ("counterparts", "terminal")):
        distinct = len({event[key] for event in events})
        assert (counted(worker, f"streamdet_{name}_evicted") > 0) == (distinct > most)
