"""What a group published, as a subscriber to committed records sees it, and how it differs from what another did."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from chaos_kafka import arrived

Published = Mapping[str, Sequence[Any]]  # by id: of every copy what must be the same in any run


def published(servers: str, alerts_topic: str, dead_letters_topic: str) -> Published:
    """Alerts by topic/partition/offset, without the time of detection; dead letters by the same behind a word."""
    found: defaultdict[str, list[Any]] = defaultdict(list)
    for record in arrived(servers, alerts_topic):
        alert = msgspec.json.decode(record.value)
        del alert["detected_at"]
        found[alert["id"]].append(alert)
    for record in arrived(servers, dead_letters_topic):
        headers = {name: value.decode() for name, value in record.headers}
        origin = f"dead letter {headers['topic']}/{headers['partition']}/{headers['offset']}"
        found[origin].append((headers, record.key, record.value))
    return found


@dataclass(frozen=True)
class Difference:
    """Ids of what is not as it should be; all empty where everything is."""

    missing: list[str]
    unexpected: list[str]
    repeated: list[str]  # more than once in what was found
    unlike: list[str]  # there, but with another content

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.repeated or self.unlike)

    def __str__(self) -> str:
        parts = {name: getattr(self, name) for name in ("missing", "unexpected", "repeated", "unlike")}
        return "; ".join(f"{len(ids)} {name}: {_some(ids)}" for name, ids in parts.items() if ids) or "equal"


def difference(found: Published, expected: Published) -> Difference:
    """How what was found differs from what was expected, each of which should be there once."""
    return Difference(
        missing=_ordered(expected.keys() - found.keys()),
        unexpected=_ordered(found.keys() - expected.keys()),
        repeated=_ordered(name for name, copies in found.items() if len(copies) > 1),
        unlike=_ordered(
            name for name in found.keys() & expected.keys() if found[name][0] != expected[name][0]
        ),
    )


def position(name: str) -> tuple[str, int, int]:
    """Topic, partition and offset of an id."""
    topic, partition, offset = name.rsplit("/", 2)
    return topic, int(partition), int(offset)


def _ordered(names: Iterable[str]) -> list[str]:
    return sorted(names, key=position)


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")
