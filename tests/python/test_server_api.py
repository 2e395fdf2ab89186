"""What the API gives besides OpenAI's: traces, overrides, tokens, echoes, figures."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from logitfuse import Ensemble, _core
from logitfuse.batching import Batcher
from logitfuse.config import parse_config
from servers import CHAT, HELLO, PROMPT, SHORT, TEXT, Served, ensembles, events, serving, until


@pytest.fixture(scope="module")
def served(tiny_models: Mapping[str, Path]) -> Iterator[Served]:
    configs = ensembles(tiny_models)
    with serving(lambda: Batcher(configs, slots=2, queue=4)) as started:
        yield started


class TestObservation:
    def test_metrics(self, tiny_models: Mapping[str, Path]) -> None:
        configs = ensembles(tiny_models)
        with serving(lambda: Batcher(configs, slots=3, queue=2)) as started:
            started.ask(prompt=PROMPT, max_tokens=5, ignore_eos=True, model="one")
            started.refusal(status=404, prompt=PROMPT, model="x")
            started.http.get("/nothing")
            response = started.http.get("/metrics")
            lines = dict(
                line.rsplit(" ", 1) for line in response.text.splitlines() if line[0] != "#"
            )
        assert response.headers["content-type"].startswith("text/plain")
        counted = 'logitfuse_requests_total{endpoint="%s",model="%s",status="%d"}'
        assert lines[counted % ("/completions", "one", 200)] == "1.0"
        assert lines[counted % ("/completions", "", 404)] == "1.0"
        assert lines[counted % ("other", "", 404)] == "1.0"
        assert lines['logitfuse_generated_tokens_total{model="one"}'] == "5.0"
        assert float(lines['logitfuse_prompt_tokens_total{model="one"}']) > 1
        assert lines['logitfuse_steps_total{decision="led",model="one"}'] == "5.0"
        assert lines['logitfuse_time_to_first_token_seconds_count{model="one"}'] == "1.0"
        assert lines['logitfuse_time_per_token_seconds_count{model="one"}'] == "4.0"
        assert lines["logitfuse_slots"] == "3.0"
        assert lines["logitfuse_active"] == lines["logitfuse_waiting"] == "0.0"

    def test_properties(self, served: Served) -> None:
        told = served.http.get("/props").json()
        assert list(told["models"]) == ["pair", "exact", "one"]
        pair = told["models"]["pair"]
        assert pair["strategy"] == "fuse"
        assert told["models"]["exact"]["strategy"] == "bytes"
        assert pair["members"][1] == {
            "name": "gemma3",
            "weight": 0.5,
            "model": "gemma3.gguf",
            "architecture": "gemma3",
            "n_ctx": 512,
            "n_vocab": 3000,
        }
        assert told["default_model"] == "pair"
        assert told["instruction_set"] == _core.isa()
        assert (told["slots"], told["queue"]) == (2, 4)
        assert {"gac", "bytes"} <= set(told["presets"])
        assert "log-linear" in told["pools"]
        assert "/" not in json.dumps(told["models"])  # no paths

    def test_page(self, served: Served) -> None:
        response = served.http.get("/")
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        assert response.headers["content-security-policy"].startswith("default-src 'none'; ")
        assert "<title>logitfuse</title>" in response.text


class TestExtension:
    def test_trace(self, served: Served) -> None:
        answer = served.ask(**SHORT, logitfuse={"trace": True})
        steps = answer["choices"][0]["logitfuse"]["steps"]
        assert "".join(step["text"] for step in steps) == answer["choices"][0]["text"]
        assert [m["name"] for m in steps[0]["members"]] == ["smol", "gemma3"]
        stats = answer["logitfuse"]["stats"]
        assert answer["logitfuse"]["members"] == ["smol", "gemma3"]
        assert stats["steps"] == 2 == sum(stats["decisions"].values())
        assert stats["prompt_tokens"] == answer["usage"]["prompt_tokens"]
        assert stats["tokens_per_second"] > 0
        assert "logitfuse" not in served.ask(**SHORT)

    @pytest.mark.parametrize("model", ["pair", "exact"])
    def test_candidates(self, served: Served, model: str) -> None:
        asked = {"trace": True, "candidates": 3}
        answer = served.ask(**SHORT, model=model, logitfuse=asked)
        for step in answer["choices"][0]["logitfuse"]["steps"]:
            for member in step["members"]:
                listed = member["candidates"]
                assert len(listed) == (0 if member["wish"] is None else 3)
                assert [c["text"] for c in listed[:1]] == [member["wish"]] * len(listed[:1])
                nats = [candidate["logprob"] for candidate in listed]
                assert nats == sorted(nats, reverse=True)

    @pytest.mark.parametrize("include_usage", [False, True])
    def test_trace_of_a_stream(self, served: Served, include_usage: bool) -> None:
        body = SHORT | {
            "max_tokens": 12,
            "stream": True,
            "stream_options": {"include_usage": include_usage},
            "logitfuse": {"trace": True},
        }
        response = served.http.post(TEXT, json=body)
        *told, end = events(response.text.splitlines())
        assert end == "[DONE]"
        objects = [json.loads(line) for line in told]
        whole = served.ask(**SHORT | {"max_tokens": 12}, logitfuse={"trace": True})
        steps = [s for o in objects for c in o["choices"] for s in c["logitfuse"]["steps"]]
        assert [s["text"] for s in steps] == [
            s["text"] for s in whole["choices"][0]["logitfuse"]["steps"]
        ]
        assert ["logitfuse" in thing for thing in objects] == [False] * (len(objects) - 1) + [True]
        assert objects[-1]["logitfuse"]["stats"]["steps"] == 12
        assert ("usage" in objects[-1]) == include_usage

    def test_overrides(self, served: Served) -> None:
        def said(**parts: Any) -> str:
            answer = served.ask(**SHORT | {"max_tokens": 12}, logitfuse=parts)
            return str(answer["choices"][0]["text"])

        alone = served.ask(**SHORT | {"max_tokens": 12, "model": "one"})["choices"][0]["text"]
        assert said(weights={"smol": 1}) == said(weights=[1, 0]) == alone
        assert (
            said(strategy="bytes")
            == served.ask(**SHORT | {"max_tokens": 12, "model": "exact"})["choices"][0]["text"]
        )
        assert said(pool="log-linear", gate="always") == said(preset="gac", pool="log-linear")
        assert said(pool=None) == said()


class TestTokens:
    def test_as_llama_cpp_does_it(self, served: Served) -> None:
        tokens = served.ask("/tokenize", content=PROMPT)["tokens"]
        assert served.ask("/detokenize", tokens=tokens)["content"] == PROMPT
        pieces = served.ask("/tokenize", content=PROMPT + " é", with_pieces=True)["tokens"]
        assert [piece["id"] for piece in pieces][: len(tokens)] == tokens
        spelled = [
            p["piece"].encode() if isinstance(p["piece"], str) else bytes(p["piece"])
            for p in pieces
        ]
        assert b"".join(spelled).decode() == PROMPT + " é"

    def test_as_vllm_does_it(self, served: Served) -> None:
        for model in ("pair", "one"):
            told = served.ask("/tokenize", prompt=PROMPT, model=model, add_special_tokens=False)
            assert told["count"] == len(told["tokens"])
            assert told["max_model_len"] == 512
            assert served.ask("/detokenize", tokens=told["tokens"], model=model)["prompt"] == PROMPT
        info = served.http.get("/tokenizer_info").json()
        (end,) = served.ask("/tokenize", prompt=info["eos_token"])["tokens"]
        assert end

    def test_begin_of_text(self, tiny_models: Mapping[str, Path]) -> None:
        entry = {"model": tiny_models["llama-spm"], "n_threads": 1}
        configs = [parse_config({"member": [entry], "name": "spm"})]
        with serving(lambda: Batcher(configs, slots=1, queue=0)) as started:
            plain = started.ask("/tokenize", content="Hi")["tokens"]
            begun = started.ask("/tokenize", content="Hi", add_special=True)["tokens"]
            assert begun[1:] == plain
            assert started.ask("/tokenize", prompt="Hi")["tokens"] == begun
            assert started.ask("/tokenize", content="<s>Hi")["tokens"][:1] == begun[:1]
            assert started.http.get("/tokenizer_info").json()["bos_token"] == "<s>"

    @pytest.mark.parametrize(
        ("path", "body", "param"),
        [
            ("/tokenize", {}, "content"),
            ("/tokenize", {"content": 5}, "content"),
            ("/detokenize", {"tokens": [10**8]}, "tokens"),
            ("/detokenize", {"tokens": "x"}, "tokens"),
            ("/detokenize", {}, "tokens"),
        ],
    )
    def test_errors(self, served: Served, path: str, body: dict[str, Any], param: str) -> None:
        assert served.refusal(path, **body)["param"] == param
        assert served.refusal(path, 404, **{"content": "x", "tokens": [1]}, model="x")


class TestEcho:
    @pytest.mark.parametrize("model", ["pair", "exact", "one"])
    def test_log_probabilities_of_the_prompt(
        self, served: Served, tiny_models: Mapping[str, Path], model: str
    ) -> None:
        asked: dict[str, Any] = SHORT | {"echo": True, "logprobs": 2, "max_tokens": 5}
        config = next(c for c in ensembles(tiny_models) if c.name == model)
        with Ensemble.from_config(config) as alone:
            expected = alone(**asked)["choices"][0]
        found = served.ask(**asked, model=model)
        choice = found["choices"][0]
        assert choice["text"] == expected["text"]
        listed = choice["logprobs"]
        assert listed["tokens"] == expected["logprobs"]["tokens"]
        assert listed["text_offset"] == expected["logprobs"]["text_offset"]
        assert listed["token_logprobs"][0] is listed["top_logprobs"][0] is None
        assert listed["token_logprobs"][1:] == pytest.approx(
            expected["logprobs"]["token_logprobs"][1:], abs=0.02
        )
        usage = served.ask(**SHORT | {"max_tokens": 5}, model=model)["usage"]
        for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
            assert found["usage"][key] == usage[key]

    def test_cached_tokens(self, served: Served) -> None:
        """Are those that were read for an earlier answer, or for another choice."""
        asked = {"prompt": "What nobody has ever asked here, " * 4, "max_tokens": 2, "seed": 1}
        new, again, both = (served.ask(**asked, n=n)["usage"] for n in (1, 1, 2))
        counts = [u["prompt_tokens_details"]["cached_tokens"] for u in (new, again, both)]
        assert counts[0] < 8
        assert counts[1] >= new["prompt_tokens"] - 7  # those at the end are read in other ways
        assert counts[1] <= counts[2] <= new["prompt_tokens"]

    def test_without_an_answer(self, served: Served) -> None:
        asked: dict[str, Any] = {"echo": True, "logprobs": 0, "max_tokens": 0}
        whole = served.ask(prompt=["a", PROMPT], n=2, **asked)
        texts = [choice["text"] for choice in whole["choices"]]
        assert texts == ["a", "a", PROMPT, PROMPT]
        assert "".join(whole["choices"][3]["logprobs"]["tokens"]) == PROMPT
        assert whole["usage"]["completion_tokens"] == 0
        assert {choice["finish_reason"] for choice in whole["choices"]} == {"length"}
        for prompt in ("a", PROMPT):
            response = served.http.post(TEXT, json=asked | {"prompt": prompt, "stream": True})
            *told, end = events(response.text.splitlines())
            objects = [json.loads(line)["choices"][0] for line in told]
            assert [thing["text"] for thing in objects] == [prompt, ""]
            assert [thing["finish_reason"] for thing in objects] == [None, "length"]
            assert end == "[DONE]"

    def test_a_stream(self, served: Served) -> None:
        asked: dict[str, Any] = SHORT | {"echo": True, "logprobs": 1, "max_tokens": 5, "n": 2}
        whole = served.ask(**asked)["choices"]
        response = served.http.post(TEXT, json=asked | {"stream": True})
        *told, _ = events(response.text.splitlines())
        pieces = [json.loads(line)["choices"][0] for line in told]
        for i, choice in enumerate(whole):
            own = [piece for piece in pieces if piece["index"] == i]
            assert "".join(piece["text"] for piece in own) == choice["text"]
            listed = [piece["logprobs"] for piece in own if piece["logprobs"]]
            for key in ("tokens", "text_offset"):
                assert [item for p in listed for item in p[key]] == choice["logprobs"][key]

    def test_what_cannot_be_scored(self, served: Served) -> None:
        asked: dict[str, Any] = {"echo": True, "logprobs": 0}
        assert served.refusal(prompt="", **asked)["message"].startswith("the prompt is empty")
        error = served.refusal(prompt="word " * 390, **asked | {"max_tokens": 0})
        assert error["code"] == "context_length_exceeded"
        assert served.refusal(prompt="", echo=True, max_tokens=0)["message"]
        assert served.refusal(CHAT, messages=HELLO, max_tokens=0)["param"] == "max_tokens"

    @pytest.mark.parametrize("asked", [{"max_tokens": 0}, {"n_predict": 0}])
    def test_nothing_is_wanted(self, served: Served, asked: dict[str, Any]) -> None:
        for echo in (False, True):
            body: dict[str, Any] = {"prompt": [PROMPT, "x"], "echo": echo, "n": 2, **asked}
            answer = served.ask(**body)
            texts = [PROMPT, PROMPT, "x", "x"] if echo else [""] * 4
            assert [choice["text"] for choice in answer["choices"]] == texts
            assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
            counted = served.ask(**SHORT | {"prompt": [PROMPT, "x"]})["usage"]
            assert answer["usage"]["prompt_tokens"] == counted["prompt_tokens"]
            assert answer["usage"]["completion_tokens"] == 0
            *told, end = events(
                served.http.post(TEXT, json=body | {"stream": True}).text.split("\n")
            )
            pieces = [json.loads(line)["choices"][0] for line in told]
            for i, text in enumerate(texts):
                assert "".join(piece["text"] for piece in pieces if piece["index"] == i) == text
            assert end == "[DONE]"

    def test_null_is_what_is_usual(self, served: Served) -> None:
        answer = served.ask(prompt=PROMPT, max_tokens=None, n=None, ignore_eos=True)
        assert answer["usage"]["completion_tokens"] == 16

    def test_a_chat_that_only_warms_up(self, served: Served) -> None:
        answer = served.ask(CHAT, messages=HELLO, n_predict=0)
        assert answer["choices"][0]["message"]["content"] == ""
        assert answer["choices"][0]["finish_reason"] == "length"


SCHEMA = {
    "type": "object",
    "properties": {"answer": {"enum": ["yes", "no"]}, "sure": {"type": "boolean"}},
    "required": ["answer", "sure"],
    "additionalProperties": False,
}


class TestConstraints:
    @pytest.mark.parametrize("model", ["pair", "exact", "one"])
    @pytest.mark.parametrize(
        "asked",
        [
            {"json_schema": SCHEMA},
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "it", "strict": True, "schema": SCHEMA},
                }
            },
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
        ],
    )
    def test_schemas(self, served: Served, model: str, asked: dict[str, Any]) -> None:
        body: dict[str, Any] = {"messages": HELLO, "temperature": 0, "max_tokens": 200}
        choice = served.ask(CHAT, model=model, **body, **asked)["choices"][0]
        found = json.loads(choice["message"]["content"])
        assert found["answer"] in ("yes", "no")
        assert found["sure"] in (True, False)
        assert choice["finish_reason"] == "stop"

    def test_grammars(self, served: Served) -> None:
        grammar = 'root ::= "left" | "right " [0-9]'
        for seed in range(3):
            answer = served.ask(prompt=PROMPT, grammar=grammar, seed=seed, max_tokens=20)
            assert re.fullmatch(r"left|right \d", answer["choices"][0]["text"])

    def test_json(self, served: Served) -> None:
        body: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 60, "temperature": 0}
        text = served.ask(**body, response_format={"type": "json_object"})["choices"][0]["text"]
        assert text.lstrip().startswith("{")
        plain = served.ask(**body)
        assert served.ask(**body, response_format={"type": "text"})["choices"] == plain["choices"]

    @pytest.mark.parametrize(
        ("asked", "param"),
        [
            ({"grammar": "root ::= other"}, "grammar"),
            ({"grammar": "root ::= root"}, "grammar"),
            ({"grammar": "(" * 5000}, "grammar"),
            ({"json_schema": {"type": "nothing"}}, "json_schema"),
            ({"json_schema": {"$ref": "file:///etc/passwd"}}, "json_schema"),
            ({"json_schema": {"$ref": "http://127.0.0.1/schema"}}, "json_schema"),
            ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
            ({"grammar": 'root ::= "a"', "json_schema": {}}, "json_schema"),
        ],
    )
    def test_what_cannot_be_had(self, served: Served, asked: dict[str, Any], param: str) -> None:
        error = served.refusal(prompt=PROMPT, max_tokens=3, **asked)
        assert error["param"] == param
        assert len(error["message"]) < 1000

    @pytest.mark.parametrize(
        "asked",
        [
            {"grammar": 'root ::= "a"{1000000}'},
            {"grammar": 'root ::= "a"\n' * 5000},
            {
                "grammar": "".join(f"r{i} ::= r{i + 1} r{i + 1}\n" for i in range(60))
                + 'r60 ::= "a"'
            },
            {"grammar": "root ::= r0\n" + 'r0 ::= r0 r0 | "a" | ""'},
            {"json_schema": {"pattern": "(a+)+" * 500 + "$", "type": "string"}},
            {"json_schema": {"pattern": "((a{1,99}){1,99}){1,99}", "type": "string"}},
            {"json_schema": {"type": "array", "minItems": 10**9}},
            {"json_schema": {"anyOf": [{"const": "x" * i} for i in range(400)]}},
        ],
    )
    def test_hostile_ones(self, served: Served, asked: dict[str, Any]) -> None:
        """Whether they are refused or answered, they soon are."""
        began = time.monotonic()
        response = served.http.post(TEXT, json={"prompt": PROMPT, "max_tokens": 3, **asked})
        assert response.status_code in (200, 400)
        assert time.monotonic() - began < 10
        until(served.is_idle)
