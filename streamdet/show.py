"""What a terminal shows: progress, tables, summaries. In a pipe, plain lines and no progress."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from streamdet.events import Alert, Cause

if TYPE_CHECKING:  # a subscriber to alerts has no need of torch, which the worker imports
    from streamdet.parts import Observer, Part
    from streamdet.source.recording import RecordingSource

_STYLES = {"critical": "bold red", "major": "yellow", "minor": ""}
# Features in a line of the table.
_FEATURES_SHOWN = 3


@contextmanager
def progress() -> "Iterator[Callable[[RecordingSource], Observer] | None]":
    """A bar with events/s and the time left, on standard error; None where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[events]:,} events"),
        TextColumn("{task.fields[rate]:,.0f} events/s"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("replay", total=None, events=0, rate=0.0)
        yield lambda source: _Bar(bar, task, source)


class _Bar:
    """An observer that moves a progress bar."""

    def __init__(self, bar: Progress, task: TaskID, source: "RecordingSource") -> None:
        self._bar = bar
        self._task = task
        self._source = source
        self._events = 0

    def judged(self, parts: "Sequence[Part]") -> None:
        self._events += sum(len(part.decoded.events) for part in parts)
        done, total = self._source.progress
        elapsed = self._bar.tasks[0].elapsed or 0.0
        rate = self._events / elapsed if elapsed > 0 else 0.0
        self._bar.update(self._task, completed=done, total=total, events=self._events, rate=rate)


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """A replay's summary for people."""
    lines = [
        f"{summary['events']:,} events judged, {summary['rejected']:,} rejected, {summary['alerts']:,} alerts",
        f"{summary['seconds']:.1f} s, {summary['events_per_second'] or 0:,.0f} events/s on {summary['device']}",
    ]
    held_back = {reason: n for reason, n in summary["held_back"].items() if n}
    if held_back.keys() - {Cause.EXCURSION.label}:
        told = ", ".join(f"{reason.replace('_', ' ')} {n:,}" for reason, n in held_back.items())
        lines.append(f"held back, by the reason: {told}")
    if summary["drift"]["relearn"]:
        lines.append(f"learnt anew after a change that came to stay: {summary['drift']['relearn']:,} times")
    metrics = {name: value for name, value in summary["metrics"].items() if value is not None}
    if metrics:
        figures = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in metrics.items())
        lines.append(
            f"against {summary['anomalous_after_warmup']:,} labelled anomalies among "
            f"{summary['events_after_warmup']:,} events after the warm-up: {figures}"
        )
    if summary["events_after_warmup"] == 0:
        lines.append("every event went into the warm-up: the recording is shorter than learning.warmup")
    if "report" in summary:
        lines.append(f"report: {summary['report']}")
    return lines


def show_alerts(alerts: Iterable[Alert], *, as_json: bool) -> None:
    """Print alerts as they come: a table in a terminal, JSON lines elsewhere."""
    if as_json or not sys.stdout.isatty():
        encoder = msgspec.json.Encoder()
        for alert in alerts:
            sys.stdout.write(encoder.encode(alert).decode() + "\n")
            sys.stdout.flush()
        return
    console = Console()
    console.print(
        f"{'time':<24}  {'entity':<16}  {'score':>6}  {'severity':<8}  why", style="bold", highlight=False
    )
    for alert in alerts:
        console.print(
            alert_line(alert),
            style=_STYLES.get(alert.severity, ""),
            highlight=False,
            markup=False,
            no_wrap=True,
            overflow="ellipsis",
        )


def alert_line(alert: Alert) -> str:
    """One alert as a line of the table."""
    why = "; ".join(
        f"{f.name} {_plain(f.actual)} (expected {_plain(f.expected)}) {f.share:.0%}"
        for f in alert.features[:_FEATURES_SHOWN]
    )
    if alert.reason != Cause.LIMIT.label:
        why = f"{alert.reason}: {why}"
    return (
        f"{alert.event_time:<24}  {alert.entity or '-':<16}  {alert.score:>6.2f}  {alert.severity:<8}  {why}"
    )


def _plain(value: float | str | None) -> str:
    if value is None:
        return "missing"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
