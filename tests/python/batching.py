"""What the tests of continuous batching share: a batcher that is asked and awaited."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lockstep import PROMPT
from logitfuse.batching import Batcher, Done, Event, Job, Ticket
from logitfuse.config import FuseConfig, build, parse_config
from logitfuse.sampling import SamplingParams
from logitfuse.strategies.base import Chunk, Request, Step

#: Of different lengths, scripts and kinds.
PROMPTS = [
    PROMPT,
    "def quicksort(values):\n    ",
    "Київ — це місто, де",
    "The history of the harbour begins with",
    "1 2 3 4 5 6 7",
    "a",
]
WAIT = 30.0  # seconds; far more than any answer of a tiny model takes


def config_of(models: Mapping[str, Path], *names: str, **parts: Any) -> FuseConfig:
    """An ensemble of tiny models."""
    options = {"n_threads": 1, "flash_attn": False}
    entries = [{"model": models[name], "name": name, **options} for name in names]
    return parse_config({"member": entries, **parts})


@dataclass
class Heard:
    """What a listener was told."""

    ticket: Ticket
    _events: queue.SimpleQueue[Event]
    chunks: list[Chunk] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    end: Done | Exception | None = None

    def take(self, timeout: float = WAIT) -> Event:
        """The next event."""
        event = self._events.get(timeout=timeout)
        if isinstance(event, Chunk):
            self.chunks.append(event)
            self.steps += event.steps
        elif isinstance(event, Step):
            self.steps.append(event)
        else:
            self.end = event
        return event

    def wait(self) -> Heard:
        """Until the end."""
        while self.end is None:
            self.take()
        return self

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def finish(self) -> str | None:
        return self.chunks[-1].finish_reason

    @property
    def done(self) -> Done:
        """The end, which must be a good one."""
        self.wait()
        if isinstance(self.end, Exception):
            raise self.end
        assert self.end is not None
        return self.end

    @property
    def is_silent(self) -> bool:
        return self._events.empty()


def ask(
    batcher: Batcher,
    sampling: SamplingParams | None = None,
    *,
    config: FuseConfig | None = None,
    text: str | None = None,
    after: Ticket | None = None,
    group: object = None,
    **options: Any,
) -> Heard:
    """Submit a job."""
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    wanted = {"prompt": PROMPT, "max_tokens": 24} | options
    request = Request(sampling=sampling or SamplingParams(temperature=0), **wanted)
    job = Job(config or batcher.configs[0], request, text, after, group)
    return Heard(batcher.submit(job, events.put), events)


@contextmanager
def running(*configs: FuseConfig, **options: Any) -> Iterator[Batcher]:
    """A batcher, closed in the end."""
    batcher = Batcher(configs, **options)
    try:
        yield batcher
    finally:
        batcher.close()


def together(asks: Sequence[Callable[[], Heard]]) -> list[Heard]:
    """Ask all at once, and wait for all."""
    heard = [one() for one in asks]
    return [one.wait() for one in heard]


def alone(config: FuseConfig, request: Request) -> tuple[str, str | None]:
    """What an ensemble of its own says."""
    engine = build(config)
    try:
        chunks = list(engine.stream(request))
    finally:
        engine.close()
    return "".join(chunk.text for chunk in chunks), chunks[-1].finish_reason
