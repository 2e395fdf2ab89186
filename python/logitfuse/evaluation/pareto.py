"""Score versus cost: what does an ensemble buy for its seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from logitfuse.errors import ConfigError
from logitfuse.evaluation.drawing import (
    Sign,
    add_title,
    drawing,
    metric_title,
    names,
    new_figure,
    scale,
    signs,
)
from logitfuse.evaluation.notes import Note, dense, fitting_height, freeze, write
from logitfuse.evaluation.summary import Row, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Seconds that differ by more than this factor are drawn on a logarithmic axis.
_LOG_SPAN = 6.0

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Mark:
    """A row in the plot: where, and how."""

    row: Row
    name: str
    axes: Axes
    x: float
    y: float
    low: float
    high: float
    sign: Sign

    @property
    def timed(self) -> bool:
        return self.row.seconds is not None

    def pixels(self) -> tuple[float, float]:
        x, y = self.axes.transData.transform((self.x, self.y))
        return float(x), float(y)


@dataclass(frozen=True)
class _Line:
    """A line with a name, in data coordinates ``[k, 2]``."""

    name: str
    points: Floats
    style: Any


def pareto_plot(summary: Summary) -> Figure:
    """Score with 95 % bars versus seconds per item.

    A step line joins the rows that no other row beats in both (without the oracle, which nobody
    can run); a dashed curve is what drawing one member per item by lot attains at best.  Rows
    without seconds stand in a strip of their own.

    Raises
    ------
    ConfigError
        matplotlib is missing, or no row has a score.
    """
    metric = summary.metrics[0]
    rows = [row for row in summary.rows if metric in row.scores]
    if not rows:
        raise ConfigError(f"no row has a score of '{metric}' to draw")
    return fitting_height(lambda height: _draw(summary, rows, height))


def pareto_front(points: Floats, *, lower_is_better: bool = False) -> Floats:
    """Those of the points (cost, score) that none beats in both, by cost, ``[k, 2]``."""
    sign = -1.0 if lower_is_better else 1.0
    front: list[Floats] = []
    for point in points[np.lexsort((-sign * points[:, 1], points[:, 0]))]:
        if not front or sign * point[1] > sign * front[-1][1]:
            front.append(point)
    return np.array(front).reshape(-1, 2)


def mixing_hull(points: Floats, *, lower_is_better: bool = False) -> Floats:
    """Corners of what choosing among the points (cost, score) by lot attains at best, ``[k, 2]``.

    The upper concave hull of the points from the cheapest to the best.
    """
    sign = -1.0 if lower_is_better else 1.0
    hull: list[Floats] = []
    for point in pareto_front(points, lower_is_better=lower_is_better):
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if sign * ((y1 - y0) * (point[0] - x0) - (point[1] - y0) * (x1 - x0)) > 0:
                break
            hull.pop()
        hull.append(point)
    return np.array(hull).reshape(-1, 2)


def _draw(summary: Summary, rows: Sequence[Row], height: float) -> tuple[Figure, float]:
    """The plot at one height, and how far names are from their markers."""
    called = names(rows)
    with drawing([*called, summary.title]):
        n_untimed = sum(row.seconds is None for row in rows)
        columns = [1.0]
        if 0 < n_untimed < len(rows):
            columns.append(min(0.6, 0.08 + 0.07 * n_untimed))
        figure, axes = new_figure(height, columns)
        marks = _marks(summary, rows, called, axes)
        _axes(summary, marks, axes)
        lines = _lines(summary, marks, axes[0])
        add_title(figure, summary, "bars: 95 % intervals")
        freeze(figure)
        sizes = _markers(marks)
        bars = [dense(m.axes, [(m.x, m.low), (m.x, m.high)]) for m in marks]
        visible = [*bars, *(dense(axes[0], line.points) for line in lines)]
        visible.append(dense(axes[-1], [(axes[-1].get_xlim()[0], y) for y in axes[-1].get_ylim()]))
        notes = [
            Note(m.axes, m.name, m.x, m.y, size=size) for m, size in zip(marks, sizes, strict=True)
        ]
        notes += _line_notes(axes[0], lines)
        return figure, write(figure, axes, notes, visible)


def _marks(
    summary: Summary, rows: Sequence[Row], called: Sequence[str], axes: Sequence[Axes]
) -> list[_Mark]:
    metric, marks = summary.metrics[0], []
    shown = scale(summary, metric)
    untimed = 0
    for row, name, sign in zip(rows, called, signs(rows), strict=True):
        mean, low, high = (shown.value(v) for v in row.scores[metric])
        if row.seconds is None:
            marks.append(_Mark(row, name, axes[-1], untimed, mean, low, high, sign))
            untimed += 1
        else:
            marks.append(_Mark(row, name, axes[0], row.seconds.mean, mean, low, high, sign))
    return marks


def _axes(summary: Summary, marks: Sequence[_Mark], axes: Sequence[Axes]) -> None:
    """Limits, ticks and titles."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = min(m.low for m in marks), max(m.high for m in marks)
    room = 0.12 * (high - low) or 0.05 * abs(high) or 1.0
    axes[0].set_ylim(low - room, high + room)
    axes[0].set_ylabel(metric_title(summary))
    if summary.lower_is_better:
        axes[0].invert_yaxis()
    seconds = [m.x for m in marks if m.timed]
    if len(seconds) < len(marks):
        strip, n = axes[-1], len(marks) - len(seconds)
        strip.set_xlim(-0.8, n - 0.2)
        strip.set_xticks([])
        strip.set_xlabel("not timed")
        if seconds:
            strip.patch.set_visible(False)  # names may reach into it
            strip.spines["left"].set_linestyle((0, (2, 3)))
            strip.tick_params(axis="y", length=0)
    if not seconds:
        return
    least, most = min(seconds), max(seconds)
    axes[0].set_xlabel("seconds per item")
    if least > 0 and most / least > _LOG_SPAN:
        axes[0].set_xscale("log")
        axes[0].set_xlim(least / (most / least) ** 0.12, most * (most / least) ** 0.12)
        subs = (1.0, 2.0, 5.0) if most / least < 300 else (1.0,)
        axes[0].xaxis.set_major_locator(LogLocator(subs=subs))
        axes[0].xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes[0].xaxis.set_minor_formatter(NullFormatter())
        axes[0].set_xlabel("seconds per item (logarithmic)")
    else:
        room = 0.15 * (most - least) or 0.3 * most or 1.0
        axes[0].set_xlim(max(0.0, least - room) if least >= 0 else least - room, most + room)


def _lines(summary: Summary, marks: Sequence[_Mark], axes: Axes) -> list[_Line]:
    """Draw the front and the mixtures of members, where there are any."""
    lower = summary.lower_is_better
    runnable = [(m.x, m.y) for m in marks if m.timed and m.row.kind != "oracle"]
    members = [(m.x, m.y) for m in marks if m.timed and m.row.kind == "member"]
    result = []
    if len(runnable) > 1:
        front = pareto_front(np.array(runnable, np.float64), lower_is_better=lower)
        corners = np.repeat(front, 2, axis=0)
        corners = np.column_stack([np.append(corners[1:, 0], axes.get_xlim()[1]), corners[:, 1]])
        result.append(_Line("Pareto front", corners, "-"))
    if members:
        hull = mixing_hull(np.array(members, np.float64), lower_is_better=lower)
        if len(hull) > 1:  # straight, unless the axis is logarithmic
            xs = [np.linspace(a[0], b[0], 40) for a, b in pairwise(hull)]
            x = np.concatenate(xs)
            mixed = np.column_stack([x, np.interp(x, hull[:, 0], hull[:, 1])])
            result.append(_Line("members by lot", mixed, "--"))
    for line in result:
        width = 1.0 if line.style == "-" else 1.3
        axes.plot(*line.points.T, linestyle=line.style, color="#555555", linewidth=width, zorder=2)
    return result


def _markers(marks: Sequence[_Mark]) -> list[float]:
    """Draw bars and markers; returns their sizes.  Of those that coincide, later ones are wider."""
    sizes = []
    drawn: list[tuple[Axes, float, float]] = []
    for mark in marks:
        mark.axes.vlines(mark.x, mark.low, mark.high, color=mark.sign.colour, linewidth=1.4)
        x, y = mark.pixels()
        beneath = sum(ax is mark.axes and abs(x - u) < 4 and abs(y - v) < 4 for ax, u, v in drawn)
        options = mark.sign.options()
        if beneath and mark.row.kind != "chosen":
            options |= {"fillstyle": "none", "markersize": mark.sign.size + 4.5 * beneath}
        mark.axes.plot([mark.x], [mark.y], **options, zorder=4 + beneath)
        drawn.append((mark.axes, x, y))
        sizes.append(options["markersize"])
    return sizes


def _line_notes(axes: Axes, lines: Sequence[_Line]) -> list[Note]:
    """Names of lines, at their middle."""
    notes = []
    for line in lines:
        pixels = dense(axes, line.points)
        x, y = axes.transData.inverted().transform(pixels[len(pixels) // 2])
        style = {"style": "italic", "color": "#444444"}
        notes.append(Note(axes, line.name, float(x), float(y), style=style))
    return notes
