"""Teacher forcing: what a strategy gives a text is what it would have said it with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import byte_reference
import numpy as np
import pytest
from bigram_members import CAREFUL, BigramMember, make_bigram
from lockstep import GREEDY, NAMES, PAIRS, PROMPT, PURE, TRIPLE, Load, answer, oracle_vocab, request
from logitfuse import _core
from logitfuse.errors import ContextLengthError, FusionError, PromptError
from logitfuse.gates import make_solo
from logitfuse.member import Member
from logitfuse.pooling import POOLS, PoolOptions
from logitfuse.scoring import score_reply
from logitfuse.strategies.bytes import Bytes
from logitfuse.strategies.engine import Engine
from logitfuse.strategies.fuse import Fuse
from logitfuse.strategies.mix import Mix
from logitfuse.weights import Given

TEXT = " there was a naïve fox, 7 dogs — and 🤖."
#: A batch of tokens need not give the bits of single ones.
CLOSE = 2e-3
ASCII = " there was a fox, 7 dogs and a cat."
PLAIN = ("text", "byte")

Make = Callable[..., Engine]


@pytest.fixture
def make(load: Load, load_branching: Load) -> Make:
    """Makes an ensemble of tiny members by strategy and names."""

    def made(strategy: type[Engine], *names: str, **options: object) -> Engine:
        loaded = load_branching if strategy is Bytes else load
        return strategy([loaded(name) for name in names], **options)  # type: ignore[arg-type]

    return made


@pytest.fixture(scope="module")
def bigrams(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BigramMember]:
    """Models of which the oracle knows all."""
    folder = tmp_path_factory.mktemp("bigrams")
    return {name: make_bigram(folder, name, seed=1) for name in ("gpt2", "llama-spm")}


def canonical_nats(member: Member, prompt: str, text: str) -> float:
    """Log-probability of a member's own tokens of a text, one at a time.

    Twins are summed; control tokens are no part of it.
    """
    spelled, kinds = oracle_vocab(member)
    begin, tokens = member.tokenize_prompt(prompt), member.tokenize(text.encode())
    member.begin(begin)
    nats = 0.0
    for token in tokens:
        row = np.array(member.row, np.float64)
        row[~np.isin(kinds, (*PLAIN, "end"))] = -np.inf
        twins = [i for i, own in enumerate(spelled) if own == spelled[token] and kinds[i] in PLAIN]
        nats += np.logaddexp.reduce(row[twins]) - np.logaddexp.reduce(row)
        member.append(token)
    return nats


class TestTokens:
    @pytest.mark.parametrize("name", NAMES)
    def test_one_member_gives_its_own_tokens_their_probability(self, load, name):
        member = load(name)
        score = score_reply(Fuse([member]), request(), TEXT)
        assert b"".join(step.unit for step in score.steps) == TEXT.encode()
        assert score.n_bytes == len(TEXT.encode())
        nats = canonical_nats(member, PROMPT, TEXT)
        assert score.nats == pytest.approx(nats, abs=CLOSE * len(score.steps))

    @pytest.mark.parametrize("names", [*PAIRS, TRIPLE], ids="+".join)
    @pytest.mark.parametrize("pool", ["linear", "log-linear", "power", "product"])
    def test_units_join_to_the_text(self, make, names, pool):
        score = score_reply(make(Fuse, *names, pool=pool), request(), TEXT)
        assert b"".join(step.unit for step in score.steps) == TEXT.encode()
        assert -math.inf < score.nats < 0
        assert score.nats == math.fsum(step.logprob for step in score.steps)

    @pytest.mark.parametrize("pool", POOLS)
    @pytest.mark.parametrize("union_top", [0, 10])
    def test_steps_are_what_the_pool_says_of_all_symbols(self, make, pool, union_top):
        weights = [1.0, 0.5]
        options = PoolOptions(pool, plausibility=1e-30, union_top=union_top)
        fuse = make(Fuse, "gpt2", "llama-spm", pool=options, weights=weights)
        wanted = replace(request(), top_logprobs=3)
        for step in fuse.score(wanted, ASCII):
            listed = fuse._pool.candidates(_core.ALL, [step.symbol])
            logprobs = dict(zip(listed.symbols.tolist(), listed.logprobs.tolist(), strict=True))
            assert step.logprob == pytest.approx(logprobs[step.symbol], abs=1e-5)
            spelled = ((fuse.alignment.symbol_bytes(s), p) for s, p in logprobs.items())
            whole = [(unit, p) for unit, p in spelled if _core.continues_utf8(b"", unit)]
            assert [unit for unit, _ in step.top] == [unit for unit, _ in whole[:3]]
            best = [p for _, p in whole[:3]]
            assert [p for _, p in step.top] == pytest.approx(best, abs=1e-5)

    def test_a_text_that_the_pool_rules_out(self, make):
        options = PoolOptions("contrast", plausibility=1.0)
        fuse = make(Fuse, "gpt2", "llama-spm", pool=options, weights=[1, -0.5])
        with pytest.raises(FusionError, match="contrast pool gives the text no probability at b'"):
            score_reply(fuse, request(), TEXT)

    @pytest.mark.parametrize("names", [("smol",), ("gpt2", "llama-spm")], ids="+".join)
    def test_what_was_drawn_is_scored_as_it_was(self, steady, names):
        """With the same cuts, the steps are those of the answer."""
        fuse = Fuse([steady(name) for name in names])
        compared = 0
        for seed in range(6):
            said = answer(
                fuse, PURE.model_copy(update={"seed": seed}), max_tokens=6, ignore_end=True
            )
            text = b"".join(said.units)
            if _core.unfinished_utf8(text[-3:]):
                continue
            score = score_reply(fuse, request(ignore_end=True), text)
            if [step.unit for step in score.steps] == said.units:
                compared += 1
                for one, other in zip(score.steps, said.steps, strict=True):
                    assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert compared

    @pytest.mark.parametrize("names", PAIRS, ids="+".join)
    def test_greedy_answers_are_known_as_such(self, make, names):
        fuse = make(Fuse, *names)
        said = answer(fuse, GREEDY, max_tokens=8, ignore_end=True)
        text = b"".join(said.units)
        while _core.unfinished_utf8(text[-3:]):
            text = text[:-1]
        score = score_reply(fuse, request(ignore_end=True), text)
        same = [step.unit for step in score.steps] == said.units[: len(score.steps)]
        assert score.greedy or not same
        assert not score_reply(fuse, request(), TEXT).greedy

    def test_a_member_of_weight_0_is_absent(self, make):
        alone = score_reply(make(Fuse, "gpt2"), request(), TEXT)
        weighed = score_reply(make(Fuse, "gpt2", "smol", weights=[1, 0]), request(), TEXT)
        assert weighed.nats == pytest.approx(alone.nats, abs=1e-6)

    @pytest.mark.parametrize("names", PAIRS, ids="+".join)
    def test_mix_is_the_linear_pool(self, make, names):
        weights = [0.3, 0.7]
        mixed = score_reply(make(Mix, *names, weights=weights), request(), TEXT)
        fused = score_reply(make(Fuse, *names, weights=weights), request(), TEXT)
        assert mixed.nats == pytest.approx(fused.nats, abs=CLOSE)

    def test_a_primary_that_always_leads_is_alone(self, make):
        led = make(
            Fuse, "gpt2", "smol", weights=[0.6, 0.4], solo=make_solo("primary", 0.0), gate="always"
        )
        alone = make(Fuse, "gpt2", gate="always")
        scores = [score_reply(one, request(), ASCII).nats for one in (led, alone)]
        assert scores[0] == pytest.approx(scores[1], abs=CLOSE)

    @pytest.mark.parametrize("schedule", ["eager", "lazy", "draft"])
    def test_answers_go_on_as_before(self, make, schedule):
        fuse = make(Fuse, "gpt2", "llama-spm", schedule=schedule)
        before = answer(fuse, GREEDY, max_tokens=10)
        score_reply(fuse, request(), TEXT)
        assert answer(fuse, GREEDY, max_tokens=10) == before


class TestBytes:
    @pytest.mark.parametrize(
        "names", [("gpt2",), ("llama-spm",), ("gpt2", "llama-spm")], ids="+".join
    )
    @pytest.mark.parametrize("text", ["e", "the", " cat", "é t"])
    def test_is_exact(self, bigrams, names, text):
        """Against the sum over all tokenisations, byte by byte."""
        members = [bigrams[name] for name in names]
        engine = Bytes([m.member for m in members], weigher=Given([1.0] * len(names)), **CAREFUL)
        oracles = [m.oracle(m.member.opening) for m in members]
        raw = text.encode()
        expected = 0.0
        for k in range(len(raw)):
            rows = np.mean([self.masked(oracle, raw[:k]) for oracle in oracles], axis=0)
            expected += math.log(rows[raw[k]])
        score = score_reply(engine, request(prompt=""), text)
        assert score.nats == pytest.approx(expected, abs=1e-4)
        for i, oracle in enumerate(oracles):
            own = sum(math.log(self.masked(oracle, raw[:k])[raw[k]]) for k in range(len(raw)))
            said = math.fsum(step.member_logprobs[i] for step in score.steps)
            assert said == pytest.approx(own, abs=1e-4)

    @staticmethod
    def masked(oracle: tuple, before: bytes) -> np.ndarray:
        """What a member believes of the next byte, where the text must stay valid."""
        row, _ = byte_reference.next_byte(*oracle, before)
        tail = before[len(before) - _core.unfinished_utf8(before[-3:]) :]
        for byte in range(256):
            row[byte] *= _core.continues_utf8(tail, bytes([byte]))
        if tail:
            row[256] = 0
        return row / row.sum()

    def test_all_texts_together_have_all_probability(self, bigrams):
        """The probabilities of the first characters, and of none, sum to 1."""
        engine = Bytes([bigrams["gpt2"].member], **CAREFUL)
        total = sum(
            math.exp(score_reply(engine, request(prompt="", ignore_end=True), chr(code)).nats)
            for code in range(128)
        )
        lead = self.masked(bigrams["gpt2"].oracle(bigrams["gpt2"].member.opening), b"")[:256]
        assert total == pytest.approx(lead[:128].sum() / lead.sum(), abs=1e-4)

    @pytest.mark.parametrize("names", [*PAIRS, TRIPLE], ids="+".join)
    @pytest.mark.parametrize("way", [{}, {"per": "unit"}, {"pool": "log-linear"}], ids=str)
    def test_units_join_to_the_text(self, make, names, way):
        score = score_reply(make(Bytes, *names, **way), request(), TEXT)
        assert b"".join(step.unit for step in score.steps) == TEXT.encode()
        assert -math.inf < score.nats < 0

    @pytest.mark.parametrize(
        "options", [{}, {"per": "unit"}, {"weigher": Given([0.3, 0.7])}], ids=str
    )
    def test_what_was_drawn_is_scored_as_it_was(self, bigrams, options):
        ensemble = Bytes([one.member for one in bigrams.values()], **options, **CAREFUL)
        for seed in range(8):
            said = answer(
                ensemble, PURE.model_copy(update={"seed": seed}), max_tokens=5, ignore_end=True
            )
            text = b"".join(said.units)
            while _core.unfinished_utf8(text[-3:]):
                text = text[:-1]
            ends = np.cumsum([len(unit) for unit in said.units])
            whole = ends[ends <= len(text)]
            drawn = math.fsum(step.logprob for step in said.steps[: len(whole)])
            score = score_reply(ensemble, request(ignore_end=True), text[: whole[-1]]).nats
            assert score == pytest.approx(drawn, abs=1e-3)

    def test_what_is_longer_is_less_probable(self, make):
        ensemble = make(Bytes, "gpt2", "llama-spm", weigher=Given([0.5, 0.5]))
        nats = [score_reply(ensemble, request(), " there was"[:n]).nats for n in range(1, 11)]
        assert nats == sorted(nats, reverse=True)

    @pytest.mark.parametrize("names", PAIRS, ids="+".join)
    def test_prefix_mass_scores_any_text(self, make, names):
        score = score_reply(make(Bytes, *names, tokenisations="canonical"), request(), TEXT)
        assert b"".join(step.unit for step in score.steps) == TEXT.encode()
        assert -math.inf < score.nats < 0

    @pytest.mark.parametrize("names", PAIRS, ids="+".join)
    def test_greedy_answers_are_known_as_such(self, make, names):
        ensemble = make(Bytes, *names)
        said = answer(ensemble, GREEDY, max_tokens=6, ignore_end=True)
        text = b"".join(said.units)
        while _core.unfinished_utf8(text[-3:]):
            text = text[:-1]
        assert score_reply(ensemble, request(ignore_end=True), text).greedy
        assert score_reply(
            ensemble, request(ignore_end=True), text[:2].decode(errors="ignore")
        ).greedy
        assert not score_reply(ensemble, request(), TEXT).greedy


class TestRefusals:
    @pytest.mark.parametrize("strategy", [Fuse, Bytes])
    def test_no_text(self, make, strategy):
        with pytest.raises(PromptError, match="empty"):
            score_reply(make(strategy, "gpt2"), request(), "")

    @pytest.mark.parametrize("strategy", [Fuse, Bytes])
    def test_broken_text(self, make, strategy):
        with pytest.raises(PromptError, match="0xff at position 1"):
            score_reply(make(strategy, "gpt2"), request(), b"a\xff")

    @pytest.mark.parametrize("strategy", [Fuse, Bytes])
    def test_a_text_that_does_not_fit(self, load_branching, strategy):
        member = load_branching("gpt2", n_ctx=64)
        with pytest.raises(ContextLengthError, match="n_ctx=256"):
            score_reply(strategy([member]), request(), "one two three " * 200)
