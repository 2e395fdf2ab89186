"""Fixtures shared by every test: real vocabularies, real models, and tiny ones of every kind."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import llama_cpp.llama_cpp as lib
import models
import pytest
from hypothesis import settings
from lockstep import PAIRS, Load, Models, Put, one_by_one
from logitfuse import _core
from logitfuse.evaluation.contenders import Contender
from logitfuse.member import Member
from logitfuse.strategies.bytes import Bytes
from logitfuse.strategies.engine import Engine
from logitfuse.strategies.fuse import Fuse
from tiny import write_tiny

# On top of Hypothesis' own profile (in CI: the same examples every time): no time limits, since a
# busy machine is not a bug.
settings.register_profile("untimed", settings(deadline=None))
settings.load_profile("untimed")
# Teams of OpenMP threads are catastrophically slow where other processes share the cores.
Engine.threads_alone = 1


class Recipe(NamedTuple):
    """How to make a tiny model: where its tokenizer comes from, and options of `write_tiny`."""

    vocab: Callable[[], Path]
    options: dict[str, Any]


def _vocab(name: str) -> Callable[[], Path]:
    return lambda: models.vocab_dir() / f"ggml-vocab-{name}.gguf"


RECIPES = {
    "gpt2": Recipe(_vocab("gpt-2"), {"max_vocab": 2000}),
    "llama-spm": Recipe(_vocab("llama-spm"), {"max_vocab": 1000, "seed": 1}),
    "smol": Recipe(models.smollm2, {"max_vocab": 4000, "seed": 2}),
    "qwen2": Recipe(_vocab("qwen2"), {"max_vocab": 3000, "seed": 3}),
    "gemma3": Recipe(models.gemma3, {"max_vocab": 3000, "seed": 4, "arch": "gemma3"}),
    "mamba": Recipe(_vocab("gpt-neox"), {"max_vocab": 2000, "seed": 5, "arch": "mamba"}),
    "lfm2": Recipe(_vocab("llama-bpe"), {"max_vocab": 2000, "seed": 6, "arch": "lfm2"}),
    "bert": Recipe(_vocab("bert-bge"), {"max_vocab": 2000, "seed": 7, "arch": "bert"}),
}


class TinyModels(Mapping[str, Path]):
    """Name to file of each tiny model in `RECIPES`; a file is written when first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: dict[str, Path] = {}

    def __getitem__(self, name: str) -> Path:
        if name not in self._written:
            vocab, options = RECIPES[name]
            path = self._folder / f"{name}.gguf"
            self._written[name] = write_tiny(path, vocab(), **options)
        return self._written[name]

    def __iter__(self) -> Iterator[str]:
        return iter(RECIPES)

    def __len__(self) -> int:
        return len(RECIPES)


@pytest.fixture(scope="session")
def vocab_dir() -> Path:
    """Directory of about 20 real ``ggml-vocab-*.gguf`` files."""
    return models.vocab_dir()


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The SmolLM2-135M-Instruct demo model."""
    return models.smollm2()


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    """The Gemma-3-270m demo model."""
    return models.gemma3()


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Tiny models by name, see `RECIPES`."""
    return TinyModels(tmp_path_factory.mktemp("tiny_models"))


@pytest.fixture(scope="session")
def wide_models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Tiny models to which the size of a batch makes next to no difference; see `float_cells`."""
    folder = tmp_path_factory.mktemp("wide_models")
    names = ("gpt2", "llama-spm", "smol", "qwen2", "mamba", "lfm2")
    return {
        name: write_tiny(
            folder / f"{name}.gguf", RECIPES[name].vocab(), **RECIPES[name].options, wide=True
        )
        for name in names
    }


@pytest.fixture
def float_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values are float32, without flash attention: a batch changes logits by 1e-6.

    llama.cpp sums in another order where it multiplies several tokens at once.  Rounded to float16,
    such a difference grows to 1e-2, and texts part at near ties.
    """
    defaults = lib.llama_context_default_params

    def wide() -> Any:
        params = defaults()
        params.type_k = params.type_v = lib.GGML_TYPE_F32
        return params

    monkeypatch.setattr(lib, "llama_context_default_params", wide)


@pytest.fixture(params=_core.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set in turn, in use by the core."""
    before = _core.isa()
    _core.set_isa(request.param)
    yield request.param
    _core.set_isa(before)


def pytest_report_header() -> str:
    """Name the versions that results depend on."""
    packages = ("llama-cpp-python", "numpy")
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


@pytest.fixture(scope="module")
def load(tiny_models: Models) -> Load:
    """Loads a tiny member, once for all tests; a second copy if asked for one."""

    @functools.cache
    def loaded(name: str, copy: int = 0) -> Member:
        return Member(tiny_models[name], name=f"{name}-{copy}" if copy else name, n_threads=1)

    return loaded


@pytest.fixture(scope="module")
def steady(tiny_models: Models) -> Load:
    """Like `load`; the same tokens always give the same bits."""

    @functools.cache
    def loaded(name: str, copy: int = 0) -> Member:
        return one_by_one(Member(tiny_models[name], name=f"{name}-{copy}", n_threads=1))

    return loaded


@pytest.fixture(scope="module")
def load_branching(tiny_models: Models) -> Load:
    """Like `load`, for members that can follow several tokenisations."""

    @functools.cache
    def loaded(name: str, copy: int = 0, n_ctx: int | None = None) -> Member:
        named = f"{name}-{copy}" if copy else name
        return Member(tiny_models[name], name=named, n_threads=1, n_branches=16, n_ctx=n_ctx)

    return loaded


@pytest.fixture
def fused(load: Load) -> Callable[..., Fuse]:
    """Makes an ensemble of tiny members by name."""
    return lambda *names, **options: Fuse([load(name) for name in names], **options)


@pytest.fixture(params=PAIRS, ids="+".join)
def pair(request: pytest.FixtureRequest, fused: Callable[..., Fuse]) -> Fuse:
    """Two members with different tokenizers."""
    return fused(*request.param)


@pytest.fixture
def put(load: Load, load_branching: Load) -> Put:
    """Makes a contender of tiny members."""

    def made(strategy: type[Engine], *names: str, **options: Any) -> Contender:
        loaded = load_branching if strategy is Bytes else load
        engine = strategy([loaded(name) for name in names], **options)
        return Contender("it", "ensemble" if len(names) > 1 else "member", engine, {})

    return made
