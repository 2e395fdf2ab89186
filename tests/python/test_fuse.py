"""The pool against the float64 oracle, and its laws."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from fuse_checks import (
    TOLERANCE,
    averages,
    base_of,
    best_symbol,
    by_bytes,
    check_all_symbols,
    check_close,
    check_order,
    every_pool,
    fused,
    pooled,
    pools,
    same_bits,
    scattered,
    tolerances,
)
from hypothesis import given
from hypothesis import strategies as st
from logitfuse import _core
from logitfuse.errors import FusionError
from logitfuse.pooling import FLOOR, POOLS, PoolName, fuse, fuse_batch
from logitfuse.vocab import Vocab
from strategies_core import (
    INF,
    SHAPES,
    Row,
    Step,
    emitted,
    random_row,
    random_step,
    random_vocab,
    signed_steps,
    steps,
)

#: Of the power pool; nearer to 0 it is too near to the log-linear pool for float32.
exponents = st.sampled_from([-1, 1, 2, -(2**-7), 2**-9, 1e6, -1e6]) | st.builds(
    lambda size, sign: size * sign, st.floats(0.125, 9, width=32), st.sampled_from([-1, 1])
)


class TestOracle:
    @every_pool
    @pytest.mark.parametrize("shape", SHAPES)
    def test_shapes(self, isa: str, shape: str, pool: PoolName) -> None:
        assert _core.isa() == isa
        check_all_symbols(random_step(1, shape, "normal", "normal"), pool)

    @every_pool
    @pytest.mark.parametrize("shape", SHAPES)
    def test_shapes_of_one_vocabulary(self, shape: str, pool: PoolName) -> None:
        rng = np.random.default_rng(2)
        vocab = random_vocab(rng, 1000)
        rows = [random_row(rng, vocab, name) for name in (shape, "normal")]
        step = Step([vocab, vocab], rows, [1, 3])
        assert step.alignment.identical
        check_all_symbols(step, pool)

    @given(steps(), pools, st.floats(-40, 0, width=32))
    def test_tiny_steps(self, step: Step, pool: PoolName, floor: float) -> None:
        check_all_symbols(step, pool, floor=floor)

    @given(steps(), exponents, st.floats(-40, 0, width=32))
    def test_exponents(self, step: Step, exponent: float, floor: float) -> None:
        check_all_symbols(step, "power", exponent=exponent, floor=floor)

    @given(signed_steps(), st.floats(2**-7, 1, width=32))
    def test_contrasts(self, step: Step, plausibility: float) -> None:
        check_all_symbols(step, "contrast", plausibility=plausibility)

    def test_rows_of_real_size(self) -> None:
        """The longer the sums, the larger the error: as many tokens as Gemma has."""
        rng = np.random.default_rng(9)
        vocab = Vocab([b"%d" % token for token in range(262_144)])
        rows = rng.normal(0, 4, (2, len(vocab))).astype(np.float32)
        step = Step([vocab] * 2, list(rows), [0.25, 0.75])
        own = rows - np.logaddexp.reduce(rows.astype(float), axis=1, keepdims=True)
        linear = np.logaddexp(*(own + np.log([[0.25], [0.75]])))
        scores = step.weights @ own
        log_linear = scores - np.logaddexp.reduce(scores)
        for pool, want in (("linear", linear), ("log-linear", log_linear)):
            tolerance = TOLERANCE * (1 + np.abs(want))
            result = fused(step, pool=pool, top=None, dense=True)
            assert result.dense is not None
            check_close(scattered(step, result), want, tolerance)
            check_close(result.dense, want, tolerance)

    @every_pool
    def test_members_that_exclude_each_other(self, pool: PoolName) -> None:
        vocab = Vocab([b"a", b"b"])
        rows = [np.array(row, np.float32) for row in ([0, -INF], [-INF, 0])]
        step = Step([vocab, vocab], rows, [1, 1])
        if pool in ("linear", "power", "consistency"):
            assert fused(step, pool=pool).logprobs == pytest.approx(np.log([0.5, 0.5]))
            return
        for dense in (False, True):
            with pytest.raises(FusionError, match="exclude each other"):
                fused(step, pool=pool, dense=dense)

    def test_a_symbol_below_the_smallest_float_keeps_its_logprob(self) -> None:
        """The candidates never pass through probabilities, which would underflow."""
        vocab = Vocab([b"a", b"b"])
        step = Step([vocab] * 2, [np.array([0, -300], np.float32)] * 2, [1, 1])
        assert fused(step).logprobs.tolist() == [0, -300]
        assert fused(step, dense=True).dense.tolist() == [0, -INF]  # type: ignore[union-attr]


def best_tokens(row: Row, vocab: Vocab, top: int) -> list[int]:
    ids = emitted(vocab)
    ids = ids[row[ids] > -INF]
    return ids[np.lexsort([ids, -row[ids]])][:top].tolist()  # type: ignore[no-any-return]


def expected_candidates(step: Step, top: int) -> set[int]:
    """Symbols of each present member's best tokens, and the end."""
    tokens = ((m, t) for m in step.present for t in best_tokens(step.rows[m], step.vocabs[m], top))
    symbols = {step.alignment.symbol(m, token) for m, token in tokens}
    return {symbol for symbol in symbols | {step.alignment.end} if symbol is not None}


def check_candidates(step: Step, pool: PoolName, top: int, **options: float) -> None:
    """The candidates are the best tokens, scored as by the oracle, and `outside` is a bound."""
    wanted = expected_candidates(step, top)
    if pool == "contrast":
        wanted.add(best_symbol(step, base_of(step)))
    listed = np.isin(np.arange(len(step.alignment)), list(wanted))
    want = pooled(step, pool, **options, listed=listed)
    tolerance = tolerances(step, pool, **options, listed=listed)
    if not np.isfinite(want[listed].astype(np.float32)).any():
        return
    result = fused(step, pool=pool, top=top, **options)
    check_order(result)
    check_close(scattered(step, result), np.where(listed, want, -INF), tolerance)
    unlisted = want[~listed] - tolerance[~listed]
    if pool == "linear":  # to the last bit
        unlisted = scattered(step, fused(step, pool=pool, top=None))[~listed].astype(float)
    assert np.all(unlisted <= result.outside)


class TestCandidates:
    @every_pool
    @pytest.mark.parametrize("top", [1, 2, 7, 64, 400, 10_000])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_shapes(self, shape: str, top: int, pool: PoolName) -> None:
        check_candidates(random_step(3, "normal", shape, "normal"), pool, top)

    @given(steps(), pools, st.integers(1, 12))
    def test_tiny_steps(self, step: Step, pool: PoolName, top: int) -> None:
        check_candidates(step, pool, top)

    @given(steps(), exponents, st.integers(1, 12))
    def test_exponents(self, step: Step, exponent: float, top: int) -> None:
        check_candidates(step, "power", top, exponent=exponent)

    @given(signed_steps(), st.floats(2**-7, 1, width=32), st.integers(1, 12))
    def test_contrasts(self, step: Step, plausibility: float, top: int) -> None:
        check_candidates(step, "contrast", top, plausibility=plausibility)

    def test_a_contrast_is_complete_below_its_threshold(self) -> None:
        """What is implausible needs no listing; what may be plausible leaves all open."""
        vocab = Vocab([b"%d" % token for token in range(9)])
        row = np.log([0.5, 0.3, 0.1, 0.02, 0.02, 0.02, 0.02, 0.01, 0.01]).astype(np.float32)
        step = Step([vocab] * 2, [row, np.zeros(9, np.float32)], [1, -0.5])
        assert fused(step, pool="contrast", top=3).outside == INF
        whole = fused(step, pool="contrast", top=4)
        assert (whole.ids.tolist(), whole.outside) == ([0, 1, 2], -INF)

    def test_duplicates_may_beat_what_is_listed_but_not_the_bound(self) -> None:
        """Two tokens of one symbol, each just below the best, together above it."""
        vocab = Vocab([b"a", b"b", b"b"])
        step = Step([vocab], [np.array([0, -0.1, -0.1], np.float32)], [1])
        result = fused(step, top=1)
        assert result.ids.tolist() == [0]
        assert result.outside >= fused(step, top=3).logprobs[0] > result.logprobs[0]

    @given(st.integers(2, 300), st.lists(st.floats(0.01, 1), min_size=1, max_size=4))
    def test_the_bound_holds_also_for_ties(self, n: int, weights: list[float]) -> None:
        """All tokens alike: what is not listed is as probable as what is, to the last bit."""
        vocab = Vocab([b"%d" % token for token in range(n)])
        step = Step([vocab] * len(weights), [np.zeros(n, np.float32)] * len(weights), weights)
        for pool in POOLS:
            result = fused(step, pool=pool, top=1)
            assert len(result) == 1
            assert result.outside >= result.logprobs[0]

    def test_unlisted_symbols_too_small_for_a_float32_probability_are_not_ruled_out(self) -> None:
        vocab = Vocab([b"a", b"b", b"c"])
        step = Step([vocab], [np.array([0, -150, -150], np.float32)], [1])
        assert -150 <= fused(step, top=2).outside < -149

    @given(steps(), st.data())
    def test_forced_symbols_are_listed_unless_impossible(self, step: Step, data: Any) -> None:
        forced = data.draw(st.lists(st.integers(0, len(step.alignment) - 1)))
        native = _core.Pool(step.alignment._core, "linear", FLOOR)
        native.read(step.rows, step.weights)
        possible = set(native.candidates(_core.ALL).symbols.tolist())
        got = native.candidates(1, forced).symbols.tolist()
        assert set(got) == (expected_candidates(step, 1) | set(forced)) & possible
        assert len(got) == len(set(got))

    @given(steps())
    def test_score_is_the_candidate(self, step: Step) -> None:
        native = _core.Pool(step.alignment._core, "linear", FLOOR)
        native.read(step.rows, step.weights)
        listed = native.candidates(_core.ALL)
        for k in range(len(listed)):
            one = native.score(listed.symbol(k))
            assert one.symbols.tolist() == [listed.symbol(k)]
            assert one.logprobs.tobytes() == listed.logprobs[k].tobytes()
            np.testing.assert_array_equal(one.member_logprob(0), listed.member_logprob(k))

    @every_pool
    def test_forced_symbols_out_of_range(self, pool: PoolName) -> None:
        step = random_step(4, "normal", "normal")
        native = _core.Pool(step.alignment._core, pool, FLOOR)
        native.read(step.rows, step.weights)
        for symbol in (-1, len(step.alignment)):
            with pytest.raises(FusionError, match=f"symbol {symbol} "):
                native.candidates(1, [symbol])
            with pytest.raises(IndexError, match=f"symbol {symbol} "):
                native.score(symbol)


class TestLaws:
    """Design, section 5."""

    @given(steps(max_members=1), averages)
    def test_ensemble_of_one_is_that_one(self, step: Step, pool: PoolName) -> None:
        result = fused(step, pool=pool, top=None)
        own = result.member_logprobs[0]
        if pool == "linear":
            assert result.logprobs.tobytes() == own.tobytes()
        else:
            check_close(result.logprobs, own.astype(float), 2 * TOLERANCE * (1 + np.abs(own)))

    @given(steps(max_members=1), averages, st.lists(st.floats(0.01, 9), min_size=2, max_size=4))
    def test_identical_members_are_one(
        self, step: Step, pool: PoolName, weights: list[float]
    ) -> None:
        n = len(weights)
        many = Step([step.vocabs[0]] * n, [step.rows[0]] * n, weights)
        want = scattered(step, fused(step, top=None)).astype(float)
        got = scattered(many, fused(many, pool=pool, top=None))
        check_close(got, want, tolerances(many, pool))

    @given(steps(), pools, st.randoms(use_true_random=False))
    def test_order_of_members_does_not_matter(
        self, step: Step, pool: PoolName, random: Any
    ) -> None:
        want, tolerance = pooled(step, pool), tolerances(step, pool)
        if pool == "contrast":  # the base is the first
            return
        order = list(range(len(step.vocabs)))
        random.shuffle(order)
        other = step.reordered(order)
        assert len(other.alignment) == len(step.alignment)
        check_close(scattered(other, fused(other, pool=pool, top=None)), want, tolerance)

    @given(steps(), averages, st.sampled_from([1e-30, 1e-3, 7.0, 1e30]))
    def test_scale_of_weights_does_not_matter(
        self, step: Step, pool: PoolName, scale: float
    ) -> None:
        want, tolerance = pooled(step, pool), tolerances(step, pool)
        other = step.weighted([weight * scale for weight in step.weights])
        check_close(scattered(other, fused(other, pool=pool, top=None)), want, tolerance)

    @given(steps(), pools, st.booleans())
    def test_weight_zero_is_absent(self, step: Step, pool: PoolName, none: bool) -> None:
        """Its row is not read: it may be NaN, or None; nothing says that it exists."""
        pooled(step, pool)  # possible at all
        rows = [
            row if m in step.present else None if none else np.full_like(row, np.nan)
            for m, row in enumerate(step.rows)
        ]
        got = fuse(rows, step.alignment, weights=step.weights, pool=pool, top=None, dense=True)
        alone = step.reordered(step.present)
        want = fused(alone, pool=pool, top=None, dense=True)
        close = 2e-3 if pool == "consistency" else TOLERANCE
        assert by_bytes(got) == pytest.approx(by_bytes(want), rel=close, abs=close)
        assert got.outside == want.outside
        assert got.dense is not None
        assert set(np.flatnonzero(got.dense > -INF)) <= set(got.ids)

    @every_pool
    @pytest.mark.parametrize("shape", SHAPES)
    def test_sums_to_one(self, shape: str, pool: PoolName) -> None:
        result = fused(random_step(5, shape, "normal"), pool=pool, top=None, dense=True)
        assert result.dense is not None
        for logprobs in (result.logprobs, result.dense):
            assert np.exp(logprobs.astype(float)).sum() == pytest.approx(1, abs=TOLERANCE)


class TestSameBits:
    @every_pool
    @pytest.mark.parametrize("shapes", list(itertools.pairwise(SHAPES[:-1])), ids="+".join)
    def test_on_every_instruction_set(
        self, isa: str, shapes: tuple[str, str], pool: PoolName
    ) -> None:
        step = random_step(6, *shapes)
        got = fused(step, pool=pool, dense=True)
        assert _core.isa() == isa
        _core.set_isa("baseline")
        same_bits(got, fused(step, pool=pool, dense=True))

    @every_pool
    def test_batch_is_step_by_step(self, pool: PoolName) -> None:
        rng = np.random.default_rng(7)
        step = random_step(7, "normal", "normal", "normal")
        blocks = [np.stack([random_row(rng, vocab) for _ in range(5)]) for vocab in step.vocabs]
        options: Any = {"weights": step.weights, "pool": pool, "top": 9, "dense": True}
        batch = fuse_batch(blocks, step.alignment, **options)
        assert len(batch) == 5
        for rows, got in zip(zip(*blocks, strict=True), batch, strict=True):
            same_bits(got, fuse(rows, step.alignment, **options))

    def test_from_several_threads(self) -> None:
        """Every thread has its own workspace."""
        cases = [random_step(seed, "normal", "ties") for seed in range(4)]
        shared = cases[0].alignment
        cases += [Step(cases[0].vocabs, [row + k for row in cases[0].rows], [1, k]) for k in (1, 2)]
        for case in cases[4:]:
            case.__dict__["alignment"] = shared
        want = [fused(case, dense=True) for case in cases]
        with ThreadPoolExecutor(4) as threads:
            for _ in range(10):
                got = threads.map(lambda case: fused(case, dense=True), cases)
                for a, b in zip(got, want, strict=True):
                    same_bits(a, b)
