"""The page of the server: what is in it, and what it does in a browser, with the real server."""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import logitfuse.server.page
import pytest
from browsing import SECRET, Open, Serve, Visit
from logitfuse.batching import Batcher
from logitfuse.server.page import page, policy
from playwright.sync_api import expect

pytest_plugins = ["page_fixtures"]

FOLDER = Path(logitfuse.server.page.__file__).parent
VOID = {"meta", "link", "input", "circle", "path", "rect"}


class Document(HTMLParser):
    """The elements of the page with their attributes, and what its style and script say."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"style": [], "script": []}
        self.open: list[str] = []
        self.feed(page())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.inside:
            self.inside[self.open[-1]].append(data)

    def values(self, name: str) -> list[str]:
        """Of an attribute, wherever it is."""
        return [attrs[name] or "" for _, attrs in self.elements if name in attrs]


class TestDocument:
    def test_is_one_whole_document(self) -> None:
        document = Document()
        assert page().startswith("<!DOCTYPE html>")
        assert document.open == []
        assert document.values("src") == []
        assert {tag for tag, attrs in document.elements if "href" in attrs} == {"a", "link"}
        assert all(href.startswith(("#", "data:")) for href in document.values("href"))

    def test_names_nobody_elses_address(self) -> None:
        assert set(re.findall(r"https?://[\w./-]+", page())) == {"http://www.w3.org/2000/svg"}
        assert not re.search(r"@import|url\(", page())

    @pytest.mark.parametrize("kind", ["style", "script"])
    def test_policy_allows_what_is_inside(self, kind: str) -> None:
        (content,) = Document().inside[kind]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy().split("; ")

    def test_policy_allows_nothing_else(self) -> None:
        kept = re.sub(r"'sha256-[^']+'", "HASH", policy())
        assert "default-src 'none'" in kept.split("; ")
        assert "unsafe" not in kept
        assert "*" not in kept
        names = {name for _, attrs in Document().elements for name in attrs}
        assert not {name for name in names if name.startswith("on") or name == "style"}

    def test_nothing_becomes_markup(self) -> None:
        script = "".join(Document().inside["script"])
        assert not re.search(r"(inner|outer)HTML|insertAdjacent|document\.write|\beval\b", script)

    def test_holds_every_file(self) -> None:
        for path in [*FOLDER.glob("*.js"), *FOLDER.glob("*.css")]:
            text = path.read_text("utf-8")
            assert text in page(), path.name
            assert text.count("\n") <= 400, path.name

    def test_names_in_it_exist(self) -> None:
        document = Document()
        ids = document.values("id")
        assert len(ids) == len(set(ids))
        script = "".join(document.inside["script"])
        named = re.findall(r"\$\(\"([\w-]+)\"\)", script)
        for name in ("for", "aria-controls", "aria-labelledby", "aria-describedby"):
            named += document.values(name)
        named += [href[1:] for href in document.values("href") if href[0] == "#"]
        assert set(named) <= set(ids)


class TestConversation:
    def test_text_grows_until_it_ends(self, tab: Visit) -> None:
        tab.page.evaluate(
            """() => {
                window.seen = [];
                new MutationObserver(() => window.seen.push([
                    document.querySelector("#stop").hidden,
                    document.querySelector(".answer")?.textContent.length ?? 0,
                ])).observe(document.body, { subtree: true, childList: true, attributes: true });
            }"""
        )
        answer = tab.say("Tell me a story.")
        seen = tab.page.evaluate("window.seen")
        growing = [length for ended, length in seen if not ended]
        assert growing == sorted(growing)
        assert len({length for length in growing if 0 < length < len(answer)}) >= 3
        assert tab.asked[-1]["messages"] == [{"role": "user", "content": "Tell me a story."}]
        expect(tab.one(".facts")).to_contain_text("24 tokens")
        expect(tab.one(".facts")).to_contain_text("cut at a limit")
        expect(tab.page.locator("#spoken")).to_contain_text("cut at a limit")

    def test_goes_on(self, tab: Visit) -> None:
        answers = [tab.say("One."), tab.say("Two.")]
        tab.say("Three.")
        assert [message["content"] for message in tab.asked[-1]["messages"]] == [
            *("One.", answers[0], "Two.", answers[1], "Three.")
        ]
        assert [message["role"] for message in tab.asked[-1]["messages"]][-2:] == [
            *("assistant", "user")
        ]

    def test_stays_over_a_reload_and_ends_with_a_new_chat(self, tab: Visit) -> None:
        answer = tab.say("Stay.")
        shades = tab.page.locator(".unit").evaluate_all("all => all.map((unit) => unit.className)")
        tab.page.reload()
        tab.ready()
        assert tab.answer == answer
        again = tab.page.locator(".unit").evaluate_all("all => all.map((unit) => unit.className)")
        assert again == shades
        tab.button("New chat").click()
        expect(tab.page.locator(".turn")).to_have_count(0)
        expect(tab.page.locator("#welcome")).to_be_visible()
        tab.page.reload()
        expect(tab.page.locator("#welcome")).to_be_visible()

    @pytest.mark.parametrize("how", ["Escape", "button"])
    def test_stop(self, tab: Visit, how: str) -> None:
        tab.page.select_option("#model", "exact")  # takes its time
        tab.set(max_tokens=400)
        tab.begin("Do not end.")
        tab.page.wait_for_function("() => document.querySelectorAll('.answer .unit').length > 3")
        if how == "button":
            tab.button("Stop").dispatch_event("click")
        else:
            tab.page.keyboard.press(how)
        expect(tab.one(".facts")).to_contain_text("stopped by you")
        trace = tab.export()
        assert trace["finish_reason"] == "stopped"
        assert 3 < len(trace["steps"]) < 400
        assert trace["text"] == tab.answer

    def test_regenerate(self, tab: Visit) -> None:
        tab.set(temperature=2, max_tokens=24)
        first = tab.say("Anything.")
        tab.button("Regenerate").click()
        tab.ready()
        assert tab.asked[-1] == tab.asked[-2]
        assert tab.answer != first
        expect(tab.page.locator(".reply")).to_have_count(1)

    def test_edit_the_last_message(self, tab: Visit) -> None:
        kept = tab.say("First.")
        tab.say("Secnd.")
        tab.button("Edit").click()
        expect(tab.page.locator("#input")).to_have_value("Secnd.")
        tab.page.keyboard.press("Escape")
        expect(tab.page.locator("#input")).to_have_value("")
        tab.button("Edit").click()
        tab.say("Second.")
        assert [m["content"] for m in tab.asked[-1]["messages"]] == ["First.", kept, "Second."]
        assert tab.page.locator(".said > p").all_inner_texts()[-1].endswith("Second.")
        expect(tab.page.locator(".turn")).to_have_count(2)

    def test_keys(self, tab: Visit) -> None:
        tab.page.fill("#input", "two")
        tab.page.press("#input", "Shift+Enter")
        tab.page.type("#input", "lines")
        expect(tab.page.locator("#input")).to_have_value("two\nlines")
        tab.page.press("#input", "Enter")
        tab.ready()
        assert tab.asked[-1]["messages"][-1]["content"] == "two\nlines"
        tab.page.fill("#input", "  ")
        tab.page.press("#input", "Enter")
        expect(tab.page.locator(".turn")).to_have_count(1)


class TestSettings:
    def test_as_served_nothing_is_asked(self, visit: Open) -> None:
        tab = visit().ready()
        tab.say("Plainly.")
        assert set(tab.asked[-1]) == {
            *("model", "messages", "stream", "stream_options", "logitfuse")
        }
        assert set(tab.asked[-1]["logitfuse"]) == {"trace", "candidates"}

    def test_fields_go_into_the_request(self, tab: Visit) -> None:
        tab.set(top_p=0.5, seed=7, pool="log-linear", system="Be brief.")
        tab.say("Yes?")
        asked = tab.asked[-1]
        assert asked["messages"][0] == {"role": "system", "content": "Be brief."}
        assert {key: asked[key] for key in ("temperature", "top_p", "max_tokens", "seed")} == {
            "temperature": 0,
            "top_p": 0.5,
            "max_tokens": 24,
            "seed": 7,
        }
        assert asked["logitfuse"]["pool"] == "log-linear"
        tab.page.reload()
        tab.ready()
        tab.button("Settings").click()
        expect(tab.page.locator("#form [name=seed]")).to_have_value("7")
        tab.button("All as served").click()
        expect(tab.page.locator("#form [name=seed]")).to_have_value("")
        expect(tab.page.locator("#form [name=system]")).to_have_value("")

    def test_a_weight_changes_the_answer(self, tab: Visit) -> None:
        together = tab.say("Who speaks?")
        tab.button("Settings").click()
        slider = tab.page.get_by_label("smol", exact=True)
        answers = []
        for key, weights in (("End", (1, 0)), ("Home", (0, 1))):
            slider.press(key)
            tab.button("Regenerate").click()
            tab.ready()
            asked = tab.asked[-1]["logitfuse"]["weights"]
            assert (asked["smol"], asked["gemma3"]) == weights
            answers.append(tab.answer)
        assert len({together, *answers}) == 3
        expect(tab.page.locator("#lineup")).to_have_text("smol 0\u00a0%gemma3 100\u00a0%")

    def test_another_model(self, tab: Visit) -> None:
        tab.page.get_by_role("combobox", name="Model").select_option("one")
        expect(tab.page.locator("#welcome h2")).to_have_text("One model, one answer")
        tab.say("Who?")
        assert tab.asked[-1]["model"] == "one"
        assert {m["name"] for step in tab.export()["steps"] for m in step["members"]} == {"smol"}


class TestComfort:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_colours_follow_the_system_and_the_button(self, visit: Open, scheme: str) -> None:
        tab = visit(color_scheme=scheme).ready()

        def brightness() -> float:
            colour = tab.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
            return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3

        assert (brightness() > 128) == (scheme == "light")
        button = tab.page.locator("#theme")
        seen = {}
        for _ in range(3):
            button.click()
            seen[button.get_attribute("aria-label")] = brightness() > 128
        assert seen == {
            "Colours: light": True,
            "Colours: dark": False,
            "Colours: as the system": scheme == "light",
        }

    @pytest.mark.parametrize("width", [320, 375])
    def test_narrow(self, visit: Open, width: int) -> None:
        tab = visit(viewport={"width": width, "height": 640}, has_touch=True).ready()
        tab.set(temperature=0, max_tokens=24)
        tab.say("W" * 200)
        tab.button("Likelihood").click()
        tab.page.locator("#legend summary").click()
        expect(tab.one(".likelihood svg")).to_be_visible()
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
        tab.wide_unit()[1].tap()
        box = tab.page.locator("#card").bounding_box()
        assert box
        assert (box["x"], box["width"]) == (0, width)
        assert box["y"] + box["height"] == pytest.approx(640, abs=1)
        tab.page.keyboard.press("Escape")
        tab.button("Settings").click()
        expect(tab.page.locator("#settings:modal")).to_be_visible()
        tab.page.keyboard.press("Escape")
        expect(tab.page.locator("#settings")).to_be_hidden()
        expect(tab.button("Settings")).to_be_focused()


class TestFaults:
    def test_refusal_is_shown_and_can_be_repaired(self, visit: Open) -> None:
        tab = visit(forgiving=True).ready()
        tab.set(temperature=0, max_tokens=4)
        tab.say("word " * 3000)
        problem = tab.page.get_by_role("alert")
        expect(problem).to_contain_text("The server refused (400).")
        expect(problem).to_contain_text("token")
        expect(tab.button("Likelihood")).to_have_count(0)
        tab.button("Edit").click()
        tab.say("short")
        expect(problem).to_be_hidden()
        tab.say("more")
        assert len(tab.asked[-1]["messages"]) == 3

    def test_unanswered_messages_are_not_said_again(self, visit: Open) -> None:
        tab = visit(forgiving=True).ready()
        tab.say("word " * 3000)
        tab.set(max_tokens=4)
        tab.say("short")
        assert tab.asked[-1]["messages"] == [{"role": "user", "content": "short"}]

    def test_key(self, visit: Open, locked: str) -> None:
        tab = visit(locked, forgiving=True)
        form = tab.page.locator("#key")
        expect(form).to_be_visible()
        expect(tab.page.locator("#secret")).to_be_focused()
        expect(tab.page.locator("#wrong")).to_be_hidden()
        tab.page.fill("#secret", "wrong")
        tab.button("Use it").click()
        expect(tab.page.locator("#wrong")).to_be_visible()
        tab.page.fill("#secret", SECRET)
        tab.button("Use it").click()
        tab.ready()
        expect(form).to_be_hidden()
        expect(tab.page.locator("#input")).to_be_focused()
        tab.set(temperature=0, max_tokens=4)
        tab.say("Hello.")
        tab.page.evaluate("sessionStorage.setItem('logitfuse.key', '\"stale\"')")
        tab.say("Again?")
        expect(tab.one(".problem")).to_contain_text("401")
        tab.page.fill("#secret", SECRET)
        tab.page.press("#secret", "Enter")
        tab.ready()
        expect(tab.one(".facts")).to_contain_text("4 tokens")
        assert tab.page.evaluate("Object.keys(localStorage).join()").count("key") == 0

    def test_waits_for_the_models(
        self, visit: Open, serve: Serve, load_members: Callable[[], Batcher]
    ) -> None:
        asked = threading.Event()

        def load() -> Batcher:
            asked.wait(60)
            return load_members()

        tab = visit(serve(load), forgiving=True)
        expect(tab.page.get_by_role("status")).to_contain_text("being loaded")
        expect(tab.button("Send")).to_be_disabled()
        asked.set()
        expect(tab.page.locator("#welcome")).to_be_visible(timeout=20_000)
        expect(tab.page.get_by_role("status")).to_be_hidden()

    def test_policy_holds(self, tab: Visit) -> None:
        response = tab.page.request.get(tab.url)
        assert response.headers["content-security-policy"] == policy()
        refused = tab.page.evaluate(
            """async () => {
                const seen = [];
                addEventListener(
                    "securitypolicyviolation", (event) => seen.push(event.effectiveDirective)
                );
                const script = document.createElement("script");
                script.textContent = "window.bad = true";
                const image = document.createElement("img");
                image.src = "http://127.0.0.1:9/x.png";
                const frame = document.createElement("iframe");
                frame.src = "data:text/html,x";
                document.body.append(script, image, frame);
                document.body.setAttribute("style", "color: red");
                await fetch("http://127.0.0.1:9/").catch(() => {});
                await new Promise((done) => setTimeout(done, 100));
                return [seen.toSorted(), window.bad];
            }"""
        )
        assert refused == [
            ["connect-src", "frame-src", "img-src", "script-src-elem", "style-src-attr"],
            None,
        ]
        tab.complaints.clear()
