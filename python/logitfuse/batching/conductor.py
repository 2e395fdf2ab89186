"""Many tasks in one thread, whose decodes are run together.

A task is ordinary straight-line code (an engine that answers a request) in a greenlet.  Where it
has something decoded it waits, and the others go on; when all wait, each decoder runs one batch of
what they wait for, and a new *round* begins.  So requests join and leave between rounds, no row is
overwritten while somebody reads it, and nothing needs a lock: tasks run only while no decoder does.
"""

from __future__ import annotations

import itertools
import math
import queue
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from greenlet import getcurrent, greenlet

from logitfuse.errors import TimeLimitError
from logitfuse.llama import NO_ROOM, LlamaDecoder, Piece

#: Pieces of so many tokens and less are steps of replies, longer ones are prompts.
_STEP = 16
#: Prompt tokens per round while others are answered: these wait no longer than for a few steps.
_SLICE = 32

#: Frees cells of a decoder; False: there are none to be freed.
MakeRoom: TypeAlias = Callable[[LlamaDecoder], bool]


class Cancelled(BaseException):
    """Ends a task that waits for a decode; no error, so nothing but the task may catch it."""


class Task:
    """What a request has running.

    Attributes
    ----------
    age : int
        Older ones have smaller numbers.
    cancelled : bool
        It ends before it would next have tokens of its text decoded.
    """

    _ages = itertools.count()

    def __init__(self) -> None:
        self.age = next(self._ages)
        self.cancelled = False
        self.limit(None)

    def limit(self, seconds: float | None) -> None:
        """Let it end likewise after so many seconds from now; None: it may take its time."""
        self._seconds = math.inf if seconds is None else seconds
        self._deadline = time.monotonic() + self._seconds

    def check(self) -> None:
        """See whether it may go on.

        Raises
        ------
        Cancelled, TimeLimitError
        """
        if self.cancelled:
            raise Cancelled
        if time.monotonic() > self._deadline:
            raise TimeLimitError(self._seconds)


@dataclass(eq=False)
class _Wait:
    """A greenlet that waits for a piece."""

    greenlet: greenlet
    task: Task
    piece: Piece
    result: int | Exception = 0

    def __len__(self) -> int:
        return len(self.piece.tokens)


@dataclass
class _Desk:
    """A decoder, its thread, and who waits for it."""

    decoder: LlamaDecoder
    thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="logitfuse-decoder")
    )
    waiting: list[_Wait] = field(default_factory=list)


class Conductor:
    """Runs tasks, and their decodes in rounds.

    All methods but `post` belong to the thread that calls `run`.

    Parameters
    ----------
    decoders : sequence of LlamaDecoder

    Attributes
    ----------
    make_room : callable
        Called where a decoder has no cells left, in that decoder's thread.
    """

    def __init__(self, decoders: Sequence[LlamaDecoder]) -> None:
        self._desks = {id(decoder): _Desk(decoder) for decoder in decoders}
        self.make_room: MakeRoom = lambda _: False
        self._calls: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._ready: deque[greenlet] = deque()
        self._tasks: dict[greenlet, Task] = {}
        self._stopped = False
        self._hub: greenlet

    def post(self, call: Callable[[], object]) -> None:
        """Have something called between two rounds; for any thread."""
        self._calls.put(call)

    def run(self) -> None:
        """Run tasks until `stop` is called."""
        self._hub = getcurrent()
        try:
            while not self._stopped:
                if any(desk.waiting for desk in self._desks.values()):
                    self._run_round()
                    self._take_calls()
                else:
                    self._calls.get()()  # nothing to do until somebody wants something
                self._run_ready()
        finally:
            for desk in self._desks.values():
                desk.thread.shutdown()

    def stop(self) -> None:
        """Let `run` return after this round; tasks that still wait are forgotten."""
        self._stopped = True

    # -- tasks ----------------------------------------------------------------------------------

    def start(self, work: Callable[[], object], task: Task) -> None:
        """Run something, which must not raise, as (part of) a task."""

        def run() -> None:
            try:
                work()
            finally:
                del self._tasks[getcurrent()]

        made = greenlet(run, parent=self._hub)
        self._tasks[made] = task
        self._ready.append(made)

    def join(self, moves: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run several things of a task at once; results in order, or the first error.

        Nothing is left half-way: an error waits for the others.
        """
        if len(moves) == 1:
            return [moves[0]()]
        me = getcurrent()
        task = self._tasks[me]
        results: list[Any] = [None] * len(moves)
        errors: list[BaseException] = []
        left = len(moves)

        def run(k: int) -> None:
            nonlocal left
            try:
                results[k] = moves[k]()
            except BaseException as error:
                errors.append(error)
            left -= 1
            if left == 0:
                self._ready.append(me)

        for k in range(len(moves)):
            self.start(partial(run, k), task)
        self._hub.switch()
        if errors:
            raise errors[0]
        return results

    def _run_ready(self) -> None:
        while self._ready:
            self._ready.popleft().switch()

    def _take_calls(self) -> None:
        for _ in range(self._calls.qsize()):
            self._calls.get()()

    # -- decoding -------------------------------------------------------------------------------

    def decode(self, decoder: LlamaDecoder, piece: Piece) -> int:
        """Have a piece decoded in the next round that has room for it.

        Returns
        -------
        int
            llama.cpp's return code; 0 is success.
        """
        me = getcurrent()
        wait = _Wait(me, self._tasks[me], piece)
        self._desks[id(decoder)].waiting.append(wait)
        self._hub.switch()
        if isinstance(wait.result, Exception):
            raise wait.result
        return wait.result

    def slice_size(self, decoder: LlamaDecoder) -> int:
        """How many tokens of a prompt the present task may have decoded at once.

        Raises
        ------
        Cancelled, TimeLimitError
            It has no business to go on.
        """
        self._tasks[getcurrent()].check()
        alone = len(set(self._tasks.values())) == 1
        return decoder.n_batch if alone else min(_SLICE, decoder.n_batch)

    def _run_round(self) -> None:
        """Run a batch on every decoder that somebody waits for."""
        chosen = [(desk, self._choose(desk)) for desk in self._desks.values() if desk.waiting]
        futures = [desk.thread.submit(self._serve, desk.decoder, waits) for desk, waits in chosen]
        for future in futures:
            future.result()
        for desk, waits in chosen:
            served = set(map(id, waits))
            desk.waiting = [wait for wait in desk.waiting if id(wait) not in served]
            self._ready += [wait.greenlet for wait in waits]

    @staticmethod
    def _choose(desk: _Desk) -> list[_Wait]:
        """Who is in the next batch: the oldest prompt, all steps, then more prompts by age.

        What finds no room is among the first the next time, so everybody gets on.
        """
        prompts = sorted((w for w in desk.waiting if len(w) > _STEP), key=lambda w: w.task.age)
        chosen = prompts[:1]
        read = sum(map(len, chosen))
        room = desk.decoder.n_batch - read
        for wait in (w for w in desk.waiting if len(w) <= _STEP):
            if len(wait) <= room:
                chosen.append(wait)
                room -= len(wait)
        if len(chosen) > len(prompts[:1]):
            room = min(room, _SLICE - read)  # steps shall not wait long for the prompts of others
        for wait in prompts[1:]:
            if len(wait) > room:
                break
            chosen.append(wait)
            room -= len(wait)
        return chosen

    def _serve(self, decoder: LlamaDecoder, waits: Sequence[_Wait]) -> None:
        """Run a batch; where it fails, each piece alone, so that only its own task fails."""
        pieces = [wait.piece for wait in waits]
        result = self._try(decoder, pieces)
        alone = len(waits) == 1
        for wait in waits:
            wait.result = result
        if result == 0 or alone or not all(map(decoder.undo, pieces)):
            return
        for wait in waits:
            wait.result = self._try(decoder, [wait.piece])

    def _try(self, decoder: LlamaDecoder, pieces: Sequence[Piece]) -> int | Exception:
        try:
            code = decoder.decode(pieces)
            while code == NO_ROOM and self.make_room(decoder):
                code = decoder.decode(pieces)
        except Exception as error:
            return error
        return code
