"""The engine of strategies whose units are symbols of the members' alignment."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

import numpy as np

from logitfuse import _core
from logitfuse.drafting import ReadAhead
from logitfuse.errors import ConfigError, FusionError, PromptError
from logitfuse.gates import Gate, Voter
from logitfuse.member import Member
from logitfuse.pooling import TOP, PoolName, PoolOptions
from logitfuse.projection import projection_for
from logitfuse.schedules import Crew, Schedule
from logitfuse.strategies.base import Candidate, DecisionName, Request, Step, StepStream
from logitfuse.strategies.engine import Engine
from logitfuse.text import ReplyText

#: How tokens without a twin are dealt with.
AlignmentName: TypeAlias = Literal["exact", "embedding"]

#: Candidates per member that are listed, in turn, until no unlisted one could matter.
_DEPTHS = (TOP, 8 * TOP, 64 * TOP, _core.ALL)
#: Draws from the whole pool; if none of them may follow the text, candidates are listed.
_DRAWS = 100
#: Listed besides: symbols that break a character cannot be said.
_UNFIT = 16
#: Of projected distributions these are all there is, as in EVA: what an unlisted token might add to
#: a symbol through its embedding cannot be ruled out, only left out.
_PROJECTED = 320


class TokenEngine(Engine):
    """A pool, a sampler and a schedule: steps are symbols drawn from a pooled distribution.

    Parameters
    ----------
    members, weights, name
        As for `Engine`.
    pool : str or PoolOptions
        See `logitfuse.fuse`.
    alignment : {"exact", "embedding"}
        What a member's token without a twin stands for: ``exact``: nothing; ``embedding``: the
        tokens of the *pivot*, the member of largest weight, whose embeddings are nearest
        (see `logitfuse.projection`); then only the pivot's tokens are said.

    Raises
    ------
    FusionError
        Bad weights, unknown pool.
    ConfigError
        No members, unknown alignment.

    Notes
    -----
    A constraint leaves each member the tokens that may come, and members that are left with none
    abstain.  The linear pool and the power mean are then what they are without it, restricted to
    these tokens and normalised; so are, for members of one vocabulary, the log-linear pool and the
    product.  The others compare the members as they are left.
    """

    _schedule: Schedule

    def __init__(
        self,
        members: Sequence[Member],
        *,
        weights: Sequence[float] | None = None,
        pool: PoolName | PoolOptions = "linear",
        alignment: AlignmentName = "exact",
        name: str | None = None,
    ) -> None:
        if alignment not in ("exact", "embedding"):
            raise ConfigError(
                f"unknown alignment '{alignment}'; known: exact, embedding", key="alignment"
            )
        self.pool = pool if isinstance(pool, PoolOptions) else PoolOptions(pool)
        super().__init__(members, weights=weights, pool=self.pool.kind, name=name)
        self._pool = self.pool.native(self.alignment)
        self._projects = alignment == "embedding" and not self.alignment.identical
        if self._projects:
            self._project()
        #: A symbol's pooled probability needs no other symbol's.
        self._linear = self.pool.kind == "linear" and not (self.pool.union_top or self._projects)
        #: Whose tokens a given text is cut into: the first of those who vote.
        self._scribes = sorted(self._running, key=self._rank, reverse=True)
        self._scripts: dict[int, dict[int, int]] = {}
        self._crew = Crew(
            self.members,
            self._running,
            self._together,
            self.alignment._core.twin if self._one_vocab else None,
            self.alignment._core.symbol,
        )

    def _project(self) -> None:
        """Project the members' own tokens onto the pivot's."""
        pivot = self.scribe
        for i in self._running:
            if i == pivot:
                continue
            found = projection_for(self.members[i], self.members[pivot])
            symbols = found.symbols(self.alignment, pivot)
            self._pool.project(i, found.offsets, symbols, found.weights)
        self._pool.restrict(pivot)

    def score(self, request: Request, text: str | bytes) -> StepStream:
        """See `Engine.score`: along the canonical tokens of one member, the *scribe*.

        That is the member of largest weight, or of several the one with most tokens
        (`Engine.scribe`); where it does not vote, the next one that does.  Other ways to spell the
        text are left out, so its probability is a lower bound, as is usual for single models.  The
        members read the text ahead, in batches.
        """
        usual = self._schedule
        try:
            yield from super().score(request, text)
        finally:
            self._schedule = usual

    def _prefill(self, request: Request, sampler: _core.Sampler) -> tuple[str, ...]:
        if self._ahead:
            self._scripts = {i: self._script(i, self._ahead) for i in self._running}
            self._schedule = ReadAhead(self._crew, self._ahead, self._scripts[self._scribes[0]])
        stops = super()._prefill(request, sampler)
        self._schedule.begin(self._prompts[self._running[0]].text)
        return stops

    def _script(self, i: int, text: bytes) -> dict[int, int]:
        """The symbols of a member's canonical tokens of a text, by the byte where they begin."""
        script, at = {}, 0
        for token in self.members[i].tokenize(text):
            symbol = self.alignment.symbol(i, token)
            if symbol is None:
                break
            script[at] = symbol
            at += len(self.alignment.symbol_bytes(symbol))
        if at == len(text):
            return script
        name = self.members[i].name
        raise PromptError(f"member '{name}' cannot spell the text: its tokenizer changes it")

    def _said(
        self, reply: ReplyText, left: bytes, sampler: _core.Sampler, request: Request
    ) -> Step:
        self._prepare(reply, sampler, request)
        votes = self._consult(reply, sampler, request)
        symbol = self._next_symbol(left, votes)
        wider = replace(request, top_logprobs=request.top_logprobs + _UNFIT)
        fused = self._list(symbol, wider.top_logprobs)
        found = np.flatnonzero(fused.symbols == symbol)
        if len(found) == 0:
            unit = self.alignment.symbol_bytes(symbol)
            raise FusionError(
                f"the {self.pool.kind} pool gives the text no probability at {unit!r}"
            )
        index = int(found[0])
        alone = sum(vote != 0 for vote in votes) == 1
        step = self._make_step(fused, index, "led" if alone else "fused", wider)
        top = [(unit, logprob) for unit, logprob in step.top if reply.accepts(unit)]
        step = replace(step, top=tuple(top[: request.top_logprobs]))
        self._tell(step, votes)
        return step

    def _next_symbol(self, left: bytes, votes: Sequence[float]) -> int:
        """What the first scribe with a vote and a token here writes; or what it would write."""
        scribes = self._scribes[:1]
        if not self._projects:
            scribes = [i for i in self._scribes if votes[i] > 0]
        at = len(self._ahead) - len(left)
        for i in scribes:
            if at in self._scripts[i]:
                return self._scripts[i][at]
        if _core.continues_utf8(b"", left[:1]):
            return self._script(scribes[0], left)[0]  # it calls more than this one token
        symbol = self.alignment.lookup(left[:1])
        assert symbol is not None  # somebody has said the first byte of the character
        return symbol

    @abstractmethod
    def _consult(
        self, reply: ReplyText, sampler: _core.Sampler, request: Request
    ) -> Sequence[float]:
        """Let the pool read the rows of those who vote; returns their votes."""

    def _tell(self, step: Step, votes: Sequence[float]) -> None:
        """A unit was chosen: count it."""
        self._count(step, votes)

    def _list(self, symbol: int, wanted: int) -> _core.Fused:
        """A symbol and the best ones of the pool, normalised over all symbols."""
        if not (self._linear or self._projects):
            return self._pool.whole(wanted, [symbol])
        for top in (_PROJECTED,) if self._projects else _DEPTHS:
            fused = self._pool.candidates(top, [symbol])
            if self._projects:
                fused.close()
            listed = min(wanted, len(fused))
            if top == _core.ALL or fused.logprob(listed - 1) >= fused.outside:
                break
        return fused

    def _prepare(self, reply: ReplyText, sampler: _core.Sampler, request: Request) -> None:
        """Let the schedule look ahead."""

        def speak(
            i: int, voter: Voter, text: ReplyText, fork: _core.Sampler
        ) -> tuple[int, bytes] | None:
            try:
                self._read(self._pool, {i: voter}, self._alone(i), text)
                fused, index = self._choose(text, fork, request)
            except FusionError:  # the step itself says so, if it comes to that
                return None
            return fused.symbol(index), self.alignment.symbol_bytes(fused.symbol(index))

        left = None if request.max_tokens is None else request.max_tokens - self.stats.steps
        self._schedule.prepare(reply, sampler, left, speak)

    def _follow(self, reply: ReplyText, step: Step) -> bool:
        return self._schedule.follow(reply, step.symbol)

    def _find(self, member: str | int, key: str) -> int:
        """The index of a running member that is given by name or index."""
        names = [m.name for m in self.members]
        found = names.index(member) if member in names else member
        if not isinstance(found, int) or found not in self._running:
            running = ", ".join(f"'{names[i]}'" for i in self._running)
            raise ConfigError(f"no member '{member}' with weight; there are {running}", key=key)
        return found

    def _lossless(self, sampler: _core.Sampler, request: Request) -> bool:
        """Whether nothing but the best symbol of a linear pool is wanted."""
        return (
            sampler.greedy and not sampler.processes and self._linear and request.top_logprobs == 0
        )

    def _choose(
        self, reply: ReplyText, sampler: _core.Sampler, request: Request
    ) -> tuple[_core.Fused, int]:
        """Pool and draw, listing more candidates until no unlisted one could matter."""
        wanted = request.top_logprobs
        for _ in range(_DRAWS if sampler.plain and self._linear and not wanted else 0):
            with self.stats.sampling():
                symbol = self._pool.draw(sampler.uniform())
            if self._may_follow(reply, symbol, request):
                return self._pool.score(symbol), 0
        for top in (_PROJECTED,) if self._projects else _DEPTHS:
            fused = self._pool.candidates(top, sampler.touched)
            if self._projects:
                fused.close()
            whole = top == _core.ALL or self._projects
            if not self._process(sampler, fused, whole=whole):
                continue
            listed = min(wanted, len(fused))
            if top != _core.ALL and listed and fused.logprob(listed - 1) < fused.outside:
                continue  # an unlisted one may be among those that the caller wants to see
            while len(fused):
                with self.stats.sampling():
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

    def _make_step(
        self, fused: _core.Fused, index: int, decision: DecisionName, request: Request
    ) -> Step:
        """What is to be told of a symbol that was chosen from what the pool has read."""
        bytes_of = self.alignment.symbol_bytes
        symbol = fused.symbol(index)
        listed = range(min(request.top_logprobs, len(fused)))
        return Step(
            symbol=symbol,
            unit=bytes_of(symbol),
            logprob=fused.logprob(index),
            member_logprobs=tuple(fused.member_logprob(index)),
            wishes=tuple(None if best < 0 else bytes_of(best) for best in self._pool.best()),
            decision=decision,
            top=tuple((bytes_of(fused.symbol(k)), fused.logprob(k)) for k in listed),
            member_tops=self._member_tops(request.member_top),
        )

    def _member_tops(self, n: int) -> tuple[tuple[Candidate, ...], ...]:
        """What each member would most probably have said, of what the pool has read."""
        if n < 1:
            return ()
        bytes_of = self.alignment.symbol_bytes
        return tuple(
            tuple((bytes_of(symbol), logprob) for symbol, logprob in self._pool.best_of(i, n))
            for i in range(len(self.members))
        )

    def _look(self) -> dict[int, Voter]:
        """What all that run know at the end of the reply."""
        return dict(zip(self._running, self._schedule.look(self._running), strict=True))

    def _votes(
        self, gate: Gate, voters: Mapping[int, Voter], weights: Sequence[float]
    ) -> list[float]:
        """The votes that a gate gives those that run."""
        votes = [0.0] * len(self.members)
        given = gate([voters[i] for i in self._running], [weights[i] for i in self._running])
        for i, vote in zip(self._running, given, strict=True):
            votes[i] = vote
        return votes

    def _alone(self, i: int) -> list[float]:
        """The votes where only one member has one."""
        return [float(k == i) for k in range(len(self.members))]

    def _reads(
        self,
        pool: _core.Pool,
        voters: Mapping[int, Voter],
        votes: Sequence[float],
        reply: ReplyText,
    ) -> bool:
        """See `_read`; False: those who vote can say nothing that is allowed."""
        try:
            self._read(pool, voters, votes, reply)
        except FusionError as error:
            if self._guide is None or error.member is not None:
                raise
            return False
        return True

    def _read(
        self,
        pool: _core.Pool,
        voters: Mapping[int, Voter],
        votes: Sequence[float],
        reply: ReplyText,
    ) -> None:
        """Let a pool read the rows of those that vote, and what may follow the reply."""
        rows = [voters[i].row if vote else None for i, vote in enumerate(votes)]
        if self._guide is None:
            pool.read(rows, votes)
            return
        guide, text = self._guide, reply.raw
        asked = self._running if self._projects else np.flatnonzero(votes).tolist()
        allowed = [guide.allowed(i, text) if i in asked else None for i in range(len(rows))]
        pool.read(rows, votes, allowed)
