"""Draws from the linear pool are places on the line of all its tokens."""

from __future__ import annotations

import numpy as np
import pytest
from fuse_checks import pooled
from hypothesis import given
from hypothesis import strategies as st
from logitfuse import _core
from logitfuse.pooling import FLOOR
from logitfuse.vocab import Vocab
from numpy.typing import NDArray
from strategies_core import INF, SHAPES, Step, emitted, random_step, steps

#: Float32 knows the sum of a row this well, relative.
CLOSE = 1e-6
LAST = float(np.nextafter(1, 0))


def native(step: Step) -> _core.Pool:
    """A linear pool that has read a step."""
    pool = _core.Pool(step.alignment._core, "linear")
    pool.read(step.rows, step.weights)
    return pool


def laid_out(step: Step) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """The symbols of all tokens of all members, and where each one's stretch ends."""
    symbols, lengths = [], []
    shares = np.array(step.weights, np.float64) / np.sum(step.weights)
    for m in step.present:
        tokens = emitted(step.vocabs[m])
        logits = step.rows[m][tokens].astype(np.float64)
        with np.errstate(under="ignore"):
            p = np.exp(logits - logits.max())
        symbols += [step.alignment.symbol(m, token) for token in tokens.tolist()]
        lengths.append(shares[m] * p / p.sum())
    return np.array(symbols, np.int32), np.cumsum(np.concatenate(lengths))


def grid(step: Step, n: int) -> list[int]:
    pool = native(step)
    return [pool.draw((k + 0.5) / n) for k in range(n)]


@given(steps())
def test_draws_are_laid_out_by_probability(step: Step) -> None:
    """An even grid of places meets every symbol as often as the linear pool gives it."""
    n = 4000
    found = np.bincount(grid(step, n), minlength=len(step.alignment)) / n
    with np.errstate(under="ignore"):
        wanted = np.exp(pooled(step, "linear", FLOOR))
    # A symbol lies in at most as many places as there are tokens that stand for it.
    pieces = sum(len(vocab) for vocab in step.alignment.vocabs)
    assert found == pytest.approx(wanted, abs=2 * pieces / n)


@pytest.mark.usefixtures("isa")
@given(
    seed=st.integers(0, 999),
    shapes=st.lists(st.sampled_from(SHAPES), min_size=1, max_size=4),
    places=st.lists(st.floats(0, LAST) | st.sampled_from([0.0, LAST]), max_size=20),
)
def test_a_place_lies_within_its_token(seed: int, shapes: list[str], places: list[float]) -> None:
    """In long rows, where whole blocks are passed."""
    step = random_step(seed, *shapes)
    symbols, ends = laid_out(step)
    starts = np.concatenate([[0.0], ends[:-1]])
    pool = native(step)
    for place in places:
        near = (starts - CLOSE <= place) & (place <= ends + CLOSE)
        assert pool.draw(place) in symbols[near]


@pytest.mark.usefixtures("isa")
def test_same_places_same_symbols_on_every_instruction_set() -> None:
    cases = [random_step(seed, *SHAPES[: 1 + seed % 8]) for seed in range(12)]
    got = [grid(step, 300) for step in cases]
    _core.set_isa("baseline")
    assert got == [grid(step, 300) for step in cases]


@pytest.mark.parametrize("n", [1, 100, 128, 129, 700])
@pytest.mark.parametrize("members", [1, 3, 10])
def test_all_tokens_are_met_in_their_order(n: int, members: int) -> None:
    """Weights of 1/10 do not sum to 1: behind the last token there is nothing."""
    tokens = [b"%d" % k for k in range(n)]
    vocab = Vocab([b"not said", *tokens, b"not said"])
    row = np.concatenate([[-INF], np.full(n, 3), [-INF]]).astype(np.float32)
    step = Step([vocab] * members, [row] * members, [1 / members] * members)
    once = [vocab.token_bytes(symbol) for symbol in grid(step, n * members)]
    assert once == tokens * members
    assert native(step).draw(0.0) == 1
    assert native(step).draw(LAST) == n


def test_absent_members_have_no_stretch() -> None:
    vocab = Vocab([b"a", b"b"])
    rows = [np.array(row, np.float32) for row in ([5, 0], [-INF, 0], [5, 0])]
    for place in (0.0, 0.5, LAST):
        assert native(Step([vocab] * 3, rows, [0, 1, 0])).draw(place) == 1
