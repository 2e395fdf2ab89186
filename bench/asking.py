"""The questions that benches ask, as a model reads them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from logitfuse.evaluation import facts


@dataclass(frozen=True)
class Question:
    """One question with its choices.

    Attributes
    ----------
    options : tuple of str
        Four different choices of the same kind.
    answer : int
        Index of the right one.
    """

    domain: str
    question: str
    options: tuple[str, ...]
    answer: int

    @property
    def prompt(self) -> bytes:
        """What a model reads."""
        return f"Question: {self.question}\nAnswer:".encode()

    @property
    def continuations(self) -> tuple[bytes, ...]:
        """What is scored after the prompt, by option."""
        return tuple(f" {option}".encode() for option in self.options)


@cache
def questions() -> tuple[Question, ...]:
    """About 100 questions of every domain, domain by domain, always the same ones."""
    return tuple(
        Question(one.group, one.question, one.options, one.answer) for one in facts.questions()
    )
