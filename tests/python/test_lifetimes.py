"""A model outlives its contexts, in whatever order they are let go."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import llama_cpp.llama_cpp as lib
import pytest
from logitfuse.llama import LlamaContext, LlamaModel
from logitfuse.member import Member
from logitfuse.strategies.fuse import Fuse


@pytest.fixture
def freed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What llama.cpp was told to free, in order."""
    order: list[str] = []
    for name in ("llama_free", "llama_model_free"):
        free = getattr(lib, name)

        def record(handle: object, name: str = name, free: object = free) -> None:
            order.append(name)
            free(handle)  # type: ignore[operator]

        monkeypatch.setattr(lib, name, record)
    gc.collect()
    order.clear()
    yield order
    gc.collect()


def test_the_collector_may_begin_with_the_model(
    tiny_models: Mapping[str, Path], freed: list[str]
) -> None:
    """Engines are cycles, and a cycle's finalisers run in the order in which it was made."""
    fuse = Fuse([Member(tiny_models[name], n_threads=1) for name in ("gpt2", "smol")])
    gone = weakref.ref(fuse)
    del fuse
    gc.collect()
    assert gone() is None
    assert sorted(freed) == ["llama_free"] * 2 + ["llama_model_free"] * 2
    assert freed[0] == "llama_free"
    assert freed[-1] == "llama_model_free"


def test_a_closed_model_waits_for_its_contexts(
    tiny_models: Mapping[str, Path], freed: list[str]
) -> None:
    model = LlamaModel(tiny_models["gpt2"])
    contexts = [LlamaContext(model, n_ctx=256) for _ in range(2)]
    model.close()
    contexts[0].close()
    assert freed == ["llama_free"]
    assert contexts[1].decode([1, 2, 3], 0) == 0
    contexts[1].close()
    assert freed == ["llama_free", "llama_free", "llama_model_free"]
    model.close()
    contexts[1].close()
    assert len(freed) == 3


def test_a_member_frees_everything_once(tiny_models: Mapping[str, Path], freed: list[str]) -> None:
    member = Member(tiny_models["gpt2"], n_threads=1)
    member.close()
    member.close()
    del member
    gc.collect()
    assert freed == ["llama_free", "llama_model_free"]
