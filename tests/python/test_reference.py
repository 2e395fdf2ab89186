"""The oracle itself: its laws, numbers worked out by hand, and llama.cpp's own sampler chain."""

from __future__ import annotations

import ctypes
import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import pytest
from reference import (
    END,
    back_off,
    boundary_probability,
    member_logprobs,
    pool,
    pool_matrix,
    project,
    sample_filter,
)

ABC = ([b"a", b"b", b"</s>", b"<pad>"], ["text", "text", "end", "control"])
BCD = ([b"b", b"c", b"d"], ["text", "text", "text"])
INF = float("inf")


def probabilities(logprobs: dict[Any, float]) -> dict[Any, float]:
    return {symbol: float(np.exp(value)) for symbol, value in logprobs.items()}


def test_member_drops_what_cannot_be_emitted() -> None:
    row = np.log([0.1, 0.2, 0.1, 0.6])
    p = probabilities(member_logprobs(row, *ABC))
    assert p == pytest.approx({b"a": 0.25, b"b": 0.5, END: 0.25})


def test_member_sums_equal_bytes_and_all_ends() -> None:
    tokens = [b"A", b"A", b"B", b"</s>", b"<|im_end|>", b""]
    kinds = ["text", "byte", "text", "end", "end", "unused"]
    p = probabilities(member_logprobs(np.log([1, 2, 3, 1, 3, 9]), tokens, kinds))
    assert p == pytest.approx({b"A": 0.3, b"B": 0.3, END: 0.4})


def test_a_token_that_reads_end_is_not_the_end() -> None:
    p = member_logprobs([0.0, 0.0], [b"end", b"</s>"], ["text", "end"])
    assert set(p) == {b"end", END}


def test_linear_pool_by_hand() -> None:
    rows = [np.log([0.5, 0.25, 0.25, 1e-300]), np.log([0.5, 0.25, 0.25])]
    p = probabilities(pool(rows, [ABC, BCD], [3, 1]))
    expected = {b"a": 0.375, b"b": 0.3125, END: 0.1875, b"c": 0.0625, b"d": 0.0625}
    assert p == pytest.approx(expected)


def test_log_linear_pool_by_hand() -> None:
    rows = [np.log([0.5, 0.25, 0.25, 1e-300]), np.log([0.5, 0.25, 0.25])]
    floor = np.log(0.01)
    p = probabilities(pool(rows, [ABC, BCD], [1, 1], "log-linear", floor))
    unscaled = {b"a": 0.005, b"b": 0.125, END: 0.0025, b"c": 0.0025, b"d": 0.0025}
    roots = {symbol: value**0.5 for symbol, value in unscaled.items()}
    assert p == pytest.approx({s: root / sum(roots.values()) for s, root in roots.items()})


def test_log_linear_member_vetoes_only_what_it_has() -> None:
    rows = [[0.0, -INF, 0.0, 0.0], [0.0, 0.0, 0.0]]
    p = probabilities(pool(rows, [ABC, BCD], [1, 1], "log-linear"))
    assert p[b"b"] == 0
    assert p[b"c"] > 0


def test_log_linear_refuses_a_veto_of_everything() -> None:
    vocab = ([b"a", b"b"], ["text", "text"])
    with pytest.raises(ValueError, match="probability zero"):
        pool([[0.0, -INF], [-INF, 0.0]], [vocab, vocab], [1, 1], "log-linear")


@pytest.mark.parametrize(
    ("operator", "weights", "expected"),
    [
        ("power", [1, 1], [1 / (2 + 10), 1 / (4 + 1.25), 1 / (4 + 10)]),
        ("min", [1, 9], [0.1, 0.25, 0.1]),
        ("product", [2, 1], [0.025, 0.05, 0.00625]),
        ("contrast", [1, -1], [5, 0.3125, 2.5]),
        ("contrast", [-1, 2], [0.02, 2.56, 0.04]),
    ],
)
def test_small_matrices_by_hand(operator: Any, weights: Any, expected: list[float]) -> None:
    table = np.log([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])
    p = np.exp(pool_matrix(table, weights, operator, exponent=-1))
    assert p == pytest.approx(np.array(expected) / sum(expected))


def test_consistency_by_hand() -> None:
    """Entropies of 0.5 and 0.9 to 0.1; distances from the mean of 0.2 everywhere."""
    p = np.array([[0.5, 0.5], [0.9, 0.1]])
    entropies = np.array([0.693147, 0.325083])
    c = (np.exp(-0.4) - np.exp(-2)) / (1 - np.exp(-2))
    assert c == pytest.approx(0.618719, abs=1e-6)
    want = (p / entropies[:, None]).sum(axis=0)
    got = np.exp(pool_matrix(np.log(p), [1, 1], "consistency"))
    assert got == pytest.approx(want / want.sum(), rel=1e-5)


def test_a_power_of_1_is_linear_and_near_0_log_linear() -> None:
    table = np.log(np.random.default_rng(1).dirichlet(np.ones(5), 3))
    for exponent, operator in ((1.0, "linear"), (1e-6, "log-linear"), (-1e-6, "log-linear")):
        got = pool_matrix(table, [1, 2, 3], "power", exponent)
        assert got == pytest.approx(pool_matrix(table, [1, 2, 3], operator), abs=1e-5)


def test_backing_off_deals_out_a_token_once() -> None:
    """What a member has for "hel" is for what begins with it too; nobody else has it."""
    one = {b"hello": np.log(0.6), b"help": np.log(0.2), b"x": np.log(0.2)}
    two = {b"hel": np.log(0.5), b"h": np.log(0.1), b"x": np.log(0.4)}
    adapted = back_off([one, two], [b"hello", b"help", b"hel", b"x", END])
    assert probabilities(adapted[0]) == pytest.approx({b"hello": 0.6, b"help": 0.2, b"x": 0.2})
    shares = {b"hello": 0.3 / 1.3, b"help": 0.1 / 1.3, b"hel": 0.25 / 1.3, b"x": 0.4}
    assert probabilities(adapted[1]) == pytest.approx({s: p / 0.9 for s, p in shares.items()})


def test_projecting_lends() -> None:
    row = np.log([0.5, 0.25, 0.25, 1e-300])
    p = probabilities(project(row, *ABC, [0], {0: {b"c": 0.5, b"b": 0.1}, 1: {b"c": 1.0}}))
    assert p == pytest.approx({b"a": 0.5, b"b": 0.3, END: 0.25, b"c": 0.25})


def random_case(seed: int) -> tuple[list[Any], list[Any], Any]:
    """Three members with overlapping vocabularies, duplicates, and one -inf logit."""
    rng = np.random.default_rng(seed)
    letters = [bytes([letter]) for letter in b"abcdefgh"]
    kinds = ["text", "text", "byte", "text", "end", "control", "text", "end", "unused", "text"]
    vocabs = [([letters[i] for i in rng.integers(0, 8, 10)], kinds) for _ in range(3)]
    rows = [rng.normal(0, 3, 10) for _ in range(3)]
    rows[0][3] = -INF
    return rows, vocabs, rng.dirichlet([1, 1, 1])


@pytest.mark.parametrize("operator", ["linear", "log-linear", "power", "min", "consistency"])
@pytest.mark.parametrize("seed", range(5))
class TestPoolLaws:
    def test_sums_to_one(self, operator: Any, seed: int) -> None:
        p = probabilities(pool(*random_case(seed), operator))
        assert sum(p.values()) == pytest.approx(1)

    def test_order_of_members_does_not_matter(self, operator: Any, seed: int) -> None:
        rows, vocabs, weights = random_case(seed)
        turned = pool(rows[::-1], vocabs[::-1], weights[::-1], operator)
        assert turned == pytest.approx(pool(rows, vocabs, weights, operator))

    def test_scale_of_weights_does_not_matter(self, operator: Any, seed: int) -> None:
        rows, vocabs, weights = random_case(seed)
        assert pool(rows, vocabs, 7 * weights, operator) == pytest.approx(
            pool(rows, vocabs, weights, operator)
        )

    def test_weight_zero_is_absent(self, operator: Any, seed: int) -> None:
        rows, vocabs, _ = random_case(seed)
        p = probabilities(pool(rows, vocabs, [0, 1, 0], operator))
        alone = probabilities(member_logprobs(rows[1], *vocabs[1]))
        shared = {symbol: value for symbol, value in p.items() if symbol in alone}
        if operator in ("linear", "power", "consistency"):
            assert shared == pytest.approx(alone)
        else:  # symbols that the member lacks are at the floor: about 1e-7 each
            assert shared == pytest.approx(alone, abs=1e-5)

    def test_identical_members_are_one(self, operator: Any, seed: int) -> None:
        rows, vocabs, weights = random_case(seed)
        p = pool([rows[0]] * 3, [vocabs[0]] * 3, weights, operator)
        assert p == pytest.approx(member_logprobs(rows[0], *vocabs[0]))


def test_boundary_probability() -> None:
    tokens = [b"hel", b"hello", b"he", b"help", b"hel</s>"]
    kinds = ["text", "text", "text", "text", "end"]
    row = np.log([0.1, 0.2, 0.4, 0.1, 0.2])
    assert boundary_probability(row, tokens, kinds, 0) == pytest.approx(0.25)
    assert boundary_probability(row, tokens, kinds, 1) == pytest.approx(1)
    assert boundary_probability(row, tokens, kinds, 2) == pytest.approx(0.5)


@contextmanager
def sampler_chain(*samplers: Any) -> Iterator[Any]:
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    for sampler in samplers:
        lib.llama_sampler_chain_add(chain, sampler)  # the chain owns it now
    yield chain
    lib.llama_sampler_free(chain)


def llama_cpp_filter(
    scores: np.ndarray,
    *,
    bias: dict[int, float],
    recent: list[int],
    penalties: tuple[float, float, float],
    top_k: int,
    typical_p: float,
    top_p: float,
    min_p: float,
    temperature: float,
) -> dict[int, float]:
    """Run llama.cpp's samplers on an array; returns each index left and its probability."""
    n = len(scores)
    entries = [lib.llama_logit_bias(token=token, bias=value) for token, value in bias.items()]
    biases = (lib.llama_logit_bias * len(entries))(*entries)
    with sampler_chain(
        lib.llama_sampler_init_logit_bias(n, len(entries), biases),
        lib.llama_sampler_init_penalties(n, 64, *penalties),
        lib.llama_sampler_init_top_k(top_k),
        lib.llama_sampler_init_typical(typical_p, 1),
        lib.llama_sampler_init_top_p(top_p, 1),
        lib.llama_sampler_init_min_p(min_p, 1),
        lib.llama_sampler_init_temp(temperature),
        lib.llama_sampler_init_dist(0),  # computes the probabilities
    ) as chain:
        for token in recent:
            lib.llama_sampler_accept(chain, token)
        data = (lib.llama_token_data * n)(*[(i, float(s), 0.0) for i, s in enumerate(scores)])
        candidates = lib.llama_token_data_array(data, n, -1, False)
        lib.llama_sampler_apply(chain, ctypes.byref(candidates))
        left = [candidates.data[i] for i in range(candidates.size)]
        return {entry.id: entry.p for entry in left if entry.p > 0}


FILTERS = [
    {"top_k": k, "typical_p": typical, "top_p": p, "min_p": min_p, "temperature": temperature}
    for k, typical, p, min_p, temperature in itertools.product(
        (0, 1, 40), (1.0, 0.6), (1.0, 0.8), (0.0, 0.1), (0.7, 1.5)
    )
]


@pytest.mark.parametrize("n", [5, 300, 3000])
@pytest.mark.parametrize("penalties", [(1.0, 0.0, 0.0), (1.3, 0.2, 0.4)], ids=["free", "penalised"])
@pytest.mark.parametrize(
    "filters", FILTERS, ids=lambda filters: "-".join(map(str, filters.values()))
)
def test_sample_filter_is_llama_cpps(
    n: int, penalties: tuple[float, float, float], filters: dict[str, Any]
) -> None:
    scores = np.random.default_rng(n).normal(0, 2.5, n).astype(np.float32)
    scores -= np.float32(np.logaddexp.reduce(scores))
    top = np.argsort(-scores).tolist()
    recent = [top[0], top[2], top[0]]
    bias = {top[1]: -1.5, top[4]: 1.0}
    expected = llama_cpp_filter(scores, bias=bias, recent=recent, penalties=penalties, **filters)
    kept, p = sample_filter(
        scores,
        bias=bias,
        counts=Counter(recent),
        repeat_penalty=penalties[0],
        frequency_penalty=penalties[1],
        presence_penalty=penalties[2],
        **filters,
    )
    assert dict(zip(kept.tolist(), p, strict=True)) == pytest.approx(expected, rel=1e-4)


def test_sample_filter_at_temperature_zero_is_greedy_after_bias_and_penalties() -> None:
    options = {"bias": {2: 3.0}, "counts": {1: 1}, "repeat_penalty": 2.0}
    kept, p = sample_filter([-2.0, -1.5, -4.5], temperature=0, **options)
    assert kept.tolist() == [2]  # scores are now -2, -3 and -1.5
    assert p.tolist() == [1.0]


def test_sample_filter_divides_positive_scores_by_the_repeat_penalty() -> None:
    kept, p = sample_filter(
        [2.0, -2.0], counts={0: 1, 1: 1}, repeat_penalty=2.0, min_p=0, top_p=1, temperature=1
    )
    assert kept.tolist() == [0, 1]
    assert np.log(p[0] / p[1]) == pytest.approx(1.0 - -4.0)


def test_sample_filter_never_keeps_the_impossible() -> None:
    kept, p = sample_filter([-INF, 0.0, -INF], top_k=2, typical_p=0.5)
    assert kept.tolist() == [1]
    assert p.tolist() == [1.0]
