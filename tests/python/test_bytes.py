"""The byte strategy on tiny models of every kind of memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import byte_reference
import numpy as np
import pytest
from bigram_members import BigramMember, make_bigram
from lockstep import (
    GREEDY,
    NAMES,
    PAIRS,
    PURE,
    SEEDED,
    TRIPLE,
    Answer,
    Load,
    answer,
    decode,
    may_follow,
)
from logitfuse import _core
from logitfuse.beam import Beam
from logitfuse.errors import ConfigError, ContextLengthError, FusionError, PromptError
from logitfuse.llama import NO_ROOM
from logitfuse.member import Member
from logitfuse.sampling import SamplingParams
from logitfuse.scoring import score_text
from logitfuse.strategies.base import Request
from logitfuse.strategies.bytes import Bytes
from logitfuse.weights import Given

Make = Callable[..., Bytes]
WAYS = [
    {"per": "byte"},
    {"per": "unit"},
    {"tokenisations": "canonical"},
    {"tokenisations": "canonical", "per": "unit"},
]


def pure(seed: int) -> SamplingParams:
    """The pool as it is."""
    return PURE.model_copy(update={"seed": seed})


PURE_1 = pure(1)


@pytest.fixture
def make(load_branching: Load) -> Make:
    """Makes an ensemble of tiny members by name."""
    return lambda *names, **options: Bytes([load_branching(name) for name in names], **options)


@pytest.fixture(scope="module")
def bigrams(tmp_path_factory) -> dict[str, BigramMember]:
    """Bigram models; "twin" has the tokenizer of "gpt2"."""
    folder = tmp_path_factory.mktemp("bigrams")
    return {
        "gpt2": make_bigram(folder, "gpt2", seed=1),
        "twin": make_bigram(folder, "gpt2", seed=2),
        "llama-spm": make_bigram(folder, "llama-spm", seed=3),
        "mamba": make_bigram(folder, "gpt2", seed=4, arch="mamba"),
        "lfm2": make_bigram(folder, "gpt2", seed=5, arch="lfm2"),
    }


def check(said: Answer) -> None:
    """What is true of every answer, besides what `answer` checks."""
    b"".join(said.units).decode("utf-8", "strict" if said.finish == "stop" else "ignore")
    assert all(unit for unit in said.units[:-1])  # nothing comes behind the end
    for step in said.steps:
        assert step.logprob <= 0
        assert any(p > -math.inf for p in step.member_logprobs)


class TestAnswers:
    @pytest.mark.parametrize("way", WAYS, ids=str)
    @pytest.mark.parametrize("names", [*PAIRS, TRIPLE], ids="+".join)
    def test_are_text_and_come_again(self, make, names, way):
        ensemble = make(*names, **way)
        greedy = answer(ensemble, max_tokens=20)
        check(greedy)
        assert answer(ensemble, max_tokens=20) == greedy
        drawn = answer(ensemble, SEEDED, max_tokens=20)
        check(drawn)
        assert answer(ensemble, SEEDED, max_tokens=20) == drawn

    def test_seeds_differ(self, make):
        ensemble = make("smol", "qwen2")
        assert len({answer(ensemble, pure(seed), max_tokens=5).text for seed in range(4)}) > 1

    @pytest.mark.parametrize("name", NAMES)
    def test_every_architecture_alone(self, make, name):
        check(answer(make(name), SEEDED, max_tokens=25, ignore_end=True))

    @pytest.mark.parametrize("prompt", ["Привіт, 😀 сві", "naïve 你", "🤖🤖"])
    @pytest.mark.parametrize("names", PAIRS, ids="+".join)
    def test_other_alphabets(self, make, names, prompt):
        check(answer(make(*names), PURE_1, prompt=prompt, max_tokens=15, ignore_end=True))

    def test_chat(self, make):
        prompt = [{"role": "user", "content": "Hi!"}]
        check(answer(make("smol", "qwen2"), prompt=prompt, max_tokens=8))

    @pytest.mark.parametrize("prompt", ["Once upon a ti", "Once upon ", "Once", "a", " "])
    def test_prompts_that_end_anywhere(self, make, prompt):
        check(answer(make("gpt2", "llama-spm"), prompt=prompt, max_tokens=8))


class TestRequests:
    def test_max_tokens(self, make):
        said = answer(make("gpt2", "smol"), max_tokens=3, ignore_end=True)
        assert (len(said.units), said.finish) == (3, "length")

    def test_stop_strings(self, make):
        ensemble = make("gpt2", "smol")
        free = answer(ensemble, max_tokens=20, ignore_end=True).text
        stop = free[4:6]
        said = answer(ensemble, max_tokens=20, ignore_end=True, stop=(stop,))
        assert (said.text, said.finish) == (free[: free.index(stop)], "stop")

    @pytest.mark.parametrize("way", WAYS, ids=str)
    def test_ignoring_the_end(self, make, way):
        ensemble = make("gpt2", "smol", **way)
        bias = SamplingParams(temperature=0, logit_bias={ensemble.alignment.end: 100.0})
        assert answer(ensemble, bias).units == [b""]
        for sampling in (bias, PURE_1):
            said = answer(ensemble, sampling, max_tokens=10, ignore_end=True)
            assert (all(said.units), said.finish) == (True, "length")

    @pytest.mark.parametrize("sampling", [GREEDY, PURE_1, SEEDED], ids=["greedy", "pure", "seed"])
    def test_top_logprobs(self, make, sampling):
        for step in answer(make("gpt2", "smol"), sampling, max_tokens=6, top_logprobs=4).steps:
            listed = [logprob for _, logprob in step.top]
            assert listed == sorted(listed, reverse=True)
            assert len({unit for unit, _ in step.top}) == 4
            assert step.logprob <= listed[0]
            if sampling is GREEDY:
                assert step.top[0] == (step.unit, step.logprob)
            for unit, logprob in step.top:
                if unit == step.unit:
                    assert logprob == step.logprob

    def test_what_is_drawn_changes_nothing_about_the_best(self, make):
        ensemble = make("gpt2", "smol")
        [best] = answer(ensemble, max_tokens=1, top_logprobs=1).steps[0].top
        for seed in range(5):
            sampling = pure(seed)
            step = answer(ensemble, sampling, max_tokens=1, top_logprobs=1).steps[0]
            assert step.top[0] == (best[0], pytest.approx(best[1]))

    def test_bias_on_a_unit(self, make):
        ensemble = make("gpt2", "smol")
        first = answer(ensemble, max_tokens=1, top_logprobs=10).steps[0]
        known = [
            (unit, symbol)
            for unit, _ in first.top[1:]
            if unit and (symbol := ensemble.alignment.lookup(unit)) is not None
        ]
        unit, symbol = known[-1]
        forced = SamplingParams(temperature=0, logit_bias={symbol: 50.0})
        assert answer(ensemble, forced, max_tokens=1).units == [unit]
        best = ensemble.alignment.lookup(first.unit)
        assert best is not None
        banned = SamplingParams(temperature=0, logit_bias={best: -math.inf})
        assert answer(ensemble, banned, max_tokens=1).units == [first.top[1][0]]

    def test_penalties(self, make):
        sampling = SamplingParams(temperature=0, repeat_penalty=1.5, frequency_penalty=1.0)
        check(answer(make("gpt2", "smol"), sampling, max_tokens=20, ignore_end=True))

    def test_counts(self, make):
        ensemble = make("gpt2", "smol")
        said = answer(ensemble, SEEDED, max_tokens=10)
        stats = ensemble.stats
        assert stats.steps == len(said.units)
        assert stats.votes == [stats.steps] * 2
        assert stats.ends == said.units.count(b"")


class TestLaws:
    @pytest.mark.parametrize("way", WAYS, ids=str)
    def test_weight_0_is_absent(self, make, way):
        for sampling in (GREEDY, PURE_1):
            alone = answer(make("gpt2", **way), sampling)
            weighed = answer(make("gpt2", "smol", weights=[1, 0], **way), sampling)
            assert weighed == alone
            assert all(math.isnan(step.member_logprobs[1]) for step in weighed.steps)

    @pytest.mark.parametrize("way", WAYS, ids=str)
    def test_order_does_not_matter(self, make, way):
        here = make("gpt2", "llama-spm", weights=[0.3, 0.7], **way)
        there = make("llama-spm", "gpt2", weights=[0.7, 0.3], **way)
        for sampling in (GREEDY, PURE_1):
            assert answer(here, sampling).units == answer(there, sampling).units

    @pytest.mark.parametrize("way", WAYS, ids=str)
    def test_identical_members_are_one(self, load_branching, make, way):
        same = [load_branching("gpt2"), load_branching("gpt2", copy=1)]
        ensemble = Bytes(same, weights=[0.2, 0.8], **way)
        for sampling in (GREEDY, PURE_1):
            assert answer(ensemble, sampling).units == answer(make("gpt2", **way), sampling).units


def masked(oracle: Any, before: bytes, unit: bytes, k: int) -> float:
    """Probability of a unit's k-th byte, where only bytes that keep the text valid may follow."""
    row, _ = byte_reference.next_byte(*oracle, before + unit[:k])
    may = [may_follow(unit[:k], bytes([byte])) for byte in range(256)]
    row[:256][~np.array(may)] = 0
    return float(row[unit[k]] / row.sum())


class TestExact:
    """Of bigram models the oracle knows all."""

    # The bigram models have few tokens, so these are a dozen.
    prompts = ("the ca", "the ", "the", "a d", "it’s")

    @pytest.mark.parametrize("prompt", prompts)
    @pytest.mark.parametrize("name", ["gpt2", "llama-spm"])
    def test_healed_prompts(self, bigrams, name, prompt):
        """What follows a prompt does not depend on where its last tokens happen to end."""
        one = bigrams[name]
        beam = Beam(one.member, prune=1e-5, width=32)
        tokens = one.member.tokenize_prompt(prompt)[:5]
        start = beam._heal_from(tokens)
        assert start == 1
        beam.open(tokens, heal=True)
        out = np.empty(_core.BYTE_OUTCOMES, np.float32)
        beam.core.next(out)
        text = one.member.vocab.join(tokens[start:])
        want, _ = byte_reference.next_byte(*one.oracle(tokens[0]), text)
        np.testing.assert_allclose(np.exp(out), want, atol=1e-3, rtol=0.02)

    @pytest.mark.parametrize("name", ["mamba", "lfm2", "gpt2"])
    def test_prompts_as_they_are(self, bigrams, name):
        """Recurrent memories are forked where they are; nor is a chat healed."""
        one = bigrams[name]
        beam = Beam(one.member, prune=1e-5, width=32)
        tokens = one.member.tokenize_prompt("Once upon a time")
        beam.open(tokens, heal=name != "gpt2")
        for text in (b"", b" t", b" th", b" the", b" the c"):
            beam.begin(tokens, start=len(tokens))
            assert beam.push(text) == len(text)
            out = np.empty(_core.BYTE_OUTCOMES, np.float32)
            beam.core.next(out)
            want, _ = byte_reference.next_byte(*one.oracle(tokens[-1]), text)
            np.testing.assert_allclose(np.exp(out), want, atol=1e-3, rtol=0.02)

    @pytest.mark.parametrize("names", [("gpt2",), ("gpt2", "twin"), ("gpt2", "llama-spm")], ids=str)
    @pytest.mark.parametrize("per", ["byte", "unit"])
    def test_units_have_the_pooled_probabilities(self, bigrams, names, per):
        some = [bigrams[name] for name in names]
        weights = [0.25, 0.75][-len(some) :]
        ensemble = Bytes(
            [one.member for one in some],
            weights=weights,
            weigher=Given(weights),
            per=per,
            prune=1e-5,
            width=32,
        )
        prompt = b"the d"
        step = answer(ensemble, prompt=prompt, max_tokens=1, top_logprobs=6).steps[0]
        oracles = []
        for one in some:
            tokens = one.member.tokenize_prompt(prompt)
            oracles.append((one.oracle(tokens[0]), one.member.vocab.join(tokens[1:])))
        shares = np.array(weights) / sum(weights)
        assert len(step.top) == 6
        for unit, logprob in step.top:
            if not unit:
                continue
            table = np.array(
                [
                    [masked(oracle, before, unit, k) for oracle, before in oracles]
                    for k in range(len(unit))
                ]
            )
            want = shares @ table.prod(axis=0) if per == "unit" else (table @ shares).prod()
            assert math.exp(logprob) == pytest.approx(want, rel=0.01)

    def test_one_shared_tokenizer(self, bigrams):
        members = [bigrams[name].member for name in ("gpt2", "twin")]
        ensemble = Bytes(members, prune=0.02, width=8)
        assert ensemble.alignment.identical
        check(answer(ensemble, PURE_1, max_tokens=20))
        symbols = members[0].tokenize_prompt("the cat")
        said = answer(ensemble, prompt=symbols, max_tokens=5)
        check(said)


class TestSilence:
    @pytest.mark.parametrize("way", WAYS, ids=str)
    def test_who_cannot_spell_a_character_comes_back(self, make, way):
        """SmolLM2 cannot spell the byte f1."""
        ensemble = make("gpt2", "smol", **way)
        sampling = SamplingParams(temperature=0, logit_bias={b"\xf1": 60.0})
        said = answer(ensemble, sampling, max_tokens=14)
        assert said.units[0] == b"\xf1"
        text = b""
        for step in said.steps:
            inside = len(decode([text]).encode()) < len(text)
            assert math.isnan(step.member_logprobs[1]) == inside
            assert (step.decision == "led") == inside
            text += step.unit
        assert text.count(b"\xf1") > 1

    @pytest.mark.parametrize(
        "way", [{"prune": 0.1}, {"prune": 0.4, "width": 2}, {"width": 1}], ids=str
    )
    def test_who_lost_all_paths_reads_the_text_again(self, make, way):
        ensemble = make("gpt2", "llama-spm", **way)
        for seed in range(4):
            check(answer(ensemble, pure(seed), max_tokens=30, ignore_end=True))


class TestRoom:
    @pytest.mark.parametrize("way", [*WAYS, {"per": "byte", "prune": 0.003}], ids=str)
    @pytest.mark.parametrize(
        "names", [("gpt2", "llama-spm"), ("mamba", "gpt2"), ("lfm2",)], ids=str
    )
    def test_a_full_context_ends_the_answer(self, load_branching, names, way):
        ensemble = Bytes([load_branching(name, n_ctx=256) for name in names], **way)
        for seed in range(3):
            sampling = pure(seed)
            said = answer(ensemble, sampling, max_tokens=None, ignore_end=True)
            assert said.finish == "length"
            assert len(said.units) > 5
            check(answer(ensemble, sampling, max_tokens=3))  # and the next one is well

    def test_no_cells_are_left(self, wide_models):
        """Paths that part have cells of their own; the next answer does not count on lost ones."""
        member = Member(wide_models["gpt2"], n_threads=1, n_branches=16, n_ctx=256)
        prompt = "Once upon a time"
        engine, codes = Bytes([member], prune=1e-4), []
        decode = member.context.decode_branches

        def noting(*args):
            codes.append(decode(*args))
            return codes[-1]

        member.context.decode_branches = noting
        try:
            for seed in range(30):
                said = answer(engine, pure(seed), prompt=prompt, max_tokens=None, ignore_end=True)
                if codes[-1] == NO_ROOM:
                    break
        finally:
            del member.context.decode_branches
        assert codes[-1] == NO_ROOM
        assert said.finish == "length"
        texts = []
        for _ in range(2):
            texts.append(answer(engine, GREEDY, prompt=prompt + said.text, max_tokens=8).text)
            member.reset()
        assert texts[0] == texts[1]

    @pytest.mark.usefixtures("float_cells")
    def test_small_batches(self, wide_models):
        """A text is read in pieces that the batch has room for."""
        text = "the king and the queen went home and " * 6
        scores = []
        for n_batch in (1, 512):
            options = {"n_threads": 1, "n_branches": 16, "flash_attn": False}
            member = Member(wide_models["gpt2"], n_batch=n_batch, **options)
            steps = list(Bytes([member]).score(Request(text), text))
            assert b"".join(step.unit for step in steps).decode() == text
            bits = score_text(member, text).bits
            scores.append((sum(step.logprob for step in steps), bits))
        assert member.context.n_batch == 512
        assert scores[0] == pytest.approx(scores[1], abs=0.01)

    @pytest.mark.parametrize("n", [240, 254, 255, 256, 300])
    def test_prompts_without_room(self, load_branching, n):
        member = load_branching("gpt2", n_ctx=256)
        with pytest.raises(ContextLengthError):
            answer(Bytes([member]), prompt=" a" * n)

    def test_prompts_with_little_room(self, load_branching):
        member = load_branching("gpt2", n_ctx=256)
        for n in range(110, 130):
            try:
                said = answer(Bytes([member]), PURE_1, prompt="time" * n, max_tokens=None)
            except ContextLengthError:
                return
            assert said.units
        pytest.fail("no prompt was too long")


class TestRefusals:
    @pytest.mark.parametrize("width", [0, -1])
    def test_width(self, make, width):
        with pytest.raises(FusionError, match=f"at least 1 hypothesis, not {width}"):
            make("gpt2", width=width)

    @pytest.mark.parametrize("way", ["all", "canonical"])
    @pytest.mark.parametrize("prune", [0, 1, math.nan])
    def test_prune(self, make, prune, way):
        with pytest.raises(FusionError, match="prune must lie between 0 and 1"):
            make("gpt2", prune=prune, tokenisations=way)

    def test_members_without_branches(self, load, make):
        with pytest.raises(ConfigError, match="needs members with 16 branches; 'gpt2' has 0") as e:
            Bytes([load("gpt2")])
        assert e.value.key == "width"
        with pytest.raises(ConfigError, match="needs members with 18 branches; 'gpt2' has 16"):
            make("gpt2", width=9)
        check(answer(Bytes([load("gpt2")], tokenisations="canonical"), max_tokens=5))

    @pytest.mark.parametrize("key", ["per", "tokenisations"])
    def test_unknown_names(self, make, key):
        with pytest.raises(ConfigError, match="word") as error:
            make("gpt2", **{key: "word"})
        assert error.value.key == key

    @pytest.mark.parametrize("weights", [[1.0], [0, 0], [-1, 2], [math.nan, 1]])
    def test_weights(self, make, weights):
        with pytest.raises(FusionError):
            make("gpt2", "smol", weights=weights)

    def test_nobody(self):
        with pytest.raises(ConfigError, match="at least one member"):
            Bytes([])

    def test_empty_prompts(self, make):
        with pytest.raises(PromptError):
            answer(make("gpt2"), prompt="")

    def test_closing_stops_the_work(self, make):
        ensemble = make("gpt2")
        stream = ensemble.stream(Request("Hi"))
        next(stream)
        stream.close()
        check(answer(ensemble, max_tokens=3))
