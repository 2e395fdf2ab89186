"""Every byte of a text as a member sees it."""

from __future__ import annotations

import math
from pathlib import Path

import byte_reference
import numpy as np
import pytest
from bigram_members import CAREFUL, BigramMember, make_bigram
from lockstep import NAMES
from logitfuse import _core
from logitfuse.beam import Beam
from logitfuse.bytescores import ByteScores, score_bytes
from logitfuse.errors import ConfigError, FusionError, PromptError
from logitfuse.member import Member
from logitfuse.scoring import score_text
from numpy.typing import NDArray

TEXT = (
    "The cat sat on the mat, and then it went home. Il était une fois 😀 a dog; "
    "все було добре. In 1984, 3.5 % of them didn't care.\n\n\tdef f(x): return x\n"
)


@pytest.fixture(scope="module", params=["gpt2", "llama-spm", "mamba", "lfm2"])
def bigram(request, tmp_path_factory) -> BigramMember:
    folder = tmp_path_factory.mktemp("bigrams")
    name = request.param
    if name in ("mamba", "lfm2"):
        return make_bigram(folder, "gpt2", seed=4, arch=name)
    return make_bigram(folder, name, seed=3)


def head_of(member: Member) -> int:
    """The token that begins documents."""
    bos = member.model.bos if member.model.add_bos else None
    return member.vocab.end_ids[0] if bos is None else bos


def check(scores: ByteScores, text: str) -> None:
    raw = text.encode()
    assert scores.text == raw
    assert scores.logprobs.shape == (len(raw), _core.BYTE_OUTCOMES)
    sums = np.exp(scores.logprobs.astype(np.float64)).sum(axis=1)
    np.testing.assert_allclose(sums, 1, atol=1e-3)
    assert np.isfinite(scores.observed).all()
    assert scores.bits_per_byte == pytest.approx(-scores.observed.mean() / math.log(2), rel=1e-5)


class TestRows:
    @pytest.mark.parametrize("text", ["the ca", "a dog", "é!", "it 😀"])
    def test_equal_the_oracle(self, bigram, text):
        scores = score_bytes(bigram.member, text, **CAREFUL)
        check(scores, text)
        oracle = bigram.oracle(head_of(bigram.member))
        for k in range(len(scores.text)):
            want, _ = byte_reference.next_byte(*oracle, scores.text[:k])
            np.testing.assert_allclose(np.exp(scores.logprobs[k]), want, rtol=0.02, atol=1e-3)

    @pytest.mark.parametrize("prefix", ["th", "the", "the "])
    def test_behind_a_prefix(self, bigram, prefix):
        scores = score_bytes(bigram.member, "e d", prefix=prefix, **CAREFUL)
        oracle = bigram.oracle(head_of(bigram.member))
        for k in range(3):
            want, _ = byte_reference.next_byte(*oracle, prefix.encode() + b"e d"[:k])
            np.testing.assert_allclose(np.exp(scores.logprobs[k]), want, rtol=0.02, atol=1e-3)

    def test_the_whole_text_has_the_sum_over_its_tokenisations(self, bigram):
        text = b"the do"
        scores = score_bytes(bigram.member, text, **CAREFUL)
        _, probability = byte_reference.next_byte(*bigram.oracle(head_of(bigram.member)), text)
        assert scores.observed.sum() == pytest.approx(math.log(probability), abs=0.01)

    @pytest.mark.parametrize("name", NAMES)
    def test_every_architecture(self, load_branching, name):
        scores = score_bytes(load_branching(name), TEXT)
        check(scores, TEXT)
        again = score_bytes(load_branching(name), TEXT)
        np.testing.assert_allclose(again.logprobs, scores.logprobs, atol=1e-3)
        assert scores.n_tokens == len(load_branching(name).tokenize(TEXT.encode()))
        assert scores.n_decoded >= scores.n_tokens

    @pytest.mark.parametrize("name", ["gpt2", "llama-spm", "mamba"])
    def test_pruning_less_changes_little(self, load_branching, name):
        text = TEXT[:80]
        rough = score_bytes(load_branching(name), text)
        fine = score_bytes(load_branching(name), text, prune=0.003)
        assert rough.bits_per_byte == pytest.approx(fine.bits_per_byte, rel=0.05)

    def test_bytes_or_str(self, load_branching):
        member = load_branching("gpt2")
        a, b = (score_bytes(member, text) for text in ("naïve", "naïve".encode()))
        assert np.array_equal(a.logprobs, b.logprobs)


class TestWindows:
    @pytest.mark.parametrize("name", ["gpt2", "llama-spm", "gemma3", "mamba", "lfm2"])
    def test_long_texts_are_scored_to_the_end(self, load_branching, name):
        short = load_branching(name, n_ctx=256)
        text = TEXT * 4
        calls: list[tuple[int, int]] = []
        scores = score_bytes(short, text, progress=lambda *call: calls.append(call))
        check(scores, text)
        n = len(text.encode())
        assert scores.n_tokens > 256
        assert [done for done, _ in calls] == sorted({done for done, _ in calls})
        assert calls[-1] == (n, n)
        assert all(whole == n for _, whole in calls)

    def test_of_a_bigram_model_windows_change_next_to_nothing(self, bigram):
        text = TEXT * 2
        whole = score_bytes(bigram.member, text)
        short = Member(bigram.path, n_threads=1, n_branches=16, n_ctx=256)
        pieces = score_bytes(short, text)
        assert pieces.n_tokens > 200  # a window holds half the context
        assert pieces.bits_per_byte == pytest.approx(whole.bits_per_byte, rel=0.01)
        short.close()

    @pytest.mark.parametrize("name", ["gpt2", "mamba"])
    def test_prefixes_longer_than_a_window(self, load_branching, name):
        member = load_branching(name, n_ctx=256)
        calls: list[tuple[int, int]] = []
        scores = score_bytes(
            member, "And so on.", prefix=TEXT * 4, progress=lambda *call: calls.append(call)
        )
        check(scores, "And so on.")
        assert calls == sorted(calls)
        assert calls[-1] == (10, 10)


class TestRefusals:
    def test_members_without_branches(self, load):
        with pytest.raises(ConfigError, match="needs members with 16 branches; 'gpt2' has 0"):
            score_bytes(load("gpt2"), "a")

    def test_options(self, load_branching):
        with pytest.raises(FusionError, match="prune must lie"):
            score_bytes(load_branching("gpt2"), "a", prune=1.0)
        with pytest.raises(FusionError, match="at least 1 hypothesis"):
            score_bytes(load_branching("gpt2"), "a", width=0)

    def test_texts(self, load_branching):
        member = load_branching("gpt2")
        with pytest.raises(PromptError, match="the text is empty"):
            score_bytes(member, "")
        with pytest.raises(PromptError, match="not valid UTF-8: byte 0xff at position 1"):
            score_bytes(member, b"a\xff")


@pytest.fixture(scope="module")
def smol(smollm2_path: Path) -> Member:
    return Member(smollm2_path, n_ctx=512, n_threads=1, n_branches=16)


class TestRealModels:
    PROMPT = "The capital of France is a city that"

    def test_next_bytes_are_as_frequent_as_in_what_the_model_writes(self, smol):
        """Draw tokens, forget where they end, and count: the beam must agree.

        Behind the prompt come a few bytes, in which draws end anywhere; then the next byte is
        binomial, and all of them deviate by less than 4.5 standard deviations (and 0.5 %, for
        what is pruned).
        """
        random = np.random.default_rng(3)
        tokens = smol.tokenize_prompt(self.PROMPT)
        text = np.array([smol.vocab.is_text(token) for token in range(len(smol.vocab))])
        draws = [draw(smol, tokens, text, random) for _ in range(300)]
        beam = Beam(smol, prune=0.003)
        for before in (b"", b" ", draws[0][:2]):
            here = [text[len(before)] for text in draws if text.startswith(before)]
            beam.begin(tokens, start=len(tokens))
            assert beam.push(before) == len(before)
            out = np.empty(_core.BYTE_OUTCOMES, np.float32)
            beam.core.next(out)
            p = np.exp(out[:256].astype(np.float64))
            frequencies = np.bincount(here, minlength=256) / len(here)
            bound = 4.5 * np.sqrt(p * (1 - p) / len(here)) + 0.005 + 2 / len(here)
            assert (np.abs(frequencies - p) <= bound).all()

    def test_bytes_cost_no_more_than_tokens(self, smol):
        text = (
            "The river was high that spring, and the bridge had been closed since March. "
            "Nobody in the village could remember such a flood."
        )
        by_bytes = score_bytes(smol, text)
        check(by_bytes, text)
        # Tokens are scored from the second on, unless there is a begin-of-text token.
        by_tokens = score_text(smol, text)
        skipped = len(by_bytes.text) - by_tokens.n_bytes
        bits = -by_bytes.observed[skipped:].sum() / math.log(2)
        assert bits / by_tokens.n_bytes <= by_tokens.bits_per_byte + 0.01

    def test_a_large_vocabulary(self, gemma3_path):
        member = Member(gemma3_path, n_ctx=256, n_threads=1, n_branches=16)
        text = "It was a bright cold day in April, and the clocks were striking."
        by_tokens = score_text(member, text)
        by_bytes = score_bytes(member, text)
        check(by_bytes, text)
        assert by_tokens.n_bytes == len(by_bytes.text)
        assert by_bytes.bits_per_byte <= by_tokens.bits_per_byte + 0.01
        member.close()


def draw(
    member: Member, tokens: list[int], spelling: NDArray[np.bool_], random: np.random.Generator
) -> bytes:
    """At least four bytes that the model writes behind a prompt, in one to four tokens."""
    text = b""
    path = list(tokens)
    while len(text) < 4:
        member.begin(path)
        row = np.where(spelling, member.row, -np.inf)
        total = np.cumsum(np.exp(row - row.max()))
        token = int(np.searchsorted(total, random.random() * total[-1], side="right"))
        path.append(token)
        text += member.vocab.token_bytes(token)
    return text
