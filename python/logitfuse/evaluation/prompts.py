"""How questions are put: as text to be continued, or as a chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter

from logitfuse.errors import ConfigError
from logitfuse.strategies.base import Message

#: The default ways to ask.
OPEN = "Question: {question}\nAnswer:"
LETTERED = "Question: {question}\n{options}\nAnswer:"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_FIELDS = {"question", "options"}


@dataclass(frozen=True)
class Asking:
    """A way to ask.

    Parameters
    ----------
    template : str
        With ``{question}``, and ``{options}`` where they are to be shown, one to a line.
    chat : bool
        The prompt is a user's message, and an answer stands alone; else the answer continues the
        text behind a space.
    system : str
        System message of a chat.
    examples : sequence of (str, str)
        Filled-in templates and their right answers, put before every question.

    Raises
    ------
    ConfigError
        An unknown field in the template, or none for the question.
    """

    template: str
    chat: bool = False
    system: str = ""
    examples: Sequence[tuple[str, str]] = ()

    def __post_init__(self) -> None:
        try:
            parts = list(Formatter().parse(self.template))
        except ValueError as error:
            raise ConfigError(f"the template {self.template!r} is broken: {error}") from None
        fields = {name for _, name, _, _ in parts if name is not None}
        if unknown := fields - _FIELDS:
            raise ConfigError(
                f"the template has the field {{{min(unknown)}}}; known: {{question}}, {{options}}"
            )
        if "question" not in fields:
            raise ConfigError("the template needs {question}")
        try:
            self.fill("")
        except (ValueError, LookupError) as error:  # a format that no text has
            raise ConfigError(f"the template {self.template!r} is broken: {error}") from None

    def fill(self, question: str, options: Sequence[str] = ()) -> str:
        """The template with a question in it."""
        return self.template.format(question=question, options=lettered(options))

    def prompt(self, filled: str) -> str | list[Message]:
        """What a generator is given."""
        if not self.chat:
            shots = "".join(f"{asked} {answer}\n\n" for asked, answer in self.examples)
            return shots + filled
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for asked, answer in self.examples:
            messages.append({"role": "user", "content": asked})
            messages.append({"role": "assistant", "content": answer})
        return [*messages, {"role": "user", "content": filled}]

    def reply(self, answer: str) -> str:
        """An answer as it stands behind the prompt."""
        return answer if self.chat else f" {answer}"

    @property
    def parameters(self) -> Mapping[str, object]:
        """As JSON."""
        return {
            "template": self.template,
            "chat": self.chat,
            "system": self.system,
            "examples": [list(example) for example in self.examples],
        }


def lettered(options: Sequence[str]) -> str:
    """Options, one to a line, with letters, or numbers from 1 if there are too few of these."""
    numbers = [str(k + 1) for k in range(len(options))]
    names = LETTERS if len(options) <= len(LETTERS) else numbers
    return "\n".join(f"{name}. {option}" for name, option in zip(names, options, strict=False))
