"""A text as a member sees it byte by byte: its belief in every next byte, exact but for pruning."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from logitfuse import _core
from logitfuse.beam import PRUNE, WIDTH, Beam
from logitfuse.errors import PromptError
from logitfuse.member import Member

#: Share of the context that goes on with the text when the context is full.
_KEPT = 0.5


@dataclass(frozen=True)
class ByteScores:
    """A member's beliefs about a text.

    Attributes
    ----------
    text : bytes
    logprobs : float32 array, shape ``[n_bytes, 257]``
        Log-probability, nats, of every byte and of the end (last) at each place of the text.
    n_tokens : int
        Canonical tokens of the text.
    n_decoded : int
        Tokens that went through the model: the canonical ones and those of other tokenisations.
    """

    text: bytes
    logprobs: NDArray[np.float32]
    n_tokens: int
    n_decoded: int

    @property
    def observed(self) -> NDArray[np.float32]:
        """Log-probability of each byte of the text, nats, shape ``[n_bytes]``."""
        observed: NDArray[np.float32] = self.logprobs[
            np.arange(len(self.text)), np.frombuffer(self.text, np.uint8)
        ]
        return observed

    @property
    def bits_per_byte(self) -> float:
        """The only likelihood figure that is comparable across tokenizers."""
        return float(-self.observed.mean(dtype=np.float64)) / math.log(2)


def score_bytes(
    member: Member,
    text: str | bytes,
    *,
    prefix: str | bytes | None = None,
    prune: float = PRUNE,
    width: int = WIDTH,
    progress: Callable[[int, int], object] | None = None,
) -> ByteScores:
    """Score every byte of a text, in windows where it is longer than the context.

    The text begins a document: behind the member's begin-of-text token, or its first end token
    where it has none.  The member forgets what it held.

    Parameters
    ----------
    member : Member
        With at least ``2 * width`` branches.
    text : str or bytes
        Valid UTF-8, not empty.
    prefix : str or bytes, optional
        A prompt that the text continues; it is read, not scored.
    prune, width
        See `Beam`.
    progress : callable, optional
        Called with bytes done and bytes to do.

    Raises
    ------
    PromptError, FusionError, DecodeError
    """
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    before = (prefix.encode() if isinstance(prefix, str) else prefix) or b""
    head, tokens = _document(member, before + raw)
    beam = Beam(member, prune=prune, width=width)
    logprobs = np.empty((len(raw), _core.BYTE_OUTCOMES), np.float32)
    member.reset()
    decoded = member.stats.decoded_tokens
    ends = np.cumsum(member.vocab._core.lengths(tokens))
    done, first = 0, 0  # bytes of the text scored; first token of the window
    while done < len(raw):
        room = member.n_ctx - len(head) - 2 * width
        window = tokens[first : first + room]
        start = int(np.searchsorted(ends, len(before) + done, side="right")) - first
        skip = beam.begin(head + window, start=len(head) + max(0, start))
        at = int(ends[first + start - 1]) if first + start else 0
        stop = int(ends[first + len(window) - 1])
        pieces = skip[: len(before) + done - at], raw[done : stop - len(before)]
        if not beam.push(pieces[0]) or not _score(beam, pieces[1], logprobs[done:], done, progress):
            raise PromptError(
                f"member '{member.name}' cannot spell the text near byte {done}: its vocabulary "
                "lacks a byte of it"
            )
        done = stop - len(before)
        first += max(1, int(len(window) * (1 - _KEPT)))
    return ByteScores(raw, logprobs, len(tokens), member.stats.decoded_tokens - decoded)


def _score(
    beam: Beam,
    text: bytes,
    out: NDArray[np.float32],
    done: int,
    progress: Callable[[int, int], object] | None,
) -> bool:
    """Push a text in pieces, so that progress shows."""
    for at in range(0, len(text), 256):
        piece = text[at : at + 256]
        if not beam.push(piece, out[at : at + len(piece)]):
            return False
        if progress is not None:
            progress(done + at + len(piece), done + len(out))
    return True


def _document(member: Member, text: bytes) -> tuple[list[int], list[int]]:
    """The token that begins documents, and the text's own; they spell exactly the text."""
    if not text:
        raise PromptError("the text is empty; give at least one byte")
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"the text is not valid UTF-8: byte 0x{text[error.start]:02x} at position {error.start}"
        ) from None
    tokens = member.tokenize(text)
    if member.vocab.join(tokens) != text:
        raise PromptError(f"member '{member.name}' cannot spell the text: its tokenizer changes it")
    bos = member.model.bos if member.model.add_bos else None
    return [int(member.vocab.end_ids[0]) if bos is None else bos], tokens
