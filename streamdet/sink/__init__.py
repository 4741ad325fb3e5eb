"""Where alerts and dead letters go: Kafka topics (`kafka`), or files (`jsonl`)."""

from collections.abc import Sequence
from typing import Protocol

from streamdet.events import Alert, Reject


class Sink(Protocol):
    """Takes what a batch gave. One catalogue of tests holds for every sink."""

    def publish(self, alerts: Sequence[Alert], rejects: Sequence[Reject]) -> None:
        """Hand over; it is safe only after the next `flush`."""

    def flush(self) -> None:
        """Return only when everything handed over has arrived; raise if any of it cannot."""

    def close(self) -> None:
        """Release what is held."""
