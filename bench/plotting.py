"""Plots that are read in black and white as well, and come out the same bytes every time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_MARKERS = "osD^v<>Px*"
_LINES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes
    ----------
    title, x_label, y_label : str
    x : sequence of float
        Ticks, and where the points are.
    lines : dict
        Name to the y values; in every panel the same names.
    logarithmic : bool
        The x axis; the y axis always is.
    """

    title: str
    x_label: str
    y_label: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[float]]
    logarithmic: bool = False


def draw(panels: Sequence[Panel], folder: Path, name: str) -> list[Path]:
    """Write the panels beside each other as ``name.png`` and ``name.svg``; returns the files."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": name, "font.size": 9}):
        figure = Figure(figsize=(5.2 * len(panels), 4.2), layout="constrained")
        for axes, panel in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            for i, (label, values) in enumerate(panel.lines.items()):
                style = {"marker": _MARKERS[i], "linestyle": _LINES[i % len(_LINES)]}
                axes.plot(panel.x, values, label=label, markersize=5, linewidth=1.2, **style)
            axes.set_yscale("log")
            if panel.logarithmic:
                axes.set_xscale("log")
            axes.set_xticks(panel.x, [f"{x:,}" for x in panel.x])
            axes.minorticks_off()
            axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
            axes.grid(color="0.85", linewidth=0.6)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{name}.{kind}" for kind in ("png", "svg")]
        nothing = ({"Software": None}, {"Date": None, "Creator": None})
        for file, metadata in zip(files, nothing, strict=True):
            figure.savefig(file, dpi=110, metadata=metadata)
    return files
