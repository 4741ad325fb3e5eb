"""Which scorers run on which kind of data, and how much each counts.

Found by experiment on recorded streams (`scripts/bench quality`): what a metric (one number) is to be, its own
history tells best, and a network beside it serves as a second opinion that has to be surer. On sensors, whose values
hang together in time, the network and the memory see what a mean deviation misses, and recent means beside each value
help most of all. On records, which come in any order, attacks move along the main directions of normal data, which a
reconstruction follows; mean deviation and forest see them. Of transactions the amount against the entity's habit tells
most; all else counts where it is far out only, as a mean of many views would drown it.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from streamdet.events import DRIFT, NEWEST_COLUMNS, Rows
from streamdet.models.scorers import ALIGNMENT, Block, Scorer, Training
from streamdet.models.scorers.deviation import Deviation
from streamdet.models.scorers.expectation import Expectation
from streamdet.models.scorers.forest import Forest
from streamdet.models.scorers.habits import Habit, Hour, Level, Novelty, Velocity
from streamdet.models.scorers.nearest import Nearest
from streamdet.models.scorers.newest import Newest
from streamdet.models.scorers.reconstruction import Reconstruction

SCORERS: Final[dict[str, type[Scorer]]] = {
    "deviation": Deviation,
    "expectation": Expectation,
    "forest": Forest,
    "habit": Habit,
    "hour": Hour,
    "level": Level,
    "nearest": Nearest,
    "newest": Newest,
    "novelty": Novelty,
    "reconstruction": Reconstruction,
    "velocity": Velocity,
}


class Preset(NamedTuple):
    """What is run on a kind of data."""

    weights: dict[str, float]  # by scorer; they sum to 1, but where the strongest or what is far out counts
    recent: bool  # whether rows hold recent means beside each number
    strongest: bool = (
        False  # the largest weighted surprise counts, not the mean, and it needs no more calibration
    )
    beyond: Mapping[str, float] = MappingProxyType({})  # only what is beyond so many nats counts, by scorer
    drifting: str | None = None  # the scorer that takes over as far as the newest rows have moved
    renewal: float = (
        1.0  # the share of its own references in the scale of a version; the rest is as it was before
    )

    def telling(self, name: str, surprise: Tensor) -> Tensor:
        """What counts of the surprise of a scorer, (n,)."""
        return (surprise - self.beyond[name]).clamp_min(0.0) if name in self.beyond else surprise

    def share_of_newest(self, newest: Tensor) -> Tensor:
        """The share that what goes by the newest rows alone takes over, (n,), of what rows say of these."""
        moved = ((newest[:, DRIFT] - DRIFT_BEGINS) / DRIFT_RAMP).clamp(0.0, 1.0)
        return moved * DRIFT_SHARE_MAX if self.drifting is not None else torch.zeros_like(moved)

    def combine(self, surprises: Mapping[str, Tensor], newest: Tensor) -> Tensor:
        """One surprise of those of the scorers, (n,) each; `newest`, (n, NEWEST_COLUMNS), as it stands in the rows."""
        weighted = {
            name: self.weights[name] * self.telling(name, surprise) for name, surprise in surprises.items()
        }
        if not self.strongest:
            together = torch.stack(list(weighted.values())).sum(0)
            if self.drifting is None:
                return together
            return together + self.share_of_newest(newest) * (surprises[self.drifting] - together)
        first, *others = weighted.values()
        return torch.stack([first, *(other.clamp_max(SECOND_OPINION_MAX) for other in others)]).amax(0)


# Of a metric the network alone makes nothing rarer than one row in a hundred: it does not know the calendar.
SECOND_OPINION_MAX: Final = 4.6

# From where the mean of the newest rows is so many spreads from that of those before, and over so many more, what goes
# by the newest rows alone takes up to this share. Bursts and heavy tails leave it below.
DRIFT_BEGINS: Final = 0.2
DRIFT_RAMP: Final = 0.2
DRIFT_SHARE_MAX: Final = 0.7

# Of transactions nothing but the habit counts unless it is rarer than one row in 150.
FAR_OUT: Final = 5.0
# Whoever pays at many hours pays at rare ones too: the hour has to be rarer than in one row of 1,000.
HOUR_FAR_OUT: Final = 7.0

# What these say is a surprise in nats already.
CALIBRATED: Final = frozenset({"expectation"})

# These have no say in which rows lie apart: what is a surprise already needs no reference; the hours of those who pay
# at any, which mean nothing, would fill the valley between the rows that lie apart and all others; and what is held
# against other rows at each time does not compare over the rows.
NOT_APART: Final = CALIBRATED | {"hour", "newest"}

# These hold a row against another one, which a bad value changes in other columns too: what they say of a column counts
# the more, the further it has moved.
COMPARING: Final = frozenset({"nearest", "reconstruction"})

PRESETS: Final = {
    "metric": Preset({"expectation": 1.0, "reconstruction": 1 / 2}, recent=True, strongest=True),
    "sensors": Preset({"reconstruction": 1 / 2, "nearest": 1 / 2}, recent=True),
    # What version 0.1 had, for its checkpoints; no user asks for it.
    "plain": Preset({"deviation": 2 / 3, "reconstruction": 1 / 3}, recent=False),
    "records": Preset(
        {"deviation": 4 / 11, "forest": 4 / 11, "reconstruction": 2 / 11, "newest": 1 / 11},
        recent=False,
        drifting="newest",
        renewal=0.1,
    ),
    "transactions": Preset(
        {"habit": 1.0, "level": 1.0, "velocity": 1.0, "novelty": 1.0, "hour": 1.0, "reconstruction": 1 / 20},
        recent=False,
        beyond=dict.fromkeys(("level", "velocity", "novelty", "reconstruction"), FAR_OUT)
        | {"hour": HOUR_FAR_OUT},
    ),
}

# A value that is new each time differs from its recent mean by 0.81 of its own variance, whatever its distribution. One
# column that hangs together in time this closely makes a stream of sensors; those of records that drift or are sorted
# hang together less closely.
HANGS_TOGETHER: Final = 0.4


def preset_of(rows: Rows, columns: int, numeric: int) -> str:
    """What kind of data rows (n, columns + 2 numeric) are, by their numbers and the recent means of these."""
    if columns == numeric == 1:
        return "metric"
    if numeric == 0 or columns > numeric:
        return "records"
    values = rows.values[:, :numeric].astype(np.float64)
    recent = rows.values[:, columns : columns + numeric].astype(np.float64)
    spread = values.var(axis=0)
    moving = spread > 1e-12 * (1.0 + np.abs(values).max(axis=0)) ** 2
    if not moving.any():
        return "sensors"
    apart = (values - recent)[:, moving].var(axis=0) / spread[moving]
    return "sensors" if float(apart.min()) < HANGS_TOGETHER else "records"


def compile_scorers() -> None:
    """Run the compiled loops of the scorers once."""
    few, there = torch.zeros(2, ALIGNMENT), torch.ones(2, ALIGNMENT)
    for scorer in (Nearest, Forest):
        fitted = scorer.fit(Training(few, few, there, torch.Generator()), None)
        fitted.score(Block(few, few, there, there.sum(1), few[:, :NEWEST_COLUMNS], few[:, :0], len(few)))
