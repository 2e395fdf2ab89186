"""Descriptions of what a reply may be, and what is refused."""

from __future__ import annotations

import json
import signal
import string
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from constraints import untried
from logitfuse import grammar
from logitfuse.constraint import Constraint, constraint_of
from logitfuse.errors import BusyError, ConfigError
from logitfuse.strategies.base import Request

SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}}


def deep(n: int) -> str:
    """A schema of arrays in arrays."""
    return '{"items":' * n + "{}" + "}" * n


def chain(n: int) -> str:
    """Rules that name one another."""
    return "start: r0\n" + "".join(f'r{i}: "a" r{i + 1}\n' for i in range(n)) + f'r{n}: "b"'


def doubling(n: int) -> str:
    """A terminal of 2^n characters."""
    return f"start: A{n}\nA0: /a/\n" + "".join(f"A{i + 1}: A{i} A{i}\n" for i in range(n))


def many_keys(n: int) -> str:
    """An object of many strings."""
    return json.dumps({"properties": {f"key {i}": {"type": "string"} for i in range(n)}})


def many_patterns(n: int) -> str:
    """A string that holds all of these letters, in any order."""
    patterns = [{"pattern": f".*{letter}.*"} for letter in string.ascii_lowercase[:n]]
    return json.dumps({"type": "string", "allOf": patterns})


class TestConstraint:
    def test_equal_ones_are_one(self) -> None:
        one, other = Constraint("regex", "a+"), Constraint("regex", "a+")
        assert one == other
        assert len({one, other, Constraint("gbnf", 'root ::= "a"')}) == 2
        assert hash(Request("x", constraint=one).constraint) == hash(other)

    def test_no_verdict_is_asked_for_twice(self, monkeypatch: pytest.MonkeyPatch) -> None:
        Constraint("regex", "ab+")
        monkeypatch.setattr(subprocess, "check_output", None)
        Constraint("regex", "ab+")

    @pytest.mark.parametrize(
        ("kind", "text", "key", "what"),
        [
            ("regex", "a[", "regex", "the regex cannot be used: .*unclosed character class$"),
            ("regex", "a(?=b)", "regex", "look-around"),
            ("regex", "(" * 9999 + ")" * 9999, "regex", "nest"),
            ("regex", "\ud800", "regex", "the regex holds half a character"),
            ("lark", "start: foo", "grammar", r'the grammar .* at 1\(8\): unknown name: "foo"$'),
            ("lark", 'a: "a"', "grammar", "no start rule"),
            ("lark", 'start: a\na[max_tokens=3]: "a"', "grammar", "rollback not supported"),
            ("lark", "start: <tool>", "grammar", "unknown special token"),
            ("lark", 'start: start "a"', "grammar", "no text fits it"),
            ("gbnf", 'root ::= "a', "grammar", "line 1: a string does not end"),
            ("schema", "{", "json_schema", "the JSON schema is no JSON"),
            ("schema", "[]", "json_schema", r"is an object or true, not \[\]"),
            ("schema", "false", "json_schema", "is an object or true, not false"),
            ("schema", '{"type": "objec"}', "json_schema", "Invalid type: objec"),
            (
                "schema",
                '{"not": {"type": "null"}}',
                "json_schema",
                r'Unimplemented keys: \["not"\]',
            ),
            ("schema", '{"format": "x", "type": "string"}', "json_schema", "Unknown format: x"),
            ("schema", '{"$ref": "#/a"}', "json_schema", "Pointer '/a' does not exist"),
            ("schema", '{"$ref": "http://a.b/c"}', "json_schema", "does not fetch"),
            ("schema", '{"$ref": "#"}', "json_schema", "no text fits it"),
            ("schema", '{"type": "string", "pattern": "("}', "json_schema", "unclosed group"),
        ],
    )
    def test_refusals(self, kind: Any, text: str, key: str, what: str) -> None:
        with pytest.raises(ConfigError, match=what) as error:
            Constraint(kind, text)
        assert error.value.key == key
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 400

    @pytest.mark.parametrize(
        ("kind", "text", "what"),
        [
            ("schema", deep(200), "recursion limit exceeded"),
            ("schema", deep(15_000), "the JSON schema is no JSON"),
            ("schema", many_patterns(26), "not understood within"),
            ("schema", many_keys(5000), "too complex"),
            ("lark", chain(8000), "overflows the memory or the stack"),
            ("gbnf", chain(8000).replace(": ", " ::= ").replace("start", "root"), "overflows"),
            ("lark", "start: " + "(" * 9999 + '"a"' + ")" * 9999, "too deeply nested"),
        ],
        ids=lambda value: value if len(value) < 40 else "",
    )
    def test_hostile_ones(self, kind: Any, text: str, what: str) -> None:
        with pytest.raises(ConfigError, match=what):
            Constraint(kind, text)

    def test_one_that_takes_nearly_all_the_time(self) -> None:
        """What is told depends on the machine, unless there is no limit of time."""
        with pytest.raises(ConfigError, match=r"too big|not understood within a second"):
            Constraint("lark", doubling(99))
        assert "too big" in grammar._try(untried("lark", doubling(99)).grammar)

    def test_what_is_too_complex_is_not_tried_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for _ in range(2):
            with pytest.raises(ConfigError, match="not understood within a second"):
                Constraint("schema", many_patterns(25))
            monkeypatch.setattr(subprocess, "check_output", None)

    @pytest.mark.parametrize(
        ("limit", "what"), [("_VERDICT", "was not tried within 0 seconds"), ("_TURN", "too many")]
    )
    def test_a_machine_with_too_much_to_do(
        self, limit: str, what: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """That is no verdict."""
        monkeypatch.setattr(grammar, limit, 0)
        monkeypatch.setattr(grammar, "_TRIALS", threading.BoundedSemaphore(1))
        if limit == "_TURN":
            grammar._TRIALS.acquire()
        with pytest.raises(BusyError, match=what):
            Constraint("regex", f"abc+{limit}")
        monkeypatch.undo()
        Constraint("regex", f"abc+{limit}")

    def test_long_ones(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """They are not even looked at."""
        monkeypatch.setattr("logitfuse.constraint.fault", None)
        with pytest.raises(ConfigError, match="has 200,001 characters; at most 200,000") as error:
            Constraint("gbnf", 'root ::= "a"'.ljust(200_001))
        assert error.value.key == "grammar"

    def test_panics_are_no_reason(self) -> None:
        for said in ("panic: assertion failed: a < b", "thread 'x' (7) panicked at a.rs:1:\nb"):
            assert grammar.reason(said) == "it is too complex"
        assert grammar.reason("no rule panic: x") == "no rule panic: x"

    @pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="nothing counts what it computes")
    def test_a_trial_ends_by_itself(self) -> None:
        """A server may be killed while it waits for one."""
        command = [sys.executable, "-m", "logitfuse.grammar"]
        text = untried("schema", many_patterns(26)).grammar.encode()
        with subprocess.Popen(command, stdin=subprocess.PIPE) as trial:
            try:
                trial.communicate(text, timeout=20)
            finally:
                trial.kill()
        assert trial.returncode == -signal.SIGPROF

    def test_nothing_comes_from_the_working_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "llguidance.py").write_text("raise SystemExit('mine')", encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        Constraint("regex", "abcd+")

    def test_unknown_kinds(self) -> None:
        with pytest.raises(ConfigError, match="'bnf'; known: schema, gbnf, lark, regex"):
            Constraint("bnf", "")  # type: ignore[arg-type]

    def test_without_the_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "llguidance", None)
        for kind in ("schema", "gbnf", "lark", "regex"):
            with pytest.raises(ConfigError, match=r"pip install 'logitfuse\[grammar\]'") as error:
                constraint_of(json_schema={"const": kind})
            assert error.value.key == "grammar"


class TestConstraintOf:
    @pytest.mark.parametrize(
        ("asked", "kind", "text"),
        [
            ({"response_format": {"type": "json_object"}}, "schema", '{"type": "object"}'),
            (
                {"response_format": {"type": "json_object", "schema": SCHEMA}},
                "schema",
                json.dumps(SCHEMA),
            ),
            (
                {
                    "response_format": {
                        "type": "json_schema",
                        "json_schema": {"name": "x", "strict": True, "schema": SCHEMA},
                    }
                },
                "schema",
                json.dumps(SCHEMA),
            ),
            ({"json_schema": SCHEMA}, "schema", json.dumps(SCHEMA)),
            ({"json_schema": {}}, "schema", "{}"),
            ({"grammar": 'root ::= "a"'}, "gbnf", 'root ::= "a"'),
            ({"grammar": '%llguidance {}\nstart: "a"'}, "lark", '%llguidance {}\nstart: "a"'),
            (
                {"response_format": {"type": "text"}, "grammar": 'root ::= "a"'},
                "gbnf",
                'root ::= "a"',
            ),
        ],
    )
    def test_what_is_asked_for(self, asked: dict[str, Any], kind: str, text: str) -> None:
        constraint = constraint_of(**asked)
        assert constraint is not None
        assert (constraint.kind, constraint.text) == (kind, text)

    @pytest.mark.parametrize(
        "asked", [{}, {"response_format": {"type": "text"}}, {"grammar": ""}], ids=str
    )
    def test_nothing(self, asked: dict[str, Any]) -> None:
        assert constraint_of(**asked) is None

    @pytest.mark.parametrize(
        ("asked", "key", "what"),
        [
            ({"response_format": {}}, "response_format.type", "unknown response_format None"),
            ({"response_format": {"type": "xml"}}, "response_format.type", "'xml'; known types"),
            (
                {"response_format": {"type": "json_schema"}},
                "response_format.json_schema",
                "needs its schema",
            ),
            (
                {"response_format": {"type": "json_object"}, "json_schema": {}},
                "json_schema",
                "only one of response_format and json_schema",
            ),
            ({"grammar": "x", "json_schema": {}}, "json_schema", "grammar and json_schema"),
            (
                {"json_schema": {"const": b"x"}},
                "json_schema",
                "is no JSON: .*not JSON serializable",
            ),
            ({"grammar": " "}, "grammar", "there is no rule 'root'"),
        ],
    )
    def test_refusals(self, asked: dict[str, Any], key: str, what: str) -> None:
        with pytest.raises(ConfigError, match=what) as error:
            constraint_of(**asked)
        assert error.value.key == key
