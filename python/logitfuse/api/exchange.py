"""One request to the API as it is answered: jobs for a batcher, whose events become objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from logitfuse.batching import Batcher, Done, Event, Job, Ticket
from logitfuse.completions import Choice, CompletionFormat, Response, usage
from logitfuse.echo import Cut, score_tokens
from logitfuse.errors import BusyError
from logitfuse.strategies.base import Chunk, Step
from logitfuse.strategies.base import Prompt as Rendered
from logitfuse.strategies.stats import RunStats


@dataclass(eq=False)
class Prompt:
    """A prompt of a request, and the answers to it.

    Attributes
    ----------
    choices : list of Choice
    cut : Cut or None
        Given: the log-probabilities of its tokens are asked for.
    n_tokens : int
    n_cached : int
        Of these: they had been read before.
    held : bool
        Its steps are still to come, and the answers wait for them.
    """

    choices: list[Choice]
    cut: Cut | None = None
    n_tokens: int = 0
    n_cached: int = 0
    held: bool = False
    steps: list[Step] = field(default_factory=list)

    def score(self, top_logprobs: int) -> None:
        """Let the answers begin with what the steps say."""
        assert self.cut is not None
        scores = score_tokens(self.cut, self.steps, top_logprobs)
        for choice in self.choices:
            choice.scores = scores
        self.n_tokens = self.n_tokens or len(scores)
        self.held = False


@dataclass(frozen=True)
class Seat:
    """What a job is for: one of the answers to a prompt, or (None) the prompt's own steps."""

    job: Job
    prompt: Prompt
    choice: Choice | None


def n_tokens(rendered: Mapping[int, Rendered]) -> int:
    """Tokens of a prompt, as usage counts them: those of the first member."""
    return len(next(iter(rendered.values())).tokens)


class Exchange:
    """Hears the events of jobs, and gives the objects of the API.

    Parameters
    ----------
    prompts : sequence of Prompt
    seats : sequence of Seat
        Their jobs, in the order in which they are to be submitted.
    form : CompletionFormat
    model : str
        Name of the ensemble.
    members : sequence of str
        Their names.
    stream : bool
        The client wants a stream.
    trace : bool
        Say at last what it took.
    include_usage : bool
        A stream ends with an object that counts tokens.

    Attributes
    ----------
    decisions : Counter of str
        How the steps of the answers were decided, so far.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        seats: Sequence[Seat],
        form: CompletionFormat,
        *,
        model: str,
        members: Sequence[str],
        stream: bool = False,
        trace: bool = False,
        include_usage: bool = False,
    ) -> None:
        self.seats = seats
        self.model = model
        self.stream = stream
        self.decisions: Counter[str] = Counter()
        self._form = form
        self._members = members
        self._trace = trace
        self._include_usage = include_usage
        self._prompts = prompts
        self._choices = [choice for prompt in prompts for choice in prompt.choices]
        self._stats: list[RunStats] = []

    @property
    def done(self) -> bool:
        """All jobs have ended."""
        return len(self._stats) == len(self.seats)

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts that have been read so far."""
        return sum(prompt.n_tokens for prompt in self._prompts)

    @property
    def completion_tokens(self) -> int:
        """Of all answers, as far as they came."""
        return sum(choice.n_tokens for choice in self._choices)

    def submit(self, batcher: Batcher, listener: Callable[[int, Event], object]) -> list[Ticket]:
        """Have all jobs done.

        Parameters
        ----------
        batcher : Batcher
        listener : callable
            Told the number of a job and its event, in the batcher's own thread.

        Raises
        ------
        BusyError
            There is no room for all of them; then none is done.
        """
        tickets: list[Ticket] = []
        first: dict[Prompt, Ticket] = {}
        try:
            for i, seat in enumerate(self.seats):
                after = None if seat.choice is None else first.get(seat.prompt)
                job = replace(seat.job, after=after, group=self)
                ticket = batcher.submit(job, partial(listener, i))
                tickets.append(ticket)
                if seat.choice is not None:
                    first.setdefault(seat.prompt, ticket)
        except BusyError:
            for ticket in tickets:
                ticket.cancel()
            raise
        return tickets

    def hear(self, i: int, event: Event) -> list[Response]:
        """Take an event of the i-th job; gives the objects of a stream that it makes.

        Raises
        ------
        Exception
            The event is one: there will be no answer.
        """
        if isinstance(event, Exception):
            raise event
        prompt, choice = self.seats[i].prompt, self.seats[i].choice
        self._note(self.seats[i], event)
        if not self.stream or prompt.held:
            return []
        return self._marked(self._tell(prompt.choices if choice is None else [choice]))

    def begin(self) -> list[Response]:
        """The objects of a stream that need no event: no answers, to prompts of one token."""
        prompts = [prompt for prompt in self._prompts if self.stream and not prompt.held]
        return self._marked(self._tell([c for p in prompts for c in p.choices if c.complete]))

    def _tell(self, choices: Sequence[Choice]) -> list[Response]:
        """The objects by which a stream of choices has grown."""
        objects: list[Response] = []
        for choice in choices:
            objects += self._form.growth(choice)
            if choice.complete:
                objects += self._form.ending(choice)
        return objects

    def whole(self) -> Response:
        """All answers as one object, if there is no stream."""
        answer = self._form.whole(self._choices, self.prompt_tokens) | {"usage": self._usage()}
        return answer | ({"logitfuse": self._summary()} if self._trace else {})

    def _usage(self) -> Response:
        """How many tokens were read and written, and how many had been read before."""
        cached = sum(prompt.n_cached for prompt in self._prompts)
        counted = usage(self.prompt_tokens, self.completion_tokens)
        return counted | {"prompt_tokens_details": {"cached_tokens": cached}}

    def _note(self, seat: Seat, event: Chunk | Step | Done) -> None:
        """Remember what an event says."""
        prompt, choice = seat.prompt, seat.choice
        if isinstance(event, Step):
            prompt.steps.append(event)
        elif isinstance(event, Chunk):
            assert choice is not None
            choice.add(event)
            if seat.job.prompts:  # it has been read; the answer may yet be broken off
                prompt.n_tokens = n_tokens(seat.job.prompts)
            self.decisions.update(step.decision for step in event.steps)
        elif choice is None:
            self._stats.append(event.stats)
            prompt.score(self._form.logprobs or 0)
        else:
            self._stats.append(event.stats)
            choice.complete = True
            prompt.n_tokens = event.stats.prompt_tokens
            if choice is prompt.choices[0]:  # the others find what it has read
                prompt.n_cached = event.stats.cached_tokens

    def _marked(self, objects: list[Response]) -> list[Response]:
        """With what a stream has at its end, and says that it will have."""
        if self._include_usage:
            for thing in objects:
                thing["usage"] = None
            if self.done:
                objects.append(self._form.remark(usage=self._usage()))
        if self.done and self._trace and objects:
            objects[-1]["logitfuse"] = self._summary()
        return objects

    def _summary(self) -> dict[str, Any]:
        """What the answers took; of several, the sums, and the time of the longest."""
        steps = self.decisions.total()
        total_s = max((stats.total_s for stats in self._stats), default=0.0)
        return {
            "members": list(self._members),
            "stats": {
                "steps": steps,
                "decisions": dict(self.decisions),
                "fused_share": self.decisions["fused"] / max(1, steps),
                "prompt_tokens": self.prompt_tokens,
                "prefill_s": max((stats.prefill_s for stats in self._stats), default=0.0),
                "total_s": total_s,
                "tokens_per_second": self.completion_tokens / total_s if total_s else 0.0,
            },
        }
