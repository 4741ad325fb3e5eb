"""How well anomalies are found: a plain replay without configuration, and other detectors on the same streams.

With `--data DIR`, all streams that `quality_streams` makes of the recordings in that folder, by families; the protocol
of each is told there. What is printed as JSON: for each stream and model the metrics of its judged rows (means over
seeds, and each seed); for each family their means over streams, with the standard deviation of that mean over seeds,
and how the detector stands to its peers. Flags are those of the running limit at the default alert rate; `far` is the
rate that was realised on normal rows. `--rates` runs streams without anomalies instead, at three asked rates.

Without `--data`, River's Shuttle in file order.
"""

import argparse
import csv
import gzip
import logging
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import quality_metrics as metrics
from bench_common import Figures, Never, say
from quality_detector import OURS, Streamdet
from quality_nab import PROFILES, NabCorpus, ScoredFile
from quality_peers import Model, Scored, cached, left_out, peers, too_slow
from quality_stream import Stream
from quality_streams import FAMILIES, MULTIVARIATE_SENSORS, normal_streams, streams
from quality_tables import beside_peers, put, with_and_without

from streamdet.config import Settings
from streamdet.events import Bools, Floats
from streamdet.replaying import Replay, replay

# ROC-AUC within which two models are tied.
TIE: Final = 0.01
RATES: Final = (0.001, 0.005, 0.01)
# Realised against asked rate; and how many flags must be expected for the ratio to mean anything.
RATE_BAND: Final = (0.5, 2.0)
EXPECTED_FLAGS_MIN: Final = 10
# Families in which experts look at so many alerts a day.
DAILY: Final = ("cards", "creditcard")
# Families whose published figures count all rows, the first ones too.
COUNTED_WHOLE: Final = ("tabular", "syn")

Numbers = dict[str, float]


def measure(given: argparse.Namespace) -> Figures:
    """All figures that were asked for."""
    if given.data is None:
        return _shuttle_alone()
    if not given.data.is_dir():
        raise SystemExit(f"--data {given.data}: there is no such folder of recordings")
    logging.getLogger("streamdet").setLevel(logging.ERROR)  # a model that was refused is no news in a table
    if given.rates:
        return _rates(given)
    return _against_labels(given)


def _models(given: argparse.Namespace) -> list[Model]:
    """Those asked for, else the detector and all peers."""
    others = {model.name: model for model in cached(peers(), given.cache)}
    wanted = _split(given.models) or [OURS, *others]
    return [
        Streamdet.called(name) or others.get(name) or _unknown("model", name, [OURS, *others])
        for name in wanted
    ]


def _families(given: argparse.Namespace) -> list[str]:
    wanted = _split(given.families) or list(FAMILIES)
    return [name if name in FAMILIES else _unknown("family", name, FAMILIES) for name in wanted]


def _split(names: str | None) -> list[str]:
    return [name.strip() for name in (names or "").split(",") if name.strip()]


def _unknown(kind: str, name: str, known: Iterable[str]) -> Any:  # noqa: ANN401 - it never returns
    reasons = left_out()
    why = f" ({reasons[name]})" if name in reasons else ""
    raise SystemExit(f"there is no {kind} {name!r} here{why}; there are {', '.join(known)}")


# Scores and flags against labels


@dataclass(frozen=True, eq=False)
class Result:
    """What a model came to on a stream, with one seed."""

    stream: str
    family: str
    model: str
    rival: bool
    seed: int
    numbers: Numbers
    counts: metrics.Counts | None
    nab: dict[str, ScoredFile]  # raw, and where there are any, score and flags; empty elsewhere


def _against_labels(given: argparse.Namespace) -> Figures:
    models = _models(given)
    for name, why in left_out().items():
        say(f"left out: {name} ({why})")
    results: list[Result] = []
    families: dict[str, Figures] = {}
    slow: dict[str, str] = {}
    for family in _families(given):
        mine = list(_of_family(given, family, models, slow))
        if not mine:
            say(f"{family}: no recordings in {given.data}")
            continue
        results += mine
        families[family] = _summary(mine)
    say("")
    for family, summary in families.items():
        _tell(family, summary)
    everything = _everything(families, results)
    _tell("all families", everything)
    if given.document is not None:
        _write(given.document, families)
    return {
        "quality": _by_stream(results),
        "families": families | {"all": everything},
        "left_out": left_out() | slow,
    }


def _write(document: Path, families: Mapping[str, Figures]) -> None:
    """The table beside peers where some ran, that of the scorers where any was alone or left out."""
    models = [figures for summary in families.values() for figures in summary.items()]
    if any(isinstance(figures, dict) and figures.get("rival") for _, figures in models):
        put(document, "quality", beside_peers(families, OURS))
    if any(name.startswith(f"{OURS}:") for name, _ in models):
        put(document, "scorers", with_and_without(families, OURS))


def _of_family(
    given: argparse.Namespace, family: str, models: Sequence[Model], slow: dict[str, str]
) -> Iterator[Result]:
    """Run the models over the streams of a family; those that are too slow for one are told and put into `slow`."""
    say(f"{family:<36} {'':<24} {HEADER}")
    for stream in streams(given.data, family, whole=given.whole):
        for model in models:
            if (why := too_slow(model, stream)) is not None:
                say(f"{stream.name:<36} {model.name:<24} left out ({why})")
                slow[f"{model.name} on {stream.name}"] = why
            if not model.suits(stream):
                continue
            for seed in range(given.seeds if model.seeded else 1):
                result = _result(stream, model, seed)
                say(f"{stream.name:<36} {model.name:<24} {_line(result.numbers)}")
                yield result


def _result(stream: Stream, model: Model, seed: int) -> Result:
    scored = model.run(stream, seed)
    labels, raw = stream.labels[stream.judged], scored.raw[stream.judged]
    flagged = None if scored.flagged is None else scored.flagged[stream.judged]
    numbers: Numbers = {}
    if stream.family != "nab":  # most rows of its windows are normal: ranking them says nothing
        numbers |= _ranking(stream, labels, raw, scored.raw)
    if flagged is not None:
        numbers |= _decisions(labels, flagged)
    numbers["rows_per_second"] = len(stream) / max(scored.seconds, 1e-9)
    return Result(
        stream.name,
        stream.family,
        model.name,
        model.rival,
        seed,
        numbers,
        None if flagged is None else metrics.counts(labels, flagged),
        _for_nab(stream, scored) if stream.family == "nab" else {},
    )


def _ranking(stream: Stream, labels: Bools, raw: Floats, everywhere: Floats) -> Numbers:
    numbers = {
        "roc_auc": metrics.roc_auc(labels, raw),
        "average_precision": metrics.average_precision(labels, raw),
        "best_f1": metrics.best_f1(labels, raw),
    }
    if stream.family in MULTIVARIATE_SENSORS:
        numbers["widened_ap"] = metrics.widened_ap(labels, raw)
    if stream.family in COUNTED_WHOLE:
        numbers["all_rows_roc_auc"] = metrics.roc_auc(stream.labels, everywhere)
        numbers["all_rows_average_precision"] = metrics.average_precision(stream.labels, everywhere)
    if stream.hopeless is not None:
        hopeful = ~stream.hopeless[stream.judged]
        numbers["average_precision_without_hopeless"] = metrics.average_precision(
            labels[hopeful], raw[hopeful]
        )
    if stream.family in DAILY and stream.times is not None:
        days = stream.times[stream.judged].astype("datetime64[D]").astype(np.int64)
        numbers["precision_at_100_a_day"] = metrics.precision_a_day(labels, raw, days)
    return numbers


def _decisions(labels: Bools, flagged: Bools) -> Numbers:
    rows, happened = metrics.counts(labels, flagged), metrics.events(labels, flagged)
    normal = max(rows.false + rows.passed, 1)
    return {
        "precision": rows.precision,
        "recall": rows.recall,
        "f1": rows.f1,
        "far": rows.far,
        "mar": rows.mar,
        "alert_rate": (rows.hits + rows.false) / len(labels),
        "events": happened.events,
        "event_recall": happened.recall,
        "median_delay_rows": happened.median_delay_rows,
        "false_alerts_per_1000": 1000 * rows.false / normal,
        "false_episodes_per_1000": 1000 * happened.false_episodes / normal,
    }


def _for_nab(stream: Stream, scored: Scored) -> dict[str, ScoredFile]:
    kinds = {"raw": scored.raw, "score": scored.score, "flagged": scored.flagged}
    return {
        kind: ScoredFile(values.astype(np.float64), stream.windows)
        for kind, values in kinds.items()
        if values is not None
    }


# Means over streams and seeds


def _summary(results: Sequence[Result]) -> Figures:
    """A family's figures by model, and how the detector stands to its peers."""
    by_model: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_model[result.model].append(result)
    summary: Figures = {model: _model_summary(mine) for model, mine in by_model.items()}
    standing = _standing(results)
    return summary | ({"against_peers": standing} if standing else {})


def _model_summary(results: Sequence[Result]) -> Figures:
    seeds = sorted({result.seed for result in results})
    each = [[result for result in results if result.seed == seed] for seed in seeds]
    names = list(dict.fromkeys(name for result in results for name in result.numbers))
    means = [
        {name: metrics.mean([r.numbers.get(name, float("nan")) for r in mine]) for name in names}
        for mine in each
    ]
    rival = results[0].rival
    summary: Figures = {"streams": len(each[0]), "seeds": len(seeds), "rival": rival, **_over_seeds(means)}
    pooled = [_pooled(mine) for mine in each]
    if pooled[0]:
        summary["pooled"] = _over_seeds(pooled)
    nab = [_nab(mine) for mine in each]
    if nab[0]:
        summary["nab"] = _over_seeds(nab)
    return summary


def _over_seeds(each: Sequence[Mapping[str, float]]) -> Figures:
    """Means, and the standard deviations between seeds."""
    mean = {name: _rounded(metrics.mean([numbers[name] for numbers in each])) for name in each[0]}
    unknown = min(1, len(each) - 1)  # of one seed alone it is 0
    std = {name: _rounded(float(np.std([n[name] for n in each], ddof=unknown))) for name in each[0]}
    return {"mean": mean, "std": std}


def _pooled(results: Sequence[Result]) -> Numbers:
    """Decisions on the rows of all streams together."""
    every = [result.counts for result in results if result.counts is not None]
    if not every:
        return {}
    rows = sum(every[1:], start=every[0])
    return {
        "precision": rows.precision,
        "recall": rows.recall,
        "f1": rows.f1,
        "far": rows.far,
        "mar": rows.mar,
    }


def _nab(results: Sequence[Result]) -> Numbers:
    """Scores of all files together: at the threshold that labels show to be best, and of the flags as they are."""
    numbers: Numbers = {}
    for profile in PROFILES:
        for kind in results[0].nab:
            corpus = NabCorpus([result.nab[kind] for result in results], profile)
            if kind != "flagged":
                numbers[f"{profile}_by_{kind}"] = corpus.best().score
                continue
            live = corpus.at(1.0)
            numbers[f"{profile}_live"] = live.score
            numbers |= {"windows_caught_live": live.caught, "false_rows_live": live.false_rows}
    return numbers


def _standing(results: Iterable[Result]) -> Figures:
    """For each of our models: on which share of streams no peer ranks clearly better, and where it is worst."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    rivals = set()
    for result in results:
        if "roc_auc" in result.numbers:
            found[result.model, result.stream].append(result.numbers["roc_auc"])
            if result.rival:
                rivals.add(result.model)
    auc = {key: metrics.mean(values) for key, values in found.items()}
    ours = dict.fromkeys(model for model, _ in auc if model.split(":")[0] == OURS)
    return {model: gaps for model in ours if (gaps := _gaps(model, rivals, auc))}


def _gaps(model: str, rivals: Iterable[str], auc: Mapping[tuple[str, str], float]) -> Figures:
    behind: dict[str, tuple[float, str]] = {}
    for stream in [stream for name, stream in auc if name == model]:
        others = [(auc[rival, stream], rival) for rival in sorted(rivals) if (rival, stream) in auc]
        if others:
            best, rival = max(others)
            behind[stream] = (best - auc[model, stream], rival)
    if not behind:
        return {}
    worst = max(behind, key=lambda stream: behind[stream][0])
    return {
        "streams": len(behind),
        "best_or_tied": _rounded(float(np.mean([gap <= TIE for gap, _ in behind.values()]))),
        "worst_gap": _rounded(behind[worst][0]),
        "worst_gap_on": worst,
        "worst_gap_to": behind[worst][1],
    }


def _everything(families: Mapping[str, Figures], results: Sequence[Result]) -> Figures:
    """Means over families, for models that ran in all that have such figures; and the standing on all streams."""
    ranked = {
        family: summary
        for family, summary in families.items()
        if any(isinstance(m, dict) and "roc_auc" in m.get("mean", {}) for m in summary.values())
    }
    summary: Figures = {}
    for model in dict.fromkeys(result.model for result in results):
        rows: list[Any] = [figures.get(model) for figures in ranked.values()]
        if rows and all(row is not None for row in rows):
            each = {
                name: metrics.mean([row["mean"][name] for row in rows])
                for name in ("roc_auc", "average_precision", "best_f1")
            }
            mean = {name: _rounded(value) for name, value in each.items()}
            summary[model] = {"families": len(rows), "mean": mean, "std": {}}
    standing = _standing(results)
    return summary | ({"against_peers": standing} if standing else {})


def _by_stream(results: Iterable[Result]) -> Figures:
    """Metrics by stream and model: means over seeds, and those of each seed where there are several."""
    found: dict[str, dict[str, list[Numbers]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        found[result.stream][result.model].append(result.numbers)
    return {
        stream: {model: _of_seeds(each) for model, each in models.items()} for stream, models in found.items()
    }


def _of_seeds(each: Sequence[Numbers]) -> Figures:
    mean: Figures = {name: _rounded(metrics.mean([numbers[name] for numbers in each])) for name in each[0]}
    if len(each) > 1:
        mean["seeds"] = [{name: _rounded(value) for name, value in numbers.items()} for numbers in each]
    return mean


def _rounded(value: float) -> float | None:
    """JSON has no NaN."""
    return round(float(value), 5) if np.isfinite(value) else None


# Tables on standard error

_COLUMNS: Final = (
    ("roc_auc", "AUC", 7, 3),
    ("average_precision", "AP", 7, 3),
    ("best_f1", "bestF1", 7, 3),
    ("widened_ap", "wideAP", 7, 3),
    ("precision", "prec", 7, 3),
    ("recall", "recall", 7, 3),
    ("f1", "F1", 7, 3),
    ("far", "FAR", 8, 4),
    ("event_recall", "events", 7, 2),
    ("median_delay_rows", "delay", 7, 0),
    ("false_episodes_per_1000", "f.ep/k", 7, 2),
)
HEADER: Final = "".join(f"{title:>{width}}" for _, title, width, _ in _COLUMNS) + f"{'rows/s':>12}"


def _line(numbers: Mapping[str, float | None]) -> str:
    cells = [_cell(numbers.get(name), width, digits) for name, _, width, digits in _COLUMNS]
    return "".join(cells) + _cell(numbers.get("rows_per_second"), 12, 0)


def _cell(value: float | None, width: int, digits: int) -> str:
    if value is None or not np.isfinite(value):
        return f"{'-':>{width}}"
    return f"{value:>{width},.{digits}f}"


def _tell(family: str, summary: Mapping[str, Any]) -> None:
    """A table of means."""
    say(f"{family:<25} {'':<10}{HEADER}")
    for model, figures in summary.items():
        if model == "against_peers":
            continue
        spread = figures["std"].get("roc_auc")
        shown = f"±{spread:.3f}" if spread is not None and figures["seeds"] > 1 else ""
        say(f"  {model:<24}{shown:>9} {_line(figures['mean'])}")
        for title, part in (("all rows pooled", "pooled"), ("NAB", "nab")):
            if part in figures:
                told = "  ".join(f"{k} {v:.4g}" for k, v in figures[part]["mean"].items() if v is not None)
                say(f"    {title}: {told}")
    for model, standing in summary.get("against_peers", {}).items():
        say(
            f"  {model}: best or tied on {standing['best_or_tied']:.0%} of {standing['streams']} streams; worst "
            f"{standing['worst_gap']:+.3f} behind {standing['worst_gap_to']} on {standing['worst_gap_on']}"
        )
    say("")


# The asked alert rate, on streams without anomalies


def _rates(given: argparse.Namespace) -> Figures:
    ours = [model for model in _models(given) if isinstance(model, Streamdet)]
    found: dict[str, dict[str, dict[str, Figures]]] = defaultdict(lambda: defaultdict(dict))
    ratios: dict[tuple[str, float], list[float]] = defaultdict(list)
    for stream in normal_streams(given.data):
        for model in ours:
            for rate in RATES:
                figures, several = _realised(stream, model, rate, given.seeds)
                found[stream.name][model.name][f"{rate:g}"] = figures
                ratios[model.name, rate] += several
                say(f"{stream.name:<42} {model.name:<24} asked {rate:<6g} {_told(figures)}")
    return {
        "quality": {stream: dict(models) for stream, models in found.items()},
        "families": {
            model.name: {f"{rate:g}": _held(model.name, rate, ratios[model.name, rate]) for rate in RATES}
            for model in ours
        },
    }


def _realised(stream: Stream, model: Streamdet, rate: float, seeds: int) -> tuple[Figures, list[float]]:
    """Realised and asked rate, and their ratios by seed; none if the stream is too short to tell."""
    shares, rows = [], 0
    for seed in range(seeds):
        judged = model.replayed(stream, seed, rate)
        rows = int(judged.ready.sum())
        shares.append(float(judged.flagged[judged.ready].mean()) if rows else float("nan"))
    long_enough = rows * rate >= EXPECTED_FLAGS_MIN
    figures: Figures = {
        "rows": rows,
        "realised": _rounded(metrics.mean(shares)),
        "ratio": _rounded(metrics.mean(shares) / rate),
        "long_enough": long_enough,
    }
    return figures, [share / rate for share in shares] if long_enough else []


def _told(figures: Figures) -> str:
    if figures["ratio"] is None:
        return "no rows after the warm-up"
    short = "" if figures["long_enough"] else "  (too short to count)"
    return f"realised {figures['realised']:<8g} ratio {figures['ratio']:.2f}{short}"


def _held(model: str, rate: float, ratios: Sequence[float]) -> Figures:
    """How the ratios lie about 1."""
    if not ratios:
        return {"runs": 0}
    low, high = RATE_BAND
    figures: Figures = {
        "runs": len(ratios),
        "within_band": _rounded(float(np.mean([low <= ratio <= high for ratio in ratios]))),
        "median": _rounded(float(np.median(ratios))),
        "lowest": _rounded(min(ratios)),
        "highest": _rounded(max(ratios)),
    }
    say(
        f"{model} asked {rate:g}: {figures['within_band']:.0%} of {len(ratios)} runs within {low:g} to {high:g} times, "
        f"median {figures['median']:.2f}, {figures['lowest']:.2f} to {figures['highest']:.2f}"
    )
    return figures


# Without a folder of recordings


def _shuttle_alone() -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        path = _shuttle(Path(folder))
        summary = replay(Replay([path]), Settings(), Never())
    found = {k: None if v is None else round(v, 4) for k, v in summary["metrics"].items()}
    rate = summary["alerts"] / max(summary["events_after_warmup"], 1)
    say(f"{path.name:<28} {found} alert_rate={rate:.5f}")
    row = {**found, "events": summary["events"], "alerts": summary["alerts"], "alert_rate": round(rate, 6)}
    return {path.name: row}


def _shuttle(folder: Path) -> Path:
    from river import datasets

    path = folder / "shuttle.csv"
    with gzip.open(datasets.Shuttle().path, "rt") as source, path.open("w", newline="") as target:
        rows = csv.reader(source)
        header = next(rows)
        writer = csv.writer(target)
        writer.writerow([*header[:-1], "label"])
        writer.writerows(rows)
    return path
