"""Beams and searches in which only the tokens may come that lead to one of some words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import byte_reference
import numpy as np
import pytest
from byte_members import Driven, RandomMember, members, vocab_of
from constraints import mask_of, may_come
from hypothesis import given
from hypothesis import strategies as st
from logitfuse import _core
from logitfuse.alignment import align
from logitfuse.errors import FusionError
from numpy.typing import NDArray
from reference import END

INF = np.float32(np.inf)
pers = st.sampled_from(["byte", "unit"])


@dataclass(frozen=True)
class Bound:
    """A member that may say these words only."""

    member: RandomMember
    words: frozenset[str]

    def may(self, path: tuple[int, ...]) -> list[bool]:
        return may_come(self.member.vocab, self.words, self.member.vocab.join(path))

    def row(self, path: tuple[int, ...]) -> NDArray[np.float32]:
        return np.where(self.may(path), self.member.row(path), -INF)

    @property
    def oracle(self) -> tuple:  # type: ignore[type-arg]
        return (self.row, *self.member.oracle[1:])

    def beam(self, text: bytes, prune: float) -> Guided:
        core = _core.ByteBeam(self.member.trie, prune=prune, width=1000)
        driven = Guided(self.member, core, bound=self)
        driven.begin()
        driven.push(text)
        return driven


@dataclass
class Guided(Driven):
    """A native beam that gets its rows, and what may come."""

    bound: Bound | None = None

    def _decode(self) -> None:
        assert self.bound is not None
        for wanted, parent, token in self.core.wanted:
            if token >= 0:
                self.paths[wanted] = (*self.paths[parent], token)
            path = self.paths[wanted]
            self.core.row(wanted, self.member.row(path), mask_of(self.bound.may(path)))
        self._forget()


@dataclass
class Case:
    """Members, their weights, and a text that some word begins with."""

    members: Sequence[Bound]
    weights: Sequence[float]
    text: bytes

    def units(self, per: str, prune: float = 1e-9, **options: object) -> dict:
        """All units with their probabilities."""
        beams = [bound.beam(self.text, prune) for bound in self.members]
        alignment = align([bound.member.vocab for bound in self.members])
        search = _core.UnitSearch(alignment._core, [beam.core for beam in beams], per == "unit")
        weights = [0.0 if b.core.dead else w for b, w in zip(beams, self.weights, strict=True)]
        if not any(weights):
            return {}
        search.read(weights, b"", may_end=True, **options)  # type: ignore[arg-type]
        fused = search.candidates(_core.ALL)
        names = [END if s == alignment.end else search.unit(s) for s in fused.symbols.tolist()]
        return dict(zip(names, np.exp(fused.logprobs.astype(np.float64)).tolist(), strict=True))


@st.composite
def cases(draw: st.DrawFn, *, complete: bool = True) -> Case:
    words = draw(st.sets(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=4))
    some = draw(st.lists(members(max_tokens=6, complete=complete), min_size=1, max_size=2))
    word = draw(st.sampled_from(sorted(words)))
    text = word.encode()[: draw(st.integers(0, len(word)))]
    weights = draw(st.lists(st.floats(0.1, 9), min_size=len(some), max_size=len(some)))
    return Case([Bound(member, frozenset(words)) for member in some], weights, text)


@given(cases(), pers)
def test_equals_enumeration(case, per):
    """Each member's tokens are struck along every tokenisation, then the rest is as ever."""
    want = byte_reference.pooled_units(
        [m.oracle for m in case.members], case.weights, case.text, per
    )
    got = case.units(per)
    assert {unit for unit, p in want.items() if p > 1e-5} <= got.keys()
    for unit, p in got.items():
        assert p == pytest.approx(want.get(unit, 0), rel=1e-3, abs=1e-5)


@given(cases(), pers)
def test_nothing_is_lost_on_ways_that_lead_nowhere(case, per):
    assert sum(case.units(per).values()) == pytest.approx(1, abs=1e-4)


@given(cases(complete=False), pers, st.sampled_from([1e-9, 0.2]))
def test_every_unit_fits(case, per, prune):
    """Also where paths wait, and where a member lacks letters."""
    words = {word.encode() for bound in case.members for word in bound.words}
    units = case.units(per, prune)
    for unit in units:
        if unit == END:
            assert case.text in words
        else:
            assert any(word.startswith(case.text + unit) for word in words)
    assert sum(units.values()) == pytest.approx(1, abs=1e-4) or not units


@given(cases())
def test_a_row_of_allowed_tokens(case):
    """Is a row in which nothing else has any probability."""
    bound = case.members[0]
    one, other = (_core.ByteBeam(bound.member.trie, prune=0.02, width=9) for _ in range(2))
    one.row(one.begin(), bound.member.row(()), mask_of(bound.may(())))
    other.row(other.begin(), bound.row(()))
    check_same(one, other)


def check_same(one: _core.ByteBeam, other: _core.ByteBeam) -> None:
    rows = []
    for beam in (one, other):
        assert beam.wanted == []
        rows.append(np.empty(_core.BYTE_OUTCOMES, np.float32))
        beam.next(rows[-1])
    assert rows[0] == pytest.approx(rows[1], abs=1e-5)


@given(members(max_tokens=4), st.data())
def test_two_rows_of_allowed_tokens(member, data):
    n = len(member.vocab)
    masks = st.lists(st.booleans(), min_size=n, max_size=n)
    first, second = data.draw(masks), data.draw(masks)
    token = data.draw(st.sampled_from(member.vocab.sorted_ids.tolist()))
    first[token] = second[token] = True
    rows = [member.row((k,)) for k in range(2)]
    one, other = (_core.ByteBeam(member.trie, prune=0.02, width=9) for _ in range(2))
    one.two_rows(rows[0], token, rows[1], mask_of(first), mask_of(second))
    before, after = (np.where(m, r, -INF) for m, r in zip((first, second), rows, strict=True))
    other.two_rows(before, token, after)
    check_same(one, other)


class TestNothingLeft:
    member = RandomMember(vocab_of([b"a", b"b"]), 1)

    def beam(self, mask: bytes) -> _core.ByteBeam:
        beam = _core.ByteBeam(self.member.trie, prune=0.02, width=9)
        beam.row(beam.begin(), self.member.row(()), mask)
        return beam

    def test_a_path_ends(self) -> None:
        beam = self.beam(b"\0")
        out = np.empty(_core.BYTE_OUTCOMES, np.float32)
        beam.next(out)
        assert np.all(out == -INF)
        assert not beam.dead
        beam.push(b"a")
        assert beam.dead

    def test_the_others_go_on(self) -> None:
        alignment = align([self.member.vocab] * 2)
        beams = [self.beam(b"\0"), self.beam(b"\2")]
        search = _core.UnitSearch(alignment._core, beams)
        search.read([1, 1], b"", may_end=True)
        fused = search.candidates(5)
        assert [search.unit(symbol) for symbol in fused.symbols.tolist()] == [b"b"]
        assert fused.logprobs[0] == 0
        assert fused.member_logprob(0) == [-INF, 0]

    def test_nobody_does(self) -> None:
        search = _core.UnitSearch(align([self.member.vocab])._core, [self.beam(b"\0")])
        search.read([1], b"", may_end=True)
        assert len(search.candidates(5)) == 0
        with pytest.raises(FusionError, match="no member can go on from here"):
            search.draw(0.5)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_bad_rows_are_bad_rows(self, bad: float) -> None:
        beam = _core.ByteBeam(self.member.trie, prune=0.02, width=9)
        with pytest.raises(FusionError, match="NaN"):
            beam.row(beam.begin(), np.full(3, bad, np.float32), b"\1")
