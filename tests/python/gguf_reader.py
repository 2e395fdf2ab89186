"""A fast reader of the two things that the tests need from a GGUF file: metadata and float tensors.

The reader of the ``gguf`` package builds one array per list element, which takes many seconds on a
real vocabulary. Here strings are sliced straight out of a memory map, which takes milliseconds.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Value = int | float | bool | str | list[bytes] | NDArray[np.generic]

# The value types of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
_SCALARS = dict(enumerate(["<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?"])) | {
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9
_TENSOR_DTYPES: dict[int, np.dtype[Any]] = {0: np.dtype("<f4"), 1: np.dtype("<f2")}
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies.

    Attributes
    ----------
    shape
        In NumPy's order, slowest axis first (the file stores the reverse).
    kind
        The ggml type number; 0 is float32, 1 is float16.
    offset
        Bytes from the start of the file's tensor data.
    """

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class Gguf:
    """The header of a GGUF file.

    Attributes
    ----------
    metadata
        Key to value; strings inside lists stay bytes, since tokens need not be valid UTF-8.
    tensors
        Name to location.
    data_start
        Bytes from the start of the file to its tensor data.
    """

    path: Path
    metadata: dict[str, Value]
    tensors: dict[str, Tensor]
    data_start: int

    def tensor(self, name: str) -> NDArray[np.floating]:
        """Read one float32 or float16 tensor from the file."""
        tensor = self.tensors[name]
        dtype = _TENSOR_DTYPES[tensor.kind]
        start = self.data_start + tensor.offset
        count = math.prod(tensor.shape)
        return np.fromfile(self.path, dtype, count, offset=start).reshape(tensor.shape)


class _Cursor:
    """A position in the mapped file that moves forward with every read."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def numbers(self, kind: int, count: int) -> NDArray[np.generic]:
        dtype = np.dtype(_SCALARS[kind])
        values = np.frombuffer(self.data[self.at : self.at + count * dtype.itemsize], dtype)
        self.at += values.nbytes
        return values

    def integer(self, kind: int = 4) -> int:
        return int(self.numbers(kind, 1)[0])

    def strings(self, count: int) -> list[bytes]:
        data, at = self.data, self.at
        found = []
        for _ in range(count):
            start = at + _LENGTH.size
            at = start + _LENGTH.unpack_from(data, at)[0]
            found.append(data[start:at])
        self.at = at
        return found

    def text(self) -> str:
        return self.strings(1)[0].decode()

    def value(self, kind: int) -> Value:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            element, count = self.integer(), self.integer(10)
            return self.strings(count) if element == _STRING else self.numbers(element, count)
        return self.numbers(kind, 1)[0].item()

    def tensor(self) -> Tensor:
        shape = self.numbers(10, self.integer())[::-1]
        return Tensor(tuple(shape.tolist()), self.integer(), self.integer(10))


def read_gguf(path: Path) -> Gguf:
    """Read the header of a GGUF file: every key, and where every tensor lies.

    Parameters
    ----------
    path
        A GGUF file of version 2 or 3 (a nested list of lists is not supported).
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file: it begins with {data[:4]!r}")
        cursor = _Cursor(data)
        cursor.at = 8  # behind the magic number and the version
        n_tensors, n_keys = cursor.integer(10), cursor.integer(10)
        metadata = {cursor.text(): cursor.value(cursor.integer()) for _ in range(n_keys)}
        tensors = {cursor.text(): cursor.tensor() for _ in range(n_tensors)}
        alignment = metadata.get("general.alignment", 32)
        assert isinstance(alignment, int)
        return Gguf(path, metadata, tensors, -(-cursor.at // alignment) * alignment)
