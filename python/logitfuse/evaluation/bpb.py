"""Bits per byte of texts: the only likelihood figure that is comparable across tokenizers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from logitfuse import _core
from logitfuse.errors import ConfigError, FusionError
from logitfuse.evaluation.runner import Findings
from logitfuse.evaluation.statistics import Resamples
from logitfuse.evaluation.summary import WeightCurve
from logitfuse.evaluation.table import Outcome
from logitfuse.strategies.base import Request, Step

if TYPE_CHECKING:
    from logitfuse.evaluation.contenders import Contender

Floats = NDArray[np.float64]

#: Bytes of a window, which fit any context of as many tokens, and how far it moves.
WINDOW, STRIDE = 4096, 2048
#: The weights of a curve.
WEIGHTS = tuple(k / 20 for k in range(21))


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
        return {name: hashlib.sha256(part).hexdigest() for name, part in self._parts(item)}

    @staticmethod
    def _parts(item: Window) -> tuple[tuple[str, bytes], ...]:
        return ("before", item.before), ("text", item.text)

    def put(self, item: Window, contender: Contender, *, sample: int = 0) -> Findings:
        """See `Task`.  Weights that learn begin anew in every window."""
        from logitfuse.scoring import score_reply

        del sample
        score = score_reply(contender.engine, Request(item.before), item.text)
        bits = -score.nats / math.log(2)
        if not math.isfinite(bits):
            raise FusionError("the text has no probability at all, which is infinitely many bits")
        data: dict[str, Any] = {"steps": len(score.steps)}
        if contender.kind == "ensemble":
            data["curves"] = Beliefs(score.steps).curves(contender.engine.weights)
        return Findings({"bits": bits, "bytes": float(score.n_bytes)}, data)


@dataclass(frozen=True)
class Beliefs:
    """What each member thought of the steps of a text.

    Parameters
    ----------
    steps : sequence of Step
    """

    steps: Sequence[Step]

    @cached_property
    def table(self) -> Floats:
        """Log-probabilities, nats, ``[steps, members]``; NaN: did not vote."""
        return np.array([step.member_logprobs for step in self.steps], np.float64)

    def curves(self, weights: Sequence[float]) -> list[list[float | None] | None]:
        """Bits of the linear pool of units, by the weight of each member (see `WEIGHTS`).

        The others share the rest as their own weights say.  None: no probability; of a member:
        it or all others have no weight.
        """
        curves: list[list[float | None] | None] = []
        for i, own in enumerate(weights):
            others = np.array([0.0 if k == i else max(0.0, w) for k, w in enumerate(weights)])
            if own <= 0 or not others.any():
                curves.append(None)
                continue
            others /= others.sum()
            one = np.arange(len(weights)) == i
            bits = [self._bits(w * one + (1 - w) * others) for w in WEIGHTS]
            curves.append([b if math.isfinite(b) else None for b in bits])
        return curves

    def _bits(self, weights: Floats) -> float:
        """Of all steps; members that did not vote leave their weight to the others."""
        there = ~np.isnan(self.table)
        votes = np.where(there, weights, 0.0)
        votes = np.where(votes.any(axis=1, keepdims=True), votes, there)  # as equals
        p = np.where(there, np.exp(self.table), 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(-np.log2((votes * p).sum(axis=1) / votes.sum(axis=1)).sum())


def weight_curves(
    outcomes: Sequence[Outcome], ensemble: str, members: Sequence[str], *, seed: int = 0
) -> tuple[WeightCurve, ...]:
    """Bits per byte by weight, over all windows that the ensemble has scored.

    Parameters
    ----------
    outcomes : sequence of Outcome
    ensemble : str
        Its contender.
    members : sequence of str
        Names of all its members, in order.
    seed : int
        Of the bootstrap.
    """
    rows = [row for row in outcomes if row.contender == ensemble and row.data.get("curves")]
    if not rows:
        return ()
    resamples = Resamples([row.group for row in rows], seed=seed)
    sizes = np.array([row.scores["bytes"] for row in rows])
    curves = []
    for i, member in enumerate(members):
        if rows[0].data["curves"][i] is None:
            continue
        table = np.array([row.data["curves"][i] for row in rows], np.float64)
        known = [k for k in range(len(WEIGHTS)) if np.isfinite(table[:, k]).all()]
        bits = tuple(resamples.ratio(table[:, k], sizes) for k in known)
        curves.append(WeightCurve(member, tuple(WEIGHTS[k] for k in known), bits))
    return tuple(curves)
