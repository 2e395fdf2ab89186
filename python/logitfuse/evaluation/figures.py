"""From outcomes to arrays: what every contender has on each item."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from logitfuse.evaluation.consistency import (
    SelfConsistency,
    sample_of,
    self_consistency,
    vote,
)
from logitfuse.evaluation.statistics import Floats
from logitfuse.evaluation.table import Outcome

#: Metrics that are a sum over a sum, by the scores that are summed.
RATIOS = {"bits_per_byte": ("bits", "bytes")}

Bools = NDArray[np.bool_]
ByItem = Mapping[str, Outcome]


@dataclass(frozen=True)
class Figures:
    """Everything about a contender; the first axis is that of `Items.names`.

    Attributes
    ----------
    values, sizes : float64 array, shape ``[items, metrics]``
        A metric is the sum of its values over the sum of its sizes; NaN: missing.
    seconds : float64 array, shape ``[items]``
    tokens : float64 array, shape ``[items, len(Items.token_names)]``
    failed : bool array, shape ``[items]``
        It was run and has no value of the main metric.
    """

    values: Floats
    sizes: Floats
    seconds: Floats
    tokens: Floats
    failed: Bools

    @property
    def quotients(self) -> Floats:
        """The main metric of each item alone; NaN: missing."""
        with np.errstate(invalid="ignore", divide="ignore"):
            quotients: Floats = self.values[:, 0] / self.sizes[:, 0]
        return quotients

    @property
    def there(self) -> Bools:
        """Where the main metric has a value."""
        return ~np.isnan(self.values[:, 0])


class Items:
    """The items of a table and what its contenders made of them.

    Parameters
    ----------
    outcomes : sequence of Outcome
        Of one task and one set of parameters.
    metrics : sequence of str
        The first is the main one.

    Raises
    ------
    ValueError
        A contender that has two outcomes for one item.
    """

    def __init__(self, outcomes: Sequence[Outcome], metrics: Sequence[str]) -> None:
        self.metrics = tuple(metrics)
        self._outcomes: dict[str, dict[str, Outcome]] = {}
        groups: dict[str, str] = {}
        for outcome in outcomes:
            own = self._outcomes.setdefault(outcome.contender, {})
            if outcome.item in own:
                raise ValueError(f"'{outcome.contender}' has two outcomes for '{outcome.item}'")
            own[outcome.item] = outcome
            groups[outcome.item] = outcome.group
        self.names = tuple(sorted(groups))
        self.groups = tuple(groups[name] for name in self.names)
        self.token_names = tuple(sorted({name for row in outcomes for name in row.tokens}))
        self._at = {name: i for i, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def of(self, contender: str) -> ByItem:
        """What a contender made of each item that it was given."""
        return self._outcomes.get(contender, {})

    def samples_of(self, member: str) -> dict[str, dict[int, Outcome]]:
        """Outcomes of the contenders ``"MEMBER sample K"`` by item and number."""
        samples: dict[str, dict[int, Outcome]] = {}
        for contender, rows in self._outcomes.items():
            if match := re.fullmatch(re.escape(member) + r" sample (\d+)", contender):
                for item, outcome in rows.items():
                    samples.setdefault(item, {})[int(match[1])] = outcome
        return samples

    def figures(self, contender: str) -> Figures:
        """The figures of a contender of the table."""
        figures = self._empty()
        for item, outcome in self.of(contender).items():
            pairs = [_score(outcome, metric) for metric in self.metrics]
            at = self._at[item]
            if outcome.error is not None or pairs[0] is None:
                figures.failed[at] = True
                continue
            for k, pair in enumerate(pairs):
                if pair is not None:
                    figures.values[at, k], figures.sizes[at, k] = pair
            figures.seconds[at] = outcome.seconds
            figures.tokens[at] = [outcome.tokens.get(name, 0) for name in self.token_names]
        return figures

    def sampled(self, member: str, budget: float) -> tuple[Figures, SelfConsistency] | None:
        """A member that is asked again for `budget` seconds; None if there are no samples.

        The main metric is 1 where the vote is right and 0 where it is not; others are missing.
        """
        outcomes = self.samples_of(member)
        if not outcomes:
            return None
        replay = self_consistency(
            {
                item: {number: sample_of(outcome) for number, outcome in own.items()}
                for item, own in outcomes.items()
            },
            budget,
        )
        figures = self._empty()
        for item, drawn in replay.samples.items():
            at, own = self._at[item], outcomes[item].values()
            gold = next((row.data["gold"] for row in own if "gold" in row.data), None)
            if not drawn or gold is None or all(row.error is not None for row in own):
                figures.failed[at] = bool(drawn)
                continue
            figures.values[at, 0] = replay.answer(item) == vote(gold)
            figures.sizes[at, 0] = 1.0
            figures.seconds[at] = sum(sample.seconds for sample in drawn)
            figures.tokens[at] = [
                sum(sample.tokens.get(name, 0) for sample in drawn) for name in self.token_names
            ]
        return figures, replay

    def _empty(self) -> Figures:
        n, k = len(self.names), len(self.metrics)
        missing = [np.full((n, width), np.nan) for width in (k, k, 1, len(self.token_names))]
        values, sizes, seconds, tokens = missing
        return Figures(values, sizes, seconds[:, 0], tokens, np.zeros(n, np.bool_))


def _score(outcome: Outcome, metric: str) -> tuple[float, float] | None:
    """Value and size of a metric; None if it is missing."""
    names = RATIOS.get(metric, (metric,))
    if any(name not in outcome.scores for name in names):
        return None
    value, *size = (outcome.scores[name] for name in names)
    return value, size[0] if size else 1.0
