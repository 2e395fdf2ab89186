"""Adaptive self-consistency: the rule for the next sample, live and replayed."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from logitfuse.evaluation.consistency import (
    MOST_SAMPLES,
    SURE,
    Sample,
    SelfConsistency,
    certainty,
    sample_of,
    seconds_of,
    self_consistency,
)
from logitfuse.evaluation.table import Outcome


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

    def test_samples_in_a_table(self) -> None:
        own = Outcome("k", "exact", "q0", "x", "a sample 1", data={"parsed": [1, 2]}, seconds=0.5)
        assert sample_of(own).answer == "[1, 2]"
        assert sample_of(replace(own, data={"parsed": None})).answer is None
        assert sample_of(replace(own, error="it failed")).answer is None
        assert seconds_of([own, own, replace(own, contender="a")], "a sample 1") == 1.0
