"""Fits: optimal, whatever the data, and honest about what they are worth."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from byte_texts import Scored, members_of, scored
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from logitfuse import _core
from logitfuse.errors import ConfigError, FusionError
from logitfuse.fitting import (
    MIN_BYTES,
    MIN_QUESTIONS,
    fit_linear,
    fit_log_linear,
    fit_outcomes,
    fit_text,
    gain,
    observed,
)
from numpy.typing import NDArray

Floats = NDArray[np.float64]
INF, NAN = math.inf, math.nan


def log_likelihood(table: Floats, weights: Any) -> float:
    """Of the linear pool, in float64."""
    with np.errstate(divide="ignore"):
        return float(np.log(np.exp(table) @ np.asarray(weights)).sum())


def log_linear_logprobs(scores: list[Scored], weights: Any, floor: float = -16.0) -> Floats:
    """Of the bytes of a text in the log-linear pool, in float64."""
    rows = [np.maximum(own.logprobs.astype(np.float64), floor) for own in scores]
    pooled = sum(w * row for w, row in zip(weights, rows, strict=True))
    text = np.frombuffer(scores[0].text, np.uint8)
    own: Floats = pooled[np.arange(len(text)), text] - np.log(np.exp(pooled).sum(axis=1))
    return own


@st.composite
def tables(draw: st.DrawFn) -> Floats:
    """Log-probabilities ``[n, members]``; each row has one that is not ruled out."""
    members = draw(st.integers(1, 5))
    n = draw(st.integers(members, 30))
    values = st.floats(-30, 0) | st.just(-INF)
    table = draw(arrays(np.float64, (n, members), elements=values))
    table[np.isneginf(table).all(axis=1), 0] = -1.0
    return table


class TestLinear:
    @settings(max_examples=200)
    @given(tables(), st.integers(0, 2**32 - 1))
    def test_no_weights_are_better(self, table: Floats, seed: int) -> None:
        weights, likelihood = fit_linear(table)
        assert min(weights) >= 0
        assert sum(weights) == pytest.approx(1)
        assert likelihood == pytest.approx(log_likelihood(table, weights), abs=1e-9)
        members = table.shape[1]
        others = np.random.default_rng(seed).dirichlet([0.5] * members, size=20)
        for other in [*others, *np.eye(members), np.full(members, 1 / members)]:
            assert log_likelihood(table, other) <= likelihood + 1e-9 * len(table) + 1e-9

    @given(tables())
    def test_the_gap_is_a_certificate(self, table: Floats) -> None:
        fit = _core.fit_linear(table, 1e-9)
        assert fit.gap <= 1e-9
        p = np.exp(table - table.max(axis=1, keepdims=True))
        shares = (p / (p @ fit.weights)[:, None]).mean(axis=0)
        assert shares.max() - 1 <= 2e-9
        assert fit.iterations < 500

    @given(tables())
    def test_em_ends_at_the_same_likelihood(self, table: Floats) -> None:
        _, likelihood = fit_linear(table)
        p = np.exp(table - table.max(axis=1, keepdims=True))
        w = np.full(table.shape[1], 1 / table.shape[1])
        for _ in range(300):
            w = w * (p / (p @ w)[:, None]).mean(axis=0)
        assert log_likelihood(table, w) <= likelihood + 1e-9 * len(table) + 1e-9
        gap = (p / (p @ w)[:, None]).mean(axis=0).max() - 1
        assert likelihood <= log_likelihood(table, w) + gap * len(table) + 1e-9

    @given(tables(), st.data())
    def test_order_of_members_and_observations(self, table: Floats, data: st.DataObject) -> None:
        columns = data.draw(st.permutations(range(table.shape[1])))
        rows = data.draw(st.permutations(range(len(table))))
        _, likelihood = fit_linear(table)
        _, again = fit_linear(table[rows][:, columns])
        assert again == pytest.approx(likelihood, abs=2e-9 * len(table) + 1e-9)

    @given(tables(), st.integers(2, 4))
    def test_identical_members_are_one(self, table: Floats, copies: int) -> None:
        table = np.repeat(table, copies, axis=0)  # enough observations
        column = np.where(np.isneginf(table[:, 0]), -1.0, table[:, 0])
        weights, likelihood = fit_linear(np.tile(column[:, None], copies))
        assert weights == pytest.approx([1 / copies] * copies)
        assert likelihood == pytest.approx(column.sum())
        _, alone = fit_linear(table)
        _, doubled = fit_linear(np.hstack([table, table[:, :1]]))
        assert doubled == pytest.approx(alone, abs=1e-7)

    @given(tables(), st.floats(0.01, 5))
    def test_a_dominated_member_gets_nothing(self, table: Floats, worse: float) -> None:
        table = np.vstack([table, table[:1]])
        first = np.where(np.isneginf(table[:, 0]), -1.0, table[:, 0])
        table = np.hstack([first[:, None], table[:, 1:], first[:, None] - worse])
        weights, _ = fit_linear(table)
        assert weights[-1] == 0.0

    def test_known_optimum(self) -> None:
        # Each member is certain of its own share of the observations, and the other rules it out.
        table = np.array([[0.0, -INF]] * 3 + [[-INF, 0.0]] * 1)
        weights, likelihood = fit_linear(table)
        assert weights == pytest.approx([0.75, 0.25], abs=1e-8)
        assert likelihood == pytest.approx(3 * math.log(0.75) + math.log(0.25))

    def test_likelihoods_of_whole_texts(self) -> None:
        table = np.array([[-5000.0, -5001.0], [-7000.0, -6999.0]])
        assert fit_linear(table)[0] == pytest.approx([0.5, 0.5])

    @pytest.mark.parametrize(
        ("table", "match"),
        [
            ([[-1.0, NAN], [-1.0, -1.0]], "member 1 gives observation 0 is nan"),
            ([[-1.0, -1.0], [INF, -1.0]], "member 0 gives observation 1 is inf"),
            ([[-1.0, -1.0], [-INF, -INF]], "every member rules out observation 1"),
            ([[-1.0, -1.0]], "1 observations are too few to weigh 2 members"),
            (np.zeros((0, 2)), "0 observations are too few"),
            (np.zeros((2, 0)), "0 observations are too few"),
            ([-1.0, -1.0], "must have the shape"),
        ],
    )
    def test_refusals(self, table: Any, match: str) -> None:
        with pytest.raises(FusionError, match=match):
            fit_linear(table)
        with pytest.raises(FusionError, match="tolerance must be above 0"):
            fit_linear([[-1.0], [-1.0]], tolerance=0)


class TestLogLinear:
    @settings(max_examples=20)
    @given(st.integers(0, 2**32 - 1), st.integers(1, 3))
    def test_no_weights_are_better(self, seed: int, n_members: int) -> None:
        random = np.random.default_rng(seed)
        hints = [(random.uniform(0, 4), random.uniform(0, 1)) for _ in range(n_members)]
        _, scores = members_of(40, hints, seed=seed)
        scores[0].logprobs[3, 5:99] = -INF
        weights, likelihood = fit_log_linear(scores)
        assert min(weights) >= 0
        assert sum(weights) == pytest.approx(1)
        assert likelihood == pytest.approx(log_linear_logprobs(scores, weights).sum(), rel=1e-5)
        others = random.dirichlet([0.5] * n_members, size=20)
        for other in [*others, *np.eye(n_members)]:
            assert log_linear_logprobs(scores, other).sum() <= likelihood + 1e-3

    def test_laws(self) -> None:
        _, scores = members_of(300, [(3.0, 0.7), (2.0, 0.8), (0.0, 0.0)])
        weights, likelihood = fit_log_linear(scores)
        backwards, again = fit_log_linear(scores[::-1])
        assert again == pytest.approx(likelihood, rel=1e-6)
        assert backwards[::-1] == pytest.approx(weights, abs=1e-3)
        assert weights[2] < 0.3 < max(weights)
        same, alone = fit_log_linear([scores[0]] * 2)
        assert same == [0.5, 0.5]
        assert alone == pytest.approx(log_linear_logprobs(scores[:1], [1.0]).sum(), rel=1e-5)

    def test_pooled_logprobs(self) -> None:
        text, scores = members_of(50, [(3.0, 0.7), (2.0, 0.8)])
        at = np.array([7, 0, 49], np.int32)
        matrices = [own.logprobs for own in scores]
        symbols = np.frombuffer(text, np.uint8)
        found = _core.log_linear_logprobs(matrices, symbols, at, -16.0, [1.0, 3.0])
        np.testing.assert_allclose(
            found, log_linear_logprobs(scores, [0.25, 0.75])[at], rtol=1e-5, atol=1e-5
        )
        for wrong in (50, -1):
            with pytest.raises(FusionError, match=f"position {wrong} is not in a text of 50"):
                _core.log_linear_logprobs(
                    matrices, symbols, np.array([wrong], np.int32), -16.0, [1.0, 1.0]
                )

    @pytest.mark.parametrize("value", [NAN, INF])
    def test_refusals(self, value: float) -> None:
        _, scores = members_of(20, [(1.0, 0.5), (1.0, 0.5)])
        scores[1].logprobs[4, 100] = value
        with pytest.raises(FusionError, match="member 1 gives observation 4") as caught:
            fit_log_linear(scores)
        assert caught.value.member == 1
        with pytest.raises(FusionError, match=r"shape \(20, 256\), not \(20, 257\)"):
            fit_log_linear([Scored(scores[0].text, scores[0].logprobs[:, 1:])])


class TestText:
    def test_figures(self) -> None:
        _, scores = members_of(2000, [(3.0, 0.75), (3.0, 0.75), (0.0, 0.0)])
        report = fit_text(scores, names=["a", "b", "c"])
        table = observed(scores)
        assert (report.names, report.n, report.unit, report.left_out) == (
            ("a", "b", "c"),
            2000,
            "byte",
            0,
        )
        assert report.weights == tuple(fit_linear(table)[0])
        assert report.members == pytest.approx(-table.mean(axis=0) / math.log(2))
        assert report.uniform == pytest.approx(
            -log_likelihood(table, [1 / 3] * 3) / 2000 / math.log(2)
        )
        assert [fold.n for fold in report.folds] == [400] * 5
        held = 0.0
        for k, fold in enumerate(report.folds):
            part = np.arange(400 * k, 400 * (k + 1))
            rest = np.delete(table, part, axis=0)
            weights, _ = fit_linear(rest)
            bits = -log_likelihood(table[part], weights) / 400 / math.log(2)
            assert fold.fitted == pytest.approx(bits)
            assert fold.best == pytest.approx(fold.members[int(rest.sum(axis=0).argmax())])
            held += bits / 5
        assert report.fitted == pytest.approx(held)
        assert report.over_best.mean == pytest.approx(report.best - report.fitted)
        assert report.over_uniform.mean == pytest.approx(report.uniform - report.fitted)
        assert report.over_best.low < report.over_best.mean < report.over_best.high
        json.dumps(report.as_dict(), allow_nan=False)
        assert fit_text(scores, names=["a", "b", "c"]) == report

    @pytest.mark.parametrize(
        ("hints", "verdict"),
        [
            ([(3.0, 0.75), (3.0, 0.75), (0.0, 0.0)], "the fit pays"),
            ([(3.0, 0.75), (3.0, 0.75)], "equal weights are as good"),
            ([(9.0, 0.999), (0.0, 0.0)], "the best member alone is as good"),
        ],
    )
    def test_verdict(self, hints: list[tuple[float, float]], verdict: str) -> None:
        assert verdict in fit_text(members_of(4000, hints)[1]).verdict

    def test_identical_members_do_not_pay(self) -> None:
        _, scores = members_of(1000, [(2.0, 0.6)])
        report = fit_text(scores * 2)
        assert "neither equal weights nor the best member" in report.verdict
        assert report.over_best == report.over_uniform == pytest.approx((0, 0, 0), abs=1e-12)

    def test_log_linear(self) -> None:
        _, scores = members_of(600, [(3.0, 0.75), (1.0, 0.75)])
        steps: list[tuple[int, int]] = []
        report = fit_text(
            scores, pool="log-linear", folds=2, progress=lambda k, n: steps.append((k, n))
        )
        assert steps == [(1, 3), (2, 3), (3, 3)]
        equal = log_linear_logprobs(scores, [0.5, 0.5]).mean()
        assert report.uniform == pytest.approx(-equal / math.log(2), rel=1e-5)
        assert report.weights == pytest.approx(fit_log_linear(scores)[0], abs=1e-4)
        assert report.fitted < report.uniform

    def test_bytes_that_cannot_be_spelled(self) -> None:
        text, scores = members_of(MIN_BYTES + 8, [(2.0, 0.6), (2.0, 0.6)])
        scores[0].logprobs[3, text[3]] = -INF
        report = fit_text(scores)
        assert (report.left_out, report.members[0]) == (0, INF)
        assert report.fitted < INF
        scores[1].logprobs[3, text[3]] = -INF
        report = fit_text(scores)
        assert (report.left_out, report.n) == (1, MIN_BYTES + 7)
        assert report.members[0] < INF

    def test_refusals(self) -> None:
        text, scores = members_of(MIN_BYTES, [(2.0, 0.6), (2.0, 0.6)])
        short = [Scored(text[:-1], own.logprobs[:-1]) for own in scores]
        other = Scored(text[::-1], scores[1].logprobs)
        for wrong, match in (
            ([], "nothing to weigh with 0 member"),
            (scores[:1], "nothing to weigh with 1 member"),
            (short, f"{MIN_BYTES - 1} bytes are too few"),
            ([scores[0], other], "member 1 has scored another text"),
            ([scores[0], short[1]], "member 1 has scored another text"),
        ):
            with pytest.raises(FusionError, match=match):
                fit_text(wrong)
        with pytest.raises(FusionError, match="3 names for 2 members"):
            fit_text(scores, names=["a", "b", "c"])
        for folds in (1, MIN_BYTES + 1):
            with pytest.raises(FusionError, match="folds must be within"):
                fit_text(scores, folds=folds)
        scores[1].logprobs[7, text[7]] = NAN
        with pytest.raises(FusionError, match="member 1"):
            fit_text(scores)


class TestGain:
    def test_interval_of_independent_figures(self) -> None:
        figures = np.random.default_rng(1).normal(0.1, 1.0, 40_000)
        found = gain(figures, 100)
        assert found.mean == figures.mean()
        assert found.high - found.low == pytest.approx(2 * 1.96 / 200, rel=0.15)

    def test_dependent_figures_are_less_certain(self) -> None:
        independent = np.random.default_rng(2).normal(0.0, 1.0, 400)
        dependent = np.repeat(independent, 100)
        blocks, single = gain(dependent, 100), gain(dependent, 1)
        assert blocks.high - blocks.low > 5 * (single.high - single.low)

    @given(arrays(np.float64, st.integers(1, 200), elements=st.floats(-9, 9)), st.integers(1, 90))
    def test_order_and_repetition(self, figures: Floats, block: int) -> None:
        found = gain(figures, block)
        assert found.low <= found.high
        assert figures.min() - 1e-9 <= found.low
        assert found.high <= figures.max() + 1e-9
        assert gain(figures, block) == found


def outcome(question: Any, member: Any, logprob: Any) -> str:
    return json.dumps({"question": question, "member": member, "logprob": logprob})


@pytest.fixture
def answers(tmp_path: Path) -> tuple[Path, Floats]:
    """An outcome file of two members and 40 questions, and its figures."""
    table = np.log(np.random.default_rng(3).uniform(0.1, 1.0, (40, 2)))
    lines = [outcome(q, name, row[m]) for q, row in enumerate(table) for m, name in enumerate("ab")]
    file = tmp_path / "outcomes.jsonl"
    file.write_text("\n".join(lines) + "\n\n")
    return file, table


class TestOutcomes:
    def test_figures(self, answers: tuple[Path, Floats]) -> None:
        file, table = answers
        report = fit_outcomes(file)
        assert (report.names, report.unit, report.n) == (("a", "b"), "question", 40)
        assert report.weights == tuple(fit_linear(table)[0])
        assert report.members == pytest.approx(-table.mean(axis=0) / math.log(2))
        turned = fit_outcomes(file, names=["b", "a"])
        assert turned.names == ("b", "a")
        assert turned.members == report.members[::-1]

    def test_lines_end_at_line_feeds_only(self, answers: tuple[Path, Floats]) -> None:
        file, _ = answers
        expected = fit_outcomes(file)
        text = file.read_text().replace('"question": 7,', '"question": "7\u2028",')
        file.write_bytes(text.replace("\n", "\r\n").encode())
        assert fit_outcomes(file) == expected

    def test_order_of_lines(self, answers: tuple[Path, Floats], tmp_path: Path) -> None:
        file, _ = answers
        lines = file.read_text().split("\n")
        other = tmp_path / "other.jsonl"
        other.write_text("\n".join(sorted(lines, key=lambda line: '"b"' in line)))
        assert fit_outcomes(other) == fit_outcomes(file)

    @pytest.mark.parametrize(
        ("line", "match"),
        [
            ("{", "line 81 of .*: Expecting property name"),
            ("[1]", "not an object with"),
            ('{"question": 1, "member": "a"}', "'logprob' is missing"),
            (outcome(99, "a", "x"), "'logprob' must be a number <= 0, not 'x'"),
            (outcome(99, "a", 0.5), "must be a number <= 0, not 0.5"),
            (outcome(99, "a", NAN), "must be a number <= 0, not nan"),
            (outcome(99, "a", True), "must be a number <= 0, not True"),
            (outcome(99, "a", None), "must be a number <= 0, not None"),
            (outcome(99, 7, -1.0), "'member' must be a name, not 7"),
            (outcome(3, "b", -1.0), "line 81 of .*'b' answers question 3 again"),
            (outcome("q", "a", -1.0), "no answer of 'b' to question \"q\""),
        ],
    )
    def test_malformed(self, answers: tuple[Path, Floats], line: str, match: str) -> None:
        file, _ = answers
        file.write_text(file.read_text().rstrip("\n") + "\n" + line)
        with pytest.raises(ConfigError, match=match) as caught:
            fit_outcomes(file)
        assert caught.value.path == file

    def test_refusals(self, answers: tuple[Path, Floats], tmp_path: Path) -> None:
        file, _ = answers
        with pytest.raises(ConfigError, match=r"line 2 of .* no member 'b' among a, c"):
            fit_outcomes(file, names=["a", "c"])
        with pytest.raises(ConfigError, match="has no answer of 'c' to question 0"):
            fit_outcomes(file, names=["a", "b", "c"])
        lines = file.read_text().splitlines()
        file.write_text("\n".join(lines[: 2 * MIN_QUESTIONS - 2]))
        with pytest.raises(FusionError, match="19 questions are too few"):
            fit_outcomes(file)
        file.write_text("\n".join(line for line in lines if '"a"' in line))
        with pytest.raises(FusionError, match="nothing to weigh with 1 member"):
            fit_outcomes(file)
        file.write_text("")
        with pytest.raises(FusionError, match="nothing to weigh with 0 member"):
            fit_outcomes(file)
        file.write_bytes(b"\xff")
        with pytest.raises(ConfigError, match="cannot read the outcomes"):
            fit_outcomes(file)
        with pytest.raises(ConfigError, match="cannot read the outcomes"):
            fit_outcomes(tmp_path / "missing")


def test_observed() -> None:
    logits = np.zeros((3, 257))
    logits[0, 98] = 1.0
    own = scored(b"bcd", logits)
    assert observed([own, own])[:, 1] == pytest.approx(
        [1 - math.log(256 + math.e), -math.log(257), -math.log(257)]
    )
