"""What is said about verdicts: metrics against labels, labels as people write them, score files, summaries."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeSink, FakeSource, StopAfter, readings, worker_over
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from pyarrow.csv import read_csv
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score

from streamdet.errors import ConfigError
from streamdet.evaluate.labels import CsvLabels, JsonLabels, is_anomalous
from streamdet.evaluate.metrics import Quality, ScoreCounts
from streamdet.evaluate.outcome import Outcome
from streamdet.evaluate.scores import COLUMNS, ScoresWriter
from streamdet.events import Cause, LaneId, Mode
from streamdet.worker import run

LANE = LaneId("plant", 0)
NUMBERS_FOR_ANOMALY = ["1", "1.0", "2", "-1"]
WORDS_FOR_ANOMALY = ["true", "True", " YES ", "anomaly", "Anomalous", "abnormal", "fraud", "attack"]
WORDS_FOR_NORMAL = ["0", "0.0", "", "false", "no", "normal", "nan", "NA", "-", "ok", "benign"]


def counted(raw: np.ndarray, labels: np.ndarray, flagged: np.ndarray | None = None) -> Quality:
    counts = ScoreCounts()
    flags = np.zeros(len(raw), np.bool_) if flagged is None else flagged
    for part in np.array_split(np.arange(len(raw)), 3):
        counts.add(raw[part].astype(np.float64), flags[part], labels[part].astype(np.bool_))
    assert counts.anomalous == int(labels.sum())
    return counts.quality()


@pytest.mark.parametrize("share", [0.5, 0.05, 0.002])
@pytest.mark.parametrize("apart", [0.0, 1.0, 4.0])
def test_areas_agree_with_scikit_learn(share: float, apart: float) -> None:
    rng = np.random.default_rng(1)
    labels = rng.random(20_000) < share
    raw = np.exp(rng.normal(0, 1, 20_000) + apart * labels)
    quality = counted(raw, labels)
    assert quality.roc_auc == pytest.approx(roc_auc_score(labels, raw), abs=1e-4)
    # Scores that lie in one 0.1 % wide bin count as tied.
    assert quality.average_precision == pytest.approx(average_precision_score(labels, raw), abs=2e-3)


@given(
    scores=st.lists(
        st.tuples(
            st.sampled_from([0.0, 1e-12, 0.01, 0.5, 1.0, 8.0, 700.0, 1e9]), st.booleans(), st.booleans()
        ),
        min_size=1,
        max_size=60,
    )
)
def test_ties_and_extremes_are_treated_as_scikit_learn_treats_them(
    scores: list[tuple[float, bool, bool]],
) -> None:
    raw, labels, flagged = (np.array(column) for column in zip(*scores, strict=True))
    quality = counted(raw, labels, flagged)
    # The axis ends at exp(-10) and exp(10): what lies beyond counts as there.
    seen = raw.clip(np.exp(-10.0), np.exp(9.9))
    if labels.any() and not labels.all():
        assert quality.roc_auc == pytest.approx(roc_auc_score(labels, seen))
    else:
        assert quality.roc_auc is None
    if labels.any():
        assert quality.average_precision == pytest.approx(average_precision_score(labels, seen))
        assert quality.recall == pytest.approx(recall_score(labels, flagged))
    else:
        assert quality.average_precision is quality.recall is None
    if flagged.any():
        assert quality.precision == pytest.approx(precision_score(labels, flagged, zero_division=0.0))
    else:
        assert quality.precision is None
    if quality.f1 is not None:
        assert quality.f1 == pytest.approx(f1_score(labels, flagged))


def test_without_events_nothing_is_defined() -> None:
    assert ScoreCounts().quality() == Quality(None, None, None, None, None)


@pytest.mark.parametrize("word", [*NUMBERS_FOR_ANOMALY, *WORDS_FOR_ANOMALY])
def test_words_and_numbers_for_anomalous(word: str) -> None:
    assert is_anomalous(word)


@pytest.mark.parametrize("word", WORDS_FOR_NORMAL)
def test_words_and_numbers_for_normal(word: str) -> None:
    assert not is_anomalous(word)


@pytest.mark.parametrize(
    ("value", "expected"), [(True, True), (False, False), (1, True), (0, False), (0.5, True)]
)
def test_values_of_json_are_labels_too(value: object, expected: bool) -> None:
    assert is_anomalous(value) is expected


def test_no_label_is_normal() -> None:
    assert not is_anomalous(None)
    assert JsonLabels("label").read([b'{"x": 1}', b'{"label": null}', b'{"label": 1}']).tolist() == [0, 0, 1]


def test_labels_of_csv_are_read_by_their_column_and_quoting() -> None:
    labels = CsvLabels(["x", "label", "note"], ";", "label")
    assert labels.read([b'1;"0";a', b'"1;1";"fraud";', b"2;yes;b"]).tolist() == [False, True, True]


def score_file(path: Path, batches: int = 7) -> StopAfter:
    """Write the scores of 900 events, three of them unreadable."""
    values = readings(900, seed=8)
    values[10] = values[300] = None
    values[301] = b"{"
    seen = StopAfter()
    with ScoresWriter(path) as writer:
        source = FakeSource({LANE: values}, per_poll=900 // batches)
        run(worker_over(source, FakeSink(), observers=[writer, seen]), StopAfter())
        writer.keep()
    return seen


def test_a_score_file_has_a_line_for_every_event_in_order(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    seen = score_file(path)
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert list(rows[0]) == [
        "timestamp",
        "entity",
        "raw_score",
        "limit",
        "score",
        "p_value",
        "mode",
        "flagged",
    ]
    assert len(rows) == 897
    assert [row["mode"] for row in rows] == [mode.label for mode in seen.modes(LANE)]
    assert [row["timestamp"] for row in rows] == sorted(row["timestamp"] for row in rows)
    assert rows[0]["timestamp"] == "2025-06-15T15:06:40.000Z"
    for row, mode in zip(rows, seen.modes(LANE), strict=True):
        if mode is Mode.COLD:
            assert row["raw_score"] == row["limit"] == row["score"] == row["p_value"] == ""
        else:
            assert float(row["p_value"]) == pytest.approx(np.exp(-float(row["raw_score"])))
        if mode >= Mode.READY:
            assert float(row["score"]) == pytest.approx(float(row["raw_score"]) / float(row["limit"]))
            assert row["flagged"] == str(int(float(row["score"]) >= 1))
        else:
            assert row["flagged"] == "0"


def test_a_parquet_score_file_holds_the_same(tmp_path: Path) -> None:
    text, table = tmp_path / "scores.csv", tmp_path / "scores.parquet"
    score_file(text)
    score_file(table)
    held = parquet.read_table(table)
    assert held.schema.equals(COLUMNS)
    rows = list(csv.DictReader(io.StringIO(text.read_text())))
    assert held["raw_score"].to_pylist() == [
        float(row["raw_score"]) if row["raw_score"] else None for row in rows
    ]
    assert held["flagged"].to_pylist() == [int(row["flagged"]) for row in rows]


@pytest.mark.parametrize("name", ["scores.csv", "scores.parquet"])
def test_with_noise_rules_a_score_file_ends_with_the_reason(tmp_path: Path, name: str) -> None:
    path, seen = tmp_path / name, StopAfter()
    rules = {"flow": {"range": [0, None]}, "temperature": {"direction": "down"}}
    values = readings(900, seed=8, spikes=(700, 800))
    values[850] = (values[850] or b"").replace(b'"flow":', b'"flow":-')
    with ScoresWriter(path, reasons=True) as writer:
        source = FakeSource({LANE: values})
        run(worker_over(source, FakeSink(), observers=[writer, seen], noise={"features": rules}), StopAfter())
        writer.keep()
    table = parquet.read_table(path) if path.suffix == ".parquet" else read_csv(path)
    assert table.column_names == [*COLUMNS.names, "reason"]
    reasons = table["reason"].to_pylist()
    assert {reasons[850], reasons[700]} == {"range", "direction"}
    assert reasons == [Cause(r).label for part in seen.parts for r in part.verdicts.reason.tolist()]


def test_a_score_file_that_is_not_finished_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    with pytest.raises(ZeroDivisionError), ScoresWriter(path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["scores.txt", "scores", "scores.csv.gz"])
def test_another_kind_of_score_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"scores are written as \.csv or \.parquet"):
        ScoresWriter(tmp_path / name)


def test_a_summary_counts_after_the_warm_up_only() -> None:
    values = [
        (v or b"").replace(b"}", b',"label":%d}' % (i in (5, 700, 850)))
        for i, v in enumerate(readings(900, seed=8, spikes=(5, 700, 850)))
    ]
    outcome, seen = Outcome(JsonLabels("label"), keep_timeline=False), StopAfter()
    run(worker_over(FakeSource({LANE: values}), FakeSink(), observers=[outcome, seen]), StopAfter())
    ready = sum(mode >= Mode.READY for mode in seen.modes(LANE))
    assert (outcome.events, outcome.rejected, outcome.after_warmup) == (900, 0, ready)
    assert outcome.anomalous == 2  # the one in the warm-up does not count
    quality = outcome.quality()
    assert quality.recall == 1.0
    assert quality.precision == pytest.approx(2 / outcome.alerts)
    assert quality.roc_auc is not None
    assert quality.roc_auc > 0.99


def test_without_labels_there_are_no_metrics() -> None:
    outcome = Outcome(None, keep_timeline=False)
    assert outcome.anomalous is None
    assert outcome.quality() == Quality(None, None, None, None, None)
