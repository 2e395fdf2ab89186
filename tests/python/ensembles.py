"""What the tests of `Ensemble` share."""

from __future__ import annotations

from typing import Any

PROMPT = "Once upon a time"
CHAT = [{"role": "user", "content": "Hello there"}]
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12}


def text(response: Any) -> str:
    """The text of an answer, of either kind."""
    choice = response["choices"][0]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])
