"""The seam between strategies: messages or a prompt in, a stream of chunks out."""

from __future__ import annotations

import math
from collections import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from logitfuse.constraint import Constraint
from logitfuse.errors import ConfigError
from logitfuse.evidence import Span
from logitfuse.sampling import SamplingParams

Message: TypeAlias = Mapping[str, Any]
FinishReason: TypeAlias = Literal["stop", "length"]
#: How a step was decided: by one member alone, by all alike, by a majority of the pooled
#: probability, or by the pool.
DecisionName: TypeAlias = Literal["led", "agree", "certain", "fused"]
#: A unit and its log-probability, nats.
Candidate: TypeAlias = tuple[bytes, float]


@dataclass(frozen=True)
class Request:
    """What is asked of a generator.

    Attributes
    ----------
    prompt : str or bytes, or a sequence of symbols or of messages
        Text to continue (as symbols of the ensemble's alignment if they are integers), or a chat
        (``{"role": ..., "content": ...}``).
    sampling : SamplingParams
    max_tokens : int or None
        Most symbols to generate; None: until the end or the context is full.
    stop : tuple of str
        The answer ends before the first of these.
    ignore_end : bool
        Go on where the members would end.
    top_logprobs : int
        How many of the best symbols each `Step` lists.
    member_top : int
        How many of each member's own candidates each `Step` lists.
    constraint : Constraint or None
        What the answer may be.  It ends where nothing but the end may follow, even with
        `ignore_end`; at `max_tokens` it is a beginning of what it may be.  All log-probabilities,
        the members' too, are then normalised over the tokens that may come (see `Guide`).
    time_limit : float or None
        Seconds after which the answer ends, the prompt included.

    Raises
    ------
    ConfigError
        `max_tokens` is less than 1.
    """

    prompt: str | bytes | Sequence[int] | Sequence[Message]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_end: bool = False
    top_logprobs: int = 0
    member_top: int = 0
    constraint: Constraint | None = None
    time_limit: float | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(
                f"max_tokens must be at least 1 (None: no limit), not {self.max_tokens}",
                key="max_tokens",
            )


@dataclass(frozen=True)
class Prompt:
    """A member's own rendering of the prompt."""

    tokens: list[int]
    text: bytes
    stop: tuple[str, ...] = ()  #: what else ends the member's replies
    spans: Sequence[Span] | None = None  #: of what all members are given in it; None: all of it


@dataclass(frozen=True)
class Step:
    """One generated unit and who wanted it.

    Attributes
    ----------
    symbol : int
        Its id in the alignment; -1 if it is not the text of any one token.
    unit : bytes
        The bytes it adds to the text; empty for the end.
    logprob : float
        Pooled, after bias and penalties, nats.
    member_logprobs : tuple of float
        Each member's own, nats; -inf: cannot spell it with one token; NaN: did not vote.
    wishes : tuple of (bytes or None)
        What each member alone would have said; None: did not vote.
    decision : {"led", "agree", "certain", "fused"}
    top : tuple of (bytes, float)
        The best symbols with their pooled log-probabilities.
    member_tops : tuple of tuple of (bytes, float)
        Each member's own best candidates with its own log-probabilities, nats, best first: its wish
        is the first.  Empty for a member that did not vote; no entries at all if none were asked
        for (`Request.member_top`).
    """

    symbol: int
    unit: bytes
    logprob: float
    member_logprobs: tuple[float, ...]
    wishes: tuple[bytes | None, ...]
    decision: DecisionName
    top: tuple[Candidate, ...] = ()
    member_tops: tuple[tuple[Candidate, ...], ...] = ()

    @property
    def finite_logprobs(self) -> list[float]:
        """`member_logprobs`; NaN: nothing can be learned about the member."""
        return [p if math.isfinite(p) else math.nan for p in self.member_logprobs]


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer.

    Attributes
    ----------
    text : str
        Complete characters; may be empty while a stop string or a character is unfinished.
    steps : tuple of Step
        The steps since the last chunk.
    finish_reason : {"stop", "length"} or None
        Set on the last chunk.
    """

    text: str
    steps: tuple[Step, ...] = ()
    finish_reason: FinishReason | None = None


#: Closing it stops the work.
ChunkStream: TypeAlias = abc.Generator[Chunk, None, None]
StepStream: TypeAlias = abc.Generator[Step, None, None]


class Generator(Protocol):
    """Anything that answers: a strategy over members or over other generators."""

    name: str

    def stream(self, request: Request) -> ChunkStream:
        """Answer a request piece by piece."""
        ...

    def close(self) -> None:
        """Free the models."""
        ...
