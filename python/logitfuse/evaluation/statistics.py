"""Intervals by the bootstrap: resampled items, stratified by group, shared by all figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

#: Gains below this are rounding, bits per unit.
_NOTICEABLE = 1e-4
#: Groups with fewer items are resampled together: alone they would seem more certain than they
#: are, down to no spread at all for a group of one.
MIN_STRATUM = 10
#: Numbers held at a time: they stay in a cache of 1 MiB.
_CHUNK = 1 << 17


class Interval(NamedTuple):
    """A mean and its 95 % bootstrap interval; all NaN if there is nothing to take a mean of."""

    mean: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether a gain in bits is above 0 beyond chance and rounding."""
        return self.low > _NOTICEABLE


class Resamples:
    """Bootstrap resamples of items (Efron & Tibshirani 1993), the same ones for every figure.

    What is compared is thereby paired: an item that a resample holds twice counts twice for
    everybody.  Missing values are NaN; they are left out, with what they are paired with.

    Parameters
    ----------
    groups : sequence of str
        Group of each item.  A resample holds as many items of a group as there are, except that
        groups of fewer than 10 items are taken together.
    n : int
        Resamples.  One byte of memory for each of them and each item is kept.
    seed : int
        The same seed, the same resamples.
    """

    def __init__(self, groups: Sequence[str], n: int = 2000, seed: int = 0) -> None:
        if n < 1:
            raise ValueError(f"{n} resamples; at least 1")
        # How often each item was drawn.  In n draws from n items nobody comes 256 times.
        self._counts = np.empty((n, len(groups)), np.uint8)
        rng = np.random.default_rng(seed)
        for stratum in _strata(groups):
            size = len(stratum)
            for part in _parts(n, size):
                drawn = rng.integers(size, size=(part.stop - part.start, size))
                drawn += size * np.arange(len(drawn))[:, None]
                counts = np.bincount(drawn.ravel(), minlength=drawn.size)
                self._counts[part, stratum] = counts.reshape(drawn.shape)

    @property
    def items(self) -> int:
        """How many items there are."""
        return self._counts.shape[1]

    def totals(self, columns: ArrayLike) -> Floats:
        """Sums over the items of each resample.

        Parameters
        ----------
        columns : array, shape ``[items, k]``
            An infinity or NaN is in the sums of those resamples that hold its item.

        Returns
        -------
        float64 array, shape ``[n, k]``
        """
        table = np.asarray(columns, np.float64)
        if table.ndim != 2 or len(table) != self.items:
            raise ValueError(f"figures of shape {table.shape} for {self.items} items")
        finite = np.isfinite(table)
        odd = np.flatnonzero(~finite.all(axis=1))
        unbounded, table = np.where(finite, 0.0, table)[odd], np.where(finite, table, 0.0)
        sums = np.empty((len(self._counts), table.shape[1]))
        for part in _parts(len(sums), self.items):
            counts = self._counts[part]
            sums[part] = counts.astype(np.float64) @ table
            if len(odd):  # 0 times infinity is no number
                drawn = counts[:, odd, None] > 0
                sums[part] += np.where(drawn, unbounded, 0.0).sum(axis=1)
        return sums

    def mean(self, values: ArrayLike) -> Interval:
        """Mean of values, one per item."""
        numerators = np.asarray(values, np.float64)
        return self.ratio(numerators, np.ones(numerators.shape))

    def ratio(self, numerators: ArrayLike, denominators: ArrayLike) -> Interval:
        """Sum over sum, as bits over bytes, or tokens over seconds.

        Parameters
        ----------
        numerators, denominators : array, shape ``[items]``
            No denominator is negative.
        """
        columns = _present(numerators, denominators)
        total, drawn = columns.sum(axis=0), self.totals(columns)
        return interval(_over(total[None]), _over(drawn))

    def difference(self, a: ArrayLike, b: ArrayLike) -> Interval:
        """Mean of ``a - b`` over the items that have both."""
        return self.mean(np.asarray(a, np.float64) - np.asarray(b, np.float64))

    def ratio_difference(
        self,
        a_numerators: ArrayLike,
        a_denominators: ArrayLike,
        b_numerators: ArrayLike,
        b_denominators: ArrayLike,
    ) -> Interval:
        """Ratio `a` minus ratio `b`, over the items that have both; see `ratio`."""
        columns = _present(a_numerators, a_denominators, b_numerators, b_denominators)
        total, drawn = columns.sum(axis=0)[None], self.totals(columns)
        return interval(
            *(_over(sums[:, :2]) - _over(sums[:, 2:]) for sums in (total, drawn)),
        )


def interval(mean: ArrayLike, drawn: Floats) -> Interval:
    """The mean with the middle 95 % of what the resamples gave.

    Resamples without a value (NaN; nothing of what was measured was drawn) do not count.
    """
    figures = np.sort(drawn[~np.isnan(drawn)])
    centre = float(np.asarray(mean).item())
    if not len(figures) or np.isnan(centre):
        return Interval(np.nan, np.nan, np.nan)
    outside = int(0.025 * len(figures))
    return Interval(centre, float(figures[outside]), float(figures[-1 - outside]))


def certain_share(n: int) -> float:
    """The least share of items, at 95 %, that are like `n` which are all alike.

    The bound of Clopper & Pearson (1934): with less, so many equal ones are rarer than 1 in 40.
    """
    return float(0.025 ** (1 / n))


def _strata(groups: Sequence[str]) -> Iterator[NDArray[np.intp]]:
    """Items of each group, and those of all small groups together."""
    names, codes = np.unique(np.asarray(groups, object).astype(str), return_inverse=True)
    sizes = np.bincount(codes, minlength=len(names))
    small = sizes < MIN_STRATUM
    for code in np.flatnonzero(~small):
        yield np.flatnonzero(codes == code)
    if small.any():
        yield np.flatnonzero(small[codes])


def _parts(n: int, width: int) -> Iterator[slice]:
    """Rows taken so many at a time that a part is of bounded size."""
    step = max(1, _CHUNK // max(1, width))
    for start in range(0, n, step):
        yield slice(start, min(n, start + step))


def _present(*columns: ArrayLike) -> Floats:
    """The columns side by side, ``[items, k]``, 0 where one of them is missing."""
    table = np.stack([np.asarray(column, np.float64) for column in columns], axis=1)
    return np.where(np.isnan(table).any(axis=1, keepdims=True), 0.0, table)


def _over(sums: Floats) -> Floats:
    """Numerators over denominators, ``[n, 2]`` to ``[n]``; NaN where nothing was measured."""
    with np.errstate(invalid="ignore"):
        quotients: Floats = np.divide(
            sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0
        )
    return quotients
