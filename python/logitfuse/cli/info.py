"""``logitfuse info``: this installation, or what a model file says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter

from logitfuse.cli import output
from logitfuse.cli.options import Flag
from logitfuse.machine import installation
from logitfuse.vocab import TokenKind, Vocab


def info(
    model: Annotated[
        list[Path] | None, Parameter(name=["--model", "-m"], negative="", show_default=False)
    ] = None,
    *,
    json: Flag = False,
) -> None:
    """Show this installation, or what model files say.

    Examples:

        logitfuse info

        logitfuse info -m a.gguf --json

    Parameters
    ----------
    model
        GGUF file; repeat it.
    json
        Print JSON.
    """
    data: dict[str, Any] = {"installation": installation()}
    if model:
        data["models"] = [describe(path) for path in model]
    if json:
        output.dump(data)
        return
    parts = data.get("models") or [data["installation"]]
    for part in parts:
        rows = [(key, _line(value)) for key, value in part.items()]
        grid = output.table("", ("", ""), rows)
        grid.show_header = False
        grid.columns[1].justify = "left"
        output.out.print(grid)


def describe(path: Path) -> dict[str, Any]:
    """What one model file says; loads only its vocabulary."""
    from logitfuse.llama import LlamaModel

    model = LlamaModel(path, vocab_only=True)
    vocab = Vocab.from_llama(model)
    kinds = np.bincount(vocab.kinds, minlength=len(TokenKind)).tolist()
    return {
        "path": str(path),
        "name": model.name,
        "architecture": model.architecture,
        "file_bytes": path.stat().st_size,
        "n_ctx_train": model.n_ctx_train,
        "tokenizer": model.metadata("tokenizer.ggml.model"),
        "pre_tokenizer": model.metadata("tokenizer.ggml.pre"),
        "n_vocab": len(vocab),
        "tokens_by_kind": {kind.name.lower(): kinds[kind] for kind in TokenKind},
        "end_tokens": {int(i): vocab.token_bytes(int(i)).decode() for i in vocab.end_ids},
        "add_bos": model.add_bos,
        "chat_template": model.chat_template is not None,
    }


def _line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
