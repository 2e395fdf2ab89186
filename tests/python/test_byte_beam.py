"""One member's belief in the next byte: the native beam against all tokenisations."""

from __future__ import annotations

import itertools

import byte_reference
import numpy as np
import pytest
import reference
from byte_members import EXACT, Driven, Fixed, RandomMember, members, texts, vocab_of
from hypothesis import assume, given
from hypothesis import strategies as st
from logitfuse import _core
from logitfuse.errors import FusionError
from logitfuse.vocab import TokenKind, Vocab

INF = float("inf")
END = 256


def check_next(driven: Driven, text: bytes, tolerance: float = 1e-5) -> None:
    """The beam's belief is the oracle's."""
    want, _ = byte_reference.next_byte(*driven.member.oracle, text)
    got = np.exp(driven.next())
    assert got.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=tolerance)


class TestExact:
    @given(member=members(), text=texts())
    def test_equals_the_sum_over_all_tokenisations(self, member, text):
        driven = member.beam()
        for k in range(len(text)):
            check_next(driven, text[:k])
            assert driven.push(text[k : k + 1]) == 1
        check_next(driven, text)

    @given(member=members(complete=False), text=texts())
    def test_dead_ends(self, member, text):
        driven = member.beam()
        taken = driven.push(text)
        _, probability = byte_reference.next_byte(*member.oracle, text)
        assert driven.core.dead == (probability == 0)
        if driven.core.dead:
            assert byte_reference.next_byte(*member.oracle, text[: taken - 1])[1] > 0
            assert byte_reference.next_byte(*member.oracle, text[:taken])[1] == 0
            assert (driven.core.shares, driven.core.wanted, driven.paths) == ([], [], {})
            assert (driven.core.push(text), driven.core.best) == (0, -1)
            with pytest.raises(FusionError, match="cannot spell"):
                driven.next()
            driven.begin()
            check_next(driven, b"")
        else:
            assert taken == len(text)
            check_next(driven, text)

    @given(member=members(), text=texts(max_size=5))
    def test_the_bytes_of_a_text_multiply_to_its_probability(self, member, text):
        found = member.beam().push_singly(text)
        _, probability = byte_reference.next_byte(*member.oracle, text)
        assert sum(found) == pytest.approx(np.log(probability), abs=1e-4)

    @given(member=members(alphabet=b"ab", length=3), steps=st.integers(1, 3))
    def test_strings_of_one_length_and_those_that_end_before_sum_to_1(self, member, steps):
        total = 0.0
        for length in range(steps + 1):
            for text in map(bytes, itertools.product(b"ab", repeat=length)):
                driven = member.beam()
                p = sum(driven.push_singly(text))
                total += np.exp(p + (0 if length == steps else driven.next()[END]))
        assert total == pytest.approx(1, abs=1e-4)

    @given(member=members(), text=texts(max_size=8), data=st.data())
    def test_in_any_pieces(self, member, text, data):
        whole, pieces = member.beam(text), member.beam()
        rest = text
        while rest:
            n = data.draw(st.integers(1, len(rest)))
            pieces.push(rest[:n])
            rest = rest[n:]
        assert np.array_equal(whole.next(), pieces.next())
        assert whole.core.shares == pieces.core.shares

    @given(member=members(), text=texts())
    def test_shares_sum_to_1_and_the_best_path_is_one_of_them(self, member, text):
        core = member.beam(text).core
        masses = dict(core.shares)
        assert core.best in masses
        assert core.waiting == 0

    @given(member=members(), text=texts(), other=texts())
    def test_beginning_anew_forgets(self, member, text, other):
        driven = member.beam(other)
        driven.begin()
        driven.push(text)
        assert np.array_equal(driven.next(), member.beam(text).next())

    def test_by_hand(self):
        # a: 1/2, ab: 1/4, end: 1/4, whatever came before.
        member = Fixed(vocab_of([b"a", b"ab"]), [0.5, 0.25, 0.25])
        p = np.exp(member.beam().next())
        assert (p[ord("a")], p[END]) == (pytest.approx(0.75), pytest.approx(0.25))
        p = np.exp(member.beam(b"a").next())  # a, or the beginning of ab
        assert p[ord("b")] == pytest.approx(1 / 3)
        assert p[ord("a")] == pytest.approx(2 / 3 * 0.75)
        assert p[END] == pytest.approx(2 / 3 * 0.25)

    def test_no_probability_is_no_belief(self):
        member = Fixed(vocab_of([b"a", b"b"]), [1.0, 0.0, 0.0])
        driven = member.beam()
        assert driven.next()[ord("b")] == -INF
        assert driven.push(b"ab") == 2
        assert driven.core.dead


class Bigram(RandomMember):
    """A member that remembers its last two tokens."""

    def row(self, path):
        return super().row(path[-2:])


class TestPruned:
    prunes = st.sampled_from([0.3, 0.1, 0.03])

    @given(member=members(), text=texts(), prune=prunes, width=st.integers(1, 6))
    def test_whatever_is_pruned_it_is_a_distribution(self, member, text, prune, width):
        driven = member.beam(prune=prune, width=width)
        for k in range(len(text)):
            assert np.exp(driven.next()).sum() == pytest.approx(1, abs=1e-5)
            driven.push(text[k : k + 1])
            assert len(driven.core.shares) <= width
            if driven.core.dead:
                assume(False)
        assert np.exp(driven.next()).sum() == pytest.approx(1, abs=1e-5)

    @given(member=members(), text=texts(max_size=8), prune=prunes, width=st.integers(1, 6))
    def test_the_ids_given_back_are_those_that_are_not_live(self, member, text, prune, width):
        driven = member.beam(prune=prune, width=width)
        for k in range(len(text)):
            driven.push(text[k : k + 1])
            live = {i for i, _ in driven.core.shares}
            with_rows = live & set(driven.paths)
            waits = live - with_rows
            if not waits:  # else their parents are held for them
                assert set(driven.paths) == live
            assert len(driven.paths) <= 2 * width
            assert bool(waits) == (driven.core.waiting > 0)
        driven.wake()
        assert set(driven.paths) == {i for i, _ in driven.core.shares}

    @given(member=members(), text=texts(max_size=3), prune=prunes)
    def test_what_is_lost_is_at_most_what_waited(self, member, text, prune):
        # In three bytes no two paths have the same last two tokens: none join.
        driven = member.beam(prune=prune)
        found = np.exp(np.cumsum(driven.push_singly(text)))
        _, probability = byte_reference.next_byte(*member.oracle, text)
        kept = np.r_[1.0, found][: len(driven.waited)]
        lost = float(kept @ driven.waited)
        assert probability - lost <= (found[-1] if text else 1) + 1e-6
        assert (found[-1] if text else 1) <= probability + 1e-6

    @given(member=members(max_tokens=4), text=texts(max_size=8))
    def test_joining_paths_keeps_the_sum(self, member, text):
        # Rows that depend on the last two tokens only: then joining is exact.
        member = Bigram(member.vocab, member.seed)
        driven = member.beam(prune=0.0999, width=1000)
        exact = member.beam()
        driven.push(text)
        assume(not driven.core.dead)
        exact.push(text)
        assert np.exp(driven.next()).sum() == pytest.approx(1, abs=1e-5)
        assert driven.rows <= exact.rows

    def test_a_byte_that_only_waiting_paths_spell_wakes_them(self):
        # Behind "a" there is "b" in every path that goes on inside "abc", and "c" in none.
        member = Fixed(vocab_of([b"a", b"ab", b"c"]), [0.05, 0.9, 0.04, 0.01])
        driven = member.beam(b"a", prune=0.2)
        assert driven.core.waiting == pytest.approx(0.05 / 0.95)
        assert (driven.core.wanted, driven.rows) == ([], 1)
        p = np.exp(driven.next())
        assert p[ord("b")] == pytest.approx(0.9 / 0.95, abs=1e-6)
        others = np.delete(p, ord("b"))
        np.testing.assert_allclose(others, 0.05 / 0.95 / 256, rtol=1e-5)
        assert driven.push(b"c") == 1
        assert driven.rows == 3  # behind a, and behind c
        assert np.exp(driven.next())[ord("a")] == pytest.approx(0.95, abs=1e-6)

    def test_a_byte_that_the_others_spell_gives_them_up(self):
        member = Fixed(vocab_of([b"a", b"ab", b"b", b"c"]), [0.05, 0.5, 0.2, 0.2, 0.05])
        driven = member.beam(b"a", prune=0.2)
        assert driven.core.waiting > 0
        driven.push(b"b")
        assert (driven.core.waiting, driven.rows) == (0, 2)
        assert driven.paths == {i: (1,) for i, _ in driven.core.shares}

    def test_what_was_given_up_may_be_missed_later(self):
        # The path that ends behind "c" is given up for one that spells "ca", but not "cab".
        member = Fixed(vocab_of([b"a", b"b", b"c", b"caac"]), [0.1, 0.1, 0.1, 0.6, 0.1])
        driven = member.beam(b"c", prune=0.2)
        assert driven.core.waiting == pytest.approx(0.1 / 0.7)
        assert driven.push(b"a") == 1
        assert np.exp(driven.next())[ord("a")] == pytest.approx(1)
        driven.push(b"b")
        assert driven.core.dead

    def test_with_nothing_but_waiting_paths_they_wake(self):
        # a bc, ab c, abc: a third each, and no longer token.
        member = Fixed(
            vocab_of([b"a", b"bc", b"ab", b"c", b"abc"]), [0.25, 0.25, 0.25, 0.25, 0.06, 0.01]
        )
        driven = member.beam(b"abc", prune=0.4)
        assert driven.core.waiting == 0
        assert driven.rows == 6  # the first, behind a, behind ab, three behind abc
        check_next(driven, b"abc")

    def test_waking_makes_it_exact(self):
        member = RandomMember(vocab_of([b"a", b"ab", b"abc", b"b", b"c"]), 5)
        driven = member.beam(b"ab", prune=0.3)
        assert driven.core.waiting > 0
        driven.wake()
        assert driven.core.waiting == 0
        check_next(driven, b"ab")


class TestTwoRows:
    @given(member=members(length=3), data=st.data())
    def test_is_the_formula(self, member, data):
        """P(goes on with s) = (M_before(u s) + p_before(u) M_after(s)) / M_before(u)."""
        tokens, kinds = member.oracle[1:]
        spelling = [i for i, kind in enumerate(kinds) if kind in ("text", "byte")]
        token = data.draw(st.sampled_from(spelling))
        before, after = member.row((0,)), member.row((1, 2))
        core = _core.ByteBeam(member.trie, **EXACT)
        core.two_rows(before, token, after)
        p, q = (reference.member_logprobs(row, tokens, kinds) for row in (before, after))

        def mass(of: dict[reference.Symbol, float], s: bytes) -> float:
            return sum(np.exp(v) for k, v in of.items() if isinstance(k, bytes) and k.startswith(s))

        u = tokens[token]
        ends = np.exp(p[u])
        out = np.empty(257, np.float32)
        core.next(out)
        assert np.exp(out[END]) == pytest.approx(
            ends * np.exp(q[reference.END]) / mass(p, u), rel=1e-4
        )
        for byte in b"abcd":
            s = bytes([byte])
            want = (mass(p, u + s) + ends * mass(q, s)) / mass(p, u)
            assert np.exp(out[byte]) == pytest.approx(want, rel=1e-4, abs=1e-7)

    def test_a_token_that_its_row_excludes(self):
        vocab = vocab_of([b"a", b"b"])
        core = _core.ByteBeam(_core.ByteTrie(vocab._core), **EXACT)
        after = np.log(np.array([0.5, 0.25, 0.25], np.float32))
        core.two_rows(np.array([-INF, 0, 0], np.float32), 0, after)
        out = np.empty(257, np.float32)
        core.next(out)
        np.testing.assert_allclose(np.exp(out[[97, 98, END]]), [0.5, 0.25, 0.25], rtol=1e-5)

    def test_refuses_tokens_without_bytes(self):
        vocab = Vocab([b"a", b"<c>"], [TokenKind.TEXT, TokenKind.CONTROL])
        core = _core.ByteBeam(_core.ByteTrie(vocab._core), **EXACT)
        row = np.zeros(2, np.float32)
        with pytest.raises(FusionError, match="token 1 spells no bytes"):
            core.two_rows(row, 1, row)
        for token in (-1, 2):
            with pytest.raises(IndexError):
                core.two_rows(row, token, row)


class TestRefusals:
    vocab = vocab_of([b"a", b"ab"])
    trie = _core.ByteTrie(vocab._core)

    @pytest.mark.parametrize("prune", [0.0, 1.0, -0.1, 2.0, INF, float("nan")])
    def test_prune(self, prune):
        with pytest.raises(FusionError, match="prune must lie between 0 and 1"):
            _core.ByteBeam(self.trie, prune=prune, width=8)
        core = _core.ByteBeam(self.trie, **EXACT)
        with pytest.raises(FusionError, match="prune must lie between 0 and 1"):
            core.set_prune(prune)

    @pytest.mark.parametrize("width", [0, -1])
    def test_width(self, width):
        with pytest.raises(FusionError, match=f"at least 1 hypothesis, not {width}"):
            _core.ByteBeam(self.trie, prune=0.1, width=width)

    def test_rows_that_nobody_wants(self):
        core = _core.ByteBeam(self.trie, **EXACT)
        row = np.zeros(3, np.float32)
        root = core.begin()
        for unknown in (root + 1, -1):
            with pytest.raises(FusionError, match=f"no row is wanted for hypothesis {unknown}"):
                core.row(unknown, row)
        core.row(root, row)
        with pytest.raises(FusionError, match="no row is wanted"):
            core.row(root, row)

    @pytest.mark.parametrize("n", [0, 2, 4])
    def test_rows_of_another_length(self, n):
        core = _core.ByteBeam(self.trie, **EXACT)
        with pytest.raises(FusionError, match=f"{n} logits; the vocabulary has 3 tokens"):
            core.row(core.begin(), np.zeros(n, np.float32))

    @pytest.mark.usefixtures("isa")
    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_rows_that_are_no_distribution(self, bad):
        core = _core.ByteBeam(self.trie, **EXACT)
        root = core.begin()
        for at in range(3):
            row = np.zeros(3, np.float32)
            row[at] = bad
            with pytest.raises(FusionError, match="NaN, \\+inf or nothing but -inf"):
                core.row(root, row)
        with pytest.raises(FusionError, match="NaN, \\+inf or nothing but -inf"):
            core.row(root, np.full(3, -np.inf, np.float32))
        core.row(root, np.zeros(3, np.float32))  # it is still wanted
        assert core.wanted == []

    def test_other_types_than_float32(self):
        core = _core.ByteBeam(self.trie, **EXACT)
        with pytest.raises(TypeError):
            core.row(core.begin(), np.zeros(3))  # type: ignore[arg-type]

    def test_going_on_without_rows(self):
        core = _core.ByteBeam(self.trie, **EXACT)
        core.begin()
        out = np.empty(257, np.float32)
        with pytest.raises(FusionError, match="rows are wanted"):
            core.push(b"a")
        with pytest.raises(FusionError, match="rows are wanted"):
            core.next(out)
        with pytest.raises(FusionError, match="257 numbers, not 256"):
            core.next(np.empty(256, np.float32))

    def test_before_the_text_has_begun_it_is_dead(self):
        core = _core.ByteBeam(self.trie, **EXACT)
        assert core.dead
        assert core.push(b"a") == 0
