"""What the tests of the pool share: the oracle's answers and how near to them is near enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import assume
from hypothesis import strategies as st
from logitfuse import _core
from logitfuse.pooling import EXPONENT, FLOOR, PLAUSIBILITY, POOLS, Fused, PoolName, fuse
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
#: Weights of these are normalised, and identical members are one.
AVERAGES: tuple[PoolName, ...] = ("linear", "log-linear", "power", "min", "consistency")
averages = st.sampled_from(AVERAGES)


def fused(step: Step, **options: Any) -> Fused:
    return fuse(step.rows, step.alignment, weights=step.weights, **options)


def pooled(
    step: Step,
    pool: PoolName,
    floor: float = FLOOR,
    exponent: float = EXPONENT,
    plausibility: float = PLAUSIBILITY,
    listed: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """The oracle's row over all symbols; an impossible step is skipped.

    So is a contrast in which float32 cannot tell whether the base finds a symbol plausible.
    """
    if pool == "contrast":
        check_clear(member_rows(step)[base_of(step)], plausibility)
    candidates = None
    if listed is not None:
        candidates = {symbol_of(step.alignment, int(symbol)) for symbol in np.flatnonzero(listed)}
    try:
        return step.by_symbol(
            reference.pool(
                *(step.rows, step.plain, step.weights, pool),
                *(floor, exponent, plausibility, candidates),
            )
        )
    except ValueError:
        assume(False)
        raise


def base_of(step: Step) -> int:
    """The first member of positive weight."""
    return next(m for m, weight in enumerate(step.weights) if weight > 0)


def best_symbol(step: Step, member: int) -> int:
    """The best of a member; tests/python/test_decide.py shows that it is."""
    native = _core.Pool(step.alignment._core, "linear")
    native.read(step.rows, [float(m == member) for m in range(len(step.rows))])
    return native.best()[member]


def check_clear(base: NDArray[np.float64], plausibility: float) -> None:
    """Skips a step where a symbol is at the edge of the plausible."""
    descending = -np.sort(-base)
    if descending[0] == -INF:
        assume(False)
    least = descending[0] + np.log(plausibility)
    if np.any(np.abs(descending[1:] - least) <= 4 * TOLERANCE * (1 + np.abs(least))):
        assume(False)


def member_rows(step: Step) -> NDArray[np.float64]:
    """The oracle's rows of the single members, NaN for absent ones."""
    out = np.full((len(step.vocabs), len(step.alignment)), np.nan)
    for m in step.present:
        out[m] = step.by_symbol(reference.member_logprobs(step.rows[m], *step.plain[m]))
    return out


def tolerances(step: Step, pool: PoolName, **options: Any) -> NDArray[np.float64]:
    """How far each symbol may be off; options as for `pooled`.

    The linear pool adds; the error is relative to the result.  The other ones add up, or choose
    from, log-probabilities and subtract the normaliser, so the error is relative to those.
    """
    want = pooled(step, pool, **options)
    if pool == "linear":
        return TOLERANCE * (1 + np.abs(want))
    members = [
        reference.member_logprobs(row, *plain) if weight else {}
        for row, plain, weight in zip(step.rows, step.plain, step.weights, strict=True)
    ]
    options.pop("plausibility", None)
    return adapted_tolerances(step, members, want, pool, **options)


def adapted_tolerances(
    step: Step,
    members: Sequence[dict[reference.Symbol, float]],
    want: NDArray[np.float64],
    pool: PoolName,
    floor: float = FLOOR,
    exponent: float = EXPONENT,
    listed: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """As `tolerances`, for what members say after something was done to it."""
    symbols, weights, table = reference.member_table(members, step.weights, pool, floor, exponent)
    rows = np.array([step.by_symbol(dict(zip(symbols, row, strict=True))) for row in table])
    shares = np.abs(weights) / np.abs(weights).sum()
    extra: Any = 0.0
    match pool:
        case "log-linear" | "product" | "contrast":
            factors = np.abs(shares if pool == "log-linear" else weights)
            sizes = factors @ np.abs(np.where(np.isfinite(rows), rows, 0))
        case "power":
            nearest = rows.max(axis=0) if exponent > 0 else rows.min(axis=0)
            sizes = (np.abs(nearest) + 1 - np.log(shares.min())) * max(1, 1 / abs(exponent))
        case "min":
            sizes = np.abs(rows.min(axis=0))
        case _:
            sizes = np.abs(want)
            extra = consistency_error(rows, shares, listed)
    sizes = np.where(np.isfinite(sizes), sizes, 0)
    peak = sizes[want >= want.max() - 30].max()
    return TOLERANCE * (1 + sizes + peak) + extra


def consistency_error(
    rows: NDArray[np.float64], shares: NDArray[np.float64], listed: NDArray[np.bool_] | None
) -> NDArray[np.float64]:
    """What the error of a probability makes of sums of consistencies and of entropies."""
    off = 4 * TOLERANCE
    mask = np.ones(rows.shape[1], bool) if listed is None else listed
    with np.errstate(divide="ignore", invalid="ignore"):
        c, m = reference.consistency(rows, shares[:, None], mask)
        p = m * np.exp(rows - rows.max(axis=0))
        of_symbols = off * np.nan_to_num(p.sum(axis=0) / (c * p).sum(axis=0), posinf=1e30)
    possible = mask & (rows > -INF).any(axis=0)
    of_members = off * (2 / 0.01 + 1 / c[:, possible].mean(axis=1).min())
    return of_symbols + of_symbols[possible].min() + 2 * of_members  # type: ignore[no-any-return]


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


def check_all_symbols(step: Step, pool: PoolName, **options: float) -> None:
    """With every symbol listed, everything is the oracle's."""
    want = pooled(step, pool, **options)
    tolerance = tolerances(step, pool, **options)
    result = fused(step, pool=pool, **options, top=None, dense=True)
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
    if pool != "linear":
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
