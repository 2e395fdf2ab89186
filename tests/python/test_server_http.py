"""What comes over the wire that no honest client would send; logs; servers that cannot answer."""

from __future__ import annotations

import gzip
import json
import logging
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from logitfuse.batching import Batcher
from logitfuse.server.app import make_app
from servers import CHAT, HELLO, PROMPT, SHORT, TEXT, Served, ensembles, error_of, serving, until
from starlette.testclient import TestClient

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def batcher(tiny_models: Mapping[str, Path]) -> Iterator[Batcher]:
    made = Batcher(ensembles(tiny_models), slots=2, queue=2)
    yield made
    made.close()


@pytest.fixture(scope="module")
def served(batcher: Batcher) -> Iterator[Served]:
    with serving(batcher, max_body=100_000, max_prompt=2000, max_tokens=300) as started:
        yield started


def post(served: Served, content: bytes | str, path: str = TEXT) -> httpx.Response:
    return served.http.post(path, content=content, headers=JSON)


class TestBodies:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "the body is empty"),
            (b"{", "not valid JSON"),
            (b'{"prompt": "x"} and more', "trailing characters"),
            (b'{"prompt": "\xff"}', "not valid JSON"),
            (b'{"prompt": "\\ud800"}', "not valid JSON"),
            (b'{"prompt": "x", "temperature": NaN}', "not valid JSON"),
            (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", "number out of range"),
            (b'{"a": ' + b"[" * 1000 + b"]" * 1000 + b"}", "recursion limit"),
            (b'{"a": ' * 9000, "recursion limit"),
        ],
    )
    def test_no_json(self, served: Served, content: bytes, message: str) -> None:
        error = error_of(post(served, content), 400)
        assert message in error["message"]
        assert error["code"] == "invalid_json"

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ([], None),
            ("text", None),
            ({}, "prompt"),
            ({"prompt": 5}, "prompt"),
            ({"prompt": None}, "prompt"),
            ({"prompt": [1, "x"]}, "prompt"),
            ({"prompt": [[1], "x"]}, "prompt"),
            ({"prompt": [-1]}, "prompt"),
            ({"prompt": [2**40]}, "prompt"),
            ({"prompt": {"a": 1}}, "prompt"),
            ({"max_tokens": "5"}, "max_tokens"),
            ({"max_tokens": 1.5}, "max_tokens"),
            ({"max_tokens": -2}, "max_tokens"),
            ({"max_tokens": True}, "max_tokens"),
            ({"temperature": "hot"}, "temperature"),
            ({"temperature": 1e999}, "temperature"),
            ({"top_p": 1.5}, "top_p"),
            ({"n": 0}, "n"),
            ({"stop": 5}, "stop"),
            ({"stop": ["x"] * 65}, "stop"),
            ({"stop": "x" * 1001}, "stop"),
            ({"stop": [["x"]]}, "stop"),
            ({"stream": "yes"}, "stream"),
            ({"logprobs": 21}, "logprobs"),
            ({"logprobs": True}, "logprobs"),
            ({"seed": -(2**31) - 1}, "seed"),
            ({"n_predict": -3}, "n_predict"),
            ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
            ({"logit_bias": {"9" * 10: 1}}, None),
            ({"logit_bias": [[10**30, 1]]}, "logit_bias"),
            ({"logit_bias": {"1": "x"}}, "logit_bias"),
            ({"logit_bias": {"1": True}}, "logit_bias"),
            ({"logit_bias": [[1, 2, 3]]}, "logit_bias"),
            ({"logit_bias": {str(i): 1 for i in range(1001)}}, "logit_bias"),
            ({"response_format": {"type": "xml"}}, "response_format.type"),
            ({"response_format": "json"}, "response_format"),
            ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
            ({"model": 5}, "model"),
            ({"logitfuse": []}, "logitfuse"),
            ({"logitfuse": {"trace": "yes"}}, "logitfuse.trace"),
            ({"logitfuse": {"candidates": 99}}, "logitfuse.candidates"),
            ({"logitfuse": {"weights": "equal"}}, "logitfuse.weights"),
            ({"logitfuse": {"weights": [1]}}, "logitfuse.weights"),
            ({"logitfuse": {"weights": [-1, 1]}}, "logitfuse.weights"),
            ({"logitfuse": {"pool": "lineer"}}, "logitfuse.pool"),
            ({"logitfuse": {"polo": "linear"}}, "logitfuse.polo"),
            ({"logitfuse": {"learned": "/etc/passwd"}}, "logitfuse.learned"),
            ({"logitfuse": {"member": [{"model": "/etc/passwd"}]}}, "logitfuse.member"),
            ({"logitfuse": {"alignment": "embedding"}}, "logitfuse.alignment"),
            ({"logitfuse": {"strategy": "bytes", "gate": "always"}}, "logitfuse.gate"),
        ],
    )
    def test_wrong_types_and_values(self, served: Served, body: Any, param: str | None) -> None:
        if isinstance(body, dict) and body and "prompt" not in body:
            body = SHORT | body
        content = json.dumps(body).replace("Infinity", "1e999")
        error = error_of(post(served, content), 400)
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param
        assert len(error["message"]) < 1000

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({}, "messages"),
            ({"messages": []}, "messages"),
            ({"messages": "hi"}, "messages"),
            ({"messages": [{"role": "user"}]}, "messages.0.content"),
            ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
            (
                {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
                "messages.0.content",
            ),
            ({"messages": HELLO, "top_logprobs": 21}, "top_logprobs"),
            ({"messages": HELLO, "logprobs": 3}, "logprobs"),
            ({"messages": [{"role": "assistant", "content": "x", "prefix": True}]}, None),
            ({"messages": HELLO, "chat_template": "{{ 1 }}"}, "chat_template"),
            ({"messages": HELLO, "tools": [{"type": "function"}]}, "tools"),
            ({"messages": HELLO, "modalities": ["text", "audio"]}, "modalities"),
            ({"messages": HELLO, "mirostat": 2}, "mirostat"),
            (
                {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]},
                "tool_calls",
            ),
        ],
    )
    def test_chats(self, served: Served, body: Any, param: str | None) -> None:
        assert served.refusal(CHAT, **body)["param"] == param

    def test_fields_that_change_nothing(self, served: Served) -> None:
        plain = served.ask(CHAT, messages=HELLO, max_tokens=3, temperature=0)
        more: dict[str, Any] = {
            "tools": [{"type": "function"}],
            "tool_choice": "none",
            "modalities": ["text"],
            "mirostat": 0,
            "user": "somebody",
            "metadata": {"a": "b"},
            "store": False,
            "something_new": [1],
            "top_p": None,
            "stop": None,
            "logit_bias": None,
            "logitfuse": None,
        }
        same = served.ask(CHAT, messages=HELLO, max_completion_tokens=3, temperature=0, **more)
        assert same["choices"] == plain["choices"]

    def test_a_body_that_is_too_long(self, served: Served) -> None:
        long = json.dumps({"prompt": "x" * 10_000_000})
        error = error_of(post(served, long), 413)
        assert error["code"] == "body_too_long"

        def pieces() -> Iterator[bytes]:
            yield from [b"x" * 50_000] * 200

        assert served.http.post(TEXT, content=pieces(), headers=JSON).status_code == 413

    def test_a_prompt_that_is_too_long(self, served: Served) -> None:
        for body in ({"prompt": "x" * 2001}, {"prompt": [5] * 2001}):
            error = served.refusal(**body)
            assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
        for messages in ([{"role": "user", "content": "x" * 2001}], HELLO * 100):
            error = served.refusal(CHAT, messages=messages)
            assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
        assert served.refusal("/tokenize", content="x" * 2001)["param"] == "content"
        assert served.refusal("/tokenize", prompt="x" * 2001)["param"] == "prompt"
        assert served.refusal("/detokenize", tokens=[5] * 2001)["param"] == "tokens"

    def test_an_answer_that_would_be_too_long(self, served: Served) -> None:
        for length in (400, -1):
            answer = served.ask(prompt=PROMPT, max_tokens=length, ignore_eos=True)
            assert answer["usage"]["completion_tokens"] == 300
            assert answer["choices"][0]["finish_reason"] == "length"

    def test_more_answers_than_there_is_room_for(self, served: Served) -> None:
        assert served.refusal(prompt=[PROMPT] * 3, n=2)["param"] == "n"
        for length in (0, 1):
            assert served.refusal(prompt=["a"] * 20_000, max_tokens=length)["param"] == "n"
        scored = {"prompt": [PROMPT] * 3, "echo": True, "logprobs": 0}
        assert served.refusal(**scored)["param"] == "n"
        assert served.ask(**scored, max_tokens=0)["choices"]

    @pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
    def test_other_content(self, served: Served, kind: str | None) -> None:
        headers = {} if kind is None else {"Content-Type": kind}
        response = served.http.post(TEXT, content=json.dumps(SHORT), headers=headers)
        error_of(response, 415)

    def test_compressed_bodies(self, served: Served) -> None:
        content = gzip.compress(json.dumps(SHORT).encode())
        headers = JSON | {"Content-Encoding": "gzip"}
        error = error_of(served.http.post(TEXT, content=content, headers=headers), 415)
        assert "Content-Encoding 'gzip'" in error["message"]
        headers = JSON | {"Content-Encoding": "identity"}
        plain = served.http.post(TEXT, content=json.dumps(SHORT), headers=headers)
        assert plain.status_code == 200

    def test_other_paths_and_methods(self, served: Served) -> None:
        error_of(served.http.get("/v1/nothing"), 404)
        for response, allowed in (
            (served.http.get(TEXT), "POST"),
            (served.http.post("/v1/models", json={}), "GET"),
            (served.http.post("/health", json={}), "GET"),
        ):
            error_of(response, 405)
            assert response.headers["allow"] == allowed
        error_of(served.http.get("/v1/models/../../etc/passwd"), 404)
        error_of(served.http.get("/v1/models/%2e%2e%2fpasswd"), 404)

    def test_without_v1(self, served: Served) -> None:
        assert served.ask("/completions", **SHORT)["choices"]
        assert served.ask("/chat/completions", messages=HELLO, max_tokens=2)["choices"]
        assert served.http.get("/models").json() == served.http.get("/v1/models").json()

    def test_a_slash_more(self, served: Served) -> None:
        assert served.http.get("/v1/models/").json() == served.http.get("/v1/models").json()

    @pytest.mark.parametrize("path", ["/", "/health"])
    def test_only_whether_it_is_there(self, served: Served, path: str) -> None:
        response = served.http.head(path)
        assert (response.status_code, response.content) == (200, b"")
        same = served.http.get(path).headers
        assert response.headers["content-length"] == same["content-length"]
        assert response.headers["content-type"] == same["content-type"]


class TestErrors:
    def test_a_field_that_may_be_of_several_kinds(self, served: Served) -> None:
        message = served.refusal(prompt={"a": 1})["message"]
        assert message.startswith("'prompt': Input should be a valid string; or: ")
        assert len(message) < 200

    def test_what_nobody_foresaw_tells_nothing(
        self, served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(*_: Any) -> None:
            raise RuntimeError("".join(["about a sec", "ret prompt"]))  # not in the source

        monkeypatch.setattr(served.state.api, "completion", fail)
        response = served.http.post(TEXT, json=SHORT)
        assert error_of(response, 500)["code"] == "internal_error"
        assert "secret" not in response.text + caplog.text
        assert "RuntimeError" in caplog.text
        assert "in fail" in caplog.text


class TestLogs:
    def test_a_line_per_request(self, served: Served, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "logitfuse.server")
        served.ask(prompt="A secret word", max_tokens=2, ignore_eos=True)
        served.http.get("/v1/models/a%0Ab?secret=1")
        served.http.post(TEXT, json={"prompt": {"secret": 1}})
        lines = [r.getMessage() for r in caplog.records if r.name == "logitfuse.server"]
        assert "secret" not in caplog.text.lower()
        assert lines[0].startswith(f"POST {TEXT} 200 ")
        assert lines[0].endswith(" ms 4+2 tokens")
        assert lines[1].startswith("GET /v1/models/a%0Ab 404 ")
        assert lines[2].startswith(f"POST {TEXT} 400 ")
        assert len(lines) == 3

    def test_prompts_if_wanted(self, batcher: Batcher, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "logitfuse.server")
        with serving(batcher, log_prompts=True) as started:
            started.ask(prompt="A secret\nword", max_tokens=1)
            assert r'prompt: "A secret\nword"' in caplog.text


class TestFailing:
    def test_is_told(self, batcher: Batcher, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also by servers that others run, and that do not end by themselves."""
        with TestClient(make_app(batcher), base_url="http://localhost") as asks:
            until(lambda: asks.get("/health").json() == {"status": "ok"})
            monkeypatch.setattr(batcher, "failed", RuntimeError("x"))
            assert asks.get("/health").json() == {"status": "failed"}
            assert asks.get("/health").status_code == 503
            assert asks.post(TEXT, json=SHORT).status_code == 503
            assert asks.get("/v1/models").status_code == 503


class TestLoading:
    def test_nothing_is_answered_before(self, tiny_models: Mapping[str, Path]) -> None:
        loaded = threading.Event()

        def load() -> Batcher:
            loaded.wait()
            return Batcher(ensembles(tiny_models)[2:], slots=1, queue=0)

        started = Served(load)
        try:
            for _ in range(2):
                response = started.http.get("/health")
                assert response.status_code == 503
                assert response.json() == {"status": "loading model"}
                response = started.http.post(TEXT, json=SHORT)
                error_of(response, 503)
                assert int(response.headers["retry-after"]) > 0
            loaded.set()
            started.wait_until_ready()
            assert started.ask(**SHORT)["choices"]
        finally:
            loaded.set()
            started.close()
