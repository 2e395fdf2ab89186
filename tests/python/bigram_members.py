"""Tiny bigram models that can branch: the oracle knows their rows without running them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import byte_reference
import models
from lockstep import oracle_vocab
from logitfuse.member import Member
from tiny import bigram_logits, write_tiny

#: Next to nothing is pruned of short texts.
CAREFUL = {"prune": 1e-9, "width": 32}
VOCABS: dict[str, Callable[[], Path]] = {
    "gpt2": lambda: models.vocab_dir() / "ggml-vocab-gpt-2.gguf",
    "llama-spm": lambda: models.vocab_dir() / "ggml-vocab-llama-spm.gguf",
}


@dataclass(frozen=True)
class BigramMember:
    """A member and its oracle."""

    member: Member
    path: Path

    def oracle(self, head: int) -> tuple[byte_reference.RowOf, list[bytes], list[str]]:
        """Rows, tokens and kinds behind a first token."""
        table = bigram_logits(self.path)
        return (lambda path: table[path[-1] if path else head], *oracle_vocab(self.member))


def make_bigram(folder: Path, vocab: str, *, seed: int = 0, arch: str = "llama") -> BigramMember:
    """Write and load one: about 400 tokens, the bytes among them."""
    path = folder / f"{vocab}-{arch}-{seed}.gguf"
    write_tiny(path, VOCABS[vocab](), kind="bigram", max_vocab=600, seed=seed, arch=arch)
    member = Member(path, n_threads=1, n_branches=64)
    return BigramMember(member, path)
