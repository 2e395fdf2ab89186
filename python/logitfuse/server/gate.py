"""Who and what comes in: keys, bodies, and a line in the log for each request."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from logitfuse.api.problems import Problem
from logitfuse.server.problems import BodyError, foreseen, respond
from logitfuse.server.state import State

_log = logging.getLogger("logitfuse.server")

#: Paths that tell nothing and cost nothing.
_OPEN = {"/", "/health"}
#: Seconds in which a body must have arrived.
BODY_TIMEOUT = 30.0
#: Seconds after which a client must have read on.
SEND_TIMEOUT = 60.0
#: Longest path in the log, and longest host in a message.
_LOGGED = 120
#: An address of IPv6 in brackets or a name, and perhaps a port.
_HOST = re.compile(r"(?:\[(.*)\]|([^:]*))(?::\d*)?")

_UNAUTHORISED = Problem(
    401,
    "give one of the server's keys: Authorization: Bearer KEY",
    code="invalid_api_key",
)


class KeyMiddleware:
    """Lets nobody in without a key.

    Parameters
    ----------
    app : ASGI application
    keys : list of bytes
    """

    def __init__(self, app: ASGIApp, keys: list[bytes]) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["path"] in _OPEN or self._knows(scope):
            await self._app(scope, receive, send)
        else:
            await respond(_UNAUTHORISED)(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        given = key.strip(" \t").encode("latin-1")  # other blanks may be bytes of a key
        # All are compared, so that the time tells nothing.
        found = [hmac.compare_digest(given, known) for known in self._keys]
        return scheme.lower() == "bearer" and any(found)


class HostMiddleware:
    """Lets nobody in who calls this machine by a name that it does not know.

    A page of another site can have its own name mean this machine, and then ask as if it were ours;
    it cannot have the request bear one of ours.

    Parameters
    ----------
    app : ASGI application
    names : iterable of str
        Names and addresses; ports do not matter.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        self._app = app
        self._names = {_without_port(name) for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        host = Headers(scope=scope).get("host", "") if scope["type"] == "http" else ""
        if scope["type"] != "http" or _without_port(host) in self._names:
            await self._app(scope, receive, send)
        else:
            await respond(_foreign(host[:_LOGGED]))(scope, receive, send)


def _without_port(host: str) -> str:
    """The name in a Host header."""
    found = _HOST.fullmatch(host.lower())
    return (found[1] or found[2] or "") if found else host.lower()


def _foreign(host: str) -> Problem:
    return Problem(
        400,
        f"'{host}' is no name of this server (see the request's Host header); if it is to be one, "
        f"start the server with --allowed-host {host or 'NAME'}, or with --api-key KEY",
        code="unknown_host",
    )


class ReaderMiddleware:
    """Leaves clients that do not read what they asked for.

    Parameters
    ----------
    app : ASGI application
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        late = False

        async def send_in_time(message: Message) -> None:
            nonlocal late
            try:
                async with asyncio.timeout(SEND_TIMEOUT):
                    await send(message)
            except TimeoutError:
                late = True
                raise

        try:
            await self._app(scope, receive, send_in_time)
        except TimeoutError:
            if not late:
                raise
            _log.info("a client has read nothing for %g seconds and is left", SEND_TIMEOUT)


class LogMiddleware:
    """Notes every request: in the log, and in the metrics.

    Parameters
    ----------
    app : ASGI application
    state : State
    """

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        scope.setdefault("state", {})
        try:
            await self._app(scope, receive, send_on)
        finally:
            self._note(scope, status, time.perf_counter() - started)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        exchange = scope["state"].get("exchange")
        route = scope.get("route")
        tokens = ""
        if exchange is not None:
            tokens = f" {exchange.prompt_tokens}+{exchange.completion_tokens} tokens"
        _log.info(
            "%s %s %d %.0f ms%s",
            scope["method"],
            scope["raw_path"][:_LOGGED].decode("latin-1"),  # quoted: no line breaks
            status,
            1000 * seconds,
            tokens,
        )
        self._state.metrics.requests.labels(
            getattr(route, "path", "other"), status, "" if exchange is None else exchange.model
        ).inc()


class JsonRequest(Request):
    """A request whose body is JSON, not too long and not too deep."""

    async def body(self) -> bytes:
        """The whole body.

        Raises
        ------
        BodyError
            It is said to be compressed or no JSON (415), too long (413) or too slow (408).
        """
        if not hasattr(self, "_body"):
            self._require_json()
            state: State = self.app.state.server
            try:
                async with asyncio.timeout(BODY_TIMEOUT):
                    self._body = await self._read(state.settings.max_body)
            except TimeoutError:
                message = f"the body took more than {BODY_TIMEOUT:g} seconds"
                raise BodyError(Problem(408, message, code="timeout")) from None
        return self._body

    def _require_json(self) -> None:
        """Browsers send nothing else to foreign servers without asking these first."""
        coding = self.headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("", "identity"):
            message = f"bodies must come as they are, not with the Content-Encoding '{coding}'"
            raise BodyError(Problem(415, message, code="unsupported_media_type"))
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            message = f"the body must have the Content-Type application/json, not '{kind}'"
            raise BodyError(Problem(415, message, code="unsupported_media_type"))

    async def _read(self, most: int) -> bytes:
        problem = Problem(413, f"the body is longer than {most} bytes", code="body_too_long")
        told = self.headers.get("content-length", "0")
        if not told.isdecimal() or int(told) > most:
            raise BodyError(problem)
        body = bytearray()
        async for piece in self.stream():
            body += piece
            if len(body) > most:
                raise BodyError(problem)
        if not body:
            raise BodyError(Problem(400, "the body is empty; send JSON", code="invalid_json"))
        return bytes(body)

    async def json(self) -> Any:
        """The body's value.

        Raises
        ------
        BodyError
            It is no JSON, not UTF-8, or nested too deeply (400).
        """
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            problem = Problem(400, f"the body is not valid JSON: {error}", code="invalid_json")
            raise BodyError(problem) from None


class JsonRoute(APIRoute):
    """A route that reads JSON and answers all errors as OpenAI does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the route."""
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            try:
                return await handle(JsonRequest(request.scope, request.receive))
            except Exception as error:
                return respond(foreseen(error))

        return handle_json
