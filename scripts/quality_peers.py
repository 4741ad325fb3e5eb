"""Other detectors on the same streams, for comparison: static one-liners, forests, and what streams through River.

A static peer is fitted on the warm-up rows of a stream, without labels, and never again; its flags are the scores above
the 99.5 % quantile of those rows. A streaming peer scores each row and learns it then; how it would flag is left open.
Two come from packages that are no dependency, and take part where the group `peers` is installed; they are slow, and
left out by name of streams that would take them hours. All see the numbers of a stream only. MemStream alone is shown
labels, as its authors do: it is named for it, and no comparison counts it among the peers.
"""

import importlib
import importlib.metadata
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from quality_nab import clock
from quality_stream import Stream

from streamdet.events import Bools, Floats

STATIC_QUANTILE: Final = 0.995
# So far out that no more can be learnt from it; a gradient goes astray much sooner.
Z_MAX: Final = 1e3
STREAMED_Z_MAX: Final = 10.0
PCA_VARIANCE: Final = 0.9
FOREST_TREES: Final = 100
HST_TREES, HST_HEIGHT, HST_ROWS = 25, 8, 250
EW_RATE: Final = 0.002
RRCF_TREES, RRCF_ROWS = 40, 256
# Longer streams would take these hours; how slow they are is told from so many rows of one.
ROWS_MAX: Final[Mapping[str, int]] = {"xstream": 40_000, "rrcf": 8_000}
TIMED_ROWS: Final = 512
# How MemStream's authors set their memory for each data set: largest distance that is learnt, and rows.
MEMSTREAM: Final[Mapping[str, tuple[float, int]]] = {
    "tabular/ionosphere/file": (0.001, 4),
    "tabular/cardio/file": (1.0, 64),
    "tabular/statlog/file": (0.01, 32),
    "tabular/satimage-2/file": (10.0, 256),
    "syn": (1.0, 16),
}
MEMSTREAM_EPOCHS: Final = 5_000
# Raise it when a peer here comes to score differently, so that results kept of the old one are not taken for its own.
CACHE_VERSION: Final = 1


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """What a detector said of n rows."""

    raw: Floats  # (n,), the higher the more anomalous; 0 where it said nothing
    flagged: Bools | None  # (n,); None where it has no limit of its own
    seconds: float
    score: Floats | None = None  # (n,) raw in limits, where it has one: the scale that streams share


class Model(Protocol):
    """Whatever can be run over a stream."""

    @property
    def name(self) -> str:
        """How it is called in tables and on the command line."""

    @property
    def seeded(self) -> bool:
        """Whether another seed gives other scores."""

    @property
    def rival(self) -> bool:
        """Whether it is a peer that the detector is measured by."""

    def suits(self, stream: Stream) -> bool:
        """Whether it can be run over this stream."""

    def run(self, stream: Stream, seed: int) -> Scored:
        """Scores of all rows."""


Score = Callable[[Stream, int], tuple[Floats, Bools | None]]


@dataclass(frozen=True)
class Peer:
    """A detector that is a function of stream and seed."""

    name: str
    score: Score
    seeded: bool = False
    rival: bool = True
    suiting: Callable[[Stream], bool] = lambda _: True

    def suits(self, stream: Stream) -> bool:
        """Whether it can be run over this stream, and in a reasonable time."""
        return self.suiting(stream) and len(stream) <= ROWS_MAX.get(self.name, len(stream))

    def run(self, stream: Stream, seed: int) -> Scored:
        """Scores of all rows."""
        started = time.perf_counter()
        raw, flagged = self.score(stream, seed)
        return Scored(raw, flagged, time.perf_counter() - started)


# Static ones


def standardised(stream: Stream) -> Floats:
    """The numbers in deviations from the mean of the warm-up rows."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(stream.values[: stream.warmup])
    return np.asarray(scaler.transform(stream.values).clip(-Z_MAX, Z_MAX))


def _by_quantile(stream: Stream, raw: Floats) -> tuple[Floats, Bools]:
    return raw, raw > np.quantile(raw[: stream.warmup], STATIC_QUANTILE)


def _mean_z(stream: Stream, _: int) -> tuple[Floats, Bools]:
    return _by_quantile(stream, np.abs(standardised(stream)).mean(axis=1))


def _robust_z(stream: Stream, _: int) -> tuple[Floats, Bools]:
    first = stream.values[: stream.warmup]
    middle = np.median(first, axis=0)
    deviation = 1.4826 * np.median(np.abs(first - middle), axis=0)
    spread = np.where(deviation > 0, deviation, first.std(axis=0))
    z = (stream.values - middle) / np.where(spread > 0, spread, 1.0)
    return _by_quantile(stream, np.abs(z.clip(-Z_MAX, Z_MAX)).mean(axis=1))


def _forest(stream: Stream, seed: int) -> tuple[Floats, Bools]:
    from sklearn.ensemble import IsolationForest

    z = standardised(stream)
    forest = IsolationForest(n_estimators=FOREST_TREES, random_state=seed, n_jobs=1).fit(z[: stream.warmup])
    return _by_quantile(stream, -forest.score_samples(z))


def _pca(stream: Stream, _: int) -> tuple[Floats, Bools]:
    from sklearn.decomposition import PCA

    z = standardised(stream)
    pca = PCA(n_components=PCA_VARIANCE, svd_solver="full").fit(z[: stream.warmup])
    residual = z - pca.inverse_transform(pca.transform(z))
    return _by_quantile(stream, (residual**2).sum(axis=1))


def _amount_ratio(stream: Stream, _: int) -> tuple[Floats, Bools]:
    amount, usual = (stream.values[:, stream.columns.index(name)] for name in ("amount", "cust_avg_30d"))
    return _by_quantile(stream, amount / (usual + 1.0))


def _clock(stream: Stream, _: int) -> tuple[Floats, Bools]:
    """An alarm at a steady pace, blind to the data: what any score has to beat."""
    raw = clock(len(stream))
    return raw, raw > 0


# Streaming ones


def _ew_z(stream: Stream, _: int) -> tuple[Floats, None]:
    """Deviations from an exponentially forgetting mean, in spreads that forget as fast."""
    middle = stream.values[0].copy()
    square = np.zeros(len(middle))
    raw = np.empty(len(stream))
    for i, row in enumerate(stream.values):
        away = row - middle
        spread = np.sqrt(square)
        raw[i] = np.divide(np.abs(away), spread, out=np.zeros_like(away), where=spread > 0).mean()
        rate = max(EW_RATE, 1.0 / (i + 2))
        middle += rate * away
        square = (1.0 - rate) * (square + rate * away * away)
    return raw, None


def _streamed(model: Any, rows: Floats) -> Floats:  # noqa: ANN401 - River's detectors are untyped
    """Score, then learn, row by row."""
    names = range(rows.shape[1])
    raw = np.empty(len(rows))
    for i, row in enumerate(rows.tolist()):
        fields = dict(zip(names, row, strict=True))
        raw[i] = model.score_one(fields)
        model.learn_one(fields)
    return raw


def _hst(stream: Stream, seed: int) -> tuple[Floats, None]:
    from river import anomaly

    first = stream.values[: stream.warmup]
    low, high = first.min(axis=0), first.max(axis=0)
    unit = ((stream.values - low) / np.where(high > low, high - low, 1.0)).clip(0.0, 1.0)
    return _streamed(anomaly.HalfSpaceTrees(HST_TREES, HST_HEIGHT, HST_ROWS, seed=seed), unit), None


def _bounded(stream: Stream) -> Floats:
    return standardised(stream).clip(-STREAMED_Z_MAX, STREAMED_Z_MAX)


def _one_class_svm(stream: Stream, _: int) -> tuple[Floats, None]:
    from river import anomaly

    return _streamed(anomaly.OneClassSVM(), _bounded(stream)), None


def _loda(stream: Stream, seed: int) -> tuple[Floats, None]:
    from river import anomaly

    return _streamed(anomaly.LODA(seed=seed), _bounded(stream)), None


def _xstream(stream: Stream, seed: int) -> tuple[Floats, None]:
    model = importlib.import_module("pysad.models").xStream(random_state=seed)
    raw = np.zeros(len(stream))
    for i, row in enumerate(standardised(stream)):
        raw[i] = model.score_partial(row) if i else 0.0
        model.fit_partial(row)
    return raw, None


def _rrcf(stream: Stream, seed: int) -> tuple[Floats, None]:
    """Robust random cut trees over the last rows: what a row displaces where it is put in."""
    rrcf = importlib.import_module("rrcf")
    forest = [rrcf.RCTree(random_state=seed * RRCF_TREES + k) for k in range(RRCF_TREES)]
    raw = np.zeros(len(stream))
    for i, row in enumerate(standardised(stream)):
        for tree in forest:
            if i >= RRCF_ROWS:
                tree.forget_point(i - RRCF_ROWS)
            tree.insert_point(row, index=i)
            raw[i] += tree.codisp(i) / RRCF_TREES
    return raw, None


# MemStream, whose protocol starts with rows that labels show to be normal


def _memstream(stream: Stream, seed: int) -> tuple[Floats, None]:
    """Distance of an encoded row to the nearest of a memory, into which near ones are taken.

    S. Bhatia et al., "MemStream: Memory-Based Streaming Anomaly Detection", WWW 2022.
    """
    farthest, size = MEMSTREAM[stream.name]
    memory = stream.values[~stream.labels][:size].copy()
    middle, spread = memory.mean(axis=0), memory.std(axis=0, ddof=1)
    encode = _encoder(_deviations(memory, middle, spread), seed)
    encoded = encode(_deviations(memory, middle, spread))
    raw = np.empty(len(stream))
    oldest = 0
    for i, row in enumerate(stream.values):
        code = encode(_deviations(row, middle, spread))
        raw[i] = np.abs(encoded - code).sum(axis=1).min()
        if raw[i] <= farthest:
            encoded[oldest], memory[oldest] = code, row
            oldest = (oldest + 1) % size
            middle, spread = memory.mean(axis=0), memory.std(axis=0, ddof=1)
    return raw, None


def _deviations(rows: Floats, middle: Floats, spread: Floats) -> Floats:
    return np.divide(rows - middle, spread, out=np.zeros_like(rows), where=spread > 0)


def _encoder(rows: Floats, seed: int) -> Callable[[Floats], Floats]:
    """One tanh layer, twice as wide as the rows, of an autoencoder fitted to them; a single number stays as it is."""
    import torch

    width = rows.shape[1]
    if width == 1:
        return lambda z: z
    torch.manual_seed(seed)
    noise = torch.Generator().manual_seed(seed)
    inner = torch.nn.Linear(width, 2 * width, dtype=torch.float64)
    outer = torch.nn.Linear(2 * width, width, dtype=torch.float64)
    optimizer = torch.optim.Adam([*inner.parameters(), *outer.parameters()], lr=0.01)
    clean = torch.from_numpy(rows)
    for _ in range(MEMSTREAM_EPOCHS):
        noisy = clean + 0.001 * torch.randn(clean.shape, generator=noise, dtype=torch.float64)
        loss = torch.nn.functional.mse_loss(outer(torch.tanh(inner(noisy))), clean)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    weights, offsets = inner.weight.detach().numpy().T, inner.bias.detach().numpy()
    return lambda z: np.asarray(np.tanh(z @ weights + offsets))


PEERS: Final = (
    Peer("mean-z", _mean_z),
    Peer("robust-z", _robust_z),
    Peer("iforest", _forest, seeded=True),
    Peer("pca", _pca),
    Peer("amount-ratio", _amount_ratio, suiting=lambda s: {"amount", "cust_avg_30d"} <= set(s.columns)),
    Peer("clock", _clock, suiting=lambda s: s.family == "nab"),
    Peer("ew-z", _ew_z),
    Peer("hst", _hst, seeded=True),
    Peer("ocsvm", _one_class_svm),
    Peer("loda", _loda, seeded=True),
    Peer(
        "memstream-labelled-start",
        _memstream,
        seeded=True,
        rival=False,
        suiting=lambda s: s.name in MEMSTREAM,
    ),
)
# Package that a peer comes from, where it is no dependency of this project.
OPTIONAL: Final = {
    "xstream": ("pysad", Peer("xstream", _xstream, seeded=True)),
    "rrcf": ("rrcf", Peer("rrcf", _rrcf, seeded=True)),
}


def peers() -> list[Peer]:
    """All that can be run here."""
    reasons = left_out()
    every = [*PEERS, *(peer for _, peer in OPTIONAL.values())]
    return [peer for peer in every if peer.name not in reasons]


def left_out() -> dict[str, str]:
    """Why each of the others can't."""
    reasons = {}
    for name, (package, _) in OPTIONAL.items():
        try:
            importlib.import_module(package)
        except ImportError:
            reasons[name] = f"{package} is not installed: uv sync --group peers"
    from river import anomaly

    if not hasattr(anomaly, "LODA"):
        reasons["loda"] = f"not in River {importlib.metadata.version('river')}"
    return reasons


def too_slow(model: Model, stream: Stream) -> str | None:
    """Why a model that would suit the stream is left out, by the pace of its first rows; None where it is not."""
    if len(stream) <= ROWS_MAX.get(model.name, len(stream)):
        return None
    seconds = model.run(stream.taken(np.arange(TIMED_ROWS), f"{stream.name}/first"), seed=0).seconds
    return f"too slow: {TIMED_ROWS / max(seconds, 1e-9):,.0f} rows/s"


@dataclass(frozen=True)
class Cached:
    """A peer whose results are kept in a folder, by name, seed and a digest of the stream."""

    peer: Peer
    folder: Path

    @property
    def name(self) -> str:
        """As the peer is called."""
        return self.peer.name

    @property
    def seeded(self) -> bool:
        """As with the peer."""
        return self.peer.seeded

    @property
    def rival(self) -> bool:
        """As with the peer."""
        return self.peer.rival

    def suits(self, stream: Stream) -> bool:
        """As with the peer."""
        return self.peer.suits(stream)

    def run(self, stream: Stream, seed: int) -> Scored:
        """What was kept, else what the peer says, which is then kept."""
        path = self.folder / f"{'-'.join(self._key(stream, seed))}.npz"
        if path.exists():
            with np.load(path) as kept:
                flagged = kept.get("flagged")
                return Scored(kept["raw"], flagged, float(kept["seconds"]))
        scored = self.peer.run(stream, seed)
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {"raw": scored.raw, "seconds": np.array(scored.seconds)}
        if scored.flagged is not None:
            arrays["flagged"] = scored.flagged
        part = path.with_suffix(".part.npz")  # a run that was cut off leaves nothing half written behind
        np.savez(part, **arrays)
        part.replace(path)
        return scored

    def _key(self, stream: Stream, seed: int) -> Iterator[str]:
        yield stream.name.replace("/", "_")
        yield self.name
        yield str(seed if self.seeded else 0)
        yield stream.digest()
        yield f"v{CACHE_VERSION}"


def cached(some: Iterable[Peer], folder: Path | None) -> list[Model]:
    """The peers, with their results kept where a folder for that is given."""
    return [peer if folder is None else Cached(peer, folder) for peer in some]
