"""The engine of token-level strategies: one shared reply that the members follow."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from logitfuse import _core
from logitfuse.alignment import align
from logitfuse.errors import ConfigError, ContextLengthError, FusionError, MemberError
from logitfuse.guide import Guide, guide_for
from logitfuse.member import Member
from logitfuse.pooling import PoolName
from logitfuse.sampling import WHOLE_POOL, make_sampler
from logitfuse.strategies.base import (
    Chunk,
    ChunkStream,
    FinishReason,
    Prompt,
    Request,
    Step,
    StepStream,
)
from logitfuse.strategies.prompts import render
from logitfuse.strategies.stats import RunStats
from logitfuse.text import ReplyText, valid_text
from logitfuse.weights import PromptEvidence

#: Where members decode that take turns, of all engines.  Each thread that calls OpenMP has a team
#: of its own whose idle threads spin, and as soon as all teams have more threads than there are
#: cores, every one of them is throttled: decoding becomes two to three times slower.
_TURNS = ThreadPoolExecutor(1, thread_name_prefix="logitfuse-turns")


#: Runs several moves at once and gives their results in order.
Join: TypeAlias = Callable[[Sequence[Callable[[], Any]]], list[Any]]


class Engine(ABC):
    """Members, one reply, and the loop that extends it unit by unit.

    A strategy says how the next unit is chosen (`_step`) and how the members get behind it
    (`_follow`).  Prompts, chunks, stop strings, lengths, errors and threads are the engine's.

    Parameters
    ----------
    members : sequence of Member
    weights : sequence of float, optional
        1 each by default; what else they may be depends on the pool.  A member of weight 0 is not
        run.
    pool : str
        What the weights are for.
    name : str, optional

    Raises
    ------
    FusionError
        Bad weights.
    ConfigError
        No members.
    """

    #: Threads of a member that decodes while the others wait; None: those of all that run.
    threads_alone: int | None = None
    #: Other engines of this process decode while this one rests.
    in_turns = False
    #: Runs several moves at once; None: each member moves in a thread of its own.
    join: Join | None = None

    def __init__(
        self,
        members: Sequence[Member],
        *,
        weights: Sequence[float] | None = None,
        pool: PoolName = "linear",
        name: str | None = None,
    ) -> None:
        if not members:
            raise ConfigError("an ensemble needs at least one member (-m model.gguf)")
        self.members = tuple(members)
        self.weights = _core.normalise_weights(
            [1.0] * len(members) if weights is None else [float(w) for w in weights],
            len(members),
            pool,
        )
        self.name = name or "+".join(member.name for member in members)
        self.alignment = align([member.vocab for member in members])
        self.stats = RunStats()
        self._running = [i for i, weight in enumerate(self.weights) if weight]
        vocabs = [members[i].vocab for i in self._running]
        self._one_vocab = all(vocab == vocabs[0] for vocab in vocabs)
        self._prompts: Mapping[int, Prompt] = {}
        #: The text that is scored; the members may read it ahead.
        self._ahead = b""
        self._guide: Guide | None = None  # along a reply that is constrained
        #: Prompts are scored, for `_evidence`.
        self._reads_prompt = False
        self._threads = [
            ThreadPoolExecutor(1, thread_name_prefix=f"logitfuse-{member.name}")
            for member in self.members
        ]

    @property
    def scribe(self) -> int:
        """Whose tokens texts are cut into: the member of largest weight, or with most tokens."""
        return max(self._running, key=self._rank)

    def _rank(self, i: int) -> tuple[float, int, int]:
        """Members of large weight come first, and of several those with most tokens."""
        return self.weights[i], len(self.members[i].vocab), -i

    def close(self) -> None:
        """Free the members' models."""
        for thread in self._threads:
            thread.shutdown()
        for member in self.members:
            member.close()

    def rest(self) -> None:  # noqa: B027 (most have nothing to do)
        """Keep no memory that only a reply needs; the next one begins as usual."""

    def stream(self, request: Request, prompts: Mapping[int, Prompt] | None = None) -> ChunkStream:
        """Answer a request, one chunk per step and a last one with the finish reason.

        Parameters
        ----------
        request : Request
        prompts : mapping of int to Prompt, optional
            From `render`, if that has been done.

        Raises
        ------
        PromptError, ContextLengthError, FusionError
            Before the first chunk.
        ConfigError
            The request's constraint has become too complex, or leads nowhere.
        MemberError
            A member failed; `MemberError.text` is the answer so far.
        """
        started = time.perf_counter()
        sampler = make_sampler(request.sampling, self.alignment)
        reply = ReplyText(self._open(request, sampler, prompts))
        finish: FinishReason | None = None
        with self._answering(reply, started):
            while finish is None:
                step = self._timed(lambda: self._step(reply, sampler, request))
                finish, text = self._extend(reply, step, request, time.perf_counter() - started)
                yield from self._give(reply, text, (step,), finish, started)
                if finish is None and not self._follow(reply, step):
                    finish = "length"
                    yield from self._give(reply, "", (), finish, started)

    def _give(
        self,
        reply: ReplyText,
        text: str,
        steps: tuple[Step, ...],
        finish: FinishReason | None,
        started: float,
    ) -> ChunkStream:
        """Give a chunk away; the caches settle where it is the last one, or nobody wants more."""
        if finish is not None:
            text += reply.flush()
            self._settle()
        self.stats.total_s = time.perf_counter() - started
        try:
            yield Chunk(text, steps, finish)
        except GeneratorExit:
            if finish is None:
                self._settle()
            raise

    def score(self, request: Request, text: str | bytes) -> StepStream:
        """The steps in which this strategy would have said a text: teacher forcing.

        The units of the steps join to the text, and their log-probabilities sum to that of a reply
        that begins with it.  Nothing truncates, biases or constrains: of a request's sampling
        parameters only the limits of `top_logprobs` count.  See each strategy for what a unit is.

        Parameters
        ----------
        request : Request
            Its prompt, `ignore_end` and `top_logprobs` count.
        text : str or bytes
            Valid UTF-8.

        Yields
        ------
        Step
            With at least one `top` unit: what the strategy itself finds most probable.

        Raises
        ------
        PromptError, ContextLengthError
            Before the first step.
        PromptError, FusionError
            Where the text has no probability at all.
        MemberError
            A member failed.
        """
        raw = valid_text(text, "the text to be scored")
        request = replace(
            request,
            sampling=WHOLE_POOL,
            max_tokens=None,
            stop=(),
            top_logprobs=max(1, request.top_logprobs),
            constraint=None,
        )
        started = time.perf_counter()
        reply, at = ReplyText(), 0
        self._ahead = raw
        try:
            sampler = make_sampler(request.sampling, self.alignment)
            self._open(request, sampler)
            with self._answering(reply, started):
                while at < len(raw):
                    step = self._timed(partial(self._said, reply, raw[at:], sampler, request))
                    at += len(step.unit)
                    reply.append(step.unit)
                    if at < len(raw):
                        step = self._follow_given(reply, step)
                    yield step
        finally:
            self._ahead = b""

    def _open(
        self,
        request: Request,
        sampler: _core.Sampler,
        prompts: Mapping[int, Prompt] | None = None,
    ) -> tuple[str, ...]:
        """Begin a reply; returns the stop strings."""
        started = time.perf_counter()
        self.stats = RunStats(votes=[0] * len(self.members), wins=[0] * len(self.members))
        self._guide = guide_for(request.constraint, self.members)
        if prompts is None:
            prompts = self.render(request.prompt, document=bool(self._ahead))
        self._prompts = prompts
        first = self.members[self._running[0]].stats
        before = first.decoded_tokens
        stops = self._prefill(request, sampler)
        read = first.decoded_tokens - before
        self.stats.cached_tokens = max(0, self.stats.prompt_tokens - read)
        self.stats.prefill_s = time.perf_counter() - started
        return stops

    @contextmanager
    def _answering(self, reply: ReplyText, started: float) -> Iterator[None]:
        """Whatever happens: errors name the member and keep the text, and the time is taken."""
        try:
            yield
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

    def _timed(self, choose: Callable[[], Step]) -> Step:
        """Choose a unit, and note how long that took besides waiting for members."""
        before = self.stats.beside_fuse_s
        started = time.perf_counter()
        step = choose()
        beside = self.stats.beside_fuse_s - before
        self.stats.fuse_s += time.perf_counter() - started - beside
        return step

    # -- one answer ---------------------------------------------------------------------------

    def _prefill(self, request: Request, sampler: _core.Sampler) -> tuple[str, ...]:
        """Bring the running members to their renderings of the prompt; returns the stop strings."""
        stops = list(request.stop)
        for i, prompt in self._prompts.items():
            ahead = self.members[i].tokenize(self._ahead) if self._ahead else []
            self.members[i].require_room(prompt.tokens + ahead)  # before anybody decodes
            stops += prompt.stop
        first = self._running[0]
        self.stats.prompt_tokens = len(self._prompts[first].tokens)
        for token in self._prompts[first].tokens:
            symbol = self.alignment.symbol(first, token)
            if symbol is not None:
                sampler.accept(symbol)
        self._together(self._begin)
        self.stats.decode_s = self.stats.sync_s = 0.0
        return tuple(dict.fromkeys(stops))

    def _begin(self, i: int) -> None:
        """Bring a member to its prompt."""
        self.members[i].begin(self._prompts[i].tokens, score=self._reads_prompt)

    def render(self, prompt: Any, *, document: bool = False) -> dict[int, Prompt]:
        """Every running member's own tokens for a prompt (see `Request.prompt`).

        For any thread.

        Parameters
        ----------
        prompt : str, bytes, sequence of int or of messages
        document : bool
            It may be empty: what follows is a text from its beginning on.

        Raises
        ------
        PromptError
            It is empty, malformed, or refused by a chat template.
        """
        if document and isinstance(prompt, str | bytes) and not prompt:
            return {i: Prompt([self.members[i].opening], b"") for i in self._running}
        return {i: render(self.members[i], prompt, self.alignment) for i in self._running}

    def _evidence(self) -> list[PromptEvidence]:
        """How each member reads the prompt; of one that does not run, nothing is known."""
        nothing = PromptEvidence(np.empty(0, np.int64), np.empty(0))
        found = [nothing] * len(self.members)
        for i, prompt in self._prompts.items():
            found[i] = self.members[i].prompt_evidence(prompt.text, prompt.spans)
        return found

    @abstractmethod
    def _step(self, reply: ReplyText, sampler: _core.Sampler, request: Request) -> Step:
        """Choose the next unit."""

    @abstractmethod
    def _said(
        self, reply: ReplyText, left: bytes, sampler: _core.Sampler, request: Request
    ) -> Step:
        """The unit that `left` begins with, as a step."""

    @abstractmethod
    def _follow(self, reply: ReplyText, step: Step) -> bool:
        """Bring the members to the reply, which the step has just extended.

        Returns
        -------
        bool
            False: a context is full, the answer ends here.
        """

    def _settle(self) -> None:  # noqa: B027 (most have nothing to do)
        """The reply has ended: let the members' caches hold what a later prompt may begin with."""

    def _follow_given(self, reply: ReplyText, step: Step) -> Step:
        """Bring the members behind a step of a given text; returns it with what that cost."""
        if not self._follow(reply, step):
            least = min(self._running, key=lambda i: self.members[i].n_ctx)
            member = self.members[least]
            n_tokens = len(self._prompts[least].tokens) + len(member.tokenize(self._ahead))
            raise ContextLengthError(member=member.name, n_tokens=n_tokens, n_ctx=member.n_ctx)
        return step

    def _extend(
        self, reply: ReplyText, step: Step, request: Request, seconds: float
    ) -> tuple[FinishReason | None, str]:
        """Add a step to the reply; tells whether the answer is over, and what is new for sure."""
        if not step.unit:
            return "stop", ""
        text = reply.append(step.unit)
        guide = self._guide
        if reply.stopped or (guide and guide.complete(self._running[0], reply.raw)):
            return "stop", text
        if request.max_tokens is not None and self.stats.steps >= request.max_tokens:
            return "length", text
        if request.time_limit is not None and seconds >= request.time_limit:
            return "length", text
        return None, text

    def _together(self, move: Callable[[int], Any], who: Iterable[int] | None = None) -> list[Any]:
        """Run `move` for these members (all that run) at once, and note how long that took."""
        chosen = self._running if who is None else list(who)
        started = time.perf_counter()
        before = [self.members[i].stats.decode_s for i in chosen]
        results = (
            self._in_threads(move, chosen)
            if self.join is None
            else self.join([partial(move, i) for i in chosen])
        )
        decoding = max(
            self.members[i].stats.decode_s - was for i, was in zip(chosen, before, strict=True)
        )
        self.stats.decode_s += decoding
        self.stats.sync_s += time.perf_counter() - started - decoding
        return results

    def _in_threads(self, move: Callable[[int], Any], chosen: Sequence[int]) -> list[Any]:
        """Run `move` for these members, each in its own thread.

        A member that moves alone gets the cores of all.
        Ctrl-C does not reach those threads.
        """
        alone = len(chosen) == 1 and (self.in_turns or len(self._running) > 1)
        contexts = [self.members[i].context for i in chosen]
        own = [context.n_threads for context in contexts]
        if alone:
            running = sum(self.members[i].context.n_threads for i in self._running)
            contexts[0].set_threads(self.threads_alone or running)
        futures = [(_TURNS if alone else self._threads[i]).submit(move, i) for i in chosen]
        try:
            return [future.result() for future in futures]
        finally:
            wait(futures)  # on errors and Ctrl-C too: no member may be left half-way
            for context, threads in zip(contexts, own, strict=True):
                context.set_threads(threads)

    def _process(self, sampler: _core.Sampler, fused: _core.Fused, *, whole: bool) -> bool:
        """Penalties and biases; False: they forbid all that is listed, but it is not the whole."""
        try:
            with self.stats.sampling():
                sampler.process(fused)
        except FusionError:
            if whole:
                raise
            return False
        return True

    def _count(self, step: Step, votes: Sequence[float]) -> None:
        self.stats.decisions[step.decision] += 1
        self.stats.ends += not step.unit
        for i, vote in enumerate(votes):
            self.stats.votes[i] += vote != 0
            self.stats.wins[i] += step.decision == "fused" and step.wishes[i] == step.unit
