"""Alignment: the union of the members' byte strings, and one end symbol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from logitfuse import _core
from logitfuse.errors import PromptError
from logitfuse.vocab import TokenKind, Vocab


@dataclass(frozen=True)
class Coverage:
    """How well vocabularies fit together; all figures are shares between 0 and 1.

    Attributes
    ----------
    types : float64 array, shape ``[members, members]``
        ``types[a, b]``: share of a's distinct strings that b can spell with one token.
    emitted : float64 array, shape ``[members, members]``, or None
        ``emitted[a, b]``: share of the tokens a uses for the text that have a twin in b.
    boundaries : float64 array, shape ``[members, members]``, or None
        ``boundaries[a, b]``: share of a's token ends in the text that are token ends of b too.
    common : float or None
        Share of all token ends in the text that are token ends of every member.
    """

    types: NDArray[np.float64]
    emitted: NDArray[np.float64] | None = None
    boundaries: NDArray[np.float64] | None = None
    common: float | None = None


class Alignment:
    """What joins N vocabularies; made by `align`.

    Its *symbols* are the distinct byte strings that any member can emit as one token, in
    lexicographic order, and then the end: all end tokens of a member are one symbol, tokens of
    equal bytes are one symbol, control and unused tokens are none.

    When all vocabularies are equal there are no maps at all: a symbol is the token id itself.
    """

    def __init__(self, vocabs: Sequence[Vocab]) -> None:
        self.vocabs = tuple(vocabs)
        self._core = _core.Alignment([vocab._core for vocab in self.vocabs])

    def __len__(self) -> int:
        """Number of symbols."""
        return len(self._core)

    def __repr__(self) -> str:
        sizes = " + ".join(str(len(vocab)) for vocab in self.vocabs)
        same = ", identical" if self.identical and len(self.vocabs) > 1 else ""
        return f"Alignment({sizes} tokens -> {len(self)} symbols{same})"

    @property
    def identical(self) -> bool:
        """Whether all vocabularies are equal (symbols are token ids)."""
        return self._core.identical

    @property
    def end(self) -> int | None:
        """The end symbol, or None where no member has an end token."""
        return None if self._core.end < 0 else self._core.end

    def symbol_bytes(self, symbol: int) -> bytes:
        """Bytes of a symbol; empty for the end symbol.

        Raises
        ------
        IndexError
            There is no such symbol.
        """
        return self._core.symbol_bytes(symbol)

    def spell(self, symbols: Sequence[int]) -> list[bytes]:
        """Bytes of each of these symbols.

        Raises
        ------
        PromptError
            There is no such symbol.
        """
        try:
            return [self.symbol_bytes(symbol) for symbol in symbols]
        except IndexError as error:
            raise PromptError(f"{error}; take symbols from tokenize") from None

    def lookup(self, text: bytes) -> int | None:
        """The symbol that spells exactly these bytes."""
        symbol = self._core.lookup(text)
        return None if symbol < 0 else symbol

    def symbol(self, member: int, token: int) -> int | None:
        """The symbol that a member's token stands for; None for control and unused tokens."""
        symbol = self._core.symbol(member, token)
        return None if symbol < 0 else symbol

    def twin(self, member: int, symbol: int) -> int | None:
        """The token with which a member spells a symbol; None where it has none."""
        token = self._core.twin(member, symbol)
        return None if token < 0 else token

    def to_symbol(self, member: int) -> NDArray[np.int32] | None:
        """Symbol of every token, shape ``[n_tokens]``, -1 for none; None where identical."""
        return None if self.identical else self._core.to_symbol(member)

    def to_token(self, member: int) -> NDArray[np.int32] | None:
        """Token of every symbol, shape ``[n_symbols]``, -1 for none; None where identical."""
        return None if self.identical else self._core.to_token(member)

    def coverage(self, text: bytes | None = None) -> Coverage:
        """How well the vocabularies fit together, by type and, given a text, by use.

        Type coverage says little: what counts is the share of *emitted* tokens with a twin and of
        *boundaries* in common, on text like the one to be generated.

        Parameters
        ----------
        text : bytes, optional
            UTF-8; needs vocabularies that can tokenize.
        """
        n = len(self.vocabs)
        types = np.ones((n, n))
        strings = [self._strings(member) for member in range(n)]
        for a in range(n):
            for b in range(n):
                if len(strings[a]):
                    types[a, b] = np.isin(strings[a], strings[b], assume_unique=True).mean()
        if text is None:
            return Coverage(types)
        tokens = [vocab.tokenize(text) for vocab in self.vocabs]
        ends = [
            _ends(vocab, ids, len(text)) for vocab, ids in zip(self.vocabs, tokens, strict=True)
        ]
        emitted, boundaries = np.ones((n, n)), np.ones((n, n))
        for a in range(n):
            spelled = [self._core.symbol(a, token) for token in tokens[a]]
            for b in range(n):
                has = [s >= 0 and self._core.twin(b, s) >= 0 for s in spelled]
                emitted[a, b] = np.mean(has) if has else 1.0
                boundaries[a, b] = len(ends[a] & ends[b]) / max(1, len(ends[a]))
        every = set.union(*ends)
        common = len(set.intersection(*ends)) / max(1, len(every))
        return Coverage(types, emitted, boundaries, common)

    def _strings(self, member: int) -> NDArray[np.int32]:
        """Symbols other than the end that a member can emit, ascending."""
        kinds = self.vocabs[member].kinds
        tokens = np.flatnonzero((kinds == TokenKind.TEXT) | (kinds == TokenKind.BYTE))
        to_symbol = self.to_symbol(member)
        if to_symbol is not None:
            return np.unique(to_symbol[tokens])
        canonical = [self._core.symbol(member, int(token)) for token in tokens]
        return np.unique(np.asarray(canonical, np.int32))


def _ends(vocab: Vocab, tokens: Sequence[int], length: int) -> set[int]:
    """Where tokens end in a text of this length; some vocabularies put a space before it."""
    ends = list(accumulate(len(vocab.token_bytes(token)) for token in tokens))
    added = ends[-1] - length if ends else 0
    return {end - added for end in ends if end > added}


#: By the identities of their vocabularies.
_known: WeakValueDictionary[tuple[int, ...], Alignment] = WeakValueDictionary()


def align(vocabs: Sequence[Vocab]) -> Alignment:
    """Join vocabularies by the exact bytes of their tokens.

    Parameters
    ----------
    vocabs : sequence of Vocab
        One per member, in member order.

    Returns
    -------
    Alignment

    Raises
    ------
    VocabError
        The sequence is empty.

    Notes
    -----
    The same vocabulary objects give the same alignment, as long as anybody holds it.
    """
    key = tuple(id(vocab) for vocab in vocabs)  # they live as long as their alignment does
    alignment = _known.get(key)
    if alignment is None:
        _known[key] = alignment = Alignment(vocabs)
    return alignment
