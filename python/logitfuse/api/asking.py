"""From a body to what a batcher is asked."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import ValidationError

from logitfuse.api.bodies import ChatBody, CompletionBody, Extension, GenerationBody
from logitfuse.config import explain
from logitfuse.constraint import Constraint, constraint_of
from logitfuse.errors import ConfigError
from logitfuse.sampling import SamplingParams
from logitfuse.strategies.base import Request

#: Symbols of an answer to a text, where nothing is said, as at OpenAI.
_USUAL_LENGTH = 16
#: Most digits of a symbol's id.
_DIGITS = 10


def length_of(body: GenerationBody, limit: int | None) -> int | None:
    """Most symbols of an answer; None: until the end or the context is full.

    Raises
    ------
    ConfigError
        A reply of 0 symbols; OpenAI allows that only for texts, llama.cpp for both.
    """
    asked = {"max_tokens": body.max_tokens, "n_predict": body.n_predict}
    if isinstance(body, ChatBody):
        asked = {"max_completion_tokens": body.max_completion_tokens, **asked}
    key, length = next(
        ((key, n) for key, n in asked.items() if n is not None),
        ("max_tokens", -1 if isinstance(body, ChatBody) else _USUAL_LENGTH),
    )
    if length == 0 and isinstance(body, ChatBody) and key != "n_predict":
        raise ConfigError(f"'{key}' must be at least 1 (-1: until the end)", key=key)
    if length < 0:
        return limit
    return length if limit is None else min(length, limit)


def scores_prompt(body: GenerationBody) -> bool:
    """Whether the log-probabilities of the prompt are asked for."""
    return isinstance(body, CompletionBody) and bool(body.echo) and body.logprobs is not None


def sampling_of(body: GenerationBody, base: SamplingParams) -> SamplingParams:
    """The ensemble's sampling parameters, and what the body says besides.

    Raises
    ------
    ConfigError
        A value is out of range.
    """
    given = body.model_dump(include=set(SamplingParams.model_fields), exclude_none=True)
    if body.repeat_last_n is not None:
        given.setdefault("penalty_last_n", body.repeat_last_n)
    given["logit_bias"] = base.logit_bias | _biases(body)
    if body.seed is not None and body.seed < -1:  # as llama.cpp reads it
        given["seed"] = body.seed % 2**32
    try:
        return SamplingParams.model_validate(base.model_dump() | given)
    except ValidationError as error:
        raise explain(error) from None


def _biases(body: GenerationBody) -> dict[int | str | bytes, float]:
    """Biases by symbol (keys of digits are ids, as at OpenAI) or text."""
    pairs = body.logit_bias or []
    if isinstance(pairs, Mapping):
        pairs = [(_key(key), bias) for key, bias in pairs.items()]
    return {key: -math.inf if bias is False else bias for key, bias in pairs}


def _key(key: str) -> int | str:
    """A symbol's id, or a text.

    Raises
    ------
    ConfigError
        No symbol has such an id.
    """
    if not key.isdecimal():
        return key
    if len(key) > _DIGITS:
        raise ConfigError(f"no symbol has an id of {len(key)} digits", key="logit_bias")
    return int(key)


def request_of(
    body: GenerationBody, base: SamplingParams, length: int | None, seconds: float | None
) -> Request:
    """What is asked of each prompt, which is still to be put in.

    Parameters
    ----------
    body : GenerationBody
    base : SamplingParams
        The ensemble's own.
    length : int or None
        Most symbols of an answer.
    seconds : float or None
        For an answer.

    Raises
    ------
    ConfigError
    """
    extension, stop = body.logitfuse or Extension(), body.stop or ()
    return Request(
        "",
        sampling_of(body, base),
        max_tokens=length,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        ignore_end=bool(body.ignore_eos),
        top_logprobs=top_of(body) or 0,
        time_limit=seconds,
        member_top=(extension.candidates or 0) if extension.trace else 0,
        constraint=_constraint_of(body),
    )


def _constraint_of(body: GenerationBody) -> Constraint | None:
    """What the answer may be."""
    wanted = body.response_format
    return constraint_of(
        None if wanted is None else wanted.model_dump(by_alias=True, exclude_none=True),
        body.grammar,
        body.json_schema,
    )


def top_of(body: GenerationBody) -> int | None:
    """How many best symbols are listed per token; None: no log-probabilities are asked for."""
    if isinstance(body, CompletionBody):
        return body.logprobs
    assert isinstance(body, ChatBody)
    return (body.top_logprobs or 0) if body.logprobs else None
