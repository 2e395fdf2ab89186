"""llama.cpp's grammars mean here what they mean there."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from constraints import bits, untried
from hypothesis import given
from hypothesis import strategies as st
from llama_cpp import llama_grammar
from logitfuse.errors import ConfigError
from logitfuse.gbnf import gbnf_to_lark
from logitfuse.guide import Guide
from logitfuse.llama import LlamaModel
from logitfuse.vocab import Vocab

SAMPLES = ("ARITHMETIC", "C", "CHESS", "JAPANESE", "JSON_ARR", "JSON", "LIST")
#: What is compared: the characters from the blank to the tilde, and line breaks.
ASCII = [bytes([byte]) for byte in (9, 10, *range(32, 127))]


class Theirs:
    """llama.cpp's own sampler."""

    def __init__(self, model: LlamaModel, vocab: Vocab, grammar: str) -> None:
        self._ids = [vocab.lookup(character) for character in ASCII]
        self._ids.append(int(vocab.end_ids[0]))
        pointer = model.vocab_pointers()[0]
        self._sampler = llama_cpp.llama_sampler_init_grammar(pointer, grammar.encode(), b"root")
        self.refused = not self._sampler

    def allowed(self) -> list[bool]:
        """Which of the characters, and whether the end."""
        data = (llama_cpp.llama_token_data * len(self._ids))()
        for entry, token in zip(data, self._ids, strict=True):
            entry.id, entry.logit = token, 0.0
        array = llama_cpp.llama_token_data_array(data, len(data), -1, False)
        llama_cpp.llama_sampler_apply(self._sampler, ctypes.byref(array))
        return [entry.logit == 0.0 for entry in data]

    def accept(self, place: int) -> None:
        llama_cpp.llama_sampler_accept(self._sampler, self._ids[place])

    def close(self) -> None:
        if self._sampler:
            llama_cpp.llama_sampler_free(self._sampler)


@pytest.fixture(scope="module")
def theirs(vocab_dir: Path) -> Iterator[Any]:
    model = LlamaModel(vocab_dir / "ggml-vocab-gpt-2.gguf", vocab_only=True)
    vocab = Vocab.from_llama(model)
    made: list[Theirs] = []

    def make(grammar: str) -> Theirs:
        made.append(Theirs(model, vocab, grammar))
        return made[-1]

    yield make
    for one in made:
        one.close()
    model.close()


def ours(grammar: str) -> Guide:
    return Guide(untried("gbnf", grammar), [Vocab([*ASCII, b"</s>"], end_ids=[len(ASCII)])])


def check_walk(theirs: Any, grammar: str, choose: Any, length: int) -> None:
    """Both allow the same characters along a text."""
    there, here = theirs(grammar), ours(grammar)
    assert not there.refused
    text = b""
    for _ in range(length):
        allowed = there.allowed()
        assert bits(here.allowed(0, text), len(allowed)) == allowed, (grammar, text)
        ways = [place for place, may in enumerate(allowed[:-1]) if may]
        if not ways:
            break
        place = choose(ways)
        there.accept(place)
        text += ASCII[place]


characters = st.sampled_from(["a", "b", "c", r"\n", r"\"", r"\x41", r"\u0062"])
classes = st.sampled_from(["[a-c]", "[^a]", "[ab]", "[b-]", r"[\]a]", r"[^\n-c]", "."])
marks = st.sampled_from(["", "", "*", "+", "?", "{2}", "{0,2}", "{1,}", "{0}", "{0, 0}"])


@st.composite
def grammars(draw: st.DrawFn) -> str:
    """Rules that begin with a character, so that none is left-recursive."""
    names = ["root", *draw(st.lists(st.sampled_from(["x", "y-2", "Z"]), unique=True))]
    strings = st.lists(characters, min_size=1, max_size=3).map(lambda some: f'"{"".join(some)}"')
    solid = strings | classes

    @st.composite
    def sequences(draw: st.DrawFn, depth: int = 2) -> str:
        items = [draw(solid)]
        for _ in range(draw(st.integers(0, 3))):
            kinds = [solid, st.sampled_from(names)]
            if depth:
                kinds.append(choices(depth - 1).map(lambda inside: f"({inside})"))
            items.append(draw(st.one_of(kinds)) + draw(marks))
        return draw(st.sampled_from([" ", "  ", "\t"])).join(items)

    @st.composite
    def choices(draw: st.DrawFn, depth: int) -> str:
        return " | ".join(draw(st.lists(sequences(depth), min_size=1, max_size=3)))

    return "\n".join(f"{name} ::= {draw(choices(2))}" for name in names)


@st.composite
def endless(draw: st.DrawFn) -> str:
    """Rules that end with themselves, in few ways: llama.cpp follows each of them by itself."""
    solid = st.sampled_from(['"a"', '"b"', '"ab"', "[ab]"])

    def body(name: str) -> str:
        ends = st.sampled_from(["", name, f"{name}?", "x", f"({draw(solid)} {name})?"])
        sequences = st.tuples(solid, ends).map(" ".join)
        return " | ".join(draw(st.lists(sequences, min_size=1, max_size=3)))

    return f"root ::= {body('root')}\nx ::= {body('x')}"


@given(grammars(), st.data())
def test_same_as_llama_cpp(theirs, grammar, data):
    check_walk(theirs, grammar, lambda ways: data.draw(st.sampled_from(ways)), 8)


@given(endless(), st.data())
def test_rules_that_end_with_themselves(theirs, grammar, data):
    check_walk(theirs, grammar, lambda ways: data.draw(st.sampled_from(ways)), 8)


@pytest.mark.parametrize("name", SAMPLES)
def test_the_grammars_of_llama_cpp(theirs, name):
    grammar = getattr(llama_grammar, f"{name}_GBNF")
    for seed in range(4):
        check_walk(theirs, grammar, random.Random(seed).choice, 40)


def test_the_schemas_of_llama_cpp_python(theirs):
    schema = '{"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", 1]}}}'
    grammar = llama_grammar.LlamaGrammar.from_json_schema(schema)._grammar
    for seed in range(4):
        check_walk(theirs, grammar, random.Random(seed).choice, 40)


@pytest.mark.parametrize(
    ("grammar", "fits", "not_"),
    [
        ('root ::= [a-z]+ "x"', ["abx", "xx"], ["x", "ab"]),  # the lexer takes no longest match
        ('root ::= ("a" | "abc") "bc"', ["abc", "abcbc"], ["abcb"]),
        ('root ::= root "a" | "b"', ["b", "baa"], ["a"]),  # llama.cpp refuses it
        ('root ::= "é" [à-ü]{2} .', ["éèê😀"], ["ééé", "e"]),
        ('root ::= "" | "a"', ["", "a"], ["b"]),
        ("root ::= # nothing\n\n", [""], ["a"]),
        ('root ::= (\n"a" |\n "b"\n)\n\n# end', ["a", "b"], ["ab"]),
        ('root ::= "a" |\n  "b"', ["a", "b"], ["ab"]),
        ('root ::= x\r\nx ::= "a"\r\n', ["a"], ["b"]),
        ('root ::= "a"\nroot ::= "b"', ["b"], ["a"]),  # as in llama.cpp
        (r'root ::= [^\x00-\x7f] "\U0001F600"', ["é😀"], ["a😀"]),
        ("root ::= [^]", ["a", "\n"], ["ab"]),
        ('root ::= "ab"{1,2}*', ["", "ab", "ababab"], ["a"]),
        ('root ::= ""* ("a"?)+ "b"', ["b", "aab"], ["", "a"]),
        ('root ::= "a" "b"{0} "c"{0,0}* [d]{00}', ["a"], ["ab", "ac", "ad"]),
        ('root ::= "a" root | ""', ["", "aaa"], ["b"]),
        ('root ::= "a" root | "a"', ["a", "aaa"], ["", "b"]),
        ('root ::= "a" root | "b" root | "c" | "d"', ["abbac", "d"], ["ab", "cd"]),
        ('root ::= "a" ("b" root)? | "c"', ["a", "abc", "ababa"], ["ab", "ac"]),
        ('root ::= "a" x root | x\nx ::= "(" root ")" | "b"', ["b", "a(abb)b"], ["a", "(a)"]),
        ('root ::= ("a" root | "b") "c"?', ["aab", "aabccc"], ["a", "abcccc"]),  # not at its end
        ('root ::= "a" root | "b" | root', ["ab"], ["a"]),
        ("root ::= " + '("a" ' * 60 + ")?" * 60, ["", "a", "a" * 60], ["a" * 61]),
    ],
)
def test_languages(grammar, fits, not_):
    vocab = Vocab([bytes([byte]) for byte in range(256)] + [b"</s>"], end_ids=[256])
    guide = Guide(untried("gbnf", grammar), [vocab])

    def accepts(text: str) -> bool:
        outcomes = [*text.encode(), 256]
        return all(
            bits(guide.allowed(0, text.encode()[:n]), 257)[outcome]
            for n, outcome in enumerate(outcomes)
        )

    assert [text for text in fits if not accepts(text)] == []
    assert [text for text in not_ if accepts(text)] == []


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= [a-z] root | ""',
        "root ::= [a-z] root | [a-z]",
        'root ::= ([a-z] root)? | "1"',
        "root ::= x (root)?\nx ::= [a-z]",
        'root ::= x "]"\nx ::= [a-z] ("-" | x | [a-z] x)?',
    ],
)
def test_rules_may_end_with_themselves_for_ever(grammar):
    """Those of llguidance may not."""
    guide = ours(grammar)
    text = b"a" * 5000
    assert bits(guide.allowed(0, text), len(ASCII))[ASCII.index(b"a")]


@pytest.mark.parametrize(
    ("grammar", "what"),
    [
        ("", "line 1: there is no rule 'root'"),
        ('x ::= "a"', "there is no rule 'root'"),
        ('root ::= "a"\n  y', "line 2: '::=' is missing behind 'y'"),
        ('root ::= "a" x\n\n', "line 1: there is no rule 'x'"),
        ('root ::= "a', "a string does not end"),
        ("root ::= [a", "a character class does not end"),
        ("root ::= []", r"'\[\]' matches no character"),
        ("root ::= [z-a]", "the range 'z' to 'a' is empty"),
        (r'root ::= "\q"', r"unknown escape '\\q'"),
        (r'root ::= "\x4"', r"unknown escape '\\x'"),
        ('root ::= "\\', r"unknown escape '\\'"),
        (r'root ::= "\uD800"', r"'\\uD800' is no character"),
        (r'root ::= "\UFFFFFFFF"', "is no character"),
        ('root ::= ("a"', r"'\)' is missing"),
        ('root ::= "a")', r"unexpected '\)'"),
        ("root ::= *", r"unexpected '\*'"),
        ('root ::= "a"{,2}', r"repetitions are \{m\}"),
        ('root ::= "a"{x}', r"repetitions are \{m\}"),
        ("root ::= <[5]>", "tokens cannot be named"),
        ("root ::= !<think>", "tokens cannot be named"),
        ('!root ::= "a"', "a rule begins with its name"),
        ("root ::= " + "(" * 1000, "more than 64 parentheses"),
    ],
)
def test_what_is_wrong_is_said(grammar, what):
    with pytest.raises(ConfigError, match=what) as error:
        gbnf_to_lark(grammar)
    assert error.value.key == "grammar"
    assert str(error.value).startswith("the grammar is wrong in line ")


@given(st.text(st.sampled_from('root ::=x"[]()|*?.{2,}\\\n#^-a<'), max_size=30))
def test_anything_is_a_grammar_or_refused(text):
    for grammar in (text, f"root ::= {text}"):
        try:
            assert gbnf_to_lark(grammar).startswith("start: r0\n")
        except ConfigError as error:
            assert "is wrong in line" in str(error)  # noqa: PT017
