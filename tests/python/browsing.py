"""A browser that visits the page of a server, and watches itself doing so."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from logitfuse.batching import Batcher
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request, expect

#: Of the server that asks for a key.
SECRET = "open sesame ✓"


#: What a server answers with, or what loads it.
Source = Batcher | Callable[[], Batcher]
Serve = Callable[..., str]
Open = Callable[..., "Visit"]


_DECODER = codecs.getincrementaldecoder("utf-8")()


def event(unit: bytes, decision: str = "agree", names: Sequence[str] = ("smol",)) -> str:
    """A chunk of a stream that brings one unit."""
    text = unit.decode("utf-8", "replace")
    best = {"text": text, "bytes": list(unit), "logprob": -0.1}
    member = {"logprob": -0.1, "wish": text, "candidates": [best]}
    step = {"text": text, "bytes": list(unit), "logprob": -0.1, "decision": decision}
    choice = {
        "delta": {"content": _DECODER.decode(unit)},
        "logitfuse": {"steps": [step | {"members": [member | {"name": name} for name in names]}]},
    }
    return f"data: {json.dumps({'choices': [choice]})}\n\n"


class Visit:
    """The page in a tab of its own.

    Attributes
    ----------
    page : Page
    asked : list of dict
        Bodies of the requests for an answer.
    complaints : list of str
        What the browser's console says, and requests to anybody but the server.  One that is
        `forgiving` does not mind that the server refuses something.
    """

    def __init__(
        self, browser: Browser, url: str, *, forgiving: bool = False, **options: Any
    ) -> None:
        self.url = url
        self._forgiving = forgiving
        self.asked: list[dict[str, Any]] = []
        self.complaints: list[str] = []
        self.context = browser.new_context(**options)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._asks)
        self.page.goto(url)

    def _heard(self, message: ConsoleMessage) -> None:
        forgiven = self._forgiving and message.text.startswith("Failed to load resource")
        if message.type in ("error", "warning") and not forgiven:
            self.complaints.append(message.text)

    def _asks(self, request: Request) -> None:
        if urlsplit(request.url)[:2] != urlsplit(self.url)[:2] and request.url[:5] != "blob:":
            self.complaints.append(f"asks {request.url}")
        if request.method == "POST" and request.post_data:
            self.asked.append(json.loads(request.post_data))

    def one(self, selector: str) -> Locator:
        """The last element of this kind."""
        return self.page.locator(selector).last

    def button(self, name: str) -> Locator:
        """The last button of this name."""
        return self.page.get_by_role("button", name=name, exact=True).last

    def ready(self) -> Visit:
        """Wait until the page knows what is served, and no answer is coming."""
        self.page.wait_for_function(
            "() => document.querySelector('#lineup').textContent"
            " && document.querySelector('#stop').hidden"
        )
        return self

    def begin(self, text: str) -> None:
        """Send a message by the keyboard."""
        self.page.fill("#input", text)
        self.page.press("#input", "Enter")

    def say(self, text: str) -> str:
        """Send a message, and return the whole answer."""
        self.ready()
        self.begin(text)
        self.ready()
        return self.answer

    @property
    def answer(self) -> str:
        """The text of the last answer, as it can be copied."""
        return self.one(".answer").evaluate("node => node.textContent")  # type: ignore[no-any-return]

    def look(self, i: int) -> Locator:
        """Go to a token of the last answer by the keyboard."""
        self.one(".answer .unit[tabindex='0']").press("Home")
        for _ in range(i):
            self.page.keyboard.press("ArrowRight")
        unit = self.one(".answer").locator(".unit").nth(i)
        expect(unit).to_be_focused()
        return unit

    def wide_unit(self) -> tuple[int, Locator]:
        """A token that a pointer can reach, and its index."""
        units = self.one(".answer").locator(".unit")
        index: int = units.evaluate_all(
            r"all => all.findIndex((unit) => /^\s?\w\w/.test(unit.textContent))"
        )
        assert index >= 0
        return index, units.nth(index)

    def export(self) -> dict[str, Any]:
        """What Export saves of the last answer."""
        with self.page.expect_download() as download:
            self.button("Export").click()
        trace: dict[str, Any] = json.loads(Path(download.value.path()).read_text("utf-8"))
        return trace

    def set(self, **fields: Any) -> None:
        """Settings as a user changes them, by the names of their fields."""
        if not self.page.locator("#settings").is_visible():
            self.button("Settings").click()
        for name, value in fields.items():
            field = self.page.locator(f"#form [name={name}]")
            if field.evaluate("node => node.localName") == "select":
                field.select_option(value)
            else:
                field.fill(str(value))
        self.button("Close settings").click()
