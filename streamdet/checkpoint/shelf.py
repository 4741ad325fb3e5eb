"""What one consumer group keeps in a store: the state of its lanes, of its learner, and the models it has adopted.

    <group>/lanes/<topic>/<topic id or "-">/<partition>/<next offset>-<unique>.safetensors
    <group>/learner/<events seen>-<unique>.safetensors
    <group>/models/<unix ms>-<version>.safetensors
    <group>/schema.json

Several workers use one shelf at a time. No name is used twice and nothing is written over, so none can spoil what
another wrote. What a name says is said again inside the file, under the digest: a file in another's place is refused.
"""

import itertools
import json
import logging
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from streamdet.checkpoint.format import Packed, RefusedError, pack, unpack
from streamdet.checkpoint.store import NotThereError, Store
from streamdet.clock import Clock
from streamdet.errors import CheckpointError
from streamdet.events import LaneId, State

log = logging.getLogger(__name__)

# A version is some tens of kilobytes. A replay along a timeline wants them all; a folder must not grow for ever.
RELEASES_KEPT = 200
_SUFFIX = ".safetensors"
_FILE = re.compile(r"[^/]+/(lanes/[^/]+/[^/]+/[0-9]+|learner|models)/[0-9]{15,20}-[^/]+" + re.escape(_SUFFIX))
_PIN = ".pin"
_NO_TOPIC_ID = "-"
LANE, LEARNER, RELEASE = "lane", "learner", "release"


class Found(NamedTuple):
    """A sound checkpoint."""

    name: str
    about: Mapping[str, Any]
    state: State


class Entry(NamedTuple):
    """A checkpoint as people see it in a list."""

    name: str
    kind: str  # lane, learner or release
    topic: str | None
    topic_id: str | None
    partition: int | None
    at: int  # next offset of a lane, events seen by the learner, milliseconds since 1970 of a release
    size: int  # bytes
    pinned: bool


class Shelf:
    """The checkpoints of one group. Methods raise StoreUnavailableError where the store fails.

    Args:
        store: where they are.
        group_id: whose they are.
        keep: how many of each lane, and of the learner.
        clock: for the time in the files and in the names of releases.
    """

    def __init__(self, store: Store, group_id: str, keep: int, clock: Clock) -> None:
        self.refused: Counter[str] = Counter()
        self._store = store
        self._group_id = group_id
        self._group = _quoted(group_id)
        self._models = f"{self._group}/models"
        self._keep = keep
        self._clock = clock
        self._unique = secrets.token_hex(4)
        self._numbers = itertools.count()

    def put_lane(self, lane: LaneId, topic_id: str, next_offset: int, state: State) -> str:
        """Keep the state of a lane behind all events below that offset; its name."""
        about = self._about_lane(lane, topic_id, next_offset)
        return self._put(LANE, self._lane_folder(lane, topic_id), next_offset, about, state)

    def lane(self, lane: LaneId, topic_id: str, at_most: int | None) -> Found | None:
        """The newest sound state of a lane at or before that offset; the newest of all for None."""
        return self._newest(
            LANE,
            self._lane_folder(lane, topic_id),
            at_most,
            lambda offset: self._about_lane(lane, topic_id, offset),
        )

    def has_lane(self, lane: LaneId, topic_id: str) -> bool:
        """Whether there is any state of the lane, sound or not."""
        return bool(self._files(self._lane_folder(lane, topic_id)))

    def put_learner(self, seen: int, state: State) -> str:
        """Keep the state of the learner after so many events; its name."""
        return self._put(LEARNER, f"{self._group}/learner", seen, self._about_learner(seen), state)

    def learner(self) -> Found | None:
        """The sound state of the learner that has seen most."""
        return self._newest(LEARNER, f"{self._group}/learner", None, self._about_learner)

    def put_release(self, version: str, state: State) -> str | None:
        """Keep an adopted model; its name, None if the version is there already."""
        files = self._files(self._models)
        if any(_version(name) == version for name in files):
            return None
        # After those that are there, though they were named by a clock that is ahead of this one.
        at_ms = max([self._clock.now_ms(), *(_at(file) + 1 for file in files[-1:])])
        name = f"{self._models}/{at_ms:015d}-{_quoted(version)}{_SUFFIX}"
        self._store.put(name, pack(RELEASE, self._about_release(version), state))
        self._drop([*files, name], RELEASES_KEPT)
        return name

    def release(self, version: str) -> State | None:
        """The model of a version, if it is there and sound."""
        files = [name for name in self._files(self._models) if _version(name) == version]
        found = self._first_sound(RELEASE, files, lambda _: self._about_release(version))
        return None if found is None else found.state

    def newest_release(self) -> str | None:
        """The version that was kept last, by a look at the names alone."""
        files = self._files(self._models)
        return _version(files[-1]) if files else None

    def schema(self) -> State | None:
        """What the group has agreed on, None before it has.

        Raises:
            CheckpointError: what is there is no schema.
        """
        name = f"{self._group}/schema.json"
        try:
            schema = json.loads(self._store.get(name))
        except NotThereError:
            return None
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{name} in {self._store.url} is no JSON: {error}; delete it") from error
        if not isinstance(schema, dict):
            raise CheckpointError(f"{name} in {self._store.url} is no schema: delete it")
        return schema

    def agree_on_schema(self, schema: State) -> State:
        """The schema of the group: this one, if no worker was first with another."""
        self._store.create(f"{self._group}/schema.json", json.dumps(schema, indent=1).encode())
        agreed = self.schema()
        return schema if agreed is None else agreed

    def pin(self, name: str) -> None:
        """Keep that file until it is unpinned, however many newer ones there are."""
        self._store.size(name)  # raises if it is not there
        self._store.put(name + _PIN, b"")

    def unpin(self, name: str) -> None:
        """Let that file go when its time comes."""
        self._store.delete(name + _PIN)

    def prune(self) -> None:
        """Drop what is neither pinned nor among the newest, in all lanes of the group."""
        folders: dict[str, list[str]] = {}
        for name in self._files(self._group):
            folders.setdefault(name.rpartition("/")[0], []).append(name)
        for folder, files in folders.items():
            self._drop(files, RELEASES_KEPT if folder == self._models else self._keep)

    def entries(self) -> list[Entry]:
        """All that the group has, sorted by name."""
        names = self._store.names(self._group)
        pinned = {name.removesuffix(_PIN) for name in names if name.endswith(_PIN)}
        entries = []
        for name in filter(_is_file, names):
            try:
                size = self._store.size(name)
            except NotThereError:  # pruned by another worker meanwhile
                continue
            entries.append(_entry(name, size, pinned=name in pinned))
        return entries

    def _put(self, kind: str, folder: str, at: int, about: Mapping[str, Any], state: State) -> str:
        name = f"{folder}/{at:020d}-{self._unique}-{next(self._numbers):08d}{_SUFFIX}"
        self._store.put(name, pack(kind, {**about, "at_ms": self._clock.now_ms()}, state))
        # Those beyond it do not count. They are another's, where this worker has lost the lane without knowing yet; or
        # they are from before the group was set back, and would take the place of all that comes now.
        self._drop([other for other in self._files(folder) if other <= name], self._keep)
        return name

    def _newest(
        self, kind: str, folder: str, at_most: int | None, about: Callable[[int], Mapping[str, Any]]
    ) -> Found | None:
        files = [name for name in self._files(folder) if at_most is None or _at(name) <= at_most]
        return self._first_sound(kind, reversed(files), lambda name: about(_at(name)))

    def _first_sound(
        self, kind: str, names: Iterable[str], about: Callable[[str], Mapping[str, Any]]
    ) -> Found | None:
        for name in names:
            try:
                packed = unpack(self._store.get(name), name)
                _check_place(packed, kind, about(name), name)
            except NotThereError:  # pruned by another worker meanwhile
                continue
            except RefusedError as error:
                self.refused[error.reason] += 1
                log.warning("checkpoint refused: %s", error)
            else:
                return Found(name, packed.about, packed.state)
        return None

    def _files(self, folder: str) -> list[str]:
        return [name for name in self._store.names(folder) if _is_file(name)]

    def _drop(self, files: list[str], keep: int) -> None:
        """Delete all but the newest of these files of one folder; pinned ones stay, and do not count."""
        if len(files) <= keep:
            return
        folder = files[0].rpartition("/")[0]
        pinned = {name.removesuffix(_PIN) for name in self._store.names(folder) if name.endswith(_PIN)}
        for name in [name for name in sorted(files) if name not in pinned][:-keep]:
            self._store.delete(name)

    def _lane_folder(self, lane: LaneId, topic_id: str) -> str:
        topic_id = _quoted(topic_id) if topic_id else _NO_TOPIC_ID
        return f"{self._group}/lanes/{_quoted(lane.topic)}/{topic_id}/{lane.partition}"

    def _about_lane(self, lane: LaneId, topic_id: str, next_offset: int) -> dict[str, Any]:
        return {
            "group_id": self._group_id,
            "topic": lane.topic,
            "topic_id": topic_id,
            "partition": lane.partition,
            "next_offset": next_offset,
        }

    def _about_learner(self, seen: int) -> dict[str, Any]:
        return {"group_id": self._group_id, "seen": seen}

    def _about_release(self, version: str) -> dict[str, Any]:
        return {"group_id": self._group_id, "version": version}


def _check_place(packed: Packed, kind: str, about: Mapping[str, Any], name: str) -> None:
    """Raise RefusedError where a file is not what its place says."""
    found = {"kind": packed.kind, **packed.about}
    for key, expected in {"kind": kind, **about}.items():
        if found.get(key) != expected:
            raise RefusedError(
                "foreign", f"{name} is another's: its {key} is {found.get(key)!r}, expected {expected!r}"
            )


def _quoted(text: str) -> str:
    """As one part of a name: whatever is in it, it can neither be two parts nor lead out of the folder."""
    quoted = quote(text, safe="")
    return quoted.replace(".", "%2E") if set(quoted) <= {"."} else quoted


def _stem(name: str) -> str:
    return name.rpartition("/")[2].removesuffix(_SUFFIX)


def _at(name: str) -> int:
    """The number with which the name of a file begins."""
    return int(_stem(name).partition("-")[0])


def _version(name: str) -> str:
    """Of the release in a file."""
    return unquote(_stem(name).partition("-")[2])


def _is_file(name: str) -> bool:
    """Whether a name is one of ours; others are nobody's business."""
    return _FILE.fullmatch(name) is not None


def _entry(name: str, size: int, *, pinned: bool) -> Entry:
    parts = name.split("/")
    if parts[1] == "lanes":
        topic_id = "" if parts[3] == _NO_TOPIC_ID else unquote(parts[3])
        return Entry(name, LANE, unquote(parts[2]), topic_id, int(parts[4]), _at(name), size, pinned)
    kind = LEARNER if parts[1] == "learner" else RELEASE
    return Entry(name, kind, None, None, None, _at(name), size, pinned)
