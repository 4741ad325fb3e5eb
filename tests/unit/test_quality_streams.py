"""Recordings as streams of the benchmark: which rows come in which order, and which of them count."""

import csv
import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from quality_made import Stress, along_a_direction, by_regimes, in_bursts, made, mixed, moved
from quality_metrics import runs
from quality_stream import Stream, shuffled, warmup_rows
from quality_streams import normal_streams, streams, window_rows


def record(path: Path, header: str, rows: Iterable[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header.split(","))
        writer.writerows(rows)


def table(n: int = 400, columns: int = 2, anomalous: Sequence[int] = (), seed: int = 0) -> Stream:
    labels = np.zeros(n, np.bool_)
    labels[list(anomalous)] = True
    values = np.random.default_rng(seed).normal(size=(n, columns))
    names = tuple(f"x{i}" for i in range(columns))
    return Stream("made/up", "tabular", names, values, labels, 50, np.arange(n) >= 50)


def test_a_tenth_warms_up_but_50_rows_at_least_and_2000_at_most() -> None:
    assert [warmup_rows(n) for n in (351, 501, 5803, 20_000, 90_000)] == [50, 50, 580, 2000, 2000]


def test_a_test_half_follows_its_train_half_and_alone_is_judged(tmp_path: Path) -> None:
    record(tmp_path / "asd/one_train.csv.gz", "m00,m01,label", [(i, 0.5, 0) for i in range(30)])
    record(tmp_path / "asd/one_test.csv.gz", "m00,m01,label", [(100 + i, 0.5, i > 15) for i in range(20)])
    (stream,) = streams(tmp_path, "asd")
    assert (stream.name, stream.columns, stream.warmup) == ("asd/one", ("m00", "m01"), 30)
    assert stream.values[:, 0].tolist() == [*range(30), *range(100, 120)]
    assert np.flatnonzero(stream.judged).tolist() == list(range(30, 50))
    assert np.flatnonzero(stream.labels).tolist() == list(range(46, 50))


def test_of_a_long_train_half_the_end_is_taken_unless_the_whole_is_asked_for(tmp_path: Path) -> None:
    record(tmp_path / "smd/one_train.csv.gz", "m00,label", [(i, 0) for i in range(8_100)])
    record(tmp_path / "smd/one_test.csv.gz", "m00,label", [(i, i < 5) for i in range(20)])
    (stream,) = streams(tmp_path, "smd")
    assert (len(stream), stream.warmup, stream.values[0, 0]) == (8_020, 8_000, 100)
    (whole,) = streams(tmp_path, "smd", whole=True)
    assert (len(whole), whole.warmup) == (8_120, 8_100)


def test_test_bed_files_are_judged_after_400_rows_in_file_order(tmp_path: Path) -> None:
    rows = [(f"2020-03-09T10:{i // 60:02}:{i % 60:02}", i, i > 450) for i in range(460)]
    record(tmp_path / "skab/valve1/0.csv", "timestamp,Pressure,label", rows)
    (stream,) = streams(tmp_path, "skab")
    assert (stream.name, stream.columns, stream.warmup) == ("skab/valve1/0", ("Pressure",), 400)
    assert stream.judged.tolist() == [False] * 400 + [True] * 60
    assert stream.times is not None
    assert stream.times[61] == "2020-03-09T10:01:01"


def test_tables_come_in_file_order_and_shuffled(tmp_path: Path) -> None:
    record(tmp_path / "tabular/some.csv.gz", "x00,label", [(i, i % 10 == 0) for i in range(600)])
    in_file, mixed = streams(tmp_path, "tabular")
    assert (in_file.name, mixed.name) == ("tabular/some/file", "tabular/some/shuffled")
    assert in_file.values[:, 0].tolist() == list(range(600))
    assert mixed.values[:, 0].tolist() == np.random.default_rng(1).permutation(600).tolist()
    assert (mixed.values[:, 0] % 10 == 0).tolist() == mixed.labels.tolist()
    assert np.flatnonzero(mixed.judged)[0] == mixed.warmup == 60


def test_a_long_table_is_shuffled_whole_and_cut_then(tmp_path: Path) -> None:
    record(tmp_path / "tabular/long.csv.gz", "x00,label", [(i, i % 10 == 0) for i in range(20_050)])
    in_file, mixed = streams(tmp_path, "tabular")
    assert len(in_file) == len(mixed) == 20_000
    assert mixed.values.max() > 20_000
    assert [len(stream) for stream in streams(tmp_path, "tabular", whole=True)] == [20_050] * 2


def test_a_stream_with_hardly_an_anomaly_to_judge_is_left_out(tmp_path: Path) -> None:
    record(tmp_path / "tabular/early.csv.gz", "x00,label", [(i, i < 50 or i > 197) for i in range(200)])
    assert [stream.name for stream in streams(tmp_path, "tabular")] == ["tabular/early/shuffled"]


def test_words_are_categories_and_the_last_two_thirds_are_judged(tmp_path: Path) -> None:
    rows = [(i, "tcp" if i % 2 else "udp", i % 3 == 0) for i in range(300)]
    record(tmp_path / "nslkdd/some_5pct.csv.gz", "duration,protocol,label", rows)
    (stream,) = streams(tmp_path, "nsl")
    assert (stream.name, stream.columns, list(stream.categories)) == (
        "nsl/some_5pct",
        ("duration",),
        ["protocol"],
    )
    assert stream.categories["protocol"][:2].tolist() == ["udp", "tcp"]
    assert (stream.warmup, np.flatnonzero(stream.judged)[0]) == (50, 100)


def cards(folder: Path) -> Stream:
    """A payment an hour for 21 days."""
    rows = [
        (f"2024-04-{1 + hour // 24:02}T{hour % 24:02}:00:00", hour % 7, 1000 + hour % 5, 9.5, hour % 50 == 0)
        for hour in range(21 * 24)
    ]
    record(folder / "cards_sim/cards_21days.csv.gz", "timestamp,customer_id,terminal_id,amount,label", rows)
    record(folder / "cards_sim/fraud_scenarios.csv", "row,scenario", [(0, 1), (400, 2), (450, 3)])
    (stream,) = streams(folder, "cards")
    return stream


def test_payments_have_keys_and_are_judged_from_the_15th_day(tmp_path: Path) -> None:
    stream = cards(tmp_path)
    assert (stream.entity, stream.columns, list(stream.categories)) == (
        "customer_id",
        ("amount",),
        ["terminal_id"],
    )
    assert (stream.amount, stream.counterparts) == ("amount", ("terminal_id",))
    assert stream.keys is not None
    assert stream.keys[:8].tolist() == ["0", "1", "2", "3", "4", "5", "6", "0"]
    assert np.flatnonzero(stream.judged)[0] == 14 * 24
    assert stream.hopeless is not None
    assert np.flatnonzero(stream.hopeless).tolist() == [400]


def test_of_payments_the_detector_gets_no_column_that_was_made_of_earlier_ones(tmp_path: Path) -> None:
    header = "timestamp,customer_id,terminal_id,amount,cust_nb_1d,term_nb_7d,is_night,label"
    rows = [(f"2024-04-{1 + i // 24:02}T{i % 24:02}:00:00", 1, 2, 9.5, 3, 4, 0, i % 2) for i in range(480)]
    record(tmp_path / "cards_sim/cards_21days.csv.gz", header, rows)
    record(tmp_path / "cards_sim/fraud_scenarios.csv", "row,scenario", [(1, 1)])
    (stream,) = streams(tmp_path, "cards")
    assert stream.derived == ("cust_nb_1d", "term_nb_7d")


def test_a_recording_is_written_with_all_that_belongs_to_an_event(tmp_path: Path) -> None:
    path = tmp_path / "stream.csv"
    cards(tmp_path).write(path)
    lines = path.read_text().splitlines()
    assert lines[0] == "timestamp,customer_id,terminal_id,amount,label"
    assert lines[1] == "2024-04-01T00:00:00,0,1000,9.5,1"
    assert len(lines) == 1 + 21 * 24


def test_numbers_survive_being_written(tmp_path: Path) -> None:
    stream = table(50)
    stream.write(tmp_path / "stream.csv")
    with (tmp_path / "stream.csv").open(newline="") as file:
        read = np.array([[float(row["x0"]), float(row["x1"])] for row in csv.DictReader(file)])
    assert (read == stream.values).all()


def test_metrics_come_with_windows_in_rows_and_after_probation(tmp_path: Path) -> None:
    times = [f"2014-04-01T{i // 12:02}:{i % 12 * 5:02}:00" for i in range(200)]
    record(tmp_path / "nab/real/some.csv", "timestamp,value,label", [(t, 1, 0) for t in times])
    record(tmp_path / "nab/real/calm.csv", "timestamp,value,label", [(t, 1, 0) for t in times])
    windows = {"real/some.csv": [[times[50], times[69]]], "real/calm.csv": []}
    (tmp_path / "nab/windows.json").write_text(json.dumps(windows))
    calm, some = streams(tmp_path, "nab")
    assert (calm.name, calm.windows, some.windows) == ("nab/real/calm", (), ((50, 69),))
    assert np.flatnonzero(some.judged)[0] == 30
    assert [stream.name for stream in normal_streams(tmp_path)] == ["nab/real/calm"]


def test_of_rows_with_the_same_time_a_window_takes_the_first() -> None:
    times = np.array([f"2015-09-01T00:0{i}:00" for i in (0, 1, 1, 2, 3, 3)], np.object_)
    found = list(window_rows(times, [["2015-09-01 00:01:00.000000", "2015-09-01 00:03:00.000000"]]))
    assert found == [(1, 4)]


def test_a_window_must_begin_and_end_at_rows() -> None:
    times = np.array(["2015-09-01T00:00:00"], np.object_)
    with pytest.raises(ValueError, match="there is no row at one of its edges"):
        list(window_rows(times, [["2015-09-01T00:00:00", "2015-09-01T00:01:00"]]))


def test_normal_streams_have_lost_their_anomalous_rows(tmp_path: Path) -> None:
    record(tmp_path / "tabular/some.csv.gz", "x00,label", [(i, i % 10 == 0) for i in range(600)])
    record(tmp_path / "asd/one_train.csv.gz", "m00,label", [(i, 0) for i in range(30)])
    train, normal = normal_streams(tmp_path)
    assert (train.name, len(train)) == ("asd/one_train", 30)
    assert (normal.name, len(normal), bool(normal.labels.any())) == ("tabular/some/file-normal", 540, False)
    assert (normal.values[:, 0] % 10 != 0).all()


def test_recordings_that_are_not_there_are_left_out(tmp_path: Path) -> None:
    for family in (
        "smd",
        "skab",
        "tabular",
        "nsl",
        "cards",
        "syn",
        "nab",
        "drift",
        "burst-shuffled",
        "mixed",
    ):
        assert list(streams(tmp_path, family)) == []


def test_equal_streams_have_equal_digests_and_others_have_not() -> None:
    stream = table()
    assert stream.digest() == table().digest()
    other = table()
    other.values[7, 1] += 1e-9
    assert other.digest() != stream.digest()
    assert shuffled(stream, stream.name).digest() != stream.digest()


def test_rows_that_are_taken_keep_what_belongs_to_them(tmp_path: Path) -> None:
    stream = cards(tmp_path)
    rows = np.array([400, 3])
    taken = stream.taken(rows, "two")
    assert stream.times is not None
    assert taken.times is not None
    assert taken.keys is not None
    assert taken.hopeless is not None
    assert taken.times.tolist() == stream.times[rows].tolist()
    assert (taken.keys.tolist(), taken.hopeless.tolist()) == (["1", "3"], [True, False])
    assert taken.categories["terminal_id"].tolist() == ["1000", "1003"]


def test_a_drifting_stream_moves_all_the_way_and_its_anomalies_lie_anywhere() -> None:
    source = table(3000, anomalous=range(0, 3000, 20))
    along = Stress("direction", "made/up", along_a_direction)
    drifting, mixed = made(along, source, "drift", 0)
    assert (drifting.name, drifting.family) == ("drift/direction-up-0", "drift")
    assert (mixed.name, mixed.family) == ("drift/direction-up-0-shuffled", "drift-shuffled")
    normal = drifting.values[~drifting.labels]
    first, last = normal[:500].mean(axis=0), normal[-500:].mean(axis=0)
    assert np.abs(last - first).max() > 1.5
    assert drifting.labels.sum() == 85  # three for each hundred normal rows
    where = np.flatnonzero(drifting.labels) / len(drifting)
    assert where.min() < 0.1
    assert where.max() > 0.9
    assert sorted(map(tuple, mixed.values)) == sorted(map(tuple, drifting.values))
    assert np.abs(np.diff([half[~flag].mean() for half, flag in _halves(mixed)])) < 0.2


def _halves(stream: Stream) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    return zip(np.array_split(stream.values, 2), np.array_split(stream.labels, 2), strict=True)


def test_regimes_take_turns() -> None:
    source = table(3000, anomalous=range(0, 3000, 20))
    stream, _ = made(Stress("regimes", "made/up", by_regimes), source, "drift", 0)
    normal = stream.values[~stream.labels]
    inside = np.mean([part.var() for part in np.array_split(normal, 12)])
    assert inside < 0.8 * normal.var()


def test_what_moves_begins_where_it_was_and_ends_twice_as_wide() -> None:
    values = np.random.default_rng(0).normal(size=(4000, 3))
    now = moved(values, np.random.default_rng(1))
    assert now[0] == pytest.approx(values[0])
    assert np.diff(now[-400:], axis=0).std() == pytest.approx(
        2 * np.diff(values[-400:], axis=0).std(), rel=0.1
    )


def test_bursts_are_unbroken_and_as_long_as_asked_and_spare_the_warm_up() -> None:
    source = table(2000, anomalous=range(1000, 1400))
    stress = Stress("long", "made/up", in_bursts(4, 30, 60))
    for seed in range(5):
        stream, mixed = made(stress, source, "burst", seed)
        found = runs(stream.labels)
        assert len(found) <= 4  # two may touch
        assert 4 * 30 <= stream.labels.sum() <= 4 * 60
        assert found[0, 0] >= stream.warmup
        assert len(runs(mixed.labels)) > 50


def test_a_seed_makes_the_same_stream_again_and_another_one_another() -> None:
    source = table(2000, anomalous=range(1000, 1400))
    stress = Stress("long", "made/up", in_bursts(4, 30, 60), moving=True)
    first, again, other = (next(iter(made(stress, source, "burst", seed))) for seed in (0, 0, 1))
    assert first.digest() == again.digest()
    assert (first.values.shape != other.values.shape) or bool((first.values != other.values).any())


def test_of_a_mixed_stream_one_in_twenty_is_anomalous_and_of_its_clean_twin_none_of_the_first_half() -> None:
    source = table(3000, anomalous=range(0, 3000, 10))
    whole, clean = mixed(source, 3)
    assert (whole.family, clean.family) == ("mixed", "mixed-clean")
    assert whole.labels.mean() == pytest.approx(0.05, abs=1e-3)
    first = ~whole.judged
    assert whole.labels[first].mean() == pytest.approx(0.05, abs=0.02)
    assert not clean.labels[~clean.judged].any()
    assert (clean.values[clean.judged] == whole.values[whole.judged]).all()
    assert (clean.labels[clean.judged] == whole.labels[whole.judged]).all()


def test_where_anomalies_are_few_a_mixed_stream_is_shorter() -> None:
    whole, _ = mixed(table(3000, anomalous=range(10)), 0)
    assert (len(whole), whole.labels.sum()) == (200, 10)
