"""The command line: parses, calls, prints. One broad catch, here, turns errors into a sentence and an exit code.

Exit codes: 0 done, 1 failed, 2 bad use or bad configuration. Modules are imported where they are used, as torch
alone takes longer to import than --help may take.
"""

import logging
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from streamdet import __version__
from streamdet.errors import ConfigError, StreamdetError

app = typer.Typer(
    help="Streaming anomaly detection on Kafka: a worker that learns what is normal, and a replay that proves it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigOption = Annotated[Path | None, typer.Option("-c", "--config", help="Configuration file (YAML).")]
ServersOption = Annotated[
    str | None,
    typer.Option(
        "--bootstrap-servers", "-b", help="host:port of brokers, separated by commas, in place of -c."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", help="Log what is going on.")]


def main() -> None:
    """Run the command line; the entry point of the package."""
    try:
        code = app(prog_name="streamdet", standalone_mode=False)
    except typer.Abort:
        sys.exit(1)
    except StreamdetError as error:
        print(f"streamdet: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:  # click's own errors, recognised without importing more of it
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        sys.exit(int(getattr(error, "exit_code", 2)))
    # What typer.Exit says is returned, not raised, where the errors are handled here.
    sys.exit(code or 0)


def _version(asked: bool) -> None:
    if asked:
        print(f"streamdet {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Streaming anomaly detection on Kafka."""


@app.command()
def run(
    config: Annotated[Path, typer.Option("-c", "--config", help="Configuration file (YAML).")],
    scores: Annotated[
        Path | None, typer.Option(help="Also write the verdict of every event here (.csv or .parquet).")
    ] = None,
    verbose: VerboseOption = False,
) -> None:
    """Judge Kafka topics until SIGTERM or Ctrl-C; a second signal gives up at once."""
    from streamdet import config as configuration

    _log(logging.DEBUG if verbose else logging.INFO)
    settings = configuration.load(config)
    if not settings.input.topics:
        raise ConfigError(f"{config}: input.topics is empty: name at least one topic to read")
    from streamdet.app import run_worker

    run_worker(settings, scores)


@app.command()
def replay(
    recordings: Annotated[
        list[Path], typer.Argument(help="CSV, JSON lines, Parquet or lossless recordings.")
    ],
    config: ConfigOption = None,
    alerts: Annotated[Path | None, typer.Option(help="Write alerts here, JSON lines.")] = None,
    scores: Annotated[
        Path | None, typer.Option(help="Write the verdict of every event here (.csv or .parquet).")
    ] = None,
    dead_letters: Annotated[Path | None, typer.Option(help="Write dead letters here, JSON lines.")] = None,
    label: Annotated[
        str | None, typer.Option(help="Column with labels, for metrics only.  [default: label, if there]")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for a report with a picture.")] = None,
    speed: Annotated[
        float | None,
        typer.Option(min=1e-6, help="Multiple of the recorded pace; as fast as possible if left out."),
    ] = None,
    timeline: Annotated[
        str | None,
        typer.Option(
            help="Folder or URL of a group's checkpoints: judge by its models, each adopted where it was live."
        ),
    ] = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Judge recordings with the worker's own loop.

    Without a configuration one is inferred: the time column by name and type, every other numeric column a feature,
    text columns categorical.
    """
    from streamdet import config as configuration

    _log(logging.INFO if verbose else logging.WARNING)
    settings = configuration.load(config) if config is not None else configuration.Settings()
    from streamdet.replaying import Replay
    from streamdet.replaying import replay as judge
    from streamdet.show import progress, summary_lines
    from streamdet.stopping import Signals

    stop = Signals()
    stop.install()
    what = Replay(recordings, alerts, scores, dead_letters, label, report, speed, timeline)
    with progress() as watch:
        summary = judge(what, settings, stop, watch)
    if as_json:
        _print_json(summary)
    else:
        print("\n".join(summary_lines(summary)))
    if stop.requested:
        raise typer.Exit(1)


@app.command()
def record(
    topic: Annotated[str, typer.Option(help="Topic to read.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Recording to write.")],
    config: ConfigOption = None,
    bootstrap_servers: ServersOption = None,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many records.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on past what the topic holds now, until Ctrl-C.")
    ] = False,
) -> None:
    """Write a topic into a lossless recording: coordinates, keys, headers and bytes as they are."""
    _log(logging.WARNING)
    from streamdet.stopping import Signals
    from streamdet.transfer import record_topic

    stop = Signals()
    stop.install()
    done = record_topic(
        _kafka(config, bootstrap_servers), topic, output, count=count, follow=follow, stop=stop
    )
    print(f"{done} records of {topic} in {output}", file=sys.stderr)


@app.command()
def publish(
    recordings: Annotated[
        list[Path], typer.Argument(help="CSV, JSON lines, Parquet or lossless recordings.")
    ],
    topic: Annotated[str, typer.Option(help="Topic to write to; it must exist.")],
    config: ConfigOption = None,
    bootstrap_servers: ServersOption = None,
    speed: Annotated[
        str, typer.Option(help="Multiple of the recorded pace, or max for as fast as Kafka takes it.")
    ] = "max",
) -> None:
    """Publish recordings to a topic; rows of CSV and Parquet become JSON objects."""
    _log(logging.WARNING)
    from streamdet.stopping import Signals
    from streamdet.transfer import publish_recordings

    stop = Signals()
    stop.install()
    kafka = _kafka(config, bootstrap_servers)
    done = publish_recordings(kafka, recordings, topic, speed=_speed(speed), stop=stop)
    print(f"{done} records published to {topic}", file=sys.stderr)
    if stop.requested:
        raise typer.Exit(1)


@app.command()
def alerts(
    config: ConfigOption = None,
    bootstrap_servers: ServersOption = None,
    topic: Annotated[
        str | None, typer.Option(help="Alerts topic; that of the configuration if left out.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for further alerts.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines, also in a terminal.")] = False,
    entity: Annotated[str | None, typer.Option(help="Only alerts of this entity.")] = None,
    since: Annotated[
        str | None,
        typer.Option(
            help="earliest, latest, or an ISO 8601 time.  [default: latest with --follow, else earliest]"
        ),
    ] = None,
) -> None:
    """Subscribe to alerts: a live table in a terminal, JSON lines in a pipe."""
    _log(logging.WARNING)
    from streamdet.alerts import subscribe
    from streamdet.show import show_alerts
    from streamdet.stopping import Signals

    settings = _settings(config, bootstrap_servers)
    if topic is None and not settings.input.topics:
        raise ConfigError("which alerts? Give --topic, or -c with a configuration that names input.topics")
    stop = Signals()
    stop.install()
    start: Any = _since(since) if since is not None else ("latest" if follow else "earliest")
    with subscribe(
        topic or settings.alerts_topic,
        bootstrap_servers=settings.kafka.bootstrap_servers,
        security=settings.kafka.security,
        start=start,
        entity=entity,
        follow=follow,
        stopped=lambda: stop.requested,
    ) as subscription:
        show_alerts(subscription, as_json=as_json)


@app.command()
def init(
    sample: Annotated[Path | None, typer.Argument(help="A recording to look at.")] = None,
    topic: Annotated[str | None, typer.Option(help="Or a topic to look at.")] = None,
    config: ConfigOption = None,
    bootstrap_servers: ServersOption = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write; standard output if left out.")
    ] = None,
) -> None:
    """Look at data and write a commented configuration for it."""
    if (sample is None) == (topic is None):
        raise ConfigError("give either a recording to look at, or --topic")
    if output is not None and output.exists():
        raise ConfigError(f"{output} is already there; remove it or choose another name")
    _log(logging.WARNING)
    from streamdet.initial import configuration_for_recording, configuration_for_topic

    if sample is not None:
        text = configuration_for_recording(sample)
    else:
        text = configuration_for_topic(_kafka(config, bootstrap_servers), str(topic))
    if output is None:
        print(text, end="")
    else:
        output.write_text(text, encoding="utf-8")
        print(f"wrote {output}; next: streamdet check -c {output}", file=sys.stderr)


@app.command()
def check(
    config: Annotated[Path, typer.Option("-c", "--config", help="Configuration file (YAML).")],
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask Kafka.")] = False,
) -> None:
    """Say everything that is wrong with a configuration, and how much memory it may take."""
    from streamdet import config as configuration

    _log(logging.ERROR)
    settings = configuration.load(config)
    from streamdet.preflight import examine

    findings = examine(settings, offline=offline)
    for line in findings.notes:
        print(line)
    for line in findings.errors:
        print(f"error: {line}", file=sys.stderr)
    if findings.errors:
        raise typer.Exit(2)
    print(f"{config} is fine")


@app.command()
def checkpoints(
    config: Annotated[Path, typer.Option("-c", "--config", help="Configuration file (YAML).")],
    pin: Annotated[list[str] | None, typer.Option(help="Keep this one, by its name in the list.")] = None,
    unpin: Annotated[list[str] | None, typer.Option(help="Let this one go in its time again.")] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete what is neither pinned nor among those to keep.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the checkpoints of a group, each read and checked; pin, unpin or prune them first.

    Equal states have equal digests. Exit code 1 if the worker would refuse any of them.
    """
    from streamdet import config as configuration

    _log(logging.WARNING)
    settings = configuration.load(config)
    from streamdet.stored import lines, look

    entries = look(settings, pin or (), unpin or (), prune=prune)
    if as_json:
        _print_json({"url": settings.checkpoint.url, "checkpoints": entries})
    elif entries:
        print("\n".join(lines(entries)))
    else:
        where = f"group {settings.input.group_id!r} in {settings.checkpoint.url}"
        print(f"no checkpoints of {where}", file=sys.stderr)
    if any("error" in entry for entry in entries):
        raise typer.Exit(1)


def _settings(config: Path | None, bootstrap_servers: str | None) -> Any:  # noqa: ANN401 - imported late
    from streamdet import config as configuration

    if config is not None:
        settings = configuration.load(config)
        if bootstrap_servers is None:
            return settings
        kafka = settings.kafka.model_copy(update={"bootstrap_servers": bootstrap_servers})
        return settings.model_copy(update={"kafka": kafka})
    if bootstrap_servers is None:
        raise ConfigError("which Kafka? Give -c with a configuration, or --bootstrap-servers host:port")
    return configuration.Settings(kafka=configuration.Kafka(bootstrap_servers=bootstrap_servers))


def _kafka(config: Path | None, bootstrap_servers: str | None) -> Any:  # noqa: ANN401 - imported late
    return _settings(config, bootstrap_servers).kafka


def _speed(text: str) -> float | None:
    if text == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not speed > 0:
        raise ConfigError(f"--speed takes max or a number above 0, not {text!r}")
    return speed


def _since(text: str) -> Any:  # noqa: ANN401 - alerts.Start, imported late
    if text in ("earliest", "latest"):
        return text
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"--since takes earliest, latest or an ISO 8601 time, not {text!r}") from error
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _print_json(summary: dict[str, Any]) -> None:
    import msgspec

    print(msgspec.json.encode(summary).decode())


def _log(level: int) -> None:
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True
    )
    # kafka-python logs each attempt to reach a broker; this program says once that it is away, and when it is back.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)


if __name__ == "__main__":
    main()
