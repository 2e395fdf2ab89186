"""Gates that are learned: features, training, and what they promise."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from byte_texts import Scored, members_of, scored
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from logitfuse import _core
from logitfuse.critical_gates import train_critical
from logitfuse.errors import FusionError
from logitfuse.fitting import MIN_BYTES, observed
from logitfuse.learned_gates import train_gate
from logitfuse.optimise import minimise
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def turn_takers(n: int, *, seed: int = 0, flags: bool = True) -> list[Scored]:
    """Two members of which one knows the next byte where it is sure, and the other where it is not.

    Without flags nothing in the distributions tells which.
    """
    random = np.random.default_rng(seed)
    text = random.integers(97, 107, n).astype(np.uint8)
    first_knows = random.random(n) < 0.5
    members = []
    for knows in (first_knows, ~first_knows):
        wrong = 97 + (text - 96) % 10
        logits = np.zeros((n, 257))
        logits[np.arange(n), np.where(knows, text, wrong)] += np.where(
            knows | (not flags), 9.0, 6.0
        )
        members.append(scored(text.tobytes(), logits))
    return members


def oracle_features(scores: list[Scored]) -> Floats:
    """Features of a text, one byte and one formula at a time."""
    text = np.frombuffer(scores[0].text, np.uint8)
    rows = []
    said: list[list[float]] = [[] for _ in scores]
    for t, byte in enumerate(text):
        own = [scores_.logprobs[t].astype(np.float64) for scores_ in scores]
        row = []
        for logprobs in own:
            p = np.exp(logprobs) / np.exp(logprobs).sum()
            second, first = np.sort(logprobs)[-2:]
            with np.errstate(divide="ignore", invalid="ignore"):
                row += [-np.nansum(p * np.log(p)), math.log(p.max()), min(first - second, 16.0)]
        for i in range(len(own)):
            for j in range(i + 1, len(own)):
                row.append(float(own[i].argmax() == own[j].argmax()))
        for past in said:
            decay = 0.9 ** np.arange(len(past))[::-1]
            row.append(float(decay @ past / decay.sum()) if past else math.nan)
        for past, logprobs in zip(said, own, strict=True):
            past.append(max(logprobs[byte], -16.0))
        rows.append(row)
    return np.array(rows)


def native_features(scores: list[Scored]) -> NDArray[np.float32]:
    text = np.frombuffer(scores[0].text, np.uint8)
    return _core.features_of_text([own.logprobs for own in scores], text)


@pytest.mark.parametrize("members", [1, 2, 3])
def test_features(members: int, isa: str) -> None:
    text, scores = members_of(60, [(3.0, 0.7)] * members)
    scores[0].logprobs[7, 3:200] = -math.inf
    scores[0].logprobs[9, text[9]] = -math.inf
    found = native_features(scores)
    np.testing.assert_allclose(found, oracle_features(scores), rtol=2e-5, atol=2e-5, err_msg=isa)


@given(arrays(np.float32, 257, elements=st.floats(-40, 0, width=32)))
def test_features_do_not_depend_on_a_common_factor(row: NDArray[np.float32]) -> None:
    one, other = (native_features([Scored(b"a", logits[None])]) for logits in (row, row - 1))
    np.testing.assert_allclose(one[0, :3], other[0, :3], atol=1e-4)
    assert 0 <= one[0, 0] <= math.log(257) + 1e-5


class TestGate:
    def test_runs_as_it_was_trained(self) -> None:
        scores = turn_takers(1500)
        gate = train_gate(scores)
        table, features = observed(scores), oracle_features(scores)
        centred = np.where(np.isnan(features), 0.0, features - np.array(gate.centre))
        w = np.exp(centred @ np.array(gate.matrix).T + gate.bias)
        w /= w.sum(axis=1, keepdims=True)
        native, history = gate.native(), _core.ByteHistory(2)
        for t in range(200):
            rows = [own.logprobs[t] for own in scores]
            assert native.weights(rows, history.values.tolist()) == pytest.approx(w[t], abs=1e-4)
            history.observe(table[t].tolist())
        roles = np.arange(1500) * 20 // 1500 % 5
        held = -np.log2((np.exp(table) * w).sum(axis=1))[roles == 4]
        assert gate.figures.gate == pytest.approx(held.mean(), rel=1e-3)
        assert gate.figures.held_out == len(held) == 300

    def test_beats_constant_weights_where_members_take_turns(self) -> None:
        figures = train_gate(turn_takers(3000)).figures
        assert figures.gate < 0.8 * figures.constant
        assert figures.constant == pytest.approx(figures.uniform, rel=0.01)
        assert "the gate pays" in figures.verdict
        assert figures.over_constant.mean == pytest.approx(figures.constant - figures.gate)

    def test_does_not_pay_where_nothing_tells_them_apart(self) -> None:
        figures = train_gate(turn_takers(3000, flags=False)).figures
        assert figures.gate == pytest.approx(figures.constant, rel=0.01)
        assert "constant fitted weights are as good" in figures.verdict

    def test_does_not_pay_beside_a_member_that_knows_all(self) -> None:
        figures = train_gate(members_of(2000, [(9.0, 1.0), (0.0, 0.0)])[1]).figures
        assert "the best member alone is as good" in figures.verdict

    def test_laws(self) -> None:
        _, scores = members_of(1000, [(3.0, 0.7), (2.0, 0.6), (1.0, 0.5)])
        gate = train_gate(scores)
        assert train_gate(scores) == gate
        figures = train_gate(scores[::-1]).figures
        assert figures.gate == pytest.approx(gate.figures.gate, rel=1e-3)
        assert figures.members == pytest.approx(gate.figures.members[::-1])
        same = train_gate(scores[:1] * 2).figures
        assert same.gate == pytest.approx(same.best, rel=1e-6)
        json.dumps(gate.figures.as_dict(), allow_nan=False)

    def test_progress(self) -> None:
        steps: list[tuple[int, int]] = []
        train_gate(turn_takers(600), progress=lambda *step: steps.append(step))
        assert [done for done, _ in steps] == list(range(1, len(steps) + 1))
        assert 1 < len(steps) <= steps[0][1]

    def test_unknown_features_count_as_usual_ones(self) -> None:
        gate = _core.ByteGate([0.0, math.log(3)], [1.0] * 18, [0.5] * 9)
        rows = turn_takers(600)[0].logprobs
        assert gate.weights([rows[0], rows[1]], [math.nan] * 2) == pytest.approx([0.25, 0.75])
        assert gate.weights([rows[0], None], [math.nan] * 2) == [1.0, 0.0]
        with pytest.raises(FusionError, match="no member has"):
            gate.weights([None, None], [0.0, 0.0])
        with pytest.raises(FusionError, match="was given 1 rows"):
            gate.weights([rows[0]], [0.0])
        with pytest.raises(TypeError, match="float32"):
            gate.weights([rows[0], rows[1].astype(np.float64)], [0.0, 0.0])


class TestCritical:
    def test_asks_where_the_primary_does_not_know(self) -> None:
        scores = turn_takers(3000)
        gate = train_critical(scores, primary=1)
        figures = gate.figures
        assert figures.asked == pytest.approx(0.5, abs=0.06)
        assert figures.critical < figures.primary
        assert figures.critical <= figures.always + 0.1 * (figures.primary - figures.always)
        assert "the gate pays" in figures.verdict
        native = gate.native()
        roles = np.arange(3000) * 20 // 3000 % 5
        chances = [native.probability(row) for row in scores[1].logprobs[roles == 4]]
        assert np.mean(np.array(chances) >= gate.threshold) == pytest.approx(
            figures.asked, abs=0.01
        )
        assert train_critical(scores, primary=1) == gate

    def test_never_asks_who_knows_nothing(self) -> None:
        scores = members_of(2000, [(9.0, 1.0), (0.0, 0.0)])[1]
        gate = train_critical(scores)
        assert gate.threshold > 1
        assert (gate.figures.asked, gate.figures.critical) == (0.0, gate.figures.primary)
        assert "the primary alone is as good" in gate.figures.verdict

    def test_bytes_that_the_primary_cannot_spell(self) -> None:
        text, scores = members_of(MIN_BYTES, [(3.0, 0.7), (3.0, 0.7)])
        for t in range(0, MIN_BYTES, 5):
            scores[0].logprobs[t, text[t]] = -math.inf
        figures = train_critical(scores).figures
        json.dumps(figures.as_dict(), allow_nan=False)
        assert figures.critical < figures.primary

    def test_primary_must_exist(self) -> None:
        with pytest.raises(FusionError, match="no member 2"):
            train_critical(turn_takers(600), primary=2)


@pytest.mark.parametrize("train", [train_gate, train_critical])
def test_refusals(train: type) -> None:
    text, scores = members_of(MIN_BYTES, [(2.0, 0.6), (2.0, 0.6)])
    with pytest.raises(FusionError, match="nothing to weigh with 1 member"):
        train(scores[:1])
    with pytest.raises(FusionError, match="too few to learn from"):
        train([Scored(text[:-1], own.logprobs[:-1]) for own in scores])
    scores[1].logprobs[5, 5] = math.nan
    with pytest.raises(FusionError, match="member 1 holds NaN"):
        train(scores)


class TestMinimise:
    def test_quadratic(self) -> None:
        random = np.random.default_rng(0)
        root = random.normal(size=(8, 8))
        matrix, target = root @ root.T + 0.1 * np.eye(8), random.normal(size=8)

        def objective(x: Floats) -> tuple[float, Floats]:
            off = x - target
            return float(off @ matrix @ off / 2), matrix @ off

        assert minimise(objective, np.zeros(8), steps=200) == pytest.approx(target, abs=1e-4)

    def test_rosenbrock(self) -> None:
        values: list[float] = []

        def objective(x: Floats) -> tuple[float, Floats]:
            a, b = 1 - x[0], x[1] - x[0] ** 2
            return a * a + 100 * b * b, np.array([-2 * a - 400 * x[0] * b, 200 * b])

        def watch(_step: int, x: Floats) -> bool:
            values.append(objective(x)[0])
            return False

        assert minimise(objective, np.array([-1.2, 1.0]), steps=200, watch=watch) == pytest.approx(
            [1, 1], abs=1e-4
        )
        assert values == sorted(values, reverse=True)

    def test_watch_ends_it(self) -> None:
        steps: list[int] = []

        def watch(step: int, _point: Floats) -> bool:
            steps.append(step)
            return step == 3

        minimise(
            lambda x: (float(np.cosh(x).sum()), np.sinh(x)), np.full(2, 5.0), steps=9, watch=watch
        )
        assert steps == [1, 2, 3]
