"""Peers of the benchmark that are slow: they take part on short streams, and are left out of others by their pace."""

import re
import time

import numpy as np
import pytest
from quality_peers import ROWS_MAX, TIMED_ROWS, Peer, peers, too_slow
from quality_stream import Stream

from streamdet.events import Floats


def stream(n: int) -> Stream:
    nothing = np.zeros(n, np.bool_)
    return Stream("made/0", "made", ("x",), np.zeros((n, 1)), nothing, 10, ~nothing)


def test_a_slow_peer_is_left_out_of_a_longer_stream_and_its_pace_is_that_of_the_first_rows() -> None:
    seen, took_s = [], []

    def score(some: Stream, _: int) -> tuple[Floats, None]:
        seen.append(len(some))
        started_s = time.perf_counter()
        raw = np.array([np.linalg.svd(np.ones((20, 20)))[1][0] for _ in range(len(some))])
        took_s.append(time.perf_counter() - started_s)
        return raw, None

    peer, longer = Peer("rrcf", score), stream(ROWS_MAX["rrcf"] + 1)
    assert not peer.suits(longer)
    told = re.fullmatch(r"too slow: ([\d,]+) rows/s", too_slow(peer, longer) or "")
    assert told is not None
    assert seen == [TIMED_ROWS]
    assert int(told[1].replace(",", "")) == pytest.approx(TIMED_ROWS / took_s[0], rel=0.5)


def test_it_takes_part_on_shorter_ones_and_others_on_all() -> None:
    slow = Peer("rrcf", lambda some, _: (np.zeros(len(some)), None))
    assert slow.suits(stream(ROWS_MAX["rrcf"]))
    assert too_slow(slow, stream(ROWS_MAX["rrcf"])) is None
    (fast,) = (peer for peer in peers() if peer.name == "hst")
    assert fast.suits(stream(100_000))
    assert too_slow(fast, stream(100_000)) is None
