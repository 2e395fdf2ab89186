"""A minimiser for smooth functions of a few dozen numbers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Steps remembered, how small a gradient ends the search, and how often a step is halved.
_MEMORY, _FLAT, _HALVINGS = 10, 1e-7, 40


def minimise(
    objective: Callable[[Floats], tuple[float, Floats]],
    start: Floats,
    *,
    steps: int,
    watch: Callable[[int, Floats], bool] = lambda _step, _point: False,
) -> Floats:
    """L-BFGS (Nocedal, Math. Comp. 35, 1980) with backtracking; the same point every time.

    Parameters
    ----------
    objective : callable
        Value and gradient at a point.
    start : float64 array, shape ``[n]``
    steps : int
        At most so many.
    watch : callable, optional
        Called after each step with its number and the point; True ends the search.

    Returns
    -------
    float64 array, shape ``[n]``
        The last point: each is lower than the one before.
    """
    pairs: deque[tuple[Floats, Floats]] = deque(maxlen=_MEMORY)
    point = start.copy()
    value, gradient = objective(point)
    for step in range(1, steps + 1):
        if np.abs(gradient).max() <= _FLAT:
            break
        direction = -_inverse_hessian(pairs, gradient)
        slope = float(gradient @ direction)
        length = 1.0 if pairs else 1.0 / max(1.0, float(np.linalg.norm(gradient)))
        for _ in range(_HALVINGS):
            moved = point + length * direction
            lower, turned = objective(moved)
            if lower <= value + 1e-4 * length * slope:
                break
            length /= 2
        else:
            break  # rounding errors are all that is left
        if float((moved - point) @ (turned - gradient)) > 1e-14:
            pairs.append((moved - point, turned - gradient))
        point, value, gradient = moved, lower, turned
        if watch(step, point):
            break
    return point


def _inverse_hessian(pairs: deque[tuple[Floats, Floats]], gradient: Floats) -> Floats:
    """The two-loop recursion."""
    result = gradient.copy()
    shares = []
    for moved, turned in reversed(pairs):
        share = float(moved @ result) / float(moved @ turned)
        result -= share * turned
        shares.append(share)
    if pairs:
        moved, turned = pairs[-1]
        result *= float(moved @ turned) / float(turned @ turned)
    for (moved, turned), share in zip(pairs, reversed(shares), strict=True):
        result += (share - float(turned @ result) / float(moved @ turned)) * moved
    return result
