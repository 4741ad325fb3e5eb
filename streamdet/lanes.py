"""The lanes of a worker: how they come to it, which model versions they take, and how they go.

There is one way for a lane to come, whatever the occasion: the newest sound checkpoint at or before its committed
offset, reading from there, the recorded adoptions where they were made, and nothing published below that offset.
"""

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from streamdet.checkpoint.shelf import Shelf
from streamdet.config import Settings
from streamdet.errors import CheckpointError
from streamdet.events import Batch, LaneId, Records, Schema
from streamdet.keeping import Keeper
from streamdet.lane import Adoption, Lane, read
from streamdet.releases import Releases
from streamdet.serve.metrics import Metrics
from streamdet.source import Source

log = logging.getLogger(__name__)


class Lanes(dict[LaneId, Lane]):
    """The lanes that are this worker's at the moment.

    `recorded` are adoptions that lanes without state repeat from their beginning, as in a replay by a timeline.
    """

    def __init__(
        self,
        settings: Settings,
        schema: Schema,
        source: Source,
        shelf: Shelf | None,
        releases: Releases,
        keeper: Keeper,
        metrics: Metrics,
        recorded: Mapping[LaneId, Sequence[Adoption]] | None = None,
    ) -> None:
        super().__init__()
        self._recorded = recorded or {}
        self._settings = settings
        self._schema = schema
        self._source = source
        self._shelf = shelf
        self._releases = releases
        self._keeper = keeper
        self._metrics = metrics
        self._warm = False
        self._behind: set[LaneId] = set()  # those that judge again, to be told when they no longer do
        self.rewound: list[
            LaneId
        ] = []  # by the last `shorten`: what is known of their offsets is of another topic

    @property
    def gone(self) -> list[LaneId]:
        """Those that the group took away, or whose topic is another one of the same name now."""
        mine, topic_id = self._source.lanes, self._source.topic_id
        return [
            lane for lane, kept in self.items() if lane not in mine or kept.topic_id != topic_id(lane.topic)
        ]

    @property
    def come(self) -> list[LaneId]:
        """Those that the group gave, and that are not here yet."""
        return sorted(self._source.lanes - self.keys())

    def drop(self, lane: LaneId) -> None:
        """Forget it; its new owner has its state from the store."""
        del self[lane]
        self._behind.discard(lane)
        self._metrics.drop_lane(lane)

    def begin(self, lane: LaneId, learnt: int | None) -> None:
        """Take a lane up; the learner has seen it up to the offset `learnt`, None where that does not matter.

        Raises:
            CheckpointError: it has no state that belongs to its committed offset, and `checkpoint.strict` asks for one.
            StoreUnavailableError: the store fails; the lane is not taken up.
        """
        begun = Lane.new(lane, self._source.topic_id(lane.topic), self._schema, self._settings)
        committed = self._source.committed(lane)
        begun.published = 0 if committed is None else committed.offset
        refusal = self._restored(begun, learnt)
        if refusal is None:
            begun.recall([] if committed is None else read(committed.note))
            self._source.seek(lane, begun.next_offset)
            log.info("lane=%s goes on at=%d published_below=%d", lane, begun.next_offset, begun.published)
            if begun.repeating:
                self._behind.add(lane)
        else:
            begun.next_offset = begun.published
            begun.recall(self._recorded.get(lane, ()))
            self._say_cold(begun, refusal, new=committed is None)
            self._keeper.begin(begun)
        self[lane] = begun

    def _restored(self, lane: Lane, learnt: int | None) -> str | None:
        """Restore the lane; why it cannot be, if it cannot."""
        if self._shelf is None:
            return "nothing is kept"
        # A lane that is ahead of the learner would leave it without the events between; so rather one that is behind.
        committed = lane.published
        at_most = committed if learnt is None else min(learnt, committed)
        found = self._shelf.lane(lane.id, lane.topic_id, at_most)
        if found is None and at_most < committed:
            found = self._shelf.lane(lane.id, lane.topic_id, committed)
        if found is None:
            some = self._shelf.has_lane(lane.id, lane.topic_id)
            what = "no usable checkpoint at or before that offset" if some else "no checkpoint of it"
            return f"{what} in {self._settings.checkpoint.url}"
        entities, most = len(found.state["features"]["entities"]["names"]), self._settings.input.max_entities
        if entities > most:
            return f"its checkpoint has {entities} entities, input.max_entities is now {most}"
        lane.restore(found.state, self._releases.load)
        return None

    def _say_cold(self, lane: Lane, refusal: str, *, new: bool) -> None:
        self._metrics.cold_starts.inc()
        if new:
            log.info("lane=%s starts cold: %s; no alerts in the warm-up", lane.id, refusal)
            return
        if self._settings.checkpoint.strict:
            raise CheckpointError(
                f"partition {lane.id} cannot go on at its committed offset {lane.published}: {refusal}. Restore its "
                "checkpoints, or set checkpoint.strict: false to let it start without limits of its own"
            )
        log.warning(
            "lane=%s starts cold at=%d: %s; no alerts before it has a limit of its own",
            lane.id,
            lane.published,
            refusal,
        )

    def shorten(self, batch: Batch) -> Batch:
        """The batch up to where a lane that judges again may change its version; the rest is read again after that."""
        self.rewound = []
        parts = [self._shortened(part) for part in batch.parts]
        return Batch([part for part in parts if len(part)])

    def _shortened(self, part: Records) -> Records:
        lane = self[part.lane]
        if part.offsets[0] < lane.next_offset:
            log.warning(
                "lane=%s went back from %d to %d: all of it counts as new",
                part.lane,
                lane.next_offset,
                part.offsets[0],
            )
            lane.published = 0
            self.rewound.append(lane.id)
        if not lane.repeating:
            return part
        lane.next_offset = max(lane.next_offset, int(part.offsets[0]))  # offsets may have gaps
        self.adopt()
        until = lane.repeats_until
        if until is None:
            return part
        n = int(np.searchsorted(part.offsets, until))
        if n < len(part):
            self._source.seek(part.lane, int(part.offsets[n]))
        return part.first(n)

    def adopt(self) -> None:
        """Recorded versions where they were adopted the first time; beyond, the newest one.

        Raises:
            StoreUnavailableError: the store fails; lanes that want a version from it have none yet.
        """
        for lane in self.values():
            self._repeat(lane)
            if lane.id in self._behind and not lane.repeating:
                self._behind.remove(lane.id)
                log.info(
                    "lane=%s is back at=%d: what was judged before is judged again", lane.id, lane.next_offset
                )
            newest = self._releases.newest
            if newest is None or lane.repeating:
                continue
            if lane.release is None or lane.release.version.id != newest.version.id:
                if newest.warm and not (lane.alerting or self._warm):
                    self._warm = True
                    log.info("warm-up ended version=%s", newest.version.id)
                lane.adopt(newest)
                self._metrics.adoptions.inc()

    def _repeat(self, lane: Lane) -> None:
        while (adoption := lane.due) is not None:
            release = self._releases.get(adoption.version)
            if release is not None:
                lane.adopt(release)
                continue
            lane.ahead.popleft()
            log.warning(
                "lane=%s cannot adopt version=%s at=%d again: it is gone from the store",
                lane.id,
                adoption.version,
                adoption.offset,
            )
