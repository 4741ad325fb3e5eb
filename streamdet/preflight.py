"""What can be wrong with a configuration that parses: everything is looked at, and all of it said at once.

Nothing is changed by looking: no folder, topic or checkpoint is made. Not covered: whether this client may write to
the topics, which Kafka tells only when it is tried.
"""

import os
import re
import socket
import ssl
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from kafka.errors import KafkaError

from streamdet.broker.client import missing_topic, text, topics_of
from streamdet.checkpoint.shelf import LANE, Shelf
from streamdet.checkpoint.store import LocalStore, Store, open_store
from streamdet.clock import Clock, SystemClock
from streamdet.config import Security, Settings
from streamdet.decide.damping import DAMPED_BYTES
from streamdet.errors import BrokerUnavailableError, CheckpointError, ConfigError, DeviceError, StreamdetError
from streamdet.events import Schema, transaction_columns
from streamdet.features import transactions
from streamdet.features.expectation import bytes_per_slot
from streamdet.features.newest import bytes_per_lane as newest_bytes_per_lane
from streamdet.threshold.limits import bytes_per_slot as bytes_of_limits

# Somebody waits for the answer: long enough for a broker far away, not for one that is starting.
ANSWER_S: Final = 5.0

TOPIC_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")

# Measured: a name in a dict, with a slot number; numpy grows by doubling.
_NAME_BYTES: Final = 250
# While a checkpoint is saved its state is there a second time, with room to grow, and as a file, which is smaller.
_CHECKPOINT_COPIES: Final = 2
# A polled record besides its bytes, and what becomes of it on its way: objects, rows, verdicts. Reckoned, not measured.
_RECORD_BYTES: Final = 1_000
# kafka-python holds a response and, unpacked, the records of the one before.
_FETCH_COPIES: Final = 3
# Compiled loops and a fine-tune with its optimizer, over what importing takes.
_RUNNING_BYTES: Final = 110_000_000
# Where the system does not tell what importing took (with the CUDA build of torch; that for the CPU takes a third).
_IMPORTED_BYTES: Final = 700_000_000
# A row of the learner's buffer: a number and a mark per column; kept, in a snapshot, on its way through training.
_ROW_COPIES: Final = 6
# Where the features are to be inferred.
_COLUMNS_ASSUMED: Final = 16
_HELD_OUT_ROWS: Final = 2_048


@dataclass
class Findings:
    """What was found: notes to know of, and errors that the worker would not start or run with."""

    notes: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def examine(settings: Settings, *, offline: bool) -> Findings:
    """Look at everything that the worker will need, and say what it will not find.

    Args:
        settings: a configuration that parses.
        offline: leave Kafka out.
    """
    findings = Findings()
    _topics(settings, findings)
    _features(settings, findings)
    _device(settings, findings)
    _preset(settings, findings)
    _noise(settings, findings)
    _limit(settings, findings)
    _checkpoints(settings, findings)
    _address(settings, findings)
    _files(settings.kafka.security, findings)
    partitions = None if offline else _kafka(settings, SystemClock(), findings)
    _memory(settings, partitions, findings)
    return findings


def memory_estimate_bytes(settings: Settings, partitions: int, imported_bytes: int) -> int:
    """Resident memory of a worker with full entity tables while it saves a checkpoint, in bytes.

    Args:
        settings: of the worker.
        partitions: of all input topics together, all of them this worker's.
        imported_bytes: what the process takes before it reads anything.
    """
    features = settings.input.features
    columns = _COLUMNS_ASSUMED if features is None else len(features.numeric) + len(features.categorical)
    slots, names = 1, 0
    if settings.input.entity is not None:
        names = settings.input.max_entities
        slots = 1 << names.bit_length()  # slot 0 is the lane; doubled until there is room
    means = 2 + settings.input.missing.repeats  # and the last values
    per_slot = bytes_of_limits(settings.limit) + means * 8 * columns
    schema = _configured(settings)
    if schema is not None and schema.metric:
        per_slot += bytes_per_slot(entities=settings.input.entity is not None)
    if settings.noise.damps:
        per_slot += DAMPED_BYTES
    if settings.input.transactions.amount is not None:
        kinds = len(settings.input.transactions.counterparts)
        per_slot += transactions.bytes_per_entity(kinds)  # of each kind there are as many as entities
        names *= 1 + kinds
        columns += transaction_columns(1 + kinds)
    arrays = slots * per_slot + newest_bytes_per_lane(columns)
    lanes = partitions * (arrays * (1 + _CHECKPOINT_COPIES) + names * _NAME_BYTES)
    batch = settings.input.batch
    reading = _FETCH_COPIES * batch.max_bytes + batch.max_events * _RECORD_BYTES
    row = columns * 5
    learning = (settings.learning.buffer + _HELD_OUT_ROWS) * row * _ROW_COPIES
    if settings.learning.drift:  # what a new state would be learnt from
        learning += min(settings.limit.window, settings.learning.buffer) * row * (1 + _CHECKPOINT_COPIES)
    return imported_bytes + _RUNNING_BYTES + lanes + reading + learning


def _topics(settings: Settings, findings: Findings) -> None:
    given = settings.input.topics
    if not given:
        findings.errors.append(
            "input.topics is empty: name at least one topic to read (only replay does without)"
        )
        return
    written = (settings.alerts.topic, settings.dead_letters.topic)
    for topic in (*given, *(topic for topic in written if topic is not None)):
        if not TOPIC_NAME.fullmatch(topic) or topic in (".", ".."):
            findings.errors.append(
                f"{topic!r} is no name of a topic: Kafka allows up to 249 letters, digits, '.', '_' and '-'"
            )


def _features(settings: Settings, findings: Findings) -> None:
    if settings.input.features is None:
        findings.notes.append("features: none configured, they will be inferred from the first records")
    schema = _configured(settings)
    if schema is not None:
        try:
            settings.input.missing.check(schema)
        except ConfigError as error:
            findings.errors.append(str(error))


def _preset(settings: Settings, findings: Findings) -> None:
    schema, preset = _configured(settings), settings.model.preset
    try:
        metric = schema is not None and settings.metric(schema)
    except ConfigError as error:
        findings.errors.append(str(error))
        return
    if preset != "auto":
        told = f"{preset}, as model.preset says"
    elif settings.input.transactions.amount is not None:
        told = "transactions, as input.transactions names the amount"
    elif metric:
        told = "metric, as there is one number and nothing else"
    elif schema is not None and schema.categorical:
        told = "records, as there are categories"
    else:
        told = "found out during the warm-up, and said in the log"
    findings.notes.append(f"preset: {told}")


def _noise(settings: Settings, findings: Findings) -> None:
    schema = _configured(settings)
    if schema is None:  # the worker looks when it has found out
        return
    try:
        settings.noise.check(schema)
    except ConfigError as error:
        findings.errors.append(str(error))


def _limit(settings: Settings, findings: Findings) -> None:
    """How the asked rate is met; one that the rule cannot meet did not parse."""
    limit, schema = settings.limit, _configured(settings)
    window, rate = f"a window of {limit.window:,} events", f"an alert_rate of {limit.alert_rate:g}"
    if limit.rule in ("spot", "dspot"):
        told = f"{limit.rule} extrapolates to {rate}, by a generalised Pareto tail"
    elif limit.resolved:
        told = f"{window} resolves {rate}, {limit.rule} reads it from there"
    elif schema is not None and schema.metric:
        told = f"{window} cannot resolve {rate}; a metric's limit is the surprise that it asks for, -ln of it"
    else:
        told = f"{window} cannot resolve {rate}, {limit.rule} extrapolates to it by an exponential tail"
    findings.notes.append(f"limit: {told}")


def _configured(settings: Settings) -> Schema | None:
    """What is known of the schema before the first record."""
    features = settings.input.features
    if features is None:
        return None
    amount = settings.input.transactions.amount
    more = () if amount is None or amount in features.numeric else (amount,)  # it is a feature, named or not
    return Schema(None, None, features.numeric + more, features.categorical, amount)


def _device(settings: Settings, findings: Findings) -> None:
    from streamdet.models.device import choose_device  # imports torch

    try:
        device, warning = choose_device(settings.model)
    except DeviceError as error:
        findings.errors.append(str(error))
    else:
        findings.notes.append(f"device: {device}" if warning is None else f"device: {warning}")


def _checkpoints(settings: Settings, findings: Findings) -> None:
    try:
        store = open_store(settings.checkpoint.url)
        if isinstance(store, LocalStore):
            _try_to_write(store.root)
        _look_at_checkpoints(settings, store, findings)
    except OSError as error:
        findings.errors.append(f"checkpoint.url: cannot write to {settings.checkpoint.url}: {error}")
    except (CheckpointError, ConfigError) as error:
        findings.errors.append(str(error))


def _try_to_write(folder: Path) -> None:
    """Raise OSError where no checkpoint could be written; leaves nothing behind."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(f"{there} is a file")
    if there == folder.absolute():
        with tempfile.TemporaryFile(dir=there):
            return
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"it does not exist, and {there} may not be written to")


def _look_at_checkpoints(settings: Settings, store: Store, findings: Findings) -> None:
    from streamdet.app import foreign_schema  # imports torch

    shelf = Shelf(store, settings.input.group_id, settings.checkpoint.keep, SystemClock())
    agreed = shelf.schema()
    if agreed is None:
        findings.notes.append(f"checkpoints: none in {store.url}, the worker will start cold")
        return
    foreign = foreign_schema(settings, agreed)
    if foreign is not None:
        findings.errors.append(
            f"checkpoint.url: the checkpoints of group {settings.input.group_id!r} in {store.url} {foreign}: set "
            "another checkpoint.url or input.group_id, or empty the folder to start cold"
        )
        return
    lanes = {(entry.topic, entry.partition) for entry in shelf.entries() if entry.kind == LANE}
    partitions = "partition" if len(lanes) == 1 else "partitions"
    findings.notes.append(
        f"checkpoints: of {len(lanes)} {partitions} in {store.url}, the worker goes on from them"
    )


def _address(settings: Settings, findings: Findings) -> None:
    address = settings.serve.http
    if address is None:
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_server((host, int(port))).close()
    except (OSError, OverflowError) as error:
        findings.errors.append(
            f"serve.http: cannot listen on {address}: {error}; is a worker running already? Else choose another"
        )


def _files(security: Security, findings: Findings) -> None:
    """Every file that is named, whether or not the protocol makes use of it."""
    for setting in ("password_file", "ca_file", "cert_file", "key_file"):
        path: Path | None = getattr(security, setting)
        if path is None:
            continue
        try:
            path.open("rb").close()
        except OSError as error:
            findings.errors.append(f"kafka.security.{setting}: cannot read it: {error}")
    if any(line.startswith("kafka.security.") for line in findings.errors):
        return
    context = ssl.create_default_context()
    if security.ca_file is not None:
        _try(lambda: context.load_verify_locations(security.ca_file), "ca_file", findings)
    if security.cert_file is not None:
        # The empty password keeps it from asking the terminal for one.
        load = partial(context.load_cert_chain, security.cert_file, security.key_file, password="")
        _try(load, "cert_file and key_file", findings)


def _try(load: Callable[[], None], settings: str, findings: Findings) -> None:
    try:
        load()
    except (ssl.SSLError, ValueError) as error:
        findings.errors.append(f"kafka.security.{settings}: expected PEM without a password: {error}")


def _kafka(settings: Settings, clock: Clock, findings: Findings) -> int | None:
    """Partitions of all input topics; None where Kafka did not tell."""
    kafka, given = settings.kafka, settings.input
    if not given.topics:
        written: tuple[str, ...] = ()
    else:
        written = (settings.alerts_topic, settings.dead_letters_topic)
    end_s = clock.monotonic_s() + ANSWER_S
    try:
        found = topics_of(kafka, [*given.topics, *written], clock, lambda: clock.monotonic_s() > end_s)
    except BrokerUnavailableError:
        findings.errors.append(f"Kafka at {kafka.bootstrap_servers} does not answer within {ANSWER_S:g} s")
        return None
    except StreamdetError as error:
        if str(error) not in findings.errors:
            findings.errors.append(str(error))
        return None
    except (KafkaError, OSError) as error:
        findings.errors.append(
            f"Kafka at {kafka.bootstrap_servers} cannot be reached: {text(error)}; check kafka.bootstrap_servers, and "
            "that it is running"
        )
        return None
    findings.errors += [str(missing_topic(topic, kafka)) for topic in given.topics if topic not in found]
    findings.notes += [
        f"topic {topic}: not there yet, will be created" for topic in written if topic not in found
    ]
    partitions = sum(found[topic] for topic in given.topics if topic in found)
    return partitions or None


def _memory(settings: Settings, partitions: int | None, findings: Findings) -> None:
    given = settings.input
    lanes = partitions or max(len(given.topics), 1)
    memory = memory_estimate_bytes(settings, lanes, _imported_bytes())
    assumed = f"{lanes} {'partition' if lanes == 1 else 'partitions'}"
    if partitions is None:
        assumed += " (a guess: Kafka did not tell)"
    held = "one stream" if given.entity is None else f"{given.max_entities:,} entities (input.max_entities)"
    if given.transactions.counterparts:
        held += f", and as many of {', '.join(given.transactions.counterparts)} each,"
    findings.notes.append(
        f"memory: about {memory / 1e6:,.0f} MB with {held} per partition on {assumed}, all read by this worker, while "
        "a checkpoint is saved; a GPU's own libraries come on top"
    )


def _imported_bytes() -> int:
    """What this process, which has imported what a worker does, takes at the moment."""
    from streamdet import app  # noqa: F401 - for what it imports
    from streamdet.sink import kafka  # noqa: F401

    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return _IMPORTED_BYTES
    return pages * os.sysconf("SC_PAGE_SIZE")
