"""Pools of rows of which only some tokens may come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import reference
from constraints import mask_of
from fuse_checks import base_of, check_clear, every_pool, member_rows
from hypothesis import assume, given
from hypothesis import strategies as st
from logitfuse import _core
from logitfuse.errors import FusionError
from logitfuse.pooling import EXPONENT, PoolName
from logitfuse.vocab import Vocab
from numpy.typing import NDArray
from strategies_core import INF, SHAPES, Step, random_step, signed_steps, steps, vocabs

Floats = NDArray[np.float64]
CLOSE: dict[str, Any] = {"rel": 1e-4, "abs": 1e-6}


@dataclass
class Allowed:
    """A step in which only some symbols may come."""

    step: Step
    symbols: list[bool]

    @property
    def tokens(self) -> list[list[bool]]:
        """The same of each member's tokens."""
        of = self.step.alignment.symbol
        return [
            [(s := of(m, token)) is not None and self.symbols[s] for token in range(len(vocab))]
            for m, vocab in enumerate(self.step.vocabs)
        ]

    def read(
        self, pool: PoolName, weights: list[float] | None = None, **options: Any
    ) -> _core.Pool:
        native = _core.Pool(self.step.alignment._core, pool, **options)
        masks = [mask_of(tokens) for tokens in self.tokens]
        native.read(self.step.rows, weights or self.step.weights, masks)
        return native

    @property
    def heard(self) -> Floats:
        """How much of each member's probability is allowed; 0 for absent ones."""
        rows = np.exp(np.nan_to_num(member_rows(self.step), nan=-INF, neginf=-INF))
        return rows @ np.array(self.symbols, np.float64)

    @property
    def left(self) -> list[bool]:
        """Who is left with a token, however improbable."""
        rows, tokens = self.step.rows, self.tokens
        return [bool(np.any(row[may] > -INF)) for row, may in zip(rows, tokens, strict=True)]

    def masked(self, pool: PoolName) -> Floats:
        """What the oracle makes of the rows without what is not allowed, over the symbols."""
        left = self.left
        rows = [
            np.where(tokens, row, np.float32(-INF)) if left[m] else row  # absent: not looked at
            for m, (row, tokens) in enumerate(zip(self.step.rows, self.tokens, strict=True))
        ]
        credit = self.heard ** {"linear": 1.0, "power": EXPONENT}.get(pool, 0.0)
        weights = np.where(left, np.array(self.step.weights) * credit, 0.0)
        return self.step.by_symbol(reference.pool(rows, self.step.plain, weights.tolist(), pool))

    def restricted(self, pool: PoolName) -> Floats:
        """The probabilities without the constraint, of what is allowed, normalised."""
        step = self.step
        whole = step.by_symbol(reference.pool(step.rows, step.plain, step.weights, pool))
        with np.errstate(under="ignore"):
            p = np.exp(whole) * self.symbols
        return p / p.sum()


@st.composite
def allowed_steps(draw: st.DrawFn, source: st.SearchStrategy[Step]) -> Allowed:
    """Steps in which somebody who is not subtracted is left with something likely enough."""
    step = draw(source)
    n = len(step.alignment)
    some = Allowed(step, draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    assume(all(p == 0 or p > 1e-6 for p in some.heard))
    assume(any(p > 0 and w > 0 for p, w in zip(some.heard, step.weights, strict=True)))
    return some


@st.composite
def siblings(draw: st.DrawFn) -> Step:
    """Steps of members of one vocabulary."""
    vocab, n = draw(vocabs()), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    rows = [rng.normal(0, 2, len(vocab)).astype(np.float32) for _ in range(n)]
    weights = draw(st.lists(st.just(0.0) | st.floats(0.01, 9), min_size=n, max_size=n))
    weights[draw(st.integers(0, n - 1))] = draw(st.floats(0.01, 9))
    return Step([vocab] * n, rows, weights)


def check_pool(some: Allowed, pool: PoolName) -> Floats:
    """All of it is what the oracle says, and nothing that is not allowed is listed."""
    try:
        want = some.masked(pool)
    except ValueError:  # the members exclude each other
        assume(False)
    fused = some.read(pool).candidates(_core.ALL)
    got = np.zeros(len(some.symbols))
    got[fused.symbols] = np.exp(fused.logprobs.astype(np.float64))
    assert not got[~np.array(some.symbols)].any()
    with np.errstate(under="ignore"):
        assert got == pytest.approx(np.exp(want), **CLOSE)
    return got


class TestDistribution:
    @given(allowed_steps(steps()))
    def test_the_linear_pool_is_restricted_and_normalised(self, some: Allowed) -> None:
        assert check_pool(some, "linear") == pytest.approx(some.restricted("linear"), **CLOSE)

    @pytest.mark.parametrize("pool", ["log-linear", "power", "product"])
    @given(some=allowed_steps(siblings()))
    def test_so_are_others_of_one_vocabulary(self, pool: PoolName, some: Allowed) -> None:
        assert check_pool(some, pool) == pytest.approx(some.restricted(pool), **CLOSE)

    @pytest.mark.parametrize("pool", ["log-linear", "power", "min", "product"])
    @given(some=allowed_steps(steps()))
    def test_is_that_of_the_members_as_they_are_left(self, pool: PoolName, some: Allowed) -> None:
        check_pool(some, pool)

    @given(allowed_steps(signed_steps()))
    def test_a_contrast_finds_plausible_what_is_allowed(self, some: Allowed) -> None:
        left = [w if may else 0.0 for w, may in zip(some.step.weights, some.left, strict=True)]
        base = base_of(some.step.weighted(left))
        check_clear(np.where(some.symbols, member_rows(some.step)[base], -INF), 0.1)
        check_pool(some, "contrast")

    @every_pool
    @given(some=allowed_steps(steps()))
    def test_all_allowed_is_no_constraint(self, pool: PoolName, some: Allowed) -> None:
        free = _core.Pool(some.step.alignment._core, pool)
        free.read(some.step.rows, some.step.weights)
        some.symbols = [True] * len(some.symbols)
        try:
            want = free.candidates(_core.ALL)
        except FusionError:
            assume(False)
        got = some.read(pool).candidates(_core.ALL)
        assert dict(zip(got.symbols, got.logprobs, strict=True)) == pytest.approx(
            dict(zip(want.symbols, want.logprobs, strict=True)), abs=1e-5
        )

    @given(allowed_steps(steps()))
    def test_members_are_normalised_over_what_is_left(self, some: Allowed) -> None:
        fused = some.read("linear").candidates(_core.ALL)
        rows, heard = member_rows(some.step), some.heard
        for m, got in enumerate(fused.member_logprobs):
            if heard[m] == 0:
                assert not np.exp(np.nan_to_num(got, nan=-INF)).any()
                continue
            if np.isnan(got).all():  # next to the others it is nobody
                assert heard[m] * some.step.weights[m] < 1e-30
                continue
            want = np.exp(rows[m][fused.symbols]) / heard[m]
            assert np.exp(got.astype(np.float64)) == pytest.approx(want, **CLOSE)


def finite(row: NDArray[np.float32]) -> int:
    """A token that can be said."""
    return int(np.flatnonzero(np.isfinite(row))[0])


class TestAnswers:
    """Of steps that are long enough for whole blocks."""

    @staticmethod
    def some(seed: int, share: float, *shapes: str) -> Allowed:
        step = random_step(seed, *shapes)
        rng = np.random.default_rng(seed)
        symbols = rng.random(len(step.alignment)) < share
        symbols[[step.alignment.symbol(m, row) for m, row in enumerate(map(finite, step.rows))]] = 1
        return Allowed(step, symbols.tolist())

    @pytest.mark.parametrize("share", [0.003, 0.1, 0.9])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_the_best_and_what_is_decided(self, isa: str, shape: str, share: float) -> None:
        assert _core.isa() == isa
        for seed in range(5):
            some = self.some(seed, share, shape, "normal")
            pool = some.read("linear")
            p = np.exp(some.masked("linear"))
            fused = pool.candidates(1)
            if fused.logprobs[0] >= fused.outside:
                assert p[fused.symbols[0]] == pytest.approx(p.max(), rel=1e-4)
            assert np.all(p <= np.exp(max(fused.outside, fused.logprobs[0])) * (1 + 1e-4))
            decision, symbol = pool.decide()
            if decision != _core.Decision.open:
                assert p[symbol] == pytest.approx(p.max(), rel=1e-4)
            if decision == _core.Decision.certain:
                assert p[symbol] > 0.49999
            for m, wish in enumerate(pool.best()):
                row = np.where(some.symbols, member_rows(some.step)[m], -INF)
                if wish >= 0:
                    assert row[wish] == pytest.approx(row.max(), abs=1e-4)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_draws(self, shape: str) -> None:
        some = self.some(3, 0.02, shape, "normal", "one-hot")
        pool, n = some.read("linear"), 4000
        drawn = [pool.draw((k + 0.5) / n) for k in range(n)]
        found = np.bincount(drawn, minlength=len(some.symbols)) / n
        pieces = 3 * sum(some.symbols)  # tokens that places may fall between
        assert found == pytest.approx(np.exp(some.masked("linear")), abs=2 * pieces / n)

    @given(allowed_steps(steps()), st.data())
    def test_what_is_certain_without_the_others(self, some: Allowed, data: Any) -> None:
        step = some.step
        read = data.draw(st.sets(st.sampled_from(step.present), min_size=1))
        weights = [w if m in read else 0.0 for m, w in enumerate(step.weights)]
        assume(any(some.heard[m] > 0 for m in read))
        pool = some.read("linear", weights)
        symbol = pool.certain_without(sum(step.weights) - sum(weights))
        if symbol >= 0:
            assert symbol == np.argmax(some.masked("linear"))

    @given(allowed_steps(steps()), st.data())
    def test_new_weights(self, some: Allowed, data: Any) -> None:
        weights = [data.draw(st.floats(0.01, 9)) if w else 0.0 for w in some.step.weights]
        first, second = some.read("linear"), some.read("linear", weights)
        first.reweigh(weights)
        got, want = (pool.candidates(_core.ALL) for pool in (first, second))
        assert got.symbols.tolist() == want.symbols.tolist()
        assert got.logprobs.tolist() == want.logprobs.tolist()

    def test_same_bits_on_every_instruction_set(self, isa: str) -> None:
        some = self.some(1, 0.2, "normal", "ties", "huge")
        got = some.read("log-linear").candidates(5)
        _core.set_isa("baseline")
        want = some.read("log-linear").candidates(5)
        assert got.logprobs.tobytes() == want.logprobs.tobytes(), isa

    def test_a_union_of_the_best_that_are_allowed(self) -> None:
        some = self.some(2, 0.01, "normal", "normal")
        fused = some.read("linear", union_top=3).candidates(1)
        assert 0 < len(fused) <= 6
        assert all(some.symbols[symbol] for symbol in fused.symbols)
        assert np.exp(fused.logprobs).sum() == pytest.approx(1, abs=1e-5)

    def test_projections_fall_upon_what_is_allowed(self) -> None:
        """A token of the other member stands for one of the pivot's that may not come."""
        vocabs = [Vocab([b"a", b"b", b"c"]), Vocab([b"x", b"b"])]
        rows = [np.array(row, np.float32) for row in ([0, 0, 0], [5, 0])]
        step = Step(vocabs, rows, [0.5, 0.5])
        lookup = step.alignment.lookup
        target = np.array([lookup(b"a"), lookup(b"c")], np.int32)
        offsets, shares = np.array([0, 2, 2]), np.array([0.5, 0.5], np.float32)
        for letters in (b"ab", b"b", b"bcx"):
            pool = _core.Pool(step.alignment._core, "linear")
            pool.project(1, offsets, target, shares)
            pool.restrict(0)
            some = Allowed(
                step, [s[:1] in letters for s in map(step.alignment.symbol_bytes, range(4))]
            )
            some.step = step
            pool.read(rows, [0.5, 0.5], [mask_of(tokens) for tokens in some.tokens])
            fused = pool.candidates(2)
            said = {step.alignment.symbol_bytes(s) for s in fused.symbols.tolist()}
            assert said == {bytes([letter]) for letter in letters} & {b"a", b"b", b"c"}
            assert np.exp(fused.logprobs).sum() == pytest.approx(1, abs=1e-5)


class TestRefusals:
    step = Step(
        [Vocab([b"a", b"b"]), Vocab([b"a", b"c"])], [np.zeros(2, np.float32)] * 2, [1.0, 1.0]
    )

    def read(self, *masks: bytes | None, pool: PoolName = "linear", **weights: Any) -> _core.Fused:
        native = _core.Pool(self.step.alignment._core, pool)
        native.read(self.step.rows, weights.get("weights", [1.0, 1.0]), masks)
        return native.candidates(_core.ALL)

    def test_nobody_is_left(self) -> None:
        for pool in ("linear", "log-linear"):
            with pytest.raises(FusionError, match="no member can say anything"):
                self.read(b"\0", b"\0", pool=pool)

    def test_a_contrast_without_a_base(self) -> None:
        with pytest.raises(FusionError, match="no member can say anything that the constraint"):
            self.read(b"\0", b"\1", pool="contrast", weights=[1.0, -0.5])

    def test_who_is_left_with_nothing_is_absent(self) -> None:
        fused = self.read(b"\0", b"\2")
        assert [self.step.alignment.symbol_bytes(s) for s in fused.symbols] == [b"c"]
        assert fused.logprobs[0] == 0
        assert np.isnan(fused.member_logprobs[0]).all()

    def test_no_bits_are_all_tokens(self) -> None:
        fused = self.read(None, b"\1")
        said = {self.step.alignment.symbol_bytes(s) for s in fused.symbols.tolist()}
        assert said == {b"a", b"b"}

    @pytest.mark.parametrize("masks", [[b""], [b"\1"] * 3])
    def test_one_set_for_each(self, masks: list[bytes]) -> None:
        with pytest.raises(
            FusionError, match=f"expected 2 sets of allowed tokens, got {len(masks)}"
        ):
            self.read(*masks)

    def test_too_few_bits(self) -> None:
        vocab = Vocab([b"%d" % n for n in range(9)])
        native = _core.Pool(Step([vocab], [], []).alignment._core, "linear")
        with pytest.raises(FusionError, match="there are 8 bits for 9 tokens"):
            native.read([np.zeros(9, np.float32)], [1], [b"\1"])

    def test_not_bits(self) -> None:
        with pytest.raises((TypeError, RuntimeError)):
            self.read("ab", "cd")  # type: ignore[arg-type]

    @pytest.mark.parametrize("bad", [np.nan, INF, -INF])
    def test_bad_rows_are_bad_rows(self, bad: float) -> None:
        native = _core.Pool(self.step.alignment._core, "linear")
        with pytest.raises(FusionError, match="the row of member 1 holds"):
            native.read([self.step.rows[0], np.full(2, bad, np.float32)], [1, 1], [b"\1", b"\1"])
