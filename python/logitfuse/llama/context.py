"""A llama.cpp context: the KV cache and the rows, of one sequence or of one that branches."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from logitfuse.errors import ModelLoadError
from logitfuse.llama.backend import call_aside, forget_log, last_log
from logitfuse.llama.model import LlamaModel

#: One raw logits row, float32 ``[n_vocab]``; a view that the next decode overwrites.
Row = NDArray[np.float32]

_PARTIAL = 1  # LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY: only what seq_rm cannot roll back


class LlamaContext:
    """A llama.cpp context: the KV cache and the rows.

    Sequence 0 is the trunk; with `n_branches` there are others that share cells with it.  Not for
    two threads at once.

    Parameters
    ----------
    model : LlamaModel
    n_ctx : int
        Tokens; llama.cpp rounds up to a multiple of 256.
    n_batch : int
        Most tokens per decode call.
    n_threads : int
        Threads of one decode call.
    flash_attn : bool
        On, a batch of k tokens gives the same bits as k single steps in the common cases.
    n_branches : int
        Sequences besides the trunk, numbered from 1; see `fork`.
    """

    def __init__(
        self,
        model: LlamaModel,
        *,
        n_ctx: int,
        n_batch: int = 512,
        n_threads: int = 1,
        flash_attn: bool = True,
        n_branches: int = 0,
    ) -> None:
        self._handle: Any = None
        self.model = model
        params = lib.llama_context_default_params()
        params.n_ctx = n_ctx
        rows = max(2, 1 + n_branches)  # at once; llama.cpp aborts on more sequences than rows
        params.n_batch = params.n_ubatch = max(rows, min(n_batch, n_ctx))
        params.n_seq_max = 1 + n_branches
        params.kv_unified = n_branches > 0  # branches share cells, and may fork anywhere
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
                f"llama.cpp cannot make a context of {n_ctx} tokens for '{model.path}': "
                f"{last_log()}; try a smaller -c/--ctx-size",
                path=model.path,
            )
        model.attach()
        self._memory = lib.llama_get_memory(self._handle)
        if not self._memory:  # whatever the file says of itself
            raise model.not_a_generator()
        self.n_ctx = int(lib.llama_n_ctx(self._handle))
        self.n_batch = int(lib.llama_n_batch(self._handle))
        self.n_threads = n_threads
        self.n_branches = n_branches
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
        self._sequence = np.arange(1 + self.n_branches, dtype=np.int32)
        self._sequences = np.full(n, self._sequence.ctypes.data, np.uint64)

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

    def decode(self, tokens: Sequence[int], start: int, *, outputs: int = 1) -> int:
        """Decode tokens at positions ``start, start + 1, ...`` and keep the last rows.

        Parameters
        ----------
        tokens : sequence of int
            Valid ids, at least one; ``start + len(tokens) <= n_ctx``.
        start : int
            Must be the number of tokens in the cache.
        outputs : int
            How many of the last tokens get a row.

        Returns
        -------
        int
            llama.cpp's return code; 0 is success.
        """
        if not tokens or start < 0 or start + len(tokens) > self.n_ctx:
            raise ValueError(f"{len(tokens)} tokens at {start} do not fit n_ctx={self.n_ctx}")
        if min(tokens) < 0 or max(tokens) >= self.model.n_vocab:
            raise ValueError(f"token ids must lie in 0..{self.model.n_vocab - 1}")
        first_output = len(tokens) - outputs
        # The rows that are wanted must come from one call: the next one overwrites them.
        cuts = [*range(0, max(first_output, 1), self.n_batch)]
        if len(tokens) - cuts[-1] > self.n_batch:
            cuts.append(first_output)
        for begin, end in zip(cuts, [*cuts[1:], len(tokens)], strict=True):
            n = end - begin
            self._tokens[:n] = tokens[begin:end]
            self._positions[:n] = np.arange(start + begin, start + end)
            self._outputs[:n] = np.arange(begin, end) >= first_output
            self._batch.n_tokens = n
            forget_log()
            code = int(lib.llama_decode(self._handle, self._batch))
            if code != 0:
                return code
            self._last_batch = n
        return 0

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
        n = len(tokens)
        self._tokens[:n] = tokens
        self._positions[:n] = positions
        self._outputs[:n] = 1
        self._sequences[:n] = self._sequence.ctypes.data + 4 * np.asarray(branches, np.uint64)
        self._batch.n_tokens = n
        forget_log()
        try:
            return int(lib.llama_decode(self._handle, self._batch))
        finally:
            self._last_batch = n
            self._sequences[:n] = self._sequence.ctypes.data

    def fork(self, branch: int, to: int, n_tokens: int = -1) -> None:
        """Let branch `to` hold the first `n_tokens` of another one (-1: all); copies nothing.

        Recurrent memories can only be forked whole.
        """
        lib.llama_memory_seq_rm(self._memory, to, -1, -1)
        lib.llama_memory_seq_cp(self._memory, branch, to, -1, n_tokens)

    def drop(self, branch: int) -> None:
        """Free what no other branch holds."""
        lib.llama_memory_seq_rm(self._memory, branch, -1, -1)

    def drop_branches(self) -> None:
        """Leave nothing but the trunk."""
        for branch in range(1, 1 + self.n_branches):
            self.drop(branch)

    def row(self, back: int = 1) -> Row:
        """Logits after the ``back``-th last decoded token: a view, not a copy.

        Valid until the next `decode` or `close`; `decode` must have been asked for that row.
        """
        pointer = lib.llama_get_logits_ith(self._handle, self._last_batch - back)
        address = ctypes.cast(pointer, ctypes.c_void_p).value
        if not address:
            raise ValueError(f"no row was kept {back} tokens back")
        buffer = memoryview((ctypes.c_float * self.model.n_vocab).from_address(address))
        row: Row = np.frombuffer(buffer, np.float32)
        return row

    def set_threads(self, n: int) -> None:
        """Decode with so many threads from now on."""
        if n != self.n_threads:
            lib.llama_set_n_threads(self._handle, n, n)
            self.n_threads = n

    def cut(self, n_keep: int) -> bool:
        """Forget all tokens from position `n_keep` on; False if this memory cannot."""
        return bool(lib.llama_memory_seq_rm(self._memory, 0, n_keep, -1))

    def clear(self) -> None:
        """Forget everything."""
        lib.llama_memory_clear(self._memory, True)

    def save(self) -> NDArray[np.uint8]:
        """A checkpoint of the part of the memory that `cut` cannot roll back."""
        size = int(lib.llama_state_seq_get_size_ext(self._handle, 0, _PARTIAL))
        state = np.empty(size, np.uint8)
        pointer = ctypes.cast(state.ctypes.data, ctypes.POINTER(ctypes.c_uint8))
        lib.llama_state_seq_get_data_ext(self._handle, pointer, size, 0, _PARTIAL)
        return state

    def restore(self, state: NDArray[np.uint8]) -> bool:
        """Go back to a checkpoint; the attention part must be `cut` to the same length."""
        pointer = ctypes.cast(state.ctypes.data, ctypes.POINTER(ctypes.c_uint8))
        n = lib.llama_state_seq_set_data_ext(self._handle, pointer, len(state), 0, _PARTIAL)
        return int(n) == len(state)
