"""Several local GGUF language models answer as one.

This is the public API; every other name may change.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from logitfuse._core import __version__

if TYPE_CHECKING:
    from logitfuse.alignment import Alignment, align
    from logitfuse.ensemble import Ensemble
    from logitfuse.errors import LogitfuseError
    from logitfuse.member import Member
    from logitfuse.pooling import Fused, fuse, fuse_batch
    from logitfuse.sampling import SamplingParams
    from logitfuse.vocab import TokenKind, Vocab

# Loaded on first use: the merger must not wait for llama.cpp, nor the command line for anything.
_HOME = {
    "Alignment": "alignment",
    "Ensemble": "ensemble",
    "Fused": "pooling",
    "LogitfuseError": "errors",
    "Member": "member",
    "SamplingParams": "sampling",
    "TokenKind": "vocab",
    "Vocab": "vocab",
    "align": "alignment",
    "fuse": "pooling",
    "fuse_batch": "pooling",
}

__all__ = [
    "Alignment",
    "Ensemble",
    "Fused",
    "LogitfuseError",
    "Member",
    "SamplingParams",
    "TokenKind",
    "Vocab",
    "__version__",
    "align",
    "fuse",
    "fuse_batch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'logitfuse' has no attribute '{name}'")
    return getattr(import_module(f"logitfuse.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
