"""How well a member predicts a text: bits per byte, comparable across tokenizers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from logitfuse import _core
from logitfuse.errors import DecodeError
from logitfuse.member import Member
from logitfuse.strategies.base import Request, Step
from logitfuse.strategies.engine import Engine

#: Rows kept at a time: 64 rows of 262,144 logits are 64 MiB.
_ROWS = 64


@dataclass(frozen=True)
class TextScore:
    """A member's likelihood of a text.

    Attributes
    ----------
    bits : float
        -log2 of the probability of the scored bytes.
    n_bytes, n_tokens : int
        How many bytes and tokens were scored.
    """

    bits: float
    n_bytes: int
    n_tokens: int

    @property
    def bits_per_byte(self) -> float:
        """The only likelihood figure that is comparable across tokenizers."""
        return self.bits / max(1, self.n_bytes)


def score_text(
    member: Member, text: str | bytes, progress: Callable[[int, int], object] | None = None
) -> TextScore:
    """Score a text, or as much of its beginning as fits the member's context.

    The first token is scored only if the model begins texts with a begin-of-text token.  The
    member forgets what it held.

    Parameters
    ----------
    progress : callable, optional
        Called with tokens done and tokens to do.

    Raises
    ------
    PromptError, DecodeError
    """
    tokens = member.tokenize_prompt(text)[: member.n_ctx]
    member.reset()
    nats, n_bytes = 0.0, 0
    size = min(_ROWS, member.context.n_batch)
    for start in range(0, len(tokens) - 1, size):
        piece = tokens[start : min(start + size, len(tokens) - 1)]
        code = member.context.decode(piece, start, outputs=len(piece))
        if code != 0:
            member.reset()
            raise DecodeError(
                f"member '{member.name}' failed to score a text (llama_decode returned {code})",
                member=member.name,
                code=code,
            )
        for k in range(len(piece)):
            row, following = member.context.row(len(piece) - k), tokens[start + k + 1]
            nats += _core.log_sum_exp(row) - float(row[following])
            n_bytes += len(member.vocab.token_bytes(following))
        if progress is not None:
            progress(start + len(piece), len(tokens) - 1)
    member.reset()
    return TextScore(nats / math.log(2), n_bytes, len(tokens) - 1)


@dataclass(frozen=True)
class ReplyScore:
    """A strategy's likelihood of a reply.

    Attributes
    ----------
    nats : float
        Log-probability that the reply begins with the text.
    n_bytes : int
    greedy : bool
        Whether the strategy would have said it by itself, always choosing the most probable unit.
    steps : tuple of Step
    """

    nats: float
    n_bytes: int
    greedy: bool
    steps: tuple[Step, ...]

    @property
    def bits_per_byte(self) -> float:
        """The only likelihood figure that is comparable across tokenizers."""
        return -self.nats / math.log(2) / max(1, self.n_bytes)


def score_reply(engine: Engine, request: Request, text: str | bytes) -> ReplyScore:
    """How probable a reply is to an ensemble; see `Engine.score`.

    Raises
    ------
    PromptError, ContextLengthError, FusionError, MemberError
    """
    steps = tuple(engine.score(request, text))
    n_bytes = sum(len(step.unit) for step in steps)
    nats = math.fsum(step.logprob for step in steps)
    greedy = all(is_greedy(step, last=step is steps[-1]) for step in steps)
    return ReplyScore(nats, n_bytes, greedy, steps)


def is_greedy(step: Step, *, last: bool) -> bool:
    """Whether a scored unit is what the strategy finds most probable.

    Parameters
    ----------
    last : bool
        It is the last one of the text, which may end inside a unit.
    """
    best = step.top[0][0] if step.top else b""
    return best == step.unit or (last and best.startswith(step.unit))
