"""A text as a member sees it byte by byte: its belief in every next byte, exact but for pruning.

The canonical tokens of the text are always followed, and whatever is pruned is counted as lost: the
probability of the text is never more than the exact one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from logitfuse import _core
from logitfuse.beam import Beam
from logitfuse.config import PRUNE, WIDTH
from logitfuse.errors import PromptError
from logitfuse.member import Member
from logitfuse.text import valid_text

#: Share of the context that goes on with the text when the context is full.
_KEPT = 0.5
#: Bytes between two calls of `progress`.
_PIECE = 256
#: Share of the canonical path where every other one has been lost.
_CANONICAL = 1e-3
#: Tokens that are read again where a byte seems next to impossible.
_BACK = 4


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
    ConfigError
        The member has too few branches.
    """
    raw = valid_text(text, "the text")
    before = (prefix.encode() if isinstance(prefix, str) else prefix) or b""
    head, tokens = _document(member, before + raw)
    beam = Beam(member, prune=prune, width=width)
    logprobs = np.empty((len(raw), _core.BYTE_OUTCOMES), np.float32)
    member.reset()
    decoded = member.stats.decoded_tokens
    ends = np.cumsum(member.vocab._core.lengths(tokens))
    room = (member.n_ctx - len(head)) // 2 - 2 * width  # paths may lie beside the trunk
    if room < 2:
        raise PromptError(f"member '{member.name}' needs a longer context than {member.n_ctx}")
    done, first = 0, 0  # bytes of the text scored; first token of the window
    while done < len(raw):
        while ends[min(first + room, len(tokens)) - 1] <= len(before) + done:
            first += max(1, int(room * (1 - _KEPT)))
        window = _Window(beam, head, tokens[first : first + room], before + raw, ends[first:])
        window.origin = int(ends[first - 1]) if first else 0
        done = window.score(len(before) + done, logprobs, len(before), progress) - len(before)
    return ByteScores(raw, logprobs, len(tokens), member.stats.decoded_tokens - decoded)


@dataclass
class _Window:
    """A piece of a text that fits the context."""

    beam: Beam
    head: list[int]
    tokens: list[int]
    text: bytes
    ends: NDArray[np.int64]  #: of each token and those behind the window, bytes of the text
    origin: int = 0  #: where the first token begins

    def score(
        self,
        at: int,
        out: NDArray[np.float32],
        skipped: int,
        progress: Callable[[int, int], object] | None,
    ) -> int:
        """Fill in the beliefs from byte `at` to the end of the window, which is returned."""
        stop = int(self.ends[len(self.tokens) - 1])
        self._begin(at)
        while at < stop:
            piece = self.text[at : min(stop, at + _PIECE)]
            rows = out[at - skipped :][: len(piece)]
            taken = self.beam.push(piece, rows)
            if taken < len(piece):
                self._reconsider(at + taken, rows[taken])
                taken += 1
            at += taken
            if progress is not None:
                progress(at - skipped, len(out))
        return stop

    def _begin(self, at: int) -> None:
        """Go to a byte; where the tokens before it end is not to be known from what follows."""
        for back in (_BACK, 0):
            start, between = self._place(at, back)
            self.beam.begin(self.head + self.tokens, start=start)
            if self.beam.push(between) == len(between):
                return

    def _place(self, at: int, back: int) -> tuple[int, bytes]:
        """How many tokens end at least `back` tokens before a byte, and the bytes in between."""
        n = int(np.searchsorted(self.ends[: len(self.tokens)], at, side="right"))
        n = max(0, n - back)
        return len(self.head) + n, self.text[int(self.ends[n - 1]) if n else self.origin : at]

    def _reconsider(self, at: int, row: NDArray[np.float32]) -> None:
        """A byte that the beam thinks next to impossible: perhaps it has pruned too much."""
        row[:] = self._look_again(at, _BACK)
        if self.beam.push(self.text[at : at + 1]):
            return
        # Only the canonical path is sure to go on; it has what was pruned.
        canonical = self._look_again(at, 0)
        row[:] = np.logaddexp(row, canonical + math.log(_CANONICAL))
        row -= _core.log_sum_exp(row)
        if not self.beam.push(self.text[at : at + 1]):
            raise PromptError(
                f"member '{self.beam.member.name}' cannot spell byte 0x{self.text[at]:02x} at "
                f"position {at}: its vocabulary lacks it"
            )

    def _look_again(self, at: int, back: int) -> NDArray[np.float32]:
        start, between = self._place(at, back)
        return self.beam.reconsider(self.head + self.tokens, start, between)


def _document(member: Member, text: bytes) -> tuple[list[int], list[int]]:
    """The token that begins documents, and the text's own; they spell exactly the text."""
    tokens = member.tokenize(text)
    if member.vocab.join(tokens) != text:
        raise PromptError(f"member '{member.name}' cannot spell the text: its tokenizer changes it")
    return [member.opening], tokens
