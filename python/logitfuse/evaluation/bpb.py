"""Bits per byte of texts: the only likelihood figure that is comparable across tokenizers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from logitfuse import _core
from logitfuse.errors import ConfigError, FusionError
from logitfuse.evaluation.beliefs import Beliefs
from logitfuse.evaluation.runner import Findings
from logitfuse.strategies.base import Request

if TYPE_CHECKING:
    from logitfuse.evaluation.contenders import Contender

#: Bytes of a window, which fit any context of as many tokens, and how far it moves.
WINDOW, STRIDE = 4096, 2048


@dataclass(frozen=True)
class Window:
    """A piece of a text and what comes before it.

    Attributes
    ----------
    id, group : str
        The text's name, with the first byte that is scored; the text's name.
    before : bytes
        Is read, not scored; what has nothing before it is read as the beginning of a document.
    text : bytes
    """

    id: str
    group: str
    before: bytes
    text: bytes


def windows(
    name: str, text: bytes, *, window: int = WINDOW, stride: int = STRIDE
) -> Iterator[Window]:
    """Cut a text so that every byte is scored once, with as much before it as the window holds.

    The first window is scored as a whole, of the others the last `stride` bytes: a byte has at
    least ``window - stride`` bytes before it, unless the text begins there.  Characters stay whole.

    Raises
    ------
    ConfigError
        A stride that is not between 1 and the window.
    """
    if not 1 <= stride <= window:
        raise ConfigError(f"the stride must be from 1 to the window, {window} bytes, not {stride}")
    begin = 0
    while begin < len(text):
        end = _whole(text, window if not begin else begin + stride, begin)
        # The least is kept where a character is longer than the stride.
        first = max(0, min(end, begin + stride) - window)
        first = _whole(text, first, -1) if begin else 0
        yield Window(f"{name}:{begin}", name, text[first:begin], text[begin:end])
        begin = end


def _whole(text: bytes, at: int, least: int) -> int:
    """The last boundary of characters up to `at`, but behind `least`."""
    at = min(at, len(text))
    while 0 < at < len(text) and not _core.continues_utf8(b"", text[at : at + 1]):
        at -= 1
    return at if at > least else _next(text, least + 1)


def _next(text: bytes, at: int) -> int:
    while at < len(text) and not _core.continues_utf8(b"", text[at : at + 1]):
        at += 1
    return at


@dataclass(frozen=True)
class BpbTask:
    """Texts are scored window by window.

    Parameters
    ----------
    items : sequence of Window
    """

    items: Sequence[Window]
    kind: str = "bpb"
    metrics: tuple[str, ...] = ("bits_per_byte",)

    def parameters(self, item: Window) -> dict[str, Any]:
        """See `Task`."""
        parts = {"before": item.before, "text": item.text}
        return {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}

    def put(self, item: Window, contender: Contender, *, sample: int = 0) -> Findings:
        """See `Task`.  Weights that learn begin anew in every window."""
        from logitfuse.scoring import score_reply

        del sample
        score = score_reply(contender.engine, Request(item.before), item.text)
        bits = -score.nats / math.log(2)
        if not math.isfinite(bits):
            raise FusionError("the text has no probability at all, which is infinitely many bits")
        beliefs = Beliefs(score.steps)
        data: dict[str, Any] = {"steps": len(score.steps), "blocks": beliefs.blocks()}
        if contender.kind == "ensemble":
            data["curves"] = beliefs.curves(contender.engine.weights)
        return Findings({"bits": bits, "bytes": float(score.n_bytes)}, data)
