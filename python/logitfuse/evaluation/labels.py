"""Labels that stand beside their points and hide nothing: text, and where it goes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: What a square pixel of overlap costs: more than any distance.
_OVERLAP = 1e6
#: Distance between candidate places, pixels, and what a point of a line under a label costs.
_GRID, _CROSSING = 6.0, 25.0
#: What it costs if the way from a label to its anchor leads over another label or marker; of how
#: many of the best places that is asked.
_ACROSS, _CLOSER_LOOK = 80.0, 300

Floats = NDArray[np.float64]


class Box(NamedTuple):
    """An axis-parallel rectangle, pixels."""

    x0: float
    y0: float
    x1: float
    y1: float

    def overlaps(self, other: Box) -> bool:
        """Whether the two share any area."""
        return min(self.x1, other.x1) > max(self.x0, other.x0) and min(self.y1, other.y1) > max(
            self.y0, other.y0
        )


@dataclass(frozen=True)
class Label:
    """What is to be placed: its size and the marker it belongs to, pixels."""

    width: float
    height: float
    anchor: tuple[float, float]
    gap: float


def visible(text: str) -> str:
    """The text with control characters and lone surrogates made visible (U+2400 ff., U+FFFD)."""

    def shown(match: re.Match[str]) -> str:
        code = ord(match[0])
        if code < 0x20:
            return chr(0x2400 + code)
        return "\u2421" if code == 0x7F else "\ufffd"

    return re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", shown, text)


def wrap(text: str, width: int, lines: int) -> str:
    """The text in at most so many lines, broken behind punctuation; too long: without its middle.

    Beginning and end are kept since names of models differ there (family, quantisation).
    """
    text = " ".join(visible(text).split())
    room = width * lines
    if len(text) > room:
        text = f"{text[: room // 2]}…{text[len(text) - (room - room // 2 - 1) :]}"
    rows: list[str] = []
    while len(text) > width and len(rows) < lines - 1:
        # as late as what remains fits the remaining lines
        least = max(1, len(text) - width * (lines - len(rows) - 1))
        breaks = [m.end() for m in re.finditer(r"[\s_./:,-]", text[:width]) if m.end() >= least]
        cut = breaks[-1] if breaks else width
        rows.append(text[:cut].rstrip())
        text = text[cut:].lstrip()
    return "\n".join([*rows, text])


def place(
    labels: Sequence[Label],
    area: Box,
    *,
    obstacles: Sequence[Box] = (),
    lines: Floats | None = None,
) -> tuple[list[Box], float]:
    """A place for every label: near its anchor, in the area, over no other and no obstacle.

    Greedy, the biggest first, over a grid of places.

    Parameters
    ----------
    labels : sequence of Label
    area : Box
        Where labels may be, pixels.
    obstacles : sequence of Box
        What must not be covered.
    lines : ndarray, optional
        Points ``[k, 2]`` that had better not be covered.

    Returns
    -------
    list of Box
        In the order of the labels.
    float
        The farthest that a label is from its anchor, pixels; infinite where some overlap because
        the area is too small.
    """
    taken = list(obstacles)
    boxes: dict[int, Box] = {}
    farthest = 0.0
    for i in sorted(range(len(labels)), key=lambda i: -labels[i].width * labels[i].height):
        candidates = _candidates(labels[i], area)
        others = np.array(taken, np.float64).reshape(-1, 4)
        covered = _covered(candidates, others)
        distance = _distances(candidates, labels[i])
        cost = distance + _OVERLAP * covered
        if lines is not None and len(lines):
            cost += _CROSSING * _points_inside(candidates, lines)
        good = cost.argsort(kind="stable")[:_CLOSER_LOOK]
        ways = _ways_across(candidates[good], labels[i], others)
        best = int(good[(cost[good] + _ACROSS * ways).argmin()])
        farthest = max(farthest, float(distance[best]) if covered[best] == 0 else np.inf)
        boxes[i] = Box(*candidates[best].tolist())
        taken.append(boxes[i])
    return [boxes[i] for i in range(len(labels))], farthest


def _candidates(label: Label, area: Box) -> Floats:
    """Boxes ``[k, 4]``: the eight around the anchor, then a grid over the area."""
    (x, y), gap = label.anchor, label.gap
    across = (x + gap, x - gap - label.width, x - label.width / 2)
    along = (y - label.height / 2, y + gap, y - gap - label.height)
    near = [(left, low) for left in across[:2] for low in along]
    near += [(across[2], low) for low in along[1:]]
    # an area smaller than the label still gives one row of places
    xs = np.arange(area.x0, max(area.x1 - label.width, area.x0) + 1e-9, _GRID)
    ys = np.arange(area.y0, max(area.y1 - label.height, area.y0) + 1e-9, _GRID)
    grid = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)
    corners = np.concatenate([np.array(near), grid])
    inside = (
        (corners[:, 0] >= area.x0)
        & (corners[:, 1] >= area.y0)
        & (corners[:, 0] + label.width <= area.x1)
        & (corners[:, 1] + label.height <= area.y1)
    )
    corners = corners[inside] if inside.any() else grid
    return np.concatenate([corners, corners + np.array([label.width, label.height])], axis=1)


def _distances(boxes: Floats, label: Label) -> Floats:
    """From the anchor to the nearest point of each box, pixels; too near is far, too."""
    x, y = label.anchor
    dx = np.maximum(0, np.maximum(boxes[:, 0] - x, x - boxes[:, 2]))
    dy = np.maximum(0, np.maximum(boxes[:, 1] - y, y - boxes[:, 3]))
    # beside is better than above
    centre = 0.005 * np.abs((boxes[:, 0] + boxes[:, 2]) / 2 - x) + 0.1 * np.abs(
        (boxes[:, 1] + boxes[:, 3]) / 2 - y
    )
    gap = np.hypot(dx, dy)
    distance: Floats = gap + 5 * np.maximum(0, label.gap - gap) + centre
    return distance


def _covered(boxes: Floats, others: Floats) -> Floats:
    """Area that each of ``[k, 4]`` boxes shares with the ``[n, 4]`` others, square pixels."""
    width = np.minimum(boxes[:, None, 2], others[:, 2]) - np.maximum(
        boxes[:, None, 0], others[:, 0]
    )
    height = np.minimum(boxes[:, None, 3], others[:, 3]) - np.maximum(
        boxes[:, None, 1], others[:, 1]
    )
    shared: Floats = (np.maximum(width, 0) * np.maximum(height, 0)).sum(axis=1)
    return shared


def _ways_across(boxes: Floats, label: Label, others: Floats) -> Floats:
    """Through how many of the others, not around the anchor, the line from each box leads."""
    x, y = label.anchor
    own = (others[:, 0] <= x) & (x <= others[:, 2]) & (others[:, 1] <= y) & (y <= others[:, 3])
    others = others[~own]
    end = np.clip([x, y], boxes[:, :2], boxes[:, 2:])
    share = np.linspace(0, 1, 16)[:, None, None]
    way = (np.array([x, y]) * (1 - share) + end * share)[:, :, None]
    crossed = np.all((way >= others[:, :2]) & (way <= others[:, 2:]), axis=-1).any(axis=0)
    count: Floats = crossed.sum(axis=1).astype(np.float64)
    return count


def _points_inside(boxes: Floats, points: Floats) -> Floats:
    x, y = points[:, 0], points[:, 1]
    inside = (boxes[:, 0, None] <= x) & (x <= boxes[:, 2, None])
    inside &= (boxes[:, 1, None] <= y) & (y <= boxes[:, 3, None])
    count: Floats = inside.sum(axis=1).astype(np.float64)
    return count
