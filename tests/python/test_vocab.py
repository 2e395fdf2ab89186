"""Vocabularies: real ones against the metadata of their files, random ones against brute force."""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import llama_cpp
import llama_cpp.llama_cpp as lib
import models
import numpy as np
import pytest
import reference
from gguf import TokenType
from gguf_reader import read_gguf
from hypothesis import given
from hypothesis import strategies as st
from logitfuse import _core
from logitfuse.errors import (
    FusionError,
    ModelLoadError,
    ModelNotFoundError,
    UnsupportedTokenizerError,
    VocabError,
)
from logitfuse.llama import LlamaModel
from logitfuse.vocab import TokenKind, Vocab
from strategies_core import INF, Row, byte_strings, emitted, plain, rows, vocabs

FILES = (
    *("aquila", "baichuan", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4"),
    *("gpt-2", "gpt-neox", "llama-bpe", "llama-spm", "mpt", "nomic-bert-moe", "phi-3", "qwen2"),
    *("qwen35", "refact", "starcoder", "smollm2", "gemma3"),
)
WORD_START = "\u2581"  # SentencePiece writes it for a space
KINDS = {
    TokenType.NORMAL: TokenKind.TEXT,
    TokenType.UNKNOWN: TokenKind.CONTROL,
    TokenType.CONTROL: TokenKind.CONTROL,
    TokenType.USER_DEFINED: TokenKind.TEXT,
    TokenType.UNUSED: TokenKind.UNUSED,
    TokenType.BYTE: TokenKind.BYTE,
}
TEXTS = [
    "Hello, world!\n  def f(x):\n\treturn x  # 12345\r\n",
    "Grüße, naïve café — “quotes” … 你好，世界。 Привет! ﬁ e\u0301",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f600 \U0010fffd",
    "   leading and   many    spaces, and trailing  ",
    "\x00\x01\x7f\n\n\n",
    "",
    " ",
    "</s> <|endoftext|> <unk> [PAD1] <0x41> <|im_end|>",
]


class Loaded(NamedTuple):
    """A file as llama.cpp and the core see it, and what it says itself."""

    name: str
    model: LlamaModel
    vocab: Vocab
    tokens: list[bytes]
    metadata: dict[str, Any]

    @property
    def rules(self) -> str:
        """Which kind of tokenizer."""
        return str(self.metadata["tokenizer.ggml.model"])


def path_of(name: str) -> Path:
    demo = {"smollm2": models.smollm2, "gemma3": models.gemma3}
    return demo[name]() if name in demo else models.vocab_dir() / f"ggml-vocab-{name}.gguf"


@pytest.fixture(scope="module", params=FILES)
def loaded(request: pytest.FixtureRequest) -> Iterator[Loaded]:
    path = path_of(request.param)
    model = LlamaModel(path, vocab_only=True)
    metadata = read_gguf(path).metadata
    tokens: Any = metadata["tokenizer.ggml.tokens"]
    yield Loaded(request.param, model, Vocab.from_llama(model), tokens, metadata)
    model.close()


def byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes follow at U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = [*map(chr, printable), *(chr(0x100 + n) for n in range(len(others)))]
    return dict(zip(characters, printable + others, strict=True))


BYTE_OF_CHARACTER = byte_of_character()


def spelled(model: str, token: bytes, kind: TokenType) -> bytes:
    """The bytes of a token by the rules of its tokenizer; none if a character is no byte."""
    match model, kind:
        case (_, TokenType.BYTE):
            return bytes([int(token[3:5], 16)])  # <0x41>
        case ("gpt2", TokenType.NORMAL):
            found = [BYTE_OF_CHARACTER.get(character) for character in token.decode()]
            return b"" if None in found else bytes(found)  # type: ignore[arg-type]
        case (_, TokenType.NORMAL):
            return token.replace(WORD_START.encode(), b" ")
    return token


def test_every_file_is_here() -> None:
    found = {path.stem.removeprefix("ggml-vocab-") for path in models.vocab_dir().glob("*.gguf")}
    assert found | {"smollm2", "gemma3"} == {*FILES, "bert-bge"}


class TestRealVocabularies:
    def test_bytes_are_the_files(self, loaded: Loaded) -> None:
        types = loaded.metadata["tokenizer.ggml.token_type"].tolist()
        pairs = zip(loaded.tokens, types, strict=True)
        want = [spelled(loaded.rules, text, kind) for text, kind in pairs]
        got = [loaded.vocab.token_bytes(token) for token in range(len(loaded.vocab))]
        assert len(got) == len(want) == len(loaded.vocab)
        ids = emitted(loaded.vocab).tolist()
        assert [got[i] for i in ids] == [want[i] for i in ids]
        assert not any(b"[UNK_BYTE" in got[i] for i in ids)

    def test_kinds_are_the_files_but_for_what_llama_cpp_knows_better(self, loaded: Loaded) -> None:
        """It also makes control tokens of those with a role, such as fill-in-the-middle."""
        vocab = loaded.model._vocab
        types = loaded.metadata["tokenizer.ggml.token_type"].tolist()
        want = [KINDS[TokenType(kind)] for kind in types]
        for token, text in enumerate(loaded.tokens):
            padding = want[token] == TokenKind.CONTROL and text.startswith(b"<unused")
            if padding or not spelled(loaded.rules, text, types[token]):
                want[token] = TokenKind.UNUSED
        roles = ("bos", "eot", "sep", "pad", "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep")
        special = {getattr(lib, f"llama_vocab_{role}")(vocab) for role in roles}
        ends = [token for token in range(len(want)) if lib.llama_vocab_is_eog(vocab, token)]
        assert loaded.vocab.end_ids.tolist() == ends
        for token in ends:
            want[token] = TokenKind.END
        got = loaded.vocab.kinds.tolist()
        different = {token for token in range(len(want)) if got[token] != want[token]}
        assert different <= special
        assert {got[token] for token in different} <= {TokenKind.CONTROL}

    def test_sorted_order_and_duplicates(self, loaded: Loaded) -> None:
        check_order_and_duplicates(loaded.vocab)

    def test_prefixes(self, loaded: Loaded) -> None:
        check_prefixes(loaded.vocab, [b"", b" ", b" the", b"\xe4", b"\xf0\x9f", b"Zyzzyva"])

    def test_texts_come_back(self, loaded: Loaded) -> None:
        if loaded.name == "nomic-bert-moe":
            pytest.skip("Unigram normalises the text: it joins spaces and characters")
        metadata = {"tokenizer.ggml.add_space_prefix": True} | loaded.metadata
        adds = loaded.rules == "llama" and metadata["tokenizer.ggml.add_space_prefix"]
        for text in TEXTS:
            tokens = loaded.vocab.tokenize(text.encode())
            space = b" " if adds and text else b""
            assert loaded.vocab.join(tokens) == space + text.encode()
            assert set(loaded.vocab.kinds[tokens]) <= {TokenKind.TEXT, TokenKind.BYTE}
            lengths = loaded.vocab._core.lengths(tokens)
            assert lengths == [len(loaded.vocab.token_bytes(token)) for token in tokens]


def check_order_and_duplicates(vocab: Vocab) -> None:
    """`sorted_ids`, `lookup`, `duplicates` and `canonical` against sorting and a dictionary."""
    texts = [vocab.token_bytes(token) for token in range(len(vocab))]
    kinds = vocab.kinds.tolist()
    spelling = [t for t, kind in enumerate(kinds) if kind in (TokenKind.TEXT, TokenKind.BYTE)]
    order = sorted(spelling, key=lambda t: (texts[t], kinds[t] != TokenKind.TEXT, t))
    assert vocab.sorted_ids.tolist() == order
    same: dict[bytes | None, list[int]] = defaultdict(list)
    for token in order:
        same[texts[token]].append(token)
    same[None] = vocab.end_ids.tolist()
    assert same[None] == [token for token, kind in enumerate(kinds) if kind == TokenKind.END]
    shared = [group for group in same.values() if len(group) > 1]
    assert sorted(vocab._core.duplicates()) == sorted(group[0] for group in shared)
    some = shared + list(same.values())[:: 1 + len(same) // 2000]
    for group in some:
        for token in group:
            assert vocab.duplicates(token) == group
            assert vocab._core.canonical(token) == group[0]
    for text in {texts[token] for group in some for token in group}:
        assert vocab.lookup(text) == (same[text][0] if same.get(text) else None)
    for kind in (TokenKind.CONTROL, TokenKind.UNUSED):
        for token in np.flatnonzero(vocab.kinds == kind)[:100].tolist():
            assert vocab.duplicates(token) == []
            assert vocab._core.canonical(token) == -1


def check_prefixes(vocab: Vocab, prefixes: list[bytes]) -> None:
    texts = [vocab.token_bytes(token) for token in vocab.sorted_ids.tolist()]
    for prefix in prefixes:
        first, last = vocab.prefix_range(prefix)
        inside = [i for i, text in enumerate(texts) if text.startswith(prefix)]
        assert list(range(first, last)) == inside
        assert vocab.lookup(prefix) == next(
            (t for i, t in enumerate(vocab.sorted_ids.tolist()) if texts[i] == prefix), None
        )


@pytest.fixture(scope="module")
def command_r() -> Vocab:
    return Vocab.from_gguf(path_of("command-r"))


class TestSpecialCases:
    def test_long_tokens(self, command_r: Vocab) -> None:
        longest = max(command_r.sorted_ids.tolist(), key=lambda t: len(command_r.token_bytes(t)))
        text = command_r.token_bytes(longest)
        assert len(text) == 512
        assert command_r.lookup(text) == longest
        assert command_r.tokenize(text) == [longest]

    def test_tokens_that_no_byte_spells_are_unused(self, command_r: Vocab) -> None:
        """They hold characters outside the byte alphabet: llama.cpp gives [UNK_BYTE_0x...]."""
        assert command_r.kinds[264] == TokenKind.UNUSED
        assert command_r.token_bytes(264) == b""
        assert 264 not in command_r.tokenize("\u200d".encode())

    def test_tokens_that_are_not_utf8(self) -> None:
        vocab = Vocab.from_gguf(path_of("gpt-2"))
        token = vocab.lookup(b"\xf0\x9f")
        assert token is not None
        assert vocab.token_bytes(token) == b"\xf0\x9f"

    def test_every_byte_has_a_token(self) -> None:
        """As a text token where there is one, and else in the byte fallback."""
        vocab = Vocab.from_gguf(path_of("llama-spm"))
        tokens = [vocab.lookup(bytes([byte])) for byte in range(256)]
        assert None not in tokens
        kinds = {byte: vocab.kinds[token] for byte, token in enumerate(tokens)}
        assert kinds[ord("A")] == TokenKind.TEXT
        assert kinds[0xFF] == TokenKind.BYTE

    def test_wordpiece_is_refused(self) -> None:
        with pytest.raises(UnsupportedTokenizerError, match="WordPiece") as raised:
            Vocab.from_gguf(path_of("bert-bge"))
        assert raised.value.model_type == "WordPiece"

    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError) as raised:
            Vocab.from_gguf(tmp_path / "no.gguf")
        assert raised.value.path == tmp_path / "no.gguf"

    def test_not_a_gguf_file(self, tmp_path: Path) -> None:
        (tmp_path / "text.gguf").write_text("hello")
        with pytest.raises(ModelLoadError):
            Vocab.from_gguf(tmp_path / "text.gguf")


class TestMade:
    @given(vocabs(max_size=30))
    def test_sorted_order_and_duplicates(self, vocab: Vocab) -> None:
        check_order_and_duplicates(vocab)

    @given(vocabs(max_size=30), byte_strings)
    def test_prefixes(self, vocab: Vocab, prefix: bytes) -> None:
        check_prefixes(vocab, [prefix])

    @given(st.lists(st.tuples(byte_strings, st.sampled_from(TokenKind)), min_size=1, max_size=20))
    def test_what_went_in_comes_out(self, given: list[tuple[bytes, TokenKind]]) -> None:
        tokens = [(b"x", TokenKind.TEXT), *given]
        vocab = Vocab([text for text, _ in tokens], [kind for _, kind in tokens])
        for token, (text, kind) in enumerate(tokens):
            assert vocab.token_bytes(token) == text
            empty = not text and kind in (TokenKind.TEXT, TokenKind.BYTE)
            assert vocab.kinds[token] == (TokenKind.UNUSED if empty else kind)
        ids = list(range(len(tokens)))
        assert vocab.join(ids) == b"".join(text for text, _ in tokens)

    def test_equality(self) -> None:
        vocab = Vocab([b"a", b"b"])
        assert vocab == Vocab([b"a", b"b"])
        assert vocab != Vocab([b"a", b"c"])
        assert vocab != Vocab([b"ab", b""])
        assert vocab != Vocab([b"a", b"b"], end_ids=[1])
        assert vocab != "ab"

    def test_defaults(self) -> None:
        vocab = Vocab([b"a", b"b", b"c"], end_ids=[2])
        assert vocab.kinds.tolist() == [TokenKind.TEXT, TokenKind.TEXT, TokenKind.END]
        assert repr(vocab) == "Vocab(3 tokens, ends with [2])"

    def test_views_are_read_only_and_outlive_their_vocabulary(self) -> None:
        ends = Vocab([b"a", b"b"], end_ids=[1]).end_ids
        assert ends.tolist() == [1]
        with pytest.raises(ValueError, match="read-only"):
            ends[0] = 5

    def test_a_tokenizer_of_ones_own(self) -> None:
        class Letters:
            def tokenize(self, text: bytes) -> list[int]:
                return [b"ab".index(letter) for letter in text]

        assert Vocab([b"a", b"b"], tokenizer=Letters()).tokenize(b"abba") == [0, 1, 1, 0]
        with pytest.raises(VocabError, match="no tokenizer"):
            Vocab([b"a"]).tokenize(b"a")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"tokens": []}, "no token .* can be emitted"),
            ({"tokens": [b""]}, "no token .* can be emitted"),
            ({"tokens": [b"a"], "kinds": [TokenKind.CONTROL]}, "no token .* can be emitted"),
            (
                {"tokens": [b"a"], "kinds": [TokenKind.TEXT] * 2},
                "1 tokens need as many kinds, not 2",
            ),
            ({"tokens": [b"a"], "kinds": [7]}, "token 0 has the unknown kind 7"),
            ({"tokens": [b"a"], "end_ids": [1]}, "end id 1 is not in a vocabulary of 1"),
            ({"tokens": [b"a"], "end_ids": [-1]}, "end id -1"),
        ],
        ids=str,
    )
    def test_refused(self, arguments: Any, message: str) -> None:
        with pytest.raises(VocabError, match=message):
            Vocab(**arguments)

    @pytest.mark.parametrize("offsets", [[], [0], [0, 1, 2, 3], [1, 2, 3], [0, 2, 1], [0, 1, 3]])
    def test_refused_offsets(self, offsets: list[int]) -> None:
        with pytest.raises(VocabError, match="offsets"):
            _core.Vocab(b"ab", np.array(offsets, np.int64), np.zeros(2, np.uint8))

    def test_a_vocabulary_of_nothing_but_an_end(self) -> None:
        assert Vocab([b"</s>"], end_ids=[0]).sorted_ids.tolist() == []

    @pytest.mark.parametrize("token", [-1, 2])
    def test_ids_out_of_range(self, token: int) -> None:
        vocab = Vocab([b"a", b"b"])
        for use in (vocab.token_bytes, vocab.duplicates, vocab._core.canonical):
            with pytest.raises(IndexError, match=f"token {token} is not in a vocabulary of 2"):
                use(token)
        for many in (vocab.join, vocab._core.lengths):
            with pytest.raises(IndexError, match=f"token {token} "):
                many([0, token])


@st.composite
def rows_and_tokens(draw: st.DrawFn) -> tuple[Vocab, Row, int]:
    """A vocabulary, a row, and one of its tokens that spells something."""
    vocab = draw(vocabs())
    return vocab, draw(rows(vocab)), draw(st.sampled_from(vocab.sorted_ids.tolist()))


class TestBoundaryProbability:
    @given(rows_and_tokens())
    def test_is_the_oracles(self, case: tuple[Vocab, Row, int]) -> None:
        vocab, row, token = case
        got = _core.boundary_probability(vocab._core, row, token)
        first, last = vocab.prefix_range(vocab.token_bytes(token))
        if np.all(row[vocab.sorted_ids[first:last]] == -INF):
            assert np.isnan(got)
        else:
            want = reference.boundary_probability(row, *plain(vocab), token)
            # Exponents down to -87 are float32: 87 * 2**-24, and the error of the sums.
            assert got == pytest.approx(want, rel=6e-6, abs=1e-37)

    def test_more_continuations_than_the_core_gathers_at_once(self) -> None:
        rng = np.random.default_rng(1)
        vocab = Vocab([b"a", *(b"a%d" % n for n in range(3000)), b"b", b"a"])
        row = rng.normal(0, 2, len(vocab)).astype(np.float32)
        row[[0, -1]] = 8
        want = reference.boundary_probability(row, *plain(vocab), 0)
        assert 0.1 < want < 0.9
        assert _core.boundary_probability(vocab._core, row, 0) == pytest.approx(want, rel=5e-7)

    def test_what_spells_nothing_ends_for_certain(self) -> None:
        vocab = Vocab([b"a", b"</s>", b"<pad>"], [TokenKind.TEXT, TokenKind.END, TokenKind.CONTROL])
        row = np.zeros(3, np.float32)
        assert [_core.boundary_probability(vocab._core, row, t) for t in (1, 2)] == [1, 1]

    def test_refused(self) -> None:
        vocab = Vocab([b"a", b"b"])._core
        for token in (-1, 2):
            with pytest.raises(VocabError, match=f"token {token} is not in a vocabulary of 2"):
                _core.boundary_probability(vocab, np.zeros(2, np.float32), token)
        for shape in (3, (1, 2)):
            with pytest.raises(FusionError, match="one logit for each of 2 tokens"):
                _core.boundary_probability(vocab, np.zeros(shape, np.float32), 0)
        with pytest.raises(TypeError):
            _core.boundary_probability(vocab, np.zeros(2), 0)


def test_of_a_llama_cpp_model(tiny_models: Mapping[str, Path]) -> None:
    """A loaded ``llama_cpp.Llama`` will do; it is kept alive for its tokenizer."""
    path = tiny_models["llama-spm"]
    vocab = Vocab.from_llama(llama_cpp.Llama(str(path), vocab_only=True, verbose=False))
    gc.collect()
    assert vocab == Vocab.from_gguf(path)
    assert vocab.tokenize(b"Once upon a time") == Vocab.from_gguf(path).tokenize(
        b"Once upon a time"
    )
