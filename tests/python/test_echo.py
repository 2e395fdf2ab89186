"""The log-probabilities of a prompt's tokens are those of the text, wherever its units end."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lockstep import NAMES, PAIRS, PROMPT, TRIPLE, Load
from logitfuse.echo import (
    Cut,
    TokenScore,
    cut_prompt,
    score_prompt,
    score_step,
    score_tokens,
    tokenize,
    tokenizer_info,
)
from logitfuse.errors import PromptError
from logitfuse.scoring import score_reply
from logitfuse.strategies.base import Request, Step
from logitfuse.strategies.bytes import Bytes
from logitfuse.strategies.engine import Engine
from logitfuse.strategies.fuse import Fuse
from logitfuse.strategies.mix import Mix
from logitfuse.weights import Given

TEXT = "Once there was a naïve fox, 7 dogs — and 🤖.\n\n  They don't 你好 stop"
ENSEMBLES = [*PAIRS, TRIPLE, ("gpt2",), ("llama-spm",), ("smol", "smol")]
#: A batch of tokens need not give the bits of single ones.
CLOSE = 2e-3

Make = Callable[..., Engine]


@pytest.fixture
def make(load: Load, load_branching: Load) -> Make:
    """Makes an ensemble of tiny members by strategy and names."""

    def made(strategy: type[Engine], *names: str, **options: Any) -> Engine:
        loaded = load_branching if strategy is Bytes else load
        members = [loaded(name, names[:k].count(name)) for k, name in enumerate(names)]
        return strategy(members, **options)

    return made


every_strategy = pytest.mark.parametrize("strategy", [Fuse, Mix, Bytes])
every_ensemble = pytest.mark.parametrize("names", ENSEMBLES, ids="+".join)


def known(scores: Sequence[TokenScore]) -> list[float]:
    """All log-probabilities but those of tokens that were only read."""
    return [score.logprob for score in scores if score.logprob is not None]


def is_greedy(score: TokenScore) -> bool:
    """As lm-evaluation-harness finds it out."""
    return score.logprob == max(logprob for _, logprob in score.top)


# -- from units to tokens ------------------------------------------------------------------------


def step(unit: bytes, logprob: float, *top: tuple[bytes, float]) -> Step:
    return Step(0, unit, logprob, (logprob,), (unit,), "led", top or ((unit, logprob),))


def cut(*tokens: bytes) -> Cut:
    """Behind one token that is only read."""
    return Cut((b"?", *tokens), 1, b"?", b"".join(tokens))


def pieces(text: bytes) -> st.SearchStrategy[list[bytes]]:
    """Ways to cut a text."""
    places = st.sets(st.integers(1, len(text) - 1)).map(lambda ends: [0, *sorted(ends), len(text)])
    return places.map(lambda ends: [text[a:b] for a, b in itertools.pairwise(ends)])


class TestAttribution:
    @given(pieces(b"abcdefghij"), pieces(b"abcdefghij"), st.randoms(use_true_random=False))
    def test_any_units_in_any_tokens(self, tokens: Any, units: Any, random: Any) -> None:
        steps = []
        for unit in units:
            own, other = -random.random(), -random.random()
            best = sorted([(unit, own), (b"other", other)], key=lambda c: -c[1])
            steps.append(step(unit, own, *best))
        scores = score_tokens(cut(*tokens), steps, 5)
        assert [score.text for score in scores] == [b"?", *tokens]
        assert scores[0] == TokenScore(b"?", None)
        ends_of_tokens = [0, *itertools.accumulate(map(len, tokens))]
        ends_of_units = [0, *itertools.accumulate(map(len, units))]
        common = sorted({*ends_of_tokens} & {*ends_of_units})
        for begin, end in itertools.combinations(common, 2):
            first, last = ends_of_tokens.index(begin), ends_of_tokens.index(end)
            inside = steps[ends_of_units.index(begin) : ends_of_units.index(end)]
            assert math.fsum(known(scores[1:])[first:last]) == pytest.approx(
                math.fsum(s.logprob for s in inside), abs=1e-12
            )
        for score, (begin, end) in zip(scores[1:], itertools.pairwise(ends_of_tokens), strict=True):
            own_steps = [
                s for s, at in zip(steps, ends_of_units[1:], strict=True) if begin < at <= end
            ]
            assert is_greedy(score) == all(s.top[0][0] == s.unit for s in own_steps)
            listed = [logprob for _, logprob in score.top]
            assert listed == sorted(listed, reverse=True)
            assert (score.text, score.logprob) in score.top

    def test_a_unit_of_several_tokens_belongs_to_the_last(self) -> None:
        scores = score_tokens(cut(b"a", b"b", b"c"), [step(b"ab", -1.0), step(b"c", -2.0)], 1)
        assert known(scores) == [0.0, -1.0, -2.0]
        assert scores[1].top == ((b"a", 0.0),)

    def test_what_would_have_come_instead_of_several_units(self) -> None:
        units = [
            step(b"Pa", -0.5, (b"Pa", -0.5), (b"Lo", -1.0)),
            step(b"r", -2.0, (b"n", -0.5), (b"r", -2.0), (b"l", -3.0)),
            step(b"is", -0.1, (b"is", -0.1), (b"k", -3.0)),
        ]
        (_, score) = score_tokens(cut(b"Paris"), units, 3)
        assert score.logprob == pytest.approx(-2.6)
        assert score.top == (
            (b"Pan", -1.0),
            (b"Paris", score.logprob),
            (b"Pal", -3.5),
        )
        (_, score) = score_tokens(cut(b"Pan"), [units[0], step(b"n", -0.5, *units[1].top)], 3)
        assert score.top == ((b"Pan", -1.0), (b"Par", -2.5), (b"Pal", -3.5))

    def test_greedy_stays_greedy_where_scoring_charges(self) -> None:
        charged = step(b"a", -0.701, (b"a", -0.69), (b"b", -0.70))
        (_, score) = score_tokens(cut(b"a"), [charged], 2)
        assert score.top == ((b"a", -0.701),)
        (_, score) = score_tokens(cut(b"b"), [step(b"b", -0.71, *charged.top)], 2)
        assert score.top == ((b"a", -0.69), (b"b", -0.71))

    def test_a_text_may_end_inside_a_unit(self) -> None:
        part = step(b"Pa", -0.2, (b"Paris", -0.5), (b"Rome", -2.0))
        assert is_greedy(score_tokens(cut(b"Pa"), [part], 2)[-1])
        assert not is_greedy(
            score_tokens(cut(b"Pa", b"x"), [step(b"Pa", -0.6, *part.top), step(b"x", -1.0)], 2)[1]
        )

    def test_a_step_of_an_answer_lists_what_was_said(self) -> None:
        drawn = step(b"c", -3.0, (b"a", -0.5), (b"b", -1.0))
        assert score_step(drawn, 2) == TokenScore(b"c", -3.0, (*drawn.top, (b"c", -3.0)))
        assert score_step(drawn, 1).top == ((b"a", -0.5), (b"c", -3.0))
        assert score_step(drawn, 0).top == ((b"c", -3.0),)


# -- how prompts are cut -------------------------------------------------------------------------


class TestCut:
    @every_ensemble
    @every_strategy
    def test_tokens_join_to_the_prompt(
        self, make: Make, strategy: type[Engine], names: tuple[str, ...]
    ) -> None:
        engine = make(strategy, *names)
        symbols = tokenize(engine, TEXT.encode())
        for prompt in (TEXT, TEXT.encode(), symbols):
            found = cut_prompt(engine, prompt)
            spelled = b"".join(found.tokens)
            assert spelled.removeprefix(b" ") == TEXT.encode()
            assert len(found.tokens) == len(symbols)
            assert b"".join(found.tokens[found.n_given :]) == found.text
            assert found.n_given == 1
        assert cut_prompt(engine, TEXT).given == cut_prompt(engine, TEXT).tokens[0]

    @every_strategy
    def test_are_the_scribes(self, make: Make, strategy: type[Engine]) -> None:
        """Of the heaviest member, and of several the one with most tokens."""
        for names, weights, scribe in (
            (("gpt2", "llama-spm"), [1, 1], 0),
            (("llama-spm", "gpt2"), [1, 1], 1),
            (("smol", "gpt2"), [1, 2], 1),
            (("smol", "gpt2", "qwen2"), [0, 1, 1], 2),
        ):
            engine = make(strategy, *names, weights=weights)
            assert engine.scribe == scribe
            member = engine.members[scribe]
            tokens = [member.vocab.token_bytes(t) for t in member.tokenize(TEXT.encode())]
            assert list(cut_prompt(engine, TEXT).tokens) == tokens

    @pytest.mark.parametrize("text", ["日本", "é", "🤖", "a", " ", "\n"])
    @every_ensemble
    def test_some_of_a_text_is_only_read(
        self, make: Make, names: tuple[str, ...], text: str
    ) -> None:
        """At least a character; what is scored begins with one."""
        found = cut_prompt(make(Fuse, *names), text)
        assert isinstance(found.given, bytes)
        assert found.given.decode()
        assert found.given.decode() + found.text.decode() == text

    def test_special_tokens_of_one_vocabulary_are_only_read(self, make: Make) -> None:
        engine = make(Fuse, "smol", "smol")
        marked = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello there"
        found = cut_prompt(engine, marked)
        member = engine.members[0]
        assert len(found.tokens) == len(member.model.tokenize(marked.encode(), parse_special=True))
        assert found.text == b"assistant\nHello there"
        assert found.given == marked.removesuffix(found.text.decode()).encode()
        symbols = tokenize(engine, marked.encode(), special=True)
        again = cut_prompt(engine, symbols)
        assert again.given == tuple(symbols[: found.n_given])
        assert (again.text, again.tokens) == (found.text, found.tokens)

    def test_different_vocabularies_read_them_as_text(self, make: Make) -> None:
        engine = make(Fuse, "smol", "gemma3")
        assert cut_prompt(engine, "<|im_start|>user").n_given == 1

    @pytest.mark.parametrize("name", NAMES)
    def test_a_symbol_begins_documents(self, make: Make, name: str) -> None:
        """What clients that tokenize remotely put before an empty context."""
        for names in ((name,), (name, "gpt2" if name != "gpt2" else "smol")):
            engine = make(Fuse, *names)
            info = tokenizer_info(engine)
            begin = info["bos_token"] or info["eos_token"]
            assert begin is not None
            (symbol,) = tokenize(engine, begin.encode(), special=True)
            found = cut_prompt(engine, [symbol, *tokenize(engine, b"Once upon")])
            assert found.n_given == 1
            assert found.text.strip() == b"Once upon"
            if len(names) == 1:
                assert found.given == (engine.members[0].opening,)
                assert info["chat_template"] == engine.members[0].model.chat_template
            else:
                assert symbol == engine.alignment.end
                assert found.given == b""
                assert info["bos_token"] is info["chat_template"] is None

    @every_ensemble
    def test_a_character_whose_beginning_was_cut_off(
        self, make: Make, names: tuple[str, ...]
    ) -> None:
        engine = make(Fuse, *names)
        symbols = tokenize(engine, "🤖 upon a time".encode())
        begin = engine.alignment.spell(symbols)[0]
        if begin.strip().startswith("🤖".encode()):  # one token
            return
        found = cut_prompt(engine, symbols[1:])
        assert found.text.decode()[-10:] == "pon a time"
        score_prompt(engine, symbols[1:])
        engine.stream(Request(symbols[1:], max_tokens=1)).send(None)

    def test_refusals(self, make: Make) -> None:
        engine = make(Fuse, "gpt2", "llama-spm")
        for prompt in ("", b"", []):
            with pytest.raises(PromptError, match="empty"):
                cut_prompt(engine, prompt)
        with pytest.raises(PromptError, match="0xff"):
            cut_prompt(engine, b"a\xff")
        for symbol in (-1, 10**6):
            with pytest.raises(PromptError, match=f"{symbol}.*tokenize"):
                cut_prompt(engine, [symbol])
            with pytest.raises(PromptError, match=f"{symbol}.*tokenize"):
                next(engine.stream(Request([symbol, 1])))
        spaces = make(Fuse, "llama-spm", "gpt2", weights=[2, 1])
        with pytest.raises(PromptError, match="'llama-spm' cannot spell"):
            cut_prompt(spaces, "a\u2581b")


# -- what they are worth -------------------------------------------------------------------------


class TestPrompts:
    @every_ensemble
    @every_strategy
    def test_sum_to_the_text(
        self, make: Make, strategy: type[Engine], names: tuple[str, ...]
    ) -> None:
        engine = make(strategy, *names)
        found = cut_prompt(engine, TEXT)
        steps = list(engine.score(found.request(3), found.text))
        scores = score_tokens(found, steps, 3)
        assert [score.text for score in scores] == list(found.tokens)
        assert [score.logprob is None for score in scores[:2]] == [True, False]
        assert math.fsum(known(scores)) == pytest.approx(
            math.fsum(step.logprob for step in steps), abs=1e-9
        )
        ends_of_units = set(itertools.accumulate(len(step.unit) for step in steps))
        ends = set(itertools.accumulate(len(score.text) for score in scores[found.n_given :]))
        if strategy is Bytes or engine.alignment.identical:  # else a scribe may not have voted
            assert ends <= ends_of_units
            assert max(known(scores)) < 0
        assert len(ends & ends_of_units) > 0.6 * len(ends)
        for score in scores[found.n_given :]:
            assert (score.text, score.logprob) in score.top

    @pytest.mark.parametrize("way", [{"tokenisations": "canonical"}, {"pool": "log-linear"}])
    def test_other_ways_of_bytes(self, make: Make, way: Any) -> None:
        engine = make(Bytes, "gpt2", "llama-spm", **way)
        scores = score_prompt(engine, TEXT)
        assert all(logprob < 0 for logprob in known(scores))

    @pytest.mark.parametrize(
        ("strategy", "names"),
        [(s, n) for s in (Fuse, Bytes) for n in (("smol",), ("gpt2", "llama-spm"))]
        + [(Bytes, TRIPLE)],
    )
    def test_the_end_of_a_prompt_is_a_reply_to_its_beginning(
        self, make: Make, strategy: type[Engine], names: tuple[str, ...]
    ) -> None:
        """What a harness does: it adds up the tokens behind those of the context.

        Only weights that learn and gates may tell a prompt from a reply; and in ``fuse``, a first
        token that ends inside a token of another member.
        """
        weights = Given([1.0] * len(names))
        options: Any = {"gate": "always"} if strategy is Fuse else {"weigher": weights}
        engine = make(strategy, *names, **options)
        context, reply = "Once there was a fox", " and seven dogs, a naïve 🤖 too"
        n = len(tokenize(engine, context.encode()))
        scores = score_prompt(engine, tokenize(engine, (context + reply).encode()), 1)
        expected = score_reply(engine, Request(context), reply)
        near = CLOSE * len(scores) * (10 if strategy is Bytes else 1)  # what is pruned
        assert math.fsum(known(scores[n:])) == pytest.approx(expected.nats, abs=near)
        assert all(map(is_greedy, scores[n:])) == expected.greedy

    @pytest.mark.parametrize("names", [("smol",), ("gpt2", "llama-spm"), TRIPLE], ids="+".join)
    @every_strategy
    def test_what_the_ensemble_says_is_greedy(
        self, make: Make, strategy: type[Engine], names: tuple[str, ...]
    ) -> None:
        engine = make(strategy, *names)
        context, said = "Once there was a fox", ""
        for _ in range(6):  # one canonical token after another
            step = next(iter(engine.score(Request(context + said), " ")))
            said += step.top[0][0].decode("utf-8", "ignore")
        assert said
        n = len(tokenize(engine, context.encode()))
        scores = score_prompt(engine, context + said, 1)
        greedy = score_reply(engine, Request(context), said).greedy
        assert all(map(is_greedy, scores[n:])) == greedy

    @pytest.mark.parametrize("names", [("smol",), ("gpt2", "llama-spm"), TRIPLE], ids="+".join)
    @every_strategy
    def test_a_document_from_its_beginning(
        self, make: Make, strategy: type[Engine], names: tuple[str, ...]
    ) -> None:
        engine = make(strategy, *names)
        info = tokenizer_info(engine)
        begin = (info["bos_token"] or info["eos_token"] or "").encode()
        symbols = tokenize(engine, begin, special=True) + tokenize(engine, TEXT.encode())
        scores = score_prompt(engine, symbols)
        assert scores[0] == TokenScore(scores[0].text, None)
        nats = score_reply(engine, Request(""), TEXT).nats
        assert math.fsum(known(scores)) == pytest.approx(nats, abs=CLOSE * len(scores))
        assert len(known(scores)) == len(scores) - 1

    def test_tokens_that_nobody_would_cut_so(self, make: Make) -> None:
        """A client may cut a text as it likes: sums over whole units stay what they are."""
        engine = make(Fuse, "gpt2", "gpt2")
        letters = [
            symbol
            for byte in PROMPT.encode()
            if (symbol := engine.alignment.lookup(bytes([byte]))) is not None
        ]
        scores = score_prompt(engine, letters)
        assert [score.text for score in scores] == [bytes([byte]) for byte in PROMPT.encode()]
        nats = score_reply(engine, Request("O"), PROMPT[1:]).nats
        assert math.fsum(known(scores)) == pytest.approx(nats, abs=CLOSE * len(PROMPT))
        assert 0.0 in known(scores)

    def test_one_token(self, make: Make) -> None:
        engine = make(Fuse, "gpt2", "llama-spm")
        (score,) = score_prompt(engine, tokenize(engine, b" the")[:1])
        assert score.logprob is None
        assert np.isclose(len(cut_prompt(engine, "O").tokens), 1)
