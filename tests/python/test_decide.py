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
from logitfuse.errors import FusionError
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


def check_certain(step: Step, read: list[int]) -> int:
    """Certain is what leads by more than those who are not read could change, and only that."""
    weights = [w if m in read else 0.0 for m, w in enumerate(step.weights)]
    rest = sum(w for m, w in enumerate(step.weights) if m not in read)
    native = _core.Pool(step.alignment._core, "linear")
    native.read([row if weights[m] else None for m, row in enumerate(step.rows)], weights)
    symbol = native.certain_without(rest)
    part = np.exp(pooled(step.weighted(weights), "linear")) * sum(weights)
    first, second = np.append(np.sort(part)[::-1], 0)[:2]
    total = rest + sum(weights)
    if symbol < 0:
        assert first - second <= rest + 4e-6 * total
    else:
        assert symbol == np.argmax(part) == np.argmax(pooled(step, "linear"))
        assert first - second > rest
    return symbol


class TestCertainWithout:
    """Members that need not be asked."""

    @given(steps(), st.data())
    def test_tiny_steps(self, step: Step, data: Any) -> None:
        read = data.draw(st.sets(st.sampled_from(step.present), min_size=1))
        check_certain(step, sorted(read))

    @pytest.mark.parametrize("shape", SHAPES)
    def test_shapes(self, isa: str, shape: str) -> None:
        assert _core.isa() == isa
        for seed in range(5):
            for weights in ([5, 1, 1], [1, 2, 0.5], [1, 1, 1]):
                step = random_step(seed, shape, "normal", "one-hot").weighted(weights)
                check_certain(step, [0])
                check_certain(step, [0, 1])

    def test_by_hand(self) -> None:
        """0.7 * 0.6 - 0.7 * 0.1 = 0.35 is above what 0.3 can do; both must be below it."""
        vocab = Vocab([b"%d" % token for token in range(40)])
        row = np.log(np.array([0.6, 0.1, *[0.3 / 38] * 38])).astype(np.float32)
        step = Step([vocab] * 2, [row, row], [0.7, 0.3])
        assert check_certain(step, [0]) == 0
        assert check_certain(step.weighted([0.6, 0.4]), [0]) == -1
        assert check_certain(step.weighted([7, 3]), [0]) == 0

    def test_many_equals_hide_no_second(self) -> None:
        """Two tokens of one symbol, neither of them among the best, are nearly as many as one."""
        vocab = Vocab([b"%d" % token for token in range(20)] + [b"x"] * 10)
        row = np.full(30, 2.0, np.float32)
        row[0], row[20:] = 4.4, 1.9
        step = Step([vocab] * 2, [row, row], [0.95, 0.05])
        assert check_certain(step, [0]) == -1
        row[20:25] = -INF
        assert check_certain(step, [0]) == 0

    @every_pool
    def test_only_the_linear_pool(self, pool: PoolName) -> None:
        vocab = Vocab([b"a", b"b"])
        native = _core.Pool(Step([vocab], [], []).alignment._core, pool)
        native.read([np.array([0, -50], np.float32)], [1])
        assert native.certain_without(0.1) == (0 if pool == "linear" else -1)

    @pytest.mark.parametrize("rest", [-1, np.nan, INF])
    def test_refusals(self, rest: float) -> None:
        vocab = Vocab([b"a", b"b"])
        native = _core.Pool(Step([vocab], [], []).alignment._core, "linear")
        native.read([np.zeros(2, np.float32)], [1])
        with pytest.raises(FusionError, match="weight of absent members"):
            native.certain_without(rest)


class TestReweigh:
    """New weights for the rows at hand."""

    @given(steps(), pools, st.data())
    def test_is_reading_again(self, step: Step, pool: PoolName, data: Any) -> None:
        weights = [data.draw(st.floats(0.01, 9)) if w else 0.0 for w in step.weights]
        first, second = (_core.Pool(step.alignment._core, pool) for _ in range(2))
        first.read(step.rows, step.weights)
        first.reweigh(weights)
        second.read(step.rows, weights)
        assert first.decide() == second.decide()
        try:
            want = second.candidates(3)
        except FusionError:
            with pytest.raises(FusionError):
                first.candidates(3)
            return
        got = first.candidates(3)
        assert got.symbols.tolist() == want.symbols.tolist()
        assert got.logprobs.tobytes() == want.logprobs.tobytes()
        assert got.outside == want.outside

    def test_members_come_and_go_but_not_unread_ones(self) -> None:
        vocab = Vocab([b"a", b"b"])
        rows = [np.array(row, np.float32) for row in ([3, 0], [0, 5])]
        native = _core.Pool(Step([vocab] * 3, [], []).alignment._core, "linear")
        native.read([*rows, None], [1, 1, 0])
        native.reweigh([1, 0, 0])
        assert native.best() == [0, -1, -1]
        native.reweigh([0, 2, 0])
        assert native.best() == [-1, 1, -1]
        for weights, message in (
            ([1, 1, 1], "member 2 has a weight but no row"),
            ([-1, 1, 0], "weight of member 0"),
        ):
            with pytest.raises(FusionError, match=message):
                native.reweigh(weights)
        assert native.best() == [-1, 1, -1]
