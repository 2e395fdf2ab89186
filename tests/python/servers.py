"""What the tests of the server share: servers in this process and in others."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from logitfuse.batching import Batcher
from logitfuse.config import FuseConfig, parse_config
from logitfuse.server.app import make_app
from logitfuse.server.run import _Server
from logitfuse.server.settings import Settings
from logitfuse.server.state import State

WAIT = 60.0  # seconds; far more than anything here takes
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HELLO = [{"role": "user", "content": "Hello there"}]
PROMPT = "Once upon a time"
SHORT: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 2, "temperature": 0}


def ensembles(models: Mapping[str, Path]) -> list[FuseConfig]:
    """``pair`` (token by token), ``exact`` (byte by byte), ``one`` (a single member)."""

    def config(name: str, *members: str, **parts: Any) -> FuseConfig:
        entries = [{"model": models[m], "name": m, "n_threads": 1} for m in members]
        return parse_config({"name": name, "member": entries, **parts})

    return [
        config("pair", "smol", "gemma3", strategy="fuse"),
        config("exact", "smol", "gemma3", strategy="bytes"),
        config("one", "smol"),
    ]


class _InThread(_Server):
    """Ends when it is told to, not by signals."""

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return contextlib.nullcontext()


class Served:
    """A server in a thread of this process.

    Parameters
    ----------
    source : Batcher or callable
    settings : Settings
    """

    def __init__(self, source: Batcher | Callable[[], Batcher], **settings: Any) -> None:
        app = make_app(source, Settings(**settings))
        self.state: State = app.state.server
        config = uvicorn.Config(app, log_config=None, access_log=False, ws="none")
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self._server = _InThread(config, self.state, self._listener, lambda *_: None)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        self.http = httpx.Client(base_url=self.url, timeout=WAIT)

    @property
    def batcher(self) -> Batcher:
        return self.state.api.batcher

    def close(self) -> None:
        self.http.close()
        self._server.should_exit = True
        self._thread.join(WAIT)
        assert not self._thread.is_alive()

    def hold_little(self) -> None:
        """Let what clients do not read fill the way to them soon."""
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    @property
    def n_connections(self) -> int:
        return len(self._server.server_state.connections)

    def wait_until_ready(self) -> None:
        until(lambda: self.http.get("/health").status_code == 200)

    def connect(self) -> socket.socket:
        """A client that does as it likes."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def is_idle(self) -> bool:
        """Nothing is asked of it any more."""
        return not (self.state.calls or self.batcher.active or self.batcher.waiting)

    def ask(self, path: str = TEXT, **body: Any) -> Any:
        """The object that answers a body."""
        response = self.http.post(path, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def refusal(self, path: str = TEXT, status: int = 400, **body: Any) -> dict[str, Any]:
        """The error that answers a body."""
        return error_of(self.http.post(path, json=body), status)


@contextlib.contextmanager
def serving(source: Batcher | Callable[[], Batcher], **settings: Any) -> Iterator[Served]:
    """A server, closed in the end."""
    served = Served(source, **settings)
    try:
        served.wait_until_ready()
        yield served
    finally:
        served.close()


def raw(body: Mapping[str, Any], path: str = TEXT) -> bytes:
    """A request as it goes over the wire."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error that a response is, in OpenAI's shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    (key,) = response.json()
    assert key == "error"
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    return error


def until(holds: Callable[[], bool], seconds: float = WAIT) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


class Process:
    """``logitfuse serve`` as users run it.

    Parameters
    ----------
    *arguments : str or path
    port : int
        0: any.
    before : str
        Code that is run first.
    """

    def __init__(self, *arguments: str | Path, port: int = 0, before: str = "") -> None:
        code = f"{before}\nimport sys\nfrom logitfuse.cli import main\nmain(sys.argv[1:])"
        command = [sys.executable, "-c", code, "serve", "--port", str(port)]
        self.process = subprocess.Popen(
            [*command, *map(str, arguments)],
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"TERM": "dumb"},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        until(lambda: self.url is not None or self.process.poll() is not None)
        assert self.url is not None, self.lines
        self.http = httpx.Client(base_url=self.url, timeout=WAIT)

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines += iter(self.process.stderr.readline, "")

    @property
    def url(self) -> str | None:
        """Where it is, once it has said so."""
        found = re.search(r"serving .* at (http://\S+)", "".join(self.lines))
        return found and found[1]

    def end(self, how: int) -> int:
        """Send a signal, and wait."""
        self.process.send_signal(how)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(WAIT)
        self._reader.join(WAIT)
        return code

    def close(self) -> None:
        """Whatever it does: it is no more."""
        self.process.kill()
        self.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()
        self.http.close()


@contextlib.contextmanager
def process(*arguments: str | Path, **options: Any) -> Iterator[Process]:
    """A server of its own, killed in the end."""
    started = Process(*arguments, **options)
    try:
        yield started
    finally:
        started.close()


def events(lines: Sequence[str]) -> list[str]:
    """The data of server-sent events; comments are left out."""
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
