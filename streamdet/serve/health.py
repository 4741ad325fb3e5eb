"""Whether the worker is alive, and whether it does what it is there for.

Alive: its loop turns. Ready: nothing that stands in the way of judging and publishing is known; each such thing is a
cause, red from when it is noticed until it is gone.
"""

import threading
from collections.abc import Mapping
from typing import Final

from streamdet.clock import Clock

# Longer than anything the loop may wait for in one go: adopting a model, waiting for a broker that is slow to answer.
LIVE_S: Final = 60.0

STARTING: Final = "starting"


class Health:
    """What the loop knows of itself, for others to ask; safe to use from any thread.

    Begins red for `STARTING`, which whoever starts the worker turns green.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._beat_s = clock.monotonic_s()
        self._reasons = {STARTING: "the worker is starting"}

    def beat(self) -> None:
        """The loop has come round; called each time."""
        self._beat_s = self._clock.monotonic_s()

    @property
    def stuck(self) -> str | None:
        """Why the loop counts as stuck, None while it turns."""
        still_s = self._clock.monotonic_s() - self._beat_s
        return f"the loop has not come round for {still_s:.0f} s" if still_s > LIVE_S else None

    def red(self, cause: str, reason: str) -> None:
        """Something stands in the way; a later reason replaces an earlier one of the same cause."""
        with self._lock:
            self._reasons[cause] = reason

    def green(self, cause: str) -> None:
        """It no longer does, or never did."""
        with self._lock:
            self._reasons.pop(cause, None)

    def reasons(self) -> Mapping[str, str]:
        """What stands in the way, by cause."""
        with self._lock:
            return dict(self._reasons)

    @property
    def ready(self) -> bool:
        """Whether nothing does."""
        return not self.reasons()
