"""Saving the state of lanes and learner while judging goes on.

A snapshot is taken when a commit of all that was judged begins, and is written once that commit counted: so no
checkpoint is ever ahead of the committed offsets. Copying is all that the loop waits for.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from streamdet.checkpoint.background import Background
from streamdet.checkpoint.freeze import Buffers, freeze_now
from streamdet.checkpoint.shelf import LANE, Shelf
from streamdet.clock import Clock
from streamdet.config import Checkpoint
from streamdet.errors import CheckpointError
from streamdet.events import LaneId, State
from streamdet.lane import Adoption, Lane
from streamdet.learn.learner import Learner
from streamdet.serve.metrics import Metrics

log = logging.getLogger(__name__)

# What a last save may take before the worker ends without it.
LAST_SAVE_S: Final = 120.0
# The jobs of saving; those of others in the same background are theirs.
_ROOM: Final = "room"
_SNAPSHOT: Final = "snapshot"


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """State as it was when a commit began."""

    commit: int
    lanes: Sequence[Lane]
    state: State


class Keeper:
    """Saves when it is due; a failure is said, counted, and tried again when the next one is due."""

    def __init__(
        self,
        shelf: Shelf | None,
        background: Background,
        settings: Checkpoint,
        clock: Clock,
        metrics: Metrics,
        first: Callable[[], object] = lambda: None,
    ) -> None:
        self._first = first  # what has to be saved before any snapshot is
        self._shelf = shelf
        self._background = background
        self._every_s = settings.every_s
        self._clock = clock
        self._metrics = metrics
        self._buffers = Buffers()
        self._since_s = clock.monotonic_s()
        self._writing = False
        self._frozen: Snapshot | None = None
        self._written: deque[tuple[Lane, int]] = deque()  # filled in the background
        self.failed_since_s: float | None = None

    @property
    def due(self) -> bool:
        """Whether a snapshot should be taken."""
        waited_s = self._clock.monotonic_s() - self._since_s
        free = self._shelf is not None and self._frozen is None and not self._writing
        return free and waited_s >= self._every_s

    def begin(self, lane: Lane) -> None:
        """Save a lane that starts without state, at once: whatever comes, there is a way back to here."""
        if self._shelf is None:
            return
        try:
            self._shelf.put_lane(lane.id, lane.topic_id, lane.next_offset, lane.state())
        except CheckpointError as error:
            self._failed(error)
        else:
            lane.saved_at.append(lane.next_offset)

    def begin_learner(self, learner: Learner) -> None:
        """Save a learner that starts without state, at once."""
        if self._shelf is None:
            return
        try:
            self._shelf.put_learner(learner.seen, learner.state())
        except CheckpointError as error:
            self._failed(error)

    def freeze(self, lanes: Mapping[LaneId, Lane], learner: Learner | None, commit: int) -> None:
        """Take a snapshot, to be written once that commit counted."""
        frozen = self._buffers.freeze(_tree(lanes, learner))
        if frozen is None:  # grown: room is made in the background, and the next turn tries again
            self._writing = True
            self._background.submit(_ROOM, self._buffers.prepare)
            return
        self._since_s = self._clock.monotonic_s()
        self._frozen = Snapshot(commit, list(lanes.values()), frozen)

    def turn(self, lanes: Mapping[LaneId, Lane], final: int) -> None:
        """Write the snapshot whose commit counted; take note of what was written."""
        frozen = self._frozen
        if frozen is not None and any(lanes.get(lane.id) is not lane for lane in frozen.lanes):
            # A lane was lost (if it is back, it is another object). What it gave need not be committed, nor then what
            # the learner had learnt of it; so another snapshot is taken, without it.
            self._frozen = None
            self._since_s = -math.inf
        elif frozen is not None and frozen.commit <= final:
            self._frozen = None
            self._submit(frozen)
        self._note_results()

    def finish(self, lanes: Mapping[LaneId, Lane], learner: Learner | None) -> None:
        """Save now, and wait for it; everything judged must be committed."""
        if self._shelf is None:
            return
        self._background.drain(LAST_SAVE_S)
        frozen = freeze_now(_tree(lanes, learner))
        self._submit(Snapshot(0, list(lanes.values()), frozen))
        if not self._background.drain(LAST_SAVE_S):
            log.error("the last checkpoint is not written after %.0f s: ending without it", LAST_SAVE_S)
        self._note_results()

    def _submit(self, snapshot: Snapshot) -> None:
        self._writing = True
        self._background.submit(_SNAPSHOT, partial(self._write, snapshot.state, snapshot.lanes))

    def _write(self, state: State, lanes: Sequence[Lane]) -> None:
        """In the background: the learner first, and nothing without it.

        Lanes that are behind the learner are judged again; a learner that is behind a lane would miss events.
        """
        shelf = self._shelf
        assert shelf is not None  # noqa: S101 - nothing is due without one
        self._first()
        if "learner" in state:
            shelf.put_learner(state["learner"]["seen"], state["learner"])
        for lane in lanes:
            of_lane = state["lanes"][str(lane.id)]
            shelf.put_lane(lane.id, lane.topic_id, of_lane["next_offset"], of_lane)
            self._written.append((lane, of_lane["next_offset"]))

    def _note_results(self) -> None:
        for result in self._background.take_results():
            if result.label in (_ROOM, _SNAPSHOT):
                self._writing = False
            if result.error is not None:
                self._failed(result.error)
            elif result.label == _SNAPSHOT:
                self._metrics.checkpoint_seconds.set(result.seconds)
                self.failed_since_s = None
        while self._written:
            lane, next_offset = self._written.popleft()
            lane.saved_at.append(next_offset)
            self._metrics.checkpoints.labels("saved").inc()

    def _failed(self, error: CheckpointError) -> None:
        self._metrics.checkpoints.labels("failed").inc()
        log.error("checkpoint failed: %s", error)
        if self.failed_since_s is None:
            self.failed_since_s = self._clock.monotonic_s()


def _tree(lanes: Mapping[LaneId, Lane], learner: Learner | None) -> State:
    tree: dict[str, Any] = {"lanes": {str(lane): kept.state() for lane, kept in lanes.items()}}
    if learner is not None:
        tree["learner"] = learner.state()
    return tree


def timelines(shelf: Shelf) -> dict[LaneId, list[Adoption]]:
    """Which versions the lanes of a group adopted where, by the newest sound checkpoint of each.

    Raises:
        CheckpointError: the store fails.
    """
    places = {
        (LaneId(entry.topic, entry.partition), entry.topic_id or "")
        for entry in shelf.entries()
        if entry.kind == LANE and entry.topic is not None and entry.partition is not None
    }
    found: dict[LaneId, tuple[int, list[Adoption]]] = {}
    for lane, topic_id in sorted(places):
        newest = shelf.lane(lane, topic_id, None)
        if newest is not None and newest.state["next_offset"] >= found.get(lane, (-1, []))[0]:
            timeline = [Adoption(*adoption) for adoption in newest.state["timeline"]]
            found[lane] = newest.state["next_offset"], timeline
    return {lane: timeline for lane, (_, timeline) in found.items()}
