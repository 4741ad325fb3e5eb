"""What a lane notes with its offsets, and which adoptions it repeats on the way back."""

import string
from collections import deque
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from fakes import QUICK, SCHEMA
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal_rows, schema_of

from streamdet.checkpoint.format import digest
from streamdet.checkpoint.freeze import freeze_now
from streamdet.config import parse
from streamdet.events import LaneId, State
from streamdet.lane import NOTED_MAX, TIMELINE_MAX, Adoption, Lane, read, written
from streamdet.learn.trainer import Snapshot, train
from streamdet.models.release import Release
from streamdet.threshold.limits import SEEN_MIN

LANE = LaneId("plant", 0)
SETTINGS = parse(QUICK)
NOTE_MAX = 4_096  # characters that Kafka takes, by default
OFFSET_MAX = 2**63 - 1
CPU = torch.device("cpu")

_versions = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=16)
_adoptions = st.builds(Adoption, st.integers(0, OFFSET_MAX), _versions)
_timelines = st.lists(_adoptions, max_size=NOTED_MAX).map(lambda some: sorted(some, key=lambda a: a.offset))


def releases(n: int) -> list[Release]:
    """Versions that differ, with the rows that carry limits over."""
    rows = normal_rows(400, 4, seed=3)
    return [
        Release(
            train(Snapshot(rows[:300], rows[300:], None, 0.0, at), None, schema_of(4), None, 0, CPU),
            warm=True,
            rows=rows[300:],
        )
        for at in range(1, n + 1)
    ]


def lane_at(offset: int, *timeline: Adoption) -> Lane:
    """A lane that goes on there, and adopted these before."""
    lane = Lane.new(LANE, "", SCHEMA, SETTINGS)
    lane.next_offset = offset
    lane.timeline.extend(timeline)
    return lane


def test_versions_that_come_and_go_before_the_first_record_leave_no_trace() -> None:
    first, second, third = releases(3)
    there_all_along, late = lane_at(7), lane_at(7)
    for release in (first, replace(second, anew=True), third):
        there_all_along.adopt(release)
    late.adopt(third)
    assert list(late.timeline) == [Adoption(7, third.version.id)]
    assert digest(freeze_now(there_all_along.state())) == digest(freeze_now(late.state()))


def test_a_version_that_judged_nothing_is_kept_where_the_one_before_it_has_judged() -> None:
    first, second, third = releases(3)
    lane = lane_at(0)
    lane.adopt(first)
    lane.next_offset = 40
    lane.adopt(second)
    lane.adopt(third)  # the limits went through both scales, and a repetition must take them there, too
    assert [adoption.offset for adoption in lane.timeline] == [0, 40, 40]


@given(_timelines)
def test_what_was_noted_is_read(adoptions: list[Adoption]) -> None:
    assert read(written(adoptions)) == adoptions


@pytest.mark.parametrize(
    "note",
    [
        "",
        "committed by hand",
        "12",
        "12:",
        ":v",
        "x:v",
        "12:v,",
        "12:v,zz:w",
        "-5:v",
        "\x00",
        "a:b,c",
        "12 v",
    ],
)
def test_a_note_of_somebody_else_is_not_taken_for_adoptions(note: str) -> None:
    assert read(note) == []


@given(st.text())
def test_no_note_is_an_error(note: str) -> None:
    assert all(isinstance(adoption, Adoption) for adoption in read(note))


def test_a_note_fits_into_what_kafka_takes_however_many_versions_there_were() -> None:
    """Offsets of a million events a second for a century, and names as versions have them."""
    version = releases(1)[0].version.id
    far = 10**6 * 3600 * 24 * 365 * 100
    lane = lane_at(far + 10_000)
    lane.timeline.extend(Adoption(far + i, version) for i in range(5_000))
    assert len(lane.timeline) == TIMELINE_MAX
    note = lane.position.note
    assert len(note) <= NOTE_MAX
    assert read(note) == list(lane.timeline)[-NOTED_MAX:]


def test_noted_is_what_a_checkpoint_may_lack() -> None:
    """Before so many were saved here as are kept, nobody knows how old the one is from which the next owner goes on."""
    lane = lane_at(1_000, *(Adoption(at, f"v{at}") for at in (10, 100, 200, 300)))
    assert lane.saved_at.maxlen == SETTINGS.checkpoint.keep == 3
    for saved, noted in ((50, 4), (150, 4), (200, 3), (250, 2), (300, 2)):
        lane.saved_at.append(saved)
        assert len(read(lane.position.note)) == noted, saved
    # Kept are those at 200, 250 and 300; a lane restored at 200 has yet to adopt what was adopted there.
    assert read(lane.position.note) == [Adoption(200, "v200"), Adoption(300, "v300")]


def test_a_position_is_never_below_what_was_published_and_carries_what_is_still_to_be_repeated() -> None:
    lane = lane_at(500, Adoption(0, "a"), Adoption(400, "b"))
    lane.published = 900
    lane.recall([Adoption(0, "a"), Adoption(400, "b"), Adoption(700, "c")])
    position = lane.position
    assert position.offset == 900
    assert read(position.note) == [Adoption(0, "a"), Adoption(400, "b"), Adoption(700, "c")]
    lane.next_offset = 1_000
    assert lane.position.offset == 1_000


NOTED = [Adoption(256, "a"), Adoption(512, "b"), Adoption(512, "c"), Adoption(900, "d")]


@pytest.mark.parametrize(
    ("at", "timeline", "ahead"),
    [
        pytest.param(600, NOTED[:3], NOTED[3:], id="after the last that it knows"),
        pytest.param(512, NOTED[:2], NOTED[2:], id="saved between two adoptions at one offset"),
        pytest.param(512, NOTED[:1], NOTED[1:], id="saved at the offset, before the adoption"),
        pytest.param(950, NOTED, [], id="nothing is missing"),
        pytest.param(0, [], NOTED, id="it knows nothing"),
        pytest.param(512, [], NOTED[1:], id="it knows nothing, and is further on"),
        pytest.param(600, [Adoption(1, "gone")], NOTED[3:], id="what it knows is not noted any more"),
    ],
)
def test_recalled_is_what_is_noted_beyond_what_is_known(
    at: int, timeline: list[Adoption], ahead: list[Adoption]
) -> None:
    lane = lane_at(at, *timeline)
    lane.recall(NOTED)
    assert list(lane.ahead) == ahead


@pytest.mark.parametrize("noted", [[], read("somebody else's"), [Adoption(5, "other")]])
def test_nothing_is_recalled_from_a_note_that_says_nothing_of_what_lies_ahead(noted: list[Adoption]) -> None:
    lane = lane_at(600, *NOTED[:3])
    lane.recall(noted)
    assert not lane.ahead
    assert not lane.repeating


@given(_timelines, st.data())
def test_a_checkpoint_and_the_note_together_give_the_whole_timeline(
    timeline: list[Adoption], data: st.DataObject
) -> None:
    """However many of the adoptions were made when it was saved."""
    made = data.draw(st.integers(0, len(timeline)))
    offsets = [adoption.offset for adoption in timeline]
    lowest = offsets[made - 1] if made else 0
    highest = offsets[made] if made < len(timeline) else OFFSET_MAX
    whole = lane_at(OFFSET_MAX, *timeline)
    restored = lane_at(data.draw(st.integers(lowest, highest)), *timeline[:made])
    distinct = all(one != other for one, other in pairwise(timeline)) and len(set(timeline)) == len(timeline)
    restored.recall(read(whole.position.note))
    if distinct:
        assert [*restored.timeline, *restored.ahead] == timeline


def test_an_adoption_is_due_when_its_offset_has_come_and_repeats_until_the_published_offset() -> None:
    lane = lane_at(500)
    lane.published = 600
    lane.ahead = deque([Adoption(550, "a")])
    found = []
    for lane.next_offset in (500, 549, 550, 599):
        found.append(lane.due)
        assert lane.repeating
    assert found == [None, None, Adoption(550, "a"), Adoption(550, "a")]
    lane.next_offset = 600
    assert lane.repeating
    lane.ahead.popleft()
    assert lane.due is None
    assert not lane.repeating


def test_adopting_what_was_to_be_repeated_ticks_it_off() -> None:
    first, second = releases(2)
    lane = lane_at(100)
    lane.ahead = deque([Adoption(100, first.version.id), Adoption(200, second.version.id)])
    lane.adopt(first)
    assert [a.version for a in lane.ahead] == [second.version.id]
    assert list(lane.timeline) == [Adoption(100, first.version.id)]
    assert lane.alerting


def test_a_lane_keeps_no_rows_of_its_release_and_carries_limits_over_by_those_of_the_next() -> None:
    first, second = releases(2)
    lane = lane_at(0)
    lane.adopt(first)
    assert lane.release is not None
    assert len(lane.release.rows) == 0
    nobody = np.zeros(100, np.int64), np.zeros(100, np.bool_)
    lane.limits.judge(first.version.score(first.rows), *nobody, alerting=False)
    before = lane.limits.state()["histogram"].copy()
    lane.adopt(second)
    assert not np.array_equal(lane.limits.state()["histogram"], before)
    assert len(first.rows) == 100


def test_with_a_release_that_knows_nothing_of_before_limits_begin_anew_and_entities_with_nothing() -> None:
    first, second = releases(2)
    lane, young = lane_at(0), lane_at(0)
    for each in (lane, young):
        each.adopt(first)
    slots = np.arange(1_000) % 3
    lane.limits.judge(np.full(1_000, 7.0), slots, np.zeros(1_000, np.bool_), alerting=True)
    young.limits.judge(np.ones(1), slots[:1], np.zeros(1, np.bool_), alerting=False)
    for each in (lane, young):
        each.adopt(replace(second, anew=True))
    found, expected = lane.limits.state(), young.limits.state()
    assert all(np.array_equal(found[name][:1], expected[name][:1], equal_nan=True) for name in expected)
    assert found["seen"].tolist() == [SEEN_MIN, 0, 0]
    usual = second.version.score(second.rows)
    assert np.median(usual) < lane.limits.lane_limit < 7.0


def test_a_lane_restored_is_the_one_that_was_saved() -> None:
    first, second = releases(2)
    lane = lane_at(77)
    for release in (first, second):
        lane.adopt(release)
    schema = schema_of(4)

    def load(state: State) -> Release:
        return Release.from_state(state, schema, CPU)

    state = freeze_now(lane.state())
    other = Lane.new(LANE, "", SCHEMA, SETTINGS)
    other.restore(state, load)
    assert digest(other.state()) == digest(state)
    assert other.next_offset == 77
    assert other.timeline == lane.timeline
    assert other.release is not None
    assert (other.release.version.id, other.alerting) == (second.version.id, True)


def test_of_older_adoptions_than_a_thousand_nothing_is_known() -> None:
    lane = lane_at(0)
    lane.timeline.extend(Adoption(i, f"v{i}") for i in range(TIMELINE_MAX + 5))
    assert lane.state()["timeline"][0] == [5, "v5"]
    assert len(lane.state()["timeline"]) == TIMELINE_MAX


def test_a_lane_that_judges_again_stops_where_it_may_have_to_change_its_version() -> None:
    """At each recorded adoption, and at the published offset: one made there may not have been noted any more."""
    lane = lane_at(500)
    lane.published = 600
    lane.ahead = deque([Adoption(550, "a")])
    until = [lane.repeats_until]
    lane.ahead.popleft()
    until.append(lane.repeats_until)
    lane.next_offset = 600
    until.append(lane.repeats_until)
    assert until == [550, 600, None]
