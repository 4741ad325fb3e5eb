"""After a change that stays, everything is as it was: alerts come at the asked rate, and anomalies rank above the rest.

The change moves all columns of a long stream, whose next fine-tunes are far away, by three of their spreads.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from fakes import StopAfter
from pyarrow import parquet
from sklearn.metrics import roc_auc_score

from streamdet.config import parse
from streamdet.events import Bools, Floats
from streamdet.replaying import Replay, replay

RATE = 0.01
WINDOW = 4_096
SHIFT = 40_000
BACK = SHIFT + 2 * WINDOW
N = BACK + 12_000
COLUMNS = 6


@dataclass(frozen=True, eq=False)
class Found:
    """What a replay gave."""

    raw: Floats
    flagged: Bools
    normal: Bools
    limit: Floats
    relearnt: int


def sensors(rng: np.random.Generator) -> Floats:
    """A load that wanders, and what each sensor makes of it."""
    load = np.zeros(N)
    for i, step in enumerate(0.2 * rng.standard_normal(N - 1)):
        load[i + 1] = 0.98 * load[i] + step
    return np.outer(load, rng.normal(size=COLUMNS)) + 0.3 * rng.standard_normal((N, COLUMNS))


def records(rng: np.random.Generator) -> Floats:
    """Rows in no order, with columns that hang together."""
    mixed = rng.standard_normal((N, 3)) @ rng.normal(size=(3, COLUMNS))
    return np.asarray(mixed + 0.5 * rng.standard_normal((N, COLUMNS)))


KINDS = {"sensors": sensors, "records": records}


def stream(kind: str, until: int = N, spreads: float = 3.0) -> tuple[Floats, Bools]:
    """Rows that are so many spreads off from the shift on, and which of them have one column off by four more."""
    rng = np.random.default_rng(1)
    rows = KINDS[kind](rng)
    spread = rows.std(axis=0)
    anomalous = rng.random(N) < RATE / 2
    anomalous[:1_000] = False
    column = rng.integers(COLUMNS, size=N)
    rows[anomalous, column[anomalous]] += 4.0 * spread[column[anomalous]]
    rows[SHIFT:until] += spreads * spread * rng.choice([-1.0, 1.0], COLUMNS)
    return rows, anomalous


def replayed(
    folder: Path, rows: Floats, *, drift: bool = True, batch: int = 16_384, rule: str = "controlled"
) -> Found:
    recording, scores = folder / "plant.csv", folder / "scores.parquet"
    header = ",".join(f"c{i}" for i in range(COLUMNS))
    np.savetxt(recording, rows, delimiter=",", header=header, comments="", fmt="%.5g")
    settings = parse(
        {
            "limit": {"alert_rate": RATE, "window": WINDOW, "rule": rule},
            "learning": {"drift": drift},
            "input": {"batch": {"max_events": batch}},
            "model": {"device": "cpu"},
        }
    )
    watch = StopAfter()
    summary = replay(Replay([recording], scores=scores), settings, StopAfter(), lambda _: watch)
    table = parquet.read_table(scores, columns=["raw_score", "limit", "flagged"])
    return Found(
        raw=table["raw_score"].to_numpy(),
        flagged=table["flagged"].to_numpy() == 1,
        normal=np.concatenate([part.verdicts.normal for part in watch.parts]),
        limit=table["limit"].to_numpy(),
        relearnt=summary["drift"]["relearn"],
    )


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_shift_that_stays_all_is_as_before_within_two_windows(kind: str, tmp_path: Path) -> None:
    rows, anomalous = stream(kind)
    found = replayed(tmp_path, rows)
    assert found.relearnt == 1
    assert 0.5 <= found.flagged[BACK:].mean() / RATE <= 2.0
    assert 0.8 <= found.normal[BACK:].mean() <= 0.95
    assert np.median(found.raw[BACK:]) < 1.0
    assert roc_auc_score(anomalous[BACK:], found.raw[BACK:]) > 0.9


# Of records the newest rows follow such a shift by themselves.
@pytest.mark.parametrize("rule", ["rolling", "conformal"])
def test_there_is_a_way_back_where_a_shift_has_frozen_limit_and_learning(rule: str, tmp_path: Path) -> None:
    rows, _ = stream("sensors", spreads=12.0)
    stuck, found = (replayed(tmp_path, rows, drift=drift, rule=rule) for drift in (False, True))
    assert stuck.flagged[SHIFT + WINDOW : BACK].mean() > 10 * RATE
    assert stuck.normal[SHIFT + WINDOW : BACK].mean() < 0.7
    assert 0.5 <= found.flagged[BACK:].mean() / RATE <= 2.0
    assert 0.8 <= found.normal[BACK:].mean() <= 0.95
    assert np.median(found.raw[BACK:]) < 1.0


def test_neither_a_stream_without_a_change_nor_an_incident_that_ends_is_learnt_anew(tmp_path: Path) -> None:
    for until in (SHIFT, SHIFT + WINDOW // 2):
        assert replayed(tmp_path, stream("records", until)[0]).relearnt == 0


def test_scores_do_not_depend_on_how_the_rows_are_cut_and_nothing_happens_where_it_is_switched_off(
    tmp_path: Path,
) -> None:
    rows, _ = stream("records")
    whole, cut, off = (
        replayed(tmp_path, rows[:BACK], **how) for how in ({}, {"batch": 1_111}, {"drift": False})
    )
    assert np.array_equal(whole.raw, cut.raw, equal_nan=True)
    assert np.array_equal(whole.limit, cut.limit, equal_nan=True)
    assert off.relearnt == 0
    same_until = SHIFT + WINDOW
    assert np.array_equal(whole.raw[:same_until], off.raw[:same_until], equal_nan=True)
    assert np.median(off.raw[-1_000:]) > np.median(whole.raw[-1_000:]) + 4.0
