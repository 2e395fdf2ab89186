"""What a reply may be: JSON, JSON that fits a schema, the language of a grammar or of a regex.

`logitfuse.guide` follows replies; both need ``llguidance``, the ``[grammar]`` extra.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, TypeAlias

from logitfuse.errors import ConfigError
from logitfuse.gbnf import gbnf_to_lark
from logitfuse.grammar import fault, library

ConstraintKind: TypeAlias = Literal["schema", "gbnf", "lark", "regex"]

#: What OpenAI's ``json_object`` means.
_ANY_OBJECT = {"type": "object"}
#: White space between the parts of JSON is as in llama.cpp: enough to indent, but not without end,
#: which small models like.
_BLANKS = r" |\n{1,2}[ \t]{0,20}"
#: The other option of a schema that says something about blanks.
_COMPACT = "whitespace_flexible"
#: Which tokens spell what is certain to come is left to the members.
_OPTIONS = '%llguidance {"no_forcing": true}'
#: Characters: what is longer takes a second or more to understand.
_LONGEST = 200_000
#: What messages call a constraint, and the key that they name.
_NAMES = {
    "schema": ("JSON schema", "json_schema"),
    "gbnf": ("grammar", "grammar"),
    "lark": ("grammar", "grammar"),
    "regex": ("regex", "regex"),
}


@dataclass(frozen=True)
class Constraint:
    r"""What a reply may be.

    Attributes
    ----------
    kind : {"schema", "gbnf", "lark", "regex"}
        What `text` is.  ``schema``: a JSON Schema as JSON; the keys of an object come in its order.
        ``gbnf``: a grammar of llama.cpp, with the rule ``root``.  ``lark``: a grammar in
        llguidance's dialect of Lark, with the rule ``start``; its terminals take the longest match.
        ``regex``: the whole reply matches; the syntax is that of Rust's crate regex (so ``\d`` is
        any Unicode digit), without looking around.
    text : str

    Raises
    ------
    ConfigError
        The text is no such thing, or is too long or too complex, or llguidance cannot enforce all
        of it; or llguidance is not installed.
    BusyError
        The machine has too much to do to find that out.
    """

    kind: ConstraintKind
    text: str

    def __post_init__(self) -> None:
        if self.kind not in _NAMES:
            known = ", ".join(_NAMES)
            raise ConfigError(f"unknown kind of constraint '{self.kind}'; known: {known}")
        name, key = _NAMES[self.kind]
        if len(self.text) > _LONGEST:
            raise ConfigError(
                f"the {name} has {len(self.text):,} characters; at most {_LONGEST:,} are taken",
                key=key,
            )
        try:
            self.text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"the {name} holds half a character: {error}", key=key) from None
        wrong = fault(self.digest, lambda: self.grammar)
        if self.kind != "lark":  # there is no such place in the text
            wrong = re.sub(r"^at \d+\(\d+\): ", "", wrong)
        if wrong:
            raise ConfigError(f"the {name} cannot be used: {wrong}", key=key)

    @cached_property
    def digest(self) -> bytes:
        """Stands for the constraint where grammars are kept."""
        return hashlib.sha256(f"{self.kind} {self.text}".encode()).digest()

    @cached_property
    def grammar(self) -> str:
        """The same for llguidance."""
        match self.kind:
            case "schema":
                lark = f"start: %json {_with_blanks(self.text)}"
            case "gbnf":
                lark = gbnf_to_lark(self.text)
            case "regex":
                lark = f"start: /{library().regex_to_lark(self.text)}/"
            case "lark":
                lark = self.text
        return f"{lark}\n{_OPTIONS}\n"


class LlamaGrammar(Protocol):
    """A ``llama_cpp.LlamaGrammar``: GBNF."""

    _grammar: str


def constraint_of(
    response_format: Mapping[str, Any] | None = None,
    grammar: str | None = None,
    json_schema: Mapping[str, Any] | None = None,
) -> Constraint | None:
    """What a request asks for in the words of OpenAI, llama.cpp and llama-cpp-python.

    What has not been asked for before is tried first, which takes a tenth of a second or more.

    Parameters
    ----------
    response_format : mapping, optional
        ``{"type": "text"}``; ``{"type": "json_object"}``, perhaps with a ``"schema"``;
        ``{"type": "json_schema", "json_schema": {"schema": ...}}``.
    grammar : str, optional
        GBNF, or Lark if it begins with ``%llguidance``; empty: none.  As in llama.cpp.
    json_schema : mapping, optional

    Returns
    -------
    Constraint or None
        None: the reply may be anything.

    Raises
    ------
    ConfigError
        More than one thing is asked for, or something that cannot be had.
    BusyError
        See `Constraint`.
    """
    schema = _schema_of(response_format) if response_format is not None else None
    wanted = {"response_format": schema, "grammar": grammar or None, "json_schema": json_schema}
    given = [key for key, value in wanted.items() if value is not None]
    if len(given) > 1:
        raise ConfigError(f"give only one of {' and '.join(given)}", key=given[1])
    if grammar:
        return Constraint("lark" if grammar.lstrip().startswith("%llguidance") else "gbnf", grammar)
    schema = json_schema if schema is None else schema
    if schema is None:
        return None
    try:
        text = json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"the JSON schema is no JSON: {error}", key="json_schema") from None
    return Constraint("schema", text)


def _schema_of(response_format: Mapping[str, Any]) -> Any:
    """The schema that a ``response_format`` asks for, if any."""
    match response_format:
        case {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return response_format.get("schema") or _ANY_OBJECT
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            return schema
        case {"type": "json_schema"}:
            raise ConfigError(
                "a response_format of type 'json_schema' needs its schema: "
                '{"type": "json_schema", "json_schema": {"schema": {...}}}',
                key="response_format.json_schema",
            )
    raise ConfigError(
        f"unknown response_format {response_format.get('type')!r}; "
        "known types: text, json_object, json_schema",
        key="response_format.type",
    )


def _with_blanks(text: str) -> str:
    """A schema with what it leaves open about blanks."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the JSON schema is no JSON: {error}", key="json_schema") from None
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise ConfigError(
            f"a JSON schema is an object or true, not {json.dumps(schema)}", key="json_schema"
        )
    options = schema.get("x-guidance", {})
    if isinstance(options, dict) and not options.keys() & {"whitespace_pattern", _COMPACT}:
        schema["x-guidance"] = {"whitespace_pattern": _BLANKS, **options}
    return json.dumps(schema)
