"""What the tests of the lockstep engine share."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import reference
from logitfuse.evaluation.contenders import Contender
from logitfuse.llama import LlamaContext, Row
from logitfuse.member import Member
from logitfuse.sampling import SamplingParams
from logitfuse.strategies.base import FinishReason, Request, Step
from logitfuse.strategies.fuse import Fuse
from logitfuse.vocab import TokenKind

NAMES = ["gpt2", "llama-spm", "smol", "qwen2", "gemma3", "mamba", "lfm2"]
PAIRS = [("gpt2", "llama-spm"), ("smol", "qwen2"), ("gemma3", "lfm2"), ("mamba", "gpt2")]
TRIPLE = ("gpt2", "llama-spm", "gemma3")
PROMPT = "Once upon a time"
GREEDY = SamplingParams(temperature=0)
PURE = SamplingParams(temperature=1, top_k=0, top_p=1, min_p=0)  # the pool as it is
SEEDED = SamplingParams(seed=7)
STEPS = 40

Load = Callable[..., Member]
Put = Callable[..., Contender]
Models = Mapping[str, Path]


@dataclass(frozen=True)
class Answer:
    """A whole answer; equal if the same was said."""

    text: str
    units: list[bytes]
    finish: FinishReason | None
    steps: tuple[Step, ...] = field(compare=False)


def request(sampling: SamplingParams = GREEDY, **options: Any) -> Request:
    return Request(**({"prompt": PROMPT, "max_tokens": STEPS} | options), sampling=sampling)


def answer(fuse: Fuse, sampling: SamplingParams = GREEDY, **options: Any) -> Answer:
    """Read a stream to its end, checking what is true of every stream."""
    asked = request(sampling, **options)
    chunks = list(fuse.stream(asked))
    assert [chunk.finish_reason is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    steps = tuple(step for chunk in chunks for step in chunk.steps)
    text = "".join(chunk.text for chunk in chunks)
    units = [step.unit for step in steps]
    finish = chunks[-1].finish_reason
    if finish == "length" or units[-1] == b"":  # not stopped by a string
        assert text == decode(units)
    return Answer(text, units, finish, steps)


class OneByOne:
    """Decodes a batch token by token: its shape, which costs bits, cannot change an answer.

    Rows of earlier decodes turn to NaN, so that nobody can go on using them.
    """

    def __init__(self, context: LlamaContext) -> None:
        self._context = context
        self._rows: list[Row] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def decode(self, tokens: Sequence[int], start: int, *, outputs: int = 1) -> int:
        for row in self._rows:
            row.fill(np.nan)
        self._rows = []
        for k, token in enumerate(tokens):
            code = self._context.decode([token], start + k)
            if code != 0:
                return code
            self._rows.append(self._context.row().copy())
        self._rows = self._rows[-outputs:]
        return 0

    def row(self, back: int = 1) -> Row:
        return self._rows[-back]


def one_by_one(member: Member) -> Member:
    """Let a member decode so; returns it."""
    wrapped: Any = OneByOne(member.context)
    member.context = member._cache._context = member._cache.rows._context = wrapped
    return member


def check_equal(other: Fuse, eager: Fuse, sampling: SamplingParams, **options: Any) -> Answer:
    """Same text, same steps, same bits."""
    expected = answer(eager, sampling, **options)
    found = answer(other, sampling, **options)
    assert found == expected
    assert str(found.steps) == str(expected.steps)
    assert other.stats.decisions == eager.stats.decisions
    assert other.stats.votes == eager.stats.votes
    return found


def decode(units: Sequence[bytes]) -> str:
    """The text of valid UTF-8, without an unfinished character at its end."""
    return codecs.getincrementaldecoder("utf-8")().decode(b"".join(units))


def may_follow(text: bytes, symbol: reference.Symbol) -> bool:
    """Whether valid UTF-8 that may end inside a character goes on with this symbol."""
    try:
        if isinstance(symbol, str):
            text.decode()
        else:
            decode([text, symbol])
    except UnicodeDecodeError:
        return False
    return True


def oracle_vocab(member: Member) -> tuple[list[bytes], list[str]]:
    """A vocabulary as the oracle wants it."""
    tokens = [member.vocab.token_bytes(i) for i in range(len(member.vocab))]
    return tokens, [TokenKind(kind).name.lower() for kind in member.vocab.kinds]


def oracle_symbol(fuse: Fuse, step: Step) -> reference.Symbol:
    return reference.END if step.symbol == fuse.alignment.end else step.unit


def forbidding_the_end(fuse: Fuse) -> SamplingParams:
    return SamplingParams(temperature=0, logit_bias={fuse.alignment.end: -math.inf})


class Recording(Fuse):
    """Keeps the rows and votes from which each step was made."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.votes: list[list[float]] = []
        self.rows: list[list[Any]] = []
        self._vocabs = [oracle_vocab(member) for member in self.members]

    def _step(self, *args: Any) -> Step:
        self.votes.append(self._gate(self.members, self.weights))
        self.rows.append([member.row.copy() for member in self.members])
        return super()._step(*args)

    def pooled(self, i: int) -> dict[reference.Symbol, float]:
        """What the oracle makes of step `i`."""
        return reference.pool(self.rows[i], self._vocabs, self.votes[i], self.pool.kind)

    def alone(self, i: int, member: int) -> dict[reference.Symbol, float]:
        """What the oracle says of one member in step `i`."""
        return reference.member_logprobs(self.rows[i][member], *self._vocabs[member])


class Scripted(Fuse):
    """Says what it is told, character by character."""

    def __init__(self, *args: Any, script: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._script = iter(script)

    def _step(self, *args: Any) -> Step:
        unit = next(self._script).encode()
        symbol = self.alignment.lookup(unit)
        assert symbol is not None
        return replace(super()._step(*args), symbol=symbol, unit=unit)
