"""Small matrices of log-probabilities, without vocabularies, against the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
from fuse_checks import TOLERANCE, consistency_error, every_pool, pools
from hypothesis import assume, given
from hypothesis import strategies as st
from logitfuse import _core
from logitfuse.errors import FusionError
from logitfuse.pooling import PoolName, pool_matrix
from numpy.typing import NDArray
from strategies_core import INF

HALF = np.full((2, 2), np.log(0.5), np.float32)


def distributions(seed: int, members: int, n: int, zeros: bool) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    rows = rng.normal(0, 4, (members, n))
    if zeros:
        rows[rng.random(rows.shape) < 0.3] = -INF
        rows[:, 0] = 0
    return (rows - np.logaddexp.reduce(rows, axis=1, keepdims=True)).astype(np.float32)


class TestPoolMatrix:
    @given(
        st.integers(0, 999),
        st.integers(1, 4),
        st.sampled_from([1, 2, 17, 257]),
        st.booleans(),
        pools,
    )
    def test_oracle(self, seed: int, members: int, n: int, zeros: bool, pool: PoolName) -> None:
        table = distributions(seed, members, n, zeros)
        weights = np.random.default_rng(seed).dirichlet(np.ones(members))
        if pool == "contrast" and members > 1:
            weights[1:] *= -1  # nobody vetoes
        want = reference.pool_matrix(table, weights, pool)
        base = np.sort(table[0].astype(float))
        assume(not np.any(np.abs(base[:-1] - base[-1] - np.log(0.1)) < 1e-5))
        got = pool_matrix(table, weights.tolist(), pool)
        np.testing.assert_array_equal(got > -INF, want > -INF)
        sizes = np.abs(np.where(np.isfinite(table), table, 0)).sum(axis=0)
        tolerance = 4 * TOLERANCE * (1 + sizes + sizes[want > -30].max())
        if pool == "consistency":
            tolerance += consistency_error(table.astype(float), weights, None)
        known = want > -INF
        assert np.all(np.abs(got[known] - want[known]) <= tolerance[known])
        assert np.exp(got.astype(float)).sum() == pytest.approx(1, abs=1e-6)

    @every_pool
    def test_on_every_instruction_set(self, isa: str, pool: PoolName) -> None:
        table = distributions(1, 3, 257, False)
        got = pool_matrix(table, [1, 0.5, 2], pool)
        assert _core.isa() == isa
        _core.set_isa("baseline")
        assert got.tobytes() == pool_matrix(table, [1, 0.5, 2], pool).tobytes()

    @every_pool
    def test_a_row_of_nan_is_absent(self, pool: PoolName) -> None:
        table = distributions(2, 3, 9, False)
        absent = table.copy()
        absent[1] = np.nan
        want = pool_matrix(table[[0, 2]], [1, 2], pool)
        assert pool_matrix(absent, [1, 5, 2], pool).tobytes() == want.tobytes()
        assert pool_matrix(table, [1, 0, 2], pool).tobytes() == want.tobytes()

    def test_a_contrast_without_its_base(self) -> None:
        rows = np.array([[np.nan, np.nan], HALF[0]], np.float32)
        with pytest.raises(FusionError, match="needs a member of positive weight"):
            pool_matrix(rows, [1, -1], "contrast")

    def test_what_the_base_finds_implausible_is_out(self) -> None:
        p = np.log(np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]], np.float32))
        for share, left in ((0.1, 3), (0.2, 2), (0.6, 1)):
            got = pool_matrix(p, [1, 1], "contrast", plausibility=share)
            assert np.count_nonzero(got > -INF) == left

    def test_what_nobody_gives_cannot_be_subtracted(self) -> None:
        rows = np.array([[np.log(0.5)] * 2, [0, -INF]], np.float32)
        got = np.exp(pool_matrix(rows, [1, -0.5], "contrast"))
        assert got == pytest.approx(np.array([0.5, 0.5**0.5]) / (0.5 + 0.5**0.5))

    def test_the_outlier_counts_little(self) -> None:
        """Two agree; the third is surer of something else."""
        p = np.array([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [0.0, 0.05, 0.95]])
        with np.errstate(divide="ignore"):
            rows = np.log(p).astype(np.float32)
        linear, core = (np.exp(pool_matrix(rows, pool=pool)) for pool in ("linear", "consistency"))
        assert core[2] / linear[2] != pytest.approx(1, abs=0.01)
        want = np.exp(reference.pool_matrix(rows, [1, 1, 1], "consistency"))
        assert core == pytest.approx(want, abs=1e-5)

    @pytest.mark.parametrize(
        ("matrix", "options", "message"),
        [
            (HALF[0], {"weights": [1, 1]}, "not of 1 dimensions"),
            (HALF, {"weights": [1]}, "expected 2 weights"),
            (HALF[:, :0], {}, "members x symbols, at least one"),
            (np.array([[0, np.nan]], np.float32), {}, "member 0 holds NaN"),
            (np.array([[0, 0.1]], np.float32), {}, "member 0 holds a log-probability above 0"),
            (np.full((1, 2), np.nan, np.float32), {}, "finite sum above 0"),
            (HALF, {"pool": "mean"}, "unknown pool 'mean'"),
            (HALF, {"exponent": 0}, "exponent must be"),
            (np.array([[0, -INF], [-INF, 0]], np.float32), {"pool": "min"}, "exclude each other"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_refusals(self, matrix: Any, options: dict[str, Any], message: str) -> None:
        with pytest.raises(FusionError, match=message):
            pool_matrix(matrix, **options)

    def test_only_float32(self) -> None:
        with pytest.raises(TypeError):
            pool_matrix(HALF.astype(float))
