"""What members make of a prompt, in byte offsets of the text that all of them were given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from logitfuse.weights import PromptEvidence

#: Where a text lies in another one: first and last-plus-one byte.
Span = tuple[int, int]


def token_ends(pieces: Sequence[bytes], text: bytes) -> list[int] | None:
    """Where each token of a text ends in it, bytes.

    A begin-of-text token that the text does not contain has no bytes there, nor has a space that
    the vocabulary puts before every text.

    Returns
    -------
    list of int, or None
        None: the tokens do not spell the text.
    """
    ends, at = [], 0
    for i, piece in enumerate(pieces):
        if text.startswith(piece, at):
            at += len(piece)
        elif piece[:1] == b" " and text.startswith(piece[1:], at):
            at += len(piece) - 1
        elif i:
            return None
        ends.append(at)
    return ends if at == len(text) else None


def spans_of(messages: Sequence[Mapping[str, str]], rendered: bytes) -> list[Span]:
    """Where the contents of a chat lie in a rendering of it; nowhere, if they are not all there."""
    spans, at = [], 0
    for message in messages:
        content = message["content"].strip().encode("utf-8", "surrogatepass")
        begin = rendered.find(content, at)
        if begin < 0:
            return []
        at = begin + len(content)
        spans.append((begin, at))
    return spans


def share(
    pieces: Sequence[bytes], nats: Sequence[float], text: bytes, spans: Sequence[Span]
) -> PromptEvidence:
    """One member's evidence, in offsets of the spans laid end to end.

    A token that lies partly outside them is of unknown probability, and so is everything if the
    tokens do not spell the text.
    """
    ends = token_ends(pieces, text)
    if ends is None:
        return PromptEvidence(np.empty(0, np.int64), np.empty(0))
    there = np.array(ends, np.int64)
    shared = _inside(there, spans)
    lengths, inside = np.diff(there, prepend=0), np.diff(shared, prepend=0)
    known = np.array(nats, np.float64)
    known[(inside > 0) & (inside < lengths)] = np.nan
    return PromptEvidence(shared, known)


def _inside(offsets: NDArray[np.int64], spans: Sequence[Span]) -> NDArray[np.int64]:
    """How many bytes of the spans lie before each offset."""
    total = np.zeros_like(offsets)
    for begin, end in spans:
        total += np.clip(offsets, begin, end) - begin
    return total
