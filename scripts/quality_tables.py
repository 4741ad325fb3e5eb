"""Tables for documents, written where the figures were found: none is copied by hand.

A document holds a place for each table, between two comments: `<!-- NAME: begin -->` and `<!-- NAME: end -->`.
"""

import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from streamdet.clock import SystemClock

Row = Sequence[str]


def put(document: Path, name: str, lines: Iterable[str]) -> None:
    """Replace what stands in the place of that name, headed by the day and the command that runs.

    Raises:
        SystemExit: the document has no such place.
    """
    text = document.read_text()
    place = re.compile(
        rf"(<!-- {re.escape(name)}: begin -->\n).*?(<!-- {re.escape(name)}: end -->)", re.DOTALL
    )
    if not place.search(text):
        raise SystemExit(
            f"{document} has no place for the table {name!r}: add <!-- {name}: begin --> and the end"
        )
    body = "\n".join([f"{_today()}, `{_command()}`:", "", *lines, ""])
    document.write_text(place.sub(lambda found: found[1] + body + found[2], text))


def _today() -> str:
    return f"{datetime.fromtimestamp(SystemClock().now_ms() / 1000, UTC):%Y-%m-%d}"


def _command() -> str:
    """The one that runs, without what changes no figure: folders, and where figures go."""
    words, given = ["scripts/bench"], iter(sys.argv[1:])
    for word in given:
        if word in ("--document", "--cache", "--json"):
            next(given, None)
        elif word == "--data":
            words += [word, "DIR"]
            next(given, None)
        else:
            words.append(word)
    return shlex.join(words)


def table(header: Row, rows: Iterable[Row]) -> list[str]:
    """Lines of a table in Markdown."""
    return [_line(header), _line(["---"] * len(header)), *(_line(row) for row in rows)]


def _line(cells: Row) -> str:
    return f"| {' | '.join(cells)} |"


def beside_peers(families: Mapping[str, Mapping[str, Any]], ours: str) -> list[str]:
    """A row for each family: ROC-AUC and average precision, the best peer at either, and where no peer is better."""
    rows: list[Row] = []
    for family, models in families.items():
        mine = models.get(ours, {}).get("mean", {})
        if mine.get("roc_auc") is not None:
            best = " / ".join(_best(models, name) for name in ("roc_auc", "average_precision"))
            rows.append([family, _pair(models[ours]), best, _standing(models, ours)])
    lines = table(["family", ours, "best peer", "best or tied"], rows)
    nab = families.get("nab", {}).get(ours, {}).get("nab", {}).get("mean")
    return [*lines, *([] if nab is None else _of_nab(nab))]


def _of_nab(mean: Mapping[str, float]) -> list[str]:
    best, live = (f"{mean[name]:.1f}" for name in ("standard_by_raw", "standard_live"))
    told = f"NAB, standard profile: {best} at the best threshold, as on its board, {live} with the alerts as given."
    return ["", told]


def _pair(figures: Mapping[str, Any]) -> str:
    names = ("roc_auc", "average_precision")
    spread = "" if figures.get("seeds", 1) < 2 else f" ± {_shown(figures['std'].get('roc_auc'))}"
    auc, ap = (_shown(figures["mean"].get(name)) for name in names)
    return f"{auc}{spread} / {ap}"


def _best(models: Mapping[str, Any], name: str) -> str:
    found = {
        model: figures["mean"][name]
        for model, figures in models.items()
        if figures.get("rival") and figures["mean"].get(name) is not None
    }
    if not found:
        return "-"
    best = max(found, key=lambda model: found[model])
    return f"{_shown(found[best])} ({best})"


def _standing(models: Mapping[str, Any], ours: str) -> str:
    standing = models.get("against_peers", {}).get(ours)
    return "-" if standing is None else f"{standing['best_or_tied']:.0%} of {standing['streams']}"


def with_and_without(families: Mapping[str, Mapping[str, Any]], ours: str) -> list[str]:
    """A row for each family and each of our variants that ran there: what it gains over the default."""
    rows: list[Row] = []
    for family, models in families.items():
        whole = models.get(ours)
        variants = [name for name in models if name.startswith(f"{ours}:")]
        if whole is None or not variants or whole["mean"].get("roc_auc") is None:
            continue
        rows.append([family, "default", _pair(whole), ""])
        for name in variants:
            gains = (
                _gain(models[name]["mean"].get(figure), whole["mean"].get(figure))
                for figure in ("roc_auc", "average_precision")
            )
            rows.append(["", name.partition(":")[2], _pair(models[name]), " / ".join(gains)])
    return table(["family", "scorers", "ROC-AUC / AP", "against the default"], rows)


def _gain(value: float | None, than: float | None) -> str:
    return "-" if value is None or than is None else f"{value - than:+.3f}"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
