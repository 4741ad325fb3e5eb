"""What became of a micro-batch, lane by lane: for those who watch, and for the learner."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from streamdet.codec.decoder import Decoded
from streamdet.decide import Explained
from streamdet.events import Ints, LaneId, Records, Rows, Verdicts
from streamdet.features.rows import Featured
from streamdet.models.release import Release


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What became of one lane's share of a batch."""

    lane: LaneId
    records: Records
    decoded: Decoded
    featured: Featured
    verdicts: Verdicts
    since_ms: Ints  # (n,) when what each event stands in has likely begun
    reached: int  # events at or over their limit, whatever noise rules have made of them
    release: Release | None  # that judged it
    explained: Explained | None = None  # where noise rules asked for it


class Observer(Protocol):
    """Sees what was judged: score files, reports, progress."""

    def judged(self, parts: Sequence[Part]) -> None:
        """One micro-batch."""


def order_of_arrival(parts: Sequence[Part]) -> NDArray[np.intp] | None:
    """Which of the events of all parts, laid end to end, came first, second, ...; None if they are in order."""
    return _order([part.decoded.events.order for part in parts])


def new_to(learnt: Mapping[LaneId, int], parts: Sequence[Part]) -> list[tuple[Rows, Verdicts]]:
    """Rows and verdicts of the events that a learner which has learnt up to these offsets does not know.

    Across lanes they are in the order of arrival, where that is known: one model learns from all lanes, so their order
    counts; lane by lane it would depend on how the batch was cut.
    """
    pairs: list[tuple[Rows, Verdicts]] = []
    orders: list[Ints | None] = []
    for part in parts:
        events, rows, verdicts = part.decoded.events, part.featured.rows, part.verdicts
        order = events.order
        known = learnt.get(part.lane, 0)
        if len(events) and events.offsets[0] < known:  # judged again
            new = np.flatnonzero(events.offsets >= known)
            rows, verdicts, order = rows[new], verdicts[new], None if order is None else order[new]
        pairs.append((rows, verdicts))
        orders.append(order)
    arrival = _order(orders)
    if arrival is None:
        return pairs
    rows = Rows.concatenate([rows for rows, _ in pairs])[arrival]
    return [(rows, Verdicts.concatenate([verdicts for _, verdicts in pairs])[arrival])]


def _order(orders: Sequence[Ints | None]) -> NDArray[np.intp] | None:
    known = [order for order in orders if order is not None]
    if len(orders) < 2 or len(known) < len(orders):
        return None
    return np.argsort(np.concatenate(known))
