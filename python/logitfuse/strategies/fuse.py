"""Token-level fusion: at every step the members' distributions become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from logitfuse import _core
from logitfuse.drafting import Draft, DraftOptions
from logitfuse.errors import ConfigError
from logitfuse.gates import (
    ABLE,
    GATES,
    Certain,
    GateName,
    RowFeatures,
    Solo,
    Voter,
    one_begins_the_other,
)
from logitfuse.member import Member
from logitfuse.pooling import PoolName, PoolOptions
from logitfuse.schedules import SCHEDULES, Eager, Lazy, Schedule, ScheduleName
from logitfuse.strategies.base import DecisionName, Request, Step
from logitfuse.strategies.tokens import AlignmentName, TokenEngine
from logitfuse.text import ReplyText
from logitfuse.weights import Given, Weigher

_DECISIONS: dict[_core.Decision, DecisionName] = {
    _core.Decision.open: "fused",
    _core.Decision.agree: "agree",
    _core.Decision.certain: "certain",
}


@dataclass(frozen=True)
class _Asked:
    """Whose rows the pool has read.

    Attributes
    ----------
    votes : list of float
        One per member; 0: does not vote.
    primary : int
    settled : bool
        The others could not change the greedy answer.
    """

    votes: list[float]
    primary: int
    settled: bool = False


class Fuse(TokenEngine):
    """N members, one distribution per step: pool + weights + gate.

    Parameters
    ----------
    members : sequence of Member
    weights : sequence of float, optional
        Non-negative, not all zero; equal by default.  A member of weight 0 is not run.
    weigher : Weigher, optional
        Gives the weights step by step (see `logitfuse.weights`); by default they stay.  `weights`
        still says who runs.
    pool : str or PoolOptions
        See `logitfuse.fuse`.
    alignment : {"exact", "embedding"}
        See `TokenEngine`.
    gate : {"boundary", "always"}
        Who votes.  Members with one common vocabulary always vote, and follow by the very tokens
        that are chosen, as each would by itself.
    solo : Solo or Certain, optional
        When the primary speaks alone (see `logitfuse.gates`); by default never.
    primary : str or int, optional
        Name or index; by default the member of largest weight.
    guard : bool
        If what is chosen and the primary's own best begin one another, keep the primary's: it ends
        its words where its own tokens end (CoRE, arXiv 2510.13855).  Under sampling this changes
        the distribution.
    schedule : {"eager", "lazy", "draft"}
        Who decodes when (see `logitfuse.schedules`).  The answers are the same, as far as a batch
        of tokens gives the rows of single ones.
    draft : DraftOptions, optional
        For ``schedule="draft"``.
    name : str, optional

    Raises
    ------
    FusionError
        Bad weights, unknown pool.
    ConfigError
        No members; unknown gate, schedule, primary or drafter.
    """

    def __init__(
        self,
        members: Sequence[Member],
        *,
        weights: Sequence[float] | None = None,
        weigher: Weigher | None = None,
        pool: PoolName | PoolOptions = "linear",
        alignment: AlignmentName = "exact",
        gate: GateName = "boundary",
        solo: Solo | Certain | None = None,
        primary: str | int | None = None,
        guard: bool = False,
        schedule: ScheduleName = "eager",
        draft: DraftOptions | None = None,
        name: str | None = None,
    ) -> None:
        if gate not in GATES:
            raise ConfigError(f"unknown gate '{gate}'; known: {', '.join(GATES)}", key="gate")
        if schedule not in SCHEDULES:
            known = ", ".join(SCHEDULES)
            raise ConfigError(f"unknown schedule '{schedule}'; known: {known}", key="schedule")
        super().__init__(members, weights=weights, pool=pool, alignment=alignment, name=name)
        if weigher is not None:
            self.pool.require_shares()
        self.gate: GateName = gate
        self.weigher = Given(self.weights, self.pool.kind) if weigher is None else weigher
        self.solo = solo
        self.guard = guard
        self.schedule: ScheduleName = schedule
        used: GateName = "always" if self._one_vocab else gate
        self._gate, self._able = GATES[used], ABLE[used]
        self._primary = None if primary is None else self._find(primary, "primary")
        self._row_pool = self._pool  # a linear one, for features of one row
        if self.pool.kind != "linear" or self.pool.union_top or self._projects:
            self._row_pool = PoolOptions().native(self.alignment)
        self._reads_prompt = self.weigher.reads_prompt
        self.draft = draft
        self._schedule = self._make_schedule(draft)

    def _make_schedule(self, draft: DraftOptions | None) -> Schedule:
        if self.schedule != "draft":
            if draft is not None:
                raise ConfigError("draft options need schedule='draft'", key="schedule")
            return Lazy(self._crew) if self.schedule == "lazy" else Eager(self._crew)
        self.draft = DraftOptions() if draft is None else draft
        drafter = self.draft.drafter
        index = None if drafter is None else self._find(drafter, "drafter")
        return Draft(self._crew, self.draft, index)

    # -- one step -----------------------------------------------------------------------------

    def _prefill(self, request: Request, sampler: _core.Sampler) -> tuple[str, ...]:
        stops = super()._prefill(request, sampler)
        self.weigher.begin(self._evidence() if self._reads_prompt else [])
        return stops

    def _step(self, reply: ReplyText, sampler: _core.Sampler, request: Request) -> Step:
        self._prepare(reply, sampler, request)
        asked = self._ask(reply, sampler, request)
        step = self._say(asked, reply, sampler, request)
        with self.stats.sampling():
            sampler.accept(step.symbol)
        self._tell(step, asked.votes)
        return step

    def _consult(
        self, reply: ReplyText, sampler: _core.Sampler, request: Request
    ) -> Sequence[float]:
        return self._ask(reply, sampler, request).votes

    def _tell(self, step: Step, votes: Sequence[float]) -> None:
        super()._tell(step, votes)
        if step.unit:
            self.weigher.observe(step.finite_logprobs, len(step.unit))

    def _ask(self, reply: ReplyText, sampler: _core.Sampler, request: Request) -> _Asked:
        """Ask whom the step needs, and let the pool read the rows of those who vote."""
        current = self.weigher.current()
        weights = [w if i in self._running else 0.0 for i, w in enumerate(current)]
        primary = self._primary
        if primary is None:
            primary = max(self._running, key=lambda i: (weights[i], -i))
        asked = None
        if self.solo is None or len(self._running) == 1:
            pass
        elif not isinstance(self.solo, Certain):
            asked = self._ask_primary(self.solo, primary, weights, reply)
        elif self._lossless(sampler, request):
            asked = self._ask_in_turn(primary, weights, reply, request)
        if asked is not None:
            return asked
        voters = self._look()
        votes = self._votes(self._gate, voters, weights)
        if self.pool.kind == "contrast":
            _keep_base(votes, weights)
        self._read(self._pool, voters, votes, reply)
        return _Asked(votes, primary)

    def _ask_primary(
        self, solo: Solo, primary: int, weights: Sequence[float], reply: ReplyText
    ) -> _Asked | None:
        """Only the primary, if the rule lets it speak alone."""
        (voter,) = self._schedule.look([primary])
        if weights[primary] <= 0 or voter.row is None or not self._able(voter):
            return None
        votes = [weight if i == primary else 0.0 for i, weight in enumerate(weights)]
        if not self._reads(self._row_pool, {primary: voter}, votes, reply):
            return None
        if not solo(RowFeatures(self._row_pool, len(self.alignment), voter.row)):
            return None
        if self._row_pool is not self._pool:
            self._read(self._pool, {primary: voter}, votes, reply)
        return _Asked(votes, primary)

    def _ask_in_turn(
        self, primary: int, weights: Sequence[float], reply: ReplyText, request: Request
    ) -> _Asked | None:
        """The primary and the heaviest others, until the rest could not change the answer."""
        others = (i for i in self._running if i != primary)
        order = [primary, *sorted(others, key=lambda i: (-weights[i], i))]
        voters: dict[int, Voter] = {}
        votes = [0.0] * len(self.members)
        missing = sum(weights)
        for i in order[:-1]:
            (voters[i],) = self._schedule.look([i])
            missing -= weights[i]
            votes[i] = weights[i] if self._able(voters[i]) else 0.0
            if sum(votes) > missing and self._reads(self._pool, voters, votes, reply):
                settled = self._pool.certain_without(missing)
                if settled >= 0 and self._may_follow(reply, settled, request):
                    return _Asked(votes, primary, settled=True)
        return None

    def _say(
        self, asked: _Asked, reply: ReplyText, sampler: _core.Sampler, request: Request
    ) -> Step:
        """Choose from what the pool has read."""
        decision, symbol = self._pool.decide()
        index = 0
        if (
            self._lossless(sampler, request)
            and decision != _core.Decision.open
            and self._may_follow(reply, symbol, request)
        ):
            said = self._guarded(symbol, asked, reply, request)
            fused = self._pool.score(said)
        else:
            fused, index = self._choose(reply, sampler, request)
            if not sampler.greedy or fused.symbol(index) != symbol:
                decision = _core.Decision.open  # all alike or not, the pool was drawn from
            symbol = fused.symbol(index)
            said = self._guarded(symbol, asked, reply, request)
            listed = np.flatnonzero(fused.symbols == said)
            index = int(listed[0]) if len(listed) else index
        name: DecisionName = "certain" if asked.settled else _DECISIONS[decision]
        if fused.symbol(index) != symbol or sum(vote != 0 for vote in asked.votes) == 1:
            name = "led"
        return self._make_step(fused, index, name, request)

    def _guarded(self, symbol: int, asked: _Asked, reply: ReplyText, request: Request) -> int:
        """What is said in place of a symbol that continues the primary's own best, or ends it."""
        own = self._pool.best()[asked.primary]
        if not self.guard or own < 0 or own == symbol:
            return symbol
        bytes_of = self.alignment.symbol_bytes
        same = one_begins_the_other(bytes_of(own), bytes_of(symbol))
        return own if same and self._may_follow(reply, own, request) else symbol


def _keep_base(votes: list[float], weights: Sequence[float]) -> None:
    """Where the base of a contrast abstains there is nothing to contrast with."""
    base = next(i for i, weight in enumerate(weights) if weight > 0)
    if votes[base]:
        return
    votes[:] = [max(vote, 0.0) for vote in votes]
    if not any(votes):
        votes[base] = weights[base]
