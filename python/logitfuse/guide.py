"""Along a reply that is constrained: which tokens may follow it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from logitfuse.cache import common_prefix
from logitfuse.constraint import Constraint
from logitfuse.errors import ConfigError
from logitfuse.grammar import LIMITS, library, reason, tokenizer
from logitfuse.kept import Kept
from logitfuse.vocab import TokenKind, Vocab

if TYPE_CHECKING:
    from logitfuse.member import Member

#: Grammars that a vocabulary keeps compiled: small ones, or up to 30 MB each.
_COMPILED = 16


class Guide:
    """Says of every text that a reply may begin with which tokens may come next.

    The grammar is followed byte by byte, so that a text may be cut into any tokens.  Texts may be
    asked about in any order; one that begins with the last one, or nearly so, costs little.

    Parameters
    ----------
    constraint : Constraint
    vocabs : sequence of Vocab
        Of the members.
    """

    def __init__(self, constraint: Constraint, vocabs: Sequence[Vocab]) -> None:
        self._constraint = constraint
        self._vocabs = tuple(vocabs)
        self._walks: dict[int, _Walk] = {}  # of the members that were asked

    def allowed(self, member: int, text: bytes) -> bytes:
        """A member's tokens that may follow a text, a bit each, from the lowest on.

        The end tokens are among them where the text may end.

        Raises
        ------
        ConfigError
            The grammar has become too complex, or leads nowhere.
        """
        return self._walk(member, text).allowed

    def complete(self, member: int, text: bytes) -> bool:
        """Whether nothing but the end may follow a text; it does not depend on the member.

        Raises
        ------
        ConfigError
            As for `allowed`.
        """
        return self._walk(member, text).complete

    def _walk(self, member: int, text: bytes) -> _Walk:
        if member not in self._walks:
            self._walks[member] = _Walk(self._constraint, self._vocabs[member].lexicon)
        self._walks[member].go(text)
        return self._walks[member]


def guide_for(constraint: Constraint | None, members: Sequence[Member]) -> Guide | None:
    """The guide along a reply of these members, if it is constrained."""
    return None if constraint is None else Guide(constraint, [m.vocab for m in members])


def prepare(constraint: Constraint | None, vocabs: Sequence[Vocab]) -> None:
    """Do what takes a while before replies can be guided, so that none has to wait for it.

    Any thread may do so.  A `Guide` does it itself for what is not, or no longer, prepared.

    Parameters
    ----------
    constraint : Constraint or None
        None: nothing is to be done.
    vocabs : sequence of Vocab
        Of the members.
    """
    if constraint is not None:
        for vocab in vocabs:
            vocab.lexicon.matcher(constraint)


class Lexicon:
    """A vocabulary for grammars to follow: its tokens, then the 256 bytes, then one end.

    Attributes
    ----------
    tokenizer : llguidance.LLTokenizer
    first_byte, end : int
        Ids of the byte 0 and of the end.
    end_ids : list of int
        The vocabulary's own end tokens.
    """

    def __init__(self, vocab: Vocab) -> None:
        spells = np.isin(vocab.kinds, (TokenKind.TEXT, TokenKind.BYTE)).tolist()
        tokens = [vocab.token_bytes(i) if said else b"" for i, said in enumerate(spells)]
        self.tokenizer = tokenizer(tokens)
        self.first_byte, self.end = len(tokens), len(tokens) + 256
        self.end_ids: list[int] = vocab.end_ids.tolist()
        self._compiled: Kept[Any] = Kept(_COMPILED)

    def matcher(self, constraint: Constraint) -> Any:
        """An ``llguidance.LLMatcher`` of one's own, before the first byte.

        The first takes up to seconds, the next are copies of it and take less than a millisecond.
        """
        compiled = self._compiled.get(constraint.digest, lambda: self._compile(constraint.grammar))
        return compiled.deep_copy()

    def _compile(self, grammar: str) -> Any:
        lib = library()
        limits = lib.LLParserLimits(**LIMITS)
        matcher = lib.LLMatcher(self.tokenizer, grammar, log_level=0, limits=limits)
        matcher.compute_bitmask()  # copies then know what it takes to compute the first one
        return matcher


class _Walk:
    """Follows one text through a grammar, with one vocabulary.

    Attributes
    ----------
    allowed : bytes
        See `Guide.allowed`.
    complete : bool
        See `Guide.complete`.
    """

    def __init__(self, constraint: Constraint, lexicon: Lexicon) -> None:
        self._lexicon = lexicon
        self._matcher = lexicon.matcher(constraint)
        self._text = b""
        self._look()

    def go(self, text: bytes) -> None:
        """Be behind a text."""
        if text == self._text:
            return
        common = common_prefix(self._text, text)
        self._matcher.rollback(len(self._text) - common)
        self._matcher.consume_tokens([self._lexicon.first_byte + byte for byte in text[common:]])
        self._text = text
        self._look()

    def _look(self) -> None:
        mask = bytearray(self._matcher.compute_bitmask())
        if self._matcher.is_error():
            raise ConfigError(
                f"the grammar cannot be followed behind byte {len(self._text)} of the reply: "
                f"{reason(self._matcher.get_error())}",
                key="grammar",
            )
        end = self._lexicon.end
        self.complete = int.from_bytes(mask, "little") == 1 << end
        if mask[end // 8] >> end % 8 & 1:
            for token in self._lexicon.end_ids:
                mask[token // 8] |= 1 << token % 8
        self.allowed = bytes(mask)
