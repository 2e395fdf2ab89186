"""What each member alone would most probably have said, in the steps of every strategy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import reference
from fuse_checks import TOLERANCE, member_rows
from hypothesis import given
from hypothesis import strategies as st
from lockstep import (
    GREEDY,
    PAIRS,
    PURE,
    SEEDED,
    TRIPLE,
    Load,
    Recording,
    answer,
    oracle_vocab,
    request,
)
from logitfuse import _core
from logitfuse.gates import Certain, make_solo
from logitfuse.member import Member
from logitfuse.pooling import POOLS, PoolOptions
from logitfuse.strategies.base import Step
from logitfuse.strategies.bytes import Bytes
from logitfuse.strategies.engine import Engine
from logitfuse.strategies.fuse import Fuse
from logitfuse.strategies.mix import Mix
from logitfuse.vocab import TokenKind, Vocab
from strategies_core import INF, SHAPES, random_step, steps
from strategies_core import Step as PoolStep

TEXT = " there was a naïve fox 🤖."
K = 4

Make = Callable[..., Engine]


def check_best(step: PoolStep, pool: Any, n: int) -> None:
    """The native ranking of every member against the oracle's row, and the order that it claims."""
    native = _core.Pool(step.alignment._core, pool)
    native.read(step.rows, step.weights)
    wishes, rows = native.best(), member_rows(step)
    for m, row in enumerate(rows):
        best = native.best_of(m, n)
        if m not in step.present:
            assert best == []
            continue
        assert len(best) == min(n, np.sum(row > -INF))
        symbols, logprobs = [s for s, _ in best], [p for _, p in best]
        assert symbols[0] == wishes[m]
        assert len(set(symbols)) == len(symbols)
        assert logprobs == sorted(logprobs, reverse=True)
        near = TOLERANCE * (1 + np.abs(row[symbols]))
        assert np.all(np.abs(logprobs - row[symbols]) <= near)
        others = np.delete(row, symbols)
        assert others.max(initial=-INF) <= logprobs[-1] + 2 * near[-1]


class TestPool:
    @given(steps(), st.sampled_from(POOLS), st.integers(1, 15))
    def test_tiny_steps(self, step: PoolStep, pool: str, n: int) -> None:
        check_best(step, pool, n)

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("n", [1, 5, 70, _core.ALL])
    def test_shapes(self, isa: str, shape: str, n: int) -> None:
        assert _core.isa() == isa
        check_best(random_step(1, "normal", shape), "linear", n)

    def test_small_tokens_of_one_symbol_are_summed(self) -> None:
        """None of its tokens is among the best ones, but together they are second."""
        tokens = [*(bytes([c]) for c in b"abcdefgh"), *[b"z"] * 60, *[b"</s>"] * 2]
        kinds = [TokenKind.TEXT] * 68 + [TokenKind.END] * 2
        p = np.array([0.3, *[0.05] * 7, *[0.003] * 60, *[0.085] * 2], np.float32)
        step = PoolStep([Vocab(tokens, kinds)], [np.log(p)], [1])
        native = _core.Pool(step.alignment._core, "linear")
        native.read(step.rows, step.weights)
        best = native.best_of(0, 3)
        assert [step.alignment.symbol_bytes(s) for s, _ in best] == [b"a", b"z", b""]
        shares = np.array([0.3, 0.18, 0.17]) / p.sum()
        assert np.exp([q for _, q in best]) == pytest.approx(shares, rel=1e-5)

    def test_what_was_listed_stays(self) -> None:
        step = random_step(2, "normal", SHAPES[0])
        native = _core.Pool(step.alignment._core, "linear")
        native.read(step.rows, step.weights)
        before = native.candidates(20)
        native.best_of(0, 5)
        after = native.candidates(20)
        assert before.logprobs.tobytes() == after.logprobs.tobytes()
        assert before.outside == after.outside

    def test_refusals(self) -> None:
        step = random_step(2, "normal", SHAPES[0])
        native = _core.Pool(step.alignment._core, "linear")
        native.read(step.rows, step.weights)
        assert native.best_of(0, 0) == []
        with pytest.raises(IndexError, match="members"):
            native.best_of(len(step.rows), 1)


@pytest.fixture
def make(load: Load, load_branching: Load) -> Make:
    """Makes an ensemble of tiny members by strategy and names."""

    def made(strategy: type[Engine], *names: str, **options: Any) -> Engine:
        loaded = load_branching if strategy is Bytes else load
        return strategy([loaded(name) for name in names], **options)

    return made


def afresh(engine: Any) -> Any:
    """With members that hold nothing, so that they compute the same bits again."""
    for member in engine.members:
        member.reset()
    return engine


def check(said: Sequence[Step], k: int = K) -> None:
    """What is true of every step that lists candidates."""
    for step in said:
        assert len(step.member_tops) == len(step.wishes)
        for top, wish, logprob in zip(
            step.member_tops, step.wishes, step.member_logprobs, strict=True
        ):
            assert (top == ()) == (wish is None) == math.isnan(logprob)
            if not top:
                continue
            assert 1 <= len(top) <= k
            assert top[0][0] == wish
            assert [p for _, p in top] == sorted((p for _, p in top), reverse=True)
            assert len(dict(top)) == len(top)
            assert all(-math.inf < p <= 1e-6 for _, p in top)
            # A unit of bytes may stand for what goes on from there in no listed way.
            assert dict(top).get(step.unit, -math.inf) <= logprob + 1e-5


def own_best(alone: Mapping[reference.Symbol, float], k: int) -> dict[bytes, float]:
    """The oracle's best symbols of a member; the end is empty."""
    ranked = sorted(alone, key=lambda symbol: -alone[symbol])[:k]
    return {b"" if symbol == reference.END else symbol: alone[symbol] for symbol in ranked}  # type: ignore[misc]


class TestTokens:
    @pytest.mark.parametrize("names", [*PAIRS, TRIPLE, ("gpt2",), ("smol", "smol")], ids="+".join)
    @pytest.mark.parametrize("sampling", [GREEDY, PURE], ids=["greedy", "pure"])
    def test_are_the_members_own(self, load: Load, names: tuple[str, ...], sampling: Any) -> None:
        fuse = Recording([load(name, k) for k, name in enumerate(names)])
        said = answer(fuse, sampling, max_tokens=8, member_top=K)
        check(said.steps)
        assert len(said.steps) > 2
        for i, step in enumerate(said.steps):
            for m, top in enumerate(step.member_tops):
                if not fuse.votes[i][m]:
                    assert top == ()
                    continue
                expected = own_best(fuse.alone(i, m), K)
                assert dict(top) == pytest.approx(expected, abs=1e-4)
                assert dict(top).get(step.unit, step.member_logprobs[m]) == step.member_logprobs[m]

    @pytest.mark.parametrize("pool", POOLS)
    @pytest.mark.parametrize("union_top", [0, 10])
    def test_whatever_the_pool(self, make: Make, pool: Any, union_top: int) -> None:
        """A pool may rule out what a member likes best."""
        options = PoolOptions(pool, plausibility=0.9, union_top=union_top)
        fuse = make(Fuse, "gpt2", "llama-spm", pool=options, weights=[1, 0.5])
        check(answer(fuse, max_tokens=4, member_top=K).steps)

    def test_of_projected_members_too(self, make: Make) -> None:
        fuse = make(Fuse, "gpt2", "smol", alignment="embedding")
        check(answer(fuse, max_tokens=4, member_top=K).steps)

    @pytest.mark.parametrize("schedule", ["eager", "lazy", "draft"])
    def test_whatever_the_schedule(self, steady: Load, schedule: Any) -> None:
        members = [steady(name) for name in ("gpt2", "llama-spm")]
        plain = answer(Fuse(members), max_tokens=8, member_top=K)
        said = answer(Fuse(members, schedule=schedule), max_tokens=8, member_top=K)
        check(said.steps)
        assert [s.member_tops for s in said.steps] == [s.member_tops for s in plain.steps]

    @pytest.mark.parametrize("solo", [Certain(), make_solo("primary", 0.0)], ids=["turns", "alone"])
    def test_who_was_not_asked_has_none(self, make: Make, solo: Any) -> None:
        fuse = make(Fuse, "gpt2", "smol", weights=[0.9, 0.1], solo=solo, gate="always")
        said = answer(fuse, max_tokens=8, member_top=K).steps
        check(said)
        assert any(step.member_tops[1] == () for step in said)

    def test_mix_lists_those_of_who_speaks(self, make: Make) -> None:
        said = answer(make(Mix, *TRIPLE), SEEDED, max_tokens=12, member_top=K).steps
        check(said)
        assert all(sum(bool(top) for top in step.member_tops) == 1 for step in said)

    def test_more_than_there_are(self, make: Make) -> None:
        fuse = make(Fuse, "gpt2")
        (step,) = answer(fuse, max_tokens=1, member_top=10**6).steps
        (top,) = step.member_tops
        vocab = fuse.members[0].vocab
        assert len(top) == len({vocab._core.canonical(i) for i in range(len(vocab))} - {-1})
        assert np.logaddexp.reduce([p for _, p in top]) == pytest.approx(0, abs=1e-4)


class TestScoring:
    @pytest.mark.parametrize("strategy", [Fuse, Mix, Bytes])
    @pytest.mark.parametrize("names", [("gpt2", "llama-spm"), ("smol", "qwen2")], ids="+".join)
    def test_a_given_text(self, make: Make, strategy: type[Engine], names: tuple[str, ...]) -> None:
        engine = make(strategy, *names)
        listed = list(afresh(engine).score(request(member_top=K), TEXT))
        plain = list(afresh(engine).score(request(), TEXT))
        assert b"".join(step.unit for step in listed) == TEXT.encode()
        for step, other in zip(listed, plain, strict=True):
            assert other.member_tops == ()
            assert (step.unit, step.wishes) == (other.unit, other.wishes)
            assert len(step.member_tops) == len(names)
            for top, wish in zip(step.member_tops, step.wishes, strict=True):
                assert len(top) <= K
                assert wish == (top[0][0] if top else None)

    def test_tokens_are_scored_as_the_member_would(self, load: Load) -> None:
        """Of one member, against its own rows, where units are pieces of characters too."""
        member: Member = load("gpt2")
        spelled = oracle_vocab(member)
        said = list(Fuse([member]).score(request(member_top=K), TEXT))
        assert any(_core.unfinished_utf8(step.unit[-3:]) for step in said)
        member.begin(member.tokenize_prompt(request().prompt))  # type: ignore[arg-type]
        for step, token in zip(said, member.tokenize(TEXT.encode()), strict=True):
            (top,) = step.member_tops
            alone = reference.member_logprobs(member.row, *spelled)
            for unit, logprob in top:
                assert logprob == pytest.approx(alone[unit or reference.END], abs=2e-3)
            member.append(token)


class TestBytes:
    @pytest.mark.parametrize(
        "way",
        [{}, {"per": "unit"}, {"tokenisations": "canonical"}, {"pool": "log-linear"}],
        ids=str,
    )
    @pytest.mark.parametrize("names", [*PAIRS, TRIPLE], ids="+".join)
    def test_begin_with_the_wish(self, make: Make, names: tuple[str, ...], way: Any) -> None:
        bytewise = make(Bytes, *names, **way)
        said = answer(afresh(bytewise), SEEDED, max_tokens=8, member_top=K)
        check(said.steps)
        plain = answer(afresh(bytewise), SEEDED, max_tokens=8)
        assert [step.wishes for step in said.steps] == [step.wishes for step in plain.steps]
        assert all(step.member_tops == () for step in plain.steps)

    @pytest.mark.parametrize("prompt", ["Once upon", "na\u00efve 你", "🤖🤖 "])
    def test_one_member_finds_probable_what_the_pool_does(self, make: Make, prompt: str) -> None:
        """Alone, its candidates are the ensemble's, log-probabilities and all."""
        bytewise = make(Bytes, "gpt2")
        options = {"prompt": prompt, "ignore_end": True}
        said = answer(bytewise, PURE, max_tokens=12, member_top=K, top_logprobs=K, **options)
        check(said.steps)
        for step in said.steps:
            (top,) = step.member_tops
            pooled = {unit: p for unit, p in step.top if unit}  # nothing: the rest of the paths
            assert list(dict(top).items())[: len(pooled)] == [
                (unit, pytest.approx(p, abs=1e-5)) for unit, p in pooled.items()
            ]

    def test_keep_the_text_valid(self, make: Make) -> None:
        bytewise = make(Bytes, "gpt2", "llama-spm")
        said = answer(bytewise, PURE, prompt="🤖🤖", max_tokens=30, member_top=K, ignore_end=True)
        before = b""
        for step in said.steps:
            pending = before[len(before) - _core.unfinished_utf8(before[-3:]) :]
            for unit, _ in (entry for top in step.member_tops for entry in top):
                assert _core.continues_utf8(pending, unit)
            before += step.unit
