"""What a group has in its checkpoint store, for people: listed with digests, pinned, unpinned, pruned."""

from collections.abc import Sequence
from typing import Any

from streamdet.checkpoint.format import unpack
from streamdet.checkpoint.shelf import RELEASE, Entry, Shelf
from streamdet.checkpoint.store import Store, open_store
from streamdet.clock import SystemClock
from streamdet.config import Settings
from streamdet.errors import CheckpointError


def look(
    settings: Settings, pin: Sequence[str] = (), unpin: Sequence[str] = (), *, prune: bool = False
) -> list[dict[str, Any]]:
    """Pin and unpin these, prune if asked, and tell what is there then, each file read and checked.

    A file that would be refused has the reason as `error`, and no digest. Equal states have equal digests.

    Raises:
        CheckpointError: the store fails, or has no file of a name that was given.
        ConfigError: nothing is known that could read such a URL.
    """
    store = open_store(settings.checkpoint.url)
    shelf = Shelf(store, settings.input.group_id, settings.checkpoint.keep, SystemClock())
    for name in pin:
        shelf.pin(name)
    for name in unpin:
        shelf.unpin(name)
    if prune:
        shelf.prune()
    return [_described(store, entry) for entry in shelf.entries()]


def _described(store: Store, entry: Entry) -> dict[str, Any]:
    described: dict[str, Any] = entry._asdict()
    try:
        packed = unpack(store.get(entry.name), entry.name)
    except CheckpointError as error:
        return {**described, "error": str(error)}
    if entry.kind != RELEASE:
        described["version"] = _version(packed.state)
    return {**described, "digest": packed.digest}


def _version(state: Any) -> str | None:  # noqa: ANN401 - a state
    """The model version in force in a lane, by its timeline."""
    timeline = state.get("timeline")
    return timeline[-1][1] if timeline else None


def lines(entries: Sequence[dict[str, Any]]) -> list[str]:
    """As a table."""
    rows = [("kind", "partition", "at", "bytes", "pinned", "version", "digest", "name")]
    for entry in entries:
        lane = "-" if entry["topic"] is None else f"{entry['topic']}/{entry['partition']}"
        rows.append(
            (
                entry["kind"],
                lane,
                str(entry["at"]),
                str(entry["size"]),
                "yes" if entry["pinned"] else "-",
                entry.get("version") or "-",
                entry.get("digest", "REFUSED")[:12],
                entry["name"] if "error" not in entry else f"{entry['name']}: {entry['error']}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    ]
