"""Card transactions with known fraud, from a seed: data to try a detector on where real ones may not be shown.

The design follows the simulator of the "Reproducible Machine Learning for Credit Card Fraud Detection"
handbook (Le Borgne et al., 2022); the code is our own. Customers have a place, a mean amount and a rate, and
pay at the terminals within their reach. Fraud comes in three ways:

1. amounts above `LARGE_AMOUNT`: rare, and a single event tells;
2. terminals compromised for `TERMINAL_DAYS`: every payment there is fraud, and no amount tells;
3. customers whose card data leaked: for `CUSTOMER_DAYS` a third of their amounts is `LEAK_FACTOR` times as high.

Not modelled: seasons, holidays, travel, and anyone who reacts to being caught.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamdet.events import Bools, Floats, Ints

START_S = 1_767_225_600  # 2026-01-01T00:00:00Z
DAY_S = 86_400

WIDTH = 100.0  # of the square in which customers and terminals lie
REACH = 5.0  # of a customer, in the same unit
LARGE_AMOUNT = 220.0
TERMINAL_SHARE_PER_DAY = 2 / 10_000  # of the terminals become compromised each day
TERMINAL_DAYS = 28
CUSTOMER_SHARE_PER_DAY = 3 / 5_000  # of the customers have their card data leaked each day
CUSTOMER_DAYS = 14
LEAK_SHARE = 1 / 3  # of the transactions of such a customer are the thief's
LEAK_FACTOR = 5.0

EVENT_COLUMNS = ("timestamp", "transaction_id", "customer", "terminal", "amount")
_CHUNK = 8192


@dataclass(frozen=True, slots=True, eq=False)
class Cards:
    """Transactions in order of time; n of them."""

    times_s: Ints  # (n,) seconds since 1970-01-01 UTC, never falling
    customers: Ints  # (n,) numbers from 0
    terminals: Ints  # (n,) numbers from 0
    amounts: Floats  # (n,) in whole cents, above 0
    scenarios: NDArray[np.uint8]  # (n,) 0 genuine, 1 to 3 the kind of fraud

    def __len__(self) -> int:
        return len(self.times_s)

    @property
    def labels(self) -> Bools:
        """Whether the transaction is fraud, (n,)."""
        return self.scenarios > 0

    def events(self) -> Iterator[dict[str, str | float]]:
        """The transactions as events with the fields `EVENT_COLUMNS`; labels are not among them."""
        for row in self.rows():
            yield dict(zip(EVENT_COLUMNS, row, strict=True))

    def rows(self) -> Iterator[tuple[str, str, str, str, float]]:
        """The transactions as values of `EVENT_COLUMNS`: time in ISO 8601, names, and the amount."""
        for start in range(0, len(self), _CHUNK):
            part = slice(start, start + _CHUNK)
            times = np.datetime_as_string(self.times_s[part].astype("datetime64[s]"), timezone="UTC").tolist()
            customers = self.customers[part].tolist()
            terminals = self.terminals[part].tolist()
            amounts = self.amounts[part].tolist()
            columns = zip(times, customers, terminals, amounts, strict=True)
            for i, (time, customer, terminal, amount) in enumerate(columns, start):
                yield time, f"x{i:09d}", f"c{customer:06d}", f"t{terminal:06d}", amount


def simulate_cards(seed: int, days: int = 90, customers: int = 1000, terminals: int = 2000) -> Cards:
    """Simulate the payments of some customers; the same arguments give the same transactions.

    A customer pays about 1.9 times a day, so that the defaults give some 170,000 transactions; 0.5 to 1 % are
    fraud. Of scenarios 2 and 3 there is at least one terminal and one customer.

    Raises:
        ValueError: an argument is not above 0 (the seed: below 0).
    """
    for name, value in (("days", days), ("customers", customers), ("terminals", terminals)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, not {value}")
    rng = np.random.default_rng(seed)
    mean_amount = rng.uniform(5, 100, customers)
    customer, time_s = _payments(rng, customers, days)
    terminal = _terminals(rng, customer, customers, terminals)
    amount = _amounts(rng, mean_amount[customer])
    scenario = np.zeros(len(time_s), dtype=np.uint8)
    scenario[amount > LARGE_AMOUNT] = 1
    compromised = _spells(rng, terminals, days, TERMINAL_SHARE_PER_DAY, TERMINAL_DAYS)
    scenario[compromised[terminal, time_s // DAY_S]] = 2
    leaked = _spells(rng, customers, days, CUSTOMER_SHARE_PER_DAY, CUSTOMER_DAYS)
    stolen = leaked[customer, time_s // DAY_S] & (rng.random(len(time_s)) < LEAK_SHARE)
    amount[stolen] *= LEAK_FACTOR
    scenario[stolen] = 3
    return Cards(START_S + time_s, customer, terminal, np.round(amount, 2), scenario)


def _payments(rng: np.random.Generator, customers: int, days: int) -> tuple[Ints, Ints]:
    """Who pays, and in which second of the simulation, (n,) each, in order of time."""
    per_day = rng.uniform(0, 4, customers)
    counts = rng.poisson(per_day[:, None], (customers, days)).ravel()  # (customers * days,)
    who_and_day = np.repeat(np.arange(customers * days), counts)
    # People pay around noon; what falls outside the day did not happen.
    second = np.floor(rng.normal(DAY_S / 2, 20_000, len(who_and_day))).astype(np.int64)
    within = (second >= 0) & (second < DAY_S)
    customer, day = np.divmod(who_and_day[within], days)
    time_s = day * DAY_S + second[within]
    order = np.argsort(time_s, kind="stable")
    return customer[order], time_s[order]


def _terminals(rng: np.random.Generator, customer: Ints, customers: int, terminals: int) -> Ints:
    """Where each payment is made, (n,): any terminal in the customer's reach, or the nearest one."""
    homes = rng.uniform(0, WIDTH, (customers, 2))
    places = rng.uniform(0, WIDTH, (terminals, 2))
    reachable: list[Ints] = []
    for home in homes:
        distance = np.hypot(*(places - home).T)  # (terminals,)
        near = np.flatnonzero(distance < REACH)
        reachable.append(near if len(near) else np.array([distance.argmin()]))
    sizes = np.array([len(some) for some in reachable])
    starts = np.cumsum(sizes) - sizes
    choice = (rng.random(len(customer)) * sizes[customer]).astype(np.int64)
    terminal: Ints = np.concatenate(reachable)[starts[customer] + choice]
    return terminal


def _amounts(rng: np.random.Generator, mean: Floats) -> Floats:
    """What is paid, (n,), given the mean of who pays, (n,)."""
    amount = rng.normal(mean, mean / 2)
    amount = np.where(amount < 0, rng.uniform(0, 2 * mean), amount)
    return np.maximum(np.round(amount, 2), 0.01)


def _spells(rng: np.random.Generator, count: int, days: int, share_per_day: float, length_days: int) -> Bools:
    """On which days each of `count` is struck, (count, days), by spells that begin on random days."""
    struck = np.zeros((count, days), dtype=np.bool_)
    spells = max(1, round(count * days * share_per_day))
    for who, day in zip(rng.integers(0, count, spells), rng.integers(0, days, spells), strict=True):
        struck[who, day : day + length_days] = True
    return struck


def write_cards_csv(path: Path, cards: Cards, *, label: bool = True, scenario: bool = False) -> None:
    """Write the transactions as CSV, with a header and one row each.

    Args:
        path: file to write; an older one is replaced.
        cards: what to write.
        label: add a column `label`, 1 for fraud and 0 for genuine.
        scenario: add a column `scenario`, 0 to 3. It gives the answer away: never let it be a feature.
    """
    header = [*EVENT_COLUMNS, *(["label"] if label else []), *(["scenario"] if scenario else [])]
    columns = [cards.labels.astype(int).tolist()] if label else []
    columns += [cards.scenarios.tolist()] if scenario else []
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows((*row, *answer) for row, *answer in zip(cards.rows(), *columns, strict=True))
