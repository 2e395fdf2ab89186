"""Byte-level fusion: exact where tokenizers differ.

Every member's tokens are only a way to spell bytes: summed over all tokenisations of the text, its
belief in the next byte does not depend on them, and the members can be pooled byte by byte.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Literal, TypeAlias

from logitfuse import _core
from logitfuse.beam import Beam, Reader, TwoRows
from logitfuse.config import PRUNE, WIDTH
from logitfuse.errors import ConfigError, FusionError
from logitfuse.member import Member
from logitfuse.pooling import PoolName, PoolOptions
from logitfuse.strategies.base import DecisionName, Request, Step
from logitfuse.strategies.engine import Engine
from logitfuse.text import ReplyText
from logitfuse.weights import Given, Online, Weigher

#: What the weights are weights of.
PoolUnit: TypeAlias = Literal["byte", "unit"]
#: Which tokenisations of the text count.
Tokenisations: TypeAlias = Literal["all", "canonical"]

#: Units that are listed, in turn, until no unlisted one could matter.
_DEPTHS = (1, 16, 64, 512, 4096, _core.ALL)


class Bytes(Engine):
    """N members, one distribution of the next bytes; steps are *units* of about a token.

    A unit goes from the present text to the next place where some member needs a forward pass, so
    units exclude each other and their pooled probabilities sum to 1.  Sampling parameters act on
    units.  A text prompt may end anywhere, also inside a word: its last tokens are read as bytes
    ("token healing").

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
        if weigher is not None and not isinstance(weigher, Given) and not self.pool.takes_shares:
            raise ConfigError(
                f"the {self.pool.kind} pool takes weights as given; nothing can learn them",
                key="weighting",
            )
        self.weigher = Online(prior=self.weights) if weigher is None else weigher
        self.gate = gate
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

    # -- one answer ---------------------------------------------------------------------------

    def _prefill(self, request: Request, sampler: _core.Sampler) -> tuple[str, ...]:
        self._excluded = []
        self._history.reset()
        self._heals = isinstance(request.prompt, str | bytes)
        stops = super()._prefill(request, sampler)
        self.weigher.begin(self._evidence() if self._reads_prompt else [])
        self._together(lambda i: self._readers[i].open(self._prompts[i].tokens, heal=self._heals))
        self.stats.decode_s = self.stats.sync_s = 0.0
        return stops

    def _begin(self, i: int) -> None:
        if self._reads_prompt:  # for the evidence only: the readers go over the prompt themselves
            super()._begin(i)

    def _step(self, reply: ReplyText, sampler: _core.Sampler, request: Request) -> Step:
        before = self.stats.beside_fuse_s
        started = time.perf_counter()
        fused, index = self._read(reply, sampler, request)
        while self._search.unit(fused.symbol(index)) == b"" and not self._ends(fused, index):
            # Only waiting paths spell what follows: ask them.
            self._excluded = self._excluded + self._search.spelled(fused.symbol(index))
            self._together(self._wake)
            fused, index = self._read(reply, sampler, request)
        step = self._make_step(fused, index, request, reply)
        self._excluded = self._search.spelled(fused.symbol(index))
        with self.stats.sampling():
            sampler.accept(fused.symbol(index))
        self._count(step, [0.0 if math.isnan(p) else 1.0 for p in step.member_logprobs])
        if step.unit:
            own = [p if math.isfinite(p) else math.nan for p in step.member_logprobs]
            self.weigher.observe(own, len(step.unit))
            if self.gate is not None:
                for _ in step.unit:
                    self._history.observe([p / len(step.unit) for p in own])
        beside = self.stats.beside_fuse_s - before
        self.stats.fuse_s += time.perf_counter() - started - beside
        return step

    def _ends(self, fused: _core.Fused, index: int) -> bool:
        return fused.symbol(index) == self.alignment.end

    def _wake(self, i: int) -> object:
        return self._readers[i].follow(b"", b"", (), wake=True)

    def _read(
        self, reply: ReplyText, sampler: _core.Sampler, request: Request
    ) -> tuple[_core.Fused, int]:
        """Pool what the members believe about the next bytes, and draw a unit."""
        votes = [
            weight if i in self._running and not self._readers[i].silent else 0.0
            for i, weight in enumerate(self.weigher.current())
        ]
        if not any(vote > 0 for vote in votes):
            raise FusionError("no member can spell the text any further")
        self._search.read(
            votes,
            reply.unfinished,
            may_end=not request.ignore_end,
            history=self._history.values.tolist(),
            excluded=self._excluded,
        )
        if sampler.plain:
            with self.stats.sampling():
                drawn = self._search.draw(sampler.uniform())
            fused = self._search.candidates(max(1, request.top_logprobs))
            return fused, fused.symbols.tolist().index(drawn)
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
                return fused, index
        raise FusionError("no unit that may follow the text has any probability left")

    def _make_step(
        self, fused: _core.Fused, index: int, request: Request, reply: ReplyText
    ) -> Step:
        symbol, unit_of = fused.symbol(index), self._search.unit
        own = tuple(fused.member_logprob(index))
        wishes = tuple(
            None if math.isnan(p) else self._wish(i, reply, request) for i, p in enumerate(own)
        )
        said = [wish for wish in wishes if wish is not None]
        decision: DecisionName = "fused"
        if len(said) == 1:
            decision = "led"
        elif said and all(wish == unit_of(symbol) for wish in said):
            decision = "agree"
        listed = range(min(request.top_logprobs, len(fused)))
        return Step(
            symbol=symbol if symbol < len(self.alignment) else -1,
            unit=unit_of(symbol),
            logprob=fused.logprob(index),
            member_logprobs=own,
            wishes=wishes,
            decision=decision,
            top=tuple((unit_of(fused.symbol(k)), fused.logprob(k)) for k in listed),
        )

    def _wish(self, i: int, reply: ReplyText, request: Request) -> bytes | None:
        """What a member alone would say, if anything; its units may end elsewhere."""
        search = self._alone[i]
        search.read(
            [1.0], reply.unfinished, may_end=not request.ignore_end, excluded=self._excluded
        )
        fused = search.candidates(2)  # one may stand for paths that wait, and say nothing
        units = [search.unit(symbol) for symbol in fused.symbols.tolist()]
        said = (unit for k, unit in enumerate(units) if unit or self._ends(fused, k))
        return next(said, None)

    def _follow(self, reply: ReplyText, step: Step) -> bool:
        complete, units = reply.complete, tuple(reply.units)
        wake = bool(self._excluded)
        return all(
            self._together(lambda i: self._readers[i].follow(step.unit, complete, units, wake=wake))
        )
