"""The bootstrap: right by theory, stratified, paired, the same every time."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from logitfuse.evaluation.statistics import MIN_STRATUM, Interval, Resamples
from numpy.typing import NDArray

Floats = NDArray[np.float64]
NAN = math.nan


def half_width(found: Interval) -> float:
    return (found.high - found.low) / 2


@st.composite
def columns(draw: st.DrawFn, k: int) -> Floats:
    """Positive figures ``[n, k]``, some of them missing."""
    n = draw(st.integers(1, 60))
    return draw(arrays(np.float64, (n, k), elements=st.floats(0.5, 9) | st.just(NAN)))


class TestResamples:
    @settings(max_examples=30)
    @given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=120), st.integers(1, 40))
    def test_hold_as_many_of_each_group(self, groups: list[str], n: int) -> None:
        sizes = Counter(groups)
        resamples = Resamples(groups, n)
        assert resamples.items == len(groups)
        for group, size in sizes.items():
            is_in = np.array([g == group for g in groups], np.float64)
            drawn = resamples.totals(is_in[:, None])[:, 0]
            if size >= MIN_STRATUM:
                assert (drawn == size).all()
        assert (resamples.totals(np.ones((len(groups), 1))) == len(groups)).all()

    def test_groups_of_one_do_not_look_certain(self) -> None:
        values = np.arange(200.0)
        alone = Resamples([f"group {i}" for i in range(200)]).mean(values)
        assert alone == Resamples(["one"] * 200).mean(values)
        assert half_width(alone) > 5

    def test_strata_explain_what_differs_between_groups(self) -> None:
        groups = ["easy"] * 100 + ["hard"] * 100
        values = np.array([1.0] * 100 + [0.0] * 100)
        assert Resamples(groups).mean(values) == (0.5, 0.5, 0.5)
        assert half_width(Resamples([""] * 200).mean(values)) > 0.05

    def test_every_item_is_drawn_equally_often(self) -> None:
        n = 4000
        drawn = Resamples(["a"] * 30 + ["b"] * 50, n).totals(np.eye(80))
        assert drawn.mean(axis=0) == pytest.approx(np.ones(80), abs=5 / math.sqrt(n))
        assert drawn.var(axis=0)[:30].mean() == pytest.approx(1 - 1 / 30, rel=0.02)

    def test_do_not_depend_on_how_they_are_cut(self, monkeypatch: pytest.MonkeyPatch) -> None:
        groups, values = ["a"] * 40 + ["b"] * 13, np.random.default_rng(0).normal(size=53)
        whole = Resamples(groups).mean(values)
        monkeypatch.setattr("logitfuse.evaluation.statistics._CHUNK", 1000)
        again = Resamples(groups).mean(values)
        assert again == pytest.approx(whole, abs=1e-12)

    def test_seed(self) -> None:
        values = np.random.default_rng(0).normal(size=50)
        groups = ["a"] * 50
        assert Resamples(groups).mean(values) == Resamples(groups).mean(values)
        assert Resamples(groups).mean(values) != Resamples(groups, seed=1).mean(values)

    def test_infinities_are_in_the_resamples_that_hold_them(self) -> None:
        resamples = Resamples(["a"] * 20, 500)
        values = np.ones(20)
        values[3], held = math.inf, resamples.totals(np.eye(20))[:, 3] > 0
        sums = resamples.totals(values[:, None])[:, 0]
        assert (np.isinf(sums) == held).all()
        assert (sums[~held] == 20).all()

    def test_wrong_sizes(self) -> None:
        with pytest.raises(ValueError, match=r"figures of shape \(3, 2\) for 4 items"):
            Resamples(["a"] * 4).mean([1.0, 2.0, 3.0])
        with pytest.raises(ValueError, match="0 resamples"):
            Resamples(["a"], 0)


class TestTheory:
    @pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
    def test_binomial_coverage(self, p: float) -> None:
        rng = np.random.default_rng(int(100 * p))
        n, trials, hit = 150, 400, 0
        for trial in range(trials):
            found = Resamples(["a"] * n, 400, seed=trial).mean(rng.random(n) < p)
            hit += found.low <= p <= found.high
        # 95 % less what a percentile interval of 150 answers lacks; 5 sigma of the simulation.
        assert abs(hit / trials - 0.94) < 5 * math.sqrt(0.94 * 0.06 / trials)

    def test_mean_of_normal_figures(self) -> None:
        values = np.random.default_rng(1).normal(2.0, 3.0, 5000)
        found = Resamples(["a"] * 5000).mean(values)
        assert found.mean == pytest.approx(values.mean(), abs=1e-12)
        assert half_width(found) == pytest.approx(1.96 * 3 / math.sqrt(5000), rel=0.08)

    def test_paired_differences_know_what_is_common(self) -> None:
        rng = np.random.default_rng(2)
        common, noise = rng.normal(0, 5, 2000), rng.normal(0.3, 1.0, 2000)
        resamples = Resamples(["a"] * 2000)
        paired = resamples.difference(common + noise, common)
        assert paired.mean == pytest.approx(noise.mean(), abs=1e-9)
        assert half_width(paired) == pytest.approx(1.96 / math.sqrt(2000), rel=0.08)
        assert half_width(resamples.mean(common)) > 4 * half_width(paired)

    def test_ratio_by_the_delta_method(self) -> None:
        rng = np.random.default_rng(3)
        size = rng.uniform(50, 200, 3000)
        bits = 2.5 * size + rng.normal(0, 20, 3000)
        found = Resamples(["a"] * 3000).ratio(bits, size)
        ratio = bits.sum() / size.sum()
        deviation = (bits - ratio * size).std() / size.mean() / math.sqrt(3000)
        assert found.mean == pytest.approx(ratio, abs=1e-12)
        assert half_width(found) == pytest.approx(1.96 * deviation, rel=0.08)

    def test_exact_small_cases(self) -> None:
        # Of two items, a quarter of the resamples hold only the first, a quarter only the second.
        assert Resamples(["a"] * 2).mean([0.0, 1.0]) == (0.5, 0.0, 1.0)
        assert Resamples(["a"]).mean([0.25]) == (0.25, 0.25, 0.25)
        assert Resamples(["a"] * 3).ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) == (2.0, 2.0, 2.0)
        assert Resamples(["a"] * 2).difference([3.0, 1.0], [1.0, 1.0]) == (1.0, 0.0, 2.0)


class TestMissing:
    @given(columns(1))
    def test_mean_is_of_what_is_there(self, table: Floats) -> None:
        values = table[:, 0]
        found = Resamples(["a"] * len(values), 50).mean(values)
        there = values[~np.isnan(values)]
        if len(there):
            assert found.mean == pytest.approx(there.mean())
            assert there.min() - 1e-9 <= found.low <= found.high <= there.max() + 1e-9
        else:
            assert np.isnan(found).all()

    @given(columns(2))
    def test_pairs_are_left_out_together(self, table: Floats) -> None:
        a, b = table.T
        resamples = Resamples(["a"] * len(a), 50)
        both = ~np.isnan(a) & ~np.isnan(b)
        found, ratio = resamples.difference(a, b), resamples.ratio(a, b)
        if both.any():
            assert found.mean == pytest.approx((a[both] - b[both]).mean())
            assert ratio.mean == pytest.approx(a[both].sum() / b[both].sum())
            assert resamples.difference(b, a) == pytest.approx(
                (-found.mean, -found.high, -found.low)
            )
        else:
            assert np.isnan([*found, *ratio]).all()

    @given(columns(3))
    def test_ratio_difference(self, table: Floats) -> None:
        a, b, size = table.T
        resamples = Resamples(["a"] * len(a), 50)
        found = resamples.ratio_difference(a, size, b, size)
        there = ~np.isnan(table).any(axis=1)
        if there.any():
            expected = resamples.ratio(np.where(there, a - b, NAN), size)
            assert found == pytest.approx(expected, abs=1e-9)
        else:
            assert np.isnan(found).all()

    def test_nothing_at_all(self) -> None:
        assert np.isnan(Resamples([]).mean([])).all()
        assert np.isnan(Resamples(["a"] * 3).ratio([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])).all()
