"""What a worker compiles, it compiles before it judges: on first use it would stall amid a stream, for seconds."""

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def test_nothing_is_compiled_while_a_stream_of_any_kind_is_judged() -> None:
    """Not when the first model is trained, not for a single record, not for what was restored."""
    done = subprocess.run(
        [sys.executable, str(TESTS / "midstream.py")],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
