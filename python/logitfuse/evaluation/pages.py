"""Self-contained pages: templates, what may stand in them, inline drawings."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from logitfuse import _core
from logitfuse.evaluation.labels import visible

_TEMPLATES = Path(__file__).parent / "templates"


def _shown(value: Any) -> Any:
    """What a template writes for a value; text without what HTML cannot hold."""
    if value is None:
        return ""
    return visible(value) if type(value) is str else value  # Markup is ours


def render(name: str, *, title: str, **values: Any) -> str:
    """The page of ``templates/NAME.html`` with the script ``NAME.js`` inside.

    All values are escaped.  The page's security policy allows this one script, and no network.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    script = (_TEMPLATES / f"{name}.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(f"{name}.html").render(
        title=title,
        version=_core.__version__,
        script=Markup(script),
        script_sha256=digest,
        **values,
    )


def inline_svg(svg: str, *, prefix: str, label: str) -> Markup:
    """An SVG file as an element of a page: ids of its own, as wide as its room, with a label.

    `svg` is trusted: what `logitfuse.evaluation.plots.save` wrote.
    """
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}', svg)
    svg = svg.replace("url(#", f"url(#{prefix}")
    # the file's style rules would hold for the whole page
    svg = re.sub(r"(<style[^>]*>)\s*\*\s*\{", rf"\1#{prefix}svg *{{", svg)
    head, body = svg.split(">", 1)
    head = re.sub(r'\s(?:width|height|id)="[^"]*"', "", head)
    label = str(Markup.escape(visible(label)))
    return Markup(f'{head} id="{prefix}svg" role="img" aria-label="{label}">{body}')


def clipped(text: str, most: int) -> str:
    """The text, or its beginning and how much is missing."""
    if len(text) <= most:
        return text
    return f"{text[:most]} … ({len(text) - most:,} more characters)"
