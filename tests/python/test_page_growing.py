"""The page while an answer comes, piece by piece from the test, and when none comes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from browsing import Open, Visit, event
from playwright.sync_api import Route, expect

pytest_plugins = ["page_fixtures"]

END = "data: [DONE]\n\n"
#: Answers come from here instead of the server.
FEED = """() => {
  const ask = window.fetch;
  window.fetch = (path, options) => {
    if (!path.endsWith("completions")) return ask(path, options);
    const start = (feed) => {
      const stopped = () => feed.error(new DOMException("", "AbortError"));
      options.signal.addEventListener("abort", stopped);
      window.say = (text) => feed.enqueue(new TextEncoder().encode(text));
    };
    return Promise.resolve(new Response(new ReadableStream({ start })));
  };
}"""

#: Two frames later.
SHOWN = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


class Feeding:
    """A visit whose answers say what the test says."""

    def __init__(self, tab: Visit) -> None:
        self.tab = tab
        self.page = tab.page
        self.page.evaluate(FEED)

    def begin(self, text: str = "Go.") -> None:
        self.tab.begin(text)
        expect(self.tab.button("Stop")).to_be_visible()

    def say(self, *events: str) -> None:
        """Let these come, and be shown."""
        self.page.evaluate("(text) => window.say(text)", "".join(events))
        self.page.evaluate(SHOWN)

    def lines(self, n: int) -> None:
        self.say(*(event(b"line\n") for _ in range(n)))

    def end(self) -> None:
        self.say(END)
        self.tab.ready()

    @property
    def left(self) -> float:
        """How far the end of the page is below what is seen of it."""
        return self.page.evaluate("document.documentElement.scrollHeight - innerHeight - scrollY")  # type: ignore[no-any-return]

    def wheel(self, dy: int) -> None:
        self.page.mouse.move(400, 200)
        before = self.page.evaluate("scrollY")
        self.page.mouse.wheel(0, dy)
        self.page.wait_for_function("(before) => scrollY !== before", arg=before)
        self.page.wait_for_timeout(300)  # it moves smoothly


@pytest.fixture
def feeding(visit: Open) -> Feeding:
    return Feeding(visit(viewport={"width": 800, "height": 500}).ready())


@pytest.fixture
def focused(feeding: Feeding) -> Callable[[], None]:
    """Checks that the focus is in the field."""
    return lambda: expect(feeding.page.locator("#input")).to_be_focused()


def test_the_end_stays_in_view_until_the_reader_goes_up(feeding: Feeding) -> None:
    feeding.begin()
    feeding.lines(60)
    assert feeding.left < 1
    feeding.wheel(-30)
    assert 0 < feeding.left < 60
    before = feeding.left
    feeding.lines(5)
    assert feeding.left > before + 100
    feeding.wheel(2000)
    assert feeding.left < 1
    feeding.lines(5)
    assert feeding.left < 1
    feeding.end()


def test_nothing_is_done_while_nothing_comes(feeding: Feeding) -> None:
    feeding.begin()
    feeding.lines(3)
    feeding.page.evaluate(
        """() => {
            window.changes = 0;
            new MutationObserver(() => window.changes++).observe(
                document.body, { subtree: true, childList: true, characterData: true }
            );
        }"""
    )
    feeding.page.wait_for_timeout(200)
    assert feeding.page.evaluate("window.changes") == 0
    feeding.lines(1)
    assert feeding.page.evaluate("window.changes") > 0
    feeding.end()


def test_figures_of_what_came_so_far(feeding: Feeding) -> None:
    feeding.begin()
    facts = feeding.tab.one(".facts")
    for i, (decision, fused) in enumerate([("fused", 100), ("agree", 50), ("led", 33)], 1):
        feeding.say(event(b"a", decision, ("smol", "gemma3")))
        expect(facts).to_contain_text(f"{i}\u00a0token")
        expect(facts).to_contain_text(f"{fused}\u00a0% fused")
    feeding.end()
    expect(facts).to_contain_text("33\u00a0% fused")


def test_a_long_answer_is_drawn(feeding: Feeding) -> None:
    """Its numbers are too many to be arguments of a function."""
    feeding.begin()
    feeding.page.evaluate(
        """() => {
            const member = (name) => ({ name, logprob: -1, wish: "a" });
            const members = [..."abcdefghi"].map(member);
            const step = { text: "a", bytes: [97], logprob: -0.5, decision: "fused", members };
            const logitfuse = { steps: Array(14000).fill(step) };
            const choice = { delta: { content: "a".repeat(14000) }, logitfuse };
            window.say(`data: ${JSON.stringify({ choices: [choice] })}\\n\\n`);
        }"""
    )
    feeding.end()
    feeding.tab.button("Likelihood").click()
    expect(feeding.page.locator(".likelihood polyline")).to_have_count(10)


def test_sentences_are_said_when_they_end(feeding: Feeding) -> None:
    feeding.page.evaluate(
        """() => {
            window.spoken = [];
            new MutationObserver((changes) => changes.forEach(({ addedNodes }) =>
                addedNodes.forEach((node) => window.spoken.push(node.data))
            )).observe(document.querySelector("#spoken"), { childList: true });
        }"""
    )
    feeding.begin()
    for piece in ("One", ".", " Tw", "o is 2.5", "! ", "山。川", "？", "नदी।", "x"):
        feeding.say(event(piece.encode()))
    feeding.end()
    assert feeding.page.evaluate("window.spoken") == [
        *("Answering", "One. ", "Two is 2.5! ", "山。", "川？", "नदी।", "x (ended)")
    ]


def test_the_focus_is_never_lost(feeding: Feeding, focused: Callable[[], None]) -> None:
    feeding.page.get_by_role("button", name="Why is the sky blue?").press("Enter")
    focused()
    feeding.say(event(b"So."))
    feeding.tab.button("Stop").press("Enter")
    feeding.tab.ready()
    focused()
    feeding.tab.button("Regenerate").press("Enter")
    focused()
    feeding.say(event(b"So."))
    feeding.tab.button("Stop").focus()
    feeding.end()
    focused()
    feeding.page.fill("#input", "By the button.")
    feeding.tab.button("Send").press("Enter")
    focused()
    feeding.end()


def test_a_touch_brings_up_no_keyboard(visit: Open) -> None:
    feeding = Feeding(visit(has_touch=True).ready())
    feeding.page.get_by_role("button", name="Why is the sky blue?").tap()
    feeding.end()
    feeding.tab.button("Regenerate").tap()
    expect(feeding.page.locator("#input")).not_to_be_focused()
    feeding.end()


def test_input_methods_have_their_keys(feeding: Feeding) -> None:
    """A key that ends a composition neither sends nor stops."""

    def press(key: str) -> None:
        feeding.page.evaluate(
            """(key) => document.querySelector("#input").dispatchEvent(
                new KeyboardEvent("keydown", { key, isComposing: true, bubbles: true })
            )""",
            key,
        )

    feeding.page.fill("#input", "ni hao")
    press("Enter")
    expect(feeding.page.locator(".turn")).to_have_count(0)
    feeding.begin()
    press("Escape")
    feeding.lines(1)
    expect(feeding.tab.button("Stop")).to_be_visible()
    feeding.end()
    feeding.tab.button("Edit").click()
    press("Escape")
    expect(feeding.page.locator("#editing")).to_be_visible()


def test_a_draft_is_not_lost_by_editing(feeding: Feeding) -> None:
    feeding.begin("Said.")
    feeding.end()
    feeding.page.fill("#input", "A draft.")
    edit = feeding.page.locator(".said button")
    edit.press("Enter")
    expect(edit).to_be_hidden()
    expect(feeding.page.locator("#input")).to_have_value("Said.")
    feeding.page.keyboard.press("Escape")
    expect(feeding.page.locator("#input")).to_have_value("A draft.")
    expect(edit).to_be_visible()


@pytest.mark.parametrize("problem", ["429", "stopped"])
def test_an_answer_stays_until_there_is_another(visit: Open, problem: str) -> None:
    tab = visit(forgiving=True).ready()
    tab.set(temperature=0, max_tokens=8)
    answer = tab.say("Stay.")

    def busy(route: Route) -> None:
        if problem == "429":
            body = {"error": {"message": "Too many."}}
            route.fulfill(status=429, headers={"Retry-After": "3"}, json=body)

    tab.page.route("**/v1/chat/completions", busy)
    tab.button("Regenerate").click()
    if problem == "stopped":
        tab.page.keyboard.press("Escape")
    tab.ready()
    alert = tab.page.get_by_role("alert")
    if problem == "429":
        expect(alert).to_contain_text("Too many. Try again in 3\u00a0seconds.")
    else:
        expect(alert).to_be_hidden()
    assert tab.answer == answer
    expect(tab.page.locator(".reply")).to_have_count(1)
    expect(tab.one(".facts")).to_contain_text("8 tokens")
    tab.page.unroute_all()
    tab.page.reload()
    tab.ready()
    assert tab.answer == answer
    tab.say("Go on.")
    assert [m["content"] for m in tab.asked[-1]["messages"]] == ["Stay.", answer, "Go on."]


@pytest.mark.parametrize(
    "stored",
    [
        *('{"a": 1}', '"x"', '["x"]', "[null]", "7"),
        '[{"said": "a", "answer": null}, {"said": "b", "answer": {"text": "x"}}]',
    ],
)
def test_a_conversation_of_another_shape(visit: Open, stored: str) -> None:
    tab = visit().ready()
    tab.page.evaluate("(stored) => sessionStorage.setItem('logitfuse.chat', stored)", stored)
    tab.page.goto("about:blank")  # leaving stores what there is
    tab.page.add_init_script(
        f"if (!window.name) sessionStorage.setItem('logitfuse.chat', {stored!r}); window.name = 'x'"
    )
    tab.page.goto(tab.url)
    tab.ready()
    expect(tab.page.locator("#welcome")).to_be_visible()
    expect(tab.page.locator(".turn")).to_have_count(0)
    tab.set(temperature=0, max_tokens=4)
    tab.say("Still here?")
    expect(tab.one(".facts")).to_contain_text("4 tokens")
