"""Continuous batching: many requests at once, over one set of models."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from logitfuse.assembly import check_parts, n_branches
from logitfuse.batching.conductor import Cancelled, Conductor, Task
from logitfuse.batching.slots import Slot, Slots, load, unload
from logitfuse.config import FuseConfig
from logitfuse.errors import BusyError, ConfigError, LogitfuseError
from logitfuse.strategies.base import Chunk, Prompt, Request, Step
from logitfuse.strategies.engine import Engine
from logitfuse.strategies.stats import RunStats

_log = logging.getLogger("logitfuse")

#: llama.cpp holds so many sequences per context.
_MAX_SEQUENCES = 256
#: Seconds after which somebody who was sent away may come again.
_RETRY_AFTER = 2.0


@dataclass(frozen=True)
class Job:
    """What is to be done.

    Attributes
    ----------
    config : FuseConfig
        Of an ensemble that is served, or one with other parts of the same members.
    request : Request
    text : str or bytes, optional
        It is scored (see `Engine.score`); by default the request is answered.
    after : Ticket, optional
        Begin when this one's prompt has been read, to share it.
    group : object
        Jobs of one group are parts of one answer: while one of them is done, none is sent away.
    prompts : mapping of int to Prompt, optional
        The request's prompt as `Engine.render` gives it, if that has been done: it takes time, in
        which the batcher answers nobody.  Jobs that are given the same object count it once.
    """

    config: FuseConfig
    request: Request
    text: str | bytes | None = None
    after: Ticket | None = None
    group: object = None
    prompts: Mapping[int, Prompt] | None = None


@dataclass(frozen=True)
class Done:
    """The last event of a job that ended well.

    Attributes
    ----------
    stats : RunStats
    """

    stats: RunStats


#: A piece of an answer; a step of a text that is scored; the end; or what went wrong, an end too.
Event: TypeAlias = Chunk | Step | Done | Exception
Listener: TypeAlias = Callable[[Event], object]


class Ticket:
    """A job that was accepted."""

    def __init__(self, job: Job, listener: Listener) -> None:
        self.job = job
        self._listener = listener
        self.task = Task()
        #: Of its prompt, as far as that is known; those of the member that has most.
        self.n_tokens = max((len(p.tokens) for p in (job.prompts or {}).values()), default=0)
        #: Its prompt has been read, or it has ended.
        self.begun = threading.Event()

    def cancel(self) -> None:
        """Let it end within a step; no further event is certain to come.  For any thread."""
        self.task.cancelled = True

    def tell(self, event: Event) -> None:
        """Tell the listener; one that cannot hear any more has left."""
        self.begun.set()
        if self.task.cancelled:
            return
        try:
            self._listener(event)
        except Exception:
            _log.exception("a listener failed; its request is cancelled")
            self.cancel()


class Batcher:
    """Answers requests as they come, all members decoding those of all requests in one batch.

    Parameters
    ----------
    configs : sequence of FuseConfig
        The ensembles that are served; members that are described alike are loaded once.
    slots : int
        How many requests are answered at once.  Each has the context of its members, so memory
        grows with it.
    queue : int
        How many may wait besides.
    queue_tokens : int, optional
        How many prompt tokens all may have together that are answered or wait, of those that were
        rendered before.

    Raises
    ------
    ModelError, UnsupportedTokenizerError, FusionError, ConfigError

    Notes
    -----
    A request is answered as it would be alone, up to what a batch costs in bits: llama.cpp's
    products of quantised weights depend on how many tokens are decoded at once.
    """

    def __init__(
        self,
        configs: Sequence[FuseConfig],
        *,
        slots: int = 4,
        queue: int = 64,
        queue_tokens: int | None = None,
    ) -> None:
        if slots < 1:
            raise ConfigError(f"slots must be at least 1, not {slots}", key="slots")
        for config in configs:
            check_parts(config)
        self.configs = tuple(configs)
        self.queue = queue
        self.queue_tokens = queue_tokens
        #: Why nothing will ever be answered again.
        self.failed: BaseException | None = None
        self._lock = threading.Lock()
        self._waiting: deque[Ticket] = deque()
        self._running: set[Ticket] = set()
        self._closing = self._stopping = False
        branches = max(n_branches(config) for config in configs)
        if slots * (1 + branches) > _MAX_SEQUENCES:
            raise ConfigError(
                f"{slots} slots of {1 + branches} sequences are more than llama.cpp's "
                f"{_MAX_SEQUENCES}; take fewer slots or a smaller beam",
                key="slots",
            )
        self._models = load(configs, slots, 1 + branches)
        self._conductor = Conductor([model.decoder for model in self._models])
        self._slots = Slots(
            [Slot(self._models, k, branches, self._conductor) for k in range(slots)]
        )
        self._conductor.make_room = self._slots.make_room
        try:
            for config in configs:  # what does not go together is said now
                self.engine(config)
        except BaseException:
            unload(self._models)
            raise
        self._thread = threading.Thread(target=self._conduct, name="logitfuse-batcher", daemon=True)
        self._thread.start()

    # -- for any thread -------------------------------------------------------------------------

    @property
    def slots(self) -> int:
        """How many requests are answered at once."""
        return len(self._slots)

    @property
    def active(self) -> int:
        """Requests that are being answered."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._waiting)

    def engine(self, config: FuseConfig) -> Engine:
        """An engine of an ensemble, to ask for its alignment and its members' vocabularies.

        Raises
        ------
        ConfigError, FusionError
            Parts that do not go together.
        """
        return next(iter(self._slots)).engine(config)

    def submit(self, job: Job, listener: Listener) -> Ticket:
        """Have a job done as soon as there is a slot.

        Parameters
        ----------
        job : Job
        listener : callable
            Told every event, in the batcher's own thread: it must be quick.

        Raises
        ------
        BusyError
            Too many wait already, or the batcher is closing.
        """
        ticket = Ticket(job, listener)
        with self._lock:
            if self._closing:
                raise self._shutting_down()
            self._waiting = deque(t for t in self._waiting if not t.task.cancelled)
            self._require_room(ticket)
            self._waiting.append(ticket)
        self._conductor.post(self._admit)
        return ticket

    def _require_room(self, ticket: Ticket) -> None:
        """Send somebody away for whom there is no room."""
        running, waiting = tuple(self._running), len(self._waiting)
        who = f"{len(running)} requests are being answered and {waiting} wait"
        if waiting >= self.queue + max(0, self.slots - len(running)):
            raise BusyError(f"{who}; come again later", retry_after=_RETRY_AFTER)
        # Several answers read their prompt once; one that is alone is read however long it is.
        prompts = {id(t.job.prompts): t.n_tokens for t in (*running, *self._waiting)}
        held = sum(prompts.values())
        most = math.inf if self.queue_tokens is None else self.queue_tokens
        new = id(ticket.job.prompts) not in prompts
        if held and new and held + ticket.n_tokens > most:
            raise BusyError(
                f"{who}, with prompts of {held} tokens; come again later, or with a shorter prompt",
                retry_after=_RETRY_AFTER,
            )

    def drain(self) -> None:
        """Accept nothing more; what runs goes on, what waits is sent away."""
        with self._lock:
            self._closing = True
            groups = {ticket.job.group for ticket in tuple(self._running)} - {None}
        self._send_away(groups)

    def _send_away(self, but: Collection[object] = ()) -> None:
        """Let nobody wait but jobs of these groups."""
        with self._lock:
            gone = [ticket for ticket in self._waiting if ticket.job.group not in but]
            self._waiting = deque(t for t in self._waiting if t.job.group in but)
        for ticket in gone:
            ticket.tell(self._shutting_down())

    def close(self) -> None:
        """End everything within a step, and free the models."""
        self.drain()
        self._send_away()
        self._stopping = True
        for ticket in tuple(self._running):
            ticket.cancel()
        self._conductor.post(self._stop_if_idle)
        self._thread.join()
        unload(self._models)

    @staticmethod
    def _shutting_down() -> BusyError:
        return BusyError("the server is shutting down", retry_after=_RETRY_AFTER, closing=True)

    # -- the batcher's own thread ---------------------------------------------------------------

    def _conduct(self) -> None:
        """Run tasks; if that ever fails, let nobody wait for ever."""
        try:
            self._conductor.run()
        except BaseException as error:
            _log.exception("the batcher has failed")
            self.failed = error
            self.drain()
            self._send_away()
            for ticket in tuple(self._running):
                ticket.tell(LogitfuseError(f"the batcher has failed, start it anew: {error!r}"))

    def _stop_if_idle(self) -> None:
        if not self._running:
            self._conductor.stop()

    def _admit(self) -> None:
        """Start those who wait, as far as there are slots."""
        while self._slots.free and (ticket := self._next()) is not None:
            try:
                slot, prompts = self._place(ticket.job)
            except Exception as error:  # whatever it is: the others go on
                self._running.discard(ticket)
                ticket.tell(error)
                continue
            self._conductor.start(partial(self._work, ticket, slot, prompts), ticket.task)

    def _next(self) -> Ticket | None:
        """The first that need not wait for another."""
        with self._lock:
            self._waiting = deque(t for t in self._waiting if not t.task.cancelled)
            for ticket in self._waiting:
                first = ticket.job.after
                if first is None or first.begun.is_set() or first.task.cancelled:
                    self._waiting.remove(ticket)
                    self._running.add(ticket)
                    return ticket
        return None

    def _place(self, job: Job) -> tuple[Slot, Mapping[int, Prompt] | None]:
        """Take a slot for a job; also gives the members' renderings of its prompt."""
        engine = self.engine(job.config)
        if job.text is not None:
            return self._slots.take(engine, {}), None
        prompts = engine.render(job.request.prompt) if job.prompts is None else job.prompts
        tokens = {i: prompt.tokens for i, prompt in prompts.items()}
        return self._slots.take(engine, tokens), prompts

    def _work(self, ticket: Ticket, slot: Slot, prompts: Mapping[int, Prompt] | None) -> None:
        """Do a job; runs as a task."""
        try:
            self._do(ticket, slot, prompts)
        except Cancelled:
            pass
        except Exception as error:  # whatever it is: the others go on
            ticket.tell(error)
        finally:
            ticket.begun.set()
            self._slots.release(slot)
            self._running.discard(ticket)
            self._admit()
            if self._stopping:
                self._stop_if_idle()

    def _do(self, ticket: Ticket, slot: Slot, prompts: Mapping[int, Prompt] | None) -> None:
        """Do a job, and tell all about it."""
        job = ticket.job
        ticket.task.limit(job.request.time_limit)
        engine = slot.engine(job.config)
        stream = (
            engine.stream(job.request, prompts)
            if job.text is None
            else engine.score(job.request, job.text)
        )
        try:
            for event in stream:
                begins = not ticket.begun.is_set()
                ticket.tell(event)
                if ticket.task.cancelled:
                    return
                if begins and job.text is None:
                    ticket.task.limit(None)  # an answer ends by itself
                if begins:
                    self._admit()  # those who wait for this prompt
            ticket.tell(Done(engine.stats))
        finally:
            stream.close()
            engine.rest()
