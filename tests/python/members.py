"""Members beside their own models: texts, and an oracle that reads everything afresh."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import strategies as st
from logitfuse.llama import LlamaContext
from logitfuse.member import Member
from logitfuse.text import ReplyText
from logitfuse.vocab import TokenKind
from numpy.typing import NDArray

NAMES = ["gpt2", "llama-spm", "smol", "qwen2", "gemma3", "mamba", "lfm2"]
STATEFUL = ["mamba", "lfm2"]
ATOL = 5e-2  # logits of a tiny model, decoded in batches of other shapes
PROMPT = "Once upon a time"
ENGLISH = 'The quick brown fox, aged 12345, doesn\'t jump over 2 lazy dogs.\n\n"Why?" she asked... '
CODE = (
    "def f(x: int) -> list[int]:\n    if x > 10:\n\t\treturn [x]        # ok\n\n\n    return []\n"
)
UKRAINIAN = "Їжак і ґава: «Чому б і ні?» — спитав об'єднаний світ у 2024 році. "
CHINESE = "你好，世界！我喜欢吃苹果。人工智能１２３"
ODD = (
    "🙂👩\u200d👩\u200d👧🇺🇦 e\u0301a\u0308\u0323 \u2581\u2581x \ufffd\ufffd \x00\x04\x7f "
    "\u00a0\U00040000 <|im_end|></s>"
)
TEXTS = [ENGLISH, CODE, UKRAINIAN, CHINESE, ODD]

fragments = st.one_of(
    st.builds(
        lambda text, a, n: text[a : a + n],
        st.sampled_from(TEXTS),
        st.integers(0, 80),
        st.integers(1, 30),
    ),
    st.builds(
        lambda character, n: character * n,
        st.sampled_from(" \n\t-=a1я好\u2581🙂"),
        st.integers(1, 70),
    ),
    st.text("'st \n", max_size=40),
    st.text(max_size=6),
)


def _short(parts: Sequence[str]) -> bytes:
    """A text that a context of 512 tokens has room for, whatever its bytes become."""
    return "".join(parts)[:120].encode()[:400].decode(errors="ignore").encode()


texts = st.lists(fragments, max_size=6).map(_short)
sizes = st.lists(st.integers(1, 9), min_size=1, max_size=12)


class Fresh:
    """A member's model in a context that reuses nothing, and the oracle's view of its tokens."""

    def __init__(self, member: Member) -> None:
        self._context = LlamaContext(member.model, n_ctx=member.n_ctx, n_threads=1)
        self._tokens = [member.vocab.token_bytes(i) for i in range(len(member.vocab))]
        self._kinds = [TokenKind(kind).name.lower() for kind in member.vocab.kinds]

    def rows(self, tokens: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The rows before (if there is one) and after the last of these tokens."""
        self._context.clear()
        before = np.empty(0, np.float32)
        if len(tokens) > 1:
            assert self._context.decode(tokens[:-1], 0) == 0
            before = self._context.row().copy()
        assert self._context.decode(tokens[-1:], len(tokens) - 1) == 0
        return before, self._context.row()

    def boundary(self, before: NDArray[np.float32], token: int) -> float:
        return reference.boundary_probability(before, self._tokens, self._kinds, token)


Load = Callable[[str], tuple[Member, Fresh]]


def cut(text: bytes, lengths: Sequence[int]) -> Iterator[bytes]:
    """Cut a text into pieces of these lengths, which are used over and over."""
    ends = accumulate([0, *(lengths[i % len(lengths)] for i in range(len(text)))])
    for begin, end in pairwise(ends):
        if begin < len(text):
            yield text[begin:end]


def target(member: Member, prompt: Sequence[int], reply: ReplyText) -> list[int]:
    """What the law demands the member's cache to hold."""
    twins = [member.vocab.lookup(unit) for unit in reply.units]
    assert member.stalled == (None in twins)
    known = [] if member.stalled else [twin for twin in twins if twin is not None]
    return [*prompt, *member.tokenize(reply.complete), *known]


def check_sync(member: Member, fresh: Fresh, prompt: Sequence[int], reply: ReplyText) -> None:
    """Check a tiny member against the law: tokens, row and boundary."""
    tokens = target(member, prompt, reply)
    assert list(member.tokens) == tokens
    if member.stalled:
        return
    before, after = fresh.rows(tokens)
    np.testing.assert_allclose(member.row, after, atol=ATOL, rtol=0)
    if len(tokens) > len(prompt):
        assert member.boundary == pytest.approx(fresh.boundary(before, tokens[-1]), abs=ATOL)
    else:
        assert member.boundary == 1.0


def advance(member: Member, reply: ReplyText, *units: bytes) -> bool:
    """Extend the reply and take the member there."""
    for unit in units:
        reply.append(unit)
    return member.advance(reply.complete, tuple(reply.units))


def distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Kullback-Leibler divergence of two rows of logits, nats."""
    p, q = (row.astype(np.float64) - np.logaddexp.reduce(row.astype(np.float64)) for row in (a, b))
    return float(np.exp(p) @ (p - q))


def decoded_by(member: Member, action: Callable[[], Any]) -> int:
    """How many tokens the member decodes during an action."""
    before = member.stats.decoded_tokens
    action()
    return member.stats.decoded_tokens - before


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
