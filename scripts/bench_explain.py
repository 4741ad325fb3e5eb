"""Whether an alert names the feature at fault: in rows of a normal stream one feature at a time is spoiled.

Anomalous rows are taken out of the recordings of `quality_streams`, and of what is left the first `ROWS` make a stream.
After the warm-up, in every `APART`-th row one feature is moved by 6 to 15 of its spreads, up or down; one that is
constant gets another value, a category a word that was never there. All features have their turns. A spread is the
standard deviation of the inner 99 % of the feature's values, so that a moved value lies beyond the usual ones. The
stream is replayed with defaults, and each spoiled row is explained by the model version that judged it, as in an alert,
flagged or not. A stream too short for `SPOILED` such rows is replayed several times, spoiled in other rows.

What is printed as JSON, for each stream and as means over the streams of a family: on which share of the spoiled rows
the largest share of the explanation is the spoiled feature's (`first`), on which it is among the three largest, and
which share was flagged (so many anomalies are far more than the asked alert rate). Without `--data`, River's Shuttle.
"""

import argparse
import logging
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from bench_common import Figures, Never, say
from quality_stream import Stream
from quality_streams import streams
from river import datasets

from streamdet.config import Settings
from streamdet.events import Bools, Floats, Ints, Mode
from streamdet.parts import Observer, Part
from streamdet.replaying import Replay, replay
from streamdet.source.recording import RecordingSource

FAMILIES: Final = ("smd", "asd", "nasa", "skab", "tabular", "nsl", "creditcard")
ROWS: Final = 6_000
SHORTEST: Final = 650
SPOILED: Final = 150
PASSES_MAX: Final = 30
# By then the first models are made.
CALM: Final = 450
# By then little is left of a spoiled row in the recent means.
APART: Final = 30
# How far a feature is moved, in its robust spreads.
LEAST, MOST = 6.0, 15.0
# The least step of a constant feature, as a share of its level.
STEP: Final = 0.1

Numbers = dict[str, float]


def measure(given: argparse.Namespace) -> Figures:
    """All figures that were asked for."""
    logging.getLogger("streamdet").setLevel(logging.ERROR)  # a model that was refused is no news in a table
    found: dict[str, Numbers] = {}
    families: dict[str, list[Numbers]] = defaultdict(list)
    for stream in _streams(given):
        found[stream.name] = _mean([explained(stream, seed) for seed in range(given.seeds)])
        families[stream.family].append(found[stream.name])
        say(f"{stream.name:<28} {_line(found[stream.name])}")
    if not found:
        raise SystemExit(f"--data {given.data}: there are no such recordings")
    families["all"] = list(found.values())
    summary = {family: _summary(numbers) for family, numbers in families.items()}
    for family, numbers in summary.items():
        say(
            f"{family:<28} {_line(numbers)}   {numbers['streams']:.0f} streams, lowest {numbers['lowest']:.3f}"
        )
    return {"explain": _rounded(found), "families": _rounded(summary)}


# Streams, and how they are spoiled


@dataclass(frozen=True, eq=False)
class Spoiled:
    """A stream in which k rows have one bad feature each."""

    stream: Stream
    rows: Ints  # (k,) ascending
    features: Sequence[str]  # k names


def spoiled(stream: Stream, seed: int) -> Spoiled:
    """Spoil one feature in each of some rows, which lie at random, far apart, beyond the warm-up."""
    rng = np.random.default_rng(seed)
    names = [*stream.columns, *stream.categories]
    rows = np.arange(CALM + int(rng.integers(0, APART)), len(stream), APART)
    rounds = -(-len(rows) // len(names))
    turns = np.concatenate([rng.permutation(len(names)) for _ in range(rounds)])[: len(rows)].tolist()
    values, spread = stream.values.copy(), _spread(stream.values)
    categories = {name: column.copy() for name, column in stream.categories.items()}
    for row, turn in zip(rows.tolist(), turns, strict=True):
        if turn < len(stream.columns):
            values[row, turn] += rng.uniform(LEAST, MOST) * spread[turn] * rng.choice((-1.0, 1.0))
        else:
            categories[names[turn]][row] = "never-there"
    bad = replace(stream, values=values, categories=categories)
    return Spoiled(bad, rows, [names[turn] for turn in turns])


def _spread(values: Floats) -> Floats:
    """Standard deviation of the inner 99 % of each column, (d,); what makes a step of one that is constant there."""
    low, high = np.quantile(values, [0.005, 0.995], axis=0)
    inner = np.where((values >= low) & (values <= high), values, np.nan)
    spread: Floats = np.nanstd(inner, axis=0)
    level = np.maximum(np.abs(np.median(values, axis=0)), 1.0)
    return np.where(high > low, spread, STEP * level / LEAST)


def _streams(given: argparse.Namespace) -> Iterator[Stream]:
    if given.data is None:
        yield shuttle()
        return
    for family in (given.families or ",".join(FAMILIES)).split(","):
        if family not in FAMILIES:
            raise SystemExit(f"--families {family}: there are {', '.join(FAMILIES)}")
        parts = (normal_part(stream) for stream in streams(given.data, family))
        yield from (part for part in parts if len(part) >= SHORTEST)


def normal_part(stream: Stream) -> Stream:
    """The first rows that are not anomalous."""
    return stream.taken(np.flatnonzero(~stream.labels)[:ROWS], stream.name)


def shuttle() -> Stream:
    """River's Shuttle."""
    rows = [(*x.values(), y) for x, y in datasets.Shuttle()]
    table = np.array(rows, np.float64)
    labels, columns = table[:, -1] > 0, tuple(f"s{i}" for i in range(table.shape[1] - 1))
    return normal_part(
        Stream("shuttle", "shuttle", columns, table[:, :-1], labels, 0, np.ones(len(table), np.bool_))
    )


# Replays, in which the spoiled rows are explained


@dataclass(eq=False)
class Explainer:
    """An observer that explains the rows which were spoiled, as an alert would."""

    spoiled: Spoiled
    ranks: list[int] = field(default_factory=list)  # of the spoiled feature among the shares, from 0
    flagged: list[bool] = field(default_factory=list)

    def judged(self, parts: Sequence[Part]) -> None:
        """One micro-batch."""
        for part in parts:
            alerting: Bools = part.verdicts.mode >= Mode.READY
            which = np.flatnonzero(np.isin(part.decoded.events.offsets, self.spoiled.rows) & alerting)
            if part.release is None or not len(which):
                continue
            version = part.release.version
            shares = version.explain(part.featured.rows[which]).share
            for share, i in zip(shares, which.tolist(), strict=True):
                k = int(np.searchsorted(self.spoiled.rows, part.decoded.events.offsets[i]))
                own = share[version.columns.index(self.spoiled.features[k])]
                self.ranks.append(int((share > own).sum()))
                self.flagged.append(bool(part.verdicts.flagged[i]))


def watching(observer: Observer) -> Callable[[RecordingSource], Observer]:
    """The way in which a replay takes an observer."""
    return lambda _: observer


def explained(stream: Stream, seed: int) -> Numbers:
    """How often the spoiled feature is named in a normal stream."""
    ranks: list[int] = []
    flagged: list[bool] = []
    for number in range(PASSES_MAX):
        explainer = Explainer(spoiled(stream, PASSES_MAX * seed + number))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "stream.csv"
            explainer.spoiled.stream.write(path)
            settings = Settings.model_validate({"model": {"seed": seed}})
            replay(Replay([path]), settings, Never(), watching(explainer))
        ranks += explainer.ranks
        flagged += explainer.flagged
        if len(ranks) >= SPOILED:
            break
    if not ranks:
        raise SystemExit(f"{stream.name}: {len(stream)} rows are too few")
    rank = np.array(ranks)
    return {
        "first": float((rank == 0).mean()),
        "among_three": float((rank < 3).mean()),
        "flagged": float(np.mean(flagged)),
        "spoiled": float(len(rank)),
    }


# What is printed


def _mean(found: Sequence[Numbers]) -> Numbers:
    return {name: float(np.mean([numbers[name] for numbers in found])) for name in found[0]}


def _summary(found: Sequence[Numbers]) -> Numbers:
    """Means over streams, the stream that is worst, and how far they lie apart."""
    first = [numbers["first"] for numbers in found]
    return _mean(found) | {"lowest": min(first), "std": float(np.std(first)), "streams": float(len(found))}


def _rounded(found: Mapping[str, Numbers]) -> dict[str, Numbers]:
    return {key: {name: round(value, 4) for name, value in numbers.items()} for key, numbers in found.items()}


def _line(numbers: Numbers) -> str:
    return f"first {numbers['first']:.3f}   among three {numbers['among_three']:.3f}   flagged {numbers['flagged']:.2f}"
