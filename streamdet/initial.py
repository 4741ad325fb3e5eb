"""A first configuration for data that was looked at: only what was found is set, everything else is there to see.

The file is made from the declarations in `streamdet.config`, so it cannot drift from them: each setting has its
sentence, its bounds and its default. A setting that is left alone is commented out by a `#` right before its name;
taking these away gives a file with the same meaning.
"""

import csv
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from streamdet.clock import SystemClock
from streamdet.codec.csv import CsvCodec
from streamdet.codec.infer import SAMPLE, infer_schema
from streamdet.codec.json import parse_object
from streamdet.config import Kafka, Settings
from streamdet.errors import ConfigError, RecordingError
from streamdet.events import Schema
from streamdet.sampled import Column, Payments, columns_of, entity_candidate, payments_candidate, shown
from streamdet.source.recording import RecordingSource

# Columns with labels are for metrics; a model that saw them would have seen the answer.
LABEL: Final = "label"
WIDTH: Final = 100
_BOUNDS: Final = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}

_Fields = Mapping[str, object]


def configuration_for_recording(sample: Path) -> str:
    """A commented configuration for the stream that a recording shows, as YAML.

    Raises:
        ConfigError: there is no field to judge in it.
        RecordingError: the recording cannot be read.
    """
    with closing(RecordingSource([sample])) as source:
        values = source.peek(SAMPLE)
        if source.format == "csv":
            codec = CsvCodec(Schema(None, None, (), ()), source.header, source.delimiter)
            events = [fields for value in values if (fields := _csv_fields(codec, value)) is not None]
        else:
            events = _json_events(values)
        lanes = sorted({lane.topic for lane in source.lanes}) if source.files[0].spans else [_stem(sample)]
    return _configuration(sample.name, events, len(values), {"input.topics": lanes})


def configuration_for_topic(kafka: Kafka, topic: str) -> str:
    """A commented configuration for a topic, from its newest records, as YAML.

    Raises:
        BrokerError: the topic does not exist, or Kafka refused.
        ConfigError: there is no field to judge in it, or nothing at all.
    """
    from streamdet.broker.backlog import Backlog

    values: list[bytes] = []
    with closing(Backlog(kafka, topic, SystemClock(), lambda: False)) as backlog:
        backlog.newest(SAMPLE)
        for records, _ in backlog.read(follow=False):
            values += [r.value for r in records if r.value is not None]
    if not values:
        raise ConfigError(
            f"topic {topic!r} holds nothing to look at: publish some events first, or give a file"
        )
    found = {"input.topics": [topic], "kafka.bootstrap_servers": kafka.bootstrap_servers}
    text = _configuration(f"topic {topic}", _json_events(values), len(values), found)
    if kafka.security.protocol != "PLAINTEXT":
        # Neither passwords nor their absence belong into a file that is printed.
        text += (
            "\n# Kafka was reached with other kafka.security settings: take them over from where they are.\n"
        )
    return text


def _csv_fields(codec: CsvCodec, value: bytes) -> _Fields | None:
    try:
        return codec.original(value)
    except (ValueError, csv.Error):
        return None


def _json_events(values: Sequence[bytes]) -> list[_Fields]:
    return [fields for fields in map(parse_object, values) if isinstance(fields, dict)]


def _stem(path: Path) -> str:
    """The name of the file without its suffixes, as far as Kafka allows it in the name of a topic."""
    stem = path.name.split(".")[0] or path.stem
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in stem)[:200]


def _configuration(what: str, events: Sequence[_Fields], records: int, found: dict[str, Any]) -> str:
    if not events:
        raise RecordingError(
            f"none of the first {records} records of {what} is an event: expected JSON objects"
        )
    columns = columns_of(events)
    named = {column.name: column for column in columns}
    candidate = entity_candidate(columns, len(events))
    payments = payments_candidate(columns, len(events), candidate)
    schema, candidate, payments = _schema(events, candidate, payments)
    seen = _Seen(found)
    if schema.timestamp is not None:
        seen.found["input.timestamp"] = schema.timestamp
    if candidate is not None:
        seen.suggested["input.entity"] = candidate
        seen.notes["input.entity"] = (
            f"{shown(candidate)} looks like one ({named[candidate].summary}): if it is, take the # away, if it is not, "
            "it may be a feature."
        )
    for kind, names in (("numeric", schema.numeric), ("categorical", schema.categorical)):
        if names:
            seen.found[f"input.features.{kind}"] = {name: named[name].summary for name in names}
    if payments is not None:
        seen.suggested["input.transactions.amount"] = payments.amount
        seen.suggested["input.transactions.counterparts"] = list(payments.counterparts)
        told = [
            f"{shown(name)} ({named[name].summary})" for name in (payments.amount, *payments.counterparts)
        ]
        seen.notes["input.transactions"] = (
            f"These look like transactions: {', '.join(told)}. If they are, take the # away here and before the "
            "entity: each amount is then judged by what its payer usually pays."
        )
    counterparts = payments.counterparts if payments is not None else ()
    used = {schema.timestamp, candidate, *counterparts, *schema.columns}
    left = [f"{shown(c.name)} ({_why_left(c)})" for c in columns if c.name not in used]
    if left:
        seen.notes["input.features"] = f"Left out: {', '.join(left)}."
    readable = "" if len(events) == records else f", of which {len(events):,} are events"
    head = (
        f"Configuration of streamdet for {shown(what)}, from {records:,} records{readable}. What was found is set. "
        "What stands behind a # is the default: take the # away to change it."
    )
    return "\n".join([*_comment(head), *_section(Settings, "", seen, plain=False)]) + "\n"


@dataclass
class _Seen:
    """What is to be written, by the dotted name of the setting."""

    found: dict[str, Any]  # values to set; a mapping gives a list with a remark behind each item
    suggested: dict[str, Any] = field(default_factory=dict)  # shown in place of the default, commented out
    notes: dict[str, str] = field(default_factory=dict)


def _schema(
    events: Sequence[_Fields], candidate: str | None, payments: Payments | None
) -> tuple[Schema, str | None, Payments | None]:
    """What to judge, and what may be keys, which are then not judged: they are no measurements."""
    keys = payments.counterparts if payments is not None else ()
    try:
        return infer_schema(events, label=LABEL, entity=candidate, keys=keys), candidate, payments
    except ConfigError:
        return infer_schema(events, label=LABEL), None, None


def _why_left(column: Column) -> str:
    if column.name == LABEL:
        return "a label"
    return "a different one in every event" if column.kind == "text" else column.summary


def _section(model: type[BaseModel], path: str, seen: _Seen, *, plain: bool) -> list[str]:
    """The lines of a section; what was not found is commented out, or nothing at all if `plain`."""
    lines: list[str] = []
    for name, declared in model.model_fields.items():
        here = f"{path}{name}"
        is_set = plain or any(key == here or key.startswith(f"{here}.") for key in seen.found)
        inner = _inner_section(declared)
        if inner is not None:
            parts = _section(inner, f"{here}.", seen, plain=plain or not is_set)
            block = [f"{name}:", *(f"  {line}" if line else "" for line in parts)]
        else:
            block = _setting(name, here, declared, seen)
        lines += ["", *_comment(_sentence(declared))] if not path else _comment(_sentence(declared))
        lines += _comment(seen.notes[here]) if here in seen.notes else []
        lines += block if is_set else [f"#{line}" for line in block]
    return lines


def _setting(name: str, here: str, declared: FieldInfo, seen: _Seen) -> list[str]:
    if get_origin(declared.annotation) is dict:  # of names that only the user knows
        _, each = get_args(declared.annotation)
        return [f"{name}: {{}}", *(_of_each(each) if isinstance(each, type) else [])]
    value = seen.found.get(here, seen.suggested.get(here, declared.get_default(call_default_factory=True)))
    if isinstance(value, dict):
        return [f"{name}:", *(f"  - {_plain(item)}  # {remark}" for item, remark in value.items())]
    return [f"{name}: {_plain(value)}"]


def _of_each(section: type[BaseModel]) -> list[str]:
    """What there is to set for each name in a mapping, as a comment."""
    lines = _comment("Each name takes:")
    for name, declared in section.model_fields.items():
        lines += _comment(f"{name}: {_sentence(declared)} Default: {_plain(declared.default)}.")
    return lines


def _inner_section(declared: FieldInfo) -> type[BaseModel] | None:
    if get_origin(declared.annotation) is dict:  # of names that only the user knows
        return None
    candidates = (declared.annotation, *get_args(declared.annotation))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _sentence(declared: FieldInfo) -> str:
    """What the declaration says of a setting."""
    limits = [
        f"{words} {getattr(bound, sign)}"
        for bound in declared.metadata
        for sign, words in _BOUNDS.items()
        if hasattr(bound, sign)
    ]
    literals = [a for a in (declared.annotation, *get_args(declared.annotation)) if get_origin(a) is Literal]
    choices = [str(choice) for literal in literals for choice in get_args(literal)]
    if len(choices) > 1:
        limits.append(f"one of {', '.join(choices)}")
    described = (declared.description or "").rstrip(".")
    return f"{described} ({', '.join(limits)})." if limits else f"{described}."


def _plain(value: object) -> str:
    """A value as YAML, on one line."""
    kept = list(value) if isinstance(value, tuple) else value
    dumped: str = yaml.safe_dump([kept], default_flow_style=True, allow_unicode=True, width=2**31)
    return dumped.strip()[1:-1]


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
