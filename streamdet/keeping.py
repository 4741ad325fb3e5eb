"""Saving the state of lanes and learner while judging goes on.

A snapshot is taken when a commit of all that was judged begins, and is written once that commit counted: so no
checkpoint is ever ahead of the committed offsets. Copying is all that the loop waits for.
"""

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from streamdet.checkpoint.background import Background
from streamdet.checkpoint.freeze import Buffers, freeze_now
from streamdet.checkpoint.shelf import LANE, Shelf
from streamdet.clock import Clock
from streamdet.config import Checkpoint
from streamdet.events import LaneId, State
from streamdet.lane import Adoption, Lane
from streamdet.learn.learner import Learner
from streamdet.serve.metrics import Metrics

log = logging.getLogger(__name__)

# What a last save may take before the worker ends without it.
LAST_SAVE_S: Final = 120.0
# Jobs that are not of one lane, whose label is lane@next offset.
_ROOM: Final = "room"
_WRITTEN: Final = "written"


class Keeper:
    """Saves when it is due; a failure is said, counted, and tried again when the next one is due."""

    def __init__(
        self,
        shelf: Shelf | None,
        background: Background,
        settings: Checkpoint,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._shelf = shelf
        self._background = background
        self._every_s = settings.every_s
        self._clock = clock
        self._metrics = metrics
        self._buffers = Buffers()
        self._since_s = clock.monotonic_s()
        self._writing = False
        self._frozen: tuple[int, State] | None = None  # the commit that it waits for, and the snapshot
        self.failed_since_s: float | None = None

    @property
    def due(self) -> bool:
        """Whether a snapshot should be taken."""
        waited_s = self._clock.monotonic_s() - self._since_s
        free = self._shelf is not None and self._frozen is None and not self._writing
        return free and waited_s >= self._every_s

    def freeze(self, lanes: Mapping[LaneId, Lane], learner: Learner | None, commit: int) -> None:
        """Take a snapshot, to be written once that commit counted."""
        frozen = self._buffers.freeze(_tree(lanes, learner))
        if frozen is None:  # grown: room is made in the background, and the next turn tries again
            self._writing = True
            self._background.submit(_ROOM, self._buffers.prepare)
            return
        self._since_s = self._clock.monotonic_s()
        self._frozen = commit, frozen

    def turn(self, lanes: Mapping[LaneId, Lane], final: int) -> None:
        """Write the snapshot whose commit counted; take note of what was written."""
        if self._frozen is not None and self._frozen[0] <= final:
            self._submit(self._frozen[1], lanes)
            self._frozen = None
        self._note_results(lanes)

    def finish(self, lanes: Mapping[LaneId, Lane], learner: Learner | None) -> None:
        """Save now, and wait for it; everything judged must be committed."""
        if self._shelf is None:
            return
        self._background.drain(LAST_SAVE_S)
        self._submit(freeze_now(_tree(lanes, learner)), lanes)
        self._background.drain(LAST_SAVE_S)
        self._note_results(lanes)

    def _submit(self, frozen: State, lanes: Mapping[LaneId, Lane]) -> None:
        shelf = self._shelf
        assert shelf is not None  # noqa: S101 - nothing is due without one
        self._writing = True
        # The learner first: lanes that are behind it are judged again, and a learner behind a lane would miss events.
        if "learner" in frozen:
            learner = frozen["learner"]
            self._background.submit("learner", partial(shelf.put_learner, learner["seen"], learner))
        for name, state in frozen["lanes"].items():
            lane = lanes.get(LaneId.parse(name))
            if lane is not None:  # it may have been lost since
                self._background.submit(
                    f"{name}@{state['next_offset']}",
                    partial(shelf.put_lane, lane.id, lane.topic_id, state["next_offset"], state),
                )
        self._background.submit(_WRITTEN, lambda: None)

    def _note_results(self, lanes: Mapping[LaneId, Lane]) -> None:
        for result in self._background.take_results():
            if result.label in (_ROOM, _WRITTEN):
                self._writing = False
            name, at, next_offset = result.label.partition("@")
            if result.error is not None:
                self._metrics.checkpoints.labels("failed").inc()
                log.error("checkpoint failed what=%s: %s", result.label, result.error)
                if self.failed_since_s is None:
                    self.failed_since_s = self._clock.monotonic_s()
            elif at:
                self._metrics.checkpoints.labels("saved").inc()
                self._metrics.checkpoint_seconds.set(result.seconds)
                self.failed_since_s = None
                lane = lanes.get(LaneId.parse(name))
                if lane is not None:
                    lane.saved_at.append(int(next_offset))


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
