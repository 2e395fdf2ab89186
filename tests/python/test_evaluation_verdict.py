"""Intervals where nothing varies, and what is said where there is little to say."""

from __future__ import annotations

from typing import Any

import pytest
from logitfuse.evaluation.statistics import Interval, certain_share
from logitfuse.evaluation.summary import Row, Summary, summarise
from logitfuse.evaluation.table import Outcome


def outcome(item: str, contender: str, score: float | None, **data: Any) -> Outcome:
    scores = {} if score is None else {"right": score}
    error = "it failed" if score is None else None
    seconds = 0.1 * len(contender)
    return Outcome("k", "exact", item, "all", contender, scores, data, seconds, error=error)


def summary_of(*rows: Outcome, members: tuple[str, ...] = ("a", "b")) -> Summary:
    return summarise(
        rows,
        task="exact",
        title="",
        metrics=["right"],
        members=members,
        ensemble="ensemble" if len(members) > 1 else members[0],
        resamples=200,
    )


def everybody(n: int, a: float, b: float, ensemble: float) -> list[Outcome]:
    return [
        outcome(f"q{k}", name, score)
        for k in range(n)
        for name, score in (("a", a), ("b", b), ("ensemble", ensemble))
    ]


def bpb(rows: list[Outcome]) -> Summary:
    return summarise(
        rows,
        task="bpb",
        title="",
        metrics=["bits_per_byte"],
        members=["a", "b"],
        ensemble="ensemble",
        lower_is_better=True,
    )


def row(summary: Summary, name: str) -> Row:
    return next(one for one in summary.rows if one.name == name)


class TestEqualValues:
    @pytest.mark.parametrize(
        ("n", "low"), [(1, 0.025), (5, 0.4782), (10, 0.6915), (30, 0.8843), (100, 0.9638)]
    )
    def test_is_the_exact_bound(self, n: int, low: float) -> None:
        """Tables of Clopper and Pearson for n of n."""
        assert certain_share(n) == pytest.approx(low, abs=5e-5)

    def test_shares(self) -> None:
        summary = summary_of(*everybody(10, 1, 0, 1))
        low = certain_share(10)
        assert low == pytest.approx(0.6915, abs=1e-4)
        assert row(summary, "a").scores["right"] == pytest.approx((1, low, 1))
        assert row(summary, "b").scores["right"] == pytest.approx((0, 0, 1 - low))
        assert row(summary, "ensemble").by_group["all"] == pytest.approx((1, low, 1))
        lot = row(summary, "random member (expected)").scores["right"]
        assert lot == pytest.approx((0.5, low / 2, 1 - low / 2))

    def test_differences(self) -> None:
        summary = summary_of(*everybody(10, 1, 0, 1))
        low = certain_share(10)
        assert row(summary, "ensemble").over_best["right"] == pytest.approx((0, low - 1, 1 - low))
        assert row(summary, "b").over_best["right"] == pytest.approx((-1, -1, 1 - 2 * low))
        # It is the best member itself.
        assert row(summary, "a").over_best["right"] == Interval(0, 0, 0)

    def test_two_items_are_no_proof(self) -> None:
        summary = summary_of(*everybody(2, 1, 0, 0))
        assert not any("do not use it" in note for note in summary.notes)
        assert any("fewer than 10 items" in note for note in summary.notes)

    def test_bits_are_no_shares(self) -> None:
        rows = [
            Outcome("k", "bpb", f"w{k}", "g", name, {"bits": 8.0, "bytes": 16.0}, seconds=1.0)
            for k in range(5)
            for name in ("a", "b", "ensemble")
        ]
        assert row(bpb(rows), "a").scores["bits_per_byte"] == Interval(0.5, 0.5, 0.5)

    def test_one_window_is_no_proof(self) -> None:
        rows = [
            Outcome("k", "bpb", "w", "g", name, {"bits": bits, "bytes": 16.0}, seconds=1.0)
            for name, bits in (("a", 8.0), ("b", 8.0), ("ensemble", 9.0))
        ]
        summary = bpb(rows)
        assert "Nothing can be said" in summary.verdict
        assert not any("do not use it" in note for note in summary.notes)


class TestVerdict:
    def test_all_samples_failed(self) -> None:
        rows = everybody(40, 1, 0, 0)
        rows += [outcome(f"q{k}", "a sample 1", None) for k in range(40)]
        said = summary_of(*rows).verdict
        assert "nan" not in said
        assert "Nothing can be said about a asked again (self-consistency)" in said

    def test_one_member(self) -> None:
        rows = [outcome(f"q{k}", "a", float(k % 2)) for k in range(40)]
        summary = summary_of(*rows, members=("a",))
        assert [one.kind for one in summary.rows] == ["member"]
        assert summary.verdict == "a is alone: there is no ensemble to compare it with."
        assert not any("best member" in note for note in summary.notes)

    def test_nothing_at_all(self) -> None:
        rows = [outcome(f"q{k}", name, None) for k in range(30) for name in ("a", "b", "ensemble")]
        summary = summary_of(*rows)
        assert "0 items in common" in summary.verdict
        assert "nan" not in " ".join((summary.verdict, *summary.notes))
        summary.as_dict()

    def test_only_the_ensemble_failed(self) -> None:
        rows = [outcome(f"q{k}", name, 1.0) for k in range(30) for name in "ab"]
        rows += [outcome(f"q{k}", "ensemble", None) for k in range(30)]
        summary = summary_of(*rows)
        assert "Nothing can be said about the ensemble" in summary.verdict
        assert any("ensemble has no score on 30 of 30" in note for note in summary.notes)

    @pytest.mark.parametrize(("times", "said"), [(0.001, "0.001"), (2.25, "2.2"), (1234, "1,234")])
    def test_costs_are_readable(self, times: float, said: str) -> None:
        rows = []
        for k in range(40):
            for name, score in (("a", 0), ("b", 0), ("ensemble", k % 2)):
                own = outcome(f"q{k}", name, float(score)).__dict__
                seconds = times if name == "ensemble" else 1.0
                rows.append(Outcome(**own | {"seconds": seconds}))
        assert f"at {said} times its seconds" in summary_of(*rows).verdict
