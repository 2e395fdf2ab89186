"""What is served, in objects."""

from __future__ import annotations

from typing import Any, get_args

from logitfuse import _core
from logitfuse.api.overrides import PARTS
from logitfuse.api.service import Api, Model
from logitfuse.llama import backend_info
from logitfuse.pooling import PoolName
from logitfuse.presets import PRESETS


def model_object(model: Model, created: int) -> dict[str, Any]:
    """OpenAI's object of a model; `created` is when it was loaded, Unix time."""
    return {"id": model.name, "object": "model", "created": created, "owned_by": "logitfuse"}


def properties(api: Api) -> dict[str, Any]:
    """The ensembles and their members, and what requests may choose from."""
    first = api.model(None)
    return {
        "models": {name: _describe(model) for name, model in api.models.items()},
        "default_model": first.name,
        "version": _core.__version__,
        "instruction_set": _core.isa(),
        "llama_cpp": backend_info()["llama_cpp"],
        "slots": api.batcher.slots,
        "queue": api.batcher.queue,
        "queue_tokens": api.batcher.queue_tokens,
        "presets": list(PRESETS),
        "pools": list(get_args(PoolName)),
        "sampling": first.config.sampling.model_dump(mode="json"),
    }


def _describe(model: Model) -> dict[str, Any]:
    config, engine = model.config, model.engine
    parts = config.model_dump(mode="json", include=set(PARTS), exclude_defaults=True)
    return {
        "members": [
            {
                "name": member.name,
                "weight": weight,
                "model": member.model.path.name,
                "architecture": member.model.architecture,
                "n_ctx": member.n_ctx,
                "n_vocab": len(member.vocab),
            }
            for member, weight in zip(engine.members, engine.weights, strict=True)
        ],
        "strategy": type(engine).__name__.lower(),
        "pool": config.pool,
        "gate": config.gate,
        "preset": config.preset,
        "weighting": config.weighting,
        "alignment": config.alignment,
        "schedule": config.schedule,
        "parts": parts,
        "sampling": config.sampling.model_dump(mode="json"),
    }
