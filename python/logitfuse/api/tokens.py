"""Texts to symbols and back, as llama.cpp's and vLLM's servers do it."""

from __future__ import annotations

from typing import Any

from logitfuse.api.bodies import DetokenizeBody, TokenizeBody
from logitfuse.api.service import Api
from logitfuse.completions import text_of
from logitfuse.echo import tokenize as tokenize_text
from logitfuse.echo import tokenizer_info
from logitfuse.errors import ConfigError, PromptError


def tokenize(api: Api, body: TokenizeBody) -> dict[str, Any]:
    """The symbols of a text (see `logitfuse.echo.tokenize`); special tokens are recognised.

    Raises
    ------
    ProblemError, ConfigError
    """
    engine = api.model(body.model).engine
    text, param = (body.prompt, "prompt") if body.content is None else (body.content, "content")
    if text is None:
        raise ConfigError("give the text as 'content' or as 'prompt'", key="content")
    api.require_short(len(text), param)
    symbols = tokenize_text(engine, text.encode(), special=True)
    scribe = engine.members[engine.scribe]
    begins = engine.alignment.identical and scribe.model.add_bos
    if begins and _adds_special(body) and symbols[:1] != [scribe.opening]:
        symbols.insert(0, scribe.opening)
    tokens: list[Any] = symbols
    if body.with_pieces:
        pieces = engine.alignment.spell(symbols)
        tokens = [{"id": i, "piece": _piece(unit)} for i, unit in zip(symbols, pieces, strict=True)]
    n_ctx = min(member.n_ctx for member in engine.members)
    return {"tokens": tokens, "count": len(tokens), "max_model_len": n_ctx}


def _adds_special(body: TokenizeBody) -> bool:
    """Whether a text is to begin as prompts do: at vLLM it is, unless that is forbidden."""
    if body.content is None:
        return body.add_special_tokens is not False
    return bool(body.add_special)


def _piece(unit: bytes) -> str | list[int]:
    """What a symbol spells; bytes where that is no text, as in llama.cpp."""
    try:
        return unit.decode()
    except UnicodeDecodeError:
        return list(unit)


def info(api: Api) -> dict[str, Any]:
    """What clients that tokenize here want to know (see `logitfuse.echo.tokenizer_info`)."""
    return tokenizer_info(api.model(None).engine)


def detokenize(api: Api, body: DetokenizeBody) -> dict[str, Any]:
    """The text that symbols spell.

    Raises
    ------
    ProblemError, ConfigError
    """
    alignment = api.model(body.model).engine.alignment
    api.require_short(len(body.tokens), "tokens")
    try:
        text = text_of(b"".join(alignment.spell(body.tokens)))
    except PromptError as error:
        raise ConfigError(str(error), key="tokens") from None
    return {"content": text, "prompt": text}
