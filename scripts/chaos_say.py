"""How chaos talks: progress on standard error, and what ends it."""

import sys
import time

_BEGAN_S = time.monotonic()


class ChaosError(Exception):
    """The run cannot go on, or proves nothing."""


def say(text: str) -> None:
    """A line for whoever waits, with the seconds since the start."""
    print(f"{time.monotonic() - _BEGAN_S:7.1f} s  {text}", file=sys.stderr, flush=True)
