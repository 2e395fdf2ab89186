"""Sampling parameters: one declaration for Python, the command line, TOML and the server."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, field_validator

from logitfuse import _core
from logitfuse.alignment import Alignment
from logitfuse.errors import FusionError


class SamplingParams(BaseModel):
    """How a symbol is chosen from the pooled distribution; llama.cpp's names, order and meaning.

    The order is: logit bias, penalties, top-k, typical-p, top-p, min-p, temperature, draw.
    llama.cpp's samplers work on logits; here the pooled log-probabilities are the logits.

    Raises
    ------
    pydantic.ValidationError
        A value is out of range or a name is unknown.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    temperature: float = Field(0.8, ge=0, allow_inf_nan=False, description="0: greedy")
    top_k: int = Field(40, description="keep the k best; 0 or less: all")
    top_p: float = Field(0.95, ge=0, le=1, description="keep the best that sum to p; 1: all")
    min_p: float = Field(0.05, ge=0, le=1, description="keep what has p times the best; 0: all")
    typical_p: float = Field(1.0, gt=0, le=1, description="locally typical sampling; 1: off")
    repeat_penalty: float = Field(1.0, gt=0, allow_inf_nan=False, description="1: off")
    frequency_penalty: float = Field(0.0, allow_inf_nan=False, description="per occurrence, nats")
    presence_penalty: float = Field(0.0, allow_inf_nan=False, description="once, nats")
    penalty_last_n: int = Field(64, ge=0, description="how many symbols penalties look back at")
    seed: int | None = Field(None, ge=0, lt=2**64, description="None or -1: a random one")
    logit_bias: dict[int | str | bytes, float] = Field(
        default_factory=dict, description="nats added to a symbol, by text, bytes or symbol id"
    )

    @field_validator("seed", mode="before")
    @classmethod
    def _random_seed(cls, seed: object) -> object:
        return None if seed == -1 else seed


#: The pooled distribution as it is.
WHOLE_POOL = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)


def make_sampler(params: SamplingParams, alignment: Alignment) -> _core.Sampler:
    """The native sampler for one answer over one alignment.

    Raises
    ------
    FusionError
        A bias names a text that no member can emit as one symbol.
    """
    return _core.Sampler(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        typical_p=params.typical_p,
        repeat_penalty=params.repeat_penalty,
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
        penalty_last_n=params.penalty_last_n,
        seed=secrets.randbits(32) if params.seed is None else params.seed,
        biases=_biases(params.logit_bias, alignment),
    )


def _biases(
    biases: Mapping[int | str | bytes, float], alignment: Alignment
) -> list[tuple[int, float]]:
    found = []
    for key, value in biases.items():
        if isinstance(key, int):
            if not 0 <= key < len(alignment):
                raise FusionError(f"logit bias for symbol {key}: there are {len(alignment)}")
            found.append((key, value))
            continue
        text = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
        symbol = alignment.lookup(text)
        if symbol is None:
            raise FusionError(
                f"logit bias for {key!r}: no member has a token that spells exactly this; "
                "bias the tokens it is made of (logitfuse check shows them)"
            )
        found.append((symbol, value))
    return found
