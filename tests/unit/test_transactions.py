"""Habits of the keys of transactions: what a plain account of each says, however cut and wherever resumed."""

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from strategies import LANE, cuts, some_events

from streamdet.events import (
    AMOUNT,
    COUNTS,
    GAP,
    HOUR,
    KEY_COLUMNS,
    KEYS,
    KNOWN,
    SUMS,
    USUAL,
    Events,
    Schema,
    transaction_columns,
)
from streamdet.features.pairs import PAIRS
from streamdet.features.rows import LaneFeatures
from streamdet.features.transactions import (
    AMOUNT_RATE,
    GAP_FIRST_S,
    HALF_LIVES_S,
    HOUR_RATE,
    HOURS_PRIOR,
    LANE_RATE,
    LATE_MAX_S,
    REACH,
    bytes_per_entity,
)

SCHEMA = Schema("ts", "card", ("amount",), (), "amount", ("terminal", "shop"))
COLUMNS = transaction_columns(3)
CARD, TERMINAL = KEYS, KEYS + KEY_COLUMNS  # where their columns begin
NOVELTY = KEYS + 3 * KEY_COLUMNS  # of the terminal
MINUTE_MS, DAY_MS = 60_000, 86_400_000


def paid(
    cards: Sequence[str],
    amounts: Sequence[float],
    times_ms: Sequence[int],
    terminals: Sequence[str] | None = None,
    shops: Sequence[str] | None = None,
) -> Events:
    """Transactions; without terminals or shops there are none."""
    n = len(cards)
    none = [""] * n
    return Events(
        lane=LANE,
        offsets=np.arange(n, dtype=np.int64),
        times_ms=np.array(times_ms, np.int64),
        entities=list(cards),
        numeric=np.array(amounts, np.float64).reshape(n, 1),
        categorical=[],
        values=[b"{}"] * n,
        counterparts=[list(terminals or none), list(shops or none)],
    )


def facts(events: Events, max_entities: int = 100) -> NDArray[np.float32]:
    """The columns that tell of habits, (n, COLUMNS)."""
    return LaneFeatures(SCHEMA, max_entities).transform(events).rows.values[:, -COLUMNS:]


@dataclass
class Account:
    """What a person would write down of a key."""

    amounts: list[float] = field(default_factory=list)
    usual: float = 0.0
    seen: int = 0
    last_s: float = 0.0
    counts: list[float] = field(default_factory=lambda: [0.0] * 3)
    sums: list[float] = field(default_factory=lambda: [0.0] * 3)
    hours: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rarity: float = 1.0  # of the last hour
    met: "list[OrderedDict[str, int]]" = field(default_factory=lambda: [OrderedDict(), OrderedDict()])


class Accounts:
    """The accounts of one kind of key, those of the keys not seen for longest torn up where they are too many."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.kept: OrderedDict[str, Account] = OrderedDict()
        self.torn: list[str] = []
        self.logs = 0.0
        self.learnt = 0

    def of(self, name: str) -> Account:
        if name not in self.kept and len(self.kept) == self.most:
            self.torn.append(self.kept.popitem(last=False)[0])
        account = self.kept.setdefault(name, Account())
        self.kept.move_to_end(name)
        return account

    def entry(self, name: str, size: float, second: float) -> list[float]:
        """The columns of a key for one transaction."""
        account = self.of(name) if name else Account()
        passed = second - account.last_s if account.seen else 0.0
        gap = abs(passed) if account.seen else GAP_FIRST_S
        late = -passed if -LATE_MAX_S <= passed < 0 else 0.0
        for j, half_life in enumerate(HALF_LIVES_S):
            account.counts[j] *= 0.5 ** (max(passed, 0.0) / half_life)
            account.sums[j] *= 0.5 ** (max(passed, 0.0) / half_life)
        told = [*(count + 1 for count in account.counts), *(total + size for total in account.sums)]
        typical = math.exp(self.logs) if self.learnt else size
        many = len(account.amounts)
        usual = known = (many * account.usual + typical) / (many + 1)
        if size > 0:
            account.amounts.append(min(size, REACH * usual))
            mean = account.usual
            account.usual += max(AMOUNT_RATE, 1 / (many + 1)) * (account.amounts[-1] - mean)
            weight = min(many, 1 / AMOUNT_RATE)
            usual = (weight * mean + typical + size) / (weight + 2)
            self.learnt += 1
            self.logs += max(LANE_RATE, 1 / self.learnt) * (math.log(size) - self.logs)
        angle = 2 * math.pi * (second % 86_400) / 86_400
        x, y, weight = account.hours
        along = (x * math.cos(angle) + y * math.sin(angle)) / (weight + HOURS_PRIOR) if name else 0.0
        account.rarity = 1 / (1 + along)
        kept = 1 - HOUR_RATE
        account.hours = (x * kept + math.cos(angle), y * kept + math.sin(angle), weight * kept + 1)
        account.seen += 1
        account.last_s = second + late
        for j, half_life in enumerate(HALF_LIVES_S):
            account.counts[j] += 0.5 ** (late / half_life)
            account.sums[j] += size * 0.5 ** (late / half_life)
        return [usual, gap, *told, known]


def written_down(events: Events, max_entities: int) -> list[list[float]]:
    """The same columns by the accounts."""
    cards, *others = (Accounts(max_entities) for _ in range(3))
    numbers: list[dict[str, str]] = [{}, {}]
    rows = []
    for i, card in enumerate(events.entities):
        given_amount, second = float(events.numeric[i, 0]), float(events.times_ms[i]) / 1000
        size = 0.0 if math.isnan(given_amount) else min(abs(given_amount), 1e30)
        row = cards.entry(card, size, second)
        own = cards.kept[card]
        novelties = []
        for k, (accounts, names) in enumerate(zip(others, events.counterparts, strict=True)):
            name = names[i]
            row += accounts.entry(name, size, second)
            for torn in accounts.torn:  # whoever comes back is somebody new
                numbers[k].pop(torn, None)
            accounts.torn.clear()
            times = own.seen - 1
            if name:
                number = numbers[k].setdefault(name, f"{name}, from {i} on")
                times = own.met[k].get(number, 0)
                own.met[k][number] = times + 1
                own.met[k].move_to_end(number)
                if len(own.met[k]) > PAIRS:
                    own.met[k].popitem(last=False)
            novelties.append(own.seen / (times + 1))
        rows.append([size if size > 0 else row[USUAL], own.rarity, *row, *novelties])
    return rows


@st.composite
def payments(draw: st.DrawFn) -> Events:
    """Few cards and terminals, amounts of any kind, and times that also repeat and run backwards."""
    n = draw(st.integers(1, 40))
    some = st.one_of(st.floats(0.01, 1e6), st.sampled_from([0.0, -5.0, math.nan, 1e300, math.inf]))
    step = st.sampled_from([0, 1_000, MINUTE_MS, -MINUTE_MS, DAY_MS, 40 * DAY_MS, -40 * DAY_MS])
    times_ms = 1_700_000_000_000 + np.cumsum(draw(st.lists(step, min_size=n, max_size=n)))
    names = [st.sampled_from(names) for names in (["c1", "c2", "c3"], ["", "t1", "t2", "t3"], ["", "s1"])]
    columns = [draw(st.lists(name, min_size=n, max_size=n)) for name in names]
    amounts = draw(st.lists(some, min_size=n, max_size=n))
    return paid(columns[0], amounts, times_ms.tolist(), columns[1], columns[2])


@given(payments(), st.integers(1, 4))
def test_the_columns_are_what_a_plain_account_of_every_key_says(events: Events, max_entities: int) -> None:
    events.numeric[np.isinf(events.numeric)] = math.nan  # as the decoder does
    np.testing.assert_allclose(
        facts(events, max_entities), written_down(events, max_entities), rtol=2e-5, atol=1e-6
    )


@given(st.data(), payments(), st.integers(1, 4), st.booleans())
def test_batches_and_restarts_do_not_matter(
    data: st.DataObject, events: Events, max_entities: int, restart: bool
) -> None:
    expected = facts(events, max_entities)
    assert np.isfinite(expected).all()
    features, parts = LaneFeatures(SCHEMA, max_entities), []
    for start, stop in data.draw(cuts(len(events))):
        parts.append(features.transform(some_events(events, start, stop)).rows.values[:, -COLUMNS:])
        if restart:
            state = features.state()
            features = LaneFeatures(SCHEMA, max_entities)
            features.restore(state)
    assert np.concatenate(parts).tobytes() == expected.tobytes()


def test_a_stolen_card_stands_out_for_as_long_as_it_is_used() -> None:
    rng = np.random.default_rng(1)
    amounts = np.abs(rng.normal(50, 20, 300)) + 1
    stolen = np.arange(300) >= 200
    stolen &= np.arange(300) % 3 == 0
    amounts[stolen] *= 5
    columns = facts(paid(["c"] * 300, amounts.tolist(), (np.arange(300) * 8 * 3_600_000).tolist()))
    ratio = columns[:, AMOUNT] / columns[:, CARD + USUAL]
    assert ratio[stolen].min() > 1.0
    assert np.median(ratio[stolen]) > 3.0
    assert np.median(ratio[200:][~stolen[200:]]) == pytest.approx(1.0, abs=0.4)


def test_what_is_known_of_a_card_has_not_seen_the_payment_and_of_a_new_one_is_what_is_typical() -> None:
    amounts = [50.0] * 40 + [50_000.0, 50_000.0, 40.0]
    columns = facts(paid([*["a", "b"] * 20, "new", "a", "a"], amounts, [0] * 43))
    assert columns[40:42, CARD + KNOWN] == pytest.approx(50.0, rel=0.02)
    assert columns[40, CARD + USUAL] == pytest.approx(25_025.0)
    assert columns[42, CARD + KNOWN] > 50.0


def test_a_new_habit_becomes_the_usual_one() -> None:
    amounts = [10.0] * 50 + [1_000.0] * 400
    columns = facts(paid(["c"] * 450, amounts, [i * DAY_MS for i in range(450)]))
    assert columns[50, CARD + USUAL] < 50.0
    assert columns[-1, CARD + USUAL] == pytest.approx(1_000.0, rel=0.1)


def test_counts_and_sums_are_those_of_the_last_hour_day_and_week() -> None:
    # Five at once, then one after an hour: half of an hour's count is left, and nearly all of a week's.
    times_ms = [0] * 5 + [3_600_000]
    row = facts(paid(["c"] * 6, [10.0] * 6, times_ms, ["t"] * 6))[-1]
    for first in (CARD, TERMINAL):
        assert row[first + COUNTS : first + SUMS] == pytest.approx([3.5, 5.72, 5.96], abs=0.01)
        assert row[first + SUMS : first + KNOWN] == pytest.approx([35.0, 57.2, 59.6], abs=0.1)
        assert row[first + GAP] == 3_600.0


def test_a_counterpart_is_new_once_and_an_old_acquaintance_is_not() -> None:
    terminals = ["home"] * 50 + ["abroad", "abroad", "home"]
    columns = facts(paid(["c"] * 53, [10.0] * 53, [i * DAY_MS for i in range(53)], terminals))
    assert columns[50:, NOVELTY] == pytest.approx([51.0, 52 / 2, 53 / 51])
    assert columns[:50, NOVELTY] == pytest.approx(1.0)


def test_of_more_counterparts_than_are_remembered_the_one_not_met_for_longest_is_forgotten() -> None:
    terminals = ["first", *(f"t{i}" for i in range(PAIRS - 1)), "first", "one more", "first", "t0", "t1"]
    n = len(terminals)
    columns = facts(paid(["c"] * n, [1.0] * n, list(range(n)), terminals), max_entities=10 * PAIRS)
    times = (np.arange(n) + 1) / columns[:, NOVELTY] - 1
    assert times[PAIRS:].round().astype(int).tolist() == [1, 0, 2, 0, 0]


def test_a_card_that_had_to_leave_comes_back_as_a_new_one_and_leaves_nothing_to_its_successor() -> None:
    cards = ["a", "a", "a", "b", "c", "a"]
    columns = facts(paid(cards, [10.0] * 6, [0] * 6, ["t"] * 6), max_entities=2)
    assert columns[:, CARD + COUNTS].tolist() == [1, 2, 3, 1, 1, 1]
    assert columns[-1, NOVELTY] == 1.0
    assert columns[-1, TERMINAL + COUNTS] == 6


@given(st.data(), st.lists(st.integers(0, 20 * 86_400), min_size=1, max_size=12))
def test_what_counts_of_the_past_does_not_depend_on_the_order_of_arrival(
    data: st.DataObject, seconds: list[int]
) -> None:
    def after(some: list[int]) -> NDArray[np.float32]:
        times_ms = [1_000 * second for second in [*some, 20 * 86_400]]
        return facts(paid(["c"] * len(times_ms), [10.0] * len(times_ms), times_ms))[
            -1, CARD + GAP : CARD + KNOWN
        ]

    late = after(data.draw(st.permutations(seconds)))
    np.testing.assert_allclose(late, after(sorted(seconds)), rtol=1e-5)


def test_one_payment_that_is_days_late_does_not_set_the_clock_back() -> None:
    times_ms = [10 * DAY_MS] * 3 + [6 * DAY_MS, 10 * DAY_MS + MINUTE_MS]
    columns = facts(paid(["c"] * 5, [10.0] * 5, times_ms))
    assert columns[3:, CARD + GAP].tolist() == [4 * 86_400, 60]
    assert columns[4, CARD + COUNTS : CARD + SUMS] == pytest.approx([3.97, 4.0, 4.45], abs=0.01)


def test_a_clock_that_is_once_a_century_ahead_does_not_stop_the_decay_for_a_century() -> None:
    times_ms = [0, 36_500 * DAY_MS, 1_000, 40 * DAY_MS]
    columns = facts(paid(["c"] * 4, [10.0] * 4, times_ms))
    assert columns[:, CARD + COUNTS] == pytest.approx([1.0, 1.0, 2.0, 1.0], abs=1e-3)


@pytest.mark.parametrize("amount", [math.nan, 0.0])
def test_a_missing_amount_counts_as_a_transaction_and_says_nothing_of_amounts(amount: float) -> None:
    columns = facts(paid(["c"] * 6, [20.0] * 4 + [amount, 20.0], [0] * 6))
    assert columns[4, AMOUNT] == columns[4, CARD + USUAL] == pytest.approx(20.0)
    assert columns[:, CARD + COUNTS].tolist() == [1, 2, 3, 4, 5, 6]
    assert columns[:, CARD + SUMS] == pytest.approx([20, 40, 60, 80, 80, 100])
    assert columns[5, CARD + USUAL] == pytest.approx(20.0)


def test_a_refund_counts_by_its_size() -> None:
    columns = facts(paid(["c"] * 2, [20.0, -20.0], [0, 0]))
    assert columns[:, AMOUNT].tolist() == [20.0, 20.0]
    assert columns[1, CARD + SUMS] == pytest.approx(40.0)


def test_the_unit_of_the_amount_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    amounts, times_ms = rng.lognormal(3, 1, 200), np.cumsum(rng.integers(0, DAY_MS, 200)).tolist()
    cards = [f"c{i}" for i in rng.integers(0, 5, 200)]
    euros, cents = (facts(paid(cards, (amounts * unit).tolist(), times_ms)) for unit in (1.0, 100.0))
    ratio, other = (columns[:, AMOUNT] / columns[:, CARD + USUAL] for columns in (euros, cents))
    assert ratio == pytest.approx(other, rel=1e-5)


def test_a_card_that_always_pays_at_noon_is_unusual_at_midnight() -> None:
    noon = [i * DAY_MS + DAY_MS // 2 for i in range(60)]
    columns = facts(paid(["c"] * 61, [1.0] * 61, [*noon, 61 * DAY_MS]))
    assert columns[0, HOUR] == 1.0
    assert columns[59, HOUR] == pytest.approx(0.5, abs=0.05)
    assert columns[60, HOUR] > 8.0


def test_a_card_that_pays_at_any_hour_is_usual_at_each() -> None:
    times_ms = [i * DAY_MS + (i * 7 % 24) * 60 * MINUTE_MS for i in range(240)]
    assert facts(paid(["c"] * 240, [1.0] * 240, times_ms))[50:, HOUR] == pytest.approx(1.0, abs=0.2)


def test_what_is_kept_of_an_entity_and_its_counterparts_is_bounded_and_as_large_as_is_said() -> None:
    def bytes_kept(n: int) -> int:
        names = [f"n{i}" for i in range(n)]
        features = LaneFeatures(SCHEMA, 300)
        features.transform(paid(names, [1.0] * n, [0] * n, names, names))
        return sum(array.nbytes for array in _arrays(features.state()["transactions"]))

    assert bytes_kept(300) == pytest.approx(301 * bytes_per_entity(2), rel=0.01)
    assert bytes_kept(2_000) == bytes_kept(300)


def test_counterparts_that_had_to_leave_are_counted() -> None:
    features = LaneFeatures(SCHEMA, 2)
    features.transform(paid(["c"] * 4, [1.0] * 4, [0] * 4, ["t1", "t2", "t3", "t1"], ["s"] * 4))
    assert features.evicted_total == 2


def test_where_fewer_counterparts_may_be_kept_than_there_are_those_met_last_stay_as_they_are() -> None:
    terminals = ["t1", "t2", "t3", "t1", "t4", "t2"]
    before = LaneFeatures(SCHEMA, 10)
    before.transform(paid(["c"] * 6, [10.0, 20.0, 30.0, 40.0, 50.0, 60.0], [0] * 6, terminals))
    whole, fewer = LaneFeatures(SCHEMA, 10), LaneFeatures(SCHEMA, 2)
    for features in (whole, fewer):
        features.restore(before.state())
    assert (len(fewer.state()["transactions"]["counterparts"]["0"]["numbers"]), fewer.evicted_total) == (3, 2)
    again = paid(["c"] * 2, [70.0] * 2, [MINUTE_MS] * 2, ["t2", "t4"])
    told = fewer.transform(again).rows.values
    assert told.tobytes() == whole.transform(again).rows.values.tobytes()
    gone = fewer.transform(paid(["c"], [70.0], [MINUTE_MS], ["t1"])).rows.values[0, -COLUMNS:]
    assert (gone[TERMINAL + COUNTS], gone[NOVELTY]) == (1.0, 9.0)
    assert len(fewer.state()["transactions"]["counterparts"]["0"]["numbers"]) == 3


def _arrays(state: Any) -> Iterator[NDArray[Any]]:
    for value in state.values():
        if isinstance(value, np.ndarray):
            yield value
        elif isinstance(value, dict):
            yield from _arrays(value)
