"""The card simulator: same seed same cards, sane rates, every kind of fraud."""

import csv
from pathlib import Path

import numpy as np
import pytest

from streamdet.evaluate.simulate import DAY_S, START_S, Cards, simulate_cards, write_cards_csv


@pytest.fixture(scope="module")
def cards() -> Cards:
    return simulate_cards(seed=1, days=60, customers=500, terminals=1000)


def test_the_same_seed_gives_the_same_cards(cards: Cards) -> None:
    again = simulate_cards(seed=1, days=60, customers=500, terminals=1000)
    other = simulate_cards(seed=2, days=60, customers=500, terminals=1000)
    for name in ("times_s", "customers", "terminals", "amounts", "scenarios"):
        np.testing.assert_array_equal(getattr(cards, name), getattr(again, name))
    assert not np.array_equal(cards.amounts[:100], other.amounts[:100])


def test_events_are_in_order_of_time_and_within_the_days(cards: Cards) -> None:
    assert np.all(np.diff(cards.times_s) >= 0)
    assert cards.times_s[0] >= START_S
    assert cards.times_s[-1] < START_S + 60 * DAY_S


@pytest.mark.parametrize("seed", range(5))
def test_rates_are_sane_and_every_scenario_is_present(seed: int) -> None:
    cards = simulate_cards(seed, days=60, customers=500, terminals=1000)
    assert 1.5 < len(cards) / (60 * 500) < 2.2
    assert 0.002 < cards.labels.mean() < 0.015
    assert np.all(np.bincount(cards.scenarios, minlength=4) > 0)
    assert cards.amounts.min() > 0
    assert 40 < np.median(cards.amounts) < 65


def test_scenarios_are_what_they_say(cards: Cards) -> None:
    kind = cards.scenarios
    assert cards.amounts[kind == 1].min() > 220
    assert cards.amounts[kind == 0].max() <= 220
    assert len(np.unique(cards.terminals[kind == 2])) < 100
    assert np.median(cards.amounts[kind == 3]) > 3 * np.median(cards.amounts[kind == 0])


def test_customers_stay_within_reach(cards: Cards) -> None:
    assert len(np.unique(cards.terminals)) > 500
    of_one = cards.terminals[cards.customers == np.bincount(cards.customers).argmax()]
    assert len(np.unique(of_one)) < 50


def test_a_single_customer_and_terminal_will_do() -> None:
    cards = simulate_cards(seed=0, days=1, customers=1, terminals=1)
    assert set(cards.terminals) <= {0}


@pytest.mark.parametrize("name", ["days", "customers", "terminals"])
def test_nothing_to_simulate_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be 1 or more, not 0"):
        simulate_cards(0, **{name: 0})


def test_csv_has_the_events_and_the_answers(cards: Cards, tmp_path: Path) -> None:
    write_cards_csv(tmp_path / "cards.csv", cards, scenario=True)
    with (tmp_path / "cards.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(cards)
    assert [int(row["label"]) for row in rows] == cards.labels.astype(int).tolist()
    assert [int(row["scenario"]) for row in rows] == cards.scenarios.tolist()
    answers = {"label", "scenario"}
    plain = [{k: v for k, v in row.items() if k not in answers} for row in rows]
    assert plain == [{k: str(v) for k, v in event.items()} for event in cards.events()]


def test_answers_are_left_out_on_request(cards: Cards, tmp_path: Path) -> None:
    write_cards_csv(tmp_path / "cards.csv", cards, label=False)
    with (tmp_path / "cards.csv").open() as file:
        assert file.readline() == "timestamp,transaction_id,customer,terminal,amount\n"


def test_times_are_iso_in_utc_and_ids_unique(cards: Cards) -> None:
    events = list(cards.events())
    assert len({event["transaction_id"] for event in events}) == len(cards)
    first = str(events[0]["timestamp"])
    assert first.startswith("2026-01-01T")
    assert first.endswith("Z")
