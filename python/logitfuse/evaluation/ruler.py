"""All figures of a table measured with the same resamples."""

from __future__ import annotations

import numpy as np

from logitfuse.evaluation.figures import Figures, Items
from logitfuse.evaluation.statistics import Interval, Resamples

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
        return self._draws.ratio(own.values[:, k], own.sizes[:, k])

    def by_group(self, own: Figures) -> dict[str, Interval]:
        """The main metric in each group."""
        return {
            group: self._within[group].ratio(own.values[at, 0], own.sizes[at, 0])
            for group, at in self._at.items()
        }

    def better(self, own: Figures, other: Figures, k: int = 0) -> Interval:
        """How much better a contender is than another, on the items that both have."""
        a, b = (own, other) if self._sign > 0 else (other, own)
        return self._draws.ratio_difference(
            a.values[:, k], a.sizes[:, k], b.values[:, k], b.sizes[:, k]
        )

    def better_in(self, group: str, own: Figures, other: Figures) -> Interval:
        """The same on the main metric in a group."""
        at = self._at[group]
        a, b = (own, other) if self._sign > 0 else (other, own)
        return self._within[group].ratio_difference(
            a.values[at, 0], a.sizes[at, 0], b.values[at, 0], b.sizes[at, 0]
        )

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
