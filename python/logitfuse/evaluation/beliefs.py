"""What became of the steps of a text: bits of each block, and of the pool by weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from logitfuse.evaluation.statistics import Resamples
from logitfuse.evaluation.summary import WeightCurve
from logitfuse.evaluation.table import Outcome
from logitfuse.strategies.base import Step

Floats = NDArray[np.float64]

#: Bytes of a block: what bytes say of one another has mostly faded at its end, so that blocks can
#: be resampled one by one.
BLOCK = 256
#: The weights of a curve.
WEIGHTS = tuple(k / 20 for k in range(21))


@dataclass(frozen=True)
class Beliefs:
    """What everybody thought of the steps of a text.

    Parameters
    ----------
    steps : sequence of Step
    """

    steps: Sequence[Step]

    @cached_property
    def _table(self) -> Floats:
        """Each member's log-probabilities, nats, ``[steps, members]``; NaN: did not vote."""
        return np.array([step.member_logprobs for step in self.steps], np.float64)

    def blocks(self) -> list[float | None]:
        """Bits of every block of the text; None: no probability."""
        return self._by_block(np.array([-step.logprob / math.log(2) for step in self.steps]))

    def curves(self, weights: Sequence[float]) -> list[list[list[float | None]] | None]:
        """Bits of the linear pool of units, ``[WEIGHTS, blocks]``, by the weight of each member.

        The others share the rest as their own weights say.  None: no probability; of a member:
        it or all others have no weight.
        """
        curves: list[list[list[float | None]] | None] = []
        for i, own in enumerate(weights):
            others = np.array([0.0 if k == i else max(0.0, w) for k, w in enumerate(weights)])
            if own <= 0 or not others.any():
                curves.append(None)
                continue
            others /= others.sum()
            one = np.arange(len(weights)) == i
            curves.append([self._by_block(self._bits(w * one + (1 - w) * others)) for w in WEIGHTS])
        return curves

    def _bits(self, weights: Floats) -> Floats:
        """Of each step; members that did not vote leave their weight to the others."""
        there = ~np.isnan(self._table)
        votes = np.where(there, weights, 0.0)
        votes = np.where(votes.any(axis=1, keepdims=True), votes, there)  # as equals
        p = np.where(there, np.exp(self._table), 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(-np.log2((votes * p).sum(axis=1) / votes.sum(axis=1)))

    def _by_block(self, bits: Floats) -> list[float | None]:
        """The bits of steps, dealt out evenly to their bytes, summed over blocks."""
        sizes = np.array([len(step.unit) for step in self.steps])
        each = np.repeat(bits / sizes, sizes)
        sums = np.add.reduceat(each, starts(len(each)))
        return [round(float(b), 4) if math.isfinite(b) else None for b in sums]


def starts(n_bytes: int) -> NDArray[np.intp]:
    """Where the blocks of a text begin; the last one may be longer, or all there is."""
    return np.arange(max(1, n_bytes // BLOCK)) * BLOCK


def by_block(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Rows of windows as rows of their blocks, each with its share of the cost.

    A window without blocks, because it failed, is one row.
    """
    return [row for outcome in outcomes for row in _split(outcome)]


def _split(outcome: Outcome) -> list[Outcome]:
    blocks = outcome.data.get("blocks")
    if not blocks:
        return [outcome]
    n = int(outcome.scores["bytes"])
    begins = starts(n).tolist()
    rows = []
    for bits, begin, end in zip(blocks, begins, [*begins[1:], n], strict=True):
        share = (end - begin) / n
        rows.append(
            replace(
                outcome,
                key=f"{outcome.key}:{begin}",
                item=f"{outcome.item}+{begin}",
                scores={} if bits is None else {"bits": bits, "bytes": float(end - begin)},
                data={},
                seconds=outcome.seconds * share,
                tokens={
                    name: round(count * end / n) - round(count * begin / n)
                    for name, count in outcome.tokens.items()
                },
            )
        )
    return rows


def weight_curves(
    outcomes: Sequence[Outcome], ensemble: str, members: Sequence[str], *, seed: int = 0
) -> tuple[WeightCurve, ...]:
    """Bits per byte by weight, over all windows that the ensemble has scored.

    Parameters
    ----------
    members : sequence of str
        All members of the ensemble, in its order.
    """
    rows = [row for row in outcomes if row.contender == ensemble and row.data.get("curves")]
    if not rows:
        return ()
    pieces = [piece for row in rows for piece in _split(row)]
    resamples = Resamples([piece.group for piece in pieces], seed=seed)
    sizes = np.array([piece.scores.get("bytes", math.nan) for piece in pieces])
    curves = []
    for i, member in enumerate(members):
        own = [row.data["curves"][i] for row in rows]
        if any(curve is None for curve in own):
            continue
        table = np.concatenate([np.array(curve, np.float64) for curve in own], axis=1)
        known = [k for k in range(len(WEIGHTS)) if np.isfinite(table[k]).all()]
        bits = tuple(resamples.ratio(table[k], sizes) for k in known)
        curves.append(WeightCurve(member, tuple(WEIGHTS[k] for k in known), bits))
    return tuple(curves)
