"""What learning a gate from a text takes: who may see which bytes, and when to stop.

A text is dealt out in contiguous blocks: three fifths to learn from, one fifth that says when to
stop, and one that is touched only to report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from logitfuse import _core
from logitfuse.errors import FusionError
from logitfuse.fitting import MIN_BYTES, Floats, Interval, Scores, observed
from logitfuse.optimise import minimise

#: Called with optimiser steps done and to do; fewer may do.
Progress = Callable[[int, int], object]

#: Blocks a text is dealt out in; of five, the third and the fifth are not learned from.
_BLOCKS = 20
#: Optimiser steps at most, and how many may pass without a better held-out figure.
_STEPS, _PATIENCE = 300, 20


class Figures:
    """Base of the figures that a trained gate reports."""

    def as_dict(self) -> dict[str, Any]:
        """All figures by name."""
        return {
            key: value._asdict() if isinstance(value, Interval) else value
            for key, value in asdict(self).items()  # type: ignore[call-overload]
        }


@dataclass(frozen=True)
class Training:
    """A scored text, its features, and who may see what.

    Attributes
    ----------
    table : float64 array, shape ``[n, members]``
        Log-probability of each byte that came, nats.
    features : float32 array, shape ``[n, features]``
        NaN: unknown.
    learn, stop, report : int array
        Positions.
    """

    table: Floats
    features: NDArray[np.float32]
    learn: NDArray[np.intp]
    stop: NDArray[np.intp]
    report: NDArray[np.intp]

    @classmethod
    def of(cls, scores: Sequence[Scores]) -> Training:
        """Deal out a text that all members scored.

        Raises
        ------
        FusionError
            One member only, members that scored different texts, a text too short, NaN.
        """
        if len(scores) < 2:
            raise FusionError(
                f"there is nothing to weigh with {len(scores)} member; give 2 or more"
            )
        table = observed(scores)
        matrices = [np.ascontiguousarray(own.logprobs, np.float32) for own in scores]
        features = _core.features_of_text(matrices, np.frombuffer(scores[0].text, np.uint8))
        usable = (table > -np.inf).any(axis=1)
        table, features = table[usable], features[usable]
        if len(table) < MIN_BYTES:
            raise FusionError(
                f"{len(table)} bytes are too few to learn from; give at least {MIN_BYTES}"
            )
        role = np.arange(len(table)) * _BLOCKS // len(table) % 5
        learn, stop, report = (
            np.flatnonzero(np.isin(role, roles)) for roles in ((0, 1, 3), (2,), (4,))
        )
        return cls(table, features, learn, stop, report)


class Inputs(NamedTuple):
    """Standardised features ``[n, features]``, and what was subtracted and divided by."""

    x: Floats
    centre: Floats
    scale: Floats


def standardise(features: NDArray[np.float32], learn: NDArray[np.intp]) -> Inputs:
    """Mean 0 and deviation 1 where the gate learns; what is unknown counts as the mean."""
    known = np.ma.masked_invalid(features[learn].astype(np.float64))
    centre = known.mean(axis=0).filled(0.0)
    scale = known.std(axis=0).filled(0.0)
    scale[scale < 1e-6] = 1.0
    x = (features - centre) / scale
    return Inputs(np.where(np.isnan(x), 0.0, x), centre, scale)


def minimise_early(
    loss: Callable[[Floats], tuple[float, Floats]],
    held_out: Callable[[Floats], float],
    start: Floats,
    progress: Progress | None,
) -> Floats:
    """Minimise a loss, and return the point on the way that was best on held-out data."""
    best, lowest, since = start, held_out(start), 0

    def watch(step: int, parameters: Floats) -> bool:
        nonlocal best, lowest, since
        value = held_out(parameters)
        since += 1
        if value < lowest:
            best, lowest, since = parameters.copy(), value, 0
        if progress is not None:
            progress(step, _STEPS)
        return since >= _PATIENCE

    minimise(loss, start, steps=_STEPS, watch=watch)
    return best


def mean(values: NDArray[Any]) -> float:
    """As a Python number."""
    return float(values.mean())
