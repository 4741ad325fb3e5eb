"""What goes on and how long it still takes, on standard error.

On a terminal one line that renews itself; elsewhere a line at the start, one every ten seconds and one at the end, so
that a log stays short and yet nobody takes a download for a hang. Standard output is never touched: scripts read it.
"""

import sys
import time

TERMINAL_INTERVAL_S = 0.2
LOG_INTERVAL_S = 10.0


class Progress:
    """One task that is under way: `usual_s` is how long it takes where nothing is in its way."""

    def __init__(self, what: str, usual_s: float) -> None:
        self._what = what
        self._usual_s = usual_s
        self._terminal = sys.stderr.isatty()
        self._started_s = time.monotonic()
        self._shown_s = self._started_s
        self._show(f"{what}: about {usual_s:.0f} s ...")

    @property
    def elapsed_s(self) -> float:
        """Seconds since the task began."""
        return time.monotonic() - self._started_s

    def tick(self, share_done: float | None = None) -> None:
        """Show how far it is; call it as often as you like. `share_done` (0..1) beats the usual duration."""
        now_s = time.monotonic()
        if now_s - self._shown_s < (TERMINAL_INTERVAL_S if self._terminal else LOG_INTERVAL_S):
            return
        self._shown_s = now_s
        elapsed_s = self.elapsed_s
        left_s = self._usual_s - elapsed_s
        if share_done is not None and share_done > 0:
            left_s = elapsed_s * (1 - share_done) / share_done
        rest = f"about {left_s:.0f} s to go" if left_s >= 1 else "longer than usual"
        if share_done is not None:
            rest = f"{min(share_done, 0.99):.0%}, {rest}" if left_s >= 1 else "nearly done"
        self._show(f"{self._what}: {elapsed_s:.0f} s, {rest} ...")

    def done(self, outcome: str = "done") -> None:
        """Say how it ended."""
        self._show(f"{self._what}: {outcome} after {self.elapsed_s:.1f} s.", last=True)

    def _show(self, line: str, *, last: bool = False) -> None:
        if self._terminal:
            print(f"\r\x1b[K{line}", end="\n" if last else "", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)
