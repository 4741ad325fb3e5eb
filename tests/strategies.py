"""What properties are tried on: hostile bytes, streams of events and scores, and ways to cut them into batches."""

import json
import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamdet.events import NEWEST_COLUMNS, Events, LaneId, Records, Rows, Schema
from streamdet.features.newest import Newest
from streamdet.learn.trainer import Snapshot, train
from streamdet.models.autoencoder import Autoencoder
from streamdet.models.calibration import Calibration
from streamdet.models.presets import PRESETS
from streamdet.models.scaling import Scaler
from streamdet.models.scorers.deviation import Deviation
from streamdet.models.scorers.reconstruction import Reconstruction
from streamdet.models.version import Member, ModelVersion

# As in the program: more threads would fight for the cores and change the rounding.
torch.set_num_threads(1)

LANE = LaneId("sensors", 3)
SCHEMA = Schema("ts", "device", ("temperature", "pressure"), ("site",))
GOOD_VALUE = (
    b'{"ts": "2026-03-01T12:00:00Z", "device": "d1", "temperature": 20.5, "pressure": 1, "site": "north"}'
)


def records_of(values: Sequence[bytes | None], first: int = 100) -> Records:
    """Records of one lane; offsets have gaps, as after compaction."""
    n = len(values)
    return Records(
        lane=LANE,
        offsets=first + 2 * np.arange(n, dtype=np.int64),
        timestamps_ms=1_700_000_000_000 + np.arange(n, dtype=np.int64),
        keys=[None if i % 3 == 0 else b"key-%d" % i for i in range(n)],
        values=list(values),
    )


def part_of(records: Records, start: int, stop: int) -> Records:
    """The records from one position to another."""
    return Records(
        records.lane,
        records.offsets[start:stop],
        records.timestamps_ms[start:stop],
        records.keys[start:stop],
        records.values[start:stop],
    )


def events_of(
    entities: Sequence[str], numeric: Sequence[Sequence[float]], *columns: Sequence[str | None]
) -> Events:
    """Events of one lane with these features."""
    n = len(entities)
    return Events(
        lane=LANE,
        offsets=np.arange(n, dtype=np.int64),
        times_ms=1_700_000_000_000 + np.arange(n, dtype=np.int64),
        entities=list(entities),
        numeric=np.array(numeric, np.float64).reshape(n, -1),
        categorical=[list(column) for column in columns],
        values=[b"{}"] * n,
    )


def some_events(events: Events, start: int, stop: int) -> Events:
    """The events from one position to another."""
    return Events(
        events.lane,
        events.offsets[start:stop],
        events.times_ms[start:stop],
        events.entities[start:stop],
        events.numeric[start:stop],
        [column[start:stop] for column in events.categorical],
        events.values[start:stop],
        counterparts=[column[start:stop] for column in events.counterparts],
    )


@st.composite
def cuts(draw: st.DrawFn, n: int) -> list[tuple[int, int]]:
    """Ways to cut n things into batches, in order: pairs of start and stop, some of them empty."""
    points = sorted(draw(st.lists(st.integers(0, n), max_size=8)))
    edges = [0, *points, n]
    return list(pairwise(edges))


def seeded_cuts(n: int, pieces: int, seed: int) -> list[tuple[int, int]]:
    """One way to cut n things into about so many batches."""
    points = np.sort(np.random.default_rng(seed).integers(0, n + 1, pieces - 1)).tolist()
    edges = [0, *points, n]
    return list(pairwise(edges))


# --- JSON record values ---------------------------------------------------------------------------------------

_names = st.sampled_from(["ts", "device", "temperature", "pressure", "site", "other", "", "\N{SNOWMAN}"])
_numbers = st.one_of(
    st.integers(),
    st.integers(min_value=10**17, max_value=10**25),
    st.floats(),
    st.sampled_from([10**400, -(10**400), 2**63, 2**64, 1e308, 5e-324, -0.0]),
)
_texts = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["2026-03-01T12:00:00Z", "1e5", "NaN", "null", "\N{ZERO WIDTH NO-BREAK SPACE}d1", "a\nb", "\x00"]
    ),
)
_leaves = st.one_of(st.none(), st.booleans(), _numbers, _texts)
json_trees = st.recursive(
    _leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_names, inner, max_size=3)),
    max_leaves=6,
)
_times = st.one_of(
    st.just("2026-03-01T12:00:00Z"),
    st.just("2026-03-01T12:00:00.123+02:00"),
    st.integers(1_600_000_000, 1_700_000_000),
    st.floats(1.6e9, 1.7e9),
    _leaves,
)


@st.composite
def readable_objects(draw: st.DrawFn) -> dict[str, Any]:
    """Objects of the schema, nearly all with values that can be used."""
    return {
        "ts": draw(_times),
        "device": draw(st.one_of(st.sampled_from(["d1", "d2", "d3"]), st.integers(0, 9))),
        "temperature": draw(st.one_of(st.floats(-50, 50), st.none(), st.booleans())),
        "pressure": draw(
            st.one_of(st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False))
        ),
        "site": draw(st.one_of(st.sampled_from(["north", "south"]), st.integers(), st.booleans(), st.none())),
    }


def as_json(tree: object) -> bytes:
    """As a careless producer writes it: NaN and Infinity literals, raw Unicode."""
    return json.dumps(tree, ensure_ascii=False).encode("utf-8", errors="surrogatepass")


@st.composite
def _mutated(draw: st.DrawFn) -> bytes:
    """A readable value with a few bytes changed, doubled, put in or left out."""
    value = bytearray(as_json(draw(readable_objects())))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(value)))
        how = draw(st.integers(0, 3))
        if how == 0:
            value[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif how == 1:
            del value[at : at + draw(st.integers(1, 4))]
        elif how == 2:
            value[at:at] = draw(
                st.sampled_from([b"\n", b"\r", b"}", b"{", b'"', b",", b"\\", b"\xff", b"NaN", b" "])
            )
        else:
            value[at:at] = value[at : at + draw(st.integers(1, 20))]
    return bytes(value)


@st.composite
def _repeating(draw: st.DrawFn) -> bytes:
    """An object, perhaps nested in another, that may name a key twice, perhaps once with an escape."""
    spellings = [b'"device"', b'"devic\\u0065"', b'"site"', b'"temperature"', b'"ts"', b'"x\\"y"', b'"{"']
    names = draw(st.lists(st.sampled_from(spellings), min_size=1, max_size=4))
    inner = b"{%s}" % b", ".join(b"%s: %s" % (name, as_json(draw(json_trees))) for name in names)
    return inner if draw(st.booleans()) else b'{"device": "d1", "temperature": 1, "more": %s}' % inner


HOSTILE = [
    b"",
    b" ",
    b"\n",
    b"null",
    b"[]",
    b"{}",
    b"{",
    b"}",
    b"{} {}",
    b'{"temperature": 1} {"pressure": 2}',
    b'{"device": "d1", "temperature":',
    b'1}{"device": "d2"}',
    b'"text',
    b"\xef\xbb\xbf" + GOOD_VALUE,
    GOOD_VALUE.decode().encode("utf-16"),
    GOOD_VALUE + b"\n",
    GOOD_VALUE + b",",
    GOOD_VALUE.replace(b"20.5", b"1e999"),
    GOOD_VALUE.replace(b"20.5", b"-1e999"),
    GOOD_VALUE.replace(b"20.5", b"NaN"),
    GOOD_VALUE.replace(b"20.5", b"-Infinity"),
    GOOD_VALUE.replace(b"20.5", b"9" * 400),
    GOOD_VALUE.replace(b"20.5", b"9" * 5000),
    GOOD_VALUE.replace(b'"2026-03-01T12:00:00Z"', b"9" * 400),
    GOOD_VALUE.replace(b'"d1"', b"9" * 400),
    GOOD_VALUE.replace(b'"d1"', b'"\\ud800"'),
    GOOD_VALUE.replace(b'"d1"', b'"d1", "more": "\\udfff"'),
    GOOD_VALUE.replace(b'"d1"', b'"d1", "more": ' + b"[" * 60 + b"]" * 60),
    GOOD_VALUE.replace(b'"d1"', b'"d1", "more": ' + b"[" * 990 + b"]" * 990),
    GOOD_VALUE.replace(b'"d1"', b'"d1", "more": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    b"[" * 100_000,
    b'{"a":' * 100_000,
    GOOD_VALUE.replace(b"20.5", b"{}"),
    GOOD_VALUE.replace(b"20.5", b'"20.5"'),
]

json_values = st.one_of(
    st.just(GOOD_VALUE),
    readable_objects().map(as_json),
    json_trees.map(as_json),
    st.dictionaries(_names, json_trees, max_size=6).map(as_json),
    _mutated(),
    _repeating(),
    st.sampled_from(HOSTILE),
    st.binary(max_size=40),
)
json_batches = st.lists(st.one_of(json_values, st.none()), max_size=10)

# --- CSV record values ----------------------------------------------------------------------------------------

CSV_HEADER = ("ts", "device", "temperature", "pressure", "site", "note")
CSV_GOOD = b"2026-03-01T12:00:00Z,d1,20.5,1,north,ok"

_csv_numbers = st.one_of(
    st.floats().map(repr),
    st.integers().map(str),
    st.sampled_from(
        ["", "NA", "n/a", "-", "null", "TRUE", "false", "inf", "-Infinity", "1e999", "1_0", " 3 ", "x"]
    ),
)
_csv_texts = st.one_of(
    st.sampled_from(
        ["north", "south", "", '"a,b"', '"a\nb"', '"say ""hi"""', '"', "a\nb", "a\rb", "\x00", '""']
    ),
    st.text(max_size=6),
)


@st.composite
def _csv_rows(draw: st.DrawFn) -> bytes:
    fields = [
        draw(
            st.sampled_from(["2026-03-01T12:00:00Z", "1700000000", "1612101012345", "", "soon", "2026-03-01"])
        ),
        draw(st.one_of(st.sampled_from(["d1", "d2"]), _csv_texts)),
        draw(_csv_numbers),
        draw(_csv_numbers),
        draw(_csv_texts),
        draw(_csv_texts),
    ]
    fields = fields[: draw(st.sampled_from([6, 6, 6, 6, 5, 0]))] + draw(
        st.sampled_from([[], [], [], ["more"]])
    )
    return ",".join(fields).encode("utf-8", errors="surrogatepass")


csv_values = st.one_of(
    st.just(CSV_GOOD),
    _csv_rows(),
    st.sampled_from(
        [
            b"",
            b"\n",
            b",",
            b",,,,,",
            b'"',
            b"\xef\xbb\xbf" + CSV_GOOD,
            CSV_GOOD + b"\n",
            CSV_GOOD + b"\r\n",
            CSV_GOOD.replace(b"north", b"x" * 200_000),
            CSV_GOOD.replace(b"north", b'"%s"' % (b"x" * 200_000)),
            CSV_GOOD.replace(b"ok", b'"open'),
            CSV_GOOD.replace(b"d1", b"\xff"),
        ]
    ),
    st.binary(max_size=40),
)
csv_batches = st.lists(st.one_of(csv_values, st.none()), max_size=10)

# --- Scores ---------------------------------------------------------------------------------------------------


@st.composite
def score_streams(draw: st.DrawFn, n_max: int = 400) -> NDArray[np.float64]:
    """Raw scores: mostly like surprises, with stretches of constants, gaps and gross values."""
    n = draw(st.integers(1, n_max))
    scores = np.random.default_rng(draw(st.integers(0, 2**32))).exponential(1.0, n)
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, n))
        value = draw(st.sampled_from([math.nan, math.inf, 0.0, 1.0, 20.0, 1e300, 1e-300, 5e-324]))
        scores[start : start + draw(st.integers(1, 200))] = value
    return scores


# --- Rows and models ------------------------------------------------------------------------------------------


def normal_rows(n: int, columns: int, seed: int = 0, *, missing: float = 0.0) -> Rows:
    """Rows of a healthy plant: a few hidden causes move all columns, each with its own unit and noise."""
    world = np.random.default_rng(columns)
    mixing = world.normal(size=(2, columns))
    unit, level = np.exp(world.normal(0, 2, columns)), world.normal(0, 10, columns)
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, 2)) @ mixing + 0.2 * rng.normal(size=(n, columns))
    imputed = rng.random((n, columns)) < missing
    imputed[:, 0] = False
    values[imputed] = 0.0
    return beside_the_newest(Rows((level + unit * values).astype(np.float32), imputed), columns)


def beside_the_newest(rows: Rows, columns: int) -> Rows:
    """Rows of so many features, and their recent means, with what the newest before each say behind them."""
    values, imputed = rows.values[:, :columns], rows.imputed[:, :columns]
    newest = Newest(values.shape[1]).follow(values, ~imputed)
    return Rows(
        np.concatenate([rows.values, newest], axis=1), np.pad(rows.imputed, ((0, 0), (0, NEWEST_COLUMNS)))
    )


def snapshot_of(n: int = 1000, columns: int = 6, seed: int = 0, *, missing: float = 0.0) -> Snapshot:
    """What a first training run sees of a healthy plant."""
    return Snapshot(
        training=normal_rows(n, columns, seed, missing=missing),
        held_out=normal_rows(max(64, n // 3), columns, seed + 10_000, missing=missing),
        spread_floor=None,
        trim=0.0,
        at=n,
    )


def schema_of(columns: int) -> Schema:
    """A schema of rows without recent means: all features are categories."""
    return Schema(None, None, (), names_of(columns))


def version_of(model: ModelVersion, tensors: dict[str, torch.Tensor]) -> ModelVersion:
    """The version with other numbers."""
    return ModelVersion.from_tensors(
        model.preset, model.columns, model.numeric, tensors, model.trained_at, model.device
    )


def names_of(columns: int) -> tuple[str, ...]:
    """Names for so many features."""
    return tuple(f"s{i}" for i in range(columns))


@cache
def untrained(columns: int) -> ModelVersion:
    """A version of any width whose network has learnt nothing; made at once."""
    rows = normal_rows(200, columns).values[:, :columns].astype(np.float64)
    network = Autoencoder(columns, torch.Generator().manual_seed(columns)).eval()
    surprises = np.random.default_rng(0).exponential(1.0, 500)
    mean = Calibration.fit(surprises + 0.5, pareto=True)
    combined = Calibration.fit(surprises, pareto=False)
    members = {
        "deviation": Member(Deviation(), mean),
        "reconstruction": Member(Reconstruction(network), mean),
    }
    assert PRESETS["plain"].weights.keys() == members.keys()
    return ModelVersion("plain", names_of(columns), 0, Scaler.fit(rows, None), members, combined, 0)


@cache
def model_of(n: int = 1000, columns: int = 6, seed: int = 0, *, missing: float = 0.0) -> ModelVersion:
    """A model of that plant; trained once."""
    snapshot = snapshot_of(n, columns, seed, missing=missing)
    return train(snapshot, None, schema_of(columns), None, seed, torch.device("cpu"))
