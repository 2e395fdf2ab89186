"""Random vocabularies, rows and steps for the tests of the native core.

Two sizes: Hypothesis draws tiny ones, which shrink to a readable counterexample; NumPy's generator
makes ones of several kernel blocks from a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from logitfuse.alignment import Alignment, align
from logitfuse.vocab import TokenKind, Vocab
from numpy.typing import NDArray
from reference import END, Symbol

INF = float("inf")
EMITTED = (TokenKind.TEXT, TokenKind.BYTE, TokenKind.END)
#: Bytes that spell words, two-byte characters and invalid text.
ALPHABET = b"ab\xc3\xa9\x00\xff"

Row = NDArray[np.float32]
Plain = tuple[list[bytes], list[str]]


def plain(vocab: Vocab) -> Plain:
    """A vocabulary as the oracle wants it: the bytes and the kind of each token."""
    tokens = [vocab.token_bytes(token) for token in range(len(vocab))]
    return tokens, [TokenKind(kind).name.lower() for kind in vocab.kinds]


def emitted(vocab: Vocab) -> NDArray[np.intp]:
    """Ids of the tokens that can be emitted."""
    return np.flatnonzero(np.isin(vocab.kinds, EMITTED))


@dataclass(frozen=True)
class Step:
    """What one fused step is given."""

    vocabs: Sequence[Vocab]
    rows: Sequence[Row]
    weights: Sequence[float]

    @cached_property
    def alignment(self) -> Alignment:
        return align(self.vocabs)

    @cached_property
    def plain(self) -> list[Plain]:
        return [plain(vocab) for vocab in self.vocabs]

    @property
    def present(self) -> list[int]:
        """Members of a weight other than 0."""
        return [m for m, weight in enumerate(self.weights) if weight != 0]

    def reordered(self, order: Sequence[int]) -> Step:
        """The same members in another order."""
        vocabs, rows, weights = (
            [items[m] for m in order] for items in (self.vocabs, self.rows, self.weights)
        )
        return Step(vocabs, rows, weights)

    def weighted(self, weights: Sequence[float]) -> Step:
        return replace(self, weights=weights)

    def by_symbol(self, values: dict[Symbol, float]) -> NDArray[np.float64]:
        """What the oracle says, as an array over the symbols of the alignment."""
        out = np.full(len(self.alignment), -INF)
        for symbol, value in values.items():
            place = self.alignment.end if isinstance(symbol, str) else self.alignment.lookup(symbol)
            assert place is not None
            out[place] = value
        return out


def symbol_of(alignment: Alignment, symbol: int) -> Symbol:
    """A symbol in the words of the oracle."""
    return END if symbol == alignment.end else alignment.symbol_bytes(symbol)


# ---------------------------------------------------------------- Hypothesis: tiny and adversarial

byte_strings = st.lists(st.sampled_from(ALPHABET), max_size=4).map(bytes)
kinds = st.sampled_from([TokenKind.TEXT] * 5 + list(TokenKind))


@st.composite
def vocabs(draw: st.DrawFn, max_size: int = 12) -> Vocab:
    """Vocabularies with duplicates, prefixes, tokens without bytes, any number of ends."""
    tokens = draw(st.lists(st.tuples(byte_strings, kinds), max_size=max_size))
    tokens.insert(draw(st.integers(0, len(tokens))), (b"a", TokenKind.TEXT))
    return Vocab([token for token, _ in tokens], [kind for _, kind in tokens])


@st.composite
def rows(draw: st.DrawFn, vocab: Vocab) -> Row:
    """Rows with ties, -inf and logits of any size; something can be emitted."""
    scale = draw(st.sampled_from([1e-30, 1.0, 1.0, 1.0, 1e4, 1e30]))
    values = st.integers(-30, 30) | st.floats(-30, 30, width=32)
    logits = values.map(lambda value: np.float32(value * scale)) | st.just(np.float32(-INF))
    row = draw(hnp.arrays(np.float32, len(vocab), elements=logits))
    some = draw(st.sampled_from(emitted(vocab).tolist()))
    row[some] = draw(values.map(lambda value: np.float32(value * scale)))
    return row


@st.composite
def steps(draw: st.DrawFn, max_members: int = 4) -> Step:
    """Steps of members with different or, now and then, with one vocabulary."""
    n = draw(st.integers(1, max_members))
    different = st.lists(vocabs(), min_size=n, max_size=n)
    members = draw(different | vocabs().map(lambda vocab: [vocab] * n))
    weights = draw(st.lists(st.just(0.0) | st.floats(0.01, 100), min_size=n, max_size=n))
    weights[draw(st.integers(0, n - 1))] = draw(st.floats(0.01, 100))
    return Step(members, [draw(rows(vocab)) for vocab in members], weights)


@st.composite
def signed_steps(draw: st.DrawFn) -> Step:
    """Steps for a contrast: some weights are negative, one is not."""
    step = draw(steps())
    signs = draw(st.lists(st.sampled_from([-1, 1]), min_size=len(step.weights), max_size=4))
    signs[draw(st.sampled_from(step.present))] = 1
    return step.weighted([s * w for s, w in zip(signs, step.weights, strict=False)])


# -------------------------------------------------------------------- NumPy: several kernel blocks


def random_vocab(rng: np.random.Generator, size: int) -> Vocab:
    """About `size` tokens: duplicates, several ends, and holes that cannot be emitted."""
    lengths = rng.integers(1, 5, size)
    letters = rng.choice(np.frombuffer(ALPHABET, np.uint8), lengths.sum())
    tokens = [part.tobytes() for part in np.split(letters, np.cumsum(lengths)[:-1])]
    share = [0.9, 0.04, 0.01, 0.03, 0.02]
    return Vocab(tokens, rng.choice(list(TokenKind), size, p=share).tolist())


def random_row(rng: np.random.Generator, vocab: Vocab, shape: str = "normal") -> Row:
    """A row of a named shape; `SHAPES` lists them."""
    n = len(vocab)
    row = rng.normal(0, 4, n)
    some = rng.choice(emitted(vocab), 3, replace=False)
    match shape:
        case "tiny":
            row *= 1e-38
        case "huge":
            row *= 1e30
        case "ties":
            row = np.round(row)
        case "constant":
            row[:] = 7
        case "one-hot":
            row = np.full(n, -200.0)
            row[some[0]] = 0
        case "forbidden":
            row[rng.random(n) < 0.9] = -INF
            row[some] = [1, 2, 3]
        case "one-finite":
            row = np.full(n, -INF)
            row[some[0]] = -1e30
    row[~np.isin(vocab.kinds, EMITTED)] = np.nan  # never read
    return row.astype(np.float32)


SHAPES = ("normal", "tiny", "huge", "ties", "constant", "one-hot", "forbidden", "one-finite")


def random_step(seed: int, *shapes: str, sizes: Sequence[int] = (300, 900, 1500)) -> Step:
    """A step of one member per shape, `sizes` in turn, weights from a Dirichlet distribution."""
    rng = np.random.default_rng(seed)
    members = [random_vocab(rng, sizes[m % len(sizes)]) for m in range(len(shapes))]
    rows = [random_row(rng, vocab, shape) for vocab, shape in zip(members, shapes, strict=True)]
    return Step(members, rows, rng.dirichlet(np.ones(len(shapes))).tolist())
