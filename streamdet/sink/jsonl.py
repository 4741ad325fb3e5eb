"""Alerts and dead letters as JSON lines in files, for replays."""

import base64
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgspec

from streamdet.errors import RecordingError
from streamdet.events import Alert, Reject


class WholeFile:
    """A file that has its name only once it is whole.

    Written beside its place and renamed by `keep`; left without, nothing stays.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file: BinaryIO = self.part.open("wb")
        except OSError as error:
            raise RecordingError(f"cannot write {path}: {error}") from error

    def keep(self) -> None:
        """Give the file its name."""
        self.file.close()
        self.part.replace(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()
        self.part.unlink(missing_ok=True)


class JsonLinesSink:
    """A `Sink` into files; what has no file is dropped."""

    def __init__(self, alerts: BinaryIO | None = None, dead_letters: BinaryIO | None = None) -> None:
        self._alerts = alerts
        self._dead_letters = dead_letters
        self._encoder = msgspec.json.Encoder()

    def publish(self, alerts: Sequence[Alert], rejects: Sequence[Reject]) -> None:
        """Write a line for each."""
        if self._alerts is not None:
            for alert in alerts:
                self._alerts.write(self._encoder.encode(alert) + b"\n")
        if self._dead_letters is not None:
            for reject in rejects:
                self._dead_letters.write(self._encoder.encode(_letter(reject)) + b"\n")

    def flush(self) -> None:
        """Hand what was written to the operating system."""
        for file in (self._alerts, self._dead_letters):
            if file is not None:
                file.flush()

    def close(self) -> None:
        """Flush; the files are the caller's."""
        self.flush()


def _letter(reject: Reject) -> dict[str, object]:
    """The original bytes in base64, as JSON has no bytes."""
    return {
        "topic": reject.lane.topic,
        "partition": reject.lane.partition,
        "offset": reject.offset,
        "timestamp_ms": reject.timestamp_ms,
        "reason": reject.reason.value,
        "error": reject.error,
        "key": None if reject.key is None else base64.b64encode(reject.key).decode(),
        "value": None if reject.value is None else base64.b64encode(reject.value).decode(),
    }
