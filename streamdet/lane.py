"""All that is kept for one topic-partition, and which model version it adopted where.

A lane's state is a function of its records and its timeline. So whoever judges a stretch again, after a crash or as the
lane's new owner, comes to the same state, if it adopts the same versions at the same offsets: those since the
checkpoint are noted in the lane's committed offset.
"""

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from streamdet.config import Settings
from streamdet.decide import Onset, Sieve
from streamdet.events import LaneId, Position, Schema, State
from streamdet.features.rows import LaneFeatures
from streamdet.models.release import Release
from streamdet.models.version import ModelVersion
from streamdet.threshold.limits import Limits

# Of older adoptions nothing is known any more.
TIMELINE_MAX: Final = 1_000
# Kafka takes 4,096 characters with an offset; an adoption takes about 20.
NOTED_MAX: Final = 120
_NOTE: Final = re.compile(r"[0-9a-f]{1,16}:\w+(,[0-9a-f]{1,16}:\w+)*", re.ASCII)


class Adoption(NamedTuple):
    """From this offset on, a lane was judged by this version."""

    offset: int
    version: str


@dataclass(eq=False)
class Lane:
    """What is kept of one lane.

    `published`: records below were published before it came here; they are judged again, for the state, but not
    published. `ahead`: adoptions to be repeated on the way there.
    """

    id: LaneId
    topic_id: str
    features: LaneFeatures
    limits: Limits
    onset: Onset = field(default_factory=Onset)
    sieve: Sieve | None = None  # where noise is configured
    release: Release | None = None
    next_offset: int = 0
    published: int = 0
    ahead: deque[Adoption] = field(default_factory=deque)
    timeline: deque[Adoption] = field(default_factory=lambda: deque(maxlen=TIMELINE_MAX))
    saved_at: deque[int] = field(default_factory=deque)  # next offsets of the newest checkpoints

    @classmethod
    def new(cls, lane: LaneId, topic_id: str, schema: Schema, settings: Settings) -> "Lane":
        """A lane that has seen nothing."""
        given = settings.input
        ranges = settings.noise.ranges(schema)
        features = LaneFeatures(schema, given.max_entities, given.missing, ranges)
        limits = Limits(settings.limit, nominal=settings.metric(schema))
        sieve = Sieve.of(settings, schema)
        return cls(
            lane, topic_id, features, limits, sieve=sieve, saved_at=deque(maxlen=settings.checkpoint.keep)
        )

    @property
    def version(self) -> ModelVersion | None:
        """The model version in force."""
        return None if self.release is None else self.release.version

    @property
    def alerting(self) -> bool:
        """Whether the version in force was trained on the whole warm-up."""
        return self.release is not None and self.release.warm

    @property
    def repeating(self) -> bool:
        """Whether it still judges what was judged before."""
        return bool(self.ahead) or self.next_offset < self.published

    @property
    def repeats_until(self) -> int | None:
        """The offset up to which it judges again by the version in force: there, it may have to change."""
        if self.ahead:
            return self.ahead[0].offset
        return self.published if self.next_offset < self.published else None

    @property
    def due(self) -> Adoption | None:
        """The recorded adoption whose offset has come."""
        return self.ahead[0] if self.ahead and self.ahead[0].offset <= self.next_offset else None

    def adopt(self, release: Release) -> None:
        """Judge by this version from the next record on, with the limits carried over to its scale, or begun anew."""
        if self.release is not None and len(release.rows) and release.anew:
            self.limits.begin_anew(release.scores_by(release.version))
        elif self.release is not None and len(release.rows):
            before = self.release.version
            self.limits.rescale(release.scores_by(before), release.scores_by(release.version))
        self.release = release.without_rows()
        if self.timeline and self.timeline[0].offset == self.next_offset:
            # It has judged nothing yet, and a version that judged nothing leaves no trace: whoever takes the lane up
            # from its beginning may find the newest one only.
            self.timeline.clear()
        self.timeline.append(Adoption(self.next_offset, release.version.id))
        if self.ahead and self.ahead[0].version == release.version.id:
            self.ahead.popleft()

    @property
    def position(self) -> Position:
        """Where it goes on, with the adoptions that a checkpoint may lack."""
        # Until so many checkpoints were saved here, one from before may be all that is left.
        since = self.saved_at[0] if len(self.saved_at) == self.saved_at.maxlen else 0
        recent = [adoption for adoption in self.timeline if adoption.offset >= since] + list(self.ahead)
        return Position(max(self.next_offset, self.published), written(recent[-NOTED_MAX:]))

    def recall(self, noted: Sequence[Adoption]) -> None:
        """Be ready to repeat those noted adoptions that the timeline does not have."""
        known = self.timeline[-1] if self.timeline else None
        if known is not None and known in noted:
            missing = noted[len(noted) - noted[::-1].index(known) :]
        else:
            missing = [adoption for adoption in noted if adoption.offset >= self.next_offset]
        self.ahead = deque(missing)

    def state(self) -> State:
        """All of it, in views that later records change."""
        state: dict[str, Any] = {
            "next_offset": self.next_offset,
            "features": self.features.state(),
            "limits": self.limits.state(self.features.slots),
            "onset": self.onset.state(self.features.slots),
            "timeline": [list(adoption) for adoption in self.timeline],
        }
        if self.sieve is not None:
            state["noise"] = self.sieve.state(self.features.slots)
        if self.release is not None:
            state["release"] = self.release.state()
        return state

    def restore(self, state: State, release: Callable[[State], Release]) -> None:
        """Take back what `state` gave; `release` makes one from its state."""
        self.next_offset = state["next_offset"]
        self.features.restore(state["features"])
        self.limits.restore(state["limits"])
        if "onset" in state:  # version 0.1 had none
            self.onset.restore(state["onset"])
        self.timeline.extend(Adoption(*adoption) for adoption in state["timeline"])
        if self.sieve is not None:
            self.sieve.restore(state.get("noise", {}))
        if "release" in state:
            self.release = release(state["release"])


def written(adoptions: Sequence[Adoption]) -> str:
    """Adoptions as they are noted with an offset."""
    return ",".join(f"{adoption.offset:x}:{adoption.version}" for adoption in adoptions)


def read(note: str) -> list[Adoption]:
    """The adoptions of a note; none in one that somebody else wrote."""
    if not _NOTE.fullmatch(note):
        return []
    entries = (entry.split(":") for entry in note.split(","))
    return [Adoption(int(offset, 16), version) for offset, version in entries]
