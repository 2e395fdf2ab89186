"""A gate learned from a text: at which bytes the primary had better ask the other members."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from logitfuse import _core
from logitfuse.errors import FusionError
from logitfuse.fitting import (
    Floats,
    Interval,
    Scores,
    block_length,
    fit_linear,
    gain,
    linear_logprobs,
)
from logitfuse.training import Figures, Progress, Training, mean, minimise_early, standardise

#: What counts as the log-probability of an impossible byte, nats: worth asking for.
_IMPOSSIBLE = -745.0
#: A threshold that no probability reaches.
_NEVER = 2.0


@dataclass(frozen=True)
class CriticalFigures(Figures):
    """Figures of the part of the text that was only reported on, bits per byte.

    Attributes
    ----------
    n, held_out : int
        Bytes of the text, and of that part.
    primary, always, critical : float
        The primary alone; all members at every byte; all members at critical bytes only.
    asked : float
        Share of the bytes that are critical.
    over_primary : Interval
        What the gate saves.
    """

    n: int
    held_out: int
    primary: float
    always: float
    critical: float
    asked: float
    over_primary: Interval

    @property
    def verdict(self) -> str:
        """One plain sentence on whether the gate pays."""
        if not self.over_primary.clear:
            return "the gate does not pay: the primary alone is as good"
        saved = (self.primary - self.critical) / max(self.primary - self.always, 1e-12)
        return (
            f"the gate pays: asking at {100 * self.asked:.0f} % of the bytes saves "
            f"{100 * saved:.0f} % of what asking always saves"
        )


@dataclass(frozen=True)
class TrainedCritical:
    """Ask the others where ``1 / (1 + exp(-(bias + coefficients (x - centre)))) >= threshold``.

    Attributes
    ----------
    primary : int
        The member whose three features x are looked at, and which leads elsewhere.
    weights : tuple of float
        Of all members where they are asked.
    bias : float
    coefficients, centre : tuple of float
    threshold : float
        Above 1: never ask.
    figures : CriticalFigures
    """

    primary: int
    weights: tuple[float, ...]
    bias: float
    coefficients: tuple[float, ...]
    centre: tuple[float, ...]
    threshold: float
    figures: CriticalFigures

    def native(self) -> _core.CriticalGate:
        """The gate as the byte engine runs it."""
        return _core.CriticalGate(self.bias, self.coefficients, self.centre)


def train_critical(
    scores: Sequence[Scores],
    *,
    primary: int = 0,
    margin: float = 0.1,
    kept: float = 0.9,
    l2: float = 1e-3,
    progress: Progress | None = None,
) -> TrainedCritical:
    """Learn from the primary's own uncertainty at which bytes it is worth asking the others.

    A logistic regression on the primary's entropy, largest log-probability and margin; a byte is
    *critical* if the pool of all, with weights fitted to the text, gives it more than `margin` nats
    more than the primary does.

    Parameters
    ----------
    scores : sequence of Scores
        As for `train_gate`.
    primary : int
        Index of the member that leads.
    margin : float
        Nats.
    kept : float
        The threshold is the highest one that keeps this share of the gain of the best threshold.
    l2, progress
        As for `train_gate`.

    Raises
    ------
    FusionError

    Notes
    -----
    Critical tokens: CDS, arXiv 2402.17982; deferral learned from likelihood: Co-LLM, arXiv
    2403.03870; token-level routing: CITER, arXiv 2502.01976.
    """
    data = Training.of(scores)
    if not 0 <= primary < data.table.shape[1]:
        raise FusionError(f"there is no member {primary}", member=primary)
    features = _core.ROW_FEATURES
    own = data.features[:, features * primary : features * (primary + 1)]
    inputs = standardise(own, data.learn)
    weights, _ = fit_linear(data.table[data.learn])
    pooled = np.maximum(linear_logprobs(data.table, np.asarray(weights)), _IMPOSSIBLE)
    alone = np.maximum(data.table[:, primary], _IMPOSSIBLE)
    helps = pooled - alone > margin

    def loss_at(parameters: Floats, at: NDArray[np.intp]) -> tuple[float, Floats]:
        x, sign = inputs.x[at], np.where(helps[at], 1.0, -1.0)
        score = parameters[0] + x @ parameters[1:]
        by_score = -sign * _logistic(-sign * score) / len(at)
        value = np.logaddexp(0.0, -sign * score).mean()
        return float(value), np.concatenate([[by_score.sum()], by_score @ x])

    def loss(parameters: Floats) -> tuple[float, Floats]:
        value, gradient = loss_at(parameters, data.learn)
        gradient[1:] += l2 * parameters[1:]
        return value + l2 / 2 * float((parameters[1:] ** 2).sum()), gradient

    share = float(np.clip(helps[data.learn].mean(), 1e-3, 1 - 1e-3))
    start = np.array([math.log(share / (1 - share)), *[0.0] * features])
    found = minimise_early(
        loss, lambda parameters: loss_at(parameters, data.stop)[0], start, progress
    )
    chances = _logistic(found[0] + inputs.x @ found[1:])
    threshold = _threshold(chances[data.stop], (pooled - alone)[data.stop], kept)
    asked = chances[data.report] >= threshold
    routed = np.where(asked, pooled[data.report], alone[data.report])
    figures = CriticalFigures(
        n=len(helps),
        held_out=len(routed),
        primary=-mean(alone[data.report]) / math.log(2),
        always=-mean(pooled[data.report]) / math.log(2),
        critical=-mean(routed) / math.log(2),
        asked=mean(asked),
        over_primary=gain((routed - alone[data.report]) / math.log(2), block_length(len(routed))),
    )
    return TrainedCritical(
        primary=primary,
        weights=tuple(weights),
        bias=float(found[0]),
        coefficients=tuple((found[1:] / inputs.scale).tolist()),
        centre=tuple(inputs.centre.tolist()),
        threshold=threshold,
        figures=figures,
    )


def _threshold(chances: Floats, gains: Floats, kept: float) -> float:
    order = np.argsort(-chances, kind="stable")
    total = np.cumsum(gains[order])
    if total.max() <= 0:
        return _NEVER
    last = chances[order[np.flatnonzero(total >= kept * total.max())[0]]]
    below = chances[chances < last - 1e-6]
    # Halfway to the next one: rounding must not decide about the last one.
    return float((last + below.max(initial=0.0)) / 2)


def _logistic(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -x))
