"""Byte scores of real models beside the likelihood of the canonical tokens, which they include."""

from __future__ import annotations

from pathlib import Path

from logitfuse.bytescores import _document, score_bytes
from logitfuse.member import Member


def test_a_word_that_is_seldom_split_as_it_is(smollm2_path: Path) -> None:
    """Behind " into", " ind" + "iv" is 1e-5 of the bytes " indiv": every beam gives it up."""
    text = b"Split the text to wrap into indivisible chunks."
    member = Member(smollm2_path, n_ctx=256, n_threads=1, n_branches=16)
    head, tokens = _document(member, text)
    assert b"iv" in [member.vocab.token_bytes(token) for token in tokens]
    member.begin(head + tokens, score=True)
    canonical = member.prompt_evidence(text).logprobs[1:].sum()
    assert score_bytes(member, text).observed.sum() > canonical - 0.5
    member.close()
