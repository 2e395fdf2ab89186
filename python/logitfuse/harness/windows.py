"""What fits the members' contexts: long documents in windows, long contexts cut at the left."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

from logitfuse.errors import ContextLengthError
from logitfuse.member import Member

#: Tokens that stay free besides one for each branch: a text may have to be followed in more tokens
#: than its canonical ones.
_SPARE = 16
#: Most characters of a token, on the average of a window; and of what is seen before one.
_CHARACTERS = 32


class Room:
    """How much text the contexts of all members hold.

    Parameters
    ----------
    members : sequence of Member
        Those that run.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._tokens = {m: m.n_ctx - m.context.n_branches - _SPARE for m in members}
        self._smallest = min(self._tokens.values())

    def holds(self, prompt: str, text: str = "", spare: int = 0) -> bool:
        """Whether a prompt, a text behind it, and so many tokens besides fit."""
        n_bytes = len((prompt + text).encode("utf-8", "surrogatepass"))
        if n_bytes + spare < self._smallest:  # no token has less than a byte
            return True
        return all(
            _count(member, prompt, text) + spare <= tokens
            for member, tokens in self._tokens.items()
        )

    def end_of(self, prompt: str, text: str = "", spare: int = 0) -> str:
        """The longest end of a prompt that leaves room for what follows."""
        if self.holds(prompt, text, spare):
            return prompt
        n = self._most(len(prompt), lambda n: self.holds(prompt[len(prompt) - n :], text, spare))
        return prompt[len(prompt) - n :]

    def before_reply(self, prompt: str, length: int) -> str:
        """The longest end of a prompt that leaves room for a reply, or half of the context."""
        return self.end_of(prompt, spare=min(length, self._smallest // 2))

    def beginning_of(self, text: str, prompt: str) -> str:
        """The longest beginning of a text that fits behind a prompt.

        Raises
        ------
        ContextLengthError
            Not even one character does.
        """
        n = self._most(len(text), lambda n: self.holds(prompt, text[:n]))
        if n == 0:
            worst = min(self._tokens, key=self._tokens.__getitem__)
            needed = _count(worst, prompt, text[:1]) + worst.n_ctx - self._tokens[worst]
            raise ContextLengthError(member=worst.name, n_tokens=needed, n_ctx=worst.n_ctx)
        return text[:n]

    def _most(self, n: int, fits: Callable[[int], bool]) -> int:
        """The greatest number up to `n` that fits, if all less do."""
        n = min(n, _CHARACTERS * self._smallest)
        return bisect_left(range(1, n + 1), True, key=lambda k: not fits(k))


def windows(room: Room, text: str) -> Iterator[tuple[str, str]]:
    """A document in pieces that are scored, each behind a context that is not.

    As the harness cuts documents: the pieces join to the document, each is as long as possible
    behind the last words of the one before it, and the last one has all the context that fits.
    Pieces end before a space, where the tokens of all members do.

    Yields
    ------
    (context, piece) : (str, str)
    """
    at, context = 0, ""
    while at < len(text):
        piece = room.beginning_of(text[at:], context)
        if at + len(piece) == len(text):
            yield room.end_of(text[:at], piece), piece
            return
        if end := re.search(r"\S(\s+\S*)\Z", piece):
            piece = piece[: end.start(1)]
        yield context, piece
        at += len(piece)
        words = text[:at][-_CHARACTERS:]
        context = re.sub(r"\A\S*\s+(?=\S)", "", words)


def _count(member: Member, prompt: str, text: str) -> int:
    """Tokens of a prompt, at least one, and of a text behind it."""
    n = len(member.tokenize_prompt(prompt)) if prompt else 1
    return n + (len(member.tokenize(text.encode("utf-8", "surrogatepass"))) if text else 0)
