"""All figures of a table measured with the same resamples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from logitfuse.evaluation.figures import RATIOS, Figures, Items
from logitfuse.evaluation.statistics import Floats, Interval, Resamples, certain_share

#: Differences on an item below this are rounding.
_TIE = 1e-9


class Ruler:
    """Measures contenders over all items and in each group.

    Parameters
    ----------
    items : Items
    sign : float
        -1 if lower scores are better, else 1.
    resamples, seed : int
        Of the bootstrap.
    """

    def __init__(self, items: Items, sign: float, resamples: int, seed: int) -> None:
        self.items = items
        self._sign = sign
        self._draws = Resamples(items.groups, resamples, seed)
        groups = np.asarray(items.groups, object)
        self._at = {group: np.flatnonzero(groups == group) for group in sorted(set(items.groups))}
        self._within = {
            group: Resamples([group] * len(at), resamples, seed) for group, at in self._at.items()
        }

    @property
    def groups(self) -> dict[str, int]:
        """Items in each group."""
        return {group: len(at) for group, at in self._at.items()}

    def score(self, own: Figures, k: int = 0) -> Interval:
        """A metric by its number."""
        found = self._draws.ratio(own.values[:, k], own.sizes[:, k])
        return self._widened(found, own.values[None, :, k], k)

    def by_group(self, own: Figures) -> dict[str, Interval]:
        """The main metric in each group."""
        found = {}
        for group, at in self._at.items():
            values = own.values[at, 0]
            ratio = self._within[group].ratio(values, own.sizes[at, 0])
            found[group] = self._widened(ratio, values[None], 0)
        return found

    def better(self, own: Figures, other: Figures, k: int = 0) -> Interval:
        """How much better a contender is than another, on the items that both have."""
        return self._difference(self._draws, slice(None), own, other, k)

    def better_in(self, group: str, own: Figures, other: Figures) -> Interval:
        """The same on the main metric in a group."""
        return self._difference(self._within[group], self._at[group], own, other, 0)

    def _difference(
        self, draws: Resamples, at: slice | NDArray[np.intp], own: Figures, other: Figures, k: int
    ) -> Interval:
        a, b = (own, other) if self._sign > 0 else (other, own)
        values = np.stack([a.values[at, k], b.values[at, k]])
        sizes = np.stack([a.sizes[at, k], b.sizes[at, k]])
        found = draws.ratio_difference(values[0], sizes[0], values[1], sizes[1])
        alike = (own.seconds, other.seconds), values
        if all(np.array_equal(one, two, equal_nan=True) for one, two in alike):
            return found  # the very same outcomes
        return self._widened(found, values, k)

    def _widened(self, found: Interval, values: Floats, k: int) -> Interval:
        """Where resamples are all alike because the items are: the exact bound.

        `values` are shares, ``[1, items]``, or two rows of them that were compared.
        """
        values = values[:, ~np.isnan(values).any(axis=0)]
        if self.items.metrics[k] in RATIOS or not values.size:
            return found
        compared = np.diff(values, axis=0)[0] if len(values) == 2 else values[0]
        if values.min() < 0 or values.max() > 1 or np.ptp(compared) > 0:
            return found
        share = certain_share(len(compared))
        low, high = (share * found.mean + (1 - share) * end for end in (1.0 - len(values), 1.0))
        return Interval(found.mean, low, high)

    def record(self, own: Figures, other: Figures) -> tuple[int, int, int]:
        """Wins, ties and losses on the main metric, on the items that both have."""
        ahead = self._sign * (own.quotients - other.quotients)
        ahead = ahead[~np.isnan(ahead)]
        wins, losses = int((ahead > _TIE).sum()), int((ahead < -_TIE).sum())
        return wins, len(ahead) - wins - losses, losses

    def seconds(self, own: Figures) -> Interval | None:
        """Seconds per item."""
        return _known(self._draws.mean(own.seconds))

    def tokens(self, own: Figures) -> dict[str, Interval]:
        """Forward tokens per item of the members that had any."""
        used = np.flatnonzero(np.nansum(own.tokens, axis=0) > 0)
        return {self.items.token_names[t]: self._draws.mean(own.tokens[:, t]) for t in used}

    def tokens_per_s(self, own: Figures) -> Interval | None:
        """Forward tokens of all members over the seconds."""
        total = own.tokens.sum(axis=1)
        if not np.nansum(total):
            return None
        return _known(self._draws.ratio(total, own.seconds))


def _known(found: Interval) -> Interval | None:
    return None if np.isnan(found.mean) else found
