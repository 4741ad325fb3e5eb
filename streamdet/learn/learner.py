"""Learning beside judging: started at fixed event counts, adopted at fixed event counts.

A run starts on a snapshot of the buffer and trains in the background; its model is adopted at exactly the count that
was fixed when it started, and nothing is judged meanwhile if it is not ready. So scoring never depends on how fast
training was, and a replay adopts at the same events. During the warm-up runs come at doubling counts and are waited for
at once.
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from streamdet.clock import Clock
from streamdet.config import Settings
from streamdet.events import Bools, Floats, LaneId, Rows, Schema, State, Verdicts
from streamdet.learn.buffer import NormalRows, Ring
from streamdet.learn.drift import Drift
from streamdet.learn.gate import GateResult, examine
from streamdet.learn.quarantine import ROWS as WAITING
from streamdet.learn.quarantine import Quarantine, Released
from streamdet.learn.trainer import WARMUP_TRIM, Snapshot, spread_floor, train
from streamdet.models.presets import PRESETS
from streamdet.models.release import Release
from streamdet.models.version import ModelVersion

log = logging.getLogger(__name__)

FIRST_RUN = 64
# Runs are further apart the longer a stream is, until `learning.every`: what has been seen for a day changes less in a
# minute than what has been seen for an hour, and a fast stream is not trained on all the time.
GROWTH = 8
APART_MIN = 512
# Outcomes of runs are logged at most so often.
SAY_EVERY_S = 10.0
NEVER = int(np.iinfo(np.int64).max)
# So long an adoption waits for its run in one go; then the loop sees to its place in the group.
WAIT_S = 0.25
# Drift is acted upon at multiples of so many events: a batch ends at the first one at which it may have been confirmed.
ACT_EVERY = 2048
# Of a row that is as usual as not, in nats.
MEDIAN = math.log(2.0)
# A snapshot with fewer rows is not worth a model.
ROWS_MIN = 32


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run gave; no gate result during the warm-up, where anything newer is better."""

    candidate: ModelVersion
    gate: GateResult | None


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A training run under way."""

    snapshot: Snapshot
    adopt_at: int
    limit: float
    future: "Future[Outcome]"


class Learner:
    """Counts events, keeps normal rows, trains and adopts."""

    def __init__(self, settings: Settings, schema: Schema, device: torch.device, clock: Clock) -> None:
        self._settings = settings
        self._schema = schema
        self._warmup = settings.learning.warmup_of(schema)
        self._device = device
        self._clock = clock
        self._rows = NormalRows(settings.learning.buffer, schema.width, settings.model.seed)
        self._quarantine = Quarantine(schema.width)
        # A metric's own history follows the stream row by row.
        self._follows = settings.learning.enabled and settings.learning.drift and not settings.metric(schema)
        # As rows have their numbers: what is just at a bound in 64 bits may be beyond it in 32.
        self._low, self._high = np.array(settings.noise.ranges(schema), np.float32).reshape(-1, 2).T
        self._drift = Drift(settings.limit.window)
        # What a new state is learnt from: no more than has left the quarantine since it began.
        self._latest = Ring(min(self._drift.stays - WAITING, settings.learning.buffer), schema.width)
        self._drifted = False
        self._began = 0  # the count from which it knows
        # Torch keeps the number of threads per thread: left to itself, this one would take all cores.
        self._executor = ThreadPoolExecutor(
            1, thread_name_prefix="fine-tune", initializer=torch.set_num_threads, initargs=(1,)
        )
        self._run: Run | None = None
        self._floor: Floats | None = None
        self._next_start = FIRST_RUN
        self._waiting = False
        self.release: Release | None = None
        self.seen = 0
        # Up to which offset it has learnt of each lane: what is judged again is not learnt again.
        self.positions: dict[LaneId, int] = {}
        self.adopted_total = 0
        self.refused_total: Counter[str] = Counter()
        self.relearnt_total = 0
        self.waited_s = 0.0
        self._said_s = -math.inf

    @property
    def warm(self) -> bool:
        """Whether enough was learnt to alert."""
        return self.seen >= self._warmup

    def room(self) -> int:
        """How many events may be judged before something changes; 0 while an adoption waits for its run."""
        if self._waiting:
            return 0
        boundaries = [self._next_start]
        if not self.warm:
            boundaries.append(self._warmup)
        if self._run is not None:
            boundaries.append(self._run.adopt_at)
        if self._follows:
            soonest = self.seen + (1 if self._drifted else self._drift.soonest)
            boundaries.append(-(-soonest // ACT_EVERY) * ACT_EVERY)
        return min(boundaries) - self.seen

    def observe(
        self, parts: list[tuple[Rows, Verdicts]], next_offsets: Mapping[LaneId, int], limit: float
    ) -> None:
        """Take in what was judged up to these offsets, and start a run if its count has come."""
        for rows, verdicts in parts:
            waiting = Released(rows, verdicts.normal, verdicts.fed, self.seen)
            # In the warm-up nobody knows yet what is strange, and every row is needed.
            released = self._quarantine.add(*waiting) if self.warm else waiting
            self._rows.add(*released)
            if self._follows:
                self._latest.add(released.rows[self._possible(released.rows)])
            if self._follows and self.warm:
                self._drifted |= self._drift.add(self._of_model(rows, verdicts.raw)[self._possible(rows)])
            self.seen += len(rows)
        self.positions |= next_offsets
        if self._drifted and self.seen % ACT_EVERY == 0:
            self._relearn()
        elif self.seen == self._next_start:
            self._start(limit, trim=WARMUP_TRIM if self.seen <= self._warmup else 0.0)
            self._next_start = self._following(self.seen)

    def adopt(self) -> Release | None:
        """A new release, if the count of its adoption has come, its run is ready and the gate let it pass.

        Waits for the run at most a quarter of a second; `room` is 0 until it is ready.
        """
        run = self._run
        if run is None or self.seen < run.adopt_at:
            return None
        started_s = self._clock.monotonic_s()
        self._waiting = not wait_for([run.future], WAIT_S).done
        self.waited_s += self._clock.monotonic_s() - started_s
        if self._waiting:
            return None
        self._run = None
        return self._judged(run.future.result(), run.snapshot)

    def _judged(self, outcome: Outcome, snapshot: Snapshot) -> Release | None:
        if outcome.gate is not None and outcome.gate.refusal is not None:
            self.refused_total[outcome.gate.refusal] += 1
            self._say(
                logging.WARNING, f"model refused reason={outcome.gate.refusal} at={self.seen} {outcome.gate}"
            )
            return None
        self.adopted_total += 1
        anew = bool(snapshot.at == self._began)
        if self._floor is None:
            self._floor = spread_floor(snapshot.training)
        log.info(
            "model adopted version=%s preset=%s at=%d %s", outcome.candidate.id, outcome.candidate.preset,
            self.seen, outcome.gate or ("anew" if anew else "warm-up"),
        )  # fmt: skip
        warm = outcome.candidate.trained_at >= self._warmup
        self.release = Release(outcome.candidate, warm, self._rows.held_out(), anew)
        return self.release

    def forget(self, lane: LaneId) -> None:
        """The lane is another worker's now, which may take it further."""
        self.positions.pop(lane, None)

    def close(self, *, wait: bool = True) -> None:
        """Let a run under way end, or leave it to itself, and release its thread."""
        self._executor.shutdown(wait=wait, cancel_futures=True)

    def _say(self, level: int, text: str) -> None:
        """Log an outcome, but at a high rate of events not each of them; the metrics count all."""
        now_s = self._clock.monotonic_s()
        rare = now_s - self._said_s >= SAY_EVERY_S or not self.warm
        log.log(level if rare else logging.DEBUG, text)
        if rare:
            self._said_s = now_s

    def _possible(self, rows: Rows) -> "slice | Bools":
        """Which rows lie within the hard ranges: the others are no state to learn, however long they last."""
        if np.isinf(self._low).all() and np.isinf(self._high).all():
            return slice(None)
        numeric = rows.values[:, : len(self._low)]
        return np.asarray(((self._low <= numeric) & (numeric <= self._high)).all(axis=1))

    def _of_model(self, rows: Rows, raw: Floats) -> Floats:
        """Scores, (n,), without what the newest rows have taken over: they would hide that the model is out of date."""
        if self.release is None:
            return raw
        version = self.release.version
        share = PRESETS[version.preset].share_of_newest(torch.from_numpy(version.newest(rows))).numpy()
        return (raw - share * MEDIAN) / (1.0 - share)

    def _relearn(self) -> None:
        """Learn the state that the stream is in now, from its rows alone. A run under way is about the one before."""
        self._drifted, self._run, self._floor, self._began = False, None, None, self.seen
        self.relearnt_total += 1
        log.warning("drift confirmed action=relearn at=%d", self.seen)
        latest = self._latest.oldest_first()
        self._rows.begin_anew(latest, self.seen - WAITING - len(latest))
        # Neither the limit in force nor the model that gave it says anything of this state: the gate cannot compare.
        self._start(math.nan, trim=WARMUP_TRIM)
        self._next_start = self._following(self.seen)

    def _following(self, start: int) -> int:
        learning, age = self._settings.learning, start - self._began
        apart = age if start < self._warmup else max(age // GROWTH, APART_MIN)
        following = start + min(apart, learning.every)
        if start < self._warmup < following:
            following = self._warmup  # the first alerts are by a model of the whole warm-up
        return following if learning.enabled or following <= self._warmup else NEVER

    def _start(self, limit: float, *, trim: float) -> None:
        snapshot = Snapshot(
            training=self._rows.training(),
            held_out=self._rows.held_out(),
            spread_floor=self._floor,
            trim=trim,
            at=self.seen,
        )
        if len(snapshot.training) < ROWS_MIN or len(snapshot.held_out) < ROWS_MIN // 4:
            log.warning("fine-tune left out at=%d: too few normal rows", self.seen)
            return
        lag = 0
        if self.seen > self._warmup:
            lag = min(self._settings.learning.lag, (self._following(self.seen) - self.seen) // 2)
        self._submit(snapshot, self.seen + lag, limit)

    def _submit(self, snapshot: Snapshot, adopt_at: int, limit: float) -> None:
        model = None if self.release is None else self.release.version
        future = self._executor.submit(self._train, snapshot, model, limit)
        self._run = Run(snapshot, adopt_at, limit, future)

    def _train(self, snapshot: Snapshot, model: ModelVersion | None, limit: float) -> Outcome:
        settings = self._settings
        preset: str | None = None if settings.model.preset == "auto" else settings.model.preset
        if preset is None and model is not None and snapshot.at > self._warmup:
            preset = (
                None if model.preset == "plain" else model.preset
            )  # found out during the warm-up, for good
        candidate = train(snapshot, model, self._schema, preset, settings.model.seed, self._device)
        if model is None or math.isnan(limit) or snapshot.at <= self._warmup:
            return Outcome(candidate, None)
        rate = settings.limit.alert_rate
        result = examine(candidate, model, snapshot.held_out, limit, rate, settings.learning.gate)
        return Outcome(candidate, result)

    def state(self) -> State:
        """All that is kept, in views that later events change.

        Of a run under way it is its snapshot, as training it again gives the same model.
        """
        state: dict[str, Any] = {
            "positions": {str(lane): offset for lane, offset in sorted(self.positions.items())},
            "rows": self._rows.state(),
            "quarantine": self._quarantine.state(),
            "seen": self.seen,
            "next_start": self._next_start,
            "adopted": self.adopted_total,
            "drift": self._drift.state(),
            "latest": self._latest.state(),
            "drifted": self._drifted,
            "began": self._began,
            "relearnt": self.relearnt_total,
        }
        if self._floor is not None:
            state["floor"] = self._floor
        if self.release is not None:
            state["release"] = self.release.state()
        if self._run is not None:
            snapshot = self._run.snapshot
            state["run"] = {
                "adopt_at": self._run.adopt_at,
                "limit": None if math.isnan(self._run.limit) else self._run.limit,
                "at": snapshot.at,
                "trim": snapshot.trim,
                "training": {"values": snapshot.training.values, "imputed": snapshot.training.imputed},
                "held_out": {"values": snapshot.held_out.values, "imputed": snapshot.held_out.imputed},
            }
        return state

    def restore(self, state: State) -> None:
        """Take back what `state` gave."""
        self._rows.restore(state["rows"])
        self._quarantine.restore(state["quarantine"])
        self.seen = state["seen"]
        self._next_start = state["next_start"]
        self.adopted_total = state["adopted"]
        if "drift" in state:  # older ones had none
            self._drift.restore(state["drift"])
            self._latest.restore(state["latest"])
            self._drifted, self._began = state["drifted"], state["began"]
            self.relearnt_total = state["relearnt"]
        self.positions = {LaneId.parse(lane): offset for lane, offset in state["positions"].items()}
        self._floor = np.array(state["floor"]) if "floor" in state else None
        if "release" in state:
            self.release = Release.from_state(state["release"], self._schema, self._device)
        if "run" in state:
            run = state["run"]
            snapshot = Snapshot(
                Rows(**run["training"]), Rows(**run["held_out"]), self._floor, run["trim"], run["at"]
            )
            limit = math.nan if run["limit"] is None else run["limit"]
            self._submit(snapshot, run["adopt_at"], limit)
