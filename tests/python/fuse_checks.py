"""What the tests of the pool share: the oracle's answers and how near to them is near enough."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import assume
from hypothesis import strategies as st
from logitfuse.pooling import FLOOR, POOLS, Fused, PoolName, fuse
from numpy.typing import NDArray
from strategies_core import (
    INF,
    Step,
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


def same_bits(a: Fused, b: Fused) -> None:
    for name in ("ids", "logprobs", "member_logprobs", "dense"):
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), name
    assert a.outside == b.outside
