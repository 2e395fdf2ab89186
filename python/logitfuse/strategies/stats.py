"""What an answer took."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from logitfuse.strategies.base import DecisionName


@dataclass
class RunStats:
    """What one answer took; times in seconds of wall clock.

    Attributes
    ----------
    decisions : Counter of str
        How many steps were led by one member, agreed, certain, fused.
    ends : int
        Steps that ended the answer (0 or 1).
    votes : list of int
        For every member: in how many steps it voted.
    wins : list of int
        For every member: in how many fused steps the answer was its own best candidate.
    prompt_tokens : int
        Of the first member that runs.
    cached_tokens : int
        Of these: they did not have to be decoded.
    prefill_s : float
        The prompt.
    decode_s, sync_s, fuse_s, sample_s : float
        The steps after it: waiting for the slowest member's `llama_decode`; what members did
        besides; gates and pool; penalties, biases and the draw.
    total_s : float
        Everything.
    """

    decisions: Counter[DecisionName] = field(default_factory=Counter)
    ends: int = 0
    votes: list[int] = field(default_factory=list)
    wins: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    sync_s: float = 0.0
    fuse_s: float = 0.0
    sample_s: float = 0.0
    total_s: float = 0.0

    @property
    def steps(self) -> int:
        """Symbols generated, the end included."""
        return self.decisions.total()

    @property
    def fused_share(self) -> float:
        """Share of steps that only the pool could decide."""
        return self.decisions["fused"] / max(1, self.steps)

    @property
    def beside_fuse_s(self) -> float:
        """All that a step does but fusing."""
        return self.decode_s + self.sync_s + self.sample_s

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Count a block as sampling."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.sample_s += time.perf_counter() - started
