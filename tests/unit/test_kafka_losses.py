"""Records that are gone: which were still to be read, and which the state has only not seen."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamdet.errors import BrokerError
from streamdet.events import LaneId
from streamdet.source.kafka_losses import Losses

LANE = LaneId("plant", 3)
OFFSETS = st.integers(0, 50)


@given(wanted=OFFSETS, committed=st.none() | OFFSETS, first=OFFSETS)
def test_lost_is_what_lies_from_where_the_group_had_read_to_what_is_left(
    wanted: int, committed: int | None, first: int
) -> None:
    losses = Losses("earliest")
    assert losses.settle(LANE, wanted, committed, first) == max(wanted, first)
    unread = range(max(wanted, committed or 0), first)
    assert losses.counts[LANE] == len(unread)


@given(wanted=OFFSETS, committed=st.none() | OFFSETS, first=OFFSETS)
def test_a_worker_that_may_lose_none_fails_just_where_another_one_counts(
    wanted: int, committed: int | None, first: int
) -> None:
    counting, failing = Losses("earliest"), Losses("fail")
    counting.settle(LANE, wanted, committed, first)
    if counting.counts[LANE]:
        with pytest.raises(BrokerError, match=rf"^{counting.counts[LANE]} records of plant/3 are gone"):
            failing.settle(LANE, wanted, committed, first)
    else:
        failing.settle(LANE, wanted, committed, first)
    assert failing.counts == counting.counts


def test_losses_of_a_lane_add_up() -> None:
    losses = Losses("earliest")
    losses.settle(LANE, 0, None, 10)
    losses.settle(LANE, 20, 15, 25)
    losses.settle(LaneId("plant", 4), 0, None, 1)
    assert losses.counts == {LANE: 15, LaneId("plant", 4): 1}


def test_a_loss_is_an_error_and_state_that_is_behind_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    losses = Losses("earliest")
    losses.settle(LANE, 2, 8, 6)
    losses.settle(LANE, 8, 8, 9)
    losses.settle(LANE, 9, 9, 9)  # nothing is gone, nothing is said
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.ERROR]


def test_a_lane_that_was_cut_back_is_told_of_or_ends_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    Losses("earliest").cut_back(LANE, 6)
    assert "lane was cut back lane=plant/3 continues_at=6" in caplog.text
    with pytest.raises(
        BrokerError, match=r"plant/3 was cut back to offset 6.*input.lost_records to earliest"
    ):
        Losses("fail").cut_back(LANE, 6)
