"""The picture of a stream: scores against the limit on a log axis, alerts on them, true anomalies underneath.

Needs matplotlib, which is an extra (`report`) as a worker does not need it. Colours are told apart also by people who
do not see red and green as different (Okabe and Ito), and every kind of mark has a shape of its own.
"""

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from streamdet.errors import StreamdetError
from streamdet.evaluate.timeline import Buckets, Timeline
from streamdet.events import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INCHES: Final = (12.5, 5.6)
DPI: Final = 144
# Scores are drawn from here on: on a log axis what is next to nothing would take most of the room.
SCORE_LOW: Final = 0.2
# The mean is drawn over this many columns: finer, and its noise would hide what it does.
MEAN_COLUMNS: Final = 500


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours for one background."""

    ground: str
    ink: str
    faint: str
    score: str
    mean: str
    limit: str
    right: str
    wrong: str
    missed: str


LIGHT: Final = Theme(
    "#ffffff", "#1c2430", "#d5dae2", "#9db4d0", "#3c6aa0", "#1c2430", "#d55e00", "#8a3ea8", "#7a828e"
)
DARK: Final = Theme(
    "#14181f", "#dfe4ec", "#39414d", "#44607f", "#7fb0e6", "#f0f3f7", "#ff8a3d", "#cf8bea", "#8b95a3"
)


def draw(timeline: Timeline, title: str, theme: Theme = LIGHT) -> bytes:
    """The picture as PNG.

    Raises:
        StreamdetError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise StreamdetError(
            "a report needs matplotlib, which is not installed: pip install 'streamdet[report]'"
        ) from error
    # A figure without pyplot: no global state, and no display is looked for.
    figure = Figure(figsize=INCHES, dpi=DPI, layout="constrained", facecolor=theme.ground)
    FigureCanvasAgg(figure)
    buckets = timeline.buckets()
    x = _positions(timeline, buckets)
    rows = figure.subplots(
        2 if timeline.labelled else 1, 1, sharex=True, squeeze=False,
        gridspec_kw={"height_ratios": [9, 1] if timeline.labelled else [1], "hspace": 0.02},
    )[:, 0]  # fmt: skip
    for axes in rows:
        _style(axes, theme)
    _scores(rows[0], x, buckets, theme, labelled=timeline.labelled)
    if timeline.labelled:
        _truth(rows[1], x, buckets, theme)
    if len(x) > 1:
        rows[0].set_xlim(x[0], x[-1])
    _label_time(rows[-1], timeline, theme)
    _caption(figure, rows, title, theme)
    png = io.BytesIO()
    figure.savefig(png, format="png", facecolor=theme.ground)
    return png.getvalue()


def _positions(timeline: Timeline, buckets: Buckets) -> NDArray[np.datetime64] | Floats:
    """Where each bucket is on the x axis, (k,)."""
    if timeline.in_order:
        # What is late by a little is drawn where it came in: an axis must not run back.
        return np.maximum.accumulate(buckets.time_ms).astype("datetime64[ms]")
    return buckets.first.astype(np.float64)


def _style(axes: "Axes", theme: Theme) -> None:
    axes.set_facecolor(theme.ground)
    axes.tick_params(colors=theme.ink, labelsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(theme.faint)


def _scores(axes: "Axes", x: NDArray[np.generic], b: Buckets, theme: Theme, *, labelled: bool) -> None:
    highest = np.maximum(b.raw_max, SCORE_LOW)
    single = bool((b.count == 1).all())  # then the mean would be drawn over the very same values
    label = "score" if single else "score, highest"
    axes.set_yscale("log")
    axes.fill_between(
        x, SCORE_LOW, highest, step="post", color=theme.score, alpha=0.55, linewidth=0, label=label
    )
    if not single:
        columns, mean = _coarse(b.raw_mean)
        mean = np.maximum(mean, SCORE_LOW)
        axes.step(x[columns], mean, where="post", color=theme.mean, linewidth=1.3, label="score, mean")
    axes.plot(x, b.limit, color=theme.limit, linewidth=1.8, label="limit", zorder=4)
    right, wrong = int(b.found.sum()), int((b.flagged - b.found).sum())
    labels = (
        ("alert", "") if not labelled else (f"alert: true anomaly ({right:,})", f"alert: false ({wrong:,})")
    )
    kinds = ((b.found_max, "o", theme.right), (b.false_max, "X", theme.wrong))
    for (y, shape, colour), label in zip(kinds, labels, strict=True):
        at = ~np.isnan(y)
        if at.any():
            look = {"marker": shape, "color": colour, "edgecolors": theme.ground, "linewidths": 0.6}
            axes.scatter(x[at], y[at], s=34, zorder=5, label=label, **look)  # type: ignore[arg-type]
    if not b.scored.all() and b.scored.any():
        # Up to the last one without a score: what is outside a hard range has one before the first model.
        end = min(int(np.flatnonzero(~b.scored)[-1]) + 1, len(x) - 1)
        axes.axvspan(x[0], x[end], color=theme.faint, alpha=0.5, linewidth=0, label="no model yet")
    axes.grid(visible=True, axis="y", color=theme.faint, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_ylim(SCORE_LOW, 1.6 * float(np.nanmax(np.concatenate([highest, b.limit, [10.0]]))))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_ylabel("raw score (surprise, nats)", color=theme.ink, fontsize=11)


def _coarse(values: Floats) -> tuple[NDArray[np.intp], Floats]:
    """Where each of at most `MEAN_COLUMNS` columns begins, (c,), and the mean of its values, (c,)."""
    starts = np.arange(0, len(values), max(1, -(-len(values) // MEAN_COLUMNS)))
    known = ~np.isnan(values)
    if not len(starts):
        return starts, values
    counts = np.add.reduceat(known.astype(np.int64), starts)
    sums = np.add.reduceat(np.where(known, values, 0.0), starts)
    return starts, np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _truth(axes: "Axes", x: NDArray[np.generic], b: Buckets, theme: Theme) -> None:
    """True anomalies, those found above those missed."""
    for which, low, colour in ((b.found, 0.5, theme.right), (b.missed, 0.0, theme.missed)):
        there = which > 0
        axes.vlines(x[there], low + 0.06, low + 0.44, color=colour, linewidth=1.1)
    axes.set_ylim(0, 1)
    axes.set_yticks(
        [0.25, 0.75], [f"missed ({int(b.missed.sum()):,})", f"found ({int(b.found.sum()):,})"], fontsize=9
    )
    axes.tick_params(axis="y", length=0)


def _label_time(axes: "Axes", timeline: Timeline, theme: Theme) -> None:
    if timeline.in_order:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator()  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
        axes.xaxis.get_offset_text().set_color(theme.ink)
        axes.set_xlabel("event time (UTC)", color=theme.ink, fontsize=11)
    else:
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_xlabel("event number", color=theme.ink, fontsize=11)


def _caption(figure: "Figure", rows: "NDArray[np.object_]", title: str, theme: Theme) -> None:
    figure.suptitle(
        title, parse_math=False, color=theme.ink, fontsize=14, fontweight="bold", x=0.01, ha="left"
    )
    handles, labels = rows[0].get_legend_handles_labels()
    rows[0].legend(
        handles, labels, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=len(handles), frameon=False,
        labelcolor=theme.ink, fontsize=10, columnspacing=1.6, handletextpad=0.5,
    )  # fmt: skip
