"""Pages: well-formed, escaped, complete in themselves, bounded."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from evaluation_samples import HOSTILE, full, interval, outcomes, predicted, row, summary, unknown
from hypothesis import given, settings
from hypothesis import strategies as st
from logitfuse.evaluation import plots
from logitfuse.evaluation.html import report, trace_page
from logitfuse.evaluation.pages import inline_svg
from logitfuse.evaluation.tracepage import _apart, _ticks

VOID = {"meta", "br", "input", "link", "img", "hr"}


class Page(HTMLParser):
    """A page's elements; fails on tags that do not balance and on ids that occur twice."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: set[str] = set()
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), (tag, attrs)
        self.tags.append((tag, dict(attrs)))
        if (i := dict(attrs).get("id")) is not None:
            assert i not in self.ids, i
            self.ids.add(i)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self.open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self) -> str:
        """All text that is read."""
        return "".join(self.texts)


def check(text: str) -> Page:
    """Well-formed, nothing from outside, only our script, encodable."""
    page = Page(text)
    text.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", text)
    assert not re.search("https?:", re.sub(r'xmlns(:\w+)?="[^"]*"', "", text))
    assert len(page.scripts) == 1
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    for tag, attrs in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "base", "form", "image")
        assert not any(name.startswith("on") or name == "src" for name in attrs)
        for name in ("href", "xlink:href"):
            if (target := attrs.get(name)) is not None:
                assert target[:1] == "#"
                assert target[1:] in page.ids
        for name in ("aria-labelledby", "aria-describedby"):
            assert attrs.get(name) is None or attrs[name] in page.ids
        if attrs.get("http-equiv") == "Content-Security-Policy":
            assert attrs["content"] == (
                f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
            )
    for used in re.findall(r"url\(#([^)]*)\)", text):
        assert used in page.ids
    return page


def svg_of(run: Any, tmp_path: Path) -> dict[str, str]:
    """The three plots of a run as the page is given them."""
    drawn = {"Score": plots.pareto_plot(run), "Groups": plots.group_plot(run)}
    if run.curves:
        drawn["Weights"] = plots.weight_plot(run)
    return {
        title: plots.save(figure, tmp_path / title)[1].read_text("utf-8")
        for title, figure in drawn.items()
    }


def test_a_report_is_one_page_with_everything(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = full(3)
    page = check(report(run, outcomes(run, 30), plots=svg_of(run, tmp_path)))
    for expected in (run.verdict, run.title, *run.notes, "Xeon", "1.23 GB", "61.0 to 67.0",
                     "+11.0 to +17.0", "12 – 180 – 8", "capitals of the world"):  # fmt: skip
        assert expected in page.text
    assert page.text.index(run.verdict) < page.text.index("61.0 to 67.0")
    assert sum(tag == "svg" for tag, _ in page.tags) == 2
    assert all(f"{r.name}" in page.text for r in run.rows)


def test_a_report_over_text_has_no_items(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = predicted(3)
    page = check(report(run, outcomes(run), plots=svg_of(run, tmp_path)))
    assert "Lower is better" in page.text
    assert "0.938" in page.text
    assert "items" not in page.ids
    assert sum(tag == "svg" for tag, _ in page.tags) == 3


def test_everything_is_escaped() -> None:
    """Wherever a user's text can stand."""
    rows = [row(f"{HOSTILE} {kind}", kind, 0.5 + i / 10, 0.1, groups=(HOSTILE,), metric=HOSTILE)
            for i, kind in enumerate(("member", "ensemble"))]  # fmt: skip
    run = summary(rows, task="exact", title=HOSTILE, metrics=(HOSTILE,), verdict=HOSTILE,
                  notes=(HOSTILE,), machine={HOSTILE: {HOSTILE: HOSTILE}})  # fmt: skip
    said = outcomes(run, 30, question=HOSTILE)
    said = [replace(o, item=HOSTILE + o.item, group=HOSTILE) for o in said]
    failed = [replace(said[0], item=HOSTILE, error=HOSTILE, scores={})]
    svg = '<svg width="1pt" viewBox="0 0 1 1"><g id="a"/></svg>'
    page = check(report(run, said + failed, plots={HOSTILE: svg}))
    assert page.text.count('<script>alert("1")</script>') > 30
    assert "\u2400\u2407\u241b[31m" in page.text
    assert "\ufffd" in page.text


def test_the_same_run_gives_the_same_page() -> None:
    run = full(2)
    assert report(run, outcomes(run)) == report(run, iter(outcomes(run)))


def test_items_that_differ_are_counted_and_listed() -> None:
    run = full(2)  # member-b is the better one
    metric = "accuracy"

    def said(item: str, ensemble: float, best: float) -> list[Any]:
        both = [o for o in outcomes(run, 1) if o.contender in ("ensemble", "member-b")]
        scores = {"ensemble": ensemble, "member-b": best}
        return [replace(o, item=item, scores={metric: scores[o.contender]}) for o in both]

    given_outcomes = [*said("won1", 1, 0), *said("won2", 1, 0), *said("lost", 0, 1),
                      *said("both", 1, 1), *said("none", 0, 0)]  # fmt: skip
    given_outcomes += [replace(o, item="half", scores={}) for o in said("half", 1, 1)[:1]]
    page = check(report(run, given_outcomes))
    assert "2 won, 1 lost, of 5 items" in page.text
    listed = [attrs["data-outcome"] for tag, attrs in page.tags if "data-outcome" in attrs]
    assert listed == ["win", "win", "loss"]
    assert "✓ member-b" in page.text
    assert "✗ member-b" in page.text


def test_long_runs_give_bounded_pages() -> None:
    run = full(2)
    many = outcomes(run, 3000, question="long " * 20_000)
    many += [replace(o, error="no memory " * 1000, scores={}) for o in many[:200]]
    text = report(run, many)
    page = check(text)
    assert len(text) < 3_000_000
    assert len([1 for _, attrs in page.tags if "data-outcome" in attrs]) == 300
    assert re.search(r"[\d,]+ more are in the outcome table", page.text)
    assert "more characters)" in page.text
    assert "200 outcomes failed; the first 50" in re.sub(r"\s+", " ", page.text)


def test_answers_without_known_fields_are_shown_as_json() -> None:
    run = full(2)
    bare = [replace(o, data={"scores": [1, 2], "question": "why?"}) for o in outcomes(run)]
    assert '{"scores": [1, 2]}' in check(report(run, bare)).text


def test_rows_without_figures_have_dashes() -> None:
    empty = replace(full(2).rows[0], scores={}, over_best={}, by_group={}, seconds=None,
                    tokens={}, tokens_per_s=None, record=(0, 0, 0))  # fmt: skip
    page = check(report(summary([empty], notes=()), []))
    assert "–" in page.text
    assert "groups" not in page.ids
    check(report(summary([]), []))
    run = summary([unknown("a", "member"), unknown("e", "ensemble")])
    assert "nan" not in check(report(run, outcomes(run))).text.lower()


def test_plots_in_one_page_share_no_ids() -> None:
    svg = (
        '<?xml version="1.0"?><!DOCTYPE svg PUBLIC "x" "http://www.w3.org/x.dtd"><!-- a > b -->'
        '<svg xmlns="http://www.w3.org/2000/svg" width="9pt" height="9pt" viewBox="0 0 9 9">'
        "<metadata>http://purl.org</metadata>"
        '<defs><style type="text/css">*{fill: red}</style><g id="m"/></defs>'
        '<g clip-path="url(#m)"><use href="#m"/></g></svg>'
    )
    run = full(2)
    page = check(report(run, [], plots={"a": svg, "b": svg}))
    assert {"plot0-m", "plot1-m", "plot0-svg", "plot1-svg"} <= page.ids
    inline = inline_svg(svg, prefix="p-", label='say "hi" <b>')
    assert "#p-svg *{fill" in inline.replace("* {", "*{")
    assert 'aria-label="say &#34;hi&#34; &lt;b&gt;"' in inline
    assert "9pt" not in inline


# -- the trace -----------------------------------------------------------------------------------


def step(text: str, decision: str, wishes: list[str | None], logprob: float | None = -1.0) -> Any:
    """A step as `trace_entry` writes it."""
    return {
        "text": text,
        "bytes": list(text.encode("utf-8", "replace")),
        "logprob": logprob,
        "decision": decision,
        "members": [
            {"name": f"m{i}", "logprob": None if wish is None else -0.5 * (i + 1), "wish": wish}
            for i, wish in enumerate(wishes)
        ],
    }


def trace(steps: list[Any], **changes: Any) -> dict[str, Any]:
    """A trace of two members."""
    text = "".join(s["text"] for s in steps)
    parts = {"prompt": "Why?", "text": text, "members": ["m0", "m1"], "forced": False,
             "steps": steps, "summary": {"bits_per_byte": 0.91234}}  # fmt: skip
    return parts | changes


STEPS = [
    step("The", "agree", ["The", "The"]),
    step(" cat", "fused", [" cat", " dog"]),
    step(" sat", "fused", [" lay", " was"], -2.0),
    step(" on", "led", [" on", None]),
    step(".\n", "certain", [".\n", "!"]),
    step("", "agree", ["", ""]),
]


def test_a_trace_shows_every_unit_and_who_wanted_it() -> None:
    page = check(trace_page(trace(STEPS)))
    units = [attrs for _, attrs in page.tags if str(attrs.get("class", "")).startswith("unit ")]
    assert [str(attrs["class"]) for attrs in units] == [
        "unit agree", "unit fused", "unit fused new", "unit led", "unit certain", "unit agree",
    ]  # fmt: skip
    assert all(attrs["tabindex"] == "0" for attrs in units)
    assert all(attrs["aria-describedby"] in page.ids for attrs in units)
    text = re.sub(r"\s+", " ", page.text)
    assert "fused 2 (33 %)" in text
    assert "agree 2 (33 %)" in text
    assert "led 1 (17 %)" in text
    assert "from what m0 would have said1 of 616.7 %" in text
    assert "from what m1 would have said3 of 560.0 %" in text
    assert "from what any member would have said1 of 616.7 %" in text
    assert "≠ “ dog”" in text
    assert "did not vote" in text
    assert "⟨end⟩" in text
    assert "⏎" in text
    assert f"{100 * math.exp(-2):.1f} %" in text
    assert "bits per byte0.9123" in text


def test_a_trace_shows_the_candidates_that_are_listed() -> None:
    listed = step(" cat", "fused", [" cat", None])
    listed["members"][0]["candidates"] = [
        {"text": " cat", "bytes": list(b" cat"), "logprob": math.log(0.625)},
        {"text": "", "bytes": [], "logprob": math.log(0.125)},
    ]
    listed["members"][1]["candidates"] = []
    page = check(trace_page(trace([listed])))
    assert "“ cat” 62.5 %⟨end⟩ 12.5 %" in page.text
    owns = [attrs for _, attrs in page.tags if attrs.get("class") == "own"]
    assert [attrs["aria-label"] for attrs in owns] == ["what m0 found most probable"]


def test_decisions_differ_without_colour() -> None:
    text = trace_page(trace(STEPS))
    lines = dict(re.findall(r"\.(fused|certain|led|new) \{[^}]*text-decoration: ([^;]*);", text))
    assert len(set(lines.values())) == 4


def test_the_drawing_counts_the_steps_in_which_all_have_a_probability() -> None:
    page = check(trace_page(trace(STEPS)))
    assert "Counted are the 5 of 6 steps" in page.text
    bits = 1 / math.log(2)
    for name, nats in (("ensemble", 6.0), ("m0", 2.5), ("m1", 5.0)):
        assert f"{name}: {nats * bits:.1f} bits" in page.text
    lines = [attrs for tag, attrs in page.tags if tag == "polyline"]
    assert len({attrs["stroke-dasharray"] for attrs in lines[1:]}) == 2


@pytest.mark.parametrize(
    "steps", [[], [step("a", "led", ["a", None])], [step("a", "agree", ["a", "a"], 0.0)]]
)
def test_traces_with_little_in_them(steps: list[Any]) -> None:
    check(trace_page(trace(steps, summary={}, forced=True)))


def test_a_trace_is_escaped() -> None:
    hostile = step(HOSTILE, "fused", [HOSTILE, None])
    hostile["members"][0]["name"] = HOSTILE
    page = check(trace_page(trace([hostile], prompt=HOSTILE, text=HOSTILE, members=[HOSTILE, "b"],
                                  summary={HOSTILE: 1.0})))  # fmt: skip
    assert page.text.count('<script>alert("1")</script>') >= 6


def test_pieces_of_characters_are_shown_as_bytes() -> None:
    piece = step("\ufffd", "fused", ["\ufffd", "\ufffd"]) | {"bytes": [0xE2, 0x80]}
    assert "⟨e2 80⟩" in check(trace_page(trace([piece]))).text


def test_long_traces_are_bounded() -> None:
    text = trace_page(trace([step(f"w{i} ", "fused", [f"w{i} ", "x"]) for i in range(5000)]))
    page = check(text)
    assert "w4999 " in page.text
    assert sum(str(attrs.get("class", "")).startswith("unit ") for _, attrs in page.tags) == 3000
    points = next(str(attrs["points"]) for tag, attrs in page.tags if tag == "polyline")
    assert len(points.split()) <= 401


@settings(deadline=None, max_examples=25)
@given(st.text(), st.text(), st.text(), st.floats(-50, 0))
def test_any_text_gives_a_sound_page(unit: str, wish: str, name: str, logprob: float) -> None:
    check(trace_page(trace([step(unit, "fused", [wish, None], logprob)], prompt=wish, text=unit,
                           members=[name, "b"])))  # fmt: skip
    run = summary([row(name, "member", 0.5, 0.1), row(unit, "ensemble", 0.5, 0.1)], title=wish)
    check(report(run, outcomes(run, 3, question=unit)))


@given(st.lists(st.floats(0, 300), min_size=1, max_size=12))
def test_names_of_lines_stand_apart(heights: list[float]) -> None:
    placed = _apart(heights, 300.0)
    ordered = sorted(placed)
    assert ordered[-1] <= 300
    assert all(b - a >= 16 - 1e-9 for a, b in pairwise(ordered))
    order = sorted(range(len(heights)), key=lambda i: (heights[i], placed[i]))
    assert [placed[i] for i in order] == ordered


@given(st.floats(1e-6, 1e9))
def test_ticks_are_few_and_round(top: float) -> None:
    ticks = _ticks(top)
    assert 3 <= len(ticks) <= 8
    assert ticks[0] == 0
    assert ticks[-1] <= top * (1 + 1e-6)
    assert ticks[-1] >= top * 0.6


def test_intervals_of_cost_have_three_digits() -> None:
    r = replace(
        full(2).rows[0], seconds=interval(0.012345, 0.001), tokens={"a": interval(1234567, 1)}
    )
    text = check(report(summary([r]), [])).text
    assert "0.0123" in text
    assert "1,234,567" in text
