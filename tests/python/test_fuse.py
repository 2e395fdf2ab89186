"""The pool against the float64 oracle, its laws, and what it refuses."""

from __future__ import annotations

import array
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import assume, given
from hypothesis import strategies as st
from logitfuse import _core
from logitfuse.alignment import align
from logitfuse.errors import FusionError
from logitfuse.pooling import FLOOR, POOLS, Fused, PoolName, fuse, fuse_batch
from logitfuse.vocab import TokenKind, Vocab
from numpy.typing import NDArray
from strategies_core import (
    INF,
    SHAPES,
    Row,
    Step,
    emitted,
    random_row,
    random_step,
    random_vocab,
    steps,
    symbol_of,
)

#: What the docstring of `fuse` promises, in nats, absolute and relative.
TOLERANCE = 5e-7
#: Float32 cannot tell smaller probabilities from 0.
TINY = float(np.finfo(np.float32).tiny)

pools = st.sampled_from(POOLS)
every_pool = pytest.mark.parametrize("pool", POOLS)


def fused(step: Step, **options: Any) -> Fused:
    return fuse(step.rows, step.alignment, weights=step.weights, **options)


def pooled(step: Step, pool: PoolName, floor: float = FLOOR) -> NDArray[np.float64]:
    """The oracle's row over all symbols; an impossible step is skipped."""
    try:
        return step.by_symbol(reference.pool(step.rows, step.plain, step.weights, pool, floor))
    except ValueError:
        assume(False)
        raise


def member_rows(step: Step) -> NDArray[np.float64]:
    """The oracle's rows of the single members, NaN for absent ones."""
    out = np.full((len(step.vocabs), len(step.alignment)), np.nan)
    for m in step.present:
        out[m] = step.by_symbol(reference.member_logprobs(step.rows[m], *step.plain[m]))
    return out


def tolerances(step: Step, pool: PoolName, floor: float = FLOOR) -> NDArray[np.float64]:
    """How far each symbol may be off.

    The linear pool adds; the error is relative to the result.  The log-linear pool averages
    log-probabilities and subtracts the normaliser, so the error is relative to those.
    """
    if pool == "linear":
        return TOLERANCE * (1 + np.abs(pooled(step, pool)))
    scores = log_linear_scores(step, floor)
    return TOLERANCE * (1 + np.abs(scores) + np.abs(np.max(scores)))


def log_linear_scores(step: Step, floor: float = FLOOR) -> NDArray[np.float64]:
    """The weighted means of log-probabilities, not normalised."""
    weights = np.array([step.weights[m] for m in step.present])
    rows = member_rows(step)[step.present]
    has = np.array(
        [
            [step.alignment.twin(m, symbol) is not None for symbol in range(len(step.alignment))]
            for m in step.present
        ]
    )
    scores = weights / weights.sum() @ np.where(has, rows, floor)
    return np.where(has.any(axis=0), scores, -INF)


def scattered(step: Step, fused: Fused) -> NDArray[np.float32]:
    """Candidates as a row over all symbols, -inf where unlisted."""
    out = np.full(len(step.alignment), -INF, np.float32)
    out[fused.ids] = fused.logprobs
    return out


def by_bytes(fused: Fused) -> dict[reference.Symbol, float]:
    """The candidates in the words of the oracle."""
    symbols = (symbol_of(fused.alignment, int(symbol)) for symbol in fused.ids)
    return dict(zip(symbols, fused.logprobs.tolist(), strict=True))


def check_close(got: NDArray[Any], want: NDArray[np.float64], tolerance: NDArray[Any]) -> None:
    with np.errstate(over="ignore"):  # beyond float32: -inf
        possible = want.astype(np.float32) > -INF
    np.testing.assert_array_equal(got > -INF, possible)
    off = np.abs(got[possible] - want[possible]) / tolerance[possible]
    assert np.all(off <= 1), f"off by {off.max():.2f} tolerances"


def check_order(fused: Fused) -> None:
    """Most probable first, equal ones by symbol."""
    order = np.lexsort([fused.ids, -fused.logprobs])
    np.testing.assert_array_equal(order, np.arange(len(fused)))


def check_all_symbols(step: Step, pool: PoolName, floor: float = FLOOR) -> None:
    """With every symbol listed, everything is the oracle's."""
    want = pooled(step, pool, floor)
    tolerance = tolerances(step, pool, floor)
    result = fused(step, pool=pool, floor=floor, top=None, dense=True)
    check_close(scattered(step, result), want, tolerance)
    check_order(result)
    assert result.outside == -INF
    members = member_rows(step)[:, result.ids]
    absent = np.isnan(members)
    np.testing.assert_array_equal(np.isnan(result.member_logprobs), absent)
    for got, row in zip(result.member_logprobs, members, strict=True):
        if not np.isnan(row).any():
            check_close(got, row, TOLERANCE * (1 + np.abs(row)))
    check_dense(result, want, tolerance, pool)


def check_dense(
    result: Fused, want: NDArray[np.float64], tolerance: NDArray[np.float64], pool: PoolName
) -> None:
    assert result.dense is not None
    if pool == "log-linear":
        check_close(result.dense, want, tolerance)
        return
    got, p = np.exp(result.dense.astype(np.float64)), np.exp(want)
    off = np.abs(got - p)
    with np.errstate(invalid="ignore"):
        allowed = np.where(p > 0, p * np.expm1(np.minimum(tolerance, 1)), 0) + TINY
    assert np.all(off <= allowed)
    assert np.all(result.dense[want == -INF] == -INF)


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
        check_all_symbols(step, pool, floor)

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
        if pool == "linear":
            assert fused(step).logprobs == pytest.approx(np.log([0.5, 0.5]))
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


def check_candidates(step: Step, pool: PoolName, top: int) -> None:
    """The candidates are the best tokens, scored as by the oracle, and `outside` is a bound."""
    want = pooled(step, pool)
    tolerance = tolerances(step, pool)
    listed = np.isin(np.arange(len(want)), list(expected_candidates(step, top)))
    if not np.isfinite(want[listed].astype(np.float32)).any():
        return
    result = fused(step, pool=pool, top=top)
    check_order(result)
    everything = scattered(step, fused(step, pool=pool, top=None))
    if pool == "log-linear":  # normalised over the candidates
        shift = np.logaddexp.reduce(want[listed])
        want, everything = want - shift, everything - shift
        unlisted = everything[~listed] - tolerance[~listed]
    else:
        unlisted = everything[~listed]
    check_close(scattered(step, result), np.where(listed, want, -INF), tolerance)
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


def decided(
    step: Step, pool: PoolName, floor: float = FLOOR
) -> tuple[_core.Decision, int, list[int]]:
    native = _core.Pool(step.alignment._core, pool, floor)
    native.read(step.rows, step.weights)
    return *native.decide(), native.best()


def is_best(row: NDArray[np.float64], symbol: int) -> bool:
    """Whether no symbol is better, as far as float32 can tell."""
    best = row.max()
    return bool(row[symbol] >= best - 2 * TOLERANCE * (1 + abs(best)))


def clear_best(row: NDArray[np.float64]) -> int | None:
    """The best symbol, if float32 can tell it from the second."""
    symbol = int(np.argmax(row))
    others = np.delete(row, symbol).max(initial=-INF)
    return symbol if others < row[symbol] - 4 * TOLERANCE * (1 + abs(row[symbol])) else None


def check_decision(step: Step, pool: PoolName, floor: float = FLOOR) -> _core.Decision:
    """A decision is right, and it is taken where it can be."""
    want = pooled(step, pool, floor)
    decision, symbol, wishes = decided(step, pool, floor)
    rows = member_rows(step)
    bests = set()
    for m, wish in enumerate(wishes):
        assert (wish < 0) == (m not in step.present)
        if wish >= 0:
            assert is_best(rows[m], wish)
            bests.add(clear_best(rows[m]))
    if decision == _core.Decision.open:
        assert symbol == -1
        if pool == "linear":
            assert want.max() < np.log(0.5) + 2 * TOLERANCE
            assert len(bests) > 1 or bests == {None}
        return decision
    assert is_best(want, symbol)
    if decision == _core.Decision.agree:
        assert set(wishes) - {-1} == {symbol}
    else:
        assert want[symbol] > np.log(0.5) - 2 * TOLERANCE
        assert pool == "linear"
    return decision


class TestDecide:
    """The lossless short cut of greedy decoding."""

    @given(steps(), pools, st.just(FLOOR) | st.floats(-40, 0, width=32))
    def test_tiny_steps(self, step: Step, pool: PoolName, floor: float) -> None:
        check_decision(step, pool, floor)

    @every_pool
    @pytest.mark.parametrize("shape", SHAPES)
    def test_shapes(self, isa: str, shape: str, pool: PoolName) -> None:
        assert _core.isa() == isa
        for seed in range(3):
            check_decision(random_step(seed, "normal", shape), pool)

    @pytest.mark.parametrize(
        ("p", "q", "weights", "decision", "best"),
        [
            ([0.4, 0.3, 0.3], [0.4, 0.35, 0.25], [1, 1], "agree", 0),
            ([0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [1, 1], "certain", 0),
            ([0.1, 0.9, 0.0], [0.8, 0.2, 0.0], [1, 3], "certain", 0),
            ([0.6, 0.4, 0.0], [0.0, 0.4, 0.6], [1, 1], "open", -1),
            ([0.6, 0.4, 0.0], [0.0, 0.4, 0.6], [1, 0], "agree", 0),
        ],
    )
    def test_by_hand(self, p: Any, q: Any, weights: Any, decision: str, best: int) -> None:
        vocab = Vocab([b"a", b"b", b"c"])
        with np.errstate(divide="ignore"):
            rows = [np.log(np.array(row, np.float32)) for row in (p, q)]
        step = Step([vocab] * 2, rows, weights)
        assert decided(step, "linear")[:2] == (_core.Decision[decision], best)
        assert check_decision(step, "linear").name == decision

    def test_many_small_tokens_of_one_symbol_beat_one_large(self) -> None:
        vocab = Vocab([b"a", b"b", b"b", b"b"])
        row = np.array([1, 0, 0, 0], np.float32)
        assert decided(Step([vocab], [row], [1]), "linear")[1] == 1

    def test_several_ends_are_one_symbol(self) -> None:
        vocab = Vocab([b"a", b"</s>", b"<eot>"], end_ids=[1, 2])
        step = Step([vocab], [np.array([0.5, 0, 0], np.float32)], [1])
        assert decided(step, "linear")[1] == step.alignment.end

    def test_under_a_high_floor_agreement_decides_nothing(self) -> None:
        """Both like a best, but a little; each lacks what the other one has, at a floor above."""
        vocabs = [Vocab([b"a", b"b", b"x"]), Vocab([b"a", b"c", b"y"])]
        row = np.array([0.1, 0, 0], np.float32)
        step = Step(vocabs, [row, row], [1, 1])
        assert decided(step, "log-linear")[0] == _core.Decision.agree
        assert decided(step, "log-linear", floor=-0.1)[0] == _core.Decision.open
        assert fused(step, pool="log-linear", floor=-0.1).token_bytes(0) == b"b"


class TestLaws:
    """Design, section 5."""

    @given(steps(max_members=1), pools)
    def test_ensemble_of_one_is_that_one(self, step: Step, pool: PoolName) -> None:
        result = fused(step, pool=pool, top=None)
        own = result.member_logprobs[0]
        if pool == "linear":
            assert result.logprobs.tobytes() == own.tobytes()
        else:
            check_close(result.logprobs, own.astype(float), TOLERANCE * (1 + np.abs(own)))

    @given(steps(max_members=1), pools, st.lists(st.floats(0.01, 9), min_size=2, max_size=4))
    def test_identical_members_are_one(
        self, step: Step, pool: PoolName, weights: list[float]
    ) -> None:
        n = len(weights)
        many = Step([step.vocabs[0]] * n, [step.rows[0]] * n, weights)
        want = scattered(step, fused(step, top=None)).astype(float)
        got = scattered(many, fused(many, pool=pool, top=None))
        check_close(got, want, TOLERANCE * (1 + np.abs(want)))

    @given(steps(), pools, st.randoms(use_true_random=False))
    def test_order_of_members_does_not_matter(
        self, step: Step, pool: PoolName, random: Any
    ) -> None:
        want, tolerance = pooled(step, pool), tolerances(step, pool)
        order = list(range(len(step.vocabs)))
        random.shuffle(order)
        other = step.reordered(order)
        assert len(other.alignment) == len(step.alignment)
        check_close(scattered(other, fused(other, pool=pool, top=None)), want, tolerance)

    @given(steps(), pools, st.sampled_from([1e-30, 1e-3, 7.0, 1e30]))
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
        assert by_bytes(got) == pytest.approx(by_bytes(want), rel=TOLERANCE, abs=TOLERANCE)
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


def same_bits(a: Fused, b: Fused) -> None:
    for name in ("ids", "logprobs", "member_logprobs", "dense"):
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), name
    assert a.outside == b.outside


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


class OnlyDlpack:
    """An array library's own array: neither a buffer nor an ndarray."""

    def __init__(self, row: Row) -> None:
        self._row = row

    def __dlpack__(self, **options: Any) -> Any:
        return self._row.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._row.__dlpack_device__()


ABC = Vocab([b"a", b"b", b"c", b"<eos>"], end_ids=[3])
BCD = Vocab([b"b", b"c", b"d"])


def abc(*logits: float) -> Row:
    return np.array(logits or (0, 1, 2, 3), np.float32)


def abc_with(value: float) -> list[Row]:
    return [np.zeros(3, np.float32), abc(0, value, 0, 0)]


class TestInputs:
    alignment = align([BCD, ABC])

    @pytest.mark.parametrize(
        "wrap",
        [
            memoryview,
            bytearray,
            OnlyDlpack,
            lambda row: array.array("f", row),
            lambda row: np.ascontiguousarray(row).view(),
            lambda row: row.view(type("Subclass", (np.ndarray,), {})),
        ],
        ids=["memoryview", "bytearray", "dlpack", "array.array", "view", "subclass"],
    )
    def test_anything_with_a_buffer_or_dlpack(self, wrap: Any) -> None:
        if wrap is bytearray:
            wrap = lambda row: memoryview(bytearray(row.tobytes())).cast("f")  # noqa: E731
        rows = [np.zeros(3, np.float32), abc()]
        wrapped = [wrap(row) for row in rows]
        same_bits(fuse(wrapped, self.alignment, dense=True), fuse(rows, self.alignment, dense=True))

    @every_pool
    def test_rows_are_not_modified(self, pool: PoolName) -> None:
        step = random_step(8, "forbidden", "ties")
        before = [row.tobytes() for row in step.rows]
        for row in step.rows:
            row.flags.writeable = False
        fused(step, pool=pool, dense=True)
        assert [row.tobytes() for row in step.rows] == before

    @pytest.mark.parametrize(
        "row",
        [
            np.zeros(4),
            np.zeros(8, np.float32)[::2],
            np.zeros(4, np.int32),
            np.zeros(4, ">f4"),
            [0.0, 0.0, 0.0, 0.0],
            "abcd",
            3.0,
            OnlyDlpack(np.zeros(4)),  # type: ignore[arg-type]
            array.array("d", [0, 0, 0, 0]),
        ],
        ids=lambda row: f"{type(row).__name__}-{getattr(row, 'dtype', '')}",
    )
    def test_anything_else_is_a_type_error(self, row: Any) -> None:
        with pytest.raises(TypeError, match="row of member 1 must be a C-contiguous float32 array"):
            fuse([np.zeros(3, np.float32), row], self.alignment)

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            (np.zeros(3, np.float32), r"member 1 has shape \(3,\); its vocabulary has 4"),
            (np.zeros((1, 4), np.float32), r"member 1 has shape \(1, 4\)"),
            (abc(0, np.nan, 0, 0), "member 1 holds NaN"),
            (abc(np.nan, np.nan, np.nan, np.nan), "member 1 holds NaN"),
            (abc(-INF, -INF, np.nan, -INF), "member 1 holds NaN"),
            (abc(0, INF, 0, 0), r"member 1 holds \+inf"),
            (abc(-INF, -INF, -INF, -INF), "member 1 holds nothing but -inf"),
            (None, "member 1 has a weight but no row"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_bad_rows_name_the_member(self, row: Any, message: str) -> None:
        with pytest.raises(FusionError, match=message) as raised:
            fuse([np.zeros(3, np.float32), row], self.alignment)
        assert raised.value.member == 1

    def test_what_cannot_be_emitted_may_be_anything(self) -> None:
        vocab = Vocab([b"a", b"b", b"c"], [TokenKind.TEXT, TokenKind.CONTROL, TokenKind.UNUSED])
        result = fuse([np.array([3, INF, np.nan], np.float32)], align([vocab]))
        assert result.ids.tolist() == [0]
        assert result.logprobs.tolist() == [0]

    @pytest.mark.parametrize(
        ("weights", "message", "member"),
        [
            ([1], "expected 2 weights, one per member, got 1", None),
            ([1, 1, 1], "expected 2 weights", None),
            ([1, -1], "weight of member 1 must be a finite number >= 0, not -1", 1),
            ([np.nan, 1], "weight of member 0 .* not nan", 0),
            ([1, INF], "weight of member 1 .* not inf", 1),
            ([0, 0], "finite sum above 0", None),
            ([1.7e308, 1.7e308], "finite sum above 0", None),
        ],
    )
    def test_bad_weights(self, weights: list[float], message: str, member: int | None) -> None:
        with pytest.raises(FusionError, match=message) as raised:
            fuse([np.zeros(3, np.float32), abc()], self.alignment, weights=weights)
        assert raised.value.member == member
        with pytest.raises(FusionError, match=message):
            _core.normalise_weights(weights, 2)

    @pytest.mark.parametrize("n", [0, 1, 3])
    def test_wrong_number_of_rows(self, n: int) -> None:
        with pytest.raises(FusionError, match=f"expected 2 rows, got {n}"):
            fuse([np.zeros(3, np.float32)] * n, self.alignment)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"pool": "geometric"}, "unknown pool 'geometric'; known: linear, log-linear"),
            ({"top": 0}, "top must be at least 1"),
            ({"top": -3}, "top must be at least 1"),
            ({"floor": 1.0}, "floor must be a finite log-probability <= 0"),
            ({"floor": -INF}, "floor must be"),
            ({"floor": np.nan}, "floor must be"),
        ],
    )
    def test_bad_options(self, options: Any, message: str) -> None:
        with pytest.raises(FusionError, match=message) as raised:
            fuse([np.zeros(3, np.float32), abc()], self.alignment, **options)
        assert raised.value.member is None

    def test_a_failed_step_leaves_no_trace(self) -> None:
        rows = [np.zeros(3, np.float32), abc()]
        before = fuse(rows, self.alignment, dense=True)
        for bad in (np.nan, INF):
            with pytest.raises(FusionError):
                fuse(abc_with(bad), self.alignment, dense=True)
        same_bits(fuse(rows, self.alignment, dense=True), before)

    @pytest.mark.parametrize(
        ("blocks", "error", "message"),
        [
            ([(2, 3)], FusionError, "expected 2 blocks of rows, got 1"),
            ([], FusionError, "expected 2 blocks of rows, got 0"),
            ([(2, 3), (3, 4)], FusionError, "member 1 has rows for 3 steps, member 0 for 2"),
            ([(2, 3), (2, 5)], FusionError, "member 1 has shape"),
            ([(3,), (4,)], FusionError, "member 0 has shape"),
        ],
    )
    def test_bad_batches(self, blocks: Any, error: type[Exception], message: str) -> None:
        for dense in (False, True):
            with pytest.raises(error, match=message):
                fuse_batch([np.zeros(b, np.float32) for b in blocks], self.alignment, dense=dense)

    def test_an_empty_batch(self) -> None:
        rows = [np.zeros((0, n), np.float32) for n in (3, 4)]
        assert fuse_batch(rows, self.alignment) == []
