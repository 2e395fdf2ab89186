"""Answers over HTTP: events of the batcher's thread reach the client in the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from anyio import CancelScope, to_thread
from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from pydantic_core import to_json
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from logitfuse.api.bodies import GenerationBody
from logitfuse.api.exchange import Exchange
from logitfuse.batching import Event, Ticket
from logitfuse.completions import Response as Object
from logitfuse.server.metrics import Meter
from logitfuse.server.problems import foreseen
from logitfuse.server.state import State

B = TypeVar("B", bound=GenerationBody)

#: Seconds without anything to tell after which a stream shows that it lives.
KEEP_ALIVE = 15.0
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Call:
    """One exchange on its way to a client; closing it frees its slots.

    Parameters
    ----------
    state : State
    exchange : Exchange

    Raises
    ------
    BusyError
        There is no room.
    """

    def __init__(self, state: State, exchange: Exchange) -> None:
        self.exchange = exchange
        self._state = state
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._meter = Meter(state.metrics, exchange)
        self._tickets: list[Ticket] = exchange.submit(state.api.batcher, self._tell)
        state.calls.add(self)

    def _tell(self, i: int, event: Event) -> None:
        """For the batcher's thread."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, (i, event))

    def abort(self, error: Exception) -> None:
        """Let the call end with an error."""
        self._events.put_nowait((0, error))

    async def objects(self, seconds: float | None = None) -> list[Object] | None:
        """The objects that the next event makes; None: there was none in so many seconds.

        Raises
        ------
        Exception
            Why there will be no answer.
        """
        try:
            async with asyncio.timeout(seconds):
                i, event = await self._events.get()
        except TimeoutError:
            return None
        self._meter.hear(i, event)
        return self.exchange.hear(i, event)

    def close(self) -> None:
        """Nobody waits any more."""
        if self in self._state.calls:
            self._state.calls.remove(self)
            for ticket in self._tickets:
                ticket.cancel()
            self._meter.end()


async def prepare(
    state: State, request: Request, make: Callable[[B], Exchange], body: B
) -> Exchange:
    """The exchange of a body, made in a worker thread.

    Constraints are tried there, which may take seconds; so they have threads of their own.

    Raises
    ------
    ClientDisconnect
        The client has left.
    BusyError
        Too many constraints wait to be tried.
    LogitfuseError
    """
    if not body.is_constrained:
        return await run_in_threadpool(make, body)
    with state.trial() as limiter, CancelScope() as scope:
        async with _watched(request, scope.cancel):
            exchange = await to_thread.run_sync(make, body, limiter=limiter)
    if scope.cancel_called:
        raise ClientDisconnect
    return exchange


async def answer(state: State, request: Request, exchange: Exchange) -> Response:
    """Answer as soon as it is known whether there is an answer.

    Raises
    ------
    ClientDisconnect
        The client has left.
    LogitfuseError
    """
    request.state.exchange = exchange
    call = Call(state, exchange)
    try:
        async with _watched(request, partial(call.abort, ClientDisconnect())):
            if exchange.stream:
                begun = exchange.begin()
                more = [] if exchange.done else await call.objects(KEEP_ALIVE)
                return Stream(call, begun, more)
            while not exchange.done:
                await call.objects()
    except BaseException:
        call.close()
        raise
    call.close()
    return Response(_json(exchange.whole()), media_type="application/json")


@asynccontextmanager
async def _watched(request: Request, leave: Callable[[], object]) -> AsyncIterator[None]:
    """Call something as soon as a client leaves."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        leave()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()


class Stream(EventSourceResponse):
    """The objects of a call as they come; a client that leaves ends it.

    Parameters
    ----------
    call : Call
    begun : list of dict
        The first objects.
    more : list of dict or None
        The next ones; see `Call.objects`.
    """

    def __init__(self, call: Call, begun: list[Object], more: list[Object] | None) -> None:
        super().__init__(_events(call, begun, more), headers=_HEADERS)
        self._call = call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._call.close()


async def _events(
    call: Call, begun: list[Object], more: list[Object] | None
) -> AsyncIterator[bytes]:
    """What a stream says; an error is its last word."""
    try:
        for thing in begun:
            yield _event(thing)
        while True:
            if more is None:
                yield KEEPALIVE_COMMENT
            for thing in more or ():
                yield _event(thing)
            if call.exchange.done:
                break
            more = await call.objects(KEEP_ALIVE)
        yield format_sse_event(data_str="[DONE]")
    except Exception as error:
        yield _event(foreseen(error).body)


def _event(thing: Object) -> bytes:
    return format_sse_event(data_str=_json(thing).decode())


def _json(thing: Object) -> bytes:
    return to_json(thing, inf_nan_mode="null")  # JSON has neither
