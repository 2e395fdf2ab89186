"""Rows of the places where a member has just been."""

from __future__ import annotations

import numpy as np

from logitfuse.llama import LlamaContext, Row

#: Copies kept by default: enough for the boundary probability after a rollback.  Copying one costs
#: 40 us at 262,144 tokens; decoding the token again would cost a forward pass.
_COPIES = 4


class KeptRows:
    """Rows after the first n tokens of a cache: the last decode's, and copies of a few older ones.

    Parameters
    ----------
    context : LlamaContext
    """

    def __init__(self, context: LlamaContext) -> None:
        self._context = context
        self._pinned = np.empty(context.model.n_vocab, np.float32)
        self._reset(_COPIES)
        self.clear()

    def _reset(self, copies: int) -> None:
        """Have places for so many copies, and no copy."""
        self._copies = np.empty((copies, self._context.model.n_vocab), np.float32)
        self._at = [-1] * copies  # how many tokens each copy has seen

    def reserve(self, copies: int) -> None:
        """Keep so many copies from now on; the latest ones stay."""
        rows, at = self._copies, self._at
        copies = max(copies, _COPIES)
        if copies == len(rows):
            return
        self._reset(copies)
        for n in sorted(at)[-copies:]:
            if n >= 0:
                np.copyto(self._copies[n % copies], rows[n % len(rows)])
                self._at[n % copies] = n

    def clear(self) -> None:
        """Forget them all."""
        self._at = [-1] * len(self._copies)
        self._pinned_at = -1
        self.lost()

    def pin(self, n_tokens: int) -> None:
        """Keep the row after so many tokens for as long as these tokens stay.

        All replies to a prompt then begin with the very same row: decoding its last token again
        costs a forward pass, and a batch of another size gives other bits.
        """
        row = self.after(n_tokens)
        if row is not None and self._pinned_at != n_tokens:
            np.copyto(self._pinned, row)
            self._pinned_at = n_tokens

    def lost(self) -> None:
        """The rows of the last decode are no longer there."""
        self._first, self._last = 1, 0

    def decoded(self, n_tokens: int, outputs: int) -> None:
        """A decode took the cache to this length and gave rows for its last `outputs` tokens."""
        if self._pinned_at > n_tokens - outputs:
            self._pinned_at = -1
        self._at = [n if n <= n_tokens - outputs else -1 for n in self._at]
        self._first, self._last = n_tokens - outputs + 1, n_tokens

    def after(self, n_tokens: int) -> Row | None:
        """The row after so many tokens, if it is still known; the next decode may overwrite it."""
        if self._first <= n_tokens <= self._last:
            return self._context.row(self._last - n_tokens + 1)
        if n_tokens == self._pinned_at:
            return self._pinned
        slot = n_tokens % len(self._copies)
        return self._copies[slot] if self._at[slot] == n_tokens else None

    def cut(self, n_tokens: int) -> None:
        """Forget the rows of places behind so many tokens, and copy those before them."""
        begin = max(self._first, min(self._last, n_tokens) - len(self._copies) + 1)
        for n in range(begin, min(self._last, n_tokens) + 1):
            slot = n % len(self._copies)
            np.copyto(self._copies[slot], self._context.row(self._last - n + 1))
            self._at[slot] = n
        self._at = [n if n <= n_tokens else -1 for n in self._at]
        if self._pinned_at > n_tokens:
            self._pinned_at = -1
        self.lost()
