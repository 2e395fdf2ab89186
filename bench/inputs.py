"""The step that the figures of the core are about: three real vocabularies and a row for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import models
import numpy as np
import reference
from logitfuse.alignment import Alignment, align
from logitfuse.vocab import TokenKind, Vocab
from numpy.typing import NDArray

WEIGHTS = (0.5, 0.3, 0.2)


@dataclass(frozen=True)
class StepInput:
    """What is fused, and what must come out."""

    alignment: Alignment
    rows: list[NDArray[np.float32]]
    oracle: NDArray[np.float64]  #: log-probability of every symbol, linear pool

    def error(self, symbols: NDArray[np.int32], logprobs: NDArray[np.floating]) -> float:
        """Largest deviation from the oracle, nats."""
        return float(np.max(np.abs(logprobs - self.oracle[symbols])))


@cache
def vocabs() -> tuple[Vocab, ...]:
    """SmolLM2 (49,152 tokens), Qwen2 (151,936) and Gemma 3 (262,144)."""
    files = (models.smollm2(), models.vocab_dir() / "ggml-vocab-qwen2.gguf", models.gemma3())
    return tuple(Vocab.from_gguf(path) for path in files)


@cache
def step() -> StepInput:
    """One step of the three; the oracle takes a few seconds."""
    alignment = align(vocabs())
    rows = make_rows(alignment)
    tables = [
        (
            [vocab.token_bytes(token) for token in range(len(vocab))],
            [TokenKind(kind).name.lower() for kind in vocab.kinds],
        )
        for vocab in alignment.vocabs
    ]
    pooled = reference.pool(rows, tables, WEIGHTS)
    keys = [alignment.symbol_bytes(symbol) or reference.END for symbol in range(len(alignment))]
    return StepInput(alignment, rows, np.array([pooled[key] for key in keys]))


def make_rows(alignment: Alignment, seed: int = 0) -> list[NDArray[np.float32]]:
    """Logits as models give them: noise, and a Zipf head that the members agree on by and large.

    The entropy is between 2 and 4 nats, as on running text.
    """
    random = np.random.default_rng(seed)
    members = range(len(alignment.vocabs))
    common = np.logical_and.reduce([_tokens(alignment, m) >= 0 for m in members])
    head = random.choice(np.flatnonzero(common), 256, replace=False)
    likely = 18 - 1.5 * np.log(np.arange(1, len(head) + 1))
    rows = []
    for m, vocab in enumerate(alignment.vocabs):
        row = random.normal(0, 2, len(vocab))
        row[_tokens(alignment, m)[head]] = likely + random.normal(0, 1, len(head))
        rows.append(row.astype(np.float32))
    return rows


def entropies(rows: Sequence[NDArray[np.float32]]) -> list[float]:
    """Of the softmax of each row, nats."""
    found = []
    for row in rows:
        p = np.exp(row.astype(np.float64) - row.max())
        p /= p.sum()
        found.append(float(-np.sum(p[p > 0] * np.log(p[p > 0]))))
    return found


def _tokens(alignment: Alignment, member: int) -> NDArray[np.int32]:
    tokens = alignment.to_token(member)
    return np.arange(len(alignment), dtype=np.int32) if tokens is None else tokens
