"""The one module that imports llama_cpp: load, tokenize, decode, rows.

It drives llama.cpp through llama-cpp-python's low-level (ctypes) layer.  llama.cpp aborts the
process on several kinds of misuse (ids out of range, batches over n_batch, ...): everything is
checked here before the call.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from logitfuse.errors import ModelLoadError, ModelNotFoundError, UnsupportedTokenizerError

#: One raw logits row, float32 ``[n_vocab]``; a view that the next decode overwrites.
Row = NDArray[np.float32]

#: Default context, tokens; less where the model was trained for less.
_N_CTX = 4096
_PARTIAL = 1  # LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY: only what seq_rm cannot roll back
_log_lines: deque[str] = deque(maxlen=8)


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _keep_log(_level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
    """Keep llama.cpp's last lines for error messages instead of printing them."""
    line = text.decode("utf-8", "replace").strip()
    if line.strip("."):
        _log_lines.append(line)


_backend_ready = False


def _start_backend() -> None:
    global _backend_ready
    if not _backend_ready:
        lib.llama_log_set(_keep_log, ctypes.c_void_p(0))
        lib.llama_backend_init()
        _backend_ready = True


def backend_info() -> dict[str, str | bool | int]:
    """What this build of llama.cpp can do."""
    import llama_cpp

    _start_backend()
    return {
        "llama_cpp_python": llama_cpp.__version__,
        "system": lib.llama_print_system_info().decode().strip(),
        "gpu_offload": bool(lib.llama_supports_gpu_offload()),
        "mmap": bool(lib.llama_supports_mmap()),
    }


def _repacks_safely() -> bool:
    """Whether llama.cpp's repacked weights can be trusted.

    GCC before 13 drops the stores that fill an AMX tile configuration, so llama.cpp built with it
    for an AMX CPU crashes in the first matrix product; the build does not say which compiler it
    saw.
    """
    return "AMX_INT8 = 1" not in str(backend_info()["system"])


def _address(name: str) -> int:
    """Address of a C function of libllama."""
    return ctypes.cast(getattr(lib._lib, name), ctypes.c_void_p).value or 0


class LlamaModel:
    """The weights and the tokenizer of one GGUF file.

    Parameters
    ----------
    path : path
        The GGUF file (the first of a split model).
    vocab_only : bool
        Load the tokenizer alone.
    n_gpu_layers : int
        Layers to offload; -1: all.
    main_gpu : int
        Device for a model that is not split.
    use_mmap : bool
        Map the file instead of reading it.
    repack : bool, optional
        Let llama.cpp store weights in a layout that suits the CPU.  By default on, but off in
        builds for AMX (see `_repacks_safely`).

    Raises
    ------
    ModelNotFoundError, ModelLoadError
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        vocab_only: bool = False,
        n_gpu_layers: int = 0,
        main_gpu: int = 0,
        use_mmap: bool = True,
        repack: bool | None = None,
    ) -> None:
        self._handle: Any = None
        self.path = Path(path)
        _check_file(self.path)
        _start_backend()
        params = lib.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = n_gpu_layers
        params.main_gpu = main_gpu
        params.load_mode = lib.LLAMA_LOAD_MODE_MMAP if use_mmap else lib.LLAMA_LOAD_MODE_NONE
        params.use_extra_bufts = _repacks_safely() if repack is None else repack
        _log_lines.clear()
        self._handle = lib.llama_model_load_from_file(os.fsencode(self.path), params)
        if not self._handle:
            raise ModelLoadError(
                f"llama.cpp cannot load '{self.path}': {_reason()}; "
                "check that the file is complete (compare its size or sha256 with the source)",
                path=self.path,
            )
        self.vocab_only = vocab_only
        self._vocab = lib.llama_model_get_vocab(self._handle)
        self.n_vocab = int(lib.llama_vocab_n_tokens(self._vocab))
        self.architecture = self.metadata("general.architecture") or "unknown"

    def close(self) -> None:
        """Free the model.  Nothing of it may be used afterwards."""
        if self._handle:
            lib.llama_model_free(self._handle)
            self._handle = None

    def __del__(self) -> None:
        if not sys.is_finalizing():  # llama_cpp is already taken apart then
            self.close()

    # -- what the file says ------------------------------------------------------------------

    def metadata(self, key: str) -> str | None:
        """A metadata value as text, or None."""
        buffer = ctypes.create_string_buffer(1024)
        n = lib.llama_model_meta_val_str(self._handle, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if n >= 0 else None

    @property
    def name(self) -> str:
        """The model's own name, or the file's."""
        return self.metadata("general.name") or self.path.stem

    @property
    def n_ctx_train(self) -> int:
        """Context length the model was trained for, tokens."""
        if self.vocab_only:  # llama.cpp has not read the hyper-parameters
            return int(self.metadata(f"{self.architecture}.context_length") or 0)
        return int(lib.llama_model_n_ctx_train(self._handle))

    def default_n_ctx(self, wanted: int | None = None) -> int:
        """Context length to use, tokens: `wanted`; 0: as trained; None: that, or 4096 if less."""
        trained = self.n_ctx_train
        return (min(_N_CTX, trained) if wanted is None else wanted) or trained

    def cache_bytes(self, n_ctx: int) -> int:
        """Memory that the KV cache of a context takes (16-bit keys and values), bytes.

        An estimate from the metadata; recurrent layers take less.
        """

        def number(key: str, default: int) -> int:
            value = self.metadata(f"{self.architecture}.{key}") or ""
            return int(value) if value.isdecimal() else default

        heads = number("attention.head_count", 1)
        kv_heads = number("attention.head_count_kv", heads)
        width = number("embedding_length", 0) // max(1, heads)
        per_token = number("attention.key_length", width) + number("attention.value_length", width)
        return 2 * n_ctx * number("block_count", 0) * kv_heads * per_token

    @property
    def n_bytes(self) -> int:
        """Size of the weights, bytes."""
        return int(lib.llama_model_size(self._handle))

    @property
    def n_params(self) -> int:
        """Number of weights."""
        return int(lib.llama_model_n_params(self._handle))

    @property
    def n_swa(self) -> int:
        """Sliding attention window, tokens; 0: none."""
        return int(lib.llama_model_n_swa(self._handle))

    @property
    def remembers_by_state(self) -> bool:
        """Recurrent or hybrid: the past is (partly) a state that cannot be cut back."""
        return bool(
            lib.llama_model_is_recurrent(self._handle) or lib.llama_model_is_hybrid(self._handle)
        )

    @property
    def chat_template(self) -> str | None:
        """The Jinja chat template in the file, or None."""
        template = lib.llama_model_chat_template(self._handle, None)
        return template.decode("utf-8", "replace") if template else None

    def require_generator(self) -> None:
        """Refuse models that cannot continue a text.

        Raises
        ------
        ModelLoadError
            Embedding models and encoders.
        """
        causal = self.metadata(f"{self.architecture}.attention.causal") != "false"
        decodes = lib.llama_model_has_decoder(self._handle)
        encodes = lib.llama_model_has_encoder(self._handle)
        if not causal or not decodes or encodes:
            raise self.not_a_generator()

    def not_a_generator(self) -> ModelLoadError:
        """The error to raise for a model that cannot continue a text."""
        return ModelLoadError(
            f"'{self.path}' is a model of type '{self.architecture}', which embeds or encodes "
            "text and cannot generate any; use a causal language model",
            path=self.path,
        )

    # -- tokenizer ---------------------------------------------------------------------------

    def require_byte_exact(self) -> None:
        """Refuse tokenizers whose tokens do not spell the text.

        Raises
        ------
        UnsupportedTokenizerError
            WordPiece, or no tokenizer at all.
        """
        kind = lib.llama_vocab_type(self._vocab)
        refused = {lib.LLAMA_VOCAB_TYPE_NONE: "none", lib.LLAMA_VOCAB_TYPE_WPM: "WordPiece"}
        if kind in refused:
            raise UnsupportedTokenizerError(
                f"the tokenizer of '{self.path}' ({refused[kind]}) does not map text to bytes one "
                "to one, so it cannot be aligned; use a BPE, SentencePiece or RWKV model",
                model_type=refused[kind],
            )

    def vocab_pointers(self) -> tuple[int, int, int, int, int]:
        """What the core needs to read the vocabulary: handle, size and three C functions."""
        return (
            self._vocab,
            self.n_vocab,
            _address("llama_token_to_piece"),
            _address("llama_vocab_get_attr"),
            _address("llama_vocab_is_eog"),
        )

    @property
    def bos(self) -> int | None:
        """The begin-of-text token, or None."""
        token = int(lib.llama_vocab_bos(self._vocab))
        return None if token < 0 else token

    @property
    def add_bos(self) -> bool:
        """Whether prompts begin with the begin-of-text token."""
        return bool(lib.llama_vocab_get_add_bos(self._vocab)) and self.bos is not None

    def special_text(self, which: str) -> str:
        """Text of the ``bos`` or ``eos`` token for chat templates; empty if there is none."""
        token = getattr(lib, f"llama_vocab_{which}")(self._vocab)
        text = lib.llama_vocab_get_text(self._vocab, token) if token >= 0 else b""
        return str(text.decode("utf-8", "replace"))

    def tokenize(self, text: bytes, *, parse_special: bool = False) -> list[int]:
        """Token ids of valid UTF-8 text, no begin-of-text token added.

        Vocabularies that add a space before every text do so here as well.
        """
        size = len(text) + 8
        while True:
            size = 1 << size.bit_length()  # few sizes: ctypes keeps a type of each
            buffer = (lib.llama_token * size)()
            n = lib.llama_tokenize(
                self._vocab, text, len(text), buffer, size, False, parse_special
            )
            if n >= 0:
                ids: list[int] = buffer[:n]
                return ids
            size = -n


class LlamaContext:
    """One sequence in one llama.cpp context: the KV cache and the rows.

    Not for two threads at once.

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
    """

    def __init__(
        self,
        model: LlamaModel,
        *,
        n_ctx: int,
        n_batch: int = 512,
        n_threads: int = 1,
        flash_attn: bool = True,
    ) -> None:
        self._handle: Any = None
        self.model = model
        params = lib.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = max(2, min(n_batch, n_ctx))  # two rows at once
        params.n_seq_max = 1
        params.n_threads = params.n_threads_batch = n_threads
        params.flash_attn_type = (
            lib.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash_attn else lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        params.swa_full = True  # else a rollback past the window is silently wrong
        params.no_perf = True
        _log_lines.clear()
        self._handle = lib.llama_init_from_model(model._handle, params)
        if not self._handle:
            raise ModelLoadError(
                f"llama.cpp cannot make a context of {n_ctx} tokens for '{model.path}': "
                f"{_reason()}; try a smaller -c/--ctx-size",
                path=model.path,
            )
        self._memory = lib.llama_get_memory(self._handle)
        if not self._memory:  # whatever the file says of itself
            raise model.not_a_generator()
        self.n_ctx = int(lib.llama_n_ctx(self._handle))
        self.n_batch = int(lib.llama_n_batch(self._handle))
        self.n_threads = n_threads
        self._make_batch()

    def close(self) -> None:
        """Free the context; rows read from it are dangling afterwards."""
        if self._handle:
            lib.llama_free(self._handle)
            self._handle = None

    def __del__(self) -> None:
        if not sys.is_finalizing():  # llama_cpp is already taken apart then
            self.close()

    def _make_batch(self) -> None:
        """A llama_batch over NumPy arrays, so that filling it costs no ctypes call per token."""
        n = self.n_batch
        self._tokens = np.zeros(n, np.int32)
        self._positions = np.zeros(n, np.int32)
        self._outputs = np.zeros(n, np.int8)
        self._n_seq = np.ones(n, np.int32)
        self._sequence = np.zeros(1, np.int32)
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
            _log_lines.clear()
            code = int(lib.llama_decode(self._handle, self._batch))
            if code != 0:
                return code
            self._last_batch = n
        return 0

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


def render_template(model: LlamaModel, template: str, messages: list[dict[str, str]]) -> str:
    """Render a chat with a Jinja template, sandboxed, ready for the assistant's reply."""
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    formatter = Jinja2ChatFormatter(
        template=template,
        eos_token=model.special_text("eos"),
        bos_token=model.special_text("bos"),
    )
    return str(formatter(messages=messages).prompt)


def last_log() -> str:
    """llama.cpp's last complaint."""
    return _reason()


def _reason() -> str:
    lines = [line for line in _log_lines if "failed" in line or "error" in line.lower()]
    return (lines or list(_log_lines) or ["it gives no reason"])[0].rstrip(".")


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ModelNotFoundError(
            f"there is no model file '{path}'; give the path of a GGUF file, or -hf user/repo",
            path=path,
        )
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ModelLoadError(
            f"'{path}' is not a GGUF file (it begins with {magic!r}); convert the model with "
            "llama.cpp's convert_hf_to_gguf.py, or download a .gguf file",
            path=path,
        )
