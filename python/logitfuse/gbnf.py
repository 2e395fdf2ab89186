"""llama.cpp's grammars (GBNF) in llguidance's dialect of Lark.

GBNF knows no lexer: a grammar says which characters may follow, one at a time.  Lark's lexer takes
the longest match, so that ``[a-z]+ "x"`` as two terminals never ends.  Here every terminal is one
character, and the languages are the same.  It costs time where anything may follow, as in strings
of JSON: masks of a large vocabulary take 15 ms, of a JSON schema 0.2 ms, since the library then
walks all tokens character by character (its "slices" are for longer terminals).  ``[a-z]*`` could
be one terminal only where nothing that begins with such a letter could stand instead of it or
follow, which a look at the rule alone cannot tell.

What costs more with each character is rewritten: a rule that ends with itself (``list ::= item list
| item``) is a repetition.

The syntax is that of llama.cpp's own parser (``grammars/README.md`` there), but for its references
to tokens: members with different vocabularies have no tokens in common.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TypeAlias

from logitfuse.errors import ConfigError

#: Alternatives, each a sequence of items.
_Choices: TypeAlias = list[list[str]]

#: Parentheses in parentheses.
_DEEPEST = 64
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]"}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
#: What can be repeated as it stands; nothing; and what repeats something never.
_ATOM = re.compile(r"\w+|/[^/]*/")
_NOTHING = '""'
_NEVER = re.compile(r"\{\s*0+\s*(,\s*0+\s*)?\}")
_SURROGATES = range(0xD800, 0xE000)


def gbnf_to_lark(text: str) -> str:
    """The same grammar as Lark.

    Raises
    ------
    ConfigError
        It is no GBNF; the line and what is wrong there are said.
    """
    return _Reader(text).read()


class _Reader:
    """Reads a grammar from its first character to its last."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self._names: dict[str, str] = {"root": "r0"}
        self._used: dict[str, int] = {"root": 0}  # and where
        self._rules: dict[str, _Choices] = {}
        self._parts: dict[str, _Choices] = {}  # rules that have no name in the grammar

    def read(self) -> str:
        """All of it."""
        self._skip(lines=True)
        while self._at < len(self._text):
            self._rule()
        for name, at in self._used.items():
            if name not in self._rules:
                self._at = at
                raise self._error(f"there is no rule '{name}'")
        rules = {self._names[name]: body for name, body in self._rules.items()}
        rules = {name: self._looped(name, body) for name, body in rules.items()} | self._parts
        return "\n".join(["start: r0", *(f"{name}: {_told(body)}" for name, body in rules.items())])

    def _rule(self) -> None:
        name = self._match(r"[A-Za-z0-9-]+")
        if not name:
            raise self._error("a rule begins with its name (letters, digits and -)")
        self._names.setdefault(name, f"r{len(self._names)}")
        self._skip()
        if not self._match("::="):
            raise self._error(f"'::=' is missing behind '{name}'")
        self._skip(lines=True)
        self._rules[name] = self._choice()
        if self._at < len(self._text) and self._text[self._at] not in "\r\n":
            raise self._error(f"unexpected {self._text[self._at]!r}")
        self._skip(lines=True)

    def _choice(self) -> _Choices:
        """Alternatives; on the outermost level they end with the line."""
        choices = [self._sequence()]
        while self._match(r"\|"):
            self._skip(lines=True)
            choices.append(self._sequence())
        return choices

    def _sequence(self) -> list[str]:
        items: list[str] = []
        while item := self._item():
            self._skip(lines=self._depth > 0)
            items.append(self._repeated(item))
        return items

    def _item(self) -> str:
        """What stands for itself; empty: nothing does here."""
        if self._match('"'):
            return self._literal()
        if self._match(r"\["):
            return self._one_of()
        if self._match(r"\."):
            return "/(?s:.)/"
        if self._match(r"\("):
            return self._group()
        if self._match("!?<"):
            raise self._error("tokens cannot be named, since every member has its own; spell them")
        at = self._at
        name = self._match(r"[A-Za-z0-9-]+")
        if name:
            self._used.setdefault(name, at)
            self._names.setdefault(name, f"r{len(self._names)}")
        return self._names[name] if name else ""

    def _group(self) -> str:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._error(f"more than {_DEEPEST} parentheses in one another")
        self._skip(lines=True)
        inside = self._choice()
        if not self._match(r"\)"):
            raise self._error("')' is missing")
        self._depth -= 1
        return self._part(inside)

    def _part(self, body: _Choices) -> str:
        """A rule of its own: llguidance takes few parentheses in one another."""
        name = f"p{len(self._parts)}"
        self._parts[name] = body
        return name

    def _looped(self, name: str, choices: _Choices) -> _Choices:
        """The rule ``r: a r | b`` as ``r: a* b``, which is the same whatever `a` and `b` are.

        Of a rule that ends with itself, llguidance has every one open, up to 2,000 of them.
        """
        choices = list(self._unfolded(name, choices))
        again = [choice[:-1] for choice in choices if choice[1:] and choice[-1] == name]
        rest = [choice for choice in choices if choice[-1:] != [name]]
        if not again or not rest:
            return choices
        return [[f"{self._one(again)}*", *([] if rest == [[]] else [self._one(rest)])]]

    def _unfolded(self, name: str, choices: _Choices) -> Iterator[list[str]]:
        """Alternatives without groups at their ends that end with the rule: ``r: (a r)?``."""
        for choice in choices:
            last = choice[-1] if choice else ""
            group = self._parts.get(last.removesuffix("?"), [])
            if all(inner[-1:] != [name] for inner in group):
                yield choice
                continue
            before = [self._one([choice[:-1]])] if choice[1:] else []
            yield from ([*before, *inner] for inner in group)
            if last.endswith("?"):
                yield before

    def _one(self, body: _Choices) -> str:
        """Alternatives as something that can be repeated."""
        if len(body) == 1 and len(body[0]) == 1 and _ATOM.fullmatch(body[0][0]):
            return body[0][0]
        return self._part(body)

    def _literal(self) -> str:
        characters: list[str] = []
        while not self._match('"'):
            plain = self._match(r'[^"\\]+') or self._character("a string")
            characters += [f"/{_code(character)}/" for character in plain]
        return " ".join(characters) or _NOTHING

    def _one_of(self) -> str:
        negated = "^" if self._match(r"\^") else ""
        ranges = []
        while not self._match("]"):
            first = last = self._character("a character class")
            if self._match(r"-(?!\])"):
                last = self._character("a character class")
            if last < first:
                raise self._error(f"the range {first!r} to {last!r} is empty")
            ranges.append(_code(first) if first == last else f"{_code(first)}-{_code(last)}")
        if not ranges and not negated:
            raise self._error("'[]' matches no character")
        return f"/[{negated}{''.join(ranges)}]/" if ranges else "/(?s:.)/"

    def _character(self, where: str) -> str:
        """One character, which may be written as an escape."""
        if self._at == len(self._text):
            raise self._error(f"{where} does not end")
        character = self._text[self._at]
        self._at += 1
        if character != "\\":
            return character
        kind = self._match(r"[\s\S]")
        if kind in _ESCAPES:
            return _ESCAPES[kind]
        digits = self._match(rf"[0-9A-Fa-f]{{{_HEX_DIGITS[kind]}}}") if kind in _HEX_DIGITS else ""
        if not digits:
            raise self._error(f"unknown escape '\\{kind}'")
        if int(digits, 16) > 0x10FFFF or int(digits, 16) in _SURROGATES:
            raise self._error(f"'\\{kind}{digits}' is no character")
        return chr(int(digits, 16))

    def _repeated(self, item: str) -> str:
        """An item with what is behind it: ``*``, ``+``, ``?`` or ``{m,n}``, any number of them."""
        while mark := self._match(r"[*+?]|\{\s*\d+\s*(,\s*\d*\s*)?\}"):
            self._skip(lines=self._depth > 0)
            if _NEVER.fullmatch(mark):
                item = _NOTHING
            else:
                item = f"{self._one([[item]])}{''.join(mark.split())}"
        if self._match(r"\{"):
            raise self._error("repetitions are {m}, {m,} or {m,n}")
        return item

    def _match(self, pattern: str) -> str:
        """Takes what matches here; empty: nothing."""
        found = re.compile(pattern).match(self._text, self._at)
        if found is None:
            return ""
        self._at = found.end()
        return found[0]

    def _skip(self, *, lines: bool = False) -> None:
        """Passes blanks and comments, and line breaks if they mean nothing here."""
        self._match(r"(?:[ \t\r\n]|#[^\r\n]*)*" if lines else r"[ \t]*(?:#[^\r\n]*)?")

    def _error(self, what: str) -> ConfigError:
        line = self._text.count("\n", 0, self._at) + 1
        return ConfigError(f"the grammar is wrong in line {line}: {what}", key="grammar")


def _code(character: str) -> str:
    return rf"\x{{{ord(character):x}}}"


def _told(choices: _Choices) -> str:
    return " | ".join(" ".join(choice) or _NOTHING for choice in choices)
