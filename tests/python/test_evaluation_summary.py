"""The summary: every row against plain Python, its laws, and what it says in words."""

from __future__ import annotations

import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logitfuse.evaluation.consistency import (
    MOST_SAMPLES,
    SURE,
    Sample,
    SelfConsistency,
    certainty,
    sample_of,
    self_consistency,
)
from logitfuse.evaluation.lineup import halves
from logitfuse.evaluation.statistics import Interval
from logitfuse.evaluation.summary import Row, Summary, WeightCurve, pareto, summarise
from logitfuse.evaluation.table import Outcome, outcome_key

MEMBERS = ("a", "b")


def outcome(item: str, group: str, contender: str, scores: Any, **changes: Any) -> Outcome:
    key = outcome_key(item=item, contender=contender)
    tokens = {name: 10 for name in ("a", "b") if contender in (name, "ensemble")}
    row = Outcome(key, "exact", item, group, contender, scores, {}, 1.0, tokens)
    return replace(row, **changes)


def answers(hits: dict[str, Sequence[float | None]], groups: Sequence[str]) -> list[Outcome]:
    """Outcomes of contenders that are right (1) or wrong (0) on each item; None: failed."""
    rows = []
    for contender, values in hits.items():
        for i, (value, group) in enumerate(zip(values, groups, strict=True)):
            done: dict[str, Any] = {"seconds": 2.0 + i % 3 if contender == "ensemble" else 1.0}
            if value is None:
                done["error"] = "it failed"
            scores = {} if value is None else {"accuracy": float(value)}
            rows.append(outcome(f"q{i}", group, contender, scores, **done))
    return rows


def summary_of(rows: Sequence[Outcome], members: Sequence[str] = MEMBERS, **how: Any) -> Summary:
    options: dict[str, Any] = {"metrics": ["accuracy"], "resamples": 200}
    return summarise(
        rows, task="exact", title="sums", members=members, ensemble="ensemble", **options | how
    )


def row(summary: Summary, kind: str, at: int = 0) -> Row:
    return [own for own in summary.rows if own.kind == kind][at]


def mean_of(found: Interval) -> float:
    assert found.low <= found.mean + 1e-9
    assert found.mean <= found.high + 1e-9
    return found.mean


@st.composite
def tables(draw: st.DrawFn) -> list[Outcome]:
    """Members and an ensemble on up to 30 items, some of which failed."""
    n = draw(st.integers(1, 30))
    value = st.sampled_from([0, 1, 1, 0, None])
    hits = {name: draw(st.lists(value, min_size=n, max_size=n)) for name in (*MEMBERS, "ensemble")}
    return answers(hits, draw(st.lists(st.sampled_from("xyz"), min_size=n, max_size=n)))


class TestRows:
    @settings(max_examples=60)
    @given(tables())
    def test_against_plain_python(self, rows: list[Outcome]) -> None:
        summary = summary_of(rows)
        scores: dict[str, dict[str, float]] = defaultdict(dict)
        failed: Counter[str] = Counter()
        for own in rows:
            if own.error is None:
                scores[own.item][own.contender] = own.scores["accuracy"]
            else:
                failed[own.contender] += 1
        for at, name in enumerate(MEMBERS):
            check(row(summary, "member", at), [s[name] for s in scores.values() if name in s])
            assert row(summary, "member", at).failed == failed[name]
        together = [[s[m] for m in MEMBERS if m in s] for s in scores.values()]
        check(row(summary, "random"), [sum(own) / len(own) for own in together if own])
        check(row(summary, "oracle"), [max(own) for own in together if own])
        check(row(summary, "ensemble"), [s["ensemble"] for s in scores.values() if "ensemble" in s])
        assert [own.kind for own in summary.rows] == [
            *("member", "member", "chosen", "random", "oracle", "ensemble")
        ]
        assert summary.items == len({own.item for own in rows})
        json.dumps(summary.as_dict(), allow_nan=False)

    @settings(max_examples=60)
    @given(tables())
    def test_the_best_member_is_chosen_elsewhere(self, rows: list[Outcome]) -> None:
        summary = summary_of(rows)
        items = sorted({own.item: own.group for own in rows}.items())
        first = halves([group for _, group in items], 0)
        found = {(own.contender, own.item): own.scores.get("accuracy") for own in rows}
        right = []
        for half in (first, ~first):
            elsewhere = [item for (item, _), here in zip(items, half, strict=True) if not here]
            means = {}
            for member in MEMBERS:
                there = [found[member, item] for item in elsewhere]
                there = [value for value in there if value is not None]
                means[member] = sum(there) / len(there) if there else -1.0
            best = max(MEMBERS, key=lambda member: means[member])
            right += [
                found[best, item] for (item, _), here in zip(items, half, strict=True) if here
            ]
        check(row(summary, "chosen"), [value for value in right if value is not None])
        chosen = row(summary, "chosen")
        assert chosen.record == (0, chosen.n, 0)
        if chosen.n:
            assert chosen.over_best["accuracy"] == (0, 0, 0)

    @settings(max_examples=40)
    @given(tables(), st.randoms(use_true_random=False))
    def test_order_does_not_matter(self, rows: list[Outcome], shuffler: random.Random) -> None:
        shuffled = list(rows)
        shuffler.shuffle(shuffled)
        assert summary_of(shuffled).as_dict() == summary_of(rows).as_dict()

    @settings(max_examples=40)
    @given(tables())
    def test_a_member_that_equals_another_changes_no_row(self, rows: list[Outcome]) -> None:
        twin = [replace(own, contender="c") for own in rows if own.contender == "b"]
        before = {own.name: own for own in summary_of(rows).rows if own.kind != "random"}
        after = {own.name: own for own in summary_of([*rows, *twin], ("a", "b", "c")).rows}
        assert {name: repr(after[name]) for name in before} == {
            name: repr(own) for name, own in before.items()
        }
        assert repr(after["c"].scores) == repr(before["b"].scores)

    @settings(max_examples=40)
    @given(tables())
    def test_oracle_and_random_are_bounds(self, rows: list[Outcome]) -> None:
        rows = [own for own in rows if own.error is None]
        done = Counter(own.item for own in rows if own.contender in MEMBERS)
        rows = [own for own in rows if done[own.item] == len(MEMBERS)]
        if not rows:
            return
        summary = summary_of(rows)
        alone = [mean_of(row(summary, "member", at).scores["accuracy"]) for at in range(2)]
        assert row(summary, "oracle").scores["accuracy"].mean >= max(alone) - 1e-12
        assert min(alone) - 1e-12 <= row(summary, "random").scores["accuracy"].mean
        assert row(summary, "random").scores["accuracy"].mean <= max(alone) + 1e-12

    def test_record_groups_and_cost(self) -> None:
        hits = {"a": [1, 1, 0, 0], "b": [0, 0, 0, 0], "ensemble": [1, 0, 1, None]}
        summary = summary_of(answers(hits, ["x", "x", "y", "y"]))
        ensemble = row(summary, "ensemble")
        assert row(summary, "chosen").scores["accuracy"].mean == 0.5
        assert (ensemble.n, ensemble.failed, ensemble.record) == (3, 1, (1, 1, 1))
        assert ensemble.over_best["accuracy"].mean == 0.0
        assert {g: found.mean for g, found in ensemble.by_group.items()} == {"x": 0.5, "y": 1.0}
        assert ensemble.seconds is not None
        assert ensemble.seconds.mean == 3.0
        assert {m: found.mean for m, found in ensemble.tokens.items()} == {"a": 10, "b": 10}
        assert ensemble.tokens_per_s is not None
        assert ensemble.tokens_per_s.mean == pytest.approx(20 / 3)
        lot = row(summary, "random")
        assert {m: found.mean for m, found in lot.tokens.items()} == {"a": 5, "b": 5}

    def test_lower_is_better(self) -> None:
        hits = {"a": [3.0] * 40, "b": [2.0] * 40, "ensemble": [1.5] * 40}
        summary = summary_of(answers(hits, ["x"] * 40), lower_is_better=True)
        ensemble = row(summary, "ensemble")
        assert row(summary, "chosen").scores["accuracy"].mean == 2.0
        assert row(summary, "oracle").scores["accuracy"].mean == 2.0
        assert ensemble.over_best["accuracy"] == (0.5, 0.5, 0.5)
        assert ensemble.record == (40, 0, 0)
        assert "beats the best member" in summary.verdict

    def test_several_metrics(self) -> None:
        rows = []
        for i in range(30):
            for name, one, two in (("a", 1, 0), ("b", 0, 1), ("ensemble", 1, 1)):
                scores = {"plain": float(one)} | ({"letter": float(two)} if i else {})
                rows.append(outcome(f"q{i}", "x", name, scores))
        summary = summary_of(rows, metrics=["plain", "letter"])
        assert row(summary, "chosen").scores["letter"].mean == 0.0
        assert row(summary, "ensemble").over_best["letter"].mean == 1.0
        assert {m: found.mean for m, found in row(summary, "oracle").scores.items()} == {
            "plain": 1.0,
            "letter": 1.0,
        }

    def test_bits_per_byte(self) -> None:
        rng = np.random.default_rng(0)
        size = rng.integers(100, 900, 50)
        bits = {"a": 2.0 * size, "b": 2.5 * size, "ensemble": 1.9 * size + rng.normal(0, 5, 50)}
        rows = [
            outcome(f"w{i}", "text", name, {"bits": own[i], "bytes": float(size[i])})
            for name, own in bits.items()
            for i in range(50)
        ]
        summary = summary_of(rows, metrics=["bits_per_byte"], lower_is_better=True)
        assert [own.kind for own in summary.rows] == ["member", "member", "chosen", "ensemble"]
        assert row(summary, "chosen").name == "best member (over all windows)"
        assert row(summary, "chosen").scores["bits_per_byte"].mean == pytest.approx(2.0)
        ensemble = row(summary, "ensemble")
        assert ensemble.scores["bits_per_byte"].mean == pytest.approx(
            bits["ensemble"].sum() / size.sum()
        )
        saved = ensemble.over_best["bits_per_byte"]
        assert saved.mean == pytest.approx(2.0 - bits["ensemble"].sum() / size.sum())
        assert summary.verdict.startswith("The ensemble beats the best member (over all windows)")
        assert "bits per byte 1.90" in summary.verdict

    def test_what_is_handed_through(self) -> None:
        curve = WeightCurve("a", (0.0, 1.0), (Interval(1.0, 0.9, math.nan),) * 2)
        summary = summary_of([], machine={"cpu": "x"}, peak_memory=7, curves=[curve])
        data = summary.as_dict()
        assert data["curves"][0]["bits"][0] == {"mean": 1.0, "low": 0.9, "high": None}
        assert (data["machine"], data["peak_memory"], data["items"]) == ({"cpu": "x"}, 7, 0)
        assert data["rows"][0]["scores"]["accuracy"]["mean"] is None

    def test_mistakes(self) -> None:
        rows = answers({"a": [1]}, ["x"])
        with pytest.raises(ValueError, match="'a' has two outcomes for 'q0'"):
            summary_of(rows * 2)
        with pytest.raises(ValueError, match="without members"):
            summary_of(rows, ())

    def test_pareto(self) -> None:
        def point(name: str, score: float, seconds: float | None, kind: Any = "member") -> Row:
            cost = None if seconds is None else Interval(seconds, seconds, seconds)
            exact = {"accuracy": Interval(score, score, score)}
            return Row(name, kind, 9, 0, exact, {}, (0, 0, 0), {}, cost, {}, None)

        rows = [point("a", 0.5, 1.0), point("b", 0.4, 2.0), point("c", 0.7, 3.0)]
        rows += [point("d", 0.5, 1.0), point("e", 0.9, 0.5, "oracle"), point("f", 0.9, None)]
        assert pareto(rows) == ("a", "c", "d")
        assert pareto(rows, lower_is_better=True) == ("a", "b", "d")


def check(found: Row, values: Sequence[float]) -> None:
    assert found.n == len(values)
    if values:
        assert mean_of(found.scores["accuracy"]) == pytest.approx(sum(values) / len(values))
    else:
        assert math.isnan(found.scores["accuracy"].mean)


class TestHalves:
    @given(st.lists(st.sampled_from("abcd"), max_size=60), st.integers(0, 9))
    def test_are_even_in_every_group(self, groups: list[str], seed: int) -> None:
        first = halves(groups, seed)
        assert (first == halves(groups, seed)).all()
        assert abs(int(first.sum()) - int((~first).sum())) <= 1
        for group in set(groups):
            own = first[[one == group for one in groups]]
            assert abs(int(own.sum()) - int((~own).sum())) <= 1


class TestWords:
    def verdict(self, ensemble: Sequence[int], best: Sequence[int]) -> Summary:
        hits = {"a": best, "b": [0] * len(best), "ensemble": ensemble}
        return summary_of(answers(hits, ["x"] * len(best)))

    def test_a_win(self) -> None:
        words = self.verdict([1] * 80 + [0] * 20, [1] * 50 + [0] * 50).verdict
        assert words.startswith(
            "The ensemble beats the best member (chosen on the other half) by +0.3 (95 % interval"
        )
        assert "accuracy 0.800 against 0.500 on 100 items), at 3 times its seconds" in words

    def test_a_loss(self) -> None:
        summary = self.verdict([1] * 20 + [0] * 80, [1] * 50 + [0] * 50)
        assert "does not beat" in summary.verdict
        assert "clearly worse, by +0.3 (95 % interval +0.2" in summary.verdict
        assert any("do not use it here" in note for note in summary.notes)

    def test_not_clear(self) -> None:
        words = self.verdict([1, 0] * 50, [0, 1] * 49 + [0, 0]).verdict
        assert words.startswith("It is not clear whether the ensemble beats")
        assert "includes 0" in words

    def test_equal(self) -> None:
        assert "equal on every item" in self.verdict([1, 0] * 20, [1, 0] * 20).verdict

    def test_too_few(self) -> None:
        summary = self.verdict([1] * 12, [0] * 12)
        assert summary.verdict.startswith("Nothing can be said about the ensemble")
        assert any("halves of 6 items only" in note for note in summary.notes)

    def test_notes_on_groups_and_gaps(self) -> None:
        hits: dict[str, Sequence[float | None]] = {
            "a": [1] * 40 + [0] * 40,
            "b": [0] * 80,
            "ensemble": [0] * 40 + [1] * 39 + [None],
        }
        rows = answers(hits, ["sums"] * 40 + ["facts"] * 40)[:-1]
        rows = [own for own in rows if (own.contender, own.item) != ("b", "q7")]
        rows[0] = replace(rows[0], error="it failed", scores={})
        notes = summary_of(rows).notes
        assert "The best member is a on both halves." in notes
        assert any(note.startswith("a has no score on 1 of 80 items") for note in notes)
        assert "b was not run on 1 of 80 items." in notes
        assert "ensemble was not run on 1 of 80 items." in notes
        worse = [note for note in notes if "clearly worse on" in note]
        assert len(worse) == 1
        assert worse[0].startswith("The ensemble is clearly worse on sums: -1")


@st.composite
def drawn_samples(draw: st.DrawFn) -> dict[str, dict[int, Sample]]:
    """All 40 samples of a few items."""
    answer = st.sampled_from(["41", "42", "43", None])
    return {
        f"q{i}": {
            number: Sample(one, 0.5 + number % 2, {"a": number})
            for number, one in enumerate(
                draw(st.lists(answer, min_size=MOST_SAMPLES, max_size=MOST_SAMPLES)), start=1
            )
        }
        for i in range(draw(st.integers(1, 5)))
    }


class TestSelfConsistency:
    def test_certainty_is_the_mass_of_a_beta(self) -> None:
        for first in range(12):
            for second in range(first + 1):
                # Integrate x^first (1 - x)^second over [1/2, 1] and [0, 1], term by term.
                def mass(low: Fraction, a: int = first, b: int = second) -> Fraction:
                    return sum(
                        (
                            Fraction((-1) ** k * math.comb(b, k), a + k + 1)
                            * (1 - low ** (a + k + 1))
                        )
                        for k in range(b + 1)
                    )

                assert certainty(first, second) == float(mass(Fraction(1, 2)) / mass(Fraction(0)))
        assert certainty(3, 0) < SURE <= certainty(4, 0)
        assert certainty(0, 0) == 0.5

    @given(drawn_samples(), st.floats(0, 60))
    def test_against_plain_python(
        self, samples: dict[str, dict[int, Sample]], budget: float
    ) -> None:
        replay = self_consistency(samples, budget)
        order = list(replay.samples)
        taken: dict[str, list[Sample]] = {item: [] for item in order}
        spent, number = 0.0, 1
        while number <= MOST_SAMPLES:
            for item in order:
                votes = Counter(s.answer for s in taken[item] if s.answer is not None)
                top = [count for _, count in votes.most_common(2)] + [0, 0]
                if certainty(top[0], top[1]) >= SURE or (number > 1 and spent >= budget):
                    continue
                taken[item].append(samples[item][number])
                spent += samples[item][number].seconds
            number += 1
        assert dict(replay.samples) == taken
        assert replay.spent == spent
        for item in order:
            votes = Counter(s.answer for s in taken[item] if s.answer is not None)
            best = votes.most_common(1)[0][0] if votes else None  # equals: the first
            assert replay.answer(item) == best

    @given(drawn_samples(), st.floats(0, 60), st.integers(0, 30))
    def test_a_run_and_its_replay_draw_the_same(
        self, samples: dict[str, dict[int, Sample]], budget: float, interrupted: int
    ) -> None:
        live = SelfConsistency(reversed(samples), budget)
        table: dict[str, dict[int, Sample]] = {item: {} for item in samples}
        while (asked := live.next_sample()) is not None:
            assert live.next_sample() == asked
            item, number = asked
            table[item][number] = samples[item][number]
            live.add(samples[item][number])
            if sum(map(len, table.values())) == interrupted:
                break
        assert dict(self_consistency(table, budget).samples) == dict(live.samples)
        if live.next_sample() is None:
            with pytest.raises(ValueError, match="no sample was asked for"):
                live.add(Sample("41", 1.0))

    def test_first_round_is_finished(self) -> None:
        live = SelfConsistency(["a", "b", "c"], 0.0)
        for _ in range(3):
            live.add(Sample("1", 5.0))
        assert live.next_sample() is None
        assert live.spent == 15.0

    def test_the_row(self) -> None:
        n = 40
        rows = answers({"a": [1] * n, "b": [0] * n, "ensemble": [1] * n}, ["x"] * n)
        for i in range(n):
            for number in range(1, 5):
                right = (i + number) % 4 != 0 if i < 30 else number == 1
                data = {"parsed": "41" if right else f"4{number + 4}", "gold": "41"}
                done: dict[str, Any] = {"data": data, "tokens": {"a": 3}, "seconds": 0.25}
                if i == 0 and number == 1:
                    done = {"error": "it failed", "seconds": 0.25, "tokens": {}}
                rows.append(outcome(f"q{i}", "x", f"a sample {number}", {}, **done))
        summary = summary_of(rows)
        found = row(summary, "sampled")
        assert found.name == "a asked again (self-consistency)"
        assert (found.n, found.failed) == (n, 0)
        assert found.scores["accuracy"].mean == 1.0  # of four different answers the first
        assert found.seconds is not None
        assert found.seconds.mean == pytest.approx(1.0)
        assert found.tokens["a"].mean == pytest.approx(12 - 3 / n)
        assert "a asked again (self-consistency) for the same seconds" in summary.verdict
        assert any("4.0 times per item (4 to 4), 40 of the" in note for note in summary.notes)
        assert row(summary_of(rows, ("b",)), "member").n == n
        assert not [own for own in summary_of(rows, ("b",)).rows if own.kind == "sampled"]

    def test_samples_in_a_table(self) -> None:
        own = outcome("q0", "x", "a sample 1", {}, data={"parsed": [1, 2]})
        assert sample_of(own).answer == "[1, 2]"
        assert sample_of(replace(own, data={"parsed": None})).answer is None
        assert sample_of(replace(own, error="it failed")).answer is None
