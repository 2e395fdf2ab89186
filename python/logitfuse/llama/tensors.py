"""Tensors of a GGUF file as float32 rows, without loading the model."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from logitfuse.errors import ModelLoadError
from logitfuse.llama.backend import forget_log, last_log, start_backend
from logitfuse.llama.model import check_file

_MAX_DIMS = 4  # GGML_MAX_DIMS
_FLOAT32 = 0  # GGML_TYPE_F32: the one type that needs no conversion
_CHUNK = 1 << 24  # bytes hashed at a time


class _Params(ctypes.Structure):
    """``gguf_init_params``."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


class _Traits(ctypes.Structure):
    """``ggml_type_traits``."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float_ref", ctypes.c_void_p),
    )


_ToFloat = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class Tensor:
    """A tensor of a GGUF file, seen as a matrix: the fastest axis is the width of a row.

    The file is mapped; only the rows that are asked for are read and converted.

    Parameters
    ----------
    path : path
        The GGUF file; of a split model, the part that holds the tensor.
    name : str
        For example ``"token_embd.weight"``.

    Raises
    ------
    ModelNotFoundError, ModelLoadError
        No such file, not a GGUF file, no such tensor in it, a type that does not convert to
        float32, or the file ends before the tensor does.
    """

    def __init__(self, path: str | os.PathLike[str], name: str) -> None:
        self.path = Path(path)
        self.name = name
        check_file(self.path)
        header = _open(self.path)
        try:
            self._locate(header)
        finally:
            _ggml().gguf_free(header)

    def _locate(self, header: int) -> None:
        ggml = _ggml()
        index = ggml.gguf_find_tensor(header, self.name.encode())
        if index < 0:
            raise self._error("has no tensor '{name}'; give the part of a split model that has it")
        kind = ggml.gguf_get_tensor_type(header, index)
        traits = ggml.ggml_get_type_traits(kind).contents
        self.type_name = traits.type_name.decode()
        if kind != _FLOAT32 and not traits.to_float:
            raise self._error(f"has tensor '{{name}}' as {self.type_name}, which is not readable")
        self._to_float = _ToFloat(traits.to_float) if traits.to_float else None
        *others, width = reversed(ggml.gguf_get_tensor_ne(header, index)[:_MAX_DIMS])
        self.shape = (int(np.prod(others)), int(width))
        start = ggml.gguf_get_data_offset(header) + ggml.gguf_get_tensor_offset(header, index)
        size = ggml.gguf_get_tensor_size(header, index)
        if start + size > self.path.stat().st_size:
            raise self._error("ends before its tensor '{name}' does; get the complete file")
        shape = (self.shape[0], size // max(1, self.shape[0]))
        self._data = np.memmap(self.path, np.uint8, "r", start, shape)

    def _error(self, what: str) -> ModelLoadError:
        return ModelLoadError(f"'{self.path}' {what.format(name=self.name)}", path=self.path)

    def __len__(self) -> int:
        """Number of rows."""
        return self.shape[0]

    def __repr__(self) -> str:
        return f"Tensor({self.name}, {self.shape[0]} x {self.shape[1]} {self.type_name})"

    def __getitem__(self, rows: slice | ArrayLike) -> NDArray[np.float32]:
        """Rows as float32.

        Parameters
        ----------
        rows : slice or int array, shape ``[n]``

        Returns
        -------
        float32 array, shape ``[n, width]``

        Raises
        ------
        IndexError
            There is no such row.
        """
        index = rows if isinstance(rows, slice) else np.asarray(rows, np.int64)
        raw = np.ascontiguousarray(self._data[index])
        if self._to_float is None:
            return raw.view(np.float32)
        found = np.empty((len(raw), self.shape[1]), np.float32)
        self._to_float(raw.ctypes.data, found.ctypes.data, found.size)
        return found

    def sha256(self) -> bytes:
        """Hash of the tensor as it lies in the file, with its shape and type."""
        digest = hashlib.sha256(repr(self).encode())
        flat = self._data.reshape(-1)
        for start in range(0, len(flat), _CHUNK):
            digest.update(flat[start : start + _CHUNK].data)
        return digest.digest()


def _open(path: Path) -> int:
    """Handle of a file's header; no tensor is read."""
    start_backend()
    forget_log()
    header = _ggml().gguf_init_from_file(os.fsencode(path), _Params(True, None))
    if not header:
        raise ModelLoadError(
            f"cannot read the header of '{path}': {last_log()}; check that the file is complete",
            path=path,
        )
    return int(header)


@functools.cache
def _ggml() -> Any:
    """The base library of ggml that libllama stands on, with the signatures used here.

    llama_cpp declares none of them; they follow ``gguf.h`` and ``ggml.h`` of the pinned version.
    """
    ggml = lib.load_shared_library("ggml-base", lib._base_path)
    handle, index, size = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
    signatures: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "gguf_init_from_file": (handle, (ctypes.c_char_p, _Params)),
        "gguf_free": (None, (handle,)),
        "gguf_find_tensor": (index, (handle, ctypes.c_char_p)),
        "gguf_get_data_offset": (size, (handle,)),
        "gguf_get_tensor_offset": (size, (handle, index)),
        "gguf_get_tensor_size": (size, (handle, index)),
        "gguf_get_tensor_type": (ctypes.c_int, (handle, index)),
        "gguf_get_tensor_ne": (ctypes.POINTER(ctypes.c_int64), (handle, index)),
        "ggml_get_type_traits": (ctypes.POINTER(_Traits), (ctypes.c_int,)),
    }
    for name, (result, arguments) in signatures.items():
        function: Callable[..., Any] = getattr(ggml, name)
        function.restype, function.argtypes = result, arguments  # type: ignore[attr-defined]
    return ggml
