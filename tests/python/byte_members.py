"""Random members over tiny vocabularies, and how to drive a native `ByteBeam` with their rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from hypothesis import strategies as st
from logitfuse import _core
from logitfuse.vocab import TokenKind, Vocab
from numpy.typing import NDArray
from strategies_core import plain

Floats = NDArray[np.float64]
#: Next to nothing is pruned.
EXACT = {"prune": 1e-9, "width": 1000}


@dataclass(frozen=True)
class RandomMember:
    """A member whose rows are drawn from the seed and the path."""

    vocab: Vocab
    seed: int
    spread: float = 1.0

    @cached_property
    def trie(self) -> _core.ByteTrie:
        return _core.ByteTrie(self.vocab._core)

    def row(self, path: tuple[int, ...]) -> NDArray[np.float32]:
        random = np.random.default_rng([self.seed, *path])
        return random.normal(0, self.spread, len(self.vocab)).astype(np.float32)

    @property
    def oracle(self) -> tuple:  # type: ignore[type-arg]
        """Rows, tokens and kinds, as the oracle wants them."""
        return (self.row, *plain(self.vocab))

    def beam(self, text: bytes = b"", **options: float) -> Driven:
        """A beam behind a text."""
        driven = Driven(self, _core.ByteBeam(self.trie, **(EXACT | options)))  # type: ignore[arg-type]
        driven.begin()
        driven.push(text)
        return driven


class Fixed(RandomMember):
    """A member with one distribution for every place."""

    def __init__(self, vocab: Vocab, p: Sequence[float]) -> None:
        super().__init__(vocab, 0)
        with np.errstate(divide="ignore"):
            object.__setattr__(self, "_row", np.log(np.array(p, np.float32)))

    def row(self, path: tuple[int, ...]) -> NDArray[np.float32]:  # noqa: ARG002
        row: NDArray[np.float32] = self._row  # type: ignore[attr-defined]
        return row


@dataclass
class Driven:
    """A native beam that gets its rows."""

    member: RandomMember
    core: _core.ByteBeam
    paths: dict[int, tuple[int, ...]] = field(default_factory=dict)
    waited: list[float] = field(default_factory=list)  #: the waiting share before each byte
    rows: int = 0

    def begin(self) -> None:
        root = self.core.begin()
        self._forget()
        self.paths[root] = ()
        self._decode()

    def push(self, text: bytes) -> int:
        """All bytes that can be pushed; see `logitfuse.beam.Beam.push`."""
        at = 0
        while at < len(text) and not self.core.dead:
            at += self.core.push(text[at:])
            self._decode()
        return at

    def push_singly(self, text: bytes) -> list[float]:
        """Log-probability of each byte, to the end or the first that cannot be spelled."""
        found: list[float] = []
        for k in range(len(text)):
            while not self.core.dead:
                found[k:] = [float(self.next()[text[k]])]
                self.waited[k:] = [self.core.waiting]
                if self.core.push(text[k : k + 1]):
                    break
                self._decode()  # what waited was woken: it can be asked now
            self._decode()
        return found

    def next(self) -> Floats:
        out = np.empty(_core.BYTE_OUTCOMES, np.float32)
        self.core.next(out)
        return out.astype(np.float64)

    def wake(self) -> None:
        self.core.wake()
        self._decode()

    def _decode(self) -> None:
        for wanted, parent, token in self.core.wanted:
            if token >= 0:
                self.paths[wanted] = (*self.paths[parent], token)
            self.core.row(wanted, self.member.row(self.paths[wanted]))
            self.rows += 1
        self._forget()

    def _forget(self) -> None:
        for dropped in self.core.take_dropped():
            del self.paths[dropped]


def vocab_of(tokens: Sequence[bytes], ends: int = 1) -> Vocab:
    kinds = [TokenKind.TEXT] * len(tokens) + [TokenKind.END] * ends
    return Vocab([*tokens, *[b"</s>"] * ends], kinds)


@st.composite
def members(
    draw: st.DrawFn,
    *,
    alphabet: bytes = b"abc",
    complete: bool = True,
    max_tokens: int = 8,
    length: int = 4,
) -> RandomMember:
    """Members over a few bytes: duplicates, several ends, tokens that are never emitted.

    A complete one can spell all of the alphabet.
    """
    byte_strings = st.lists(st.sampled_from(alphabet), min_size=1, max_size=length).map(bytes)
    kinds = st.sampled_from([TokenKind.TEXT] * 6 + [TokenKind.BYTE, TokenKind.END, *TokenKind])
    tokens = draw(st.lists(st.tuples(byte_strings, kinds), max_size=max_tokens))
    if complete:
        tokens += [(bytes([byte]), TokenKind.TEXT) for byte in alphabet]
    else:
        tokens.append((bytes([alphabet[0]]), TokenKind.TEXT))
    tokens.append((b"</s>", TokenKind.END))
    tokens = draw(st.permutations(tokens))
    vocab = Vocab([token for token, _ in tokens], [kind for _, kind in tokens])
    return RandomMember(vocab, draw(st.integers(0, 999)), draw(st.sampled_from([0.3, 1.0, 2.0])))


def texts(alphabet: bytes = b"abc", max_size: int = 6) -> st.SearchStrategy[bytes]:
    return st.lists(st.sampled_from(alphabet), max_size=max_size).map(bytes)
