"""What all plots share: matplotlib without global state, signs, fonts, and files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logitfuse.errors import ConfigError
from logitfuse.evaluation.labels import visible, wrap
from logitfuse.evaluation.summary import Row, Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Okabe & Ito (2008): colours that differ for all kinds of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)))
#: Inches, points: read at half the width of a page (84 mm) the smallest text is 6 points high.
WIDTH, FONT = 5.2, 9.5

_MEMBER_MARKERS = ("s", "^", "P", "v", "D", "<", "X", ">", "h", "p", "d", "8")
_KIND_MARKERS: dict[str, tuple[Any, ...]] = {
    "ensemble": ("*", (6, 1, 0), (8, 1, 0), (4, 1, 0)),
    "chosen": ("o",),
    "random": ("x",),
    "oracle": ("+",),
    "sampled": ("H", (3, 2, 0), (5, 2, 0)),
}
_KIND_COLOURS = {
    "ensemble": COLOURS[1],
    "chosen": COLOURS[6],
    "random": COLOURS[6],
    "oracle": COLOURS[6],
    "sampled": COLOURS[2],
}
_MEMBER_COLOURS = (COLOURS[0], COLOURS[3], COLOURS[4], COLOURS[5])
#: Every kind has its own ways to fill, so that no two rows share a sign.
_FILLS = ("full", "none", "left", "bottom")


@dataclass(frozen=True)
class Sign:
    """How a row is drawn everywhere: marker and fill are its own."""

    marker: Any
    fill: str
    colour: str
    size: float

    def options(self) -> dict[str, Any]:
        """For ``Axes.plot``."""
        return {
            "marker": self.marker,
            "fillstyle": self.fill,
            "color": self.colour,
            "markersize": self.size,
            "markeredgewidth": 1.4,
            "linestyle": "none",
        }


def signs(rows: Sequence[Row]) -> list[Sign]:
    """A sign for each row; markers differ, and their fill where there are more rows than markers.

    The chosen member is a ring wide enough for the marker of that member inside.
    """
    counts: dict[str, int] = {}
    result = []
    for row in rows:
        i = counts[row.kind] = counts.get(row.kind, -1) + 1
        if row.kind == "member":
            markers, colour = _MEMBER_MARKERS, _MEMBER_COLOURS[i % len(_MEMBER_COLOURS)]
        else:
            markers, colour = _KIND_MARKERS[row.kind], _KIND_COLOURS[row.kind]
        first = 1 if row.kind in ("chosen", "sampled") else 0  # hollow first
        fill = _FILLS[(first + i // len(markers)) % len(_FILLS)]
        size = {"ensemble": 13.0, "chosen": 14.0, "random": 8.0, "oracle": 10.0}.get(row.kind, 7.0)
        result.append(Sign(markers[i % len(markers)], fill, colour, size))
    return result


@dataclass(frozen=True)
class Scale:
    """How the values of a metric are shown."""

    percent: bool
    digits: int

    def value(self, value: float) -> float:
        """On the scale's axis."""
        return 100 * value if self.percent else value

    def text(self, value: float, *, signed: bool = False) -> str:
        """As people read it, without the unit."""
        text = f"{self.value(value):{'+' if signed else ''}.{self.digits}f}"
        return text if float(text) else f"{0:.{self.digits}f}"  # no -0.0


def scale(summary: Summary, metric: str) -> Scale:
    """Percent for the shares of questions; else plain, with a digit more below 10."""
    values = [v for row in summary.rows if metric in row.scores for v in row.scores[metric]]
    if summary.task != "bpb" and all(0 <= v <= 1 for v in values):
        return Scale(True, 1)
    return Scale(False, 3 if all(abs(v) < 10 for v in values) else 1)


def names(rows: Sequence[Row]) -> list[str]:
    """Names that differ: a row called like a member says what it is."""
    kinds = {"chosen": "best on other half", "sampled": "sampled", "member": "member"}
    seen = [row.name for row in rows]
    return [
        f"{row.name} ({kinds.get(row.kind, row.kind)})"
        if seen.count(row.name) > 1 and row.kind != "member"
        else row.name
        for row in rows
    ]


def plain(text: str) -> str:
    """Text that matplotlib takes literally: a dollar sign begins no formula."""
    return visible(text).replace("$", r"\$")


@contextmanager
def drawing(texts: Sequence[str] = ()) -> Iterator[None]:
    """matplotlib's defaults and ours, whatever the user's own settings are.

    Parameters
    ----------
    texts : sequence of str
        What is to be written, for the choice of fonts.

    Raises
    ------
    ConfigError
        matplotlib is missing.
    """
    try:
        from matplotlib import style
    except ImportError:
        raise ConfigError("plots need the eval extra: pip install 'logitfuse[eval]'") from None
    ours = {
        "font.family": fonts_for(texts),
        "font.size": FONT,
        "axes.titlesize": FONT + 1,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#dddddd",
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "svg.hashsalt": "logitfuse",
        "svg.fonttype": "path",
        "text.hinting": "none",
    }
    with style.context(["default", ours]), warnings.catch_warnings():
        # a script that no font here has: boxes in the plot, the names stand in the tables
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def new_figure(height: float, columns: Sequence[float] = (1.0,)) -> tuple[Figure, list[Any]]:
    """A figure of our width with one row of axes that share y; not pyplot's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(columns), sharey=True, squeeze=False, width_ratios=columns)
    return figure, list(axes[0])


def metric_title(summary: Summary) -> str:
    """The main metric with its unit and direction, for an axis."""
    metric = summary.metrics[0]
    unit = ", %" if scale(summary, metric).percent else ""
    better = "lower" if summary.lower_is_better else "higher"
    return plain(f"{metric.replace('_', ' ')}{unit} ({better} is better)")


def add_title(figure: Figure, summary: Summary, what: str) -> None:
    """What was asked, of how many, and what is drawn."""
    title = plain(wrap(summary.title or summary.task, 50, 2))
    figure.suptitle(
        f"{title}\n{summary.task}, n = {summary.items:,} items; {what}", fontsize=FONT + 0.5
    )


def fonts_for(texts: Sequence[str]) -> list[str]:
    """DejaVu Sans, and the first fonts here that have what it lacks (Chinese, for example)."""
    from matplotlib import font_manager

    family = ["DejaVu Sans"]
    missing = {c for text in texts for c in text if not c.isspace()}
    missing -= _glyphs(font_manager.findfont("DejaVu Sans"), missing)
    known = sorted((font.name, font.fname) for font in font_manager.fontManager.ttflist)
    known = [(name, path) for name, path in known if not name.startswith("Last Resort")]
    for name, path in known if missing else ():
        if found := _glyphs(path, missing):
            family.append(name)
            missing -= found
    return family


def _glyphs(path: str, characters: set[str]) -> set[str]:
    """Those of the characters that a font has; none if it cannot be read."""
    from matplotlib import font_manager

    try:
        font = font_manager.get_font(path)
        return {c for c in characters if font.scalable and font.get_char_index(ord(c))}
    except (OSError, RuntimeError):  # not a font that can be drawn
        return set()


def save(figure: Figure, stem: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write ``stem.png`` (200 dpi) and ``stem.svg``; equal figures give equal bytes.

    Returns
    -------
    tuple of Path
        The PNG and the SVG.

    Raises
    ------
    OSError
        A file cannot be written; then what was there before is still there.
    """
    from io import BytesIO

    stem = Path(stem)
    paths = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")
    metadata = ({"Software": None}, {"Date": None, "Creator": None, "Format": None, "Type": None})
    with drawing():
        contents = []
        for path, told in zip(paths, metadata, strict=True):
            buffer = BytesIO()
            figure.savefig(buffer, format=path.suffix[1:], dpi=200, metadata=told)
            contents.append(buffer.getvalue())
    for path, content in zip(paths, contents, strict=True):
        _write_whole(path, content)
    return paths


def _write_whole(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
