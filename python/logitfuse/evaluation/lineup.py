"""Who is compared: contenders, and the rules that pick one of them for each item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from logitfuse.evaluation.consistency import SelfConsistency
from logitfuse.evaluation.figures import Bools, Figures, Items
from logitfuse.evaluation.statistics import Floats

Kind = Literal["member", "chosen", "random", "oracle", "sampled", "ensemble"]


class Entry(NamedTuple):
    """A row to be."""

    name: str
    kind: Kind
    figures: Figures


@dataclass(frozen=True)
class Lineup:
    """All rows, and how they came about.

    Attributes
    ----------
    entries : tuple of Entry
        In the order of the rows; the last one is the ensemble.
    elected : tuple of str
        The members that are best on the two halves; twice the same without halves.
    half : int or None
        Items in the smaller half.
    replays : dict of SelfConsistency
        By the name of the entry.
    budget : float
        Seconds that each of them had.
    """

    entries: tuple[Entry, ...]
    elected: tuple[str, str]
    half: int | None
    replays: Mapping[str, SelfConsistency]
    budget: float

    def of_kind(self, *kinds: Kind) -> tuple[Entry, ...]:
        """The entries of these kinds."""
        return tuple(entry for entry in self.entries if entry.kind in kinds)

    @property
    def chosen(self) -> Entry:
        """The best member."""
        return self.of_kind("chosen")[0]

    @property
    def ensemble(self) -> Entry:
        """The ensemble."""
        return self.entries[-1]


def line_up(
    items: Items,
    members: Sequence[str],
    ensemble: str,
    *,
    whole: bool,
    sign: float,
    budget: float,
    seed: int,
) -> Lineup:
    """Members, the best of them, a random one, the oracle, sampled ones, the ensemble.

    Parameters
    ----------
    items : Items
    members : sequence of str
    ensemble : str
    whole : bool
        Choose the best member over all items, and leave out the random one and the oracle.
    sign : float
        -1 if lower scores are better, else 1.
    budget : float
        Seconds for a member that is asked again.
    seed : int
        Of the halves.
    """
    own = [items.figures(member) for member in members]
    entries = [Entry(name, "member", one) for name, one in zip(members, own, strict=True)]
    if whole:
        everywhere = np.ones(len(items), np.bool_)
        elected = (_best_of(own, everywhere, sign),) * 2
        chosen = _picked(own, np.full(len(items), elected[0]))
        entries.append(Entry("best member (over all windows)", "chosen", chosen))
    else:
        first = halves(items.groups, seed)
        elected = _best_of(own, first, sign), _best_of(own, ~first, sign)
        chosen = _picked(own, np.where(first, elected[1], elected[0]))
        entries += [
            Entry("best member (chosen on the other half)", "chosen", chosen),
            Entry("random member (expected)", "random", _random_of(own)),
            Entry("best member per item (not achievable)", "oracle", _oracle_of(own, sign)),
        ]
    replays = {}
    for member in members:
        if (sampled := items.sampled(member, budget)) is not None:
            name = f"{member} asked again (self-consistency)"
            entries.append(Entry(name, "sampled", sampled[0]))
            replays[name] = sampled[1]
    return Lineup(
        entries=(*entries, Entry(ensemble, "ensemble", items.figures(ensemble))),
        elected=(members[elected[0]], members[elected[1]]),
        half=None if whole else min(int(first.sum()), int((~first).sum())),
        replays=replays,
        budget=budget,
    )


def halves(groups: Sequence[str], seed: int) -> Bools:
    """Splits items in two at random, every group as evenly as can be."""
    order = np.random.default_rng(seed).permutation(len(groups))
    names = np.asarray(groups, object).astype(str)[order]
    first = np.zeros(len(groups), np.bool_)
    first[order[np.argsort(names, kind="stable")][::2]] = True
    return first


def _best_of(members: Sequence[Figures], at: Bools, sign: float) -> int:
    """The member with the best main metric over some items; the first of equals."""
    scores = []
    for own in members:
        there = at & own.there
        size = own.sizes[there, 0].sum()
        scores.append(sign * own.values[there, 0].sum() / size if size > 0 else -np.inf)
    return int(np.argmax(scores))


def _picked(members: Sequence[Figures], which: NDArray[np.intp]) -> Figures:
    """On each item the figures of the member of this index."""
    at = np.arange(len(which))
    return Figures(*(stack[which, at] for stack in _stacks(members)))


def _random_of(members: Sequence[Figures]) -> Figures:
    """What a member drawn by lot is expected to have, for metrics that are means.

    A member that failed on an item is not in the draw there.
    """
    *numbers, failed = _stacks(members)
    values, sizes, seconds, tokens = (_mean(stack) for stack in numbers)
    return Figures(values, sizes, seconds, tokens, failed.any(axis=0) & np.isnan(values[:, 0]))


def _oracle_of(members: Sequence[Figures], sign: float) -> Figures:
    """The best member of each item, for every metric that is a mean; the first of equals.

    Seconds and tokens are those of the one that is best on the main metric.
    """
    values = np.stack([own.values for own in members])
    ranks = np.where(np.isnan(values), -np.inf, sign * values)
    which = ranks.argmax(axis=0)
    best = _picked(members, which[:, 0])
    for k in range(1, values.shape[2]):
        column = _picked(members, which[:, k])
        best.values[:, k], best.sizes[:, k] = column.values[:, k], column.sizes[:, k]
    return best


def _stacks(members: Sequence[Figures]) -> tuple[NDArray[Any], ...]:
    names = ("values", "sizes", "seconds", "tokens", "failed")
    return tuple(np.stack([getattr(own, name) for own in members]) for name in names)


def _mean(stack: Floats) -> Floats:
    """Over the first axis, of what is there; NaN where nothing is."""
    there = (~np.isnan(stack)).sum(axis=0)
    sums = np.nansum(stack, axis=0)
    return np.where(there > 0, sums / np.maximum(there, 1), np.nan)
