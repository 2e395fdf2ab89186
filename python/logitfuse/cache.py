"""What a member's llama.cpp context holds: tokens, how probable they were, and rows."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from logitfuse import _core
from logitfuse.errors import DecodeError
from logitfuse.llama import LlamaContext, Row, last_log
from logitfuse.rows import KeptRows

#: Checkpoints kept for memories that cannot be cut back: more than the deepest rollback.
_CHECKPOINTS = 8
#: Rows of a scored prompt that are held at a time: 32 rows of 262,144 logits are 32 MiB.
_SCORED = 32


@dataclass
class MemberStats:
    """What a member did since these figures were put in place."""

    decoded_tokens: int = 0
    rolled_back_tokens: int = 0
    rollbacks: int = 0
    deepest_rollback: int = 0
    reused_tokens: int = 0  #: of prompts, found in the KV cache
    full_tokenisations: int = 0  #: the tail's self-check failed
    decode_s: float = 0.0
    sync_s: float = 0.0  #: tokenising, comparing, rolling back

    def as_dict(self) -> dict[str, int | float]:
        """All figures by name."""
        return asdict(self)


class TokenCache:
    """The tokens that a context has seen, in step with its memory.

    Parameters
    ----------
    context : LlamaContext
    name : str
        How errors call the member.
    """

    def __init__(self, context: LlamaContext, name: str) -> None:
        self._context = context
        self._name = name
        self.stats = MemberStats()
        self.tokens: list[int] = []
        #: Log-prob of each token, nats; NaN where it is not known.
        self.nats: list[float] = []
        self.rows = KeptRows(context)
        self._checkpoints: deque[tuple[int, NDArray[np.uint8]]] | None = (
            deque(maxlen=_CHECKPOINTS) if context.model.remembers_by_state else None
        )

    def move(self, target: list[int], lowest: int, *, score: bool = False) -> tuple[int, int]:
        """Make the cache hold exactly these tokens.

        Parameters
        ----------
        target : list of int
        lowest : int
            The rows after this many tokens and more will be there, as far as one decode can give
            them; the last one always.
        score : bool
            Keep in `nats` how probable each new token was.

        Returns
        -------
        kept, dropped : int
            How many tokens could stay, and how many had to go.
        """
        started = time.perf_counter()
        common = common_prefix(self.tokens, target)
        nats: list[float] = []
        if score:
            nats = self.nats[:common]
            common = self._scored(common)
            if common < len(target) and self.rows.after(common) is None:
                common = max(0, common - 1)  # its row scores the next token
        dropped = len(self.tokens) - common
        if common == len(target) and self._knows_rows(min(lowest, common), common):
            if dropped:
                common = self._roll_back(common)  # a state may have to go back further
            if common == len(target):
                self.stats.sync_s += time.perf_counter() - started
                return common, dropped
        kept = min(common, len(target) - 1)  # the last token gives the row
        self.rows.cut(kept)
        unknown = (n for n in range(lowest, kept + 1) if self.rows.after(n) is None)
        kept = max(0, next(unknown, kept + 1) - 1)  # decode again what lacks its row
        if kept < len(self.tokens):
            kept = self._roll_back(kept)
        self.stats.sync_s += time.perf_counter() - started
        if score:
            self._score(target[kept:], kept)
            if math.isnan(self.nats[kept]) and kept < len(nats):
                self.nats[kept] = nats[kept]  # it was read again for its row only
        else:
            outputs = len(target) - max(kept, min(lowest, len(target)) - 1)
            self._decode(target[kept:], outputs=min(outputs, self._context.n_batch))
        return kept, dropped

    def _scored(self, n: int) -> int:
        """How many of the first `n` tokens are known to be as probable as `nats` says.

        The others are read again where scores are wanted: what is made of these must not depend on
        what was read before.
        """
        return next((k for k in range(1, n) if math.isnan(self.nats[k])), n)

    def _knows_rows(self, first: int, last: int) -> bool:
        """Whether the rows after so many tokens need no decode."""
        return all(self.rows.after(n) is not None for n in range(first, last + 1))

    def reserve(self, n: int) -> None:
        """Remember the rows of the last `n` decodes, or of a few, and how to go back to them."""
        self.rows.reserve(n)
        if self._checkpoints is not None:
            self._checkpoints = deque(self._checkpoints, maxlen=max(n, _CHECKPOINTS))

    def rest(self) -> None:
        """Nothing but the tokens is needed any more."""
        self.rows.lost()
        self.reserve(0)

    def append(self, token: int) -> None:
        """Decode one more token."""
        self.rows.cut(len(self.tokens))
        self._decode([token], outputs=1)

    def extend(self, tokens: list[int]) -> list[Row]:
        """Decode more tokens, at most `n_batch`.

        Returns
        -------
        list of Row
            One for each: views, valid until the next decode.
        """
        self.rows.cut(len(self.tokens))
        self._decode(tokens, outputs=len(tokens))
        return [self._context.row(back) for back in range(len(tokens), 0, -1)]

    def decode_branches(
        self, tokens: Sequence[int], positions: Sequence[int], branches: Sequence[int]
    ) -> list[Row]:
        """Decode one token for each of several branches (see `LlamaContext.fork`).

        Returns
        -------
        list of Row
            One for each: views, valid until the next decode.

        Raises
        ------
        DecodeError
        """
        began = time.perf_counter()
        self.rows.lost()
        try:
            code = self._context.decode_branches(tokens, positions, branches)
        except BaseException:
            self.forget()
            raise
        if code != 0:
            self.forget()
            raise self._failed(len(tokens), max(positions), code)
        self.stats.decoded_tokens += len(tokens)
        self.stats.decode_s += time.perf_counter() - began
        return [self._context.row(back) for back in range(len(tokens), 0, -1)]

    def borrow(self, other: TokenCache, n_tokens: int) -> None:
        """Hold the first tokens of another text, whose cells they share; or nothing."""
        self.forget()
        if not self._context.borrow(other._context, n_tokens):
            return
        self.tokens = other.tokens[:n_tokens]
        self.nats = other.nats[:n_tokens]

    def settle(self, branch: int, tokens: list[int]) -> None:
        """Hold what a branch does, and that is these tokens."""
        self._context.fork(branch, 0)
        self.nats = self.nats[: common_prefix(self.tokens, tokens)]
        self.nats += [math.nan] * (len(tokens) - len(self.nats))
        self.tokens = list(tokens)
        self.rows.cut(0)
        if self._checkpoints is not None:
            self._checkpoints.clear()
            self._checkpoints.append((len(tokens), self._context.save()))

    def forget(self) -> None:
        """Hold nothing."""
        self._context.clear()
        self.tokens.clear()
        self.nats.clear()
        self.rows.clear()
        if self._checkpoints is not None:
            self._checkpoints.clear()

    def _score(self, tokens: list[int], start: int) -> None:
        """Decode tokens and keep how probable each was."""
        row = self.rows.after(start)
        nats = [math.nan] if row is None else [_logprob(row, tokens[0])]
        for begin in range(0, len(tokens), min(_SCORED, self._context.n_batch)):
            piece = tokens[begin : begin + min(_SCORED, self._context.n_batch)]
            self._decode(piece, outputs=len(piece))
            following = tokens[begin + 1 : begin + 1 + len(piece)]
            nats += [
                _logprob(self._context.row(len(piece) - k), token)
                for k, token in enumerate(following)
            ]
        self.nats[start:] = nats

    def _decode(self, tokens: list[int], *, outputs: int) -> None:
        for begin, end in self._context.slices(len(tokens), outputs):
            rows = max(0, end - max(begin, len(tokens) - outputs))
            self._decode_slice(tokens[begin:end], rows)
        if self._checkpoints is not None:
            self._checkpoints.append((len(self.tokens), self._context.save()))

    def _decode_slice(self, tokens: list[int], outputs: int) -> None:
        began, start = time.perf_counter(), len(self.tokens)
        try:
            code = self._context.decode(tokens, start, outputs=outputs)
        except BaseException:  # Ctrl-C: nobody knows what the cache holds now
            self.forget()
            raise
        if code != 0:
            self.forget()
            raise self._failed(len(tokens), start, code)
        self.tokens += tokens
        self.nats += [math.nan] * len(tokens)
        self.rows.decoded(len(self.tokens), outputs)
        self.stats.decoded_tokens += len(tokens)
        self.stats.decode_s += time.perf_counter() - began

    def _failed(self, n: int, start: int, code: int) -> DecodeError:
        return DecodeError(
            f"member '{self._name}' failed to decode {n} tokens at position {start} "
            f"(llama_decode returned {code}: {last_log()})",
            member=self._name,
            code=code,
        )

    def _roll_back(self, n_keep: int) -> int:
        """Forget tokens from `n_keep` on, or a few more; returns how many are left."""
        if self._checkpoints is not None:
            n_keep = self._restore(n_keep)
        elif not self._context.cut(n_keep):
            self.forget()
            n_keep = 0
        del self.tokens[n_keep:], self.nats[n_keep:]
        self.rows.cut(n_keep)
        return n_keep

    def _restore(self, n_keep: int) -> int:
        """Roll a recurrent memory back to the last checkpoint at or before `n_keep`."""
        assert self._checkpoints is not None
        while self._checkpoints and self._checkpoints[-1][0] > n_keep:
            self._checkpoints.pop()
        if self._checkpoints:
            n_tokens, state = self._checkpoints[-1]
            if self._context.restore(state) and self._context.cut(n_tokens):
                return n_tokens
        self.forget()
        return 0


def _logprob(row: Row, token: int) -> float:
    return float(row[token]) - _core.log_sum_exp(row)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts have in common at their beginning."""
    n = min(len(a), len(b))
    if list(a[:n]) == list(b[:n]):  # one comparison in C for the common case
        return n
    return next(i for i in range(n) if a[i] != b[i])
