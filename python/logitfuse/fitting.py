"""Weights fitted to a text or to answers, and whether they pay.

Fits are convex: there is one best value, and the gap to it is known.  What a fit promises is
measured on parts of the data it has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from logitfuse import _core
from logitfuse.errors import FusionError
from logitfuse.evaluation.statistics import Interval as Interval
from logitfuse.evaluation.statistics import Resamples, interval
from logitfuse.outcomes import read_outcomes
from logitfuse.pooling import FLOOR, PoolName

Floats = NDArray[np.float64]
Unit = Literal["byte", "question"]

#: Fewest bytes that a fit to a text is tried with, and fewest questions.
MIN_BYTES, MIN_QUESTIONS = 512, 20


class Scores(Protocol):
    """A member's byte matrix of a text; see `logitfuse.bytescores.ByteScores`."""

    @property
    def text(self) -> bytes:
        """The text."""

    @property
    def logprobs(self) -> NDArray[np.float32]:
        """Log-probability of each next byte and of the end, nats, ``[n_bytes, 257]``."""


@dataclass(frozen=True)
class Fold:
    """Bits per unit on one held-out part, with weights fitted to the others.

    Attributes
    ----------
    n : int
        Units held out.
    members : tuple of float
        Each member alone.
    best, uniform, fitted : float
        The member that is best on the other parts; equal weights; fitted weights.
    """

    n: int
    members: tuple[float, ...]
    best: float
    uniform: float
    fitted: float


@dataclass(frozen=True)
class FitReport:
    """Fitted weights and what they are worth on data they were not fitted to.

    Attributes
    ----------
    names : tuple of str
    weights : tuple of float
        Fitted to all data.
    pool : {"linear", "log-linear"}
    unit : {"byte", "question"}
        What `n` counts and bits are per.
    n, left_out : int
        Units used, and those that every member ruled out.
    members : tuple of float
        Bits per unit of each member alone, over all held-out parts.
    best, uniform, fitted : float
        As in `Fold`, over all held-out parts.
    over_best, over_uniform : Interval
        Bits per unit that fitted weights save.
    folds : tuple of Fold
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    pool: PoolName
    unit: Unit
    n: int
    left_out: int
    members: tuple[float, ...]
    best: float
    uniform: float
    fitted: float
    over_best: Interval
    over_uniform: Interval
    folds: tuple[Fold, ...]

    @property
    def verdict(self) -> str:
        """One plain sentence on whether the fit pays."""
        if self.over_best.clear and self.over_uniform.clear:
            return "the fit pays: it beats equal weights and the best member alone"
        if self.over_best.clear:
            return "the fit does not pay: equal weights are as good"
        if self.over_uniform.clear:
            return "the ensemble does not pay: the best member alone is as good"
        return "the fit does not pay: neither equal weights nor the best member are clearly worse"

    def as_dict(self) -> dict[str, Any]:
        """All figures and the verdict."""
        data = asdict(self)
        for key in ("over_best", "over_uniform"):
            data[key] = getattr(self, key)._asdict()
        return data | {"verdict": self.verdict}


def fit_linear(logprobs: ArrayLike, *, tolerance: float = 1e-9) -> tuple[list[float], float]:
    """Weights of the linear pool that make observations most likely.

    Parameters
    ----------
    logprobs : float array, shape ``[n, members]``
        Log-probability that each member gave what was observed, nats; -inf: ruled it out.
    tolerance : float
        Nats per observation that other weights may be better by.

    Returns
    -------
    weights : list of float
        They sum to 1; a member that is of no use has exactly 0.
    log_likelihood : float
        Of all observations, nats.

    Raises
    ------
    FusionError
        NaN or +inf, an observation that every member rules out, fewer observations than members.
    """
    fit = _core.fit_linear(np.ascontiguousarray(logprobs, np.float64), tolerance)
    return fit.weights, fit.log_likelihood


def fit_log_linear(
    scores: Sequence[Scores], *, floor: float = FLOOR, tolerance: float = 1e-7
) -> tuple[list[float], float]:
    """Weights of the log-linear pool of next-byte distributions that make a text most likely.

    Parameters
    ----------
    scores : sequence of Scores
        One per member, all of one text.
    floor : float
        Lower log-probabilities count as this, nats.
    tolerance : float
        Nats per byte that other weights may be better by.

    Returns
    -------
    weights, log_likelihood
        As for `fit_linear`; the weights are kept to sum 1, so no member is sharpened.

    Raises
    ------
    FusionError
    """
    text = _text_of(scores)
    fit = _core.fit_log_linear(
        _matrices(scores), text, np.arange(len(text), dtype=np.int32), floor, tolerance
    )
    return fit.weights, fit.log_likelihood


def fit_text(
    scores: Sequence[Scores],
    *,
    names: Sequence[str] | None = None,
    pool: PoolName = "linear",
    folds: int = 5,
    progress: Callable[[int, int], object] | None = None,
) -> FitReport:
    """Fit weights to a text and cross-validate them over contiguous parts of it.

    Parameters
    ----------
    scores : sequence of Scores
        One per member, all of one text of at least 512 bytes.  A byte that no member can spell is
        left out.
    names : sequence of str, optional
    pool : {"linear", "log-linear"}
    folds : int
        Parts, at least 2.
    progress : callable, optional
        Called with fits done and fits to do.

    Raises
    ------
    FusionError
        One member only, members that scored different texts, a text too short, NaN.
    """
    _check_members(len(scores))
    text = _text_of(scores)
    table = observed(scores)
    usable = np.flatnonzero((table > -np.inf).any(axis=1) | np.isnan(table).any(axis=1))
    if len(usable) < MIN_BYTES:
        raise FusionError(
            f"{len(usable)} bytes are too few to fit weights to; give at least {MIN_BYTES}"
        )
    source: _Data = _LinearData(table[usable])
    if pool == "log-linear":
        source = _LogLinearData(table[usable], _matrices(scores), text, usable.astype(np.int32))
    return _cross_validate(
        source,
        names=_names(names, len(scores)),
        pool=pool,
        unit="byte",
        left_out=len(text) - len(usable),
        folds=folds,
        progress=progress,
    )


def fit_outcomes(
    path: str | PathLike[str], *, names: Sequence[str] | None = None, folds: int = 5
) -> FitReport:
    """Fit linear-pool weights to how members answered questions.

    Parameters
    ----------
    path, names
        As for `logitfuse.outcomes.read_outcomes`.
    folds : int
        Parts of the questions, at least 2.

    Raises
    ------
    ConfigError
        The file cannot be read.
    FusionError
        Fewer than 2 members or 20 questions, a question that every member has all wrong.
    """
    members, table = read_outcomes(path, names)
    _check_members(len(members))
    if len(table) < MIN_QUESTIONS:
        raise FusionError(
            f"{len(table)} questions are too few to fit weights to; give at least {MIN_QUESTIONS}"
        )
    return _cross_validate(
        _LinearData(table),
        names=tuple(members),
        pool="linear",
        unit="question",
        left_out=0,
        folds=folds,
        progress=None,
    )


def observed(scores: Sequence[Scores]) -> Floats:
    """Log-probability that each member gave each byte that came, nats, ``[n_bytes, members]``."""
    text = _text_of(scores)
    at = np.arange(len(text))
    columns = [np.asarray(own.logprobs)[at, text] for own in scores]
    return np.ascontiguousarray(np.stack(columns, axis=1), np.float64)


def gain(saved: Floats, block: int) -> Interval:
    """Mean of autocorrelated figures with a 95 % interval from a block bootstrap.

    Blocks keep together what depends on each other (Künsch, Ann. Statist. 17, 1989); here they do
    not overlap, the last one may be shorter, and a mean is over what the drawn blocks hold.
    """
    starts = np.arange(0, len(saved), block)
    sums = np.add.reduceat(saved, starts)
    sizes = np.diff(starts, append=len(saved))
    drawn = Resamples([""] * len(starts)).totals(np.stack([sums, sizes], axis=1))
    return interval(saved.mean(), drawn[:, 0] / drawn[:, 1])


def block_length(n: int, unit: Unit = "byte") -> int:
    """Bytes that a block of the bootstrap holds: the root of all, which outlasts a word."""
    return max(32, math.isqrt(n)) if unit == "byte" else 1


class _Data(Protocol):
    """What is cross-validated."""

    table: Floats

    def fit(self, at: NDArray[np.intp]) -> list[float]: ...

    def logprobs(self, at: NDArray[np.intp], weights: Sequence[float]) -> Floats: ...


class _LinearData:
    def __init__(self, table: Floats) -> None:
        self.table = table

    def fit(self, at: NDArray[np.intp]) -> list[float]:
        return fit_linear(self.table[at])[0]

    def logprobs(self, at: NDArray[np.intp], weights: Sequence[float]) -> Floats:
        return linear_logprobs(self.table[at], np.asarray(weights))


class _LogLinearData:
    def __init__(
        self,
        table: Floats,
        matrices: list[NDArray[np.float32]],
        text: NDArray[np.uint8],
        positions: NDArray[np.int32],
    ) -> None:
        self.table = table
        self._matrices, self._text, self._positions = matrices, text, positions

    def fit(self, at: NDArray[np.intp]) -> list[float]:
        positions = self._positions[at]
        return _core.fit_log_linear(self._matrices, self._text, positions, FLOOR, 1e-7).weights

    def logprobs(self, at: NDArray[np.intp], weights: Sequence[float]) -> Floats:
        positions = self._positions[at]
        return _core.log_linear_logprobs(self._matrices, self._text, positions, FLOOR, weights)


def linear_logprobs(table: Floats, weights: Floats) -> Floats:
    """Log-probabilities in the linear pool, ``[n]``; weights ``[members]`` or ``[n, members]``."""
    peak = table.max(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):  # only members of weight 0 think it possible
        pooled: Floats = peak[:, 0] + np.log((np.exp(table - peak) * weights).sum(axis=1))
    return pooled


def _cross_validate(
    data: _Data,
    *,
    names: tuple[str, ...],
    pool: PoolName,
    unit: Unit,
    left_out: int,
    folds: int,
    progress: Callable[[int, int], object] | None,
) -> FitReport:
    n, members = data.table.shape
    if not 2 <= folds <= n:
        raise FusionError(f"folds must be within 2..{n}, not {folds}")
    weights = data.fit(np.arange(n))
    if progress is not None:
        progress(1, folds + 1)
    bits: dict[str, Floats] = {key: np.empty(n) for key in ("best", "uniform", "fitted")}
    parts = np.array_split(np.arange(n), folds)
    for k, part in enumerate(parts):
        rest = np.concatenate([other for other in parts if other is not part])
        best = int(np.argmax(data.table[rest].sum(axis=0)))
        bits["best"][part] = data.table[part, best]
        bits["uniform"][part] = data.logprobs(part, [1 / members] * members)
        bits["fitted"][part] = data.logprobs(part, data.fit(rest))
        if progress is not None:
            progress(k + 2, folds + 1)
    bits = {key: -nats / math.log(2) for key, nats in bits.items()}
    alone = -data.table / math.log(2)
    block = block_length(n, unit)
    with np.errstate(invalid="ignore"):  # inf - inf
        over = {key: gain(bits[key] - bits["fitted"], block) for key in ("best", "uniform")}
    return FitReport(
        names=names,
        weights=tuple(weights),
        pool=pool,
        unit=unit,
        n=n,
        left_out=left_out,
        members=tuple(alone.mean(axis=0).tolist()),
        over_best=over["best"],
        over_uniform=over["uniform"],
        folds=tuple(
            Fold(
                n=len(part),
                members=tuple(alone[part].mean(axis=0).tolist()),
                **{key: float(figures[part].mean()) for key, figures in bits.items()},
            )
            for part in parts
        ),
        **{key: float(figures.mean()) for key, figures in bits.items()},
    )


def _matrices(scores: Sequence[Scores]) -> list[NDArray[np.float32]]:
    return [np.ascontiguousarray(own.logprobs, np.float32) for own in scores]


def _text_of(scores: Sequence[Scores]) -> NDArray[np.uint8]:
    for member, own in enumerate(scores):
        if own.text != scores[0].text or len(own.logprobs) != len(own.text):
            raise FusionError(f"member {member} has scored another text", member=member)
    return np.frombuffer(scores[0].text if scores else b"", np.uint8)


def _check_members(n: int) -> None:
    if n < 2:
        raise FusionError(f"there is nothing to weigh with {n} member; give at least 2")


def _names(names: Sequence[str] | None, members: int) -> tuple[str, ...]:
    chosen = tuple(names) if names is not None else tuple(f"member {m}" for m in range(members))
    if len(chosen) != members:
        raise FusionError(f"{len(chosen)} names for {members} members")
    return chosen
