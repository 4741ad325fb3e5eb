"""Time as an argument: the wall clock for what is published, the monotonic one for waits."""

import time
from typing import Protocol


class Clock(Protocol):
    """What the program may know of time. Judging never asks; publishing, waiting and reporting do."""

    def now_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC."""

    def monotonic_s(self) -> float:
        """Seconds from an arbitrary start; never goes back."""

    def sleep_s(self, seconds: float) -> None:
        """Wait; only where there is nothing to wait on, such as between attempts to reach a broker."""


class SystemClock:
    """The clocks of this machine."""

    def now_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC."""
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        """Seconds from an arbitrary start."""
        return time.monotonic()

    def sleep_s(self, seconds: float) -> None:
        """Block for that long."""
        time.sleep(seconds)
