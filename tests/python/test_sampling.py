"""The sampler against the float64 oracle, which is itself checked against llama.cpp's samplers."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from logitfuse import _core
from logitfuse.alignment import align
from logitfuse.errors import FusionError
from logitfuse.pooling import FLOOR, POOLS
from logitfuse.sampling import SamplingParams, make_sampler
from logitfuse.vocab import Vocab
from numpy.typing import NDArray
from pydantic import ValidationError
from reference import sample_filter
from strategies_core import INF, Row, Step, random_step, steps

#: Options that leave everything as it is.
OFF: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repeat_penalty": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
}
FILTERS = ("temperature", "top_k", "top_p", "min_p", "typical_p")
#: What float32 may do to a share of the probability mass.
ROUNDING = 1e-5

Floats = NDArray[np.float64]


def sampler(
    *, seed: int = 0, penalty_last_n: int = 64, biases: Sequence[Any] = (), **options: Any
) -> _core.Sampler:
    """A sampler with everything off that is not given."""
    return _core.Sampler(seed=seed, penalty_last_n=penalty_last_n, biases=biases, **(OFF | options))


def candidates(
    step: Step, top: int = _core.ALL, pool: str = "linear", forced: Sequence[int] = ()
) -> _core.Fused:
    native = _core.Pool(step.alignment._core, pool, FLOOR)
    native.read(step.rows, step.weights)
    return native.candidates(top, forced)


def one_member(logits: Sequence[float] | Row) -> Step:
    """One member whose tokens are the symbols."""
    vocab = Vocab([b"%d" % token for token in range(len(logits))])
    return Step([vocab], [np.asarray(logits, np.float32)], [1])


def agreeing(seed: int) -> Step:
    """Two members of one vocabulary that mostly agree."""
    row = normal_row(seed, 1000, 4)
    vocab = Vocab([b"%d" % token for token in range(len(row))])
    return Step([vocab] * 2, [row, row + normal_row(seed + 1, len(row), 0.5)], [1, 1])


def listed(logits: Sequence[float] | Row) -> _core.Fused:
    return candidates(one_member(logits))


def by_symbol(fused: _core.Fused, n: int) -> Floats:
    """Log-probabilities as a row, -inf where unlisted."""
    row = np.full(n, -INF)
    row[fused.symbols] = fused.logprobs
    return row


def chosen(
    sampler: _core.Sampler, fused: _core.Fused
) -> tuple[list[int], NDArray[np.float32]] | None:
    """Symbols that may be drawn, and their probabilities."""
    kept = sampler.filter(fused)
    return None if kept is None else (fused.symbols[kept[0]].tolist(), kept[1])


def settled(logprobs: Floats, filters: dict[str, Any]) -> tuple[list[int], Floats]:
    """The oracle's choice; cases where rounding decides are skipped.

    They are the ones where the choice changes with a small change of a parameter, or of the
    log-probabilities in either direction (ties, and typical-p's distances from the entropy).
    """
    noise = np.random.default_rng(0).normal(0, ROUNDING, len(logprobs))
    signs = (0, 1, -1)
    first = None
    for shake, *turns in itertools.product(signs, repeat=4):
        nudged = dict(filters)
        for name, turn in zip(("top_p", "min_p", "typical_p"), turns, strict=True):
            if 0 < filters[name] < 1:
                nudged[name] *= 1 + turn * ROUNDING
        kept, p = sample_filter(logprobs + shake * noise, **nudged)
        first = first or (kept.tolist(), p)
        assume(kept.tolist() == first[0])
    assert first is not None
    return first


shares = st.sampled_from([0.05, 0.3, 0.7, 0.95]) | st.floats(0.001, 0.999)
filter_options = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.1, 0.8, 1.0, 3.0]),
        "top_k": st.sampled_from([0, 0, 1, 5, 40]) | st.integers(-1, 300),
        "top_p": st.just(1.0) | shares,
        "min_p": st.just(0.0) | shares,
        "typical_p": st.just(1.0) | shares,
    }
)
seeds = st.integers(0, 2**32)


def normal_row(seed: int, n: int, spread: float) -> Row:
    return np.random.default_rng(seed).normal(0, spread, n).astype(np.float32)


row_options = st.builds(normal_row, seeds, st.integers(1, 200), st.sampled_from([0.5, 2, 6]))


#: The trust of the consistency pool depends on what is listed, and its choice may with it.
SETTLED = tuple(pool for pool in POOLS if pool != "consistency")


class TestFilter:
    @given(row_options, filter_options)
    def test_is_the_oracles(self, row: Row, filters: dict[str, Any]) -> None:
        fused = listed(row)
        kept, p = settled(by_symbol(fused, len(row)), filters)
        got = chosen(sampler(**filters), fused)
        assert got is not None
        assert got[0] == kept
        # Exponents are float32 down to -87, where the probabilities end.
        np.testing.assert_allclose(got[1], p, rtol=2e-5, atol=1e-37)

    @pytest.mark.parametrize("pool", SETTLED)
    @given(seed=seeds, filters=filter_options, top=st.integers(1, 64))
    def test_choice_from_a_short_list_is_the_choice_from_all(
        self, pool: str, seed: int, filters: dict[str, Any], top: int
    ) -> None:
        """The certificate: the sampler asks for more, or no unlisted symbol could matter."""
        step = random_step(seed, "normal", "normal", sizes=(100, 300))
        everything = candidates(step, pool=pool)
        kept, _ = settled(by_symbol(everything, len(step.alignment)), filters)
        whole = chosen(sampler(**filters), everything)
        assert whole is not None
        assert whole[0] == kept
        short = chosen(sampler(**filters), candidates(step, top, pool))
        if short is not None:
            assert short[0] == kept
            # The log-linear normalisers differ, and so does the rounding, which cold magnifies.
            rtol = 2e-5 / (filters["temperature"] or 1)
            np.testing.assert_allclose(short[1], whole[1], rtol=rtol, atol=1e-37)

    @given(steps(), st.sampled_from(SETTLED), st.integers(1, 12))
    def test_greedy_from_a_short_list_is_the_best_of_all(
        self, step: Step, pool: str, top: int
    ) -> None:
        try:
            everything = candidates(step, pool=pool)
            short = candidates(step, top, pool)
        except FusionError:  # members that exclude each other
            assume(False)
        kept = chosen(sampler(temperature=0), short)
        if kept is not None:
            assert kept[0] == [everything.symbol(0)]

    @pytest.mark.parametrize("pool", POOLS)
    @pytest.mark.parametrize(
        "filters",
        [
            {"temperature": 0},
            {"top_k": 40},
            {"top_k": 40, "top_p": 0.95, "min_p": 0.05, "typical_p": 0.9},
            {"min_p": 0.05},
        ],
        ids=str,
    )
    def test_a_short_list_is_enough_for_usual_options(
        self, pool: str, filters: dict[str, Any]
    ) -> None:
        assert sampler(**filters).filter(candidates(agreeing(1), 64, pool)) is not None

    def test_a_short_list_is_enough_for_top_p_of_the_linear_pool(self) -> None:
        """Its probabilities are those of the whole, as a contrast's are; others' are not."""
        for pool in POOLS:
            kept = sampler(top_p=0.5).filter(candidates(agreeing(1), 64, pool))
            assert (kept is None) == (pool not in ("linear", "contrast"))

    @pytest.mark.parametrize(
        "filters",
        [{"temperature": 0}, {"top_k": 1}, {"top_p": 0.3}, {"min_p": 0.9}],
        ids=str,
    )
    def test_an_unlisted_symbol_of_two_tokens_may_be_the_best(
        self, filters: dict[str, Any]
    ) -> None:
        vocab = Vocab([b"a", b"b", b"b", b"c"])
        step = Step([vocab], [np.log(np.array([0.35, 0.3, 0.3, 0.05], np.float32))], [1])
        assert candidates(step, 1).symbols.tolist() == [0]
        assert sampler(**filters).filter(candidates(step, 1)) is None
        assert chosen(sampler(**filters), candidates(step)) == ([1], [1.0])

    def test_pure_sampling_needs_every_symbol(self) -> None:
        for pool, seed in itertools.product(POOLS, range(3)):
            step = random_step(seed, "normal", "normal")
            short = sampler().filter(candidates(step, 64, pool))
            assert (short is None) == (pool != "contrast")  # the rest is implausible
            assert sampler().filter(candidates(step, pool=pool)) is not None

    @pytest.mark.parametrize("temperature", [0, 1e-30, 1e-3])
    def test_cold_is_greedy(self, temperature: float) -> None:
        kept = chosen(sampler(temperature=temperature), listed([1.0, 5.0, 3.0]))
        assert kept is not None
        assert kept[0][0] == 1
        assert kept[1].sum() == kept[1][0] == 1

    def test_ties_go_to_the_lower_symbol(self) -> None:
        for options in ({"temperature": 0}, {"top_k": 1}, {"top_p": 0.1}):
            assert sampler(**options).draw(listed([1, 2, 2, 2])) == 0  # the index
            assert listed([1, 2, 2, 2]).symbol(0) == 1


@st.composite
def processed(draw: st.DrawFn) -> tuple[Row, dict[str, Any], dict[int, float], list[int], int]:
    """A row, penalties, biases, what was said before, and how far penalties look back."""
    row = draw(row_options)
    symbols = st.integers(0, len(row) - 1)
    penalties = {
        "repeat_penalty": draw(st.sampled_from([1.0, 1.1, 0.5, 2.0])),
        "frequency_penalty": draw(st.sampled_from([0.0, 0.5, -1.0])),
        "presence_penalty": draw(st.sampled_from([0.0, 0.7, -0.3])),
    }
    values = st.just(-INF) | st.floats(-4, 4, width=32)
    biases = draw(st.dictionaries(symbols, values, max_size=min(4, len(row) - 1)))
    history = draw(st.lists(symbols, max_size=8))
    return row, penalties, biases, history, draw(st.integers(0, 6))


class TestProcess:
    @given(processed(), st.integers(1, 200))
    def test_is_the_oracles(self, case: Any, top: int) -> None:
        """Also with few symbols listed: what is not listed keeps its mass."""
        row, penalties, biases, history, last_n = case
        processor = sampler(biases=list(biases.items()), penalty_last_n=last_n, **penalties)
        for symbol in history:
            processor.accept(symbol)
        step = one_member(row)
        logprobs = by_symbol(candidates(step), len(row))
        counts = Counter(history[-last_n:] if last_n else [])
        order, p = sample_filter(logprobs, **OFF | penalties, bias=biases, counts=counts)

        everything = candidates(step)
        processor.process(everything)
        want = np.full(len(row), -INF)
        want[order] = np.log(p)
        np.testing.assert_allclose(by_symbol(everything, len(row)), want, rtol=2e-6, atol=2e-6)
        assert np.all(np.diff(everything.logprobs) <= 0)

        short = candidates(step, top, forced=processor.touched)
        unlisted = np.setdiff1d(np.arange(len(row)), short.symbols)
        possible = {symbol for symbol in short.symbols.tolist() if want[symbol] > -INF}
        assume(len(unlisted) and possible)
        processor.process(short)
        assert set(short.symbols.tolist()) == possible
        # The mass of the unlisted is 1 minus the mass of the listed, which loses digits: about 1e-7
        # of a mass of 1, which the biases and penalties may have made smaller.
        mass = np.exp(logprobs[unlisted[0]] - want[unlisted[0]])
        tolerance = 2e-6 + 2e-7 / mass
        np.testing.assert_allclose(short.logprobs, want[short.symbols], rtol=2e-6, atol=tolerance)
        assert np.all(want[unlisted] <= short.outside + tolerance)

    def test_nothing_to_do_changes_nothing(self) -> None:
        fused = candidates(one_member(normal_row(1, 50, 2)), 5)
        before = fused.logprobs.tobytes(), fused.symbols.tobytes(), fused.outside
        processor = sampler()
        processor.accept(3)
        assert not processor.processes
        assert processor.touched == []
        processor.process(fused)
        assert (fused.logprobs.tobytes(), fused.symbols.tobytes(), fused.outside) == before

    def test_members_opinions_stay_with_their_symbols(self) -> None:
        fused = candidates(random_step(2, "normal", "normal", sizes=(50, 60)))
        before = dict(zip(fused.symbols.tolist(), fused.member_logprobs.T.tolist(), strict=True))
        best = fused.symbol(0)
        sampler(biases=[(best, -INF), (fused.symbol(3), 2.0)]).process(fused)
        after = dict(zip(fused.symbols.tolist(), fused.member_logprobs.T.tolist(), strict=True))
        del before[best]
        assert after == before

    def test_everything_forbidden(self) -> None:
        fused = listed([0, 0])
        with pytest.raises(FusionError, match="forbids every candidate"):
            sampler(biases=[(0, -INF), (1, -INF)]).process(fused)

    def test_penalties_forget(self) -> None:
        processor = sampler(presence_penalty=1, penalty_last_n=2)
        for symbol in (7, 8, 9):
            processor.accept(symbol)
        assert processor.touched == [8, 9]


class TestForbid:
    def test_removes_one_candidate(self) -> None:
        fused = candidates(random_step(3, "normal", "normal", sizes=(40, 50)), 3)
        symbols, logprobs, members = fused.symbols, fused.logprobs, fused.member_logprobs
        fused.forbid(1)
        np.testing.assert_array_equal(fused.symbols, np.delete(symbols, 1))
        np.testing.assert_array_equal(fused.logprobs, np.delete(logprobs, 1))
        np.testing.assert_array_equal(fused.member_logprobs, np.delete(members, 1, axis=1))

    def test_out_of_range(self) -> None:
        fused = listed([0, 0])
        for use in (fused.forbid, fused.symbol, fused.logprob):
            with pytest.raises(IndexError):
                use(2)

    def test_nothing_left(self) -> None:
        fused = listed([0])
        fused.forbid(0)
        assert len(fused) == 0
        with pytest.raises(FusionError, match="no candidate"):
            sampler().draw(fused)


class TestDraw:
    @pytest.mark.parametrize(
        "options", [{}, {"temperature": 2.0}, {"top_k": 5}, {"top_p": 0.8, "min_p": 0.02}], ids=str
    )
    def test_follows_the_probabilities(self, options: dict[str, Any]) -> None:
        """Chi-square: mean is the degrees of freedom, variance twice that; the seed is fixed."""
        fused = listed(normal_row(5, 20, 1))
        source = sampler(seed=11, **options)
        kept = source.filter(fused)
        assert kept is not None
        draws = 20_000
        seen = np.bincount([source.draw(fused) for _ in range(draws)], minlength=len(fused))
        assert seen.sum() == seen[kept[0]].sum()  # nothing else was drawn
        expected = draws * kept[1].astype(float)
        chi_square = np.sum((seen[kept[0]] - expected) ** 2 / expected)
        freedom = len(expected) - 1
        assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom)

    def test_the_random_numbers_are_the_standards(self) -> None:
        """The C++ standard gives the 10,000th number of mt19937_64 from its default seed."""
        uniform = listed([0.0] * 16)
        source = sampler(seed=5489)
        for _ in range(9_999):
            source.draw(uniform)
        assert source.draw(uniform) == 9981545732273789042 * 16 >> 64

    @pytest.mark.parametrize("pool", POOLS)
    def test_same_seed_same_draws_on_every_instruction_set(self, isa: str, pool: str) -> None:
        def draws(seed: int) -> list[int]:
            source = sampler(seed=seed, temperature=0.8, top_k=40, top_p=0.95, min_p=0.05)
            drawn = []
            for step in cases:
                fused = candidates(step, 64, pool)
                drawn += [fused.symbol(source.draw(fused)) for _ in range(20)]
            return drawn

        cases = [agreeing(k) for k in range(5)]
        got = draws(1)
        assert draws(2) != got
        assert _core.isa() == isa
        _core.set_isa("baseline")
        assert draws(1) == got

    def test_asking_for_more_does_not_move_the_random_state(self) -> None:
        step = one_member(normal_row(6, 100, 1))
        short, everything = candidates(step, 3), candidates(step)
        patient, direct = sampler(seed=3), sampler(seed=3)
        for _ in range(20):
            assert patient.draw(short) == -1
            assert patient.draw(everything) == direct.draw(everything)


class TestParameters:
    alignment = align([Vocab([b"a", b"\xff", b"ab", b"</s>"], end_ids=[3]), Vocab([b"b", b"a"])])

    def touched(self, bias: dict[Any, float]) -> list[bytes]:
        native = make_sampler(SamplingParams(logit_bias=bias), self.alignment)
        return [self.alignment.symbol_bytes(symbol) for symbol in native.touched]

    def test_bias_by_text_bytes_or_symbol(self) -> None:
        end = self.alignment.end
        assert self.touched({"ab": 1, b"\xff": -1, 0: 2, end: 3}) == [b"ab", b"\xff", b"a", b""]

    @pytest.mark.parametrize("key", ["abc", b"\xfe", "", 5, -1])
    def test_bias_of_what_nobody_has(self, key: Any) -> None:
        with pytest.raises(FusionError, match="logit bias for"):
            self.touched({key: 1})

    @pytest.mark.parametrize("value", [INF, float("nan")])
    def test_impossible_bias(self, value: float) -> None:
        with pytest.raises((FusionError, ValidationError)):
            self.touched({"a": value})

    def test_defaults_are_llama_cpps(self) -> None:
        defaults = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
        assert SamplingParams().model_dump(include=set(defaults)) == defaults

    def test_a_seed_of_its_own_by_default(self) -> None:
        uniform = listed([0.0] * 1000)
        options = SamplingParams(temperature=1, top_k=0, top_p=1, min_p=0)
        makers = [make_sampler(options, self.alignment) for _ in range(2)]
        assert len({tuple(maker.draw(uniform) for _ in range(8)) for maker in makers}) == 2

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("temperature", INF),
            ("temperature", float("nan")),
            ("top_p", 1.5),
            ("top_p", -0.1),
            ("min_p", 2.0),
            ("typical_p", 0.0),
            ("repeat_penalty", 0.0),
            ("repeat_penalty", INF),
            ("frequency_penalty", float("nan")),
            ("presence_penalty", INF),
        ],
    )
    def test_out_of_range(self, name: str, value: float) -> None:
        with pytest.raises(FusionError, match=f"{name} must be"):
            sampler(**{name: value})
        with pytest.raises(ValidationError, match=name):
            SamplingParams(**{name: value})

    @pytest.mark.parametrize(
        "options", [{"temprature": 1}, {"seed": 2**64}, {"penalty_last_n": -1}]
    )
    def test_names_and_counts_are_checked(self, options: Any) -> None:
        with pytest.raises(ValidationError):
            SamplingParams(**options)
