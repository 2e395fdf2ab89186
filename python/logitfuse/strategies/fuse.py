"""The lockstep engine: at every token the members' distributions become one."""

from __future__ import annotations

import time
from collections.abc import Sequence

from logitfuse import _core
from logitfuse.errors import ConfigError, FusionError
from logitfuse.gates import GATES, GateName
from logitfuse.member import Member
from logitfuse.pooling import FLOOR, TOP, PoolName
from logitfuse.strategies.base import (
    DecisionName,
    Request,
    Step,
)
from logitfuse.strategies.engine import Engine
from logitfuse.text import ReplyText

#: Candidates per member that are listed, in turn, until no unlisted one could matter.
_DEPTHS = (TOP, 8 * TOP, 64 * TOP, _core.ALL)

_DECISIONS: dict[_core.Decision, DecisionName] = {
    _core.Decision.open: "fused",
    _core.Decision.agree: "agree",
    _core.Decision.certain: "certain",
}


class Fuse(Engine):
    """N members, one distribution per step: pool + weights + gate.

    Parameters
    ----------
    members : sequence of Member
    weights : sequence of float, optional
        Non-negative, not all zero; equal by default.  A member of weight 0 is not run.
    pool : {"linear", "log-linear"}
    gate : {"boundary", "always"}
        Who votes.  Members with one common vocabulary always vote, and follow by the very tokens
        that are chosen, as each would by itself.
    floor : float
        What a member without a twin contributes to the log-linear pool, nats.
    name : str, optional

    Raises
    ------
    FusionError
        Bad weights, unknown pool.
    ConfigError
        No members, unknown gate.
    """

    def __init__(
        self,
        members: Sequence[Member],
        *,
        weights: Sequence[float] | None = None,
        pool: PoolName = "linear",
        gate: GateName = "boundary",
        floor: float = FLOOR,
        name: str | None = None,
    ) -> None:
        if gate not in GATES:
            raise ConfigError(f"unknown gate '{gate}'; known: {', '.join(GATES)}", key="gate")
        super().__init__(members, weights=weights, name=name)
        self.pool: PoolName = pool
        self.gate: GateName = gate
        self._pool = _core.Pool(self.alignment._core, pool, floor)
        self._gate = GATES["always" if self._one_vocab else gate]

    def _step(self, reply: ReplyText, sampler: _core.Sampler, request: Request) -> Step:
        """Choose the next symbol."""
        started = time.perf_counter()
        votes = self._gate(self.members, self.weights)
        rows = [m.row if vote > 0 else None for m, vote in zip(self.members, votes, strict=True)]
        self._pool.read(rows, votes)
        alone = sum(vote > 0 for vote in votes) == 1
        decision, symbol = self._pool.decide()
        index = 0
        lossless = sampler.greedy and not sampler.processes and self.pool == "linear"
        if (
            lossless
            and decision != _core.Decision.open
            and request.top_logprobs == 0
            and self._may_follow(reply, symbol, request)
        ):
            fused = self._pool.score(symbol)
        else:
            fused, index = self._choose(reply, sampler, request)
            if not sampler.greedy or fused.symbol(index) != symbol:
                decision = _core.Decision.open  # all alike or not, the pool was drawn from
        symbol = fused.symbol(index)
        step = Step(
            symbol=symbol,
            unit=self.alignment.symbol_bytes(symbol),
            logprob=fused.logprob(index),
            member_logprobs=tuple(fused.member_logprob(index)),
            wishes=tuple(
                None if best < 0 else self.alignment.symbol_bytes(best)
                for best in self._pool.best()
            ),
            decision="led" if alone else _DECISIONS[decision],
            top=self._top(fused, request.top_logprobs),
        )
        sampler.accept(symbol)
        self._count(step, votes)
        self.stats.fuse_s += time.perf_counter() - started
        return step

    def _choose(
        self, reply: ReplyText, sampler: _core.Sampler, request: Request
    ) -> tuple[_core.Fused, int]:
        """Pool and draw, listing more candidates until no unlisted one could matter."""
        wanted = request.top_logprobs
        for top in _DEPTHS:
            fused = self._pool.candidates(top, sampler.touched)
            sampler.process(fused)
            listed = min(wanted, len(fused))
            if top != _core.ALL and listed and fused.logprob(listed - 1) < fused.outside:
                continue  # an unlisted one may be among those that the caller wants to see
            while len(fused):
                index = sampler.draw(fused)
                if index < 0:
                    break
                if self._may_follow(reply, fused.symbol(index), request):
                    return fused, index
                fused.forbid(index)
        raise FusionError("no symbol that may follow the text has any probability left")

    def _may_follow(self, reply: ReplyText, symbol: int, request: Request) -> bool:
        """The text stays valid UTF-8, and does not end inside a character."""
        if symbol == self.alignment.end:
            return not (reply.unfinished or request.ignore_end)
        return reply.accepts(self.alignment.symbol_bytes(symbol))

    def _top(self, fused: _core.Fused, n: int) -> tuple[tuple[bytes, float], ...]:
        return tuple(
            (self.alignment.symbol_bytes(fused.symbol(k)), fused.logprob(k))
            for k in range(min(n, len(fused)))
        )

    def _follow(self, reply: ReplyText, step: Step) -> bool:
        if self._one_vocab:
            twin = self.alignment._core.twin
            return all(self._together(lambda i: self.members[i].append(twin(i, step.symbol))))
        complete, units = reply.complete, tuple(reply.units)
        return all(self._together(lambda i: self.members[i].advance(complete, units)))
