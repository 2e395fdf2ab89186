"""Readers keep a native `ByteBeam` at the end of a growing text; one of them needs no beam."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from logitfuse import _core
from logitfuse.config import PRUNE
from logitfuse.member import Member

#: Which tokens may follow a reply (see `logitfuse.guide.Guide`).
Allowed: TypeAlias = Callable[[bytes], bytes]


class Reader(Protocol):
    """Keeps a native `ByteBeam` at the end of a growing text."""

    core: _core.ByteBeam

    @property
    def silent(self) -> bool:
        """The member has no belief about what follows (it cannot spell the text)."""

    def open(
        self,
        prompt: Sequence[int],
        *,
        heal: bool,
        ahead: bytes = b"",
        allowed: Allowed | None = None,
    ) -> None:
        """Read a prompt.

        Parameters
        ----------
        prompt : sequence of int
        heal : bool
            Take its last tokens for mere bytes.
        ahead : bytes
            What is known to follow; it may be read ahead, and its tokens are not given up.
        allowed : Allowed, optional
            All other tokens have no probability; a prompt that they follow is not healed.
        """

    def take_kept(self) -> float:
        """The share of the text's probability, 0..1, that was not given up since the last call."""

    def settle(self) -> None:
        """The text has ended: let the member's cache hold what a later prompt may begin with."""

    def follow(self, unit: bytes, reply: bytes, pending: Sequence[bytes], *, wake: bool) -> bool:
        """The text went on with a unit.

        Parameters
        ----------
        unit : bytes
        reply, pending
            The whole text behind the prompt, as for `Member.advance`.
        wake : bool
            What follows is spelled by waiting paths only.

        Returns
        -------
        bool
            False: the context is full.

        Raises
        ------
        DecodeError
        """


class TwoRows:
    """The reader that needs no forward pass but the canonical one.

    The member's own last token may yet turn out to be longer: its row from before that token is
    read as well.  Every other tokenisation is left out.

    Parameters
    ----------
    member : Member
    prune : float
        Share of the text from which a token's end ends a unit.
    """

    def __init__(self, member: Member, *, prune: float = PRUNE) -> None:
        self.member = member
        self.core = _core.ByteBeam(member.vocab.trie, prune=prune, width=2)
        self._known: tuple[int, ...] = ()  # tokens of a text that is known
        self._allowed: Allowed | None = None

    @property
    def silent(self) -> bool:
        """The member stands inside a character that it cannot spell."""
        return self.member.stalled

    def open(
        self,
        prompt: Sequence[int],
        *,
        heal: bool,
        ahead: bytes = b"",
        allowed: Allowed | None = None,
    ) -> None:
        """Read a prompt; to heal it, the row before its last token is read too."""
        self._known = (*prompt, *self.member.tokenize(ahead)) if ahead else ()
        self._allowed = allowed
        self.member.begin(prompt)
        heal = heal and allowed is None  # what is allowed is known from the reply's beginning on
        self._read(heal and self.member.vocab.is_text(prompt[-1]), b"")

    def follow(self, unit: bytes, reply: bytes, pending: Sequence[bytes], *, wake: bool) -> bool:
        """Bring the member to its canonical tokens of the reply."""
        del unit, wake
        if not self.member.advance(reply, pending):
            return False
        if not self.member.stalled:
            self._read(True, reply + b"".join(pending))
        return True

    def settle(self) -> None:
        """It does."""

    def take_kept(self) -> float:
        """All: what these rows leave out is never part of the text's probability."""
        return 1.0

    def _read(self, two: bool, reply: bytes) -> None:
        before = self.member.row_before() if two else None
        allowed = earlier = None
        last = self.member.last_token
        if self._allowed is not None:
            allowed = self._allowed(reply)
            unit = self.member.vocab.token_bytes(last)
            if reply.endswith(unit):
                earlier = self._allowed(reply.removesuffix(unit))
            else:  # the tokenizer drops what it cannot spell
                before = None
        if before is None:
            self.core.row(self.core.begin(), self.member.row, allowed)
        else:
            self.core.two_rows(before, last, self.member.row, earlier, allowed)
        self.core.take_dropped()
        self._expect()

    def _expect(self) -> None:
        """Let a unit end where a token of the known text does."""
        if not self._known:
            self.core.expect(-1, -1)
            return
        tokens, known = self.member.tokens, self._known
        n = len(tokens)
        (first, _), *rest = self.core.shares
        if known[:n] == tokens:
            hypothesis, following = (rest[0][0] if rest else first), known[n : n + 1]
        elif known[: n - 1] == tokens[:-1]:  # the last token is only a piece of one
            hypothesis, following = first, known[n - 1 : n]
        else:
            hypothesis, following = -1, ()
        self.core.expect(hypothesis, next(iter(untwinned(self.member, following)), -1))


def untwinned(member: Member, tokens: Sequence[int]) -> list[int]:
    """What tokens are to a beam, which knows no twins."""
    twin_of = member.vocab._core.canonical
    return [token if twin_of(token) < 0 else twin_of(token) for token in tokens]
