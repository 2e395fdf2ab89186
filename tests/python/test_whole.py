"""The best symbols of the whole pool, without listing them all: what listing them all gives."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
from fuse_checks import check_close, every_pool, member_rows, pooled, pools, tolerances
from hypothesis import assume, given
from hypothesis import strategies as st
from logitfuse import _core
from logitfuse.errors import FusionError
from logitfuse.pooling import PoolName, PoolOptions
from logitfuse.vocab import Vocab
from strategies_core import INF, SHAPES, Step, random_step, signed_steps, steps

#: Sums of float32 numbers in another order, nats; powers magnify it.
CLOSE = 2e-5


def native(step: Step, *options: Any) -> _core.Pool:
    pool = _core.Pool(step.alignment._core, *options)
    pool.read(step.rows, step.weights)
    return pool


def check_as_listed(step: Step, n: int, forced: list[int], *options: Any) -> None:
    """As if all symbols were listed, and all but the best and the forced ones left out."""
    pool = native(step, *options)
    try:
        everything = pool.candidates(_core.ALL, forced)
    except FusionError:
        with pytest.raises(FusionError, match="exclude each other"):
            pool.whole(n, forced)
        return
    of = {symbol: k for k, symbol in enumerate(everything.symbols.tolist())}
    fused = pool.whole(n, forced)
    symbols = fused.symbols.tolist()
    assert len(set(symbols)) == len(symbols)
    assert set(forced) & set(of) <= set(symbols)
    assert min(n, len(of)) <= len(symbols) <= n + len(set(forced))
    np.testing.assert_array_equal(
        np.lexsort([fused.symbols, -fused.logprobs]), np.arange(len(symbols))
    )
    want = everything.logprobs[[of[symbol] for symbol in symbols]]
    np.testing.assert_allclose(fused.logprobs, want, rtol=CLOSE, atol=CLOSE)
    np.testing.assert_allclose(fused.logprobs[:n], everything.logprobs[:n], rtol=CLOSE, atol=CLOSE)
    listed = [of[symbol] for symbol in symbols]
    assert fused.member_logprobs.tobytes() == everything.member_logprobs[:, listed].tobytes()
    left = np.delete(everything.logprobs, listed)
    assert fused.outside >= left.max(initial=-INF) - CLOSE * (1 + abs(left.max(initial=0)))
    assert fused.outside <= fused.logprobs[min(n, len(symbols)) - 1]
    assert (fused.outside == -INF) == (n >= len(of))


@given(steps(), pools, st.integers(1, 12), st.data())
def test_tiny_steps(step: Step, pool: PoolName, n: int, data: st.DataObject) -> None:
    symbols = st.integers(0, len(step.alignment) - 1)
    check_as_listed(step, n, data.draw(st.lists(symbols, max_size=3)), pool)


@given(signed_steps(), st.integers(1, 12))
def test_contrasts(step: Step, n: int) -> None:
    check_as_listed(step, n, [0], "contrast")


@pytest.mark.usefixtures("isa")
@every_pool
@pytest.mark.parametrize("same", [False, True], ids=["different", "one vocabulary"])
def test_long_rows(pool: PoolName, same: bool) -> None:
    for seed in range(6):
        step = random_step(seed, *SHAPES[seed : seed + 3])
        if same:
            step = random_step(seed, *SHAPES[seed : seed + 3], sizes=(1500,))
            step = Step(step.vocabs[:1] * len(step.rows), step.rows, step.weights)
            rows = [np.nan_to_num(row, nan=-3.0, neginf=-INF) for row in step.rows]
            step = Step(step.vocabs, rows, step.weights)
        for n in (1, 17, 1000):
            check_as_listed(step, n, [0, len(step.alignment) - 1, 0, 7], pool)


@given(steps(), pools)
def test_is_the_oracles(step: Step, pool: PoolName) -> None:
    want = pooled(step, pool)
    fused = native(step, pool).whole(len(step.alignment))
    got = np.full(len(step.alignment), -INF, np.float32)
    got[fused.symbols] = fused.logprobs
    check_close(got, want, tolerances(step, pool))
    assert fused.outside == -INF
    np.testing.assert_array_equal(
        np.isnan(fused.member_logprobs), np.isnan(member_rows(step)[:, fused.symbols])
    )


@given(steps(), pools.filter(lambda pool: pool != "contrast"), st.integers(1, 5))
def test_an_adapted_pool_gives_all_its_candidates(step: Step, pool: PoolName, top: int) -> None:
    one, two = (native(step, *astuple(PoolOptions(pool, union_top=top))) for _ in range(2))
    try:
        want = one.candidates(_core.ALL, [0])
    except FusionError:
        assume(False)
    got = two.whole(1, [0])
    assert got.symbols.tolist() == want.symbols.tolist()
    assert got.logprobs.tobytes() == want.logprobs.tobytes()


def test_refusals() -> None:
    vocab = Vocab([b"a", b"b"])
    pool = native(Step([vocab], [np.zeros(2, np.float32)], [1]), "log-linear")
    for n in (0, -1):
        with pytest.raises(FusionError, match=f"n must be at least 1, not {n}"):
            pool.whole(n)
    for symbol in (-1, 2):
        with pytest.raises(FusionError, match=f"symbol {symbol} is not in a union of 2"):
            pool.whole(1, [symbol])
