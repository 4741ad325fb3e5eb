"""What holds for all tests: how hypothesis draws, which warnings are known, and that no test of Kafka is skipped."""

import os
import sys
import warnings
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings
from turns import turn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from kafka_broker import *  # noqa: F403 - the fixtures that its __all__ names

# No deadline: the first example compiles numba code and warms torch up.
settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile(os.environ.get("STREAMDET_HYPOTHESIS_PROFILE", "dev"))

KNOWN_WARNINGS = (
    # Message, category, and the module that is at work when it comes; all of them kafka-python's, version 3.0.
    # It reads its protocol files in a way that Python 3.11 and 3.12 deprecate and 3.13 does not.
    ("(read|open)_text is deprecated", DeprecationWarning, ""),
    # It forgets to close sockets whose broker is taken away: one that could not connect, one that is closed while it
    # connects, and, seen with brokers that are stopped for a while, connected ones too. What is collected does not tell
    # whose it was; that ours are closed is held by integration/test_closing.py.
    (r"unclosed <socket\.socket ", ResourceWarning, ""),
)
INTEGRATION = "tests/integration/"
LONGEST = "tests/fault/test_chaos.py"
SHORT = ("tests/contract/", "tests/unit/")
# They go over lines that others cover too, thousands of times: to measure these makes them take twice as long.
REPEATING = ("tests/property/", "tests/replay/")


def pytest_configure(config: pytest.Config) -> None:
    for message, category, module in KNOWN_WARNINGS:
        # For each test, and for what is collected only when the session ends.
        config.addinivalue_line("filterwarnings", f"ignore:{message}:{category.__name__}:{module}")
        warnings.filterwarnings("ignore", message, category, module)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Wait for the test's turn, before its time begins to run."""
    cache = item.config.cache
    assert cache is not None
    with turn(cache.mkdir("turns"), alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes first, what takes no time late, and those that are alone last: so nobody waits for long."""

    def place(item: pytest.Item) -> tuple[bool, bool, bool]:
        alone = item.get_closest_marker("alone") is not None
        return alone, item.nodeid.startswith(SHORT), not item.nodeid.startswith(LONGEST)

    items.sort(key=place)
    for item in items:
        if item.nodeid.startswith(REPEATING):
            item.add_marker("no_cover")


def _skipped_integration(config: pytest.Config) -> list[str]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    reports = reporter.stats.get("skipped", []) if reporter else []
    return [
        report.nodeid
        for report in reports
        if report.nodeid.startswith(INTEGRATION) or "integration" in getattr(report, "keywords", ())
    ]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run that left out a test of Kafka is a failed run, whatever reason the skip gave."""
    if _skipped_integration(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for nodeid in _skipped_integration(config):
        terminalreporter.write_line(f"FAILED {nodeid}: skipped, but a test of Kafka has to run", red=True)
