"""A llama.cpp context as it is: cells for many sequences, and one batch of tokens at a time."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from logitfuse.errors import ModelLoadError
from logitfuse.llama.backend import call_aside, forget_log, last_log
from logitfuse.llama.model import LlamaModel

#: What `LlamaDecoder.decode` returns where the cells are all taken.
NO_ROOM = 1

#: One raw logits row, float32 ``[n_vocab]``; a view that the next decode overwrites.
Row = NDArray[np.float32]


class Piece:
    """Tokens that go into one batch, and the rows that come out for the last of them.

    Attributes
    ----------
    tokens, positions, sequences : int array_like
        Of one length, at least 1; `positions` and `sequences` may be one number for all.
    outputs : int
        How many of the last tokens get a row.
    held : bool
        The rows may still be asked for: they are copied before another batch overwrites them.
    """

    __slots__ = ("_batch", "_end", "_rows", "held", "outputs", "positions", "sequences", "tokens")

    def __init__(
        self, tokens: Sequence[int], positions: ArrayLike, sequences: ArrayLike, outputs: int
    ) -> None:
        self.tokens = tokens
        self.positions = positions
        self.sequences = sequences
        self.outputs = outputs
        self.held = True
        self._batch = self._end = -1
        self._rows: list[Row] = []


class LlamaDecoder:
    """The KV cells and the rows of one model, for any number of texts.

    Not for two threads at once.

    Parameters
    ----------
    model : LlamaModel
    n_cells : int
        Tokens of all sequences together; llama.cpp rounds up to a multiple of 256.
    n_sequences : int
        At most 256.
    n_batch : int
        Most tokens per decode call; at least one for every sequence.
    n_threads : int
        Threads of one decode call.
    flash_attn : bool
        On, a batch of k tokens gives the same bits as k single steps in the common cases.

    Raises
    ------
    ModelLoadError
        No memory, or a model that cannot generate text.
    """

    def __init__(
        self,
        model: LlamaModel,
        *,
        n_cells: int,
        n_sequences: int = 1,
        n_batch: int = 512,
        n_threads: int = 1,
        flash_attn: bool = True,
    ) -> None:
        self._handle: Any = None
        self.model = model
        params = lib.llama_context_default_params()
        params.n_ctx = n_cells
        rows = max(2, n_sequences)  # at once; llama.cpp aborts on more sequences than rows
        params.n_batch = params.n_ubatch = max(rows, min(n_batch, n_cells))
        params.n_seq_max = n_sequences
        params.kv_unified = n_sequences > 1  # sequences share cells, and may fork anywhere
        params.n_threads = params.n_threads_batch = n_threads
        params.flash_attn_type = (
            lib.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash_attn else lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        params.swa_full = True  # else a rollback past the window is silently wrong
        params.no_perf = True
        forget_log()
        make = partial(lib.llama_init_from_model, model._handle, params)
        self._handle = call_aside(make, free=lib.llama_free)
        if not self._handle:
            raise ModelLoadError(
                f"llama.cpp cannot make a context of {n_cells} tokens for '{model.path}': "
                f"{last_log()}; try a smaller -c/--ctx-size",
                path=model.path,
            )
        model.attach()
        self.memory = lib.llama_get_memory(self._handle)
        self._window = 0 if model.remembers_by_state else model.n_swa
        if not self.memory:  # whatever the file says of itself
            raise model.not_a_generator()
        self.n_cells = int(lib.llama_n_ctx(self._handle))
        self.n_batch = int(lib.llama_n_batch(self._handle))
        self.n_sequences = n_sequences
        self.n_threads = n_threads
        self._count = 0
        self._last: Sequence[Piece] = ()
        self._make_batch()

    def close(self) -> None:
        """Free the context; rows read from it are dangling afterwards."""
        if self._handle:
            lib.llama_free(self._handle)
            self._handle = None
            self.model.detach()

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not is_finalizing():  # llama_cpp, and this module, are already taken apart then
            self.close()

    def _make_batch(self) -> None:
        """A llama_batch over NumPy arrays, so that filling it costs no ctypes call per token."""
        n = self.n_batch
        self._tokens = np.zeros(n, np.int32)
        self._positions = np.zeros(n, np.int32)
        self._outputs = np.zeros(n, np.int8)
        self._n_seq = np.ones(n, np.int32)
        self._sequence = np.arange(self.n_sequences, dtype=np.int32)
        self._sequences = np.zeros(n, np.uint64)

        def pointer(array: NDArray[Any], kind: Any) -> Any:
            return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))

        batch = lib.llama_batch()
        batch.token = pointer(self._tokens, lib.llama_token)
        batch.embd = None
        batch.pos = pointer(self._positions, lib.llama_pos)
        batch.n_seq_id = pointer(self._n_seq, ctypes.c_int32)
        batch.seq_id = pointer(self._sequences, ctypes.POINTER(lib.llama_seq_id))
        batch.logits = pointer(self._outputs, ctypes.c_int8)
        self._batch = batch

    def decode(self, pieces: Sequence[Piece]) -> int:
        """Decode pieces in one batch, at most `n_batch` tokens together.

        Rows of the batch before are copied where a piece of it is still `held`.

        Returns
        -------
        int
            llama.cpp's return code; 0 is success.  With `NO_ROOM` nothing has changed.
        """
        for piece in self._last:
            if piece.held:
                piece._rows = [self.row(piece, k).copy() for k in range(piece.outputs, 0, -1)]
        self._last = ()
        end = 0
        for piece in pieces:
            begin, end = end, end + len(piece.tokens)
            self._tokens[begin:end] = piece.tokens
            self._positions[begin:end] = piece.positions
            sequences = np.asarray(piece.sequences, np.uint64)
            self._sequences[begin:end] = self._sequence.ctypes.data + 4 * sequences
            self._outputs[begin : end - piece.outputs] = 0
            self._outputs[end - piece.outputs : end] = 1
            piece._end = end
        self._batch.n_tokens = end
        self._count += 1
        forget_log()
        code = int(lib.llama_decode(self._handle, self._batch))
        if code == 0:
            self._last = pieces
            for piece in pieces:
                piece._batch = self._count
        return code

    def undo(self, piece: Piece) -> bool:
        """Forget what a failed `decode` may have left of a piece; False if that cannot be."""
        first: dict[int, int] = {}
        n = len(piece.tokens)
        sequences = np.broadcast_to(piece.sequences, n).tolist()
        positions = np.broadcast_to(piece.positions, n).tolist()
        for sequence, position in zip(sequences, positions, strict=True):
            first.setdefault(sequence, position)
        return all(self.cut(sequence, position) for sequence, position in first.items())

    def row(self, piece: Piece, back: int = 1) -> Row:
        """Logits after the ``back``-th last token of a piece that has been decoded.

        A view, valid until the next `decode` or `close`; a copy where that has already happened.
        """
        if not 1 <= back <= piece.outputs or piece._batch < 0:
            raise ValueError(f"no row was kept {back} tokens back")
        if piece._rows:
            return piece._rows[-back]
        if piece._batch != self._count:
            raise ValueError("the row was overwritten by a later batch")
        pointer = lib.llama_get_logits_ith(self._handle, piece._end - back)
        address = ctypes.cast(pointer, ctypes.c_void_p).value
        assert address
        buffer = memoryview((ctypes.c_float * self.model.n_vocab).from_address(address))
        row: Row = np.frombuffer(buffer, np.float32)
        return row

    def set_threads(self, n: int) -> None:
        """Decode with so many threads from now on."""
        if n != self.n_threads:
            lib.llama_set_n_threads(self._handle, n, n)
            self.n_threads = n

    # -- memory ---------------------------------------------------------------------------------

    def cut(self, sequence: int, n_keep: int) -> bool:
        """Forget the tokens of a sequence from position `n_keep` on; False if it cannot."""
        removed = bool(lib.llama_memory_seq_rm(self.memory, sequence, n_keep, -1))
        return removed and self.holds(sequence, n_keep)

    def holds(self, sequence: int, n_tokens: int) -> bool:
        """Whether a sequence has what a next token behind its first `n_tokens` looks back at.

        Where attention slides, llama.cpp gives cells behind a sequence's window to whoever needs
        one, so of a long text a short beginning may be gone.
        """
        if n_tokens <= 0 or not self._window:
            return True
        first = int(lib.llama_memory_seq_pos_min(self.memory, sequence))
        return 0 <= first <= max(0, n_tokens - self._window)

    def fork(self, sequence: int, to: int, n_tokens: int = -1) -> None:
        """Let `to` hold the first `n_tokens` of a sequence (-1: all); copies nothing.

        Recurrent memories can only be forked whole.
        """
        lib.llama_memory_seq_rm(self.memory, to, -1, -1)
        lib.llama_memory_seq_cp(self.memory, sequence, to, -1, n_tokens)

    def clear(self) -> None:
        """Forget everything."""
        lib.llama_memory_clear(self.memory, True)

    def save(self, sequence: int, flags: int) -> NDArray[np.uint8]:
        """The state of a sequence, or of that part of it that the flags name."""
        size = int(lib.llama_state_seq_get_size_ext(self._handle, sequence, flags))
        state = np.empty(size, np.uint8)
        pointer = ctypes.cast(state.ctypes.data, ctypes.POINTER(ctypes.c_uint8))
        lib.llama_state_seq_get_data_ext(self._handle, pointer, size, sequence, flags)
        return state

    def restore(self, sequence: int, state: NDArray[np.uint8], flags: int) -> bool:
        """Put a saved state back."""
        pointer = ctypes.cast(state.ctypes.data, ctypes.POINTER(ctypes.c_uint8))
        n = len(state)
        return n == int(lib.llama_state_seq_set_data_ext(self._handle, pointer, n, sequence, flags))
