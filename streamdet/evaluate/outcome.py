"""What came of a replay: counts, metrics against labels, and what the report shows; in constant memory."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streamdet.evaluate.labels import CsvLabels, JsonLabels
from streamdet.evaluate.metrics import Quality, ScoreCounts
from streamdet.evaluate.timeline import Timeline
from streamdet.events import Alert, Cause, Mode, Reject
from streamdet.parts import Part
from streamdet.sink import Sink

# The report lists the newest alerts; more would be a list that nobody reads.
ALERTS_SHOWN = 50


class Outcome:
    """An observer of a replay."""

    def __init__(self, labels: CsvLabels | JsonLabels | None, *, keep_timeline: bool) -> None:
        self._labels = labels
        self._timeline = Timeline() if keep_timeline else None
        self._counts = ScoreCounts()
        self._newest: list[Alert] = []
        self.events = 0
        self.rejected = 0
        self.alerts = 0
        self.held_back: Counter[Cause] = Counter()
        self.after_warmup = 0

    @property
    def anomalous(self) -> int | None:
        """Labelled anomalies after the warm-up, None without labels."""
        return None if self._labels is None else self._counts.anomalous

    def judged(self, parts: Sequence[Part]) -> None:
        """Count what was judged."""
        for part in parts:
            events, verdicts = part.decoded.events, part.verdicts
            ready = verdicts.mode >= Mode.READY
            self.events += len(events)
            self.rejected += len(part.decoded.rejects)
            self.alerts += int(verdicts.flagged.sum())
            self.held_back.update(verdicts.held_back)
            self.after_warmup += int(ready.sum())
            anomalous = None if self._labels is None else self._labels.read(events.values)
            if anomalous is not None:
                self._counts.add(verdicts.raw[ready], verdicts.flagged[ready], anomalous[ready])
            if self._timeline is not None:
                raw, limit = verdicts.raw, verdicts.limit
                self._timeline.add(events.times_ms, raw, limit, verdicts.flagged, anomalous)

    def beside(self, sink: Sink) -> Sink:
        """The sink, with its alerts remembered for the report."""
        return _Remembering(sink, self._newest) if self._timeline is not None else sink

    def quality(self) -> Quality:
        """Metrics against the labels of the events after the warm-up."""
        return self._counts.quality() if self._labels is not None else Quality(None, None, None, None, None)

    def write_report(self, folder: Path, summary: dict[str, Any]) -> Path:
        """Write the report; the path of its page."""
        from streamdet.evaluate.report import write_report

        assert self._timeline is not None  # noqa: S101 - kept because a report was asked for
        return write_report(folder, summary, self._timeline, self._newest)


class _Remembering:
    """A sink that keeps the newest alerts."""

    def __init__(self, sink: Sink, newest: list[Alert]) -> None:
        self._sink = sink
        self._newest = newest

    def publish(self, alerts: Sequence[Alert], rejects: Sequence[Reject]) -> None:
        self._newest += alerts
        del self._newest[:-ALERTS_SHOWN]
        self._sink.publish(alerts, rejects)

    def flush(self) -> None:
        self._sink.flush()

    def close(self) -> None:
        self._sink.close()
