"""What may follow a text, against the words that a grammar allows."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from constraints import LETTERS, bits, languages, may_come, one_of, untried
from hypothesis import given
from hypothesis import strategies as st
from logitfuse.constraint import Constraint
from logitfuse.errors import ConfigError
from logitfuse.guide import Guide, Lexicon, prepare
from logitfuse.vocab import TokenKind, Vocab
from strategies_core import kinds


@st.composite
def vocabs(draw: st.DrawFn) -> Vocab:
    """Vocabularies of pieces of words, of pieces of letters, and of tokens that say nothing."""
    letters = LETTERS.encode()
    pieces = st.text(st.sampled_from(LETTERS), max_size=3).map(str.encode)
    bytes_ = st.lists(st.sampled_from(letters), max_size=3).map(bytes)
    tokens = draw(st.lists(st.tuples(pieces | bytes_, kinds), max_size=12))
    tokens.append((b"a", TokenKind.TEXT))
    return Vocab([token for token, _ in tokens], [kind for _, kind in tokens])


def lark(words: set[str]) -> Constraint:
    return untried("lark", "start: " + " | ".join(json.dumps(word) for word in sorted(words)))


def gbnf(words: set[str]) -> Constraint:
    return untried("gbnf", "root ::= " + " | ".join(f'"{word}"' for word in sorted(words)))


@given(languages, st.lists(vocabs(), min_size=1, max_size=2), st.data())
@pytest.mark.parametrize("make", [one_of, gbnf])
def test_what_may_follow(make, words, members, data):
    """In any order of texts, also such as are taken back."""
    guide = Guide(make(words), members)
    beginnings = sorted({word.encode()[:n] for word in words for n in range(17)})
    for text in data.draw(st.lists(st.sampled_from(beginnings), max_size=8)):
        for m, vocab in enumerate(members):
            assert bits(guide.allowed(m, text), len(vocab)) == may_come(vocab, words, text)
            assert guide.complete(m, text) == all(
                word.encode() == text for word in words if word.encode().startswith(text)
            )


@given(st.sets(st.text(st.sampled_from(LETTERS + '"\\\n/}'), max_size=4), min_size=1, max_size=4))
def test_an_enum_of_any_strings(words):
    schema = untried("schema", json.dumps({"enum": sorted(words)}))
    vocab = Vocab([bytes([byte]) for byte in range(256)])
    guide = Guide(schema, [vocab])
    for word in words:
        said = json.dumps(word, ensure_ascii=False).encode()
        for n in range(len(said)):
            assert bits(guide.allowed(0, said[:n]), 256)[said[n]]
        assert guide.complete(0, said)


@pytest.mark.parametrize(
    ("regex", "text"),
    [
        ("a\nb", "a\nb"),
        (r"a\nb", "a\nb"),
        ("a/b", "a/b"),
        (r"a\/b", "a/b"),
        (r"\\/", "\\/"),
        ("^a$", "a"),
        (" a #b", " a #b"),
        ('"a"', '"a"'),
        ("(?i)aB", "Ab"),
        ("(?x) a # b\n", "a"),
        ("[/]", "/"),
        (r"\x{e9}|[^\x{0}-\x{7f}]", "é"),
    ],
)
def test_regexes_of_odd_characters(regex, text):
    vocab = Vocab([bytes([byte]) for byte in range(256)])
    guide, said = Guide(untried("regex", regex), [vocab]), text.encode()
    for n in range(len(said)):
        assert bits(guide.allowed(0, said[:n]), 256)[said[n]]
    assert guide.complete(0, said)


def test_all_ends_and_equal_tokens_may_come():
    vocab = Vocab([b"a", b"<end>", b"a", b"</s>", b"b"], end_ids=[1, 3])
    guide = Guide(untried("regex", "ab?"), [vocab])
    assert bits(guide.allowed(0, b""), 5) == [True, False, True, False, False]
    assert bits(guide.allowed(0, b"a"), 5) == [False, True, False, True, True]
    assert not guide.complete(0, b"a")
    assert guide.complete(0, b"ab")


def test_what_no_member_spells_is_no_end():
    """That nothing but the end may follow does not depend on the vocabulary."""
    guide = Guide(untried("regex", "a(bc)?"), [Vocab([b"a", b"</s>"], end_ids=[1])])
    assert bits(guide.allowed(0, b"a"), 2) == [False, True]
    assert not guide.complete(0, b"a")


@pytest.mark.parametrize("token", [b"\xff", b"\xffa", b"<tool>", b"\x00"])
def test_tokens_that_mean_something_to_the_library(token):
    vocab = Vocab([b"a", token])
    guide = Guide(untried("regex", "a"), [vocab])
    assert bits(guide.allowed(0, b""), 2) == [True, False]


def test_blanks_do_not_go_on_for_ever():
    vocab = Vocab([bytes([byte]) for byte in range(256)])
    guide = Guide(untried("schema", '{"type": "array"}'), [vocab])

    def accepts(text: bytes) -> bool:
        places = range(len(text))
        return all(bits(guide.allowed(0, text[:n]), 256)[text[n]] for n in places)

    assert accepts(b'[\n\n    1,\n\t"a", {"b" : [ ]}]')
    assert not accepts(b"[  1")
    assert not accepts(b"[\n\n\n1")
    assert not accepts(b"[\n" + b" " * 21)
    loose = '{"type": "array", "x-guidance": {"whitespace_pattern": " *"}}'
    guide = Guide(untried("schema", loose), [vocab])
    assert accepts(b"[" + b" " * 100 + b"1")
    compact = '{"type": "array", "x-guidance": {"whitespace_flexible": false}}'
    guide = Guide(untried("schema", compact), [vocab])
    assert accepts(b"[1,2]")
    assert not accepts(b"[1, 2]")


def test_texts_that_do_not_fit():
    guide = Guide(untried("regex", "ab"), [Vocab([b"a", b"b"])])
    with pytest.raises(ConfigError, match="cannot be followed behind byte 2 of the reply") as error:
        guide.allowed(0, b"ac")
    assert error.value.key == "grammar"


@pytest.mark.parametrize(
    ("grammar", "text", "reason"),
    [
        ('start: "a" dead\ndead: "b" dead2\ndead2: dead2 "c"', b"ab", "no text fits it"),
        ('start: "a" <[0]>', b"aa", "cannot be followed behind byte 2"),  # a token by its number
        ('start: s\ns: "a" s | ""', b"a" * 3000, "has 2001 items; max is 2000"),
    ],
)
def test_grammars_that_fail_on_the_way(grammar, text, reason):
    guide = Guide(untried("lark", grammar), [Vocab([b"a", b"b", b"c"])])
    guide.allowed(0, text[:1])
    with pytest.raises(ConfigError, match=reason):
        guide.allowed(0, text)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads that compile grammars, once for each that they do."""
    threads = []
    compile_ = Lexicon._compile

    def counted(self: Lexicon, grammar: str) -> object:
        threads.append(threading.get_ident())
        return compile_(self, grammar)

    monkeypatch.setattr(Lexicon, "_compile", counted)
    return threads


def test_what_is_prepared_is_not_compiled_again(compiled):
    members = [Vocab([b"a", b"b"]), Vocab([b"ab", b"a"])]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(8):
            threads.submit(prepare, untried("regex", "a+b"), members)
    assert len(compiled) == 2
    assert threading.get_ident() not in compiled
    one, other = (Guide(untried("regex", "a+b"), members) for _ in range(2))
    assert bits(one.allowed(0, b"a"), 2) == [True, True]
    assert bits(other.allowed(0, b""), 2) == [True, False]  # nobody else's text matters
    assert bits(one.allowed(1, b""), 2) == [True, True]
    assert len(compiled) == 2
    Guide(untried("regex", "a+"), members).allowed(0, b"")
    assert len(compiled) == 3


def test_few_grammars_stay_compiled(compiled):
    vocab = Vocab([b"a"])
    for n in range(40):
        prepare(untried("regex", f"a{{{n + 1}}}"), [vocab])
    prepare(untried("regex", "a{40}"), [vocab])
    assert len(compiled) == 40
    prepare(untried("regex", "a{1}"), [vocab])
    assert len(compiled) == 41


def test_nothing_is_prepared_for_nothing():
    prepare(None, [Vocab([b"a"])])
    prepare(untried("lark", "start: nothing"), [Vocab([b"a"])])  # guides say so
    with pytest.raises(ConfigError, match="unknown name"):
        Guide(untried("lark", "start: nothing"), [Vocab([b"a"])]).allowed(0, b"")


def test_a_vocabulary_has_one_lexicon():
    vocab = Vocab([bytes([a, b]) for a in range(256) for b in range(64)])
    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(lambda _: id(vocab.lexicon), range(8)))) == 1
