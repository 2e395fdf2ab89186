"""The tokenizer of a real model, cut down to a few thousand tokens that still form a tokenizer.

Cutting must not break the tokenizer's own rules: a byte-pair merge needs both of its parts, and a
SentencePiece piece can only be reached by joining two shorter pieces. What is cut here is therefore
always the tail of what training had added last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from gguf import TokenType
from gguf_reader import read_gguf
from numpy.typing import NDArray

_PREFIX = "tokenizer.ggml."
_FILLER = re.compile(rb"unused|reserved|placeholder|\[PAD\d")
_N_FILLERS = 2
_WORD_START = "\u2581"


@dataclass(frozen=True)
class Tokenizer:
    """The ``tokenizer.*`` keys of a GGUF file.

    Attributes
    ----------
    model
        ``"gpt2"`` (byte-level BPE), ``"llama"`` (SentencePiece) or ``"bert"`` (WordPiece).
    pre
        Name of the rule that splits text before BPE, if the file names one.
    tokens
        Token texts as stored, that is, not yet turned into bytes; index is the token id.
    types
        ``gguf.TokenType`` of each token, int32 ``[n_vocab]``.
    scores
        SentencePiece scores, float32 ``[n_vocab]``, or None.
    merges
        BPE merges by rank, each ``left + b" " + right``, or None.
    ids
        Special token ids by full key, such as ``tokenizer.ggml.bos_token_id``.
    flags
        Boolean keys by full key, such as ``tokenizer.ggml.add_bos_token``.
    template
        The Jinja chat template, or None.
    """

    model: str
    pre: str | None
    tokens: list[bytes]
    types: NDArray[np.int32]
    scores: NDArray[np.float32] | None
    merges: list[bytes] | None
    ids: dict[str, int]
    flags: dict[str, bool]
    template: str | None


def read_tokenizer(path: Path) -> Tokenizer:
    """Read the tokenizer of any GGUF file, vocabulary-only files included."""
    keys: dict[str, Any] = read_gguf(path).metadata
    tokens = keys[_PREFIX + "tokens"]
    ids = {key: value for key, value in keys.items() if re.fullmatch(rf"{_PREFIX}\w+_id", key)}
    return Tokenizer(
        model=keys[_PREFIX + "model"],
        pre=keys.get(_PREFIX + "pre"),
        tokens=tokens,
        types=keys.get(_PREFIX + "token_type", np.full(len(tokens), TokenType.NORMAL, np.int32)),
        scores=keys.get(_PREFIX + "scores"),
        merges=keys.get(_PREFIX + "merges"),
        ids=ids,
        flags={key: value for key, value in keys.items() if re.match(rf"{_PREFIX}add_", key)},
        template=keys.get("tokenizer.chat_template"),
    )


def truncate(tokenizer: Tokenizer, max_vocab: int) -> Tokenizer:
    """Cut a tokenizer down to at most `max_vocab` tokens, in their old order.

    Kept before anything else are special tokens, single bytes and single characters, so that every
    text that the whole tokenizer can spell remains spellable.

    Parameters
    ----------
    tokenizer
        Byte-level BPE, SentencePiece or WordPiece.
    max_vocab
        Upper bound of the number of tokens.
    """
    if max_vocab >= len(tokenizer.tokens):
        return tokenizer
    base = _base(tokenizer)
    if len(base) > max_vocab:
        raise ValueError(f"max_vocab={max_vocab} is below the {len(base)} tokens of the base")
    match tokenizer.model:
        case "gpt2":
            merges = list(_first_merges(tokenizer, base, max_vocab))
            index = {text: token for token, text in enumerate(tokenizer.tokens)}
            added = {index[merge.replace(b" ", b"")] for merge in merges}
            tokenizer = replace(tokenizer, merges=merges)
        case "llama":
            added = set(islice(_reachable_pieces(tokenizer, base), max_vocab - len(base)))
        case "bert":  # the longest match wins, so any subset of the pieces is a tokenizer
            rest = (token for token in range(len(tokenizer.tokens)) if token not in base)
            added = set(islice(rest, max_vocab - len(base)))
        case other:
            raise ValueError(f"cannot truncate a tokenizer of the model {other!r}")
    return _select(tokenizer, sorted(base | added))


def _base(tokenizer: Tokenizer) -> set[int]:
    """Token ids that every truncation keeps; of filler tokens only the first two."""
    fillers: list[int] = []
    base = set(tokenizer.ids.values())
    for token, (text, kind) in enumerate(zip(tokenizer.tokens, tokenizer.types, strict=True)):
        if kind == TokenType.NORMAL:
            if _is_single_character(text, tokenizer.model):
                base.add(token)
        elif _FILLER.search(text):
            fillers.append(token)
        else:
            base.add(token)
    return base | set(fillers[:_N_FILLERS])


def _is_single_character(text: bytes, model: str) -> bool:
    """Whether a token spells one character; of those that bytes can spell too, the ASCII ones."""
    characters = text.decode(errors="replace")
    if model == "gpt2":  # writes each of the 256 bytes as one character
        return len(characters) == 1
    character = characters.removeprefix(_WORD_START)
    return len(character) <= 1 and character.isascii()


def _first_merges(tokenizer: Tokenizer, base: set[int], max_vocab: int) -> Iterator[bytes]:
    """Yield merges by rank, each with both parts at hand, until they fill the vocabulary."""
    assert tokenizer.merges is not None
    known = set(tokenizer.tokens)
    have = {tokenizer.tokens[token] for token in base}
    for merge in tokenizer.merges:
        if len(have) >= max_vocab:
            return
        left, right = merge.split(b" ")
        if left in have and right in have and left + right in known:
            have.add(left + right)
            yield merge


def _reachable_pieces(tokenizer: Tokenizer, base: set[int]) -> Iterator[int]:
    """Yield SentencePiece ids by falling score, each the join of two pieces already at hand."""
    assert tokenizer.scores is not None
    have = {tokenizer.tokens[token].decode() for token in base}
    for token in np.argsort(-tokenizer.scores, kind="stable").tolist():
        if token in base or tokenizer.types[token] != TokenType.NORMAL:
            continue
        piece = tokenizer.tokens[token].decode()
        if any(piece[:cut] in have and piece[cut:] in have for cut in range(1, len(piece))):
            have.add(piece)
            yield token


def _select(tokenizer: Tokenizer, kept: Iterable[int]) -> Tokenizer:
    """Renumber the tokenizer so that its tokens are those in `kept`, in that order."""
    old = list(kept)
    new = {token: position for position, token in enumerate(old)}
    return replace(
        tokenizer,
        tokens=[tokenizer.tokens[token] for token in old],
        types=tokenizer.types[old],
        scores=None if tokenizer.scores is None else tokenizer.scores[old],
        ids={key: new[token] for key, token in tokenizer.ids.items()},
    )
