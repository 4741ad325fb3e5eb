"""Recordings through the worker's own loop: files in place of topics, a summary in place of a subscription."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from streamdet.app import Recorded, build, compile_kernels, configured_schema, inferred_schema, json_fields
from streamdet.checkpoint.shelf import Shelf
from streamdet.checkpoint.store import open_store
from streamdet.clock import Clock, SystemClock
from streamdet.codec.columns import Codec
from streamdet.codec.csv import CsvCodec
from streamdet.codec.infer import SAMPLE
from streamdet.codec.json import JsonCodec
from streamdet.config import Input, Settings
from streamdet.delivery.at_least_once import AtLeastOnce
from streamdet.errors import ConfigError
from streamdet.evaluate.labels import CsvLabels, JsonLabels
from streamdet.evaluate.outcome import Outcome
from streamdet.evaluate.scores import ScoresWriter
from streamdet.events import Schema
from streamdet.keeping import timelines
from streamdet.parts import Observer
from streamdet.sink.jsonl import JsonLinesSink, WholeFile
from streamdet.source import Source
from streamdet.source.paced import PacedSource
from streamdet.source.recording import RecordingSource
from streamdet.worker import StopSignal, Worker, run

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Replay:
    """What to replay and where to leave what it gives."""

    recordings: Sequence[Path]
    alerts: Path | None = None
    scores: Path | None = None
    dead_letters: Path | None = None
    label: str | None = None  # None: `label`, if there is such a column
    report: Path | None = None
    speed: float | None = None  # None: as fast as possible
    timeline: str | None = None  # URL of checkpoints whose versions to use, where they were adopted


def replay(
    what: Replay,
    settings: Settings,
    stop: StopSignal,
    watch: Callable[[RecordingSource], Observer] | None = None,
) -> dict[str, Any]:
    """Judge recordings with the worker's own loop; what it found as the summary that `--json` prints.

    `watch` makes an observer that shows progress.

    Raises:
        StreamdetError: whatever the user can mend.
    """
    clock = SystemClock()
    recording = RecordingSource(what.recordings, settings.input.batch.max_events)
    label = _label(what, recording)
    schema = _recorded_schema(settings.input, recording, label)
    codec = _codec(recording, schema, settings.input)
    outcome = Outcome(
        _labels(recording, label) if label is not None else None, keep_timeline=what.report is not None
    )
    source: Source = recording if what.speed is None else PacedSource(recording, what.speed, clock)
    with ExitStack() as stack:
        observers: list[Observer] = [outcome]
        whole = [
            stack.enter_context(WholeFile(path)) if path is not None else None
            for path in (what.alerts, what.dead_letters)
        ]
        if what.scores is not None:
            writer = stack.enter_context(ScoresWriter(what.scores, reasons=settings.noise.configured))
            observers.append(writer)
        if watch is not None:
            observers.append(watch(recording))
        sink = outcome.beside(JsonLinesSink(*(None if w is None else w.file for w in whole)))
        delivery = AtLeastOnce(settings.commit, source, sink, clock)
        recorded = None
        if what.timeline is not None:
            recorded = _recorded(what.timeline, settings, recording, clock)
        worker = build(
            settings,
            schema=schema,
            source=source,
            delivery=delivery,
            codec=codec,
            clock=clock,
            recorded=recorded,
            observers=observers,
        )
        compile_kernels(transactions=schema.transactions, metric=schema.metric)
        started_s = clock.monotonic_s()
        run(worker, stop)
        seconds = clock.monotonic_s() - started_s
        for done in [*whole, writer if what.scores is not None else None]:
            if done is not None and not stop.requested:  # half of a replay would look like all of it
                done.keep()
    summary = {
        "events": outcome.events,
        "rejected": outcome.rejected,
        "alerts": outcome.alerts,
        "held_back": {cause.label: n for cause, n in outcome.held_back.items()},
        "seconds": round(seconds, 3),
        "events_per_second": round(outcome.events / seconds, 1) if seconds else None,
        "device": _device_name(worker),
        "metrics": asdict(outcome.quality()),
        "events_after_warmup": outcome.after_warmup,
        "anomalous_after_warmup": outcome.anomalous,
        "drift": {"relearn": worker.learner.relearnt_total if worker.learner is not None else 0},
        "model_versions": worker.learner.adopted_total if worker.learner is not None else 0,
    }
    if what.report is not None:
        summary["report"] = str(outcome.write_report(what.report, summary))
    return summary


def _recorded(url: str, settings: Settings, recording: RecordingSource, clock: Clock) -> Recorded:
    """The timeline of a group.

    Raises:
        ConfigError: there is none for these lanes.
    """
    shelf = Shelf(open_store(url), settings.input.group_id, settings.checkpoint.keep, clock)
    adoptions = timelines(shelf)
    missing = sorted(recording.lanes - adoptions.keys())
    if missing:
        raise ConfigError(
            f"--timeline {url}: group {settings.input.group_id!r} has no checkpoint of {', '.join(map(str, missing))}; "
            "a timeline belongs to a lossless recording of the same partitions (streamdet record) and to the "
            "configuration of the worker"
        )
    return Recorded(shelf, adoptions)


def sample_fields(source: RecordingSource) -> list[Mapping[str, object]]:
    """The fields of the first readable records of a recording."""
    values = source.peek(SAMPLE)
    if source.format == "csv":
        codec = CsvCodec(Schema(None, None, (), ()), source.header, source.delimiter)
        width = len(source.header)
        return [codec.original(v) for v in values if codec.width(v) == width]
    return json_fields(values)


def _recorded_schema(given: Input, recording: RecordingSource, label: str | None) -> Schema:
    configured = configured_schema(given)
    if configured is None:
        fields = sample_fields(recording)
        configured = inferred_schema(fields, label, given)
        log.info("inferred %s", configured)
    if recording.format == "csv":
        named = [configured.timestamp, configured.entity, *configured.counterparts, *configured.columns]
        missing = [name for name in named if name is not None and name not in recording.header]
        if missing:
            raise ConfigError(
                f"{recording.files[0].path} has no column {', '.join(missing)}; it has {', '.join(recording.header)}"
            )
    return configured


def _codec(recording: RecordingSource, schema: Schema, given: Input) -> Codec:
    reject = given.unusable == "reject"
    if recording.format == "csv":
        return CsvCodec(schema, recording.header, recording.delimiter, reject_unusable=reject)
    return JsonCodec(schema, reject_unusable=reject)


def _label(what: Replay, recording: RecordingSource) -> str | None:
    """The label column, None where there is none.

    Raises:
        ConfigError: one was named, and is not there.
    """
    if recording.format == "csv":
        names = set(recording.header)
    else:
        names = {name for fields in sample_fields(recording) for name in fields}
    if what.label is None:
        return "label" if "label" in names else None
    if what.label not in names:
        raise ConfigError(
            f"--label {what.label}: there is no such column; there are {', '.join(sorted(names))}"
        )
    return what.label


def _labels(recording: RecordingSource, label: str) -> CsvLabels | JsonLabels:
    if recording.format == "csv":
        return CsvLabels(recording.header, recording.delimiter, label)
    return JsonLabels(label)


def _device_name(worker: Worker) -> str:
    newest = worker.releases.newest
    return "none" if newest is None else str(newest.version.device)
