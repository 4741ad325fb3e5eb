"""What is learnt from: newest rows, a fair sample of all, and held-out ones; the same however batched."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from strategies import cuts, seeded_cuts

from streamdet.events import Rows
from streamdet.learn.buffer import HELD_OUT_BLOCK, HELD_OUT_EVERY, HELD_OUT_ROWS, NormalRows, Ring


def numbered(n: int, first: int = 0) -> Rows:
    """Rows that say which event they are of."""
    numbers = np.arange(first, first + n, dtype=np.float32)
    return Rows(np.stack([numbers, -numbers], axis=1), np.zeros((n, 2), np.bool_))


def numbers_of(rows: Rows) -> list[int]:
    assert (rows.values[:, 1] == -rows.values[:, 0]).all()
    return [int(number) for number in rows.values[:, 0]]


def fill(
    kept: NormalRows,
    n: int,
    parts: list[tuple[int, int]] | None = None,
    normal: NDArray[np.bool_] | None = None,
    fed: NDArray[np.bool_] | None = None,
) -> None:
    rows = numbered(n)
    normal = np.ones(n, np.bool_) if normal is None else normal
    fed = np.ones(n, np.bool_) if fed is None else fed
    for start, stop in parts or [(0, n)]:
        part = slice(start, stop)
        kept.add(rows[part], normal[part], fed[part], start)


@given(st.data(), st.integers(0, 300), st.integers(2, 40), st.booleans())
def test_batches_and_restarts_do_not_matter(data: st.DataObject, n: int, size: int, restart: bool) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    normal, fed = rng.random(n) < 0.9, rng.random(n) < 0.95
    whole = NormalRows(size, 2, seed=1)
    fill(whole, n, normal=normal, fed=fed)
    kept = NormalRows(size, 2, seed=1)
    for start, stop in data.draw(cuts(n)):
        kept.add(numbered(stop - start, start), normal[start:stop], fed[start:stop], start)
        if restart:
            state = kept.state()
            kept = NormalRows(size, 2, seed=1)
            kept.restore(state)
    assert numbers_of(kept.training()) == numbers_of(whole.training())
    assert numbers_of(kept.held_out()) == numbers_of(whole.held_out())


def is_held_out(number: int) -> bool:
    return number // HELD_OUT_BLOCK % HELD_OUT_EVERY == 0


@given(st.integers(0, 200), st.integers(0, 2**32))
def test_nothing_that_was_not_normal_is_learnt_and_nothing_held_out_is(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    normal, fed = rng.random(n) < 0.7, rng.random(n) < 0.7
    kept = NormalRows(64, 2, seed=0)
    fill(kept, n, normal=normal, fed=fed)
    training, held_out = set(numbers_of(kept.training())), numbers_of(kept.held_out())
    assert all(normal[i] for i in training)
    assert all(fed[i] for i in held_out)
    assert all(is_held_out(i) for i in held_out)
    assert not any(is_held_out(i) for i in training)
    assert training.isdisjoint(held_out)


def test_half_of_the_rows_are_the_newest_ones() -> None:
    kept = NormalRows(100, 2, seed=0)
    fill(kept, 10_000)
    newest = [i for i in range(10_000) if not is_held_out(i)][-50:]
    assert set(newest) <= set(numbers_of(kept.training()))


def test_the_other_half_is_a_fair_sample_of_all_there_ever_were() -> None:
    quarters = np.zeros(4)
    for seed in range(20):
        kept = NormalRows(200, 2, seed)
        fill(kept, 8000)
        old = numbers_of(kept.training())[:100]
        quarters += np.histogram(old, bins=4, range=(0, 8000))[0]
    assert quarters / quarters.sum() == pytest.approx(0.25, abs=0.05)


def test_another_seed_keeps_another_sample_and_the_same_seed_the_same() -> None:
    def sample(seed: int) -> list[int]:
        kept = NormalRows(100, 2, seed)
        fill(kept, 2000)
        return numbers_of(kept.training())[:50]

    assert sample(0) == sample(0)
    assert sample(0) != sample(1)


@pytest.mark.parametrize("n", [100, 4 * HELD_OUT_ROWS, 5 * HELD_OUT_ROWS + 17, 30_001])
def test_held_out_rows_are_the_newest_of_theirs_oldest_first(n: int) -> None:
    kept = NormalRows(64, 2, seed=0)
    fill(kept, n, seeded_cuts(n, 7, 0))
    assert numbers_of(kept.held_out()) == [i for i in range(n) if is_held_out(i)][-HELD_OUT_ROWS:]


@given(st.lists(st.integers(0, 25), max_size=12), st.integers(1, 10))
def test_a_ring_keeps_the_newest_oldest_first(batches: list[int], size: int) -> None:
    ring, added = Ring(size, 2), 0
    for n in batches:
        ring.add(numbered(n, added))
        added += n
    assert numbers_of(ring.oldest_first()) == list(range(added))[-size:]


def test_what_is_handed_out_is_a_copy() -> None:
    kept = NormalRows(64, 2, seed=0)
    fill(kept, 100)
    before = numbers_of(kept.training()), numbers_of(kept.held_out())
    kept.training().values[:] = 0
    kept.held_out().values[:] = 0
    assert (numbers_of(kept.training()), numbers_of(kept.held_out())) == before


def test_memory_is_what_was_asked_for_from_the_start() -> None:
    kept = NormalRows(64, 2, seed=0)
    before = {name: part["values"].nbytes for name, part in kept.state().items()}
    fill(kept, 5000)
    assert {name: part["values"].nbytes for name, part in kept.state().items()} == before
    assert len(kept.training()) == 64


def test_a_ring_of_another_size_takes_back_the_newest_rows_that_fit() -> None:
    ring = Ring(10, 2)
    ring.add(numbered(25))
    for size, kept in ((4, [21, 22, 23, 24]), (20, list(range(15, 25)))):
        other = Ring(size, 2)
        other.restore(ring.state())
        assert numbers_of(other.oldest_first()) == kept
        other.add(numbered(1, first=25))
        assert numbers_of(other.oldest_first())[-2:] == [24, 25]
