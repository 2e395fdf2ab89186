"""What the tests of constraints share: languages of a few words, and what may follow in them."""

from __future__ import annotations

import re
from collections.abc import Collection

from hypothesis import strategies as st
from logitfuse.constraint import Constraint, ConstraintKind
from logitfuse.vocab import TokenKind, Vocab

#: One, two and four bytes; the first two begin with the same byte.
LETTERS = "abéè😀"


def untried(kind: ConstraintKind, text: str) -> Constraint:
    """A constraint that has not been tried in a process of its own, which takes a while."""
    constraint = object.__new__(Constraint)
    object.__setattr__(constraint, "kind", kind)
    object.__setattr__(constraint, "text", text)
    return constraint


def one_of(words: Collection[str]) -> Constraint:
    """The language of these words."""
    return untried("regex", "|".join(map(re.escape, sorted(words))))


def may_come(vocab: Vocab, words: Collection[str], text: bytes) -> list[bool]:
    """Which tokens may follow a text, if the whole is to be one of some words."""
    left = [word.encode()[len(text) :] for word in words if word.encode().startswith(text)]
    return [
        b"" in left
        if kind == TokenKind.END
        else kind in (TokenKind.TEXT, TokenKind.BYTE)
        and any(rest.startswith(vocab.token_bytes(token)) for rest in left)
        for token, kind in enumerate(vocab.kinds)
    ]


def bits(allowed: bytes, n: int) -> list[bool]:
    """The first bits of a mask."""
    return [bool(allowed[bit // 8] >> bit % 8 & 1) for bit in range(n)]


def mask_of(allowed: Collection[bool]) -> bytes:
    """The mask of some bits."""
    number = sum(1 << bit for bit, may in enumerate(allowed) if may)
    return number.to_bytes(len(allowed) // 8 + 1, "little")


words = st.text(st.sampled_from(LETTERS), max_size=4)
languages = st.sets(words, min_size=1, max_size=6)
