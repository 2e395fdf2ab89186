"""Byte-exact vocabularies: token id -> bytes and kind."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from enum import IntEnum
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from logitfuse import _core
from logitfuse.errors import VocabError

if TYPE_CHECKING:
    from logitfuse.guide import Lexicon
    from logitfuse.llama import Llama, LlamaModel


#: Of the making of lexicons, which several threads may ask for at once.
_LEXICONS = threading.Lock()


class TokenKind(IntEnum):
    """What a token stands for.  Only text, byte and end tokens can be emitted."""

    TEXT = 0
    BYTE = 1
    END = 2
    CONTROL = 3
    UNUSED = 4


class Tokenizer(Protocol):
    """What turns text into the ids of a vocabulary, for example a loaded model."""

    def tokenize(self, text: bytes) -> list[int]: ...


class Vocab:
    """The vocabulary of one tokenizer.

    Parameters
    ----------
    tokens : sequence of bytes
        The bytes of every token, by id.  Not text: a token may be a part of a character.
    kinds : sequence of TokenKind, optional
        All text by default.  Text or byte tokens without bytes become unused.
    end_ids : iterable of int, optional
        Tokens that end an answer; shorthand for their kind.
    tokenizer : Tokenizer, optional
        Gives `tokenize`.

    Raises
    ------
    VocabError
        Sizes differ, an end id is out of range, or no token can be emitted.
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        kinds: Sequence[TokenKind] | None = None,
        *,
        end_ids: Iterable[int] = (),
        tokenizer: Tokenizer | None = None,
    ) -> None:
        kind_array = np.zeros(len(tokens), np.uint8)
        if kinds is not None:
            if len(kinds) != len(tokens):
                raise VocabError(f"{len(tokens)} tokens need as many kinds, not {len(kinds)}")
            kind_array[:] = kinds
        for end_id in end_ids:
            if not 0 <= end_id < len(tokens):
                raise VocabError(f"end id {end_id} is not in a vocabulary of {len(tokens)} tokens")
            kind_array[end_id] = TokenKind.END
        offsets = np.zeros(len(tokens) + 1, np.int64)
        np.cumsum([len(token) for token in tokens], out=offsets[1:])
        self._core = _core.Vocab(b"".join(tokens), offsets, kind_array)
        self._tokenizer = tokenizer

    @classmethod
    def from_gguf(cls, path: str | PathLike[str]) -> Vocab:
        """The vocabulary of a GGUF file; only the vocabulary is loaded.

        Parameters
        ----------
        path : path
            A model, or a vocabulary-only file.

        Raises
        ------
        ModelNotFoundError, ModelLoadError
            No such file, or not a GGUF file.
        UnsupportedTokenizerError
            WordPiece (BERT): its tokens do not spell the text.
        """
        from logitfuse.llama import LlamaModel

        return cls.from_llama(LlamaModel(path, vocab_only=True))

    @classmethod
    def from_llama(cls, model: LlamaModel | Llama) -> Vocab:
        """The vocabulary of a loaded model, read in C++ through llama.cpp's own functions.

        Parameters
        ----------
        model : LlamaModel or llama_cpp.Llama
            Kept open as long as the vocabulary lives, for `tokenize`.

        Raises
        ------
        UnsupportedTokenizerError
            WordPiece, or no tokenizer at all.
        """
        from logitfuse.llama import LlamaModel

        if not isinstance(model, LlamaModel):
            model = LlamaModel.borrow(model)
        model.require_byte_exact()
        vocab = cls.__new__(cls)
        vocab._core = _core.Vocab.from_llama(*model.vocab_pointers())
        vocab._tokenizer = model
        return vocab

    def __len__(self) -> int:
        return len(self._core)

    def __eq__(self, other: object) -> bool:
        """Same tokens with the same bytes and kinds."""
        if not isinstance(other, Vocab):
            return NotImplemented
        return self._core == other._core

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Vocab({len(self)} tokens, ends with {self.end_ids.tolist()})"

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token spells (of a control token: its name).

        Raises
        ------
        IndexError
            The id is out of range.
        """
        return self._core.token_bytes(token)

    @property
    def kinds(self) -> NDArray[np.uint8]:
        """Kind of every token (`TokenKind` values), shape ``[n]``."""
        return self._core.kinds

    @property
    def end_ids(self) -> NDArray[np.int32]:
        """Tokens that end an answer, ascending."""
        return self._core.end_ids

    @property
    def sorted_ids(self) -> NDArray[np.int32]:
        """Text and byte tokens in lexicographic order of their bytes."""
        return self._core.sorted_ids

    def lookup(self, text: bytes) -> int | None:
        """The token that spells exactly these bytes (a text token before a byte token)."""
        token = self._core.lookup(text)
        return None if token < 0 else token

    def is_text(self, token: int) -> bool:
        """Whether a token spells bytes (and neither steers nor ends)."""
        return self._core.canonical(token) >= 0 and token not in self.end_ids

    @cached_property
    def trie(self) -> _core.ByteTrie:
        """The tokens as a trie over bytes; made when first asked for."""
        return _core.ByteTrie(self._core)

    @property
    def lexicon(self) -> Lexicon:
        """The tokens for grammars to follow; made when first asked for, within a second.

        Any thread may ask.

        Raises
        ------
        ConfigError
            llguidance is not installed.
        """
        from logitfuse.guide import Lexicon

        made: Lexicon | None = self.__dict__.get("_lexicon")
        if made is None:
            with _LEXICONS:  # a cached property might make two
                made = self.__dict__.get("_lexicon") or Lexicon(self)
                self._lexicon = made
        return made

    def duplicates(self, token: int) -> list[int]:
        """All tokens that mean the same as this one, the canonical one first.

        Tokens of equal bytes (``<0x41>`` and ``A``), or the end tokens; empty for control tokens.
        """
        return self._core.same(token)

    def prefix_range(self, prefix: bytes) -> tuple[int, int]:
        """First and last-plus-one position in `sorted_ids` of the tokens that begin so."""
        return self._core.prefix_range(prefix)

    def tokenize(self, text: bytes) -> list[int]:
        """Token ids of a text, without special tokens.

        Some vocabularies put a space before every text; `join` of the ids then begins with it.

        Raises
        ------
        VocabError
            This vocabulary was made without a tokenizer.
        """
        if self._tokenizer is None:
            raise VocabError("this vocabulary has no tokenizer; make it with Vocab.from_gguf")
        return self._tokenizer.tokenize(text)

    def join(self, tokens: Sequence[int]) -> bytes:
        """The bytes that a sequence of tokens spells."""
        return self._core.join(list(tokens))
