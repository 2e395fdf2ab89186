"""Where weights come from: policies against float64 oracles and the laws they promise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from logitfuse.errors import FusionError
from logitfuse.weights import (
    Given,
    Online,
    PromptBits,
    PromptEvidence,
    PromptGreedy,
    Weigher,
    online_mixture,
    segments,
)
from numpy.typing import NDArray

Floats = NDArray[np.float64]
NAN, INF = math.nan, math.inf


def evidence(*tokens: tuple[int, float]) -> PromptEvidence:
    """One member's tokens: where each ends, and its log-probability."""
    ends, logprobs = zip(*tokens, strict=True)
    return PromptEvidence(np.array(ends, np.int64), np.array(logprobs, np.float64))


def per_byte(*columns: Sequence[float]) -> list[PromptEvidence]:
    """Members whose tokens are single bytes."""
    return [evidence(*enumerate(column, start=1)) for column in columns]


def tables(members: int = 3) -> st.SearchStrategy[Floats]:
    """Log-probabilities of bytes, some of them unknown or impossible."""
    values = st.floats(-12, 0) | st.sampled_from([NAN, -INF, 0.0])
    return st.integers(1, 12).flatmap(lambda n: arrays(np.float64, (n, members), elements=values))


priors = st.lists(st.floats(0.05, 1), min_size=3, max_size=3)


def oracle_online(
    table: Floats, rate: float, share: float, prior: Sequence[float], n_bytes: int = 1
) -> tuple[list[float], Floats]:
    """Hedge with fixed share and sleeping members, in probabilities instead of logarithms."""
    start = np.array(prior) / sum(prior)
    w, mixture = start.copy(), []
    for row in table:
        awake = ~np.isnan(row)
        if not awake.any():
            mixture.append(NAN)
            continue
        pooled = (w[awake] @ np.exp(row[awake])) / w[awake].sum()
        mixture.append(math.log(pooled) if pooled > 0 else -INF)
        if pooled > 0:
            said = np.where(awake, np.exp(np.where(awake, row, 0)), pooled)
            w = w * said**rate
            kept = (1 - share) ** n_bytes
            w = kept * w / w.sum() + (1 - kept) * start
    return mixture, w


class TestSegments:
    def test_between_common_boundaries(self) -> None:
        parts = segments(
            [
                evidence((0, NAN), (2, -1.0), (3, -2.0), (6, -4.0), (8, -8.0)),
                evidence((3, NAN), (4, -1.0), (6, -2.0), (6, -100.0), (8, -INF)),
            ]
        )
        assert parts.n_bytes.tolist() == [3, 2]
        assert parts.logprobs.tolist() == [[-4.0, -3.0], [-8.0, -INF]]
        assert parts.bits_per_byte().tolist() == [12 / 5 / math.log(2), INF]

    @given(st.lists(st.lists(st.integers(0, 20), min_size=1), min_size=1, max_size=3))
    def test_segments_hold_all_tokens_up_to_the_last_common_end(
        self, members: list[list[int]]
    ) -> None:
        pieces = [
            evidence(*((end, -1.0) for end in sorted({*ends, 25}))) for ends in map(set, members)
        ]
        parts = segments(pieces)
        assert parts.n_bytes.sum() == 25
        tokens = [np.count_nonzero(piece.ends > 0) for piece in pieces]
        assert (-parts.logprobs.sum(axis=0)).tolist() == tokens
        if len(pieces) == 1:
            assert len(parts.n_bytes) == tokens[0]

    @pytest.mark.parametrize(
        "wrong",
        [
            evidence((2, -1.0), (1, -1.0)),
            PromptEvidence(np.array([1, 2]), np.array([-1.0])),
            evidence((-1, -1.0)),
        ],
    )
    def test_malformed_evidence(self, wrong: PromptEvidence) -> None:
        with pytest.raises(FusionError, match="member 1 needs") as caught:
            segments([evidence((1, -1.0)), wrong])
        assert caught.value.member == 1


class TestGiven:
    @given(st.lists(st.floats(0, 100), min_size=1).filter(lambda w: sum(w) > 1e-3))
    def test_proportional(self, scores: list[float]) -> None:
        given_ = Given(scores)
        given_.begin([])
        given_.observe([-1.0] * len(scores), 3)
        assert given_.current() == pytest.approx(np.array(scores) / sum(scores))

    @pytest.mark.parametrize("weights", [[], [0, 0], [1, -1], [NAN, 1], [INF, 1]])
    def test_refusals(self, weights: list[float]) -> None:
        with pytest.raises(FusionError):
            Given(weights)


class TestPrompt:
    def test_bits(self) -> None:
        pieces = [evidence((2, -1.0), (4, -1.0)), evidence((4, -3.0))]
        bits = PromptBits(2, tau=0.5)
        bits.begin(pieces)
        odds = math.exp((3.0 - 2.0) / 4 / 0.5)
        assert bits.current() == pytest.approx([odds / (1 + odds), 1 / (1 + odds)])

    @given(st.lists(st.integers(0, 9), min_size=1, unique=True), st.floats(-9, -1))
    def test_bits_do_not_depend_on_how_a_text_is_cut(self, cuts: list[int], total: float) -> None:
        ends = sorted({*(cut + 1 for cut in cuts), 10})
        lengths = np.diff([0, *ends])
        fine = evidence(*((e, total * n / 10) for e, n in zip(ends, lengths, strict=True)))
        bits = PromptBits(2)
        bits.begin([fine, evidence((10, total))])
        assert bits.current() == pytest.approx([0.5, 0.5])

    def test_greedy_joins_members_that_know_different_things(self) -> None:
        greedy = PromptGreedy(3)
        # The third is best; the first knows what it does not; the second knows nothing more.
        greedy.begin(per_byte([-0.1, -6.0, -6.0], [-4.0, -4.0, -4.0], [-5.0, -0.1, -0.1]))
        assert greedy.current() == pytest.approx([0.35, 0.0, 0.65])

    @given(tables())
    def test_greedy_is_no_worse_than_the_best_member_on_the_prompt(self, table: Floats) -> None:
        greedy = PromptGreedy(3)
        greedy.begin(per_byte(*table.T))
        known = table[~np.isnan(table).any(axis=1)]
        assume(len(known) and np.isfinite(known.sum(axis=0)).any())
        mixed = np.log(np.exp(known) @ greedy.current()).sum()
        assert mixed >= known.sum(axis=0).max() - 1e-9

    @pytest.mark.parametrize("policy", [PromptBits, PromptGreedy])
    @given(table=tables(), order=st.permutations(range(3)))
    def test_laws(
        self, policy: type[PromptBits | PromptGreedy], table: Floats, order: list[int]
    ) -> None:
        weigher, permuted = policy(3), policy(3)
        weigher.begin(per_byte(*table.T))
        weights = weigher.current()
        assert sum(weights) == pytest.approx(1)
        assert min(weights) >= 0
        known = table[~np.isnan(table).any(axis=1)].sum(axis=0)
        if len(set(known)) == 3 and (policy is PromptBits or np.ptp(np.sort(known)[1:]) > 1e-9):
            permuted.begin(per_byte(*table.T[order]))
            assert permuted.current() == pytest.approx([weights[i] for i in order], abs=1e-9)
        weigher.observe([-1.0, NAN, -2.0], 1)
        assert weigher.current() == weights
        weigher.begin([])
        assert weigher.current() == pytest.approx([1 / 3] * 3)

    @pytest.mark.parametrize("policy", [PromptBits, PromptGreedy])
    @pytest.mark.parametrize("said", [[NAN, -1.0], [-INF, -1.0]])
    def test_a_prompt_that_tells_nothing(
        self, policy: type[PromptBits | PromptGreedy], said: list[float]
    ) -> None:
        weigher = policy(2)
        weigher.begin(per_byte([NAN], [-1.0]))
        assert weigher.current() == [0.5, 0.5]
        weigher.begin(per_byte([said[0]], [said[1]]))
        assert weigher.current() == ([0.5, 0.5] if math.isnan(said[0]) else [0.0, 1.0])

    def test_refusals(self) -> None:
        with pytest.raises(FusionError, match="expected prompt evidence of 2 members, got 1"):
            PromptBits(2).begin(per_byte([-1.0]))
        for tau in (0, -1, NAN, INF):
            with pytest.raises(FusionError, match="tau must be"):
                PromptBits(2, tau=tau)


class TestOnline:
    @given(tables(), st.floats(0, 1.5), st.floats(0, 0.5), priors)
    def test_oracle(self, table: Floats, rate: float, share: float, prior: list[float]) -> None:
        with np.errstate(under="ignore", invalid="ignore"):
            mixture, weights = oracle_online(table, rate, share, prior)
        found, final = online_mixture(table, rate=rate, share=share, prior=prior)
        np.testing.assert_allclose(found, mixture, atol=1e-9)
        np.testing.assert_allclose(final, weights, atol=1e-9)

    @given(tables(), priors)
    def test_rate_one_is_the_bayesian_mixture(self, table: Floats, prior: list[float]) -> None:
        awake = table[~np.isnan(table).any(axis=1)]
        whole = np.exp(awake.sum(axis=0)) @ (np.array(prior) / sum(prior))
        assume(whole > 0)
        mixture, _ = online_mixture(awake, rate=1, share=0, prior=prior)
        assert mixture.sum() == pytest.approx(math.log(whole))

    @given(tables(), st.floats(0, 1), st.floats(0, 0.5), priors, st.permutations(range(3)))
    def test_order_of_members(
        self,
        table: Floats,
        rate: float,
        share: float,
        prior: list[float],
        order: list[int],
    ) -> None:
        mixture, weights = online_mixture(table, rate=rate, share=share, prior=prior)
        again, permuted = online_mixture(
            table[:, order], rate=rate, share=share, prior=[prior[i] for i in order]
        )
        np.testing.assert_allclose(again, mixture, atol=1e-9)
        np.testing.assert_allclose(permuted, [weights[i] for i in order], atol=1e-9)

    @given(st.floats(0.01, 1), st.floats(-9, 0), st.floats(-9, 0), priors)
    def test_who_sleeps_says_what_the_pool_says(
        self, rate: float, one: float, other: float, prior: list[float]
    ) -> None:
        online = Online(prior, rate=rate, share=0)
        online.observe([one, NAN, other], 2)
        pooled = math.log(
            (prior[0] * math.exp(one) + prior[2] * math.exp(other)) / (prior[0] + prior[2])
        )
        again = Online(prior, rate=rate, share=0)
        again.observe([one, pooled, other], 2)
        assert online.current() == pytest.approx(again.current())

    @given(st.integers(1, 9), st.floats(0, 0.3), priors)
    def test_share_is_per_byte(self, n_bytes: int, share: float, prior: list[float]) -> None:
        online = Online(prior, rate=0.3, share=share)
        row = [-1.0, -4.0, -2.0]
        online.observe(row, n_bytes)
        _, weights = oracle_online(np.array([row]), 0.3, share, prior, n_bytes)
        assert online.current() == pytest.approx(weights)

    def test_no_text_is_too_long(self) -> None:
        table = np.tile([-0.5, -3.0], (100_000, 1))
        mixture, weights = online_mixture(table, rate=1.0, share=0.0)
        assert weights == [1.0, 0.0]
        assert mixture.sum() == pytest.approx(-50_000 + math.log(0.5))
        _, back = online_mixture(np.vstack([table, table[:50, ::-1]]), rate=1.0, share=0.01)
        assert back[1] > 0.9  # with a share, who was bad for long can return at once

    def test_warm_up(self) -> None:
        pieces = [evidence((2, -1.0), (4, -2.0)), evidence((2, -2.0), (4, -6.0))]
        cold, warm = Online([1, 1]), Online([1, 1], warm_up=True)
        assert (cold.reads_prompt, warm.reads_prompt) == (False, True)
        for online in (cold, warm):
            online.begin(pieces)
        assert cold.current() == [0.5, 0.5]
        _, weights = oracle_online(np.array([[-1.0, -2.0], [-2.0, -6.0]]), 0.1, 0.002, [1, 1], 2)
        assert warm.current() == pytest.approx(weights)
        warm.observe([-9.0, -0.1], 1)
        warm.begin(pieces)
        assert warm.current() == pytest.approx(weights)

    @pytest.mark.parametrize(
        ("prior", "options", "match"),
        [
            ([], {}, "sum above 0"),
            ([1, -1], {}, "member 1"),
            ([1, 1], {"rate": -0.1}, "the rate must be"),
            ([1, 1], {"rate": INF}, "the rate must be"),
            ([1, 1], {"share": 1.5}, "the share must be"),
            ([1, 1], {"share": NAN}, "the share must be"),
        ],
    )
    def test_refusals(self, prior: list[float], options: dict[str, float], match: str) -> None:
        with pytest.raises(FusionError, match=match):
            Online(prior, **options)  # type: ignore[arg-type]

    def test_wrong_observations(self) -> None:
        online = Online([1, 1])
        with pytest.raises(FusionError, match="expected 2 log-probabilities, got 3"):
            online.observe([0, 0, 0], 1)
        with pytest.raises(FusionError, match="member 1 is inf"):
            online.observe([0, INF], 1)
        for table in (np.zeros(3), np.zeros((3, 3))):
            with pytest.raises(FusionError, match="shape"):
                online_mixture(table, prior=[1, 1])


def test_all_are_weighers() -> None:
    policies: list[Weigher] = [Given([1, 1]), PromptBits(2), PromptGreedy(2), Online([1, 1])]
    assert [policy.reads_prompt for policy in policies] == [False, True, True, False]
    for policy in policies:
        policy.begin([])
        policy.observe([-1.0, -2.0], 1)
        assert sum(policy.current()) == pytest.approx(1)
