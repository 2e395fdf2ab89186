"""Byte-level fusion: exact where tokenizers differ.

Every member's tokens are only a way to spell bytes: summed over all tokenisations of the text, its
belief in the next byte does not depend on them, and the members can be pooled byte by byte.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

from logitfuse import _core
from logitfuse.beam import Beam
from logitfuse.config import PRUNE, WIDTH
from logitfuse.errors import ConfigError, FusionError, PromptError
from logitfuse.member import Member
from logitfuse.pooling import PoolName, PoolOptions
from logitfuse.readers import Reader, TwoRows
from logitfuse.strategies.base import Candidate, DecisionName, Request, Step
from logitfuse.strategies.engine import Engine
from logitfuse.text import ReplyText
from logitfuse.weights import Given, Online, Weigher

#: What the weights are weights of.
PoolUnit: TypeAlias = Literal["byte", "unit"]
#: Which tokenisations of the text count.
Tokenisations: TypeAlias = Literal["all", "canonical"]

#: Units that are listed, in turn, until no unlisted one could matter.
_DEPTHS = (1, 16, 64, 512, 4096, _core.ALL)


class _Choice(NamedTuple):
    """A unit among those that are listed, and the best ones."""

    fused: _core.Fused
    place: int
    best: _core.Fused

    @property
    def symbol(self) -> int:
        """Its id in the search."""
        return self.fused.symbol(self.place)


class _Passed(NamedTuple):
    """What it took that only waiting paths spell what follows, nats: pooled, and of each member."""

    logprob: float
    members: tuple[float, ...]

    def then(self, choice: _Choice) -> _Passed:
        """And then this unit."""
        fused, place, _ = choice
        own = zip(self.members, fused.member_logprob(place), strict=True)
        return _Passed(self.logprob + fused.logprob(place), tuple(a + b for a, b in own))


class Bytes(Engine):
    """N members, one distribution of the next bytes; steps are *units* of about a token.

    A unit goes from the present text to the next place where some member needs a forward pass, so
    units exclude each other and their pooled probabilities sum to 1.  Sampling parameters act on
    units.  A text prompt may end anywhere, also inside a word: its last tokens are read as bytes
    ("token healing"), unless what follows is constrained.

    Parameters
    ----------
    members : sequence of Member
        With at least ``2 * width`` branches each if all tokenisations count.
    weights : sequence of float, optional
        Non-negative, not all zero; equal by default.  A member of weight 0 is not run.
    weigher : Weigher, optional
        Gives the weights unit by unit; by default they follow the members' predictions slowly
        (`logitfuse.weights.Online`), beginning with `weights`.
    pool : str or PoolOptions
        See `logitfuse.fuse`; any but the linear one works byte by byte, on the 256 bytes and the
        end, with weights that stay.
    gate : ByteGate, optional
        A learned gate (see `logitfuse.gatefile`): the weights depend on how sure the members are
        of the next byte.
    per : {"byte", "unit"}
        Two models that both deserve the name linear pool (for one step, and only then, they are
        the same): ``byte`` mixes the members' next-byte distributions with the same weights at
        every byte; ``unit`` mixes their distributions of whole units, so that inside a unit the
        weights follow the members' likelihoods of the bytes since it began.
    tokenisations : {"all", "canonical"}
        ``all``: exact, but for pruning; other tokenisations than the canonical one cost forward
        passes of their own.  ``canonical``: what a member knows from the rows before and behind
        its last canonical token (prefix mass), without any.
    prune : float
        Share of the text's probability below which a tokenisation is not followed.
    width : int
        Most tokenisations followed per member.
    name : str, optional

    Raises
    ------
    FusionError
        Bad weights, prune or width.
    ConfigError
        No members, unknown names, members without branches.

    Notes
    -----
    A constraint takes from each member's distributions the tokens that cannot come, along every
    tokenisation; the members that are left with these are pooled.

    Exact byte-level probabilities: Phan et al., arXiv 2410.09303.  Covering trees: Hayase et al.,
    arXiv 2506.14123.  Beams: Vieira et al., arXiv 2412.03719.
    """

    def __init__(
        self,
        members: Sequence[Member],
        *,
        weights: Sequence[float] | None = None,
        weigher: Weigher | None = None,
        pool: PoolName | PoolOptions = "linear",
        gate: _core.ByteGate | None = None,
        per: PoolUnit = "byte",
        tokenisations: Tokenisations = "all",
        prune: float = PRUNE,
        width: int = WIDTH,
        name: str | None = None,
    ) -> None:
        if per not in ("byte", "unit"):
            raise ConfigError(f"weights are per byte or per unit, not per '{per}'", key="per")
        if tokenisations not in ("all", "canonical"):
            raise ConfigError(
                f"unknown tokenisations '{tokenisations}'; known: all, canonical",
                key="tokenisations",
            )
        self.pool = pool if isinstance(pool, PoolOptions) else PoolOptions(pool)
        super().__init__(members, weights=weights, pool=self.pool.kind, name=name)
        self.per: PoolUnit = per
        self.tokenisations: Tokenisations = tokenisations
        if weigher is None and (self.pool.kind != "linear" or gate is not None):
            weigher = Given(self.weights, self.pool.kind)
        if weigher is not None and not isinstance(weigher, Given):
            self.pool.require_shares()
        self.weigher = Online(prior=self.weights) if weigher is None else weigher
        self.gate = gate
        self.prune, self.width = prune, width
        self._history = _core.ByteHistory(len(self.members))
        self._reads_prompt = self.weigher.reads_prompt
        self._readers: list[Reader] = []
        for member in self.members:
            if tokenisations == "canonical":
                self._readers.append(TwoRows(member, prune=prune))
                continue
            self._readers.append(Beam(member, prune=prune, width=width))
        cores = [reader.core for reader in self._readers]
        self._search = _core.UnitSearch(
            self.alignment._core,
            cores,
            per == "unit",
            self.pool.kind,
            self.pool.floor,
            self.pool.exponent,
            self.pool.plausibility,
            gate,
        )
        self._alone = [_core.UnitSearch(self.alignment._core, [core]) for core in cores]
        self._excluded: list[int] = []  # outcomes that do not follow the text
        self._votes: list[float] = []  # of the present step
        self._symbol = -1  # of the present step, in the search

    def rest(self) -> None:
        """See `Engine.rest`."""
        for reader in self._readers:
            reader.core.rest()

    # -- one answer ---------------------------------------------------------------------------

    def _prefill(self, request: Request, sampler: _core.Sampler) -> tuple[str, ...]:
        self._excluded = []
        self._history.reset()
        self._heals = isinstance(request.prompt, str | bytes)
        stops = super()._prefill(request, sampler)
        self.weigher.begin(self._evidence() if self._reads_prompt else [])
        for search in (self._search, *self._alone):
            search.forget()
        self._together(self._open_reader)
        self.stats.decode_s = self.stats.sync_s = 0.0
        return stops

    def _open_reader(self, i: int) -> None:
        prompt = self._prompts[i]
        heal = self._heals and bool(prompt.text)
        allowed = None if self._guide is None else partial(self._guide.allowed, i)
        self._readers[i].open(prompt.tokens, heal=heal, ahead=self._ahead, allowed=allowed)

    def _begin(self, i: int) -> None:
        if self._reads_prompt:  # for the evidence only: the readers go over the prompt themselves
            super()._begin(i)

    def _step(self, reply: ReplyText, sampler: _core.Sampler, request: Request) -> Step:
        step = self._decide(reply, request, lambda: self._draw(sampler, request))
        with self.stats.sampling():
            sampler.accept(self._symbol)
        return step

    def _said(
        self, reply: ReplyText, left: bytes, sampler: _core.Sampler, request: Request
    ) -> Step:
        del sampler  # nothing is drawn
        return self._decide(reply, request, lambda: self._find(left, request))

    def _decide(self, reply: ReplyText, request: Request, choose: Callable[[], _Choice]) -> Step:
        """Pool what the members believe about the next bytes, and choose a unit."""
        passed = _Passed(0.0, (0.0,) * len(self.members))
        self._ask(reply, request)
        choice = choose()
        while self._search.unit(choice.symbol) == b"" and choice.symbol != self.alignment.end:
            # Only waiting paths spell what follows: ask them.
            passed = passed.then(choice)
            self._excluded = self._excluded + self._search.spelled(choice.symbol)
            self._together(self._wake)
            self._ask(reply, request)
            choice = choose()
        step = self._make_step(choice, passed, request, reply)
        self._symbol = choice.symbol
        self._excluded = self._search.spelled(self._symbol)
        self._count(step, [0.0 if math.isnan(p) else 1.0 for p in step.member_logprobs])
        if step.unit:
            own = step.finite_logprobs
            self.weigher.observe(own, len(step.unit))
            if self.gate is not None:
                for _ in step.unit:
                    self._history.observe([p / len(step.unit) for p in own])
        return step

    def _settle(self) -> None:
        for i in self._running:
            self._readers[i].settle()

    def _wake(self, i: int) -> object:
        return self._readers[i].follow(b"", b"", (), wake=True)

    def _ask(self, reply: ReplyText, request: Request) -> None:
        """Let the search read the members' beliefs."""
        self._votes = [
            weight if i in self._running and not self._readers[i].silent else 0.0
            for i, weight in enumerate(self.weigher.current())
        ]
        if not any(vote > 0 for vote in self._votes):
            raise FusionError("no member can spell the text any further")
        read = partial(
            self._search.read,
            self._votes,
            reply.unfinished,
            may_end=not request.ignore_end,
            history=self._history.values.tolist(),
        )
        read(excluded=self._excluded)
        if self._excluded and len(self._search.candidates(1)) == 0:
            self._excluded = []  # what waited can spell nothing but the same
            read()

    def _draw(self, sampler: _core.Sampler, request: Request) -> _Choice:
        """A unit from the pool."""
        if sampler.plain:
            with self.stats.sampling():
                drawn = self._search.draw(sampler.uniform())
            fused = self._search.candidates(max(1, request.top_logprobs))
            return _Choice(fused, fused.symbols.tolist().index(drawn), fused)
        touched, wanted = sampler.touched, request.top_logprobs
        for depth in _DEPTHS:
            # All that a bias touches may be forbidden: something else must be listed.
            n = min(_core.ALL, max(depth, wanted) + len(touched))
            fused = self._search.candidates(n, touched)
            if not self._process(sampler, fused, whole=n == _core.ALL):
                continue
            listed = min(wanted, len(fused))
            if n < _core.ALL and listed and fused.logprob(listed - 1) < fused.outside:
                continue  # an unlisted one may be among those that the caller wants to see
            with self.stats.sampling():
                index = sampler.draw(fused)
            if index >= 0:
                return _Choice(fused, index, fused)
        raise FusionError("no unit that may follow the text has any probability left")

    def _find(self, text: bytes, request: Request) -> _Choice:
        """The unit that a text begins with, or all of it, if it is the beginning of units."""
        best = self._search.candidates(request.top_logprobs)
        symbol = self._search.along(text)
        if symbol < 0:
            raise PromptError(
                f"the text has no probability at byte 0x{text[0]:02x}: no vocabulary spells it, or "
                f"the {self.pool.kind} pool rules it out"
            )
        fused = self._search.candidates(request.top_logprobs)
        return _Choice(fused, fused.symbols.tolist().index(symbol), best)

    def _make_step(
        self, choice: _Choice, passed: _Passed, request: Request, reply: ReplyText
    ) -> Step:
        symbol, unit_of, best = choice.symbol, self._search.unit, choice.best
        logprob, own = passed.then(choice)
        tops = [
            () if math.isnan(p) else self._own_top(i, before, reply, request)
            for i, (p, before) in enumerate(zip(own, passed.members, strict=True))
        ]
        wishes = tuple(top[0][0] if top else None for top in tops)
        said = [wish for wish in wishes if wish is not None]
        decision: DecisionName = "fused"
        if len(said) == 1:
            decision = "led"
        elif said and all(wish == unit_of(symbol) for wish in said):
            decision = "agree"
        listed = range(min(request.top_logprobs, len(best)))
        return Step(
            symbol=symbol if symbol < len(self.alignment) else -1,
            unit=unit_of(symbol),
            logprob=logprob,
            member_logprobs=own,
            wishes=wishes,
            decision=decision,
            top=tuple((unit_of(best.symbol(k)), best.logprob(k) + passed.logprob) for k in listed),
            member_tops=tuple(tops) if request.member_top > 0 else (),
        )

    def _own_top(
        self, i: int, before: float, reply: ReplyText, request: Request
    ) -> tuple[Candidate, ...]:
        """What a member alone would say, the wish first; its units may end elsewhere.

        `before` is what it took, nats, that only waiting paths spell what follows.
        """
        search, wanted = self._alone[i], max(1, request.member_top)
        search.read(
            [1.0], reply.unfinished, may_end=not request.ignore_end, excluded=self._excluded
        )
        fused = search.candidates(wanted + 1)  # one may stand for paths that wait, and say nothing
        said = [(search.unit(symbol), symbol) for symbol in fused.symbols.tolist()]
        return tuple(
            (unit, before + fused.logprob(k))
            for k, (unit, symbol) in enumerate(said)
            if unit or symbol == self.alignment.end
        )[:wanted]

    def _follow(self, reply: ReplyText, step: Step) -> bool:
        complete, units = reply.complete, tuple(reply.units)
        wake = bool(self._excluded)
        return all(
            self._together(lambda i: self._readers[i].follow(step.unit, complete, units, wake=wake))
        )

    def _follow_given(self, reply: ReplyText, step: Step) -> Step:
        """Charge what the beams gave up: each member's share of the unit as far as it was kept.

        A given text is known, so that its own tokens are never given up; without the charge texts
        would have more than all probability.
        """
        super()._follow_given(reply, step)
        kept = [reader.take_kept() for reader in self._readers]
        own = [
            vote * math.exp(p) if p > -math.inf else 0.0  # false for NaN
            for vote, p in zip(self._votes, step.member_logprobs, strict=True)
        ]
        left = (
            sum(a * b for a, b in zip(own, kept, strict=True)) / sum(own) if sum(own) > 0 else 1.0
        )
        return replace(
            step,
            logprob=step.logprob + math.log(left),
            member_logprobs=tuple(
                p + math.log(k) for p, k in zip(step.member_logprobs, kept, strict=True)
            ),
        )
