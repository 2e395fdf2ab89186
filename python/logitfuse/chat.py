"""Messages become a prompt: every member has its own chat template, the reply is shared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from logitfuse.errors import PromptError
from logitfuse.llama import LlamaModel, render_template

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class ChatPrompt:
    """A member's own rendering of a chat.

    Attributes
    ----------
    text : str
        Special tokens in it are to be recognised.
    stop : tuple of str
        What ends a reply besides the end tokens.
    plain : bool
        A transcript: the model has no template.
    """

    text: str
    stop: tuple[str, ...] = ()
    plain: bool = False


def render(model: LlamaModel, messages: Sequence[Mapping[str, Any]]) -> ChatPrompt:
    """Render a chat with the template in a model's file, or as a plain transcript.

    The plain transcript ends with a line break, so that a reply begins as it does behind a
    template: without a space.  A last message of the assistant that is marked ``"prefix": True`` is
    the beginning of the reply.

    Raises
    ------
    PromptError
        A message is malformed or the template refuses the chat.
    """
    chat = check_messages(messages)
    begun = _take_begun(messages, chat)
    template = model.chat_template
    if template is None:
        turns = [f"{message['role'].capitalize()}:\n{message['content']}\n\n" for message in chat]
        text = "".join(turns) + "Assistant:\n" + begun
        return ChatPrompt(text, ("\n\nUser:", "\nUser:\n"), True)
    try:
        return ChatPrompt(render_template(model, template, chat) + begun)
    except Exception as first:
        merged = _without_system(chat)
        if merged == chat:
            raise _refused(model, first) from first
        try:
            return ChatPrompt(render_template(model, template, merged) + begun)
        except Exception as error:
            raise _refused(model, error) from error


def check_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Messages with a known role and plain text content.

    Raises
    ------
    PromptError
        No messages, an unknown role, or content that is not text.
    """
    if not messages:
        raise PromptError("the chat has no messages; give at least one")
    checked = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise PromptError(f"message {i} is {message!r}, not a mapping of role and content")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise PromptError(f"message {i} has role {role!r}; known: {', '.join(ROLES)}")
        text = content
        if isinstance(content, list | tuple):  # OpenAI content parts
            parts: list[Any] = [
                part.get("text") if isinstance(part, Mapping) else part for part in content
            ]
            texts = [part for part in parts if isinstance(part, str)]
            text = "".join(texts) if len(texts) == len(parts) else None
        if not isinstance(text, str):
            raise PromptError(f"message {i} ({role}) has no text content, but {content!r}")
        checked.append({"role": role, "content": text})
    return checked


def _take_begun(messages: Sequence[Mapping[str, Any]], chat: list[dict[str, str]]) -> str:
    """Take the beginning of the reply out of a checked chat."""
    if not messages[-1].get("prefix"):
        return ""
    if len(chat) == 1 or chat[-1]["role"] != "assistant":
        raise PromptError("the beginning of a reply must be the assistant's, and end a chat")
    return chat.pop()["content"]


def _without_system(chat: list[dict[str, str]]) -> list[dict[str, str]]:
    """System text moved into the first user turn: some templates refuse the system role."""
    system = [message["content"] for message in chat if message["role"] == "system"]
    if not system:
        return chat
    rest = [dict(message) for message in chat if message["role"] != "system"]
    for message in rest:
        if message["role"] == "user":
            message["content"] = "\n\n".join([*system, message["content"]])
            return rest
    return [{"role": "user", "content": "\n\n".join(system)}, *rest]


def _refused(model: LlamaModel, error: Exception) -> PromptError:
    return PromptError(f"the chat template of '{model.path.name}' refuses these messages: {error}")
