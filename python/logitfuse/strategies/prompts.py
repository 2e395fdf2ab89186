"""Prompts as each member reads them: its own tokens, begun and templated as its model wants it."""

from __future__ import annotations

import logging
from typing import Any
from weakref import WeakSet

from logitfuse import chat
from logitfuse.alignment import Alignment
from logitfuse.evidence import spans_of
from logitfuse.llama import LlamaModel
from logitfuse.member import Member
from logitfuse.strategies.base import Prompt
from logitfuse.text import from_character

_log = logging.getLogger("logitfuse")

#: Models without a chat template, of which that has been said.
_noticed: WeakSet[LlamaModel] = WeakSet()


def render(member: Member, prompt: Any, alignment: Alignment) -> Prompt:
    """A member's own tokens for a prompt, and what else ends its replies.  For any thread.

    Parameters
    ----------
    member : Member
    prompt : str, bytes, sequence of int or of messages
        See `Request.prompt`.
    alignment : Alignment
        Whose symbols the ints are.

    Raises
    ------
    PromptError
        It is empty, malformed, or refused by the chat template.
    """
    if isinstance(prompt, str | bytes):
        text = prompt.encode("utf-8", "surrogatepass") if isinstance(prompt, str) else prompt
        return Prompt(member.tokenize_prompt(text), text)
    if all(isinstance(item, int) for item in prompt):
        if alignment.identical and len(prompt):  # symbols are tokens
            tokens = member.check_prompt(prompt)
            return Prompt(tokens, member.vocab.join(tokens))
        text = from_character(b"".join(alignment.spell(prompt)))
        return Prompt(member.tokenize_prompt(text), text)
    return _render_chat(member, prompt)


def _render_chat(member: Member, messages: Any) -> Prompt:
    rendered = chat.render(member.model, messages)
    if rendered.plain and member.model not in _noticed:
        _noticed.add(member.model)
        _log.warning(
            "%s has no chat template (a base model?): it reads a plain transcript", member.name
        )
    text = rendered.text.encode("utf-8", "surrogatepass")
    spans = spans_of(chat.check_messages(messages), text)
    return Prompt(member.tokenize_prompt(text), text, rendered.stop, spans)
