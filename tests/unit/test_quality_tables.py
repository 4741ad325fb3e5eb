"""Tables of figures for documents: whose figure stands where, and that nothing else of a document is touched."""

import sys
from pathlib import Path
from typing import Any

import pytest
from quality_tables import beside_peers, put, table, with_and_without


def figures(
    auc: float | None, ap: float | None = None, *, rival: bool = False, seeds: int = 1
) -> dict[str, Any]:
    mean, std = {"roc_auc": auc, "average_precision": ap}, {"roc_auc": 0.0123, "average_precision": 0.0}
    return {"streams": 2, "seeds": seeds, "rival": rival, "mean": mean, "std": std}


def test_a_table_takes_its_place_and_leaves_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [
        "--data",
        "/some/folder of mine",
        "--seeds",
        "3",
        "--json",
        "x.json",
        "--cache",
        "c",
        "--document",
        "D",
    ]
    monkeypatch.setattr(sys, "argv", ["bench", "quality", *given])
    document = tmp_path / "README.md"
    document.write_text(
        "before\n<!-- a: begin -->\nold\n<!-- a: end -->\n<!-- b: begin -->\n<!-- b: end -->\nafter\n"
    )
    put(document, "a", table(["x", "y"], [["1", "2"]]))
    lines = document.read_text().splitlines()
    assert lines[:2] == ["before", "<!-- a: begin -->"]
    assert lines[2].endswith(", `scripts/bench quality --data DIR --seeds 3`:")
    assert lines[3:7] == ["", "| x | y |", "| --- | --- |", "| 1 | 2 |"]
    assert lines[-4:] == ["<!-- a: end -->", "<!-- b: begin -->", "<!-- b: end -->", "after"]
    put(document, "a", ["anew"])
    assert "| x |" not in document.read_text()


def test_a_document_without_a_place_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text("nothing\n")
    with pytest.raises(SystemExit, match=r"no place for the table 'a': add <!-- a: begin -->"):
        put(document, "a", ["x"])
    assert document.read_text() == "nothing\n"


def test_the_best_peer_is_the_best_of_the_rivals_at_each_figure() -> None:
    models = {
        "streamdet": figures(0.9, 0.5, seeds=3),
        "streamdet:metric": figures(0.99, 0.99),
        "z": figures(0.8, 0.6, rival=True),
        "forest": figures(0.85, 0.4, rival=True),
        "against_peers": {"streamdet": {"best_or_tied": 0.5, "streams": 2}},
    }
    rows = beside_peers({"smd": models, "nab": {"streamdet": figures(None)}}, "streamdet")
    assert rows[2:] == ["| smd | 0.900 ± 0.012 / 0.500 | 0.850 (forest) / 0.600 (z) | 50% of 2 |"]


def test_of_nab_its_own_scores_are_told() -> None:
    nab = {"nab": {"mean": {"standard_by_raw": 69.94, "standard_live": 70.4}}, **figures(None)}
    *_, told = beside_peers({"nab": {"streamdet": nab}}, "streamdet")
    assert told.startswith("NAB, standard profile: 69.9 at the best threshold")
    assert told.endswith("70.4 with the alerts as given.")


def test_variants_stand_under_the_default_with_what_they_gain() -> None:
    models = {
        "streamdet": figures(0.9, 0.5),
        "streamdet:without-forest": figures(0.88, 0.55),
        "z": figures(0.95),
    }
    rows = with_and_without({"tabular": models, "nsl": {"streamdet": figures(0.9)}}, "streamdet")
    assert rows[2:] == [
        "| tabular | default | 0.900 / 0.500 |  |",
        "|  | without-forest | 0.880 / 0.550 | -0.020 / +0.050 |",
    ]
