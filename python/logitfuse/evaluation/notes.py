"""Names written into a plot, each beside its point and over nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from logitfuse.evaluation.drawing import plain
from logitfuse.evaluation.labels import Box, Label, place, wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Heights that are tried until names stand within so many pixels of their markers, and those tried
#: only while names overlap, inches.
_HEIGHTS, _NEAR, _TALL = (4.0, 4.8, 5.8), 40.0, (7.2, 9.0, 12.0)
#: A name farther from its marker than this has a line to it; room around a name; pixels.
_BESIDE, _PAD = 9.0, 1.5
#: Characters of a line, and lines, of a name.
_CHARACTERS, _ROWS = 24, 3

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Note:
    """A name and the point it belongs to.

    Attributes
    ----------
    axes : Axes
    text : str
    x, y : float
        Data coordinates.
    more : str
        Another line.
    size : float
        Width of the marker there, points; 0: none.
    style : dict
        Of the text.
    """

    axes: Axes
    text: str
    x: float
    y: float
    more: str = ""
    size: float = 0.0
    style: dict[str, Any] = field(default_factory=dict)

    def pixels(self) -> tuple[float, float]:
        """Where the point is in the figure."""
        x, y = self.axes.transData.transform((self.x, self.y))
        return float(x), float(y)


def fitting_height(draw: Callable[[float], tuple[Figure, float]]) -> Figure:
    """The figure at the least height at which names stand near, else the nearest of them.

    `draw` makes the figure at a height and returns what `write` did.
    """
    best, nearest = draw(_HEIGHTS[0])
    for height in (*_HEIGHTS[1:], *_TALL):
        if nearest <= _NEAR or (height in _TALL and nearest < np.inf):
            break
        figure, farthest = draw(height)
        if farthest < nearest:
            best, nearest = figure, farthest
    return best


def freeze(figure: Figure) -> None:
    """Lay the figure out for good: names are placed for that layout."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def write(
    figure: Figure, axes: Sequence[Axes], notes: Sequence[Note], lines: Sequence[Floats]
) -> float:
    """Write all names, after `freeze`.

    Parameters
    ----------
    figure : Figure
    axes : sequence of Axes
        The room for names reaches from the first to the last.
    notes : sequence of Note
    lines : sequence of ndarray
        Pixels ``[k, 2]`` of what had better stay visible: see `dense`.

    Returns
    -------
    float
        The farthest that a name is from its point, pixels; infinite where names overlap.
    """
    from matplotlib.patheffects import withStroke
    from matplotlib.text import Text

    pixel = figure.dpi / 72
    texts, labels, obstacles = [], [], []
    for note in notes:
        name = wrap(note.text, _CHARACTERS, _ROWS)
        text = note.axes.annotate(
            plain(f"{name}\n{note.more}" if note.more else name),
            (note.x, note.y),
            (0, 0),
            textcoords="offset points",
            va="bottom",
            linespacing=1.05,
            annotation_clip=False,
            zorder=20,
            path_effects=[withStroke(linewidth=2.5, foreground="white", alpha=0.8)],
            **note.style,
        )
        x, y = note.pixels()
        radius = (note.size / 2 + 1.5) * pixel if note.size else 0.0
        if radius:
            obstacles.append(Box(x - radius, y - radius, x + radius, y + radius))
        extent = Text.get_window_extent(text)  # without arrows
        width, height = extent.width + 2 * _PAD, extent.height + 2 * _PAD
        labels.append(Label(width, height, (x, y), radius + 2))
        texts.append(text)
    first, last = axes[0].get_window_extent(), axes[-1].get_window_extent()
    area = Box(first.x0 + 3, first.y0 + 3, last.x1 - 1, last.y1 - 1)
    points = np.concatenate([*lines, np.empty((0, 2))])
    boxes, farthest = place(labels, area, obstacles=obstacles, lines=points)
    for text, label, box in zip(texts, labels, boxes, strict=True):
        x, y = label.anchor
        text.xyann = ((box.x0 + _PAD - x) / pixel, (box.y0 + _PAD - y) / pixel)
        dx, dy = min(max(x, box.x0), box.x1) - x, min(max(y, box.y0), box.y1) - y
        if np.hypot(dx, dy) > label.gap + _BESIDE:
            text.axes.annotate(  # type: ignore[union-attr]
                "",
                text.xy,
                (dx / pixel, dy / pixel),
                textcoords="offset points",
                arrowprops={
                    "arrowstyle": "-",
                    "linewidth": 0.9,
                    "linestyle": ":",
                    "color": "#444444",
                },
                annotation_clip=False,
                zorder=3,
            )
    return farthest


def dense(axes: Axes, points: Sequence[tuple[float, float]] | Floats) -> Floats:
    """Pixels ``[k, 2]`` of a line through points in data coordinates, 4 apart."""
    pixels = axes.transData.transform(points)
    parts = [pixels[:1]]
    for a, b in pairwise(pixels):
        parts.append(np.linspace(a, b, max(2, int(np.hypot(*(b - a)) / 4) + 1)))
    return np.concatenate(parts)
