"""The lockstep engine around two real models; every result is checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import models
import pytest
from logitfuse.cache import MemberStats
from logitfuse.member import Member
from logitfuse.sampling import SamplingParams
from logitfuse.strategies.base import Request
from logitfuse.strategies.fuse import Fuse
from logitfuse.strategies.stats import RunStats
from pytest_benchmark.fixture import BenchmarkFixture

TEXT = (
    "The old harbour was quiet in the morning: 12 boats lay in two rows, and from the café on the "
    "quay came the smell of bread. Nobody had yet gone out to sea."
)
N_TOKENS = 16


@pytest.fixture(scope="module")
def fuse() -> Iterator[Fuse]:
    """The two demo models, one thread each."""
    members = [Member(path, n_ctx=512, n_threads=1) for path in (models.smollm2(), models.gemma3())]
    together = Fuse(members)
    yield together
    together.close()


@pytest.mark.benchmark(group="sync")
@pytest.mark.parametrize("which", [0, 1], ids=["smollm2", "gemma3"])
def test_follow_a_text(benchmark: BenchmarkFixture, fuse: Fuse, which: int) -> None:
    """A member follows a text token by token; `sync_s_per_step` is the time outside the decode."""
    member = fuse.members[which]
    prompt = member.tokenize_prompt("Chapter 1\n\n")
    text = TEXT.encode()
    tokens = member.tokenize(text)
    ends = list(accumulate(len(member.vocab.token_bytes(token)) for token in tokens))

    def begin() -> None:
        member.reset()
        member.begin(prompt)
        member.stats = MemberStats()

    def follow() -> None:
        for end in ends:
            member.advance(text[: _boundary(text, end)])

    benchmark.pedantic(follow, setup=begin, rounds=3)
    assert member.tokens == (*prompt, *tokens)
    assert member.stats.decoded_tokens - member.stats.rolled_back_tokens >= len(tokens)
    benchmark.extra_info["sync_s_per_step"] = member.stats.sync_s / len(tokens)


@dataclass(frozen=True)
class Answer:
    """What was said, and what it took."""

    text: str
    stats: RunStats


@pytest.mark.benchmark(group="loop")
def test_answer(benchmark: BenchmarkFixture, fuse: Fuse) -> None:
    """The whole loop, greedy."""
    request = Request(TEXT, SamplingParams(temperature=0), max_tokens=N_TOKENS, ignore_end=True)

    def answer() -> Answer:
        text = "".join(chunk.text for chunk in fuse.stream(request))
        return Answer(text, fuse.stats)

    def reset() -> None:
        for member in fuse.members:
            member.reset()
            member.stats = MemberStats()

    reset()
    plain = answer()
    measured = benchmark.pedantic(answer, setup=reset, rounds=3)
    assert measured.text == plain.text
    stats = measured.stats
    assert stats.decisions == plain.stats.decisions
    assert stats.steps == N_TOKENS
    for votes, wins in zip(stats.votes, stats.wins, strict=True):
        assert wins <= votes <= N_TOKENS
    assert stats.sample_s > 0
    parts = stats.prefill_s + stats.beside_fuse_s + stats.fuse_s
    assert 0 < parts <= stats.total_s
    benchmark.extra_info["overhead"] = 1 - stats.decode_s / (stats.total_s - stats.prefill_s)


def _boundary(text: bytes, end: int) -> int:
    """The last character boundary at or before a byte offset."""
    while end < len(text) and text[end] & 0xC0 == 0x80:
        end -= 1
    return end
