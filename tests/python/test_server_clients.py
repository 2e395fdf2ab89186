"""Clients that leave, dawdle, crowd, and members that fail: everybody else is served."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from logitfuse.batching import Batcher
from logitfuse.errors import DecodeError
from logitfuse.llama import LlamaDecoder
from logitfuse.server import calls, connections, gate
from logitfuse.strategies.fuse import Fuse
from servers import (
    CHAT,
    HELLO,
    PROMPT,
    TEXT,
    Served,
    ensembles,
    error_of,
    events,
    raw,
    serving,
    until,
)

LONG: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 450, "ignore_eos": True, "temperature": 0}
SHORT: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 3, "temperature": 0}
SLOTS, QUEUE = 2, 3


@pytest.fixture(scope="module")
def served(tiny_models: Mapping[str, Path]) -> Iterator[Served]:
    configs = ensembles(tiny_models)
    with serving(lambda: Batcher(configs, slots=SLOTS, queue=QUEUE)) as started:
        yield started


@pytest.fixture(autouse=True)
def _idle(served: Served) -> Iterator[None]:
    """Every test leaves a server that has nothing to do."""
    yield
    # on a connection of its own: tests may have had idle ones closed
    until(lambda: httpx.post(f"{served.url}{TEXT}", json=SHORT).status_code == 200)
    until(served.is_idle)


def occupy(served: Served, n: int) -> list[socket.socket]:
    """So many clients that wait for long answers."""
    taken = [served.connect() for _ in range(n)]
    for client in taken:
        client.sendall(raw(LONG | {"stream": True, "max_tokens": 480}))
    until(lambda: served.batcher.active + served.batcher.waiting == n)
    return taken


def counted(served: Served, what: str) -> float:
    """Tokens of prompts, or those that were generated."""
    lines = served.http.get("/metrics").text.splitlines()
    name = f'logitfuse_{what}_tokens_total{{model="pair"}} '
    return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))


def leave(clients: list[socket.socket]) -> None:
    for client in clients:
        client.close()


class TestLeaving:
    @pytest.mark.parametrize("stream", [False, True])
    def test_the_slot_is_free_within_a_step(self, served: Served, stream: bool) -> None:
        client = served.connect()
        client.sendall(raw(LONG | {"stream": stream}))
        until(lambda: served.batcher.active == 1)
        before = counted(served, "generated")
        client.close()
        until(served.is_idle)
        assert counted(served, "generated") - before < LONG["max_tokens"] / 4

    def test_what_was_read_is_counted(self, served: Served) -> None:
        before = counted(served, "prompt")
        n = served.ask(**SHORT)["usage"]["prompt_tokens"]
        with served.connect() as client:
            client.sendall(raw(LONG | {"stream": True}))
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        until(served.is_idle)
        assert counted(served, "prompt") == before + 2 * n

    def test_in_the_queue(self, served: Served) -> None:
        working = occupy(served, SLOTS)
        waiting = occupy_more(served, QUEUE)
        leave(waiting)
        until(lambda: len(served.state.calls) == SLOTS)
        leave(working)

    def test_thousands(self, served: Served) -> None:
        pieces = [raw(LONG | {"stream": True}), raw(LONG), raw(SHORT)[:-9], b"POST /v1/comp", b""]
        for i in range(2000):
            with served.connect() as client:
                client.sendall(pieces[i % len(pieces)])
        until(served.is_idle)


def occupy_more(served: Served, n: int) -> list[socket.socket]:
    """So many clients that wait behind others."""
    taken = [served.connect() for _ in range(n)]
    for client in taken:
        client.sendall(raw(LONG))
    until(lambda: len(served.state.calls) == SLOTS + n)
    return taken


class TestCrowds:
    def test_more_than_the_queue_holds(self, served: Served) -> None:
        clients = occupy(served, SLOTS + QUEUE)
        for stream in (False, True):
            response = served.http.post(TEXT, json=SHORT | {"stream": stream})
            assert error_of(response, 429)["type"] == "rate_limit_error"
            assert int(response.headers["retry-after"]) > 0
        several = served.http.post(TEXT, json=SHORT | {"n": 2})
        assert several.status_code == 429
        assert served.http.get("/health").status_code == 200
        leave(clients)

    def test_many_at_once_get_what_they_would_get_alone(self, served: Served) -> None:
        prompts = ["Once upon a time", "The capital of France is", "def main():", "Dear Sir,"]
        alone = [served.ask(**SHORT | {"prompt": p})["choices"][0]["text"] for p in prompts]

        def ask(prompt: str) -> str:
            while True:
                response = served.http.post(TEXT, json=SHORT | {"prompt": prompt})
                if response.status_code == 200:
                    return str(response.json()["choices"][0]["text"])
                assert response.status_code == 429
                time.sleep(0.02)

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(ask, prompts * 4)) == alone * 4

    def test_longer_prompts_than_the_queue_holds(self, tiny_models: Mapping[str, Path]) -> None:
        configs = ensembles(tiny_models)[2:]
        with serving(lambda: Batcher(configs, slots=1, queue=8, queue_tokens=100)) as started:
            working = occupy(started, 2)
            response = started.http.post(TEXT, json=SHORT | {"prompt": "word " * 90})
            error = error_of(response, 429)
            assert "with a shorter prompt" in error["message"]
            assert int(response.headers["retry-after"]) > 0
            leave(working)
            until(started.is_idle)
            assert started.ask(**SHORT | {"prompt": "word " * 90})["choices"]

    @pytest.mark.parametrize("stream", [False, True])
    def test_prompts_that_take_too_long(
        self, tiny_models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch, stream: bool
    ) -> None:
        decode = LlamaDecoder.decode

        def slowly(*given: Any) -> int:
            time.sleep(0.2)
            return decode(*given)

        configs = ensembles(tiny_models)[2:]
        body = {"prompt": "word " * 400, "stream": stream, "max_tokens": 1}
        with serving(lambda: Batcher(configs, slots=2, queue=0), time_limit=0.6) as started:
            working = occupy(started, 1)  # so that prompts are read in slices
            monkeypatch.setattr(LlamaDecoder, "decode", slowly)
            error = error_of(started.http.post(TEXT, json=body), 400)
            assert error["code"] == "time_limit_exceeded"
            assert "within 0.6 seconds" in error["message"]
            leave(working)

    def test_who_waits_is_kept_alive(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(calls, "KEEP_ALIVE", 0.05)
        working = occupy(served, SLOTS)
        with served.http.stream("POST", TEXT, json=SHORT | {"stream": True}) as response:
            lines = response.iter_lines()
            assert [next(lines), next(lines), next(lines)] == [": ping", "", ": ping"]
            leave(working)
            assert events(list(lines))[-1] == "[DONE]"

    def test_an_error_after_waiting_is_an_event(
        self, served: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(calls, "KEEP_ALIVE", 0.05)
        working = occupy(served, SLOTS)
        body = SHORT | {"stream": True, "prompt": "word " * 600}
        with served.http.stream("POST", TEXT, json=body) as response:
            assert response.status_code == 200
            lines = response.iter_lines()
            assert next(lines) == ": ping"
            leave(working)
            (event,) = events(list(lines))
        assert json.loads(event)["error"]["code"] == "context_length_exceeded"


class TestDawdling:
    def test_a_slow_reader_slows_nobody(self, served: Served) -> None:
        with served.connect() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(raw(LONG | {"stream": True, "max_tokens": 150}))
            until(lambda: served.batcher.active == 1)
            assert served.ask(**SHORT)["choices"]
            until(lambda: served.batcher.active == 0)  # its answer waits for it, not its slot
            received = b""
            while not received.endswith(b"0\r\n\r\n"):
                piece = client.recv(65536)
                assert piece
                received += piece
        assert b"data: [DONE]" in received

    def test_a_slow_writer(self, served: Served) -> None:
        with served.connect() as client:
            for piece in (raw(SHORT)[i : i + 7] for i in range(0, len(raw(SHORT)), 7)):
                client.sendall(piece)
                time.sleep(0.001)
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")

    def test_a_body_that_never_comes(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gate, "BODY_TIMEOUT", 0.1)
        with served.connect() as client:
            client.sendall(raw(SHORT)[:-5])
            assert client.recv(65536).startswith(b"HTTP/1.1 408 ")

    @pytest.mark.parametrize("begun", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: l"])
    @pytest.mark.parametrize("first", [b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"])
    def test_a_head_that_never_comes(
        self, served: Served, monkeypatch: pytest.MonkeyPatch, first: bytes, begun: bytes
    ) -> None:
        monkeypatch.setattr(connections, "TIMEOUT", 0.5)
        with served.connect() as client:
            began = time.monotonic()
            client.sendall(first + begun)
            received = b""
            while piece := client.recv(65536):
                received += piece
            assert 0.4 < time.monotonic() - began < 4  # uvicorn itself waits for the next head
            assert received.startswith(b"HTTP/1.1 200 " if first else b"")

    def test_an_answer_may_take_longer(
        self, served: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connections, "TIMEOUT", 0.2)
        working = occupy(served, SLOTS)
        with served.http.stream("POST", TEXT, json=SHORT | {"stream": True}) as response:
            time.sleep(0.6)
            leave(working)
            assert events(list(response.iter_lines()))[-1] == "[DONE]"

    def test_a_reader_that_never_reads(
        self, tiny_models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gate, "SEND_TIMEOUT", 0.3)
        monkeypatch.setattr(connections, "TIMEOUT", 0.3)
        configs = ensembles(tiny_models)
        body = LONG | {"stream": True, "logprobs": 20, "logitfuse": {"trace": True}}
        with serving(lambda: Batcher(configs, slots=1, queue=0)) as started:
            started.hold_little()
            others = started.n_connections
            with started.connect() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.sendall(raw(body))
                until(lambda: started.n_connections > others and bool(started.state.calls))
                until(lambda: not started.state.calls)
                until(lambda: started.n_connections == others)
            until(started.is_idle)
            assert started.ask(**SHORT)["choices"]

    def test_no_http(self, served: Served) -> None:
        for rubbish in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"\xff" * 100):
            with served.connect() as client:
                client.sendall(rubbish + b"\r\n\r\n")
                assert client.recv(65536).startswith(b"HTTP/1.1 400 ")


class TestFailures:
    @pytest.fixture
    def fails(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
        """Set: the next step of an ensemble fails."""
        now = threading.Event()
        step = Fuse._step

        def step_or_fail(self: Fuse, *arguments: Any) -> Any:
            if now.is_set() and self.stats.steps == 5:
                now.clear()
                raise DecodeError("member 'smol' failed", member="smol", code=-3)
            return step(self, *arguments)

        monkeypatch.setattr(Fuse, "_step", step_or_fail)
        return now

    def test_in_mid_stream(self, served: Served, fails: threading.Event) -> None:
        other = served.connect()
        other.sendall(raw(LONG | {"max_tokens": 40, "model": "exact"}))
        fails.set()
        response = served.http.post(CHAT, json={"messages": HELLO, "stream": True})
        told = [json.loads(event) for event in events(response.text.splitlines())]
        assert len(told) > 3
        assert told[-1]["error"]["code"] == "member_failed"
        assert told[-1]["error"]["type"] == "server_error"
        assert other.recv(65536).startswith(b"HTTP/1.1 200 ")
        other.close()

    def test_before_the_answer_is_whole(self, served: Served, fails: threading.Event) -> None:
        fails.set()
        assert served.refusal(status=500, **LONG)["code"] == "member_failed"

    def test_one_of_several_answers(self, served: Served, fails: threading.Event) -> None:
        fails.set()
        assert served.refusal(status=500, **LONG, n=2)["code"] == "member_failed"
        until(served.is_idle)
