"""A mixture: at every step one member is drawn, and only that one runs."""

from __future__ import annotations

import random
from collections.abc import Sequence

from logitfuse import _core
from logitfuse.errors import ConfigError, FusionError
from logitfuse.gates import GATES, Voter, believes, has_row
from logitfuse.member import Member
from logitfuse.schedules import Lazy
from logitfuse.strategies.base import Request, Step
from logitfuse.strategies.tokens import TokenEngine
from logitfuse.text import ReplyText


class Mix(TokenEngine):
    """One member per step, drawn with its weight, says a symbol of its own distribution.

    The symbol is distributed as in the linear pool, ``sum_i w_i p_i``, at the cost of one member:
    the others catch up when they are drawn (ME, arXiv 2605.00419).

    Parameters
    ----------
    members : sequence of Member
    weights : sequence of float, optional
        Non-negative, not all zero; equal by default.  A member of weight 0 is not run.
    name : str, optional

    Raises
    ------
    FusionError
        Bad weights.
    ConfigError
        No members; on `stream`: greedy sampling, which draws nothing.

    Notes
    -----
    A member speaks only where it believes in its last token (boundary probability of 1/2 or more,
    see `logitfuse.gates`): one that does not is passed over, and another is drawn from the rest
    with renormalised weights; if nobody believes, the most confident speaks.  So the distribution
    is that of the linear pool with the ``boundary`` gate, whoever is drawn first.  Members of one
    vocabulary are never passed over.

    It is the linear pool exactly if nothing truncates, penalises or biases.  Top-k, top-p, min-p,
    typical-p, temperature, penalties and biases act on the drawn member's own distribution, and so
    do constraints and the rule that the text stays valid UTF-8: a mixture of truncated
    distributions is not the truncated mixture.
    """

    def __init__(
        self,
        members: Sequence[Member],
        *,
        weights: Sequence[float] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(members, weights=weights, name=name)
        self._schedule = Lazy(self._crew)
        self._able = has_row if self._one_vocab else believes
        self._random = random.Random()

    def _prefill(self, request: Request, sampler: _core.Sampler) -> tuple[str, ...]:
        if sampler.greedy:
            raise ConfigError(
                "mix draws a member and a symbol, and greedy sampling draws nothing: use a "
                "temperature above 0, or the strategy 'fuse'",
                key="sampling.temperature",
            )
        # A stream of its own: with the sampler's seed it would draw member and symbol alike.
        seed = request.sampling.seed
        self._random = random.Random(None if seed is None else f"member {seed}")
        return super()._prefill(request, sampler)

    def _step(self, reply: ReplyText, sampler: _core.Sampler, request: Request) -> Step:
        votes = self._draw(reply)
        step = self._make_step(*self._choose(reply, sampler, request), "led", request)
        with self.stats.sampling():
            sampler.accept(step.symbol)
        self._tell(step, votes)
        return step

    def _consult(
        self, reply: ReplyText, sampler: _core.Sampler, request: Request
    ) -> Sequence[float]:
        """All of them: the distribution of what a drawn member says."""
        del sampler, request
        voters = self._look()
        votes = self._votes(
            GATES["always" if self._one_vocab else "boundary"], voters, self.weights
        )
        self._read(self._pool, voters, votes, reply)
        return votes

    def _draw(self, reply: ReplyText) -> list[float]:
        """Draw who speaks, and let the pool read its row; returns the votes."""
        left = list(self._running)
        passed: dict[int, Voter] = {}
        while left:
            (drawn,) = self._random.choices(left, [self.weights[i] for i in left])
            (passed[drawn],) = self._schedule.look([drawn])
            if self._able(passed[drawn]):
                votes = self._alone(drawn)
                if self._reads(self._pool, passed, votes, reply):
                    return votes
            left.remove(drawn)
        # Nobody believes in its last token, or who does can say nothing that is allowed.
        able = [i for i in self._running if has_row(passed[i])]
        for i in sorted(able, key=lambda i: (-passed[i].boundary, -self.weights[i], i)):
            votes = self._alone(i)
            if self._reads(self._pool, passed, votes, reply):
                return votes
        raise FusionError("no member can say anything that is allowed")
