"""The ensemble as one would write it today really works, and pools as ours does."""

from __future__ import annotations

from collections.abc import Iterator

import compare
import inputs
import llama_cpp
import models
import numpy as np
import pytest
from logitfuse.member import Member
from logitfuse.pooling import fuse
from logitfuse.vocab import TokenKind, Vocab
from naive_ensemble import NaiveEnsemble, piece
from pytest_benchmark.fixture import BenchmarkFixture

N_TOKENS = 16
POOLS = compare.pools()


@pytest.fixture(scope="module")
def llama() -> Iterator[llama_cpp.Llama]:
    """SmolLM2 in llama-cpp-python."""
    model = compare.load_llama(models.smollm2())
    yield model
    model.close()


def test_one_model_says_what_it_says_alone(llama: llama_cpp.Llama) -> None:
    alone = llama.create_completion(compare.PROMPT, max_tokens=N_TOKENS, temperature=0)
    ensemble = NaiveEnsemble([llama])
    ensemble.begin(compare.PROMPT)
    text = ""
    for _ in range(N_TOKENS):
        key = ensemble.choose()
        ensemble.follow(key)
        text += key
    assert text == alone["choices"][0]["text"]
    assert len(text) > N_TOKENS


def test_strings_are_the_bytes_where_they_can_be(llama: llama_cpp.Llama) -> None:
    vocab = Vocab.from_gguf(models.smollm2())
    lost = 0
    for token in range(len(vocab)):
        if vocab.kinds[token] != TokenKind.TEXT:
            continue
        key, own = piece(llama, token), vocab.token_bytes(token)
        lost += key.encode() != own
        if "\ufffd" not in key and len(own) <= 32:  # llama-cpp-python has a buffer of 32 bytes
            assert key.encode() == own
    assert 0 < lost < 0.05 * len(vocab)


@pytest.mark.benchmark(group="naive pool")
@pytest.mark.parametrize("name", POOLS)
def test_pools(benchmark: BenchmarkFixture, name: str) -> None:
    """What both have in common: the tokens that can be said, equal weights."""
    step = inputs.step()
    members = range(len(step.rows))
    size = len(step.alignment)
    rows, places = [], []
    for member, row in zip(members, step.rows, strict=True):
        symbols = step.alignment.to_symbol(member)
        assert symbols is not None
        rows.append(np.where(symbols < 0, -np.inf, row).astype(np.float32))
        places.append(np.where(symbols < 0, size, symbols).astype(np.int64))
    pooled = benchmark(POOLS[name], rows, places, size + 1)
    fused = fuse(step.rows, step.alignment, dense=True)
    assert fused.dense is not None
    assert pooled.sum(dtype=np.float64) == pytest.approx(1, abs=1e-4)
    assert np.allclose(pooled[:size], np.exp(fused.dense), rtol=1e-4, atol=1e-10)


def test_the_comparison() -> None:
    found = compare.compare(
        [models.smollm2(), models.gemma3()], compare.PROMPT, n=6, runs=1, n_threads=1
    )
    assert list(found.rows) == ["logitfuse, fuse", "logitfuse, default", *POOLS]
    for row in found.rows.values():
        (answer,) = row.answers
        assert len(answer.outside) == 5
        assert 0 < sum(answer.outside) < answer.seconds
        assert all(count >= 4 for count in answer.decoded)
    assert found.foreign["logitfuse, fuse"] == [0, 0]
    texts = {found.rows[name].answers[0].text for name in POOLS}
    assert len(texts) == 1
    lines = compare.table(found, 6).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert f"| {compare.NAIVE} " in lines[4]


def test_foreign_tokens() -> None:
    member = Member(models.smollm2(), n_ctx=64, n_threads=1)
    own = member.tokenize(b" the harbour")
    letters = [token for byte in b" the" for token in member.tokenize(bytes([byte]))]
    assert compare.foreign_tokens(member, own) == 0
    assert compare.foreign_tokens(member, [*letters, *own[1:]]) == len(letters) == 4
    member.close()


def test_agreement() -> None:
    assert compare.agreement("same", "same") == "yes"
    assert compare.agreement("same", "sane") == "the first 2 characters"
