"""Tests that break things on purpose share one zygote, and say how to repeat what they did."""

import faulthandler
import os
import random
import sys
from collections.abc import Iterator

import pytest

from fault.zygote import Zygote

SEED_VARIABLE = "STREAMDET_FAULT_SEED"


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Forks workers; none outlives it."""
    with Zygote() as one:
        yield one


@pytest.fixture(autouse=True)
def patient() -> None:
    """These tests take longer than others that hang; their own timeouts hold."""
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def fault_seed() -> int:
    """From the environment, else a new one; said either way, and shown where the test fails."""
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**31))
    sys.stdout.write(f"to repeat the faults of this test: {SEED_VARIABLE}={seed}\n")
    return seed
