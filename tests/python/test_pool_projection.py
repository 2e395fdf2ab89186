"""Members that lend the mass of what the pivot cannot spell to what it can."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import reference
from fuse_checks import (
    TOLERANCE,
    adapted_tolerances,
    base_of,
    best_symbol,
    check_clear,
    check_close,
    every_pool,
    pools,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from logitfuse import _core
from logitfuse.errors import FusionError
from logitfuse.pooling import FLOOR, PoolName
from logitfuse.vocab import Vocab
from numpy.typing import NDArray
from strategies_core import INF, Step, emitted, random_step, steps, symbol_of

#: Member to token to symbol to share.
Projections = Mapping[int, Mapping[int, Mapping[int, float]]]


def best_tokens(step: Step, m: int, top: int) -> list[int]:
    ids, row = emitted(step.vocabs[m]), step.rows[m]
    ids = ids[row[ids] > -INF]
    return ids[np.lexsort([ids, -row[ids]])][:top].tolist()  # type: ignore[no-any-return]


def sparse(projection: Mapping[int, Mapping[int, float]], n_tokens: int) -> tuple[Any, Any, Any]:
    """Offsets, symbols and weights."""
    rows = [projection.get(token, {}) for token in range(n_tokens)]
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    symbols = np.array([s for row in rows for s in row], np.int32)
    weights = np.array([w for row in rows for w in row.values()], np.float32)
    return offsets, symbols, weights


def native_pool(step: Step, pool: PoolName, projections: Projections, pivot: int) -> _core.Pool:
    native = _core.Pool(step.alignment._core, pool, FLOOR)
    native.restrict(pivot)
    for m, projection in projections.items():
        native.project(m, *sparse(projection, len(step.vocabs[m])))
    native.read(step.rows, step.weights)
    return native


def projected(step: Step, projections: Projections, top: int) -> list[dict[Any, float]]:
    """The oracle's members."""
    named = {
        m: {
            token: {symbol_of(step.alignment, s): w for s, w in row.items()}
            for token, row in projection.items()
        }
        for m, projection in projections.items()
    }
    return [
        reference.project(step.rows[m], *step.plain[m], best_tokens(step, m, top), named.get(m, {}))
        if m in step.present
        else {}
        for m in range(len(step.rows))
    ]


def check_projection(
    step: Step, pool: PoolName, projections: Projections, pivot: int, top: int
) -> None:
    assume(pivot >= 0 or projections)
    size = len(step.alignment)
    has = [pivot < 0 or step.alignment.twin(pivot, s) is not None for s in range(size)]
    listed = np.zeros(size, bool)
    for m in step.present:
        for token in best_tokens(step, m, top):
            listed[step.alignment.symbol(m, token)] = True
            listed[list(projections.get(m, {}).get(token, {}))] = True
    if pool == "contrast":
        listed[best_symbol(step, base_of(step))] = True
    if step.alignment.end is not None:
        listed[step.alignment.end] = True
    listed &= has
    assume(listed.any())
    members = projected(step, projections, top)
    allowed = {symbol_of(step.alignment, s) for s in range(size) if has[s]}
    members = [{s: lp for s, lp in member.items() if s in allowed} for member in members]
    candidates = {symbol_of(step.alignment, int(s)) for s in np.flatnonzero(listed)}
    if pool == "contrast":  # the base's best may be out of reach
        members = [{s: lp for s, lp in member.items() if s in candidates} for member in members]
        check_clear(step.by_symbol(members[base_of(step)]), 0.1)
    try:
        # Adapted, the linear pool is normalised too.
        want = step.by_symbol(
            reference.pool_members(members, step.weights, pool, candidates=candidates)
        )
        assume(np.isfinite(want[listed]).any())
        if pool == "linear":
            want -= np.logaddexp.reduce(want[listed])
    except ValueError:
        assume(False)
        raise
    native = native_pool(step, pool, projections, pivot)
    assert native.decide() == (_core.Decision.open, -1)
    got = native.candidates(top)
    row = np.full(size, -INF, np.float32)
    row[got.symbols] = got.logprobs
    tolerance = 8 * adapted_tolerances(step, members, want, pool, listed=listed)
    check_close(row, np.where(listed, want, -INF), tolerance)
    for m in step.present:
        said = got.member_logprobs[m]
        own_row = step.by_symbol(members[m])[got.symbols]
        check_close(said, own_row, 8 * TOLERANCE * (1 + np.abs(own_row)))
    if pool in ("linear", "log-linear"):
        everything = [
            {s: lp for s, lp in member.items() if s in allowed}
            for member in projected(step, projections, 10**6)
        ]
        total = np.logaddexp.reduce(scores(step, pool, members)[listed])
        unlisted = (scores(step, pool, everything) - total)[~listed]
        assert np.all(unlisted <= got.outside + tolerance[~listed])


def scores(step: Step, pool: PoolName, members: list[dict[Any, float]]) -> NDArray[np.float64]:
    """The linear or log-linear pool, not normalised."""
    symbols, weights, table = reference.member_table(members, step.weights, pool, FLOOR, 1)
    shares = weights[:, None] / weights.sum()
    if pool == "linear":
        values = np.logaddexp.reduce(np.log(shares) + table)
    else:
        values = (shares * table).sum(axis=0)
    return step.by_symbol(dict(zip(symbols, values.tolist(), strict=True)))


@st.composite
def projections_of(draw: st.DrawFn, step: Step) -> dict[int, dict[int, dict[int, float]]]:
    """Some tokens of some members lend to one or two symbols."""
    found: dict[int, dict[int, dict[int, float]]] = {}
    usable = sorted(
        {
            step.alignment.symbol(m, int(token)) or 0
            for m, vocab in enumerate(step.vocabs)
            for token in emitted(vocab)
        }
    )
    for m in draw(st.sets(st.integers(0, len(step.vocabs) - 1))):
        found[m] = {}
        for token in draw(st.sets(st.sampled_from(emitted(step.vocabs[m]).tolist()), max_size=4)):
            symbols = draw(st.sets(st.sampled_from(usable), max_size=2))
            found[m][token] = {s: draw(st.sampled_from([0.0, 0.125, 0.5])) for s in symbols}
    return found


class TestProjection:
    @given(steps(), pools, st.integers(1, 8), st.data())
    def test_tiny_steps(self, step: Step, pool: PoolName, top: int, data: Any) -> None:
        pivot = data.draw(st.integers(-1, len(step.vocabs) - 1))
        check_projection(step, pool, data.draw(projections_of(step)), pivot, top)

    def test_by_hand(self) -> None:
        """b's "cat" is half a's "c", a fourth its "ca"; "dog" is lent to nobody."""
        a, b = Vocab([b"c", b"ca", b"x"]), Vocab([b"cat", b"x", b"dog"])
        rows = [np.log(np.array(p, np.float32)) for p in ([0.2, 0.2, 0.6], [0.5, 0.3, 0.2])]
        step = Step([a, b], rows, [1, 1])
        c, ca, x = (step.alignment.lookup(text) or 0 for text in (b"c", b"ca", b"x"))
        native = native_pool(step, "linear", {1: {0: {c: 0.5, ca: 0.25}}}, 0)
        got = native.candidates(_core.ALL)
        pooled = np.array([0.2 + 0.25, 0.2 + 0.125, 0.6 + 0.3])
        want = dict(zip((c, ca, x), pooled / pooled.sum(), strict=True))
        assert dict(zip(got.symbols.tolist(), np.exp(got.logprobs), strict=True)) == pytest.approx(
            want
        )
        assert got.outside == -INF
        assert np.exp(got.member_logprobs[1]) == pytest.approx([0.3, 0.25, 0.125])

    def test_what_is_not_listed_may_lend_too(self) -> None:
        vocab = Vocab([b"%d" % token for token in range(50)])
        other = Vocab([b"x%d" % token for token in range(50)])
        row = np.zeros(50, np.float32)
        row[0] = 3
        step = Step([vocab, other], [row, row], [0.001, 1])
        target = step.alignment.lookup(b"49") or 0
        lent = {1: {token: {target: 1.0} for token in range(1, 50)}}
        native = native_pool(step, "linear", lent, 0)
        short, whole = native.candidates(1), native.candidates(_core.ALL)
        assert short.outside > whole.logprobs[0] > np.log(0.5)
        assert whole.symbols[0] == target

    @every_pool
    def test_bits(self, isa: str, pool: PoolName) -> None:
        step = random_step(14, "normal", "normal").weighted([1, 0.5])
        rng = np.random.default_rng(14)
        lent = {
            1: {
                int(token): {int(s): 0.25 for s in rng.choice(len(step.alignment), 3, False)}
                for token in emitted(step.vocabs[1])
            }
        }
        assert _core.isa() == isa
        results = []
        for name in (isa, "baseline"):
            _core.set_isa(name)
            native = native_pool(step, pool, lent, 0)
            out = np.empty(len(step.alignment), np.float32)
            native.dense(out)
            got = native.candidates(20)
            results.append((got.logprobs.tobytes(), got.outside, out.tobytes()))
            assert np.exp(out.astype(float)).sum() == pytest.approx(1, abs=1e-6)
        assert results[0] == results[1]

    def test_a_pivot_can_be_lifted(self) -> None:
        step = random_step(15, "normal", "normal")
        free = _core.Pool(step.alignment._core, "linear")
        free.read(step.rows, step.weights)
        native = native_pool(step, "linear", {}, 1)
        listed = native.candidates(20).symbols.tolist()
        assert all(step.alignment.twin(1, symbol) is not None for symbol in listed)
        native.restrict(-1)
        assert native.candidates(20).symbols.tolist() == free.candidates(20).symbols.tolist()

    @pytest.mark.parametrize(
        ("member", "offsets", "symbols", "weights", "message"),
        [
            (2, [0, 1, 1], [0], [1], "2 members; the projection is of 2"),
            (1, [0, 1], [0], [1], "member 1 needs ascending offsets from 0 for 2 tokens"),
            (1, [0, 1, 0], [], [], "ascending offsets"),
            (1, [1, 1, 1], [0], [1], "ascending offsets"),
            (1, [0, 1, 2], [0], [1], "has 2 entries, 1 symbols and 1 weights"),
            (1, [0, 1, 1], [0], [], "has 1 entries, 1 symbols and 0 weights"),
            (1, [0, 1, 1], [3], [1], "names symbol 3, not in a union of 3"),
            (1, [0, 1, 1], [-1], [1], "names symbol -1"),
            (1, [0, 1, 1], [0], [-1], "has the weight -1"),
            (1, [0, 1, 1], [0], [np.nan], "has the weight nan"),
            (1, [0, 1, 3], [0, 0, 1], [1, 0.6, 0.6], "gives token 1 weights of 1.2"),
        ],
    )
    def test_refusals(
        self, member: int, offsets: Any, symbols: Any, weights: Any, message: str
    ) -> None:
        alignment = Step([Vocab([b"a", b"b"]), Vocab([b"b", b"c"])], [], []).alignment
        native = _core.Pool(alignment._core, "linear")
        with pytest.raises(FusionError, match=message):
            native.project(
                member,
                np.array(offsets, np.int64),
                np.array(symbols, np.int32),
                np.array(weights, np.float32),
            )
        assert native.restrict(1) is None
        for pivot in (-2, 2):
            with pytest.raises(FusionError, match=f"the pivot is {pivot}"):
                native.restrict(pivot)
