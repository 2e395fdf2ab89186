"""What the tests of ``logitfuse eval`` share: files, commands, and what they print."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from command_line import changed

ENVIRONMENT = os.environ | {"TERM": "xterm", "PYTHONIOENCODING": "utf-8", "COLUMNS": "160"}
TEXT = "The naïve fox sat — 7 dogs came. 你好 🤖!\n" * 3
CHOICES = [
    {"question": "Where is the fox?", "options": ["Lyon", "Paris"], "answer": "B", "group": "x"},
    {"question": "2 + 2?", "options": ["3", "4", "five"], "answer": "4", "group": "y"},
    {"question": "Is it [/b] or [b]?", "options": ["[/b]", "[b]"], "answer": 0, "group": "y"},
]
SUMS = [{"question": f"What is {k} + {k}?", "answer": 2 * k} for k in range(3)]
Eval = Callable[..., tuple[int, str, str]]


def write(name: str, lines: list[Any]) -> None:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    Path(name).write_text(text + "\n", encoding="utf-8")


def program(*arguments: str, change: str = "") -> list[str]:
    """The command in a process of its own."""
    return changed(change, "eval", *arguments)


def process(*arguments: str, change: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a command in a process of its own."""
    return subprocess.run(
        program(*arguments, change=change),
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
        **options,
    )


def strict(text: str) -> Any:
    """JSON without NaN and infinities."""

    def refuse(literal: str) -> None:
        raise AssertionError(literal)

    return json.loads(text, parse_constant=refuse)


def lasting(summary: dict[str, Any]) -> dict[str, Any]:
    """What a second run finds again: all but time and memory."""
    kept = dict(summary)
    for key in ("machine", "peak_memory", "pareto", "verdict"):
        del kept[key]
    rows = []
    for row in kept["rows"]:
        drop = ("seconds", "tokens_per_s")
        # Whose time it took is a question of luck where several are equally good.
        drop += ("tokens",) if row["kind"] in ("random", "oracle") else ()
        rows.append({key: value for key, value in row.items() if key not in drop})
    return kept | {"rows": rows}
