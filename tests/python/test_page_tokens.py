"""The tokens of an answer on the page: shades, details, the chart, and streams of every kind."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
from browsing import Open, Visit, event
from playwright.sync_api import Route, expect

pytest_plugins = ["page_fixtures"]


def percent(logprob: float) -> str:
    """A probability as the page writes it."""
    value = 100 * min(1.0, math.exp(logprob))
    if 0 < value < 0.001:
        return "< 0.001\u00a0%"
    return (f"{value:.1f}" if value >= 0.05 or not value else f"{value:.1g}") + "\u00a0%"


class TestTokens:
    def test_export_holds_what_is_shown(self, tab: Visit) -> None:
        answer = tab.say("Show me.")
        trace = tab.export()
        assert trace["text"] == answer
        spelled = b"".join(bytes(step["bytes"]) for step in trace["steps"])
        assert spelled.decode("utf-8", "replace").startswith(answer)
        assert len(trace["steps"]) == tab.page.locator(".answer .unit").count() == 24
        assert trace["finish_reason"] == "length"
        assert trace["request"] == tab.asked[-1]
        assert trace["stats"]["steps"] == 24
        assert trace["usage"]["completion_tokens"] == 24

    def check_card(self, tab: Visit, step: dict[str, Any]) -> None:
        """Whether the open card says what the trace does."""
        card = tab.page.locator("#card")
        expect(card).to_be_visible()
        expect(card.locator(".pooled b")).to_have_text(percent(step["logprob"]))
        assert card.locator("h3 bdi").all_inner_texts() == [m["name"] for m in step["members"]]
        voters = [member for member in step["members"] if member["wish"] is not None]
        lists = card.locator("ol")
        expect(lists).to_have_count(len(voters))
        for i, member in enumerate(voters):
            rows = lists.nth(i).locator("li")
            shown = rows.evaluate_all("rows => rows.map((row) => row.lastChild.textContent)")
            listed = [percent(c["logprob"]) for c in member["candidates"]]
            assert len(listed) == 5
            assert [value for value in shown if value in listed][:5] == listed
            assert len(shown) <= 7
            assert sum(math.exp(c["logprob"]) for c in member["candidates"]) <= 1 + 1e-6
            chosen = lists.nth(i).locator("li.is")
            expect(chosen).to_contain_text("chosen")
            probability = member["logprob"]
            said = "not as one" if probability is None else percent(probability)
            expect(chosen.locator("> span")).to_have_text(said)
            expect(lists.nth(i).get_by_text("wish")).to_have_count(1)

    @pytest.mark.parametrize("model", ["pair", "exact"])
    def test_details_by_keyboard(self, tab: Visit, model: str) -> None:
        tab.page.select_option("#model", model)
        tab.say("By keys.")
        steps = tab.export()["steps"]
        tab.one(".said button").focus()
        tab.page.keyboard.press("Tab")
        for i in range(3):
            self.check_card(tab, steps[i])
            unit = tab.page.locator(".answer .unit").nth(i)
            expect(unit).to_be_focused()
            expect(unit).to_have_attribute("aria-describedby", "card")
            tab.page.keyboard.press("ArrowRight")
        tab.page.keyboard.press("End")
        self.check_card(tab, steps[-1])
        tab.page.keyboard.press("ArrowRight")
        tab.page.keyboard.press("ArrowLeft")
        self.check_card(tab, steps[-2])
        tab.page.keyboard.press("Escape")
        expect(tab.page.locator("#card")).to_be_hidden()
        expect(tab.page.locator(".answer .unit").nth(-2)).to_be_focused()
        tab.page.keyboard.press("Tab")  # one stop for the whole answer
        expect(tab.button("Copy")).to_be_focused()

    def test_details_by_mouse(self, tab: Visit) -> None:
        tab.say("By mouse.")
        steps = tab.export()["steps"]
        i, unit = tab.wide_unit()
        unit.hover()
        self.check_card(tab, steps[i])
        tab.page.mouse.move(2, 2)
        expect(tab.page.locator("#card")).to_be_hidden()
        unit.click()
        tab.page.mouse.move(2, 2)
        tab.page.wait_for_timeout(300)
        self.check_card(tab, steps[i])
        tab.button("Close").click()
        expect(tab.page.locator("#card")).to_be_hidden()
        expect(unit).to_be_focused()

    def test_shades_and_lines_say_what_the_trace_does(self, tab: Visit) -> None:
        tab.say("Look.")
        units = tab.page.locator(".answer .unit")
        for i, step in enumerate(tab.export()["steps"]):
            names = (units.nth(i).get_attribute("class") or "").split()
            voters = [member for member in step["members"] if member["wish"] is not None]
            known = [m["logprob"] for m in voters if m["logprob"] is not None]
            likely = sum(map(math.exp, known)) / len(voters)
            assert f"l{min(4, int(5 * likely))}" in names
            wants = sum(member["wish"] == step["text"] for member in voters)
            line = {0: "none", len(voters): None}.get(wants, "some")
            if len(voters) == 1:
                line = "alone"
            assert {"none", "some", "alone"}.intersection(names) == ({line} if line else set())

    def test_copied_text_is_the_answer(self, visit: Open) -> None:
        tab = visit(permissions=["clipboard-read", "clipboard-write"]).ready()
        tab.set(temperature=0, max_tokens=24)
        answer = tab.say("Copy me.")
        tab.button("Copy").click()
        expect(tab.button("Copied")).to_be_visible()
        assert tab.page.evaluate("navigator.clipboard.readText()") == answer
        tab.page.evaluate("getSelection().selectAllChildren(document.querySelector('.answer'))")
        assert tab.page.evaluate("String(getSelection())").strip() == answer.strip()

    def test_plain(self, tab: Visit) -> None:
        tab.say("Plain.")
        tab.page.locator("#legend summary").click()
        tab.page.get_by_label("Show it in the answers").uncheck()
        shades = tab.page.locator(".answer .unit").evaluate_all(
            "all => all.map((unit) => getComputedStyle(unit).backgroundColor)"
        )
        assert set(shades) == {"rgba(0, 0, 0, 0)"}


class TestChart:
    def test_points_and_tokens_go_together(self, tab: Visit) -> None:
        tab.say("Draw.")
        steps = tab.export()["steps"]
        tab.button("Likelihood").click()
        drawn = [
            i
            for i, step in enumerate(steps)
            if None not in [step["logprob"], *(m["logprob"] for m in step["members"])]
        ]
        chart = tab.page.get_by_role("slider", name=re.compile("Likelihood along"))
        expect(chart).to_have_attribute("aria-valuemax", str(len(drawn)))
        chart.focus()
        chart.press("ArrowRight")
        units = tab.page.locator(".answer .unit")
        expect(units.nth(drawn[1])).to_have_class(re.compile(r"\bat\b"))
        step = steps[drawn[1]]
        bits = [
            -p / math.log(2) for p in (step["logprob"], *(m["logprob"] for m in step["members"]))
        ]
        for value in bits:
            expect(tab.one(".readout")).to_contain_text(f"{value:.2f}")
        tab.look(drawn[2])
        expect(tab.one(".readout")).to_contain_text(f"Token {drawn[2] + 1},")
        expect(chart).to_have_attribute("aria-valuenow", "3")
        expect(chart.locator("polyline")).to_have_count(3)
        dashes = chart.locator("polyline").evaluate_all(
            "lines => lines.map((line) => line.getAttribute('stroke-dasharray'))"
        )
        assert len(set(dashes)) == 3

    def test_figures_are_bits_per_byte(self, tab: Visit) -> None:
        tab.say("Count.")
        steps = tab.export()["steps"]
        tab.button("Likelihood").click()
        columns = [
            (len(s["bytes"]), s["logprob"], *(m["logprob"] for m in s["members"])) for s in steps
        ]
        known = [column for column in columns if None not in column]
        n = sum(column[0] for column in known)
        means = [-sum(column[k] for column in known) / math.log(2) / n for k in (1, 2, 3)]
        labels = tab.page.locator(".likelihood .name tspan").all_text_contents()
        assert labels == [f"{mean:.2f}" for mean in means]
        tab.page.get_by_text("As a table").click()
        rows = tab.page.locator(".likelihood tbody tr")
        expect(rows).to_have_count(len(known))
        cells = rows.first.locator("td.n").all_inner_texts()
        assert cells == [f"{-value / math.log(2):.2f}" for value in known[0][1:]]


class TestStreams:
    """What real members do not say when asked to: streams as a server may send them."""

    def play(self, tab: Visit, *steps: bytes, end: str = "data: [DONE]\n\n") -> str:
        """Let the next answer be these units, and return its text."""
        decoder = "".join(map(event, steps))

        def answer(route: Route) -> None:
            route.fulfill(content_type="text/event-stream", body=decoder + end)

        tab.page.route("**/v1/chat/completions", answer)
        return tab.say("Play.")

    def test_characters_in_pieces(self, tab: Visit) -> None:
        smile = "😀é".encode()
        assert self.play(tab, b"a", smile[:2], smile[2:5], smile[5:], b"\n\n", b"z") == "a😀é\n\nz"
        units = tab.page.locator(".answer .unit")
        assert units.all_inner_texts() == ["a", "", "😀", "é", "\n\n", "z"]
        tab.look(1)
        expect(tab.page.locator("#card .chosen")).to_have_text("bytes F0 9F")
        tab.look(4)
        expect(tab.page.locator("#card .chosen")).to_have_text("⏎⏎")

    def test_markup_stays_text(self, tab: Visit) -> None:
        evil = "<img src=x onerror=alert(1)><script>alert(1)</script>"
        assert self.play(tab, b"<b>", evil.encode()) == "<b>" + evil
        tab.look(1)
        expect(tab.page.locator("#card .chosen")).to_have_text(evil.replace(" ", "␣"))
        assert tab.page.locator("main :is(b, img, script)").count() == 0

    def test_connection_lost(self, tab: Visit) -> None:
        assert self.play(tab, b"What", b" came", end="") == "What came"
        expect(tab.page.get_by_role("alert")).to_contain_text("connection ended")
        expect(tab.one(".facts")).to_contain_text("broken off")

    def test_error_on_the_way(self, tab: Visit) -> None:
        error = {"error": {"message": "gemma3 cannot decode", "type": "server_error"}}
        assert self.play(tab, b"So", end=f"data: {json.dumps(error)}\n\n") == "So"
        expect(tab.page.get_by_role("alert")).to_have_text("gemma3 cannot decode")

    def test_line_endings_and_comments(self, tab: Visit) -> None:
        end = ": still here\r\n\r\ndata: [DONE]\r\n\r\n"
        assert self.play(tab, b"fine", end=end) == "fine"
        expect(tab.page.get_by_role("alert")).to_be_hidden()
