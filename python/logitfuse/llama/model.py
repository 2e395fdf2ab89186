"""A GGUF file: what it says, and its tokenizer."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import llama_cpp.llama_cpp as lib

from logitfuse.errors import ModelLoadError, ModelNotFoundError, UnsupportedTokenizerError
from logitfuse.llama.backend import (
    address,
    call_aside,
    forget_log,
    last_log,
    repacks_safely,
    start_backend,
)

#: Default context, tokens; less where the model was trained for less.
_N_CTX = 4096


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
        builds for AMX (see `repacks_safely`).

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
        self._owner: Any = None
        self._contexts = 0
        self._closing = False
        self.path = Path(path)
        check_file(self.path)
        start_backend()
        params = lib.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = n_gpu_layers
        params.main_gpu = main_gpu
        params.load_mode = lib.LLAMA_LOAD_MODE_MMAP if use_mmap else lib.LLAMA_LOAD_MODE_NONE
        params.use_extra_bufts = repacks_safely() if repack is None else repack
        forget_log()
        self._handle = _load(self.path, params)
        if not self._handle:
            raise ModelLoadError(
                f"llama.cpp cannot load '{self.path}': {last_log()}; "
                "check that the file is complete (compare its size or sha256 with the source)",
                path=self.path,
            )
        self.vocab_only = vocab_only
        self._read_head()

    def _read_head(self) -> None:
        self._vocab = lib.llama_model_get_vocab(self._handle)
        self.n_vocab = int(lib.llama_vocab_n_tokens(self._vocab))
        self.architecture = self.metadata("general.architecture") or "unknown"

    @classmethod
    def borrow(cls, llama: Any) -> Self:
        """The model of a ``llama_cpp.Llama``, which stays its owner and is kept alive."""
        model = cls.__new__(cls)
        model._handle, model._owner = llama.model, llama
        model._contexts, model._closing = 0, False
        model.path = Path(llama.model_path)
        model.vocab_only = False
        model._read_head()
        return model

    def close(self) -> None:
        """Free the model, once its last context is freed.  Nothing of it may be used afterwards.

        The collector finalises the members of a cycle in any order, often the model first; a
        context that is freed later still reads its model.
        """
        self._closing = True
        if self._contexts:
            return
        if self._handle and self._owner is None:
            lib.llama_model_free(self._handle)
        self._handle = None

    def attach(self) -> None:
        """A context of this model has been made."""
        self._contexts += 1

    def detach(self) -> None:
        """A context of this model has been freed."""
        self._contexts -= 1
        if self._closing:
            self.close()

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not is_finalizing():  # llama_cpp, and this module, are already taken apart then
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
            address("llama_token_to_piece"),
            address("llama_vocab_get_attr"),
            address("llama_vocab_is_eog"),
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
            n = lib.llama_tokenize(self._vocab, text, len(text), buffer, size, False, parse_special)
            if n >= 0:
                ids: list[int] = buffer[:n]
                return ids
            size = -n


def render_template(model: LlamaModel, template: str, messages: list[dict[str, str]]) -> str:
    """Render a chat with a Jinja template, sandboxed, ready for the assistant's reply."""
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    formatter = Jinja2ChatFormatter(
        template=template,
        eos_token=model.special_text("eos"),
        bos_token=model.special_text("bos"),
    )
    return str(formatter(messages=messages).prompt)


def _load(path: Path, params: Any) -> Any:
    """Load a model; Ctrl-C stops it."""
    cancelled = threading.Event()

    @lib.llama_progress_callback  # type: ignore[untyped-decorator]
    def go_on(_progress: float, _user_data: ctypes.c_void_p) -> bool:
        return not cancelled.is_set()

    params.progress_callback = go_on
    load = partial(lib.llama_model_load_from_file, os.fsencode(path), params)
    return call_aside(load, cancel=cancelled.set, free=lib.llama_model_free)


def check_file(path: Path) -> None:
    """Refuse a path that is no GGUF file, saying why."""
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
