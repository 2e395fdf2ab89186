"""The page that the server shows at ``/``: one document, with nothing outside it."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent
#: In this order they are one script.
_SCRIPTS = ("base", "wire", "agreement", "units", "card", "chart", "settings", "reply", "chat")


@cache
def page() -> str:
    """The whole page, style and script inside."""
    html = _read("index.html")
    return html.replace("<style></style>", f"<style>{_style()}</style>").replace(
        "<script></script>", f"<script>{_script()}</script>"
    )


@cache
def policy() -> str:
    """The ``Content-Security-Policy`` of `page`.

    It allows this style, this script and requests to this server; not what an answer may try.
    """
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_digest(_script())}'",
            f"style-src '{_digest(_style())}'",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _style() -> str:
    return _read("page.css")


def _script() -> str:
    """Every script in one function, so that no name is global."""
    parts = "\n".join(_read(f"{name}.js") for name in _SCRIPTS)
    return f'(() => {{\n"use strict";\n{parts}}})();'


def _read(name: str) -> str:
    return (_FOLDER / name).read_text("utf-8")


def _digest(text: str) -> str:
    """How a policy names an inline style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
