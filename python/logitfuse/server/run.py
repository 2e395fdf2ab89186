"""Runs the server until a signal ends it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import uvicorn

from logitfuse.batching import Batcher
from logitfuse.errors import ConfigError, LogitfuseError
from logitfuse.server.app import make_app
from logitfuse.server.connections import Connections
from logitfuse.server.settings import Settings
from logitfuse.server.state import State

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Connections that wait to be accepted.
_BACKLOG = 2048
#: Seconds that connections have to close when all has been said.
_GOODBYE = 5

#: Told the address and the names of the models, when requests are answered.
Ready = Callable[[str, Sequence[str]], object]


def run(source: Callable[[], Batcher], settings: Settings, ready: Ready) -> None:
    """Serve until SIGTERM or SIGINT; then no new requests are taken, and running ones end.

    A second signal does what it usually does: it ends the process at once.

    Parameters
    ----------
    source : callable
        Loads the models; until it is done, requests are answered with 503.
    settings : Settings
    ready : callable

    Raises
    ------
    ConfigError
        The address cannot be had; other machines would be served without a key.
    LogitfuseError
        The models cannot be loaded, or the batcher has failed.
    """
    app = make_app(source, settings)
    state: State = app.state.server
    listener = _listen(settings)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=_GOODBYE,
    )
    asyncio.run(_serve(_Server(config, state, listener, ready), state))


async def _serve(server: _Server, state: State) -> None:
    await server.serve()
    assert state.loading is not None
    if not state.loading.done():
        os._exit(0)  # nothing can stop a thread that loads models, and nothing is lost
    state.loading.result()
    if state.failure is not None:
        raise LogitfuseError(
            f"the batcher has failed ({state.failure!r}); start the server anew"
        ) from state.failure


class _Server(uvicorn.Server):
    """Ends when it is told to and the running answers have been given, or have taken too long."""

    def __init__(
        self, config: uvicorn.Config, state: State, listener: socket.socket, ready: Ready
    ) -> None:
        super().__init__(config)
        self._state = state
        self._listener = listener
        self._ready: Ready | None = ready
        self._connections = Connections()
        self._deadline: float | None = None  #: set by a signal

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve at the listener's address."""
        await super().serve(sockets or [self._listener])

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let the first signal end the server, instead of uvicorn's raising it again at last."""
        usual = {number: signal.getsignal(number) for number in _SIGNALS}

        def restore() -> None:
            for number, handler in usual.items():
                signal.signal(number, handler)

        def end(*_: object) -> None:
            restore()
            self._deadline = time.monotonic() + self._state.settings.shutdown_timeout

        for number in _SIGNALS:
            signal.signal(number, end)
        try:
            yield
        finally:
            restore()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: look what has happened."""
        loading = self._state.loading
        if self._ready is not None and loading is not None and loading.done():
            if loading.exception() is None:
                self._ready(_address(self._listener), self._state.model_names)
            else:
                self.should_exit = True
            self._ready = None
        if self._deadline is not None:
            self._drain(self._deadline)
        if self._state.failure is not None:  # all have been told
            self.should_exit = True
        self._connections.look(self.server_state.connections)
        return await super().on_tick(counter)

    def _drain(self, deadline: float) -> None:
        late = time.monotonic() >= deadline
        if not self._state.draining:
            self._state.drain()
        if late:
            self._state.abort()
        self.should_exit = late or not self._state.calls


def _listen(settings: Settings) -> socket.socket:
    """A socket at the server's address."""
    _allow_connections()
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
        family, *_, address = found[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; give another "
            "--host or --port",
            key="port",
        ) from None


def _allow_connections() -> None:
    """Every connection is an open file, of which shells allow few."""
    try:
        import resource
    except ImportError:  # Windows
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # "unlimited" may be more than the system has
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
