"""The laws of the lockstep engine, on tiny models with different tokenizers."""

from __future__ import annotations

import codecs
import functools
import math
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from logitfuse import _core, chat
from logitfuse.alignment import align
from logitfuse.errors import (
    ConfigError,
    ContextLengthError,
    DecodeError,
    FusionError,
    MemberError,
    PromptError,
)
from logitfuse.llama import LlamaContext
from logitfuse.member import Member
from logitfuse.sampling import SamplingParams
from logitfuse.strategies.base import FinishReason, Request, Step
from logitfuse.strategies.fuse import Fuse
from logitfuse.vocab import TokenKind

NAMES = ["gpt2", "llama-spm", "smol", "qwen2", "gemma3", "mamba", "lfm2"]
PAIRS = [("gpt2", "llama-spm"), ("smol", "qwen2"), ("gemma3", "lfm2"), ("mamba", "gpt2")]
TRIPLE = ("gpt2", "llama-spm", "gemma3")
PROMPT = "Once upon a time"
GREEDY = SamplingParams(temperature=0)
PURE = SamplingParams(temperature=1, top_k=0, top_p=1, min_p=0)  # the pool as it is
SEEDED = SamplingParams(seed=7)
STEPS = 40

Load = Callable[..., Member]
Models = Mapping[str, Path]


@dataclass(frozen=True)
class Answer:
    """A whole answer; equal if the same was said."""

    text: str
    units: list[bytes]
    finish: FinishReason | None
    steps: tuple[Step, ...] = field(compare=False)


def request(sampling: SamplingParams = GREEDY, **options: Any) -> Request:
    return Request(**({"prompt": PROMPT, "max_tokens": STEPS} | options), sampling=sampling)


def answer(fuse: Fuse, sampling: SamplingParams = GREEDY, **options: Any) -> Answer:
    """Read a stream to its end, checking what is true of every stream."""
    asked = request(sampling, **options)
    chunks = list(fuse.stream(asked))
    assert [chunk.finish_reason is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    steps = tuple(step for chunk in chunks for step in chunk.steps)
    text = "".join(chunk.text for chunk in chunks)
    units = [step.unit for step in steps]
    finish = chunks[-1].finish_reason
    if finish == "length" or units[-1] == b"":  # not stopped by a string
        assert text == decode(units)
    return Answer(text, units, finish, steps)


def decode(units: Sequence[bytes]) -> str:
    """The text of valid UTF-8, without an unfinished character at its end."""
    return codecs.getincrementaldecoder("utf-8")().decode(b"".join(units))


def may_follow(text: bytes, symbol: reference.Symbol) -> bool:
    """Whether valid UTF-8 that may end inside a character goes on with this symbol."""
    try:
        if isinstance(symbol, str):
            text.decode()
        else:
            decode([text, symbol])
    except UnicodeDecodeError:
        return False
    return True


def oracle_vocab(member: Member) -> tuple[list[bytes], list[str]]:
    """A vocabulary as the oracle wants it."""
    tokens = [member.vocab.token_bytes(i) for i in range(len(member.vocab))]
    return tokens, [TokenKind(kind).name.lower() for kind in member.vocab.kinds]


def oracle_symbol(fuse: Fuse, step: Step) -> reference.Symbol:
    return reference.END if step.symbol == fuse.alignment.end else step.unit


def forbidding_the_end(fuse: Fuse) -> SamplingParams:
    return SamplingParams(temperature=0, logit_bias={fuse.alignment.end: -math.inf})


class Recording(Fuse):
    """Keeps the rows and votes from which each step was made."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.votes: list[list[float]] = []
        self.rows: list[list[Any]] = []
        self._vocabs = [oracle_vocab(member) for member in self.members]

    def _step(self, *args: Any) -> Step:
        self.votes.append(self._gate(self.members, self.weights))
        self.rows.append([member.row.copy() for member in self.members])
        return super()._step(*args)

    def pooled(self, i: int) -> dict[reference.Symbol, float]:
        """What the oracle makes of step `i`."""
        return reference.pool(self.rows[i], self._vocabs, self.votes[i], self.pool)

    def alone(self, i: int, member: int) -> dict[reference.Symbol, float]:
        """What the oracle says of one member in step `i`."""
        return reference.member_logprobs(self.rows[i][member], *self._vocabs[member])


class Scripted(Fuse):
    """Says what it is told, character by character."""

    def __init__(self, *args: Any, script: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._script = iter(script)

    def _step(self, *args: Any) -> Step:
        unit = next(self._script).encode()
        symbol = self.alignment.lookup(unit)
        assert symbol is not None
        return replace(super()._step(*args), symbol=symbol, unit=unit)


@pytest.fixture(scope="module")
def load(tiny_models: Models) -> Load:
    """Loads a tiny member, once for all tests; a second copy if asked for one."""

    @functools.cache
    def loaded(name: str, copy: int = 0) -> Member:
        return Member(tiny_models[name], name=f"{name}-{copy}" if copy else name, n_threads=1)

    return loaded


@pytest.fixture
def fused(load: Load) -> Callable[..., Fuse]:
    """Makes an ensemble of tiny members by name."""
    return lambda *names, **options: Fuse([load(name) for name in names], **options)


@pytest.fixture(params=PAIRS, ids="+".join)
def pair(request: pytest.FixtureRequest, fused: Callable[..., Fuse]) -> Fuse:
    """Two members with different tokenizers."""
    return fused(*request.param)


class TestOneMember:
    @pytest.mark.parametrize("name", NAMES)
    def test_is_that_model(self, load: Load, name: str) -> None:
        fuse = Fuse([load(name)])
        assert answer(fuse, max_tokens=24).units == self.plain(load(name), 24)
        assert set(fuse.stats.decisions) == {"led"}

    @staticmethod
    def plain(member: Member, n: int) -> list[bytes]:
        """The greedy tokens of a plain loop."""
        context = LlamaContext(member.model, n_ctx=member.n_ctx, n_threads=1)
        tokens = member.tokenize_prompt(PROMPT)
        assert context.decode(tokens, 0) == 0
        vocab = oracle_vocab(member)
        units: list[bytes] = []
        while len(units) < n:
            logprobs = reference.member_logprobs(context.row(), *vocab)
            legal = [symbol for symbol in logprobs if may_follow(b"".join(units), symbol)]
            best = max(legal, key=logprobs.__getitem__)
            if best == reference.END:
                return [*units, b""]
            units.append(best)
            token = member.vocab.lookup(best)
            assert context.decode([token], len(tokens)) == 0
            tokens.append(token)
        return units

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "sampled"])
    @pytest.mark.parametrize("pool", ["linear", "log-linear"])
    def test_twice_is_once(
        self, load: Load, name: str, sampling: SamplingParams, pool: str
    ) -> None:
        once = answer(Fuse([load(name)]), sampling)
        for weights in ([1, 1], [0.9, 0.1]):
            twice = Fuse([load(name), load(name, 1)], weights=weights, pool=pool)
            assert answer(twice, sampling).units == once.units


class TestWeights:
    @pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "sampled"])
    @pytest.mark.parametrize("pool", ["linear", "log-linear"])
    @pytest.mark.parametrize("names", [*PAIRS, TRIPLE], ids="+".join)
    def test_order_does_not_matter(
        self,
        fused: Callable[..., Fuse],
        names: tuple[str, ...],
        pool: str,
        sampling: SamplingParams,
    ) -> None:
        weights = [0.5, 0.3, 0.2][: len(names)]
        there = answer(fused(*names, weights=weights, pool=pool), sampling)
        back = answer(fused(*names[::-1], weights=weights[::-1], pool=pool), sampling)
        assert back.units == there.units
        for a, b in zip(there.steps, back.steps, strict=True):
            assert b.logprob == pytest.approx(a.logprob, abs=1e-4)
            assert b.member_logprobs[::-1] == pytest.approx(a.member_logprobs, nan_ok=True)

    @pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "sampled"])
    @pytest.mark.parametrize("names", [*PAIRS, TRIPLE], ids="+".join)
    def test_zero_is_absent(
        self,
        load: Load,
        fused: Callable[..., Fuse],
        names: tuple[str, ...],
        sampling: SamplingParams,
    ) -> None:
        without = answer(fused(*names), sampling)
        absent = load("qwen2", 2)
        with_it = Fuse(
            [absent, *(load(name) for name in names)], weights=[0.0] + [1.0] * len(names)
        )
        assert answer(with_it, sampling).units == without.units
        assert absent.stats.decoded_tokens == 0
        assert with_it.stats.votes[0] == 0

    @pytest.mark.parametrize("name", NAMES)
    def test_zero_for_all_but_one(self, fused: Callable[..., Fuse], name: str) -> None:
        """The one goes on with its own tokens, as if it were alone."""
        other = "gpt2" if name != "gpt2" else "smol"
        alone = answer(fused(name))
        assert answer(fused(other, name, weights=[0, 1])).units == alone.units

    def test_absent_member_does_not_see_the_prompt(self, load: Load, tiny_models: Models) -> None:
        """Its context may be too short, and the end of its transcript stops nothing."""
        short = Member(tiny_models["gpt2"], n_ctx=256, n_threads=1)
        fuse = Scripted([short, load("smol")], weights=[0, 1], script="Hi\nUser:\nMore")
        prompt = [{"role": "user", "content": 300 * " long"}]
        assert answer(fuse, prompt=prompt, max_tokens=13).text == "Hi\nUser:\nMore"

    @pytest.mark.parametrize(
        ("weights", "message"),
        [
            ([1.0], "2"),
            ([1.0, -0.5], "-0.5"),
            ([0.0, 0.0], "above 0"),
            ([math.nan, 1.0], "nan"),
            ([math.inf, 1.0], "inf"),
        ],
    )
    def test_refused(self, fused: Callable[..., Fuse], weights: list[float], message: str) -> None:
        with pytest.raises(FusionError, match=message) as caught:
            fused("gpt2", "smol", weights=weights)
        assert isinstance(caught.value, ValueError)


class TestSteps:
    @pytest.mark.parametrize("names", [*PAIRS, TRIPLE, ("gpt2",)], ids="+".join)
    @pytest.mark.parametrize("gate", ["boundary", "always"])
    @pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "sampled"])
    def test_linear_pool(
        self, load: Load, names: tuple[str, ...], gate: str, sampling: SamplingParams
    ) -> None:
        """Every figure of a step is the oracle's."""
        weights = [0.5, 0.3, 0.2][: len(names)]
        fuse = Recording([load(name) for name in names], weights=weights, gate=gate)
        steps = answer(fuse, sampling, max_tokens=8).steps
        text = b""
        for i, step in enumerate(steps):
            symbol = oracle_symbol(fuse, step)
            pooled = fuse.pooled(i)
            assert step.logprob == pytest.approx(pooled[symbol], abs=1e-4)
            if sampling is GREEDY:
                best = max(p for s, p in pooled.items() if may_follow(text, s))
                assert pooled[symbol] == pytest.approx(best, abs=1e-4)
            for m, logprob in enumerate(step.member_logprobs):
                expected = fuse.alone(i, m).get(symbol, -math.inf)
                voted = fuse.votes[i][m] > 0
                assert logprob == pytest.approx(
                    expected if voted else math.nan, abs=1e-4, nan_ok=True
                )
            text += step.unit
        assert fuse.stats.steps == len(steps)
        assert fuse.stats.votes == np.count_nonzero(fuse.votes, axis=0).tolist()

    @pytest.mark.parametrize("pool", ["linear", "log-linear"])
    @pytest.mark.parametrize("names", [*PAIRS, TRIPLE], ids="+".join)
    def test_best_candidates(self, load: Load, names: tuple[str, ...], pool: str) -> None:
        """The list is the oracle's; the log-linear pool is normalised over what it lists."""
        fuse = Recording([load(name) for name in names], pool=pool, gate="always")
        for i, step in enumerate(answer(fuse, max_tokens=16, top_logprobs=8).steps):
            pooled = fuse.pooled(i)
            units, logprobs = zip(*step.top, strict=True)
            expected = np.array([pooled[unit or reference.END] for unit in units])
            shift = logprobs[0] - expected[0]
            assert (shift >= 0) if pool == "log-linear" else (abs(shift) < 1e-4)
            np.testing.assert_allclose(logprobs, expected + shift, atol=1e-4)
            # What would have broken a character is not listed before what was said.
            best = np.sort([p for p in pooled.values() if p < expected[0] + 1e-5])[::-1]
            np.testing.assert_allclose(expected, best[:8], atol=1e-4)

    def test_lossless_skip(self, load: Load) -> None:
        """Listing candidates forces the full path: the answer is the same."""
        twins = Fuse([load("gpt2"), load("gpt2", 1)])
        unequal = Fuse([load("gpt2"), load("llama-spm")], weights=[0.97, 0.03], gate="always")
        skipped = 0
        for fuse in (twins, unequal):
            fast = answer(fuse, max_tokens=120)
            skipped += fuse.stats.decisions["certain"] + fuse.stats.decisions["agree"]
            full = answer(fuse, max_tokens=120, top_logprobs=1)
            assert full.units == fast.units
            for a, b in zip(fast.steps, full.steps, strict=True):
                assert a.decision == b.decision
                assert a.logprob == pytest.approx(b.logprob, abs=1e-5)
                assert a.member_logprobs == pytest.approx(b.member_logprobs, abs=1e-5, nan_ok=True)
        assert twins.stats.decisions["agree"] > 100
        assert unequal.stats.decisions["certain"] > 5

    def test_decisions_are_about_what_was_said(self, load: Load) -> None:
        """Members that agree on something else have not agreed."""
        twins = Fuse([load("gpt2"), load("gpt2", 1)])
        steps = answer(twins, SamplingParams(temperature=0, logit_bias={" you": 5.0})).steps
        for step in steps:
            agreed = step.wishes == (step.unit, step.unit)
            assert step.decision == ("agree" if agreed else "fused")
        assert len({step.decision for step in steps}) == 2

    def test_stalled_member_abstains_and_comes_back(self, load: Load) -> None:
        """SmolLM2 cannot spell the byte f1."""
        fuse = Fuse([load("gpt2"), load("smol")], gate="always")
        sampling = SamplingParams(temperature=0, logit_bias={b"\xf1": 60.0})
        steps = answer(fuse, sampling, max_tokens=12).steps
        assert steps[0].unit == b"\xf1"
        text = b""
        for step in steps:
            cannot = len(decode([text]).encode()) < len(text)
            assert math.isnan(step.member_logprobs[1]) == cannot
            assert (step.decision == "led") == cannot
            text += step.unit
        assert text.count(b"\xf1") > 1


class TestSampling:
    @pytest.mark.parametrize("sampling", [SEEDED, PURE.model_copy(update={"seed": 3})])
    def test_seed_fixes_the_text(self, pair: Fuse, sampling: SamplingParams) -> None:
        assert answer(pair, sampling) == answer(pair, sampling)

    def test_seeds_differ(self, pair: Fuse) -> None:
        texts = {answer(pair, SamplingParams(seed=seed)).text for seed in range(8)}
        assert len(texts) == 8
        assert answer(pair, SamplingParams()).text != answer(pair, SamplingParams()).text

    @pytest.mark.parametrize("pool", ["linear", "log-linear"])
    def test_every_instruction_set_says_the_same(
        self, fused: Callable[..., Fuse], pool: str
    ) -> None:
        fuse = fused(*TRIPLE, pool=pool)
        usual = _core.isa()
        try:
            answers = []
            for isa in _core.available_isas():
                _core.set_isa(isa)
                answers.append(answer(fuse, SEEDED, top_logprobs=3))
        finally:
            _core.set_isa(usual)
        assert len(set(map(repr, answers))) == 1

    @pytest.mark.parametrize(
        "sampling",
        [PURE, SamplingParams(temperature=0.7, top_k=30, top_p=0.9, min_p=0.02)],
        ids=["pure", "filtered"],
    )
    @pytest.mark.parametrize("pool", ["linear", "log-linear"])
    def test_draws_follow_the_pool(self, load: Load, pool: str, sampling: SamplingParams) -> None:
        """Chi-square of the first symbol, over fixed seeds."""
        fuse = Recording([load("gpt2"), load("llama-spm")], pool=pool, gate="always")
        answer(fuse, max_tokens=1)
        options = sampling.model_dump(include={"temperature", "top_k", "top_p", "min_p"})
        expected = self.expected(fuse.pooled(0), options)
        plain = Fuse(fuse.members, pool=pool, gate="always")
        n = 3000
        counts: Counter[reference.Symbol] = Counter()
        for seed in range(n):
            drawn = answer(plain, sampling.model_copy(update={"seed": seed}), max_tokens=1)
            counts[oracle_symbol(plain, drawn.steps[0])] += 1
        assert counts.keys() <= expected.keys()
        often = [symbol for symbol, p in expected.items() if n * p >= 10]
        observed = np.array([counts[symbol] for symbol in often])
        mean = n * np.array([expected[symbol] for symbol in often])
        observed = np.append(observed, n - observed.sum())
        mean = np.append(mean, max(n - mean.sum(), 1e-9))
        chi_square = np.sum((observed - mean) ** 2 / np.maximum(mean, 1.0))
        freedom = len(often)
        assert freedom > 8
        assert chi_square < freedom + 4 * math.sqrt(2 * freedom)

    @staticmethod
    def expected(
        pooled: Mapping[reference.Symbol, float], options: Mapping[str, Any]
    ) -> dict[reference.Symbol, float]:
        """The oracle's probabilities of the first symbol."""
        if options["top_k"] == 0:  # no filters: what would break a character is just left out
            pooled = {symbol: p for symbol, p in pooled.items() if may_follow(b"", symbol)}
        symbols = list(pooled)
        kept, shares = reference.sample_filter(list(pooled.values()), **options)
        expected: Counter[reference.Symbol] = Counter()
        for symbol, share in zip([symbols[k] for k in kept], shares, strict=True):
            if may_follow(b"", symbol):
                expected[symbol] += share
                continue
            # Drawn and rejected: the filters look at the others again.
            others = {other: p for other, p in pooled.items() if other != symbol}
            for other, p in TestSampling.expected(others, options).items():
                expected[other] += share * p
        return expected

    def test_bias_forces_and_forbids(self, pair: Fuse) -> None:
        free = answer(pair).units
        forced = answer(pair, SamplingParams(temperature=0, logit_bias={"x": 100.0}))
        assert forced.units == [b"x"] * STEPS
        first = pair.alignment.lookup(free[0])
        barred = SamplingParams(temperature=0, logit_bias={first: -math.inf})
        assert free[0] not in answer(pair, barred).units

    def test_bias_forbids_all_of_the_best(self, load: Load) -> None:
        """More than are listed at first: the next best is said, and that is found."""
        fuse = Recording([load("gpt2"), load("llama-spm")], gate="always")
        answer(fuse, max_tokens=1)
        ranked = sorted(fuse.pooled(0).items(), key=lambda item: -item[1])
        barred = [symbol for symbol, _ in ranked[:300]]
        bias = {
            fuse.alignment.end if symbol == reference.END else symbol: -math.inf
            for symbol in barred
        }
        said = answer(fuse, SamplingParams(temperature=0, logit_bias=bias), max_tokens=1)
        best = next(symbol for symbol, _ in ranked[300:] if may_follow(b"", symbol))
        assert oracle_symbol(fuse, said.steps[0]) == best

    @pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty", "repeat_penalty"])
    def test_penalties_end_repetition(self, fused: Callable[..., Fuse], penalty: str) -> None:
        fuse = fused("gpt2", "llama-spm")
        free = answer(fuse, max_tokens=100).units
        assert len(set(free)) < 100
        sampling = SamplingParams(temperature=0, penalty_last_n=200, **{penalty: 100.0})
        assert len(set(answer(fuse, sampling, max_tokens=100).units)) == 100

    def test_penalties_see_the_prompt(self, fused: Callable[..., Fuse]) -> None:
        fuse = fused("gpt2", "llama-spm")
        echo = SamplingParams(temperature=0, logit_bias={" you": 20.0}, presence_penalty=100.0)
        assert answer(fuse, echo, prompt="To", max_tokens=1).units == [b" you"]
        assert answer(fuse, echo, prompt="To you", max_tokens=1).units != [b" you"]


class TestStop:
    def test_anywhere_in_the_text(self, pair: Fuse) -> None:
        """Across borders of tokens, inside tokens, inside and around multi-byte characters."""
        whole = answer(pair, max_tokens=60).text
        assert len(whole) > 50
        for begin in range(0, len(whole) - 6, 5):
            for length in (1, 2, 6):
                stop = whole[begin : begin + length]
                stopped = answer(pair, max_tokens=60, stop=(stop,))
                assert stopped.text == whole[: whole.index(stop)]
                assert stopped.finish == "stop"

    def test_multi_byte_characters(self, fused: Callable[..., Fuse]) -> None:
        """Written byte by byte."""
        fuse = fused("gpt2", "smol")
        bias = {"Ы".encode()[:1]: 90.0, "Ы".encode()[1:]: 60.0, fuse.alignment.end: -60.0}
        sampling = SamplingParams(temperature=0, logit_bias=bias)
        free = answer(fuse, sampling)
        assert free.text == "Ы" * (STEPS // 2)
        for stop in ("Ы", "ЫЫЫ"):
            stopped = answer(fuse, sampling, stop=(stop,))
            assert (stopped.text, stopped.finish) == ("", "stop")
            assert stopped.units == free.units[: 2 * len(stop)]
        assert answer(fuse, sampling, stop=("Ыb", "\u0451")).text == free.text

    def test_the_first_of_several(self, pair: Fuse) -> None:
        whole = answer(pair).text
        stops = (whole[30:34], whole[12:15], whole[20:21], "not in it at all")
        stopped = answer(pair, stop=stops)
        assert stopped.text == whole[: min(whole.find(stop) for stop in stops[:3])]

    def test_none_of_them(self, pair: Fuse) -> None:
        whole = answer(pair)
        almost = whole.text[-4:] + "no"
        without = answer(pair, stop=(almost, whole.text[5:9] + "no"))
        assert without == whole

    def test_at_the_very_start(self, pair: Fuse) -> None:
        whole = answer(pair).text
        stopped = answer(pair, stop=(whole[:2],))
        assert (stopped.text, stopped.finish) == ("", "stop")

    def test_end_symbol(self, pair: Fuse) -> None:
        bias = SamplingParams(temperature=0, logit_bias={pair.alignment.end: 100.0})
        ended = answer(pair, bias)
        assert (ended.text, ended.units, ended.finish) == ("", [b""], "stop")

    def test_end_never_cuts_a_character(self, pair: Fuse) -> None:
        reasons = set()
        for seed in range(30):
            sampling = SamplingParams(
                temperature=1.5,
                top_p=1,
                min_p=0,
                top_k=0,
                seed=seed,
                logit_bias={pair.alignment.end: 5.0},
            )
            said = answer(pair, sampling, max_tokens=12)
            reasons.add(said.finish)
            if said.finish == "stop":
                assert b"".join(said.units).decode() == said.text
        assert reasons == {"stop", "length"}

    @pytest.mark.parametrize("n", [1, 2, 5])
    def test_max_tokens(self, pair: Fuse, n: int) -> None:
        said = answer(pair, max_tokens=n)
        assert said.units == answer(pair).units[:n]
        assert said.finish == "length"

    @pytest.mark.parametrize("names", [("gpt2",), ("gpt2", "llama-spm"), ("mamba", "gemma3")])
    def test_context_is_full(self, tiny_models: Models, names: tuple[str, ...]) -> None:
        """The text is kept, and the next request works."""
        fuse = Fuse([Member(tiny_models[name], n_ctx=256, n_threads=1) for name in names])
        sampling = forbidding_the_end(fuse)
        short = answer(fuse, sampling, max_tokens=20)
        full = answer(fuse, sampling, max_tokens=None)
        assert full.finish == "length"
        assert full.units[:20] == short.units
        assert 250 <= max(member.n_tokens for member in fuse.members) <= 256
        assert answer(fuse, sampling, max_tokens=20) == short

    def test_text_is_always_valid(self, pair: Fuse) -> None:
        """Random models would write bytes in any order; `answer` checks."""
        odd = 0
        for seed in range(12):
            sampling = SamplingParams(seed=seed, temperature=3.0, top_k=0, top_p=1, min_p=0)
            odd += any(not may_follow(b"", unit) for unit in answer(pair, sampling).units)
        assert odd


class TestInterruption:
    def test_closing_early(self, pair: Fuse) -> None:
        whole = answer(pair)
        stream = pair.stream(request())
        said = "".join(next(stream).text for _ in range(5))
        stream.close()
        assert whole.text.startswith(said)
        assert answer(pair) == whole

    @pytest.mark.parametrize("failing", [0, 1])
    @pytest.mark.parametrize("after", [0, 1, 7])
    def test_a_member_fails(self, pair: Fuse, failing: int, after: int) -> None:
        """The error keeps the text; the next request works."""
        whole = answer(pair)
        streamed, error = self.interrupt(pair, failing, after, lambda: -3, DecodeError)
        assert (error.member, error.code) == (pair.members[failing].name, -3)
        said = len(streamed) + (after > 0)  # the last step was chosen but not streamed
        assert error.text == decode(whole.units[:said])
        assert error.text.startswith("".join(streamed))
        assert answer(pair) == whole

    def test_logits_of_nothing_but_nan(self, pair: Fuse, monkeypatch: pytest.MonkeyPatch) -> None:
        """A broken model is named, its text is kept; the next request works."""
        whole = answer(pair)
        broken = pair.members[1]
        row = np.full(len(broken.vocab), np.nan, np.float32)
        streamed = []
        chunks = pair.stream(request(max_tokens=STEPS))
        for _ in range(3):
            streamed.append(next(chunks).text)
        rest = (streamed.append(chunk.text) for chunk in chunks)
        with monkeypatch.context() as patch:
            patch.setattr(broken.context, "row", lambda _back=1: row)
            patch.setattr(broken, "boundary", 1.0)
            with pytest.raises(MemberError, match="NaN") as caught:
                list(rest)
        assert caught.value.member == broken.name
        assert caught.value.text.startswith("".join(streamed))
        assert answer(pair) == whole

    def test_what_a_stop_string_held_back_is_kept(self, fused: Callable[..., Fuse]) -> None:
        fuse = fused("gpt2", "llama-spm")
        whole = answer(fuse)
        stop = decode(whole.units[:7]) + "no"
        options = {"stop": (stop,)}
        streamed, error = self.interrupt(fuse, 0, 4, lambda: -3, DecodeError, **options)
        assert "".join(streamed) == ""
        assert error.text == decode(whole.units[: len(streamed) + 1])

    @pytest.mark.parametrize("failing", [0, 1])
    def test_an_exception_in_a_thread(self, pair: Fuse, failing: int) -> None:
        def interrupted() -> int:
            raise KeyboardInterrupt

        whole = answer(pair)
        self.interrupt(pair, failing, 5, interrupted, KeyboardInterrupt)
        assert answer(pair) == whole

    def test_no_member_is_left_half_way(self, fused: Callable[..., Fuse]) -> None:
        """The error waits for those that still decode."""
        fuse = fused("gpt2", "llama-spm")
        slow = fuse.members[1].context
        original = slow.decode
        done = []

        def decode_slowly(*args: Any, **kwargs: Any) -> int:
            time.sleep(0.02)
            code = original(*args, **kwargs)
            done.append(code)
            return code

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(slow, "decode", decode_slowly)
            self.interrupt(fuse, 0, 0, lambda: -3, DecodeError)
            assert len(done) == 2  # another prompt, and this one

    @pytest.mark.skipif(sys.platform == "win32", reason="cannot send itself a Ctrl-C")
    @pytest.mark.parametrize("names", [("gpt2",), ("gpt2", "llama-spm"), ("mamba", "gemma3")])
    @pytest.mark.parametrize("after", [0, 4])
    def test_ctrl_c(self, fused: Callable[..., Fuse], names: tuple[str, ...], after: int) -> None:
        """The main thread is interrupted while the members decode."""
        fuse = fused(*names)
        whole = answer(fuse)

        def press() -> int:
            os.kill(os.getpid(), signal.SIGINT)
            return 0

        self.interrupt(fuse, 0, after, press, KeyboardInterrupt)
        assert answer(fuse) == whole

    @staticmethod
    def interrupt(
        fuse: Fuse,
        failing: int,
        after: int,
        event: Callable[[], int],
        error: type[BaseException],
        **options: Any,
    ) -> tuple[list[str], Any]:
        """Let something happen in one member's decode after so many calls.

        Returns what was streamed before, and the error.
        """
        context = fuse.members[failing].context
        original = context.decode
        calls = 0

        def decode(*args: Any, **kwargs: Any) -> int:
            nonlocal calls
            calls += 1
            if calls != after + 1:
                return original(*args, **kwargs)
            code = event()
            return original(*args, **kwargs) if code == 0 else code

        for member in fuse.members:
            member.begin(member.tokenize_prompt("Something else"))
        streamed: list[str] = []
        chunks = (streamed.append(chunk.text) for chunk in fuse.stream(request(**options)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(context, "decode", decode)
            with pytest.raises(error) as caught:
                list(chunks)
        return streamed, caught.value


class TestChat:
    MESSAGES = ({"role": "user", "content": "What is a fjord?"},)

    def test_every_member_has_its_own_prompt(self, fused: Callable[..., Fuse]) -> None:
        fuse = fused("smol", "gpt2")
        answer(fuse, prompt=self.MESSAGES, max_tokens=1)
        for member in fuse.members:
            rendered = chat.render(member.model, self.MESSAGES)
            assert list(member.tokens) == member.tokenize_prompt(rendered.text)

    def test_a_transcript_ends_where_the_user_would_speak(self, load: Load) -> None:
        fuse = Scripted([load("smol"), load("gpt2")], script="Hi\nUser:\nMore")
        said = answer(fuse, prompt=self.MESSAGES)
        assert (said.text, said.finish) == ("Hi", "stop")

    def test_a_template_has_no_stop_strings(self, load: Load) -> None:
        fuse = Scripted([load("smol")], script="Hi\nUser:\nMore")
        assert answer(fuse, prompt=self.MESSAGES, max_tokens=13).text == "Hi\nUser:\nMore"

    def test_refusals_come_before_the_first_chunk(self, pair: Fuse) -> None:
        for prompt in ("", b"", [], b"\xff", [{"role": "bot", "content": ""}], ["hello"]):
            with pytest.raises(PromptError):
                next(pair.stream(request(prompt=prompt)))
        assert answer(pair, max_tokens=3).steps

    def test_long_prompt(self, pair: Fuse) -> None:
        with pytest.raises(ContextLengthError) as caught:
            next(pair.stream(request(prompt=1000 * "All work and no play. ")))
        member = next(m for m in pair.members if m.name == caught.value.member)
        assert caught.value.n_ctx == member.n_ctx < caught.value.n_tokens
        assert answer(pair, max_tokens=3).steps


class TestRefusals:
    def test_pool(self, fused: Callable[..., Fuse]) -> None:
        with pytest.raises(FusionError, match="geometric"):
            fused("gpt2", pool="geometric")

    def test_gate(self, fused: Callable[..., Fuse]) -> None:
        with pytest.raises(ConfigError, match="'never'; known: boundary, always") as caught:
            fused("gpt2", gate="never")
        assert caught.value.key == "gate"

    @pytest.mark.parametrize("n", [0, -1])
    def test_max_tokens(self, n: int) -> None:
        with pytest.raises(ConfigError, match="max_tokens must be at least 1"):
            Request(PROMPT, max_tokens=n)

    def test_no_members(self) -> None:
        with pytest.raises(ConfigError, match="at least one"):
            Fuse([])

    @pytest.mark.parametrize("key", ["no member says this in one piece", -1, 10**6, b"\xff\xff"])
    def test_bias(self, pair: Fuse, key: int | str | bytes) -> None:
        with pytest.raises(FusionError, match="logit bias"):
            next(pair.stream(request(SamplingParams(logit_bias={key: 1.0}))))

    def test_everything_is_forbidden(self, fused: Callable[..., Fuse]) -> None:
        fuse = fused("gpt2")
        bias = dict.fromkeys(range(len(align([fuse.members[0].vocab]))), -math.inf)
        with pytest.raises(FusionError):
            next(fuse.stream(request(SamplingParams(temperature=0, logit_bias=bias))))
