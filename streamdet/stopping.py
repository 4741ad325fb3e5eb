"""How a command is asked to end. Apart from the rest, so that commands which judge nothing import no torch."""

import os
import signal
import sys
from types import FrameType


class Signals:
    """SIGTERM and SIGINT ask the worker to finish; the second one gives up at once."""

    def __init__(self) -> None:
        self.requested = False

    def install(self) -> None:
        """Listen from now on; only from the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.requested:
            os.write(sys.stderr.fileno(), f"{name} again: giving up at once\n".encode())
            os._exit(1)
        self.requested = True
        os.write(sys.stderr.fileno(), f"{name}: finishing the batch; once more to give up\n".encode())
