"""Copies of a model in coarser types."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from conftest import TinyModels
from gguf_reader import read_gguf
from logitfuse.llama.tensors import Tensor
from logitfuse.member import Member
from requantise import requantise


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_copies(kind: str, tiny_models: TinyModels, tmp_path: Path) -> None:
    source = tiny_models["smol"]
    copy = requantise(source, tmp_path / "copy.gguf", kind)
    assert list(tmp_path.iterdir()) == [copy]
    assert copy.stat().st_size < source.stat().st_size
    kinds = {tensor.kind for tensor in read_gguf(copy).tensors.values()}
    assert gguf.GGMLQuantizationType[kind] in kinds
    members = [Member(path, n_threads=1, n_ctx=64) for path in (source, copy)]
    assert members[0].vocab == members[1].vocab
    name = "token_embd.weight"
    exact, coarse = (Tensor(path, name)[:] for path in (source, copy))
    error = np.abs(coarse - exact).mean() / np.abs(exact).mean()
    assert 0 < error < {"Q4_0": 0.2, "Q8_0": 0.02}[kind]
    for member in members:
        member.close()


def test_refused(tmp_path: Path) -> None:
    source = tmp_path / "source.gguf"
    source.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(RuntimeError, match="source"):
        requantise(source, tmp_path / "copy.gguf", "Q4_0")
    assert list(tmp_path.iterdir()) == [source]
