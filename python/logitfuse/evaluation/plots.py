"""Plots of a run: score versus cost, bits per byte versus a weight, score by group.

Readable without colour: every row has its own marker, every line its own dashes, and names stand
beside what they name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from logitfuse.errors import ConfigError
from logitfuse.evaluation.drawing import (
    COLOURS,
    LINES,
    add_title,
    drawing,
    metric_title,
    names,
    new_figure,
    plain,
    save,
    scale,
    signs,
)
from logitfuse.evaluation.labels import wrap
from logitfuse.evaluation.notes import Note, dense, fitting_height, freeze, write
from logitfuse.evaluation.pareto import pareto_plot
from logitfuse.evaluation.summary import Row, Summary, WeightCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["group_plot", "pareto_plot", "save", "weight_plot"]

#: Most groups in one plot; the others stand in the tables.
_MOST_GROUPS = 30
#: Height of a row within a group, of what surrounds the groups, and of a line of the key, inches.
_ROW, _AROUND, _KEY_LINE = 0.15, 1.2, 0.2
#: Most curves with bands, their hatches; diameter of the ring at the lowest point, points.
_MOST_BANDS, _HATCHES, _RING = 3, ("///", "\\\\\\", "..."), 10.0


def weight_plot(summary: Summary) -> Figure:
    """Bits per byte versus a member's weight, the other members sharing the rest.

    Of two members one curve says all, and both stand at its ends.  Bands are 95 % intervals, a
    ring marks the lowest point, horizontal lines are what the ensembles themselves came to.

    Raises
    ------
    ConfigError
        matplotlib is missing, or the run has no curves.
    """
    if not summary.curves:
        raise ConfigError("this run has no curve of bits per byte versus weight to draw")
    return fitting_height(lambda height: _draw_weights(summary, height))


def _draw_weights(summary: Summary, height: float) -> tuple[Figure, float]:
    pair = len(summary.curves) == 2
    curves = summary.curves[:1] if pair else summary.curves
    with drawing([summary.title, *(c.member for c in summary.curves)]):
        figure, (axes,) = new_figure(height)
        for i, curve in enumerate(curves):
            _curve(axes, curve, i, of=len(curves))
        _margins(axes, summary, curves)
        add_title(figure, summary, "bands: 95 % intervals")
        freeze(figure)
        notes = _own_values(axes, summary, curves)
        if len(curves) == 1:
            notes.append(_lowest_note(axes, curves[0]))
        notes += _ensembles(axes, summary, len(curves))
        lines = [
            dense(axes, [(w, b.mean) for w, b in zip(c.weights, c.bits, strict=True)])
            for c in curves
        ]
        level = [dense(axes, [(0, n.y), (1, n.y)]) for n in notes if not n.size]
        return figure, write(figure, [axes], notes, [*lines, *level])


def _curve(axes: Axes, curve: WeightCurve, i: int, *, of: int) -> None:
    """A curve with its band (filled if it is alone, else hatched), and a ring at its lowest point.

    Many bands would hide each other: then there are bars at the ring and at weight 1.
    """
    colour = COLOURS[i % len(COLOURS)]
    means = [b.mean for b in curve.bits]
    lows, highs = [b.low for b in curve.bits], [b.high for b in curve.bits]
    lowest = means.index(min(means))
    if of <= _MOST_BANDS:
        axes.fill_between(
            curve.weights,
            lows,
            highs,
            facecolor="#e4e4e4" if of == 1 else "none",
            edgecolor=colour,
            hatch=None if of == 1 else _HATCHES[i],
            alpha=1.0 if of == 1 else 0.3,
            linewidth=0.5,
        )
    else:
        for at in (lowest, -1):
            axes.vlines(curve.weights[at], lows[at], highs[at], color=colour, linewidth=1.2)
    style = LINES[i % len(LINES)]
    axes.plot(curve.weights, means, color=colour, linestyle=style, linewidth=1.7, zorder=3)
    axes.plot(
        [curve.weights[lowest]],
        [means[lowest]],
        "o",
        color=colour,
        fillstyle="none",
        markersize=_RING,
        zorder=4,
    )


def _margins(axes: Axes, summary: Summary, curves: Sequence[WeightCurve]) -> None:
    values = [v for curve in curves for bits in curve.bits for v in bits]
    metric = summary.metrics[0]
    values += [row.scores[metric].mean for row in summary.rows if metric in row.scores]
    room = 0.15 * (max(values) - min(values)) or 0.05 * abs(max(values)) or 1.0
    axes.set_ylim(min(values) - room, max(values) + room)
    axes.set_xlim(-0.04, 1.04 if len(curves) == 1 else 1.95)  # many names stand behind the ends
    axes.set_xticks([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    title = "weight of the named member, the others share the rest"
    if len(curves) == 1:
        title = f"weight of {wrap(curves[0].member, 44, 1)}"
    axes.set_xlabel(plain(title))
    axes.set_ylabel(metric_title(summary))


def _own_values(axes: Axes, summary: Summary, curves: Sequence[WeightCurve]) -> list[Note]:
    """Each member alone: at weight 1 of its curve; of two, the other one at weight 0."""
    metric = summary.metrics[0]
    members = {
        row.name: (row, sign)
        for row, sign in zip(summary.rows, signs(summary.rows), strict=True)
        if row.kind == "member"
    }
    ends = [(curve.member, 1.0, curve.bits[-1].mean) for curve in curves]
    if len(summary.curves) == 2:
        ends.append((summary.curves[1].member, 0.0, curves[0].bits[0].mean))
    notes = []
    for member, weight, at_end in ends:
        row, sign = members.get(member, (None, signs(summary.rows)[0]))
        value = row.scores[metric].mean if row and metric in row.scores else at_end
        axes.plot([weight], [value], **sign.options(), zorder=5, clip_on=False)
        more = ""
        if len(curves) > 1:
            at, bits = _lowest(next(c for c in curves if c.member == member))
            more = f"alone {value:.3f}\nleast {bits:.3f} at {at:.2g}"
        name = member if more else f"{member} alone"
        notes.append(Note(axes, name, weight, value, more=more, size=sign.size))
    return notes


def _lowest(curve: WeightCurve) -> tuple[float, float]:
    """Weight and bits of the lowest point."""
    points = zip(curve.weights, (b.mean for b in curve.bits), strict=True)
    return min(points, key=lambda point: point[1])


def _lowest_note(axes: Axes, curve: WeightCurve) -> Note:
    weight, bits = _lowest(curve)
    style = {"color": "#333333"}
    return Note(axes, f"least: {bits:.3f} at {weight:.2g}", weight, bits, size=_RING, style=style)


def _ensembles(axes: Axes, summary: Summary, n_curves: int) -> list[Note]:
    """What ensembles came to, as horizontal lines."""
    metric = summary.metrics[0]
    rows = [r for r in summary.rows if r.kind == "ensemble" and metric in r.scores]
    notes = []
    for i, row in enumerate(rows):
        value = row.scores[metric].mean
        style = LINES[(n_curves + i) % len(LINES)]
        axes.axhline(value, color="#000000", linestyle=style, linewidth=1.2, zorder=2)
        text = f"{row.name}: {scale(summary, metric).text(value)}"
        notes.append(Note(axes, text, 0.5, value))
    return notes


def group_plot(summary: Summary) -> Figure:
    """Score of every row in every group, with 95 % bars; the best groups of the ensemble first.

    At most 30 groups; the title says how many there are.

    Raises
    ------
    ConfigError
        matplotlib is missing, or no row has scores by group.
    """
    rows = [row for row in summary.rows if row.by_group]
    if not rows:
        raise ConfigError("no row has scores by group to draw")
    shown = scale(summary, summary.metrics[0])
    groups = _sorted_groups(summary, rows)
    listed = groups[:_MOST_GROUPS]
    called = names(rows)
    with drawing([*called, *listed, summary.title]):
        key = [plain(wrap(name, 34, 2)) for name in called]
        columns = 2 if max(map(len, called)) <= 26 else 1
        key_lines = sum(name.count("\n") + 1 for name in key) / columns
        each = _ROW * (len(rows) + 1.2)
        figure, (axes,) = new_figure(_AROUND + each * len(listed) + _KEY_LINE * (key_lines + 1))
        for i, (row, sign) in enumerate(zip(rows, signs(rows), strict=True)):
            step = 0.82 / len(rows)
            offset = step * (i - (len(rows) - 1) / 2)
            points = [
                (g + offset, row.by_group[n]) for g, n in enumerate(listed) if n in row.by_group
            ]
            y = [at for at, _ in points]
            lows = [shown.value(score.low) for _, score in points]
            highs = [shown.value(score.high) for _, score in points]
            axes.hlines(y, lows, highs, color=sign.colour, linewidth=1.2)
            options = sign.options() | {"markersize": min(sign.size, 9.0)}
            axes.plot([shown.value(s.mean) for _, s in points], y, label=key[i], **options)
        _group_axes(axes, summary, listed)
        of = f", {len(listed)} of {len(groups)} groups" if len(listed) < len(groups) else ""
        add_title(figure, summary, f"bars: 95 % intervals{of}")
        figure.legend(loc="outside lower center", ncols=columns, frameon=False)
    return figure


def _sorted_groups(summary: Summary, rows: Sequence[Row]) -> list[str]:
    """All groups: the best ones of the ensemble (else of the first row) first."""
    by = next((row for row in rows if row.kind == "ensemble"), rows[0]).by_group
    sign = 1.0 if summary.lower_is_better else -1.0
    groups = dict.fromkeys(group for row in rows for group in row.by_group)
    return sorted(groups, key=lambda g: (g not in by, sign * by[g].mean if g in by else 0.0))


def _group_axes(axes: Axes, summary: Summary, groups: Sequence[str]) -> None:
    """Groups from top to bottom, every second one shaded."""
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_yticks(range(len(groups)), [plain(wrap(group, 18, 2)) for group in groups])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    for i in range(1, len(groups), 2):
        axes.axhspan(i - 0.5, i + 0.5, color="#f2f2f2", linewidth=0, zorder=0)
    axes.set_xlabel(metric_title(summary))
