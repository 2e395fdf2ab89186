"""Pooled probabilities of whole units: the native search against enumeration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import byte_reference
import numpy as np
import pytest
import reference
from byte_members import Driven, Fixed, RandomMember, members, texts, vocab_of
from hypothesis import given
from hypothesis import strategies as st
from lockstep import may_follow
from logitfuse import _core
from logitfuse.alignment import Alignment, align
from logitfuse.errors import FusionError
from reference import END

ALL = _core.ALL
WAITING = 0.2  # a prune that makes paths wait

pers = st.sampled_from(["byte", "unit"])


@dataclass
class Search:
    """A native search over members behind one text."""

    members: Sequence[RandomMember]
    text: bytes = b""
    per: Literal["byte", "unit"] = "byte"
    prune: float = 1e-9

    def __post_init__(self) -> None:
        self.alignment: Alignment = align([member.vocab for member in self.members])
        self.beams: list[Driven] = [m.beam(self.text, prune=self.prune) for m in self.members]
        cores = [beam.core for beam in self.beams]
        self.core = _core.UnitSearch(self.alignment._core, cores, self.per == "unit")
        if not any(beam.core.dead for beam in self.beams):
            self.read([1.0] * len(cores))

    def read(self, weights, pending=b"", *, may_end=True, excluded=()) -> Search:
        self.core.read(weights, pending, may_end=may_end, excluded=excluded)
        return self

    def unit(self, symbol: int) -> reference.Symbol:
        return END if symbol == self.alignment.end else self.core.unit(symbol)

    def candidates(self, n: int = ALL, forced: Sequence[int] = ()) -> dict[reference.Symbol, float]:
        """Units with their probabilities, as they are listed."""
        fused = self.core.candidates(n, forced)
        units = [self.unit(symbol) for symbol in fused.symbols.tolist()]
        assert len(set(units)) == len(units)
        self.outside = math.exp(fused.outside)
        return dict(zip(units, np.exp(fused.logprobs.astype(np.float64)), strict=True))

    def oracle(self, weights, allowed=lambda _text, _outcome: True):
        oracles = [member.oracle for member in self.members]
        return byte_reference.pooled_units(oracles, weights, self.text, self.per, allowed)


def check_same(got: dict, want: dict, tolerance: float = 1e-5) -> None:
    assert {unit for unit, p in want.items() if p > tolerance} <= got.keys()
    for unit, p in got.items():
        assert p == pytest.approx(want.get(unit, 0), rel=1e-3, abs=tolerance)


@st.composite
def groups(draw: st.DrawFn, most: int = 3, **options: object) -> tuple[list, list]:
    """Members with their weights, of which some may be 0."""
    group = draw(st.lists(members(**options), min_size=1, max_size=most))  # type: ignore[arg-type]
    n = len(group)
    weights = draw(st.lists(st.just(0.0) | st.floats(0.1, 10), min_size=n, max_size=n))
    weights[draw(st.integers(0, n - 1))] = draw(st.floats(0.1, 10))
    return group, weights


class TestEnumerated:
    @given(group=groups(), text=texts(max_size=3), per=pers)
    def test_units_are_a_prefix_free_distribution(self, group, text, per):
        search = Search(group[0], text, per).read(group[1])
        units = search.candidates()
        assert search.outside == 0
        assert sum(units.values()) == pytest.approx(1, abs=1e-4)
        strings = [unit for unit in units if isinstance(unit, bytes)]
        assert all(strings)
        for a, b in itertools.permutations(strings, 2):
            assert not a.startswith(b)

    @given(group=groups(max_tokens=5), text=texts(max_size=3), per=pers)
    def test_equals_enumeration(self, group, text, per):
        search = Search(group[0], text, per).read(group[1])
        check_same(search.candidates(), search.oracle(group[1]))

    @given(group=groups(max_tokens=5, complete=False), per=pers)
    def test_members_that_cannot_go_on_leave_it_to_the_others(self, group, per):
        search = Search(group[0], b"", per).read(group[1])
        check_same(search.candidates(), search.oracle(group[1]))

    @given(group=groups(max_tokens=5), text=texts(max_size=2))
    def test_per_unit_is_a_mixture_of_each_members_own_units(self, group, text):
        """p(s) = sum_i w_i P_i(text s) / P_i(text), straight from the text's probabilities."""
        some, weights = group
        units = Search(some, text, "unit").read(weights).candidates()
        shares = np.array(weights) / sum(weights)
        for unit, p in units.items():
            each = []
            for member in some:
                row, before = byte_reference.next_byte(*member.oracle, text)
                if isinstance(unit, str):
                    each.append(row[256])
                else:
                    each.append(byte_reference.next_byte(*member.oracle, text + unit)[1] / before)
            assert p == pytest.approx(float(shares @ each), rel=1e-3, abs=1e-5)

    @given(group=groups(max_tokens=5), text=texts(max_size=2))
    def test_per_byte_is_a_product_of_mixtures(self, group, text):
        some, weights = group
        units = Search(some, text, "byte").read(weights).candidates()
        shares = np.array(weights) / sum(weights)
        for unit, p in units.items():
            want, outcomes = 1.0, [256] if isinstance(unit, str) else list(unit)
            for k, outcome in enumerate(outcomes):
                before = text + bytes(outcomes[:k]) if outcome < 256 else text
                rows = [byte_reference.next_byte(*member.oracle, before)[0] for member in some]
                want *= float(shares @ [row[outcome] for row in rows])
            assert p == pytest.approx(want, rel=1e-3, abs=1e-5)

    @given(group=groups(), text=texts(max_size=3), per=pers)
    def test_member_logprobs_are_the_members_own(self, group, text, per):
        some, weights = group
        search = Search(some, text, per).read(weights)
        fused = search.core.candidates(ALL)
        for m, member in enumerate(some):
            if weights[m] == 0:
                assert np.isnan(fused.member_logprobs[m]).all()
                continue
            row, before = byte_reference.next_byte(*member.oracle, text)
            for k, symbol in enumerate(fused.symbols.tolist()):
                unit = search.unit(symbol)
                own = (
                    row[256]
                    if isinstance(unit, str)
                    else byte_reference.next_byte(*member.oracle, text + unit)[1] / before
                )
                got = math.exp(fused.member_logprob(k)[m])
                assert got == pytest.approx(own, rel=1e-3, abs=1e-6)


class TestBestFirst:
    @given(group=groups(), text=texts(max_size=3), per=pers, n=st.integers(1, 30))
    def test_the_best_and_an_honest_bound(self, group, text, per, n):
        search = Search(group[0], text, per).read(group[1])
        some = search.candidates(n)
        outside = search.outside
        everything = search.candidates()
        best = list(everything.items())
        assert [p for _, p in best] == sorted(everything.values(), reverse=True)
        assert len(some) >= min(n, len(best))
        assert list(some.values()) == pytest.approx([p for _, p in best[: len(some)]], rel=1e-5)
        rest = [p for unit, p in best if unit not in some]
        assert all(p <= outside * (1 + 1e-5) for p in rest)
        assert bool(rest) <= (outside > 0)

    @given(group=groups(), per=pers, data=st.data())
    def test_forced_symbols(self, group, per, data):
        search = Search(group[0], b"", per)
        everything = search.candidates()
        symbols = st.integers(0, len(search.alignment) - 1)
        forced = data.draw(st.lists(symbols, max_size=5))
        search.read([1.0] * len(group[0]))
        found = search.candidates(1, forced)
        for symbol in forced:
            unit = search.unit(symbol)
            assert (unit in found) == (unit in everything)
        for unit, p in found.items():
            assert p == pytest.approx(everything[unit], rel=1e-6)
        assert next(iter(found.values())) == max(everything.values())
        missing = [p for unit, p in everything.items() if unit not in found]
        assert all(p <= search.outside * (1 + 1e-5) for p in missing)

    def test_what_was_drawn_does_not_crowd_out_the_best(self):
        search = Search([RandomMember(vocab_of([b"a", b"b", b"c"]), 3)])
        best, *_, worst = search.candidates()
        symbol = search.alignment.lookup(worst) if worst != END else search.alignment.end
        places = np.linspace(0, 0.999, 200)
        search.read([1])
        while search.core.draw(places[0]) != symbol:
            places = places[1:]
            search.read([1])
        found = search.candidates(1)
        assert next(iter(found)) == best
        assert list(found)[-1] == worst

    @pytest.mark.parametrize("n", [0, -1])
    def test_at_least_one(self, n):
        with pytest.raises(FusionError, match=f"at least one unit must be asked for, not {n}"):
            Search([RandomMember(vocab_of([b"a"]), 0)]).candidates(n)


class TestDraw:
    @given(group=groups(), text=texts(max_size=3), per=pers)
    def test_is_the_inverse_of_the_cumulative_probabilities(self, group, text, per):
        search = Search(group[0], text, per).read(group[1])
        n = 500
        drawn: dict[reference.Symbol, int] = {}
        order = []
        for k in range(n):
            unit = search.unit(search.core.draw((k + 0.5) / n))
            drawn[unit] = drawn.get(unit, 0) + 1
            order.append(unit)
        assert len(list(itertools.groupby(order))) == len(drawn)  # each unit is one interval
        for unit, p in search.read(group[1]).candidates().items():
            assert drawn.get(unit, 0) / n == pytest.approx(p, abs=1.01 / n)

    @given(group=groups(), per=pers, place=st.floats(0, 1, exclude_max=True))
    def test_what_is_drawn_is_listed(self, group, per, place):
        search = Search(group[0], b"", per)
        unit = search.unit(search.core.draw(place))
        everything = search.candidates()
        search.read([1.0] * len(group[0]))
        assert search.unit(search.core.draw(place)) == unit
        assert search.candidates(1)[unit] == pytest.approx(everything[unit], rel=1e-6)

    def test_where_nobody_can_go_on(self):
        search = Search([RandomMember(vocab_of([b"a\xff"], ends=0), 0)])
        assert search.candidates() == {}
        with pytest.raises(FusionError, match="no member can go on"):
            search.core.draw(0.5)


class TestText:
    letters = "aé😀ї".encode()

    @given(group=groups(alphabet=letters), text=texts("aé".encode(), 3), per=pers)
    def test_utf8_is_never_broken(self, group, text, per):
        try:
            text.decode()
            pending = b""
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data":
                return
            pending = text[error.start :]
        search = Search(group[0], text, per).read(group[1], pending)
        units = search.candidates()
        assert sum(units.values()) == pytest.approx(1, abs=1e-4)
        assert all(may_follow(pending, unit) for unit in units)
        assert not (pending and END in units)

    @given(group=groups(alphabet="aé".encode(), max_tokens=4), per=pers)
    def test_what_would_break_it_leaves_its_probability_to_the_rest(self, group, per):
        search = Search(group[0], b"", per).read(group[1])
        check_same(search.candidates(), search.oracle(group[1], may_follow))

    @given(group=groups(max_tokens=5), per=pers)
    def test_without_the_end(self, group, per):
        search = Search(group[0], b"", per).read(group[1], may_end=False)
        units = search.candidates()
        assert END not in units
        check_same(units, search.oracle(group[1], lambda _, outcome: outcome != END))

    @given(group=groups(max_tokens=5), per=pers, data=st.data())
    def test_excluded_outcomes(self, group, per, data):
        excluded = data.draw(st.sets(st.sampled_from([*b"ab", 256])))
        search = Search(group[0], b"", per).read(group[1], excluded=sorted(excluded))
        names = {END if outcome == 256 else bytes([outcome]) for outcome in excluded}
        check_same(
            search.candidates(),
            search.oracle(group[1], lambda text, outcome: bool(text) or outcome not in names),
        )


class TestLaws:
    @given(group=groups(), text=texts(max_size=3), per=pers, data=st.data())
    def test_permuting_members_with_their_weights(self, group, text, per, data):
        some, weights = group
        order = data.draw(st.permutations(range(len(some))))
        here = Search(some, text, per).read(weights).candidates()
        there = Search([some[m] for m in order], text, per).read([weights[m] for m in order])
        check_same(there.candidates(), here, 1e-6)

    @given(
        member=members(),
        text=texts(max_size=3),
        per=pers,
        weights=st.tuples(*[st.floats(0.1, 9)] * 3),
    )
    def test_identical_members_are_one(self, member, text, per, weights):
        one = Search([member], text, per).candidates()
        many = Search([member] * 3, text, per).read(weights).candidates()
        check_same(many, one, 1e-6)

    @given(group=groups(), other=members(), text=texts(max_size=3), per=pers)
    def test_weight_0_is_absent(self, group, other, text, per):
        some, weights = group
        without = Search(some, text, per).read(weights).candidates()
        with_other = Search([*some, other], text, per).read([*weights, 0.0]).candidates()
        assert with_other == without

    @given(member=members(), text=texts(max_size=3))
    def test_one_member_has_its_own_probabilities(self, member, text):
        """And then it is all the same what the weights are weights of."""
        byte, unit = (Search([member], text, per).candidates() for per in ("byte", "unit"))
        check_same(byte, unit, 1e-6)
        row, before = byte_reference.next_byte(*member.oracle, text)
        for string, p in byte.items():
            want = (
                row[256]
                if isinstance(string, str)
                else byte_reference.next_byte(*member.oracle, text + string)[1] / before
            )
            assert p == pytest.approx(want, rel=1e-3, abs=1e-6)


class TestWaiting:
    @given(group=groups(), text=texts(max_size=4), per=pers)
    def test_all_probabilities_still_sum_to_1(self, group, text, per):
        search = Search(group[0], text, per, prune=WAITING)
        if any(beam.core.dead for beam in search.beams):
            return
        units = search.read(group[1]).candidates()
        assert sum(units.values()) == pytest.approx(1, abs=1e-4)

    @given(group=groups(), text=texts(max_size=4), per=pers)
    def test_a_unit_of_the_waiting_paths_says_what_does_not_follow(self, group, text, per):
        search = Search(group[0], text, per, prune=WAITING)
        if any(beam.core.dead for beam in search.beams):
            return
        search.read(group[1])
        symbols = search.core.candidates(ALL).symbols.tolist()
        strings = [unit for unit in map(search.unit, symbols) if isinstance(unit, bytes)]
        for symbol in symbols:
            unit, spelled = search.unit(symbol), search.core.spelled(symbol)
            if isinstance(unit, str):
                assert spelled == []
                continue
            for other in strings:
                if other != unit and other.startswith(unit):
                    assert other[len(unit)] in spelled

    def test_waking_asks_the_waiting_paths(self):
        # Behind "a": 95 % go on inside "ab"; the rest waits.
        member = Fixed(vocab_of([b"a", b"ab", b"c"]), [0.05, 0.9, 0.04, 0.01])
        search = Search([member], b"a", prune=0.2).read([1])
        units = search.candidates()
        assert units == pytest.approx({b"b": 0.9 / 0.95, b"": 0.05 / 0.95}, rel=1e-5)
        nothing = search.core.draw(0.999)
        assert search.unit(nothing) == b""
        assert search.core.spelled(nothing) == [ord("b")]
        search.beams[0].wake()
        search.read([1], excluded=[ord("b")])
        want = {b"a": 0.05, b"ab": 0.9, b"c": 0.04, END: 0.01}
        check_same(merge(search.candidates()), merge(want))


def merge(units: dict) -> dict:
    """By the first byte: with waiting paths a unit may be cut elsewhere."""
    sums: dict[object, float] = {}
    for unit, p in units.items():
        first = unit if unit == END else unit[:1]
        sums[first] = sums.get(first, 0) + p
    return sums


class TestRefusals:
    two = tuple(RandomMember(vocab_of([b"a", b"b"]), seed) for seed in (1, 2))

    @pytest.mark.parametrize(
        "weights",
        [[1.0], [1.0, 1.0, 1.0], [0.0, 0.0], [-1.0, 2.0], [math.nan, 1.0], [math.inf, 1.0]],
    )
    def test_weights(self, weights):
        with pytest.raises(FusionError):
            Search(self.two).read(weights)

    def test_members_without_a_distribution(self):
        search = Search(self.two)
        search.beams[1].core.begin()
        with pytest.raises(FusionError, match="member 1 has a weight but no distribution") as error:
            search.read([1, 1])
        assert error.value.member == 1
        search.read([1, 0])
        assert search.candidates()

    def test_dead_members(self):
        search = Search(self.two)
        search.beams[0].push(b"zz")
        with pytest.raises(FusionError, match="member 0 has a weight but no distribution"):
            search.read([1, 1])
