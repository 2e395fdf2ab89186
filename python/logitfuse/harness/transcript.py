"""Chats inside the harness, which knows contexts only as text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

#: What a chat written as text begins with; no task does.
_MARK = "\x1elogitfuse chat\x1e"

Prompt = str | list[dict[str, Any]]


def write_chat(messages: Sequence[Mapping[str, str]], *, begun: bool) -> str:
    """A chat as text that `read_context` turns back into messages.

    Every member reads a chat through its own template, so no text could stand for it.

    Parameters
    ----------
    messages : sequence of mapping
    begun : bool
        The last message is the beginning of the reply.
    """
    chat: list[dict[str, Any]] = [dict(message) for message in messages]
    if begun:
        chat[-1]["prefix"] = True
    return _MARK + json.dumps(chat, ensure_ascii=False)


def read_context(context: str) -> Prompt:
    """A plain context as it is, or the messages of a chat.

    What a task adds behind a chat is the beginning of the reply.
    """
    if not context.startswith(_MARK):
        return context
    chat, end = json.JSONDecoder().raw_decode(context, len(_MARK))
    if added := context[end:]:
        begun = chat.pop()["content"] if chat[-1].get("prefix") else ""
        chat.append({"role": "assistant", "content": begun + added, "prefix": True})
    messages: list[dict[str, Any]] = chat
    return messages


def split_space(prompt: Prompt) -> tuple[Prompt, str]:
    """A prompt without the whitespace at its end, and that whitespace: it belongs to what follows.

    Of a chat, that is the whitespace at the end of a begun reply.
    """
    if isinstance(prompt, str):
        kept = prompt.rstrip()
        return kept, prompt[len(kept) :]
    if not prompt[-1].get("prefix"):
        return prompt, ""
    begun = prompt[-1]["content"]
    kept = begun.rstrip()
    return [*prompt[:-1], prompt[-1] | {"content": kept}], begun[len(kept) :]
