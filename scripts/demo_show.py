"""What a person sees of the demo: alerts as they come and how far the stream is.

On a terminal alerts scroll by above a progress bar; elsewhere there is a plain line for each, and one for the progress
every few seconds. With `--json` standard output is left to the JSON, and all this goes to standard error.
"""

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from streamdet.events import Alert

PLAIN_INTERVAL_S = 5.0
FEATURES_SHOWN = 2


class Show:
    """The screen, or the log."""

    def __init__(self, *, to_stderr: bool) -> None:
        file = sys.stderr if to_stderr else sys.stdout
        self._console = Console(file=file, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._plain_at_s = PLAIN_INTERVAL_S

    def say(self, text: str = "") -> None:
        """A line, as it is."""
        self._console.print(text, markup=False)

    def alert(self, alert: Alert, label: bool | None, latency_ms: float | None) -> None:
        """One alert; `label` is whether it is a true anomaly, None where nobody knows."""
        verdict, style = {
            None: ("", "yellow"),
            True: ("anomaly", "green"),
            False: ("normal by its label", "red"),
        }[label]
        when = "" if latency_ms is None else f" after {latency_ms:4.0f} ms"
        who = f" {alert.entity}" if alert.entity else ""
        why = ", ".join(
            f"{f.name} {_short(f.actual)} (expected {_short(f.expected)})"
            for f in alert.features[:FEATURES_SHOWN]
        )
        line = f"alert{when}  event {alert.source.offset:>7,}{who}  {alert.score:5.2f} x limit  {why}"
        self._console.print(f"{escape(line)}  [{style}]{verdict}[/]")

    def start_stream(self, events: int) -> None:
        """The stream begins."""
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
                TextColumn("{task.fields[rate]:,.0f} events/s"), TimeRemainingColumn(),
            )  # fmt: skip
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._progress.add_task("judged", total=events, rate=0.0)
            self._progress.start()

    def stream(self, published: int, judged: int, events: int, alerts: int, elapsed_s: float) -> None:
        """How far it is; call it as often as you like."""
        if self._progress is not None:
            rate = judged / elapsed_s if elapsed_s > 0 else 0.0
            self._progress.update(self._progress.task_ids[0], completed=judged, rate=rate)
        elif elapsed_s >= self._plain_at_s:
            self._plain_at_s = elapsed_s + PLAIN_INTERVAL_S
            left_s = (events - judged) / max(judged / elapsed_s, 1e-9)
            self.say(
                f"{published:,} of {events:,} events published, {judged:,} judged ({judged / elapsed_s:,.0f}/s), "
                f"{alerts:,} alerts; about {left_s:,.0f} s to go" if judged else f"{published:,} events published"
            )  # fmt: skip

    def end_stream(self) -> None:
        """The progress bar goes, what scrolled by stays."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_stream()


def _short(value: float | str | None) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "nothing" if value is None else value
