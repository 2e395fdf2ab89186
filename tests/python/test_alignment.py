"""Alignment against a dictionary of byte strings, on random and on real vocabularies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from logitfuse.alignment import Alignment, align
from logitfuse.errors import VocabError
from logitfuse.vocab import TokenKind, Vocab
from numpy.typing import NDArray
from strategies_core import byte_strings, plain, vocabs

SPELLING = ("text", "byte")
TEXT = (
    "The quick brown fox jumps over the lazy dog. 12345 naïve café, 你好，世界!\n"
    "def add(a, b):\n    return a + b  # sum\n"
).encode()


def strings(vocab: Vocab) -> set[bytes]:
    """The distinct byte strings that a vocabulary can emit."""
    return {text for text, kind in zip(*plain(vocab), strict=True) if kind in SPELLING and text}


def canonical_tokens(vocab: Vocab) -> dict[bytes, int]:
    """The token that stands for each string: text before byte, then the lowest."""
    found: dict[bytes, int] = {}
    texts, kinds = plain(vocab)
    for wanted in SPELLING:
        for token, (text, kind) in enumerate(zip(texts, kinds, strict=True)):
            if kind == wanted and text:
                found.setdefault(text, token)
    return found


def check_union(vocabs: Sequence[Vocab]) -> None:
    """Everything that an alignment of different vocabularies says, by brute force."""
    alignment = align(vocabs)
    assert not alignment.identical
    union = sorted(set().union(*map(strings, vocabs)))
    ends = any(len(vocab.end_ids) for vocab in vocabs)
    assert alignment.end == (len(union) if ends else None)
    assert len(alignment) == len(union) + ends
    assert [alignment.symbol_bytes(symbol) for symbol in range(len(union))] == union
    number = {text: symbol for symbol, text in enumerate(union)}
    for text in union[:: 1 + len(union) // 1000]:
        assert alignment.lookup(text) == number[text]
        absent = text + b"\xc1"
        assert alignment.lookup(absent) == number.get(absent)
    for member, vocab in enumerate(vocabs):
        texts, kinds = plain(vocab)
        to_symbol = [
            len(union) if kind == "end" else number[text] if kind in SPELLING else -1
            for text, kind in zip(texts, kinds, strict=True)
        ]
        to_token = np.full(len(alignment), -1)
        for text, token in canonical_tokens(vocab).items():
            to_token[number[text]] = token
        if len(vocab.end_ids):
            to_token[-1] = vocab.end_ids[0]
        check_maps(alignment, member, np.array(to_symbol), to_token)


def check_maps(
    alignment: Alignment, member: int, to_symbol: NDArray[Any], to_token: NDArray[Any]
) -> None:
    """The maps are as expected, inverse to each other, and say what the single look-ups say."""
    np.testing.assert_array_equal(alignment.to_symbol(member), to_symbol)
    np.testing.assert_array_equal(alignment.to_token(member), to_token)
    has = np.flatnonzero(to_token >= 0)
    np.testing.assert_array_equal(to_symbol[to_token[has]], has)
    for symbol in has[:: 1 + len(has) // 500].tolist():
        assert alignment.twin(member, symbol) == to_token[symbol]
        assert alignment.symbol(member, int(to_token[symbol])) == symbol
    for lacks in np.flatnonzero(to_token < 0)[:100].tolist():
        assert alignment.twin(member, lacks) is None
    for token in np.flatnonzero(to_symbol < 0)[:100].tolist():
        assert alignment.symbol(member, token) is None


def check_identical(vocab: Vocab, members: int) -> None:
    """One vocabulary for all: no maps, symbols are canonical tokens."""
    alignment = align([vocab] * members)
    assert alignment.identical
    assert len(alignment) == len(vocab)
    assert alignment.end == (vocab.end_ids[0] if len(vocab.end_ids) else None)
    assert alignment.to_symbol(0) is alignment.to_token(members - 1) is None
    for token in range(len(vocab)):
        same = vocab.duplicates(token)
        assert alignment.symbol(members - 1, token) == (same[0] if same else None)
        assert alignment.twin(0, token) == (token if same and same[0] == token else None)
    for text, token in canonical_tokens(vocab).items():
        assert alignment.lookup(text) == token
        assert alignment.symbol_bytes(token) == text
    if alignment.end is not None:
        assert alignment.symbol_bytes(alignment.end) == b""


class TestMade:
    @given(st.lists(vocabs(), min_size=2, max_size=4))
    def test_union(self, members: list[Vocab]) -> None:
        if all(vocab == members[0] for vocab in members):
            check_identical(members[0], len(members))
        else:
            check_union(members)

    @given(vocabs(), st.integers(1, 3))
    def test_identical(self, vocab: Vocab, members: int) -> None:
        check_identical(vocab, members)

    def test_equal_vocabularies_need_not_be_the_same_object(self) -> None:
        assert align([Vocab([b"a", b"b"]), Vocab([b"a", b"b"])]).identical
        assert not align([Vocab([b"a", b"b"]), Vocab([b"b", b"a"])]).identical

    @given(vocabs(), byte_strings)
    def test_lookup_of_anything(self, vocab: Vocab, text: bytes) -> None:
        for alignment in (align([vocab]), align([vocab, Vocab([b"a", b"zz"])])):
            known = set().union(*map(strings, alignment.vocabs))
            symbol = alignment.lookup(text)
            assert (symbol is not None) == (text in known)
            if symbol is not None:
                assert alignment.symbol_bytes(symbol) == text

    def test_one_member_may_have_no_end(self) -> None:
        alignment = align([Vocab([b"a"]), Vocab([b"b", b"</s>", b"<eot>"], end_ids=[1, 2])])
        assert alignment.end == 2
        assert alignment.twin(0, 2) is None
        assert alignment.twin(1, 2) == 1
        assert [alignment.symbol(1, token) for token in range(3)] == [1, 2, 2]

    def test_control_tokens_do_not_match_text(self) -> None:
        control = Vocab([b"a", b"<s>"], [TokenKind.TEXT, TokenKind.CONTROL])
        alignment = align([control, Vocab([b"a", b"<s>"])])
        assert alignment.symbol(0, 1) is None
        symbol = alignment.symbol(1, 1)
        assert symbol is not None
        assert alignment.twin(0, symbol) is None

    def test_no_members(self) -> None:
        with pytest.raises(VocabError, match="at least one"):
            align([])

    @pytest.mark.parametrize("n", [1, 2])
    def test_out_of_range(self, n: int) -> None:
        alignment = align([Vocab([b"a", b"b"]), Vocab([b"b", b"a"])][:n])
        for symbol in (-1, 2):
            with pytest.raises(IndexError, match=f"symbol {symbol} is not in a union of 2"):
                alignment.symbol_bytes(symbol)
            with pytest.raises(IndexError, match=f"symbol {symbol} "):
                alignment.twin(0, symbol)
            with pytest.raises(IndexError, match=f"token {symbol} "):
                alignment.symbol(0, symbol)
        for use in (alignment._core.to_symbol, alignment._core.to_token):
            with pytest.raises(IndexError, match=f"member {n} is not among {n}"):
                use(n)
        with pytest.raises(IndexError, match=f"member {n} "):
            alignment.symbol(n, 0)

    def test_maps_are_read_only_and_outlive_the_alignment(self) -> None:
        to_symbol = align([Vocab([b"a", b"b"]), Vocab([b"b"])]).to_symbol(0)
        assert to_symbol is not None
        assert to_symbol.tolist() == [0, 1]
        with pytest.raises(ValueError, match="read-only"):
            to_symbol[0] = 1

    def test_repr(self) -> None:
        ab, b = Vocab([b"a", b"b"]), Vocab([b"b"])
        assert repr(align([ab, b])) == "Alignment(2 + 1 tokens -> 2 symbols)"
        assert repr(align([b, b])) == "Alignment(1 + 1 tokens -> 1 symbols, identical)"
        assert repr(align([b])) == "Alignment(1 tokens -> 1 symbols)"


@pytest.fixture(scope="module")
def real(smollm2_path: Path) -> dict[str, Vocab]:
    """Byte-level BPE and SentencePiece, of different sizes."""
    paths = {
        name: models.vocab_dir() / f"ggml-vocab-{name}.gguf"
        for name in ("gpt-2", "llama-spm", "qwen2", "phi-3", "command-r")
    }
    paths["smollm2"] = smollm2_path
    return {name: Vocab.from_gguf(path) for name, path in paths.items()}


class TestReal:
    @pytest.mark.parametrize(
        "names",
        [
            ("gpt-2", "llama-spm"),
            ("llama-spm", "phi-3"),
            ("smollm2", "qwen2", "gpt-2"),
            ("command-r", "qwen2"),
        ],
        ids="+".join,
    )
    def test_union(self, real: dict[str, Vocab], names: tuple[str, ...]) -> None:
        check_union([real[name] for name in names])

    def test_a_file_read_twice_is_identical(
        self, real: dict[str, Vocab], smollm2_path: Path
    ) -> None:
        assert align([real["smollm2"], Vocab.from_gguf(smollm2_path)]).identical


def token_ends(vocab: Vocab, text: bytes) -> set[int]:
    """Where tokens end in the text, counted from its end, as a space may come before it."""
    tokens = vocab.tokenize(text)
    left = [len(vocab.join(tokens[n:])) for n in range(1, len(tokens) + 1)]
    return {len(text) - rest for rest in left} - {0}


class TestCoverage:
    @given(st.lists(vocabs(), min_size=1, max_size=3))
    def test_types(self, members: list[Vocab]) -> None:
        coverage = align(members).coverage()
        sets = [strings(vocab) for vocab in members]
        want = [[len(a & b) / len(a) for b in sets] for a in sets]
        np.testing.assert_allclose(coverage.types, want)
        assert coverage.emitted is coverage.boundaries is coverage.common is None

    def test_a_vocabulary_without_strings_is_covered(self) -> None:
        coverage = align([Vocab([b"</s>"], end_ids=[0]), Vocab([b"a"])]).coverage()
        assert coverage.types.tolist() == [[1, 1], [0, 1]]

    def test_use(self, real: dict[str, Vocab]) -> None:
        members = [real[name] for name in ("gpt-2", "llama-spm", "qwen2")]
        coverage = align(members).coverage(TEXT)
        assert coverage.emitted is not None
        assert coverage.boundaries is not None
        sets = [strings(vocab) for vocab in members]
        ends = [token_ends(vocab, TEXT) for vocab in members]
        for a, vocab in enumerate(members):
            used = [vocab.token_bytes(token) for token in vocab.tokenize(TEXT)]
            for b in range(len(members)):
                assert coverage.types[a, b] == pytest.approx(len(sets[a] & sets[b]) / len(sets[a]))
                assert coverage.emitted[a, b] == pytest.approx(
                    np.mean([text in sets[b] for text in used])
                )
                assert coverage.boundaries[a, b] == pytest.approx(
                    len(ends[a] & ends[b]) / len(ends[a])
                )
        assert coverage.common == pytest.approx(
            len(set.intersection(*ends)) / len(set.union(*ends))
        )
        # Most words are one token everywhere, also for the one that puts a space before the text.
        assert coverage.boundaries.min() > 0.7
        assert coverage.common > 0.5

    def test_one_vocabulary_twice(self, real: dict[str, Vocab]) -> None:
        coverage = align([real["llama-spm"]] * 2).coverage(TEXT)
        for shares in (coverage.types, coverage.emitted, coverage.boundaries):
            assert np.all(shares == 1)
        assert coverage.common == 1

    def test_an_empty_text(self, real: dict[str, Vocab]) -> None:
        coverage = align([real["gpt-2"], real["qwen2"]]).coverage(b"")
        assert coverage.emitted is not None
        assert np.all(coverage.emitted == 1)

    def test_needs_a_tokenizer(self) -> None:
        with pytest.raises(VocabError, match="no tokenizer"):
            align([Vocab([b"a"])]).coverage(b"a")
