"""Constraints as they are asked for: by `Ensemble` and on the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from command_line import PROMPT, logitfuse, ok, refusal, run_json
from ensembles import CHAT, text
from llama_cpp import LlamaGrammar
from logitfuse import Ensemble
from logitfuse.errors import ConfigError

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "boolean"}, "b": {"type": "array", "maxItems": 2}},
    "required": ["a"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
NUMBER = "root ::= [1-9] [0-9]{1,3}"
LARK = "%llguidance {}\nstart: /[ab]{3}/"
SAMPLED: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


@pytest.fixture(scope="module", params=["auto", "fuse"])
def pair(request: pytest.FixtureRequest, tiny_models: Mapping[str, Path]) -> Iterator[Ensemble]:
    paths = [tiny_models["smol"], tiny_models["gpt2"]]
    with Ensemble(paths, n_threads=1, n_ctx=512, strategy=request.param) as ensemble:
        yield ensemble


@pytest.fixture(scope="module")
def members(tiny_models: Mapping[str, Path]) -> list[Any]:
    """Options for two members and a greedy answer."""
    models = ["-m", tiny_models["smol"], "-m", tiny_models["gpt2"]]
    return [*models, "-t", "1", "-c", "256", "-n", "99", "--temp", "0"]


class TestEnsemble:
    @pytest.mark.parametrize(
        ("grammar", "pattern"),
        [
            (NUMBER, r"[1-9]\d{1,3}"),
            (LlamaGrammar.from_string(NUMBER), r"[1-9]\d{1,3}"),
            (LARK, "[ab]{3}"),
        ],
    )
    def test_grammars(self, pair: Ensemble, grammar: Any, pattern: str) -> None:
        for seed in range(3):
            options: dict[str, Any] = {**SAMPLED, "seed": seed, "grammar": grammar}
            said = pair(PROMPT, max_tokens=9, **options)
            assert re.fullmatch(pattern, text(said))
            streamed = pair.create_completion(PROMPT, max_tokens=9, stream=True, **options)
            pieces = [chunk["choices"][0] for chunk in streamed]
            assert "".join(piece["text"] for piece in pieces) == text(said)
            assert pieces[-1]["finish_reason"] == "stop"
            assert re.fullmatch(pattern, text(pair.create_chat_completion(CHAT, **options)))

    @pytest.mark.parametrize("wrapped", [False, True])
    def test_schemas(self, pair: Ensemble, wrapped: bool) -> None:
        wanted: dict[str, Any] = {"type": "json_object", "schema": SCHEMA}
        if wrapped:
            wanted = {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA}}
        complete = 0
        for seed in range(4):
            said = pair.create_chat_completion(
                CHAT, **SAMPLED, seed=seed, max_tokens=200, response_format=wanted
            )
            if said["choices"][0]["finish_reason"] == "stop":  # type: ignore[index]
                jsonschema.validate(json.loads(text(said)), SCHEMA)
                complete += 1
        assert complete

    def test_a_grammar_of_llama_cpp_python(self, pair: Ensemble) -> None:
        """Its schemas become GBNF."""
        grammar = LlamaGrammar.from_json_schema(json.dumps({"enum": ["x", "yz", 12]}))
        assert json.loads(text(pair(PROMPT, grammar=grammar, max_tokens=20))) in ("x", "yz", 12)

    def test_text(self, pair: Ensemble) -> None:
        options: dict[str, Any] = {"temperature": 0.0, "max_tokens": 5}
        free = text(pair.create_chat_completion(CHAT, **options))
        plain = pair.create_chat_completion(CHAT, response_format={"type": "text"}, **options)
        assert text(plain) == free

    def test_symbols(self, tiny_models: Mapping[str, Path]) -> None:
        with Ensemble(tiny_models["smol"], n_threads=1, n_ctx=256) as one:
            said = list(one.generate(one.tokenize(b"Hi"), temp=1.0, seed=1, grammar=NUMBER))
            assert re.fullmatch(rb"[1-9]\d{1,3}", one.detokenize(said))

    @pytest.mark.parametrize(
        ("options", "key"),
        [
            ({"grammar": "root ::="}, None),
            ({"grammar": "x"}, "grammar"),
            ({"response_format": {"type": "yaml"}}, "response_format.type"),
            ({"grammar": NUMBER, "response_format": {"type": "json_object"}}, "grammar"),
        ],
    )
    def test_refusals(self, pair: Ensemble, options: dict[str, Any], key: str | None) -> None:
        if key is None:  # nothing at all is a language
            assert text(pair.create_chat_completion(CHAT, **options)) == ""
            return
        with pytest.raises(ConfigError) as error:
            pair.create_chat_completion(CHAT, **options)
        assert error.value.key == key


class TestCommandLine:
    def test_grammars(self, members: list[Any], tmp_path: Path) -> None:
        assert re.fullmatch(r"[1-9]\d{1,3}\n", ok("run", PROMPT, *members, "--grammar", NUMBER))
        file = tmp_path / "it.gbnf"
        file.write_text(LARK, encoding="utf-8")
        report = run_json(PROMPT, *members, "--grammar-file", file)
        assert re.fullmatch("[ab]{3}", report["text"])
        assert report["finish_reason"] == "stop"

    def test_schemas(self, members: list[Any], tmp_path: Path) -> None:
        schema = '{"enum": ["é", 12]}'
        assert json.loads(ok("run", PROMPT, *members, "-j", schema)) in ("é", 12)
        file = tmp_path / "it.json"
        file.write_text(schema, encoding="utf-8")
        said = ok("chat", *members, "-jf", file, stdin="Hi\nOnce more\n")
        assert {json.loads(line) for line in said.splitlines()} <= {"é", 12}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--grammar", 'root ::= "a'], "line 1: a string does not end"),
            (["-j", "{"], "the JSON schema is no JSON"),
            (["-j", '{"type": "x"}'], "Invalid type: x"),
            (["--grammar-file", "nope.gbnf"], "cannot read --grammar-file nope.gbnf"),
            (["-jf", "/"], "cannot read --json-schema-file /"),
            (["-j", "{}", "--grammar", "x"], "only one of --grammar and --json-schema"),
        ],
    )
    def test_refusals(self, members: list[Any], options: list[str], message: str) -> None:
        assert message in refusal(logitfuse("run", PROMPT, *members, *options))
