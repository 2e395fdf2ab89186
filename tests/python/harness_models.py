"""What the tests of the harness plug-in share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from logitfuse.harness import LogitfuseLM
from logitfuse.strategies.bytes import Bytes

PROSE = "The harbour was built by fishermen; its oldest wall is of grey stone. "
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the capital of France?"},
]
#: Tokens that are decoded at a time on both sides: quantised products round otherwise in larger
#: batches, which changes a sum of 80 log-probabilities by 0.1 %.
BATCH = 32

Models = Mapping[str, Path]
Make = Callable[..., LogitfuseLM]


def ask(model: LogitfuseLM, kind: str, *asked: tuple[Any, ...]) -> list[Any]:
    """What the harness does with a model."""
    requests = [Instance(kind, {}, arguments, i) for i, arguments in enumerate(asked)]  # type: ignore[arg-type]
    answers: list[Any] = getattr(model, kind)(requests, disable_tqdm=True)
    return answers


def load_harness(*paths: Path, **arguments: Any) -> LogitfuseLM:
    """A model of the harness, on one thread."""
    return LogitfuseLM(model="+".join(map(str, paths)), n_threads=1, **arguments)


def load_smollm2(path: Path) -> LogitfuseLM:
    """SmolLM2, with batches as small as those it is compared with."""
    return load_harness(path, n_ctx=256, n_batch=BATCH)


def load_pair(models: Models) -> LogitfuseLM:
    """Two tokenizers, byte by byte."""
    model = load_harness(models["smol"], models["llama-spm"], weights="0.6+0.4", n_ctx=256)
    assert isinstance(model.ensemble.generator, Bytes)
    return model
