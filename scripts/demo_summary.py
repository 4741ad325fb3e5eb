"""How good it was: the verdicts beside the labels, the way of an alert in milliseconds, and the report.

Scores are those that the worker wrote, one line per event in the order of the stream; labels meet them only here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from demo_streams import Stream
from pyarrow import csv

from streamdet.evaluate.metrics import ScoreCounts
from streamdet.evaluate.report import PICTURE, write_report
from streamdet.evaluate.timeline import Timeline
from streamdet.events import Alert, Bools, Floats, Ints

# The page lists the newest alerts; more would be a list that nobody reads.
ALERTS_SHOWN = 50


@dataclass(frozen=True, eq=False)
class Scores:
    """What the worker wrote about n events."""

    times_ms: Ints  # (n,)
    raw: Floats  # (n,) NaN where there was no model yet
    limit: Floats  # (n,) likewise
    warm: Bools  # (n,) judged, not merely learnt from
    flagged: Bools  # (n,)

    def __len__(self) -> int:
        return len(self.raw)

    @staticmethod
    def read(path: Path) -> "Scores":
        """The CSV of `streamdet run --scores`."""
        types = csv.ConvertOptions(
            column_types={"timestamp": pa.timestamp("ms", "UTC"), "entity": pa.string()}
        )
        table = csv.read_csv(path, convert_options=types)
        mode = table["mode"].to_numpy(zero_copy_only=False)
        return Scores(
            table["timestamp"].cast(pa.int64()).to_numpy(),
            np.asarray(table["raw_score"].to_numpy(zero_copy_only=False), np.float64),
            np.asarray(table["limit"].to_numpy(zero_copy_only=False), np.float64),
            np.asarray((mode != "cold") & (mode != "warming"), np.bool_),
            np.asarray(table["flagged"].to_numpy(zero_copy_only=False) == 1, np.bool_),
        )


@dataclass(frozen=True, eq=False)
class Run:
    """What the demo saw while the stream ran."""

    stream: Stream
    scores: Scores
    alerts: Sequence[Alert]  # in the order in which they came
    latency_ms: Floats  # (alerts,) from publishing the event to receiving its alert; empty without Kafka
    seconds: float  # of the stream, from the first event published to the last one judged
    kafka: str | None  # who runs it; None: there was none


def summarise(run: Run, directory: Path) -> dict[str, Any]:
    """The summary that `--json` prints; writes the report beside the scores on the way."""
    stream, scores, labels = run.stream, run.scores, run.stream.labels
    found = _against_labels(scores, labels) if labels is not None else dict.fromkeys(_LABELLED)
    latency = run.latency_ms
    summary: dict[str, Any] = {
        "title": stream.title,
        "stream": stream.name,
        "events": len(scores),
        "anomalies": stream.anomalies,
        "alerts": int(scores.flagged.sum()),
        **found,
        "latency_ms_p50": round(float(np.percentile(latency, 50)), 1) if len(latency) else None,
        "latency_ms_p99": round(float(np.percentile(latency, 99)), 1) if len(latency) else None,
        "seconds": round(run.seconds, 1),
        "events_per_second": round(len(scores) / run.seconds, 1) if run.seconds > 0 else None,
        "kafka": run.kafka,
        "origin": stream.origin,
    }
    page = write_report(directory, summary, _timeline(scores, labels), run.alerts[-ALERTS_SHOWN:])
    return {**summary, "report": str(page), "picture": str(page.with_name(PICTURE))}


_LABELLED = ("precision", "recall", "roc_auc", "found", "anomalies_in_warmup")


def _against_labels(scores: Scores, labels: Bools) -> dict[str, float | int | None]:
    """Precision and recall over all events; the ranking over those that were judged."""
    hits = int((scores.flagged & labels).sum())
    flagged, anomalous = int(scores.flagged.sum()), int(labels.sum())
    counts = ScoreCounts()
    counts.add(scores.raw[scores.warm], scores.flagged[scores.warm], labels[scores.warm])
    roc_auc = counts.quality().roc_auc
    return {
        "precision": round(hits / flagged, 4) if flagged else None,
        "recall": round(hits / anomalous, 4) if anomalous else None,
        "roc_auc": None if roc_auc is None else round(roc_auc, 4),
        "found": hits,
        "anomalies_in_warmup": int(labels[~scores.warm].sum()),
    }


def _timeline(scores: Scores, labels: Bools | None) -> Timeline:
    timeline = Timeline()
    timeline.add(scores.times_ms, scores.raw, scores.limit, scores.flagged, labels)
    return timeline


def near(path: Path) -> Path:
    """The path as one would write it in the current folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def told(summary: Mapping[str, Any]) -> list[str]:
    """The summary as lines for a person."""
    s = summary
    anomalous = "" if s["anomalies"] is None else f", {s['anomalies']:,} of them anomalous"
    lines = [
        "",
        f"{s['title']}: {s['origin']}",
        f"  events     {s['events']:,}{anomalous}, in {s['seconds']:.1f} s",
        f"  alerts     {s['alerts']:,}",
    ]
    if s["precision"] is not None:
        lines.append(
            f"  precision  {s['precision']:.2f}   {s['found']:,} of {s['alerts']:,} alerts are true anomalies"
        )
    if s["recall"] is not None:
        early = s["anomalies_in_warmup"]
        lines.append(
            f"  recall     {s['recall']:.2f}   {s['found']:,} of {s['anomalies']:,} anomalies were found; {early:,} "
            "fell into the warm-up, in which nothing is alerted"
        )
    if s["roc_auc"] is not None:
        lines.append(f"  ROC-AUC    {s['roc_auc']:.3f}  after the warm-up")
    if s["latency_ms_p50"] is not None:
        lines.append(
            f"  latency    p50 {s['latency_ms_p50']:.0f} ms, p99 {s['latency_ms_p99']:.0f} ms, from publishing an "
            "event to receiving its alert"
        )
    lines.append(
        f"  picture    {near(Path(s['picture']))}, on a page with the alerts: {near(Path(s['report']))}"
    )
    return lines
