"""The laws of the lockstep engine, on tiny models with different tokenizers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import reference
from lockstep import (
    GREEDY,
    NAMES,
    PAIRS,
    PROMPT,
    PURE,
    SEEDED,
    STEPS,
    TRIPLE,
    Load,
    Models,
    Recording,
    Scripted,
    answer,
    decode,
    may_follow,
    oracle_symbol,
    oracle_vocab,
)
from logitfuse import _core
from logitfuse.errors import (
    FusionError,
)
from logitfuse.llama import LlamaContext
from logitfuse.member import Member
from logitfuse.sampling import SamplingParams
from logitfuse.strategies.fuse import Fuse


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
