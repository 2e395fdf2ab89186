"""Fixtures of the tests of the page: a server of tiny members, and a browser that visits it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from browsing import SECRET, Open, Serve, Source, Visit
from logitfuse.batching import Batcher
from playwright.sync_api import Browser, sync_playwright
from servers import Served, ensembles

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium with a profile of its own; without it the test is skipped, or fails in CI."""
    path = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if path is None:
        reason = f"the tests of the page need Chromium ({', '.join(_NAMES)})"
        if os.environ.get("LOGITFUSE_REQUIRE_CHROMIUM"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def load_members(tiny_models: Mapping[str, Path]) -> Callable[[], Batcher]:
    """Loads tiny members for a server: together in two ways, and one alone."""
    return lambda: Batcher(ensembles(tiny_models), slots=2)


@pytest.fixture(scope="session")
def serve() -> Iterator[Serve]:
    """Starts a server, and returns its address: at once, if it has yet to load its models."""
    with ExitStack() as servers:

        def start(source: Source, **settings: Any) -> str:
            served = Served(source, **settings)
            servers.callback(served.close)
            if isinstance(source, Batcher):
                served.wait_until_ready()
            return f"{served.url}/"

        yield start


@pytest.fixture(scope="session")
def site(serve: Serve, load_members: Callable[[], Batcher]) -> str:
    """Address of a server."""
    return serve(load_members())


@pytest.fixture(scope="session")
def locked(serve: Serve, load_members: Callable[[], Batcher]) -> str:
    """Address of a server that asks for a key."""
    return serve(load_members(), api_key=[SECRET])


@pytest.fixture
def visit(browser: Browser, site: str) -> Iterator[Open]:
    """Opens the page; at the end nobody may have complained, and only the server was asked."""
    visits: list[Visit] = []

    def opened(url: str = site, **options: Any) -> Visit:
        visits.append(Visit(browser, url, **options))
        return visits[-1]

    yield opened
    for visit in visits:
        visit.context.close()
    assert [complaint for visit in visits for complaint in visit.complaints] == []


@pytest.fixture
def tab(visit: Open) -> Visit:
    """The page, ready, with short greedy answers."""
    tab = visit().ready()
    tab.set(temperature=0, max_tokens=24)
    return tab
