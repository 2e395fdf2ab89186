"""The lockstep engine: at every token the members' distributions become one."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from logitfuse import _core, chat
from logitfuse.alignment import align
from logitfuse.errors import ConfigError, FusionError, MemberError
from logitfuse.gates import GATES, GateName
from logitfuse.member import Member
from logitfuse.pooling import FLOOR, TOP, PoolName
from logitfuse.sampling import make_sampler
from logitfuse.strategies.base import (
    Chunk,
    ChunkStream,
    DecisionName,
    FinishReason,
    Request,
    Step,
)
from logitfuse.text import ReplyText

#: Candidates per member that are listed, in turn, until no unlisted one could matter.
_DEPTHS = (TOP, 8 * TOP, 64 * TOP, _core.ALL)

_log = logging.getLogger("logitfuse")

_DECISIONS: dict[_core.Decision, DecisionName] = {
    _core.Decision.open: "fused",
    _core.Decision.agree: "agree",
    _core.Decision.certain: "certain",
}


@dataclass
class RunStats:
    """What one answer took; times in seconds of wall clock.

    Attributes
    ----------
    decisions : Counter of str
        How many steps were led by one member, agreed, certain, fused.
    ends : int
        Steps that ended the answer (0 or 1).
    votes : list of int
        For every member: in how many steps it voted.
    wins : list of int
        For every member: in how many fused steps the answer was its own best candidate.
    prompt_tokens : int
        Of the first member that runs.
    prefill_s : float
        The prompt.
    decode_s, sync_s, fuse_s : float
        The steps after it: waiting for the slowest member's `llama_decode`; what members did
        besides; gates, pool and sampling.
    total_s : float
        Everything.
    """

    decisions: Counter[DecisionName] = field(default_factory=Counter)
    ends: int = 0
    votes: list[int] = field(default_factory=list)
    wins: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    sync_s: float = 0.0
    fuse_s: float = 0.0
    total_s: float = 0.0

    @property
    def steps(self) -> int:
        """Symbols generated, the end included."""
        return self.decisions.total()

    @property
    def fused_share(self) -> float:
        """Share of steps that only the pool could decide."""
        return self.decisions["fused"] / max(1, self.steps)


class Fuse:
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
        if not members:
            raise ConfigError("an ensemble needs at least one member (-m model.gguf)")
        if gate not in GATES:
            raise ConfigError(f"unknown gate '{gate}'; known: {', '.join(GATES)}", key="gate")
        self.members = tuple(members)
        self.weights = _core.normalise_weights(
            [1.0] * len(members) if weights is None else [float(w) for w in weights], len(members)
        )
        self.pool: PoolName = pool
        self.gate: GateName = gate
        self.name = name or "+".join(member.name for member in members)
        self.alignment = align([member.vocab for member in members])
        self.stats = RunStats()
        self._pool = _core.Pool(self.alignment._core, pool, floor)
        self._running = [i for i, weight in enumerate(self.weights) if weight > 0]
        vocabs = [members[i].vocab for i in self._running]
        self._one_vocab = all(vocab == vocabs[0] for vocab in vocabs)
        self._gate = GATES["always" if self._one_vocab else gate]
        self._noticed: set[Member] = set()
        self._threads = [
            ThreadPoolExecutor(1, thread_name_prefix=f"logitfuse-{member.name}")
            for member in self.members
        ]

    def close(self) -> None:
        """Free the members' models."""
        for thread in self._threads:
            thread.shutdown()
        for member in self.members:
            member.close()

    def stream(self, request: Request) -> ChunkStream:
        """Answer a request, one chunk per step and a last one with the finish reason.

        Raises
        ------
        PromptError, ContextLengthError, FusionError
            Before the first chunk.
        MemberError
            A member failed; `MemberError.text` is the answer so far.
        """
        started = time.perf_counter()
        self.stats = RunStats(votes=[0] * len(self.members), wins=[0] * len(self.members))
        sampler = make_sampler(request.sampling, self.alignment)
        stops = self._prefill(request, sampler)
        self.stats.prefill_s = time.perf_counter() - started
        reply = ReplyText(stops)
        try:
            finish: FinishReason | None = None
            while finish is None:
                step = self._step(reply, sampler, request)
                finish, text = self._extend(reply, step, request)
                if finish is not None:
                    text += reply.flush()
                self.stats.total_s = time.perf_counter() - started
                yield Chunk(text, (step,), finish)
        except MemberError as error:
            error.text = reply.text
            raise
        except FusionError as error:
            if error.member is None:
                raise
            name = self.members[error.member].name
            raise MemberError(
                f"member '{name}' gave logits that cannot be fused: {error}",
                member=name,
                text=reply.text,
            ) from error
        finally:
            self.stats.total_s = time.perf_counter() - started

    # -- one answer ---------------------------------------------------------------------------

    def _prefill(self, request: Request, sampler: _core.Sampler) -> tuple[str, ...]:
        """Bring the running members to their renderings of the prompt; returns the stop strings."""
        stops = list(request.stop)
        prompts: dict[int, list[int]] = {}
        for i in self._running:
            prompts[i], ends = self._render(self.members[i], request.prompt)
            self.members[i].require_room(prompts[i])  # before anybody decodes
            stops += ends
        first = self._running[0]
        self.stats.prompt_tokens = len(prompts[first])
        for token in prompts[first]:
            symbol = self.alignment.symbol(first, token)
            if symbol is not None:
                sampler.accept(symbol)
        self._together(lambda i: self.members[i].begin(prompts[i]))
        self.stats.decode_s = self.stats.sync_s = 0.0
        return tuple(dict.fromkeys(stops))

    def _render(self, member: Member, prompt: Any) -> tuple[list[int], tuple[str, ...]]:
        """A member's own tokens for the prompt, and what else ends its replies."""
        if isinstance(prompt, str | bytes):
            return member.tokenize_prompt(prompt), ()
        if all(isinstance(item, int) for item in prompt):
            if self.alignment.identical and len(prompt):  # symbols are tokens
                return member.check_prompt(prompt), ()
            text = b"".join(self.alignment.symbol_bytes(symbol) for symbol in prompt)
            return member.tokenize_prompt(text), ()
        rendered = chat.render(member.model, prompt)
        if rendered.plain and member not in self._noticed:
            self._noticed.add(member)
            _log.warning(
                "%s has no chat template (a base model?): it reads a plain transcript", member.name
            )
        return member.tokenize_prompt(rendered.text), rendered.stop

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

    def _extend(
        self, reply: ReplyText, step: Step, request: Request
    ) -> tuple[FinishReason | None, str]:
        """Add a step to the reply and bring the members there, unless the answer is over."""
        if step.symbol == self.alignment.end:
            return "stop", ""
        text = reply.append(step.unit)
        if reply.stopped:
            return "stop", text
        if request.max_tokens is not None and self.stats.steps >= request.max_tokens:
            return "length", text
        if self._one_vocab:
            twin = self.alignment._core.twin
            fits = self._together(lambda i: self.members[i].append(twin(i, step.symbol)))
        else:
            complete, units = reply.complete, tuple(reply.units)
            fits = self._together(lambda i: self.members[i].advance(complete, units))
        return (None if all(fits) else "length"), text

    def _together(self, move: Callable[[int], Any]) -> list[Any]:
        """Run `move` for every running member in its own thread, where Ctrl-C cannot reach it."""
        started = time.perf_counter()
        before = [self.members[i].stats.decode_s for i in self._running]
        futures = [self._threads[i].submit(move, i) for i in self._running]
        try:
            results = [future.result() for future in futures]
        finally:
            wait(futures)  # on errors and Ctrl-C too: no member may be left half-way
        decoding = max(
            self.members[i].stats.decode_s - was
            for i, was in zip(self._running, before, strict=True)
        )
        self.stats.decode_s += decoding
        self.stats.sync_s += time.perf_counter() - started - decoding
        return results

    def _count(self, step: Step, votes: Sequence[float]) -> None:
        self.stats.decisions[step.decision] += 1
        self.stats.ends += step.symbol == self.alignment.end
        for i, vote in enumerate(votes):
            self.stats.votes[i] += vote > 0
            self.stats.wins[i] += step.decision == "fused" and step.wishes[i] == step.unit
