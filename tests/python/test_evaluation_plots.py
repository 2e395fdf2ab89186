"""Plots: nothing overlaps, rows differ without colour, equal data give equal files."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_samples import GROUPS, LONG, full, interval, members, predicted, row, summary
from hypothesis import given, settings
from hypothesis import strategies as st
from logitfuse.errors import ConfigError
from logitfuse.evaluation import plots
from logitfuse.evaluation.drawing import drawing, scale, signs
from logitfuse.evaluation.labels import Box, Label, place, wrap
from logitfuse.evaluation.pareto import mixing_hull, pareto_front

pytest.importorskip("matplotlib")

HARD_NAMES = [LONG, f"{LONG}2", "$x^2$", "under_score", "模型", "\x00\ud800\n"]
EQUAL = [row(f"m{i}", "member", 0.5, 0.1, half=0.0) for i in range(4)]
RUNS = {
    "two members": full(2),
    "six members": full(6),
    "hard names": full(6, names=HARD_NAMES),
    "all equal": summary([*EQUAL, row("ensemble", "ensemble", 0.5, 0.1, half=0.0)]),
    "untimed": summary([replace(r, seconds=None) for r in full(3).rows]),
    "one row": summary(members(1)),
    "no time at all": summary([row("a", "member", 0.0, 0.0, half=0.0)]),
    "bits": predicted(2),
    "bits of six": predicted(6, names=HARD_NAMES),
}
PLOTS: dict[str, Any] = {
    "pareto": plots.pareto_plot,
    "weight": plots.weight_plot,
    "group": plots.group_plot,
}


def drawn_texts(figure: Any) -> list[tuple[str, Box]]:
    """Every visible text of a plot at the resolution of the file, pixels."""
    from matplotlib.text import Text

    figure.set_dpi(200)
    with drawing():
        figure.draw_without_rendering()
    found = []
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip():
            found.append((text.get_text(), Box(*Text.get_window_extent(text).extents)))
    width, height = figure.get_size_inches() * 200
    # ticks outside the limits exist, but are not drawn
    return [(t, b) for t, b in found if b.x1 > 0 and b.y1 > 0 and b.x0 < width and b.y0 < height]


def notes(figure: Any) -> list[tuple[str, Box]]:
    """The texts that stand beside points."""
    from matplotlib.text import Annotation

    written = {text.get_text() for text in figure.findobj(Annotation)}
    return [(text, box) for text, box in drawn_texts(figure) if text in written]


def marker_boxes(figure: Any) -> list[tuple[Any, Box]]:
    """Every marker: its sign (shape and fill) and the square in it, pixels at 200 dpi."""
    found = []
    for axes in figure.axes:
        for line in axes.lines:
            if line.get_marker() in ("None", "", None) or len(line.get_xdata()) != 1:
                continue
            x, y = axes.transData.transform((line.get_xdata()[0], line.get_ydata()[0]))
            r = line.get_markersize() / 2 * 200 / 72 / np.sqrt(2)
            sign = (line.get_marker(), line.get_fillstyle())
            found.append((sign, Box(x - r, y - r, x + r, y + r)))
    return found


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("kind", ["pareto", "weight"])
def test_names_overlap_nothing_and_stay_inside(name: str, kind: str) -> None:
    run = RUNS[name]
    if kind == "weight" and not run.curves:
        pytest.skip("no curves")
    figure = PLOTS[kind](run)
    written = notes(figure)
    assert len(written) >= len(run.rows) if kind == "pareto" else written
    for (a, box), (b, other) in combinations(written, 2):
        assert not box.overlaps(other), (a, b)
    markers = [box for _, box in marker_boxes(figure)]
    width, height = figure.get_size_inches() * 200
    for text, box in written:
        assert not any(box.overlaps(marker) for marker in markers), text
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= width, text
        assert box.y1 <= height, text


@pytest.mark.parametrize("name", RUNS)
def test_group_labels_do_not_overlap(name: str) -> None:
    written = drawn_texts(plots.group_plot(RUNS[name]))
    for (a, box), (b, other) in combinations(written, 2):
        assert not box.overlaps(other), (a, b)


def test_every_row_has_a_sign_of_its_own_without_colour() -> None:
    many = [*members(40, names=[f"m{i}" for i in range(40)]), *full(2).rows[2:]]
    found = [(str(s.marker), s.fill) for s in signs(many)]
    assert len(set(found)) == len(many)


def test_coinciding_markers_stay_visible() -> None:
    """Later ones are wider rings around the earlier."""
    boxes = [box for _, box in marker_boxes(plots.pareto_plot(RUNS["all equal"]))]
    widths = [box.x1 - box.x0 for box in boxes]
    assert len(widths) == 5
    assert widths == sorted(set(widths))


def test_curves_differ_without_colour() -> None:
    axes = plots.weight_plot(predicted(4)).axes[0]
    curves = [line for line in axes.lines if len(line.get_xdata()) > 2]
    assert len(curves) == 4
    assert len({str(line._dash_pattern) for line in curves}) == 4


def test_two_members_have_one_curve_with_both_at_its_ends() -> None:
    figure = plots.weight_plot(predicted(2))
    axes = figure.axes[0]
    assert sum(len(line.get_xdata()) > 2 for line in axes.lines) == 1
    points = {line.get_xdata()[0]: line.get_ydata()[0] for line in axes.lines
              if len(line.get_xdata()) == 1 and line.get_marker() != "o"}  # fmt: skip
    assert points == {1.0: pytest.approx(1.03), 0.0: pytest.approx(1.00)}
    texts = [text for text, _ in notes(figure)]
    assert {"member-a alone", "member-b alone", "ensemble: 0.938"} <= set(texts)
    assert any(text.startswith("least: ") for text in texts)


def test_dollar_signs_are_no_formulas() -> None:
    """An odd and an even number of them, in names, groups, title and metric."""
    rows = [row(name, "member", 0.5, 0.1, metric="$m$") for name in ("$a_1$", "b$", r"\$c$")]
    run = summary(rows, title="$\\frac{", metrics=("$m$",))
    for figure in (plots.pareto_plot(run), plots.group_plot(run)):
        from matplotlib.text import Text

        for text in figure.findobj(Text):
            assert text._preprocess_math(text.get_text())[1] is not True


def test_bits_are_better_upwards_and_axes_say_what_they_show() -> None:
    axes = plots.pareto_plot(predicted(2)).axes[0]
    assert axes.yaxis_inverted()
    assert axes.get_ylabel() == "bits per byte (lower is better)"
    figure = plots.pareto_plot(full(2))
    assert not figure.axes[0].yaxis_inverted()
    assert figure.axes[0].get_ylabel() == "accuracy, % (higher is better)"
    assert figure.axes[0].get_xlabel() == "seconds per item"
    assert figure.axes[-1].get_xlabel() == "not timed"
    assert "n = 200" in figure.get_suptitle()
    assert "choice" in figure.get_suptitle()


def test_the_axis_of_seconds_is_logarithmic_where_the_span_asks_for_it() -> None:
    assert plots.pareto_plot(full(6)).axes[0].get_xscale() == "log"
    assert plots.pareto_plot(summary(members(2))).axes[0].get_xscale() == "linear"


def test_groups_stand_by_the_score_of_the_ensemble() -> None:
    axes = plots.group_plot(full(2)).axes[0]
    labels = [t.get_text().replace("\\", "").replace("\n", " ") for t in axes.get_yticklabels()]
    by = full(2).rows[-1].by_group
    assert labels == sorted(by, key=lambda g: -by[g].mean)


def test_many_groups_are_cut_and_counted() -> None:
    groups = tuple(f"g{i}" for i in range(57))
    figure = plots.group_plot(summary([row("a", "ensemble", 0.5, 0.1, groups=groups)]))
    assert "30 of 57 groups" in figure.get_suptitle()
    assert len(figure.axes[0].get_yticks()) == 30


@pytest.mark.parametrize("kind", PLOTS)
def test_equal_runs_give_equal_files(kind: str, tmp_path: Path) -> None:
    written = [plots.save(PLOTS[kind](predicted(3)), tmp_path / stem) for stem in ("a.1", "b.1")]
    (png, svg), (png2, svg2) = written
    assert (png.name, svg.name) == ("a.1.png", "a.1.svg")
    assert png.read_bytes() == png2.read_bytes()
    assert svg.read_bytes() == svg2.read_bytes()
    assert b"<dc:date>" not in svg.read_bytes()
    ElementTree.fromstring(svg.read_bytes())
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "a.1.png",
        "a.1.svg",
        "b.1.png",
        "b.1.svg",
    ]


def test_settings_of_the_user_change_nothing(tmp_path: Path) -> None:
    import matplotlib

    before = plots.save(plots.pareto_plot(full(2)), tmp_path / "before")
    with matplotlib.rc_context({"font.size": 30, "axes.grid": False, "text.color": "red"}):
        after = plots.save(plots.pareto_plot(full(2)), tmp_path / "after")
        assert matplotlib.rcParams["font.size"] == 30
    assert [p.read_bytes() for p in before] == [p.read_bytes() for p in after]


def test_no_global_figure_is_left() -> None:
    import matplotlib.pyplot

    plots.pareto_plot(full(2))
    assert matplotlib.pyplot.get_fignums() == []


def test_a_plot_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    figure = plots.pareto_plot(full(2))
    (tmp_path / "p.svg").mkdir()  # the second file cannot be put in place
    with pytest.raises(OSError, match=r"p\.svg"):
        plots.save(figure, tmp_path / "p")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.png", "p.svg"]
    with pytest.raises(FileNotFoundError):
        plots.save(figure, tmp_path / "missing" / "p")


def test_what_cannot_be_drawn_is_said() -> None:
    empty = summary([])
    for draw, word in ((plots.pareto_plot, "score"), (plots.group_plot, "group")):
        with pytest.raises(ConfigError, match=word):
            draw(empty)
    with pytest.raises(ConfigError, match="curve"):
        plots.weight_plot(full(2))


def test_missing_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'logitfuse\[eval\]'"):
        plots.pareto_plot(full(2))


def test_percent_only_for_shares() -> None:
    assert scale(full(2), "accuracy").percent
    assert not scale(predicted(2), "bits per byte").percent
    off = replace(full(2).rows[0], scores={"accuracy": interval(-1.5)})
    assert not scale(summary([off]), "accuracy").percent
    assert scale(full(2), "accuracy").text(-0.00001, signed=True) == "0.0"


# -- geometry ------------------------------------------------------------------------------------

points = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=8
).map(lambda p: np.array(p, np.float64))  # fmt: skip


@given(points, st.booleans())
def test_front_is_what_nothing_beats(cloud: Any, lower: bool) -> None:
    sign = -1 if lower else 1
    front = {tuple(p) for p in pareto_front(cloud, lower_is_better=lower)}
    for p in cloud:
        beaten = any(
            q[0] <= p[0] and sign * q[1] >= sign * p[1] and tuple(q) != tuple(p) for q in cloud
        )
        assert (tuple(p) in front) == (not beaten)


@given(points, st.booleans())
def test_hull_is_above_every_mixture_of_two(cloud: Any, lower: bool) -> None:
    sign = -1 if lower else 1
    hull = mixing_hull(cloud, lower_is_better=lower)
    assert {tuple(p) for p in hull} <= {tuple(p) for p in cloud}
    for a in cloud:
        for b in cloud:
            x, y = (a + b) / 2
            best = sign * np.interp(x, hull[:, 0], hull[:, 1])
            assert best >= sign * y - 1e-9


sizes = st.tuples(st.floats(5, 60), st.floats(5, 30), st.floats(0, 400), st.floats(0, 300))


@settings(deadline=None, max_examples=40)
@given(st.lists(sizes, max_size=8))
def test_labels_have_places_of_their_own(given_labels: list[tuple[float, ...]]) -> None:
    area = Box(0, 0, 400, 300)
    labels = [Label(w, h, (x, y), 5.0) for w, h, x, y in given_labels]
    markers = [Box(x - 3, y - 3, x + 3, y + 3) for _, _, x, y in given_labels]
    boxes, farthest = place(labels, area, obstacles=markers)
    assert np.isfinite(farthest)
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert not any(a.overlaps(m) for a in boxes for m in markers)
    for box, label in zip(boxes, labels, strict=True):
        assert box.x1 - box.x0 == pytest.approx(label.width)
        assert area.x0 <= box.x0
        assert box.x1 <= area.x1 + 1e-9
        assert area.y0 <= box.y0
        assert box.y1 <= area.y1 + 1e-9


def test_too_little_room_is_told() -> None:
    labels = [Label(80, 80, (50, 50), 5.0)] * 2
    boxes, farthest = place(labels, Box(0, 0, 100, 100))
    assert len(boxes) == 2
    assert farthest == np.inf


def test_a_free_label_stands_beside_its_point() -> None:
    (box,), farthest = place([Label(40, 10, (100, 100), 6.0)], Box(0, 0, 400, 300))
    assert (box.x0, box.y0) == (106, 95)
    assert farthest < 8


@given(st.text(max_size=200), st.integers(4, 30), st.integers(1, 4))
def test_wrapped_names_fit(text: str, width: int, lines: int) -> None:
    rows = wrap(text, width, lines).split("\n")
    assert len(rows) <= lines
    assert all(len(r) <= width for r in rows)


def test_wrapping_keeps_all_that_fits_and_both_ends_of_what_does_not() -> None:
    assert wrap("gemma-3-270m", 24, 3) == "gemma-3-270m"
    assert wrap(LONG, 24, 3).replace("\n", "") == LONG
    assert wrap("start" + "x" * 100 + "end", 10, 2).replace("\n", "").startswith("start")
    assert wrap("start" + "x" * 100 + "end", 10, 2).endswith("end")
    assert len(GROUPS) == len({wrap(g, 18, 2) for g in GROUPS})
