"""What members make of a prompt, and where it lies in the text that all were given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from lockstep import NAMES, PROMPT, Load, answer
from logitfuse import _core
from logitfuse.cache import MemberStats
from logitfuse.evidence import share, spans_of, token_ends
from logitfuse.llama import LlamaContext
from logitfuse.member import Member
from logitfuse.strategies.fuse import Fuse
from logitfuse.weights import PromptEvidence

LONG = "The quick brown fox, aged 12345, doesn't jump. " * 9 + "Їжак і ґава: «Чому б і ні?» 🙂"


def fresh_nats(member: Member, tokens: Sequence[int]) -> list[float]:
    """Log-probability of each token but the first, read one by one."""
    context = LlamaContext(member.model, n_ctx=member.n_ctx, n_threads=1)
    nats = []
    for i, token in enumerate(tokens[:-1]):
        assert context.decode([token], i) == 0
        row = context.row()
        nats.append(float(row[tokens[i + 1]]) - _core.log_sum_exp(row))
    return nats


@pytest.mark.parametrize("name", NAMES)
class TestPrompt:
    def test_scores(self, load: Load, name: str) -> None:
        member = load(name)
        member.reset()
        tokens = member.tokenize_prompt(LONG)
        assert len(tokens) > 70  # more than one batch of rows
        member.begin(tokens, score=True)
        found = member.prompt_evidence(LONG.encode())
        assert np.isnan(found.logprobs[0])
        np.testing.assert_allclose(found.logprobs[1:], fresh_nats(member, tokens), atol=2e-2)
        assert found.ends[-1] == len(LONG.encode())
        row = member.row.copy()
        member.reset()
        member.begin(tokens)
        np.testing.assert_allclose(member.row, row, atol=5e-2)

    def test_a_reused_prefix_keeps_its_scores(self, load: Load, name: str) -> None:
        member = load(name)
        member.reset()
        first, second = (member.tokenize_prompt(LONG[:n]) for n in (120, 200))
        member.begin(first, score=True)
        member.advance(b" and so on")
        member.begin(second, score=True)
        nats = member.prompt_evidence(LONG[:200].encode()).logprobs
        np.testing.assert_allclose(nats[1:], fresh_nats(member, second), atol=2e-2)
        member.stats = MemberStats()
        member.begin(second, score=True)
        assert member.stats.decoded_tokens <= 1

    def test_what_was_not_scored_is_read_again(self, load: Load, name: str) -> None:
        """Weights that are read off a prompt do not depend on who has read it before."""
        member = load(name)
        member.reset()
        first = member.tokenize_prompt(LONG[:120])
        second = first + member.tokenize(b" more of it")
        text = member.vocab.join(second)
        for scored in (0, 20, len(first)):
            member.reset()
            if scored:
                member.begin(first[:scored], score=True)
            member.begin(first)
            member.begin(second, score=True)
            nats = member.prompt_evidence(text).logprobs
            member.begin(second, score=True)
            assert member.prompt_evidence(text).logprobs[1:].tolist() == nats[1:].tolist()
            np.testing.assert_allclose(nats[1:], fresh_nats(member, second), atol=2e-2)
            assert np.isnan(nats[0])


class TestOffsets:
    def test_token_ends(self) -> None:
        assert token_ends([b"<s>", b" He", b"llo"], b"Hello") == [0, 2, 5]
        assert token_ends([b"<s>", b" He"], b"<s>He") == [3, 5]
        assert token_ends([b"He", b"y"], b"Hello") is None
        assert token_ends([b"He"], b"Hello") is None

    def test_only_the_contents_count(self) -> None:
        text = b"<u>one two</u><a>"
        assert spans_of([{"role": "user", "content": " one two\n"}], text) == [(3, 10)]
        assert spans_of([{"role": "user", "content": "three"}], text) == []
        pieces = [b"<u>", b"one", b" two</", b"u><a>"]
        found = share(pieces, [-1.0, -2.0, -3.0, -4.0], text, [(3, 10)])
        assert found.ends.tolist() == [0, 3, 7, 7]
        np.testing.assert_array_equal(found.logprobs, [-1, -2, np.nan, -4])
        assert len(share([b"x"], [-1.0], text, [(3, 10)]).ends) == 0

    def test_two_turns(self) -> None:
        text = b"U: a\nA: bb\nU: a\n"
        chat = [{"content": "a"}, {"content": "bb"}, {"content": "a"}]
        assert spans_of(chat, text) == [(3, 4), (8, 10), (14, 15)]


class Recorder:
    """A weigher that keeps what it is told."""

    reads_prompt = True

    def __init__(self, n: int) -> None:
        self.evidence: Sequence[PromptEvidence] = []
        self.seen: list[tuple[list[float], int]] = []
        self._n = n

    def begin(self, evidence: Sequence[PromptEvidence]) -> None:
        self.evidence, self.seen = evidence, []

    def current(self) -> list[float]:
        """The first member counts more and more."""
        return [1.0 + len(self.seen), *[1.0] * (self._n - 1)]

    def observe(self, logprobs: Sequence[float], n_bytes: int) -> None:
        self.seen.append((list(logprobs), n_bytes))


class TestWeigher:
    @pytest.mark.parametrize("schedule", ["eager", "lazy"])
    def test_is_told(self, load: Load, schedule: Any) -> None:
        members = [load(name) for name in ("gpt2", "llama-spm", "qwen2")]
        for member in members:
            member.reset()
        weigher = Recorder(3)
        fuse = Fuse(members, weights=[1, 1, 0], weigher=weigher, schedule=schedule)
        steps = answer(fuse).steps
        sizes = [len(own.ends) for own in weigher.evidence]
        assert sizes == [*(len(m.tokenize_prompt(PROMPT)) for m in members[:2]), 0]
        assert [own.ends[-1] for own in weigher.evidence[:2]] == [len(PROMPT)] * 2
        spoken = [step for step in steps if step.unit]
        assert [n for _, n in weigher.seen] == [len(step.unit) for step in spoken]
        for (seen, _), step in zip(weigher.seen, spoken, strict=True):
            known = [p if np.isfinite(p) else np.nan for p in step.member_logprobs]
            np.testing.assert_array_equal(seen, known)

    def test_weights_move(self, load: Load) -> None:
        """From equal weights to almost the first member alone."""
        members = [load("gpt2"), load("smol")]
        fuse = Fuse(members, weigher=Recorder(2), gate="always")
        last = answer(fuse, max_tokens=30, top_logprobs=1).steps[-1]
        n = len(fuse.weigher.seen)  # type: ignore[attr-defined]
        p = np.exp(np.array(last.member_logprobs, np.float64))
        assert np.exp(last.logprob) == pytest.approx((n * p[0] + p[1]) / (n + 1), rel=1e-3)
