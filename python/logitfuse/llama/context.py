"""What one text needs of llama.cpp: its tokens' memory, branches behind it, and its last rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from logitfuse.llama.decoder import LlamaDecoder, Piece, Row
from logitfuse.llama.model import LlamaModel

_PARTIAL = 1  # LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY: only what seq_rm cannot roll back

#: Has a piece decoded, alone or with others; returns llama.cpp's code.
DecodePiece: TypeAlias = Callable[[Piece], int]


class LlamaContext:
    """The memory of one text, in a decoder of its own or in one that it shares with other texts.

    Its first sequence is the *trunk*; with `n_branches` there are others that share cells with it.
    Not for two threads at once.

    Parameters
    ----------
    model : LlamaModel
    n_ctx : int
        Tokens; llama.cpp rounds up to a multiple of 256.
    n_branches : int
        Sequences besides the trunk, numbered from 1; see `fork`.
    n_batch, n_threads, flash_attn
        See `LlamaDecoder`.

    Attributes
    ----------
    slice_size : callable
        How many tokens the next slice of a long prompt may have.
    """

    def __init__(
        self,
        model: LlamaModel,
        *,
        n_ctx: int,
        n_branches: int = 0,
        n_batch: int = 512,
        n_threads: int = 1,
        flash_attn: bool = True,
    ) -> None:
        decoder = LlamaDecoder(
            model,
            n_cells=n_ctx,
            n_sequences=1 + n_branches,
            n_batch=n_batch,
            n_threads=n_threads,
            flash_attn=flash_attn,
        )
        self._settle(decoder, 0, decoder.n_cells, n_branches, self._decode_alone)

    @classmethod
    def share(
        cls,
        decoder: LlamaDecoder,
        *,
        trunk: int,
        n_ctx: int,
        n_branches: int = 0,
        decode: DecodePiece,
        slice_size: Callable[[], int],
    ) -> LlamaContext:
        """A place for one more text in a decoder.

        Parameters
        ----------
        decoder : LlamaDecoder
        trunk : int
            Its first sequence; the branches are the next ones.
        n_ctx : int
            Most tokens of the text.
        n_branches : int
        decode : callable
            Has a piece decoded together with those of other texts.
        slice_size : callable
            See the attribute.
        """
        context = cls.__new__(cls)
        context._settle(decoder, trunk, n_ctx, n_branches, decode)
        context.slice_size = slice_size
        return context

    def _settle(
        self,
        decoder: LlamaDecoder,
        trunk: int,
        n_ctx: int,
        n_branches: int,
        decode: DecodePiece,
    ) -> None:
        self.decoder = decoder
        self.model = decoder.model
        self.n_ctx = n_ctx
        self.n_batch = decoder.n_batch
        self.n_branches = n_branches
        self.slice_size: Callable[[], int] = lambda: decoder.n_batch
        self._trunk = trunk
        self._owns = decoder.n_sequences == 1 + n_branches
        self._decode = decode
        self._last = Piece((), (), (), 0)

    def close(self) -> None:
        """Free the decoder; rows read from it are dangling afterwards."""
        self.decoder.close()

    @property
    def n_threads(self) -> int:
        """Threads of one decode call."""
        return self.decoder.n_threads

    def set_threads(self, n: int) -> None:
        """Decode with so many threads from now on."""
        self.decoder.set_threads(n)

    # -- decoding -------------------------------------------------------------------------------

    def decode(self, tokens: Sequence[int], start: int, *, outputs: int = 1) -> int:
        """Decode tokens at positions ``start, start + 1, ...`` and keep the last rows.

        Parameters
        ----------
        tokens : sequence of int
            Valid ids, 1 to `n_batch`; ``start + len(tokens) <= n_ctx``.  See `slices`.
        start : int
            Must be the number of tokens in the cache.
        outputs : int
            How many of the last tokens get a row; at most `n_batch`.

        Returns
        -------
        int
            llama.cpp's return code; 0 is success.
        """
        n = len(tokens)
        if not 1 <= n <= self.n_batch:
            raise ValueError(f"{n} tokens are no batch of 1 to {self.n_batch}; see `slices`")
        if start < 0 or start + n > self.n_ctx:
            raise ValueError(f"{n} tokens at {start} do not fit n_ctx={self.n_ctx}")
        if min(tokens) < 0 or max(tokens) >= self.model.n_vocab:
            raise ValueError(f"token ids must lie in 0..{self.model.n_vocab - 1}")
        positions = np.arange(start, start + n)
        return self._run(Piece(tokens, positions, self._trunk, outputs))

    def slices(self, n: int, outputs: int) -> Iterator[tuple[int, int]]:
        """How to decode `n` tokens, of which the last `outputs` get rows.

        Yields
        ------
        begin, end : int
            The first slice, the next one when that has been decoded, and so on.

        Raises
        ------
        BaseException
            Of `slice_size`: nobody wants the rest any more.
        """
        begin, first_output = 0, n - outputs
        while begin < n:
            end = min(n, begin + self.slice_size())
            if first_output < end < n:
                # The rows that are wanted must come from one call: the next one overwrites them.
                end = first_output if begin < first_output else n
            yield begin, end
            begin = end

    def decode_branches(
        self, tokens: Sequence[int], positions: Sequence[int], branches: Sequence[int]
    ) -> int:
        """Decode one token for each of several branches in one batch; each gets a row.

        Parameters
        ----------
        tokens, positions : sequence of int
            At most `n_batch`; a position is the number of tokens in the branch.
        branches : sequence of int
            Different ones.

        Returns
        -------
        int
            llama.cpp's return code; 0 is success.
        """
        sequences = self._trunk + np.asarray(branches)
        return self._run(Piece(tokens, positions, sequences, len(tokens)))

    def _run(self, piece: Piece) -> int:
        self._last.held = False
        self._last = piece
        return self._decode(piece)

    def _decode_alone(self, piece: Piece) -> int:
        return self.decoder.decode([piece])

    def row(self, back: int = 1) -> Row:
        """Logits after the ``back``-th last decoded token: a view, not a copy.

        Valid until the next `decode` or `close`; `decode` must have been asked for that row.
        """
        return self.decoder.row(self._last, back)

    def rest(self) -> None:
        """No row will be asked for before the next `decode`."""
        self._last.held = False

    # -- memory ---------------------------------------------------------------------------------

    def fork(self, branch: int, to: int, n_tokens: int = -1) -> None:
        """Let branch `to` hold the first `n_tokens` of another one (-1: all); copies nothing.

        Recurrent memories can only be forked whole.
        """
        self.decoder.fork(self._trunk + branch, self._trunk + to, n_tokens)

    def borrow(self, other: LlamaContext, n_tokens: int) -> bool:
        """Let the trunk hold the first `n_tokens` of the trunk of another text of the decoder.

        Returns
        -------
        bool
            False, and the trunk holds nothing: the other one does not have them any more.
        """
        self.decoder.fork(other._trunk, self._trunk, n_tokens)
        if self.decoder.holds(self._trunk, n_tokens):
            return True
        self.cut(-1)
        return False

    def drop(self, branch: int) -> None:
        """Free what no other branch holds."""
        self.decoder.cut(self._trunk + branch, -1)

    def drop_branches(self) -> None:
        """Leave nothing but the trunk."""
        for branch in range(1, 1 + self.n_branches):
            self.drop(branch)

    def cut(self, n_keep: int) -> bool:
        """Forget all tokens from position `n_keep` on; False if this memory cannot."""
        return self.decoder.cut(self._trunk, n_keep)

    def clear(self) -> None:
        """Forget everything."""
        if self._owns:
            self.decoder.clear()
            return
        self.cut(-1)
        self.drop_branches()

    def save(self) -> NDArray[np.uint8]:
        """A checkpoint of the part of the memory that `cut` cannot roll back."""
        return self.decoder.save(self._trunk, _PARTIAL)

    def restore(self, state: NDArray[np.uint8]) -> bool:
        """Go back to a checkpoint; the attention part must be `cut` to the same length."""
        return self.decoder.restore(self._trunk, state, _PARTIAL)
