"""Decisions before any pooling are lossless."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fuse_checks import (
    TOLERANCE,
    every_pool,
    fused,
    member_rows,
    pooled,
    pools,
)
from hypothesis import given
from hypothesis import strategies as st
from logitfuse import _core
from logitfuse.pooling import FLOOR, PoolName
from logitfuse.vocab import Vocab
from numpy.typing import NDArray
from strategies_core import (
    INF,
    SHAPES,
    Step,
    random_step,
    steps,
)


def decided(
    step: Step, pool: PoolName, floor: float = FLOOR
) -> tuple[_core.Decision, int, list[int]]:
    native = _core.Pool(step.alignment._core, pool, floor)
    native.read(step.rows, step.weights)
    return *native.decide(), native.best()


def is_best(row: NDArray[np.float64], symbol: int) -> bool:
    """Whether no symbol is better, as far as float32 can tell."""
    best = row.max()
    return bool(row[symbol] >= best - 2 * TOLERANCE * (1 + abs(best)))


def clear_best(row: NDArray[np.float64]) -> int | None:
    """The best symbol, if float32 can tell it from the second."""
    symbol = int(np.argmax(row))
    others = np.delete(row, symbol).max(initial=-INF)
    return symbol if others < row[symbol] - 4 * TOLERANCE * (1 + abs(row[symbol])) else None


def check_decision(step: Step, pool: PoolName, floor: float = FLOOR) -> _core.Decision:
    """A decision is right, and it is taken where it can be."""
    want = pooled(step, pool, floor)
    decision, symbol, wishes = decided(step, pool, floor)
    rows = member_rows(step)
    bests = set()
    for m, wish in enumerate(wishes):
        assert (wish < 0) == (m not in step.present)
        if wish >= 0:
            assert is_best(rows[m], wish)
            bests.add(clear_best(rows[m]))
    if pool in ("contrast", "consistency"):
        assert decision == _core.Decision.open
    if decision == _core.Decision.open:
        assert symbol == -1
        if pool == "linear":
            assert want.max() < np.log(0.5) + 2 * TOLERANCE
            assert len(bests) > 1 or bests == {None}
        return decision
    assert is_best(want, symbol)
    if decision == _core.Decision.agree:
        assert set(wishes) - {-1} == {symbol}
    else:
        assert want[symbol] > np.log(0.5) - 2 * TOLERANCE
        assert pool == "linear"
    return decision


class TestDecide:
    """The lossless short cut of greedy decoding."""

    @given(steps(), pools, st.just(FLOOR) | st.floats(-40, 0, width=32))
    def test_tiny_steps(self, step: Step, pool: PoolName, floor: float) -> None:
        check_decision(step, pool, floor)

    @every_pool
    @pytest.mark.parametrize("shape", SHAPES)
    def test_shapes(self, isa: str, shape: str, pool: PoolName) -> None:
        assert _core.isa() == isa
        for seed in range(3):
            step = random_step(seed, "normal", shape)
            if pool == "contrast":  # with these seeds some members exclude each other
                assert decided(step, pool)[0] == _core.Decision.open
            else:
                check_decision(step, pool)

    @pytest.mark.parametrize(
        ("p", "q", "weights", "decision", "best"),
        [
            ([0.4, 0.3, 0.3], [0.4, 0.35, 0.25], [1, 1], "agree", 0),
            ([0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [1, 1], "certain", 0),
            ([0.1, 0.9, 0.0], [0.8, 0.2, 0.0], [1, 3], "certain", 0),
            ([0.6, 0.4, 0.0], [0.0, 0.4, 0.6], [1, 1], "open", -1),
            ([0.6, 0.4, 0.0], [0.0, 0.4, 0.6], [1, 0], "agree", 0),
        ],
    )
    def test_by_hand(self, p: Any, q: Any, weights: Any, decision: str, best: int) -> None:
        vocab = Vocab([b"a", b"b", b"c"])
        with np.errstate(divide="ignore"):
            rows = [np.log(np.array(row, np.float32)) for row in (p, q)]
        step = Step([vocab] * 2, rows, weights)
        assert decided(step, "linear")[:2] == (_core.Decision[decision], best)
        assert check_decision(step, "linear").name == decision

    def test_many_small_tokens_of_one_symbol_beat_one_large(self) -> None:
        vocab = Vocab([b"a", b"b", b"b", b"b"])
        row = np.array([1, 0, 0, 0], np.float32)
        assert decided(Step([vocab], [row], [1]), "linear")[1] == 1

    def test_several_ends_are_one_symbol(self) -> None:
        vocab = Vocab([b"a", b"</s>", b"<eot>"], end_ids=[1, 2])
        step = Step([vocab], [np.array([0.5, 0, 0], np.float32)], [1])
        assert decided(step, "linear")[1] == step.alignment.end

    def test_under_a_high_floor_agreement_decides_nothing(self) -> None:
        """Both like a best, but a little; each lacks what the other one has, at a floor above."""
        vocabs = [Vocab([b"a", b"b", b"x"]), Vocab([b"a", b"c", b"y"])]
        row = np.array([0.1, 0, 0], np.float32)
        step = Step(vocabs, [row, row], [1, 1])
        assert decided(step, "log-linear")[0] == _core.Decision.agree
        assert decided(step, "log-linear", floor=-0.1)[0] == _core.Decision.open
        assert fused(step, pool="log-linear", floor=-0.1).token_bytes(0) == b"b"
