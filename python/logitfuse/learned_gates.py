"""A gate learned from a text: weights of the linear pool per byte.

A local counterpart of the learned gates of UltraFuser, LLMBoost and their kin: a few cheap features
of the members' next-byte distributions (``cpp/include/logitfuse/byte_gate.hpp``) instead of hidden
states, and a linear map instead of a network, so that a small text suffices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from logitfuse import _core
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
from logitfuse.weights import online_mixture


@dataclass(frozen=True)
class GateFigures(Figures):
    """Bits per byte on the part of the text that was only reported on.

    Attributes
    ----------
    n, held_out : int
        Bytes of the text, and of that part.
    members : tuple of float
        Each member alone.
    best, uniform, constant, online, gate : float
        The member that is best where the gate learned; equal weights; weights fitted there;
        `Online` weights; the gate.
    over_best, over_uniform, over_constant : Interval
        What the gate saves.
    """

    n: int
    held_out: int
    members: tuple[float, ...]
    best: float
    uniform: float
    constant: float
    online: float
    gate: float
    over_best: Interval
    over_uniform: Interval
    over_constant: Interval

    @property
    def verdict(self) -> str:
        """One plain sentence on whether the gate pays."""
        if not self.over_best.clear:
            return "the gate does not pay: the best member alone is as good"
        if not self.over_constant.clear:
            return "the gate does not pay: constant fitted weights are as good"
        return "the gate pays: it beats constant fitted weights and the best member alone"


@dataclass(frozen=True)
class TrainedGate:
    """Weights ``softmax(bias + matrix (x - centre))`` of the features x.

    Attributes
    ----------
    bias : tuple of float, ``[members]``
    matrix : tuple of tuples, ``[members, features]``
    centre : tuple of float, ``[features]``
    figures : GateFigures
    """

    bias: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]
    centre: tuple[float, ...]
    figures: GateFigures

    def native(self) -> _core.ByteGate:
        """The gate as the byte engine runs it."""
        return _core.ByteGate(
            self.bias, [value for row in self.matrix for value in row], self.centre
        )


def train_gate(
    scores: Sequence[Scores], *, l2: float = 1e-3, progress: Progress | None = None
) -> TrainedGate:
    """Learn weights per byte of the linear pool.

    Maximises the mean of ``log sum_i w_i(x_t) p_i(byte_t)`` less ``l2 / 2`` times the squares of
    the coefficients of standardised features, starting from the best constant weights.

    Parameters
    ----------
    scores : sequence of Scores
        One per member, all of one text of at least 512 bytes.
    l2 : float
        At least 0, nats.
    progress : callable, optional
        Called with optimiser steps done and to do; fewer may do.

    Raises
    ------
    FusionError
        As `logitfuse.fitting.fit_text`.
    """
    data = Training.of(scores)
    table, members = data.table, data.table.shape[1]
    inputs = standardise(data.features, data.learn)
    p = np.exp(table - table.max(axis=1, keepdims=True))
    constant, _ = fit_linear(table[data.learn])

    def unpack(parameters: Floats) -> tuple[Floats, Floats]:
        return parameters[:members], parameters[members:].reshape(members, -1)

    def weights_at(parameters: Floats, at: NDArray[np.intp]) -> Floats:
        bias, matrix = unpack(parameters)
        scores_ = inputs.x[at] @ matrix.T + bias
        grown: Floats = np.exp(scores_ - scores_.max(axis=1, keepdims=True))
        grown /= grown.sum(axis=1, keepdims=True)
        return grown

    def loss(parameters: Floats) -> tuple[float, Floats]:
        w = weights_at(parameters, data.learn)
        joint = w * p[data.learn]
        mixture = np.maximum(joint.sum(axis=1, keepdims=True), 1e-300)
        by_score = (w - joint / mixture) / len(w)
        _, matrix = unpack(parameters)
        by_matrix = by_score.T @ inputs.x[data.learn] + l2 * matrix
        value = -np.log(mixture).mean() + l2 / 2 * (matrix**2).sum()
        return float(value), np.concatenate([by_score.sum(axis=0), by_matrix.ravel()])

    def held_out(parameters: Floats) -> float:
        return -mean(linear_logprobs(table[data.stop], weights_at(parameters, data.stop)))

    start = np.zeros(members * (1 + inputs.x.shape[1]))
    start[:members] = np.log(np.maximum(constant, 1e-3))
    found = minimise_early(loss, held_out, start, progress)
    bias, matrix = unpack(found)
    test = data.report
    online, _ = online_mixture(table)
    best = int(np.argmax(table[data.learn].sum(axis=0)))
    bits = {
        "best": table[test, best],
        "uniform": linear_logprobs(table[test], np.full(members, 1 / members)),
        "constant": linear_logprobs(table[test], np.asarray(constant)),
        "online": online[test],
        "gate": linear_logprobs(table[test], weights_at(found, test)),
    }
    bits = {key: -nats / math.log(2) for key, nats in bits.items()}
    with np.errstate(invalid="ignore"):  # inf - inf
        over = {
            key: gain(bits[key] - bits["gate"], block_length(len(test)))
            for key in ("best", "uniform", "constant")
        }
    figures = GateFigures(
        n=len(table),
        held_out=len(test),
        members=tuple((-table[test].mean(axis=0) / math.log(2)).tolist()),
        best=mean(bits["best"]),
        uniform=mean(bits["uniform"]),
        constant=mean(bits["constant"]),
        online=mean(bits["online"]),
        gate=mean(bits["gate"]),
        over_best=over["best"],
        over_uniform=over["uniform"],
        over_constant=over["constant"],
    )
    return TrainedGate(
        bias=tuple(bias.tolist()),
        matrix=tuple(tuple(row) for row in (matrix / inputs.scale).tolist()),
        centre=tuple(inputs.centre.tolist()),
        figures=figures,
    )
