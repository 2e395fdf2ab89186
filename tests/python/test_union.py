"""The top-k union: every member speaks about what any of them likes best."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
from fuse_checks import (
    TOLERANCE,
    adapted_tolerances,
    base_of,
    check_clear,
    check_close,
    check_order,
    every_pool,
    fused,
    pools,
    same_bits,
    scattered,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from logitfuse import _core
from logitfuse.errors import FusionError
from logitfuse.pooling import FLOOR, PoolName, fuse
from logitfuse.vocab import Vocab
from numpy.typing import NDArray
from strategies_core import INF, Row, Step, emitted, random_step, steps, symbol_of

Members = list[dict[reference.Symbol, float]]


def best_symbols(step: Step, top: int) -> list[int]:
    """Symbols of the best tokens of all members present, and the end."""
    found = {step.alignment.end}
    for m in step.present:
        ids, row = emitted(step.vocabs[m]), step.rows[m]
        ids = ids[row[ids] > -INF]
        for token in ids[np.lexsort([ids, -row[ids]])][:top]:
            found.add(step.alignment.symbol(m, int(token)))
    return sorted(symbol for symbol in found if symbol is not None)


def backed_off(step: Step, union: list[int]) -> Members:
    """The oracle's members on the union; nothing of absent ones."""
    present = [reference.member_logprobs(step.rows[m], *step.plain[m]) for m in step.present]
    adapted = reference.back_off(present, [symbol_of(step.alignment, s) for s in union])
    return [
        adapted[step.present.index(m)] if m in step.present else {} for m in range(len(step.rows))
    ]


def expected(step: Step, members: Members, pool: PoolName) -> NDArray[np.float64]:
    if pool == "contrast":
        check_clear(step.by_symbol(members[base_of(step)]), 0.1)
    try:
        return step.by_symbol(reference.pool_members(members, step.weights, pool))
    except ValueError:
        assume(False)
        raise


def check_union(step: Step, pool: PoolName, top: int, forced: list[int]) -> None:
    union = sorted({*best_symbols(step, top), *forced})
    members = backed_off(step, union)
    want = expected(step, members, pool)
    native = _core.Pool(step.alignment._core, pool, FLOOR, union_top=top)
    native.read(step.rows, step.weights)
    assert native.decide() == (_core.Decision.open, -1)
    assert native.certain_without(0.0) == -1
    got = native.candidates(1, forced)
    assert set(got.symbols.tolist()) <= set(union)
    assert got.outside == -INF
    row = np.full(len(want), -INF, np.float32)
    row[got.symbols] = got.logprobs
    # Shares are quotients: their errors are relative to what is divided.
    sizes = [abs(lp) for m in step.present for lp in members[m].values() if lp > -INF]
    tolerance = 8 * adapted_tolerances(step, members, want, pool) + TOLERANCE * max(
        sizes, default=0
    )
    check_close(row, want, tolerance)


class TestUnion:
    @given(steps(), pools, st.integers(1, 5), st.data())
    def test_tiny_steps(self, step: Step, pool: PoolName, top: int, data: Any) -> None:
        usable = {
            step.alignment.symbol(m, int(token)) or 0
            for m, vocab in enumerate(step.vocabs)
            for token in emitted(vocab)
        }
        forced = data.draw(st.lists(st.sampled_from(sorted(usable)), max_size=3))
        check_union(step, pool, top, forced)

    @pytest.mark.parametrize("pool", ["linear", "log-linear", "power", "min", "consistency"])
    @pytest.mark.parametrize("shape", ["normal", "ties", "one-hot"])
    def test_shapes(self, shape: str, pool: PoolName) -> None:
        for top in (1, 10, 40):
            check_union(random_step(11, "normal", shape, "normal"), pool, top, [])

    def test_by_hand(self) -> None:
        """b lacks "hello" and "help": what it gives "hel" is for these, as a likes them."""
        a, b = Vocab([b"hello", b"help", b"x", b"y"]), Vocab([b"hel", b"x", b"y", b"z"])
        rows: list[Row] = [
            np.log(np.array(p, np.float32)) for p in ([0.6, 0.2, 0.1, 0.1], [0.5, 0.4, 0.05, 0.05])
        ]
        step = Step([a, b], rows, [1, 1])
        result = fused(step, union_top=2)
        # The union is hello, help, x, hel.  Only b has "hel", which keeps 0.5 / 1.3 of it.
        hel = 0.5 * 0.5 / 1.3
        first = {b"hello": 0.6 / 0.9, b"help": 0.2 / 0.9, b"x": 0.1 / 0.9}
        second = {b"hello": 0.5 * 0.6 / 1.3, b"help": 0.5 * 0.2 / 1.3, b"hel": hel, b"x": 0.4}
        total = sum(second.values())
        want = {
            text: (first.get(text, 0) + second.get(text, 0) / total) / 2
            for text in {*first, *second}
        }
        got = {result.token_bytes(k): float(np.exp(result.logprobs[k])) for k in range(len(result))}
        assert got == pytest.approx(want)
        assert result.member_logprobs[1, 0] == -INF  # what b itself says of "hello"

    def test_the_longest_prefix_counts(self) -> None:
        a, b = Vocab([b"abcd"]), Vocab([b"a", b"ab", b"abd", b"abcde"])
        rows = [np.zeros(1, np.float32), np.log(np.array([0.1, 0.2, 0.3, 0.4], np.float32))]
        result = fused(Step([a, b], rows, [1, 1]), union_top=1)
        # b's best is abcde; its "ab" stands for abcd.  a has abcd for both: 1, shared as b likes.
        got = {result.token_bytes(k): float(np.exp(result.logprobs[k])) for k in range(len(result))}
        assert got[b"abcd"] == pytest.approx((1 / 1.4 + 0.2 / 0.6) / 2)

    def test_several_tokens_are_not_counted_twice(self) -> None:
        """UniTE gives all words with the first piece "a" the whole of it."""
        words = [b"a%d" % k for k in range(10)]
        many, one = Vocab(words), Vocab([b"a", b"b"])
        step = Step(
            [many, one], [np.zeros(10, np.float32), np.array([0, 0], np.float32)], [0.5, 0.5]
        )
        result = fused(step, union_top=10)
        of_b = next(k for k in range(len(result)) if result.token_bytes(k) == b"b")
        assert np.exp(result.logprobs[of_b]) == pytest.approx(0.25)

    @given(steps(max_members=1), st.integers(1, 5))
    def test_one_member_is_its_best(self, step: Step, top: int) -> None:
        result = fused(step, union_top=top)
        own = result.member_logprobs[0].astype(float)
        want = own - np.logaddexp.reduce(own)
        check_close(result.logprobs, want, 4 * TOLERANCE * (1 + np.abs(own) + np.abs(own[0])))

    @every_pool
    def test_dense_and_batch_and_bits(self, isa: str, pool: PoolName) -> None:
        step = random_step(12, "normal", "normal", "ties")
        if pool == "contrast":
            step = step.weighted([1, -0.5, -0.5])
        got = fused(step, pool=pool, union_top=10, dense=True)
        check_order(got)
        assert got.dense is not None
        np.testing.assert_array_equal(got.dense, scattered(step, got))
        assert np.exp(got.logprobs.astype(float)).sum() == pytest.approx(1, abs=1e-6)
        assert _core.isa() == isa
        _core.set_isa("baseline")
        same_bits(got, fused(step, pool=pool, union_top=10, dense=True))

    def test_refusals(self) -> None:
        step = random_step(13, "normal", "normal")
        with pytest.raises(FusionError, match="union_top must be at least 1"):
            fuse(step.rows, step.alignment, union_top=-1)
        native = _core.Pool(step.alignment._core, "linear", union_top=3)
        with pytest.raises(FusionError, match="takes no pivot"):
            native.restrict(0)
        offsets = np.zeros(len(step.vocabs[0]) + 1, np.int64)
        with pytest.raises(FusionError, match="takes no projections"):
            native.project(0, offsets, np.zeros(0, np.int32), np.zeros(0, np.float32))
