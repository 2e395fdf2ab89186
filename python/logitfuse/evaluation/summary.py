"""From outcomes to the table that people read: does the ensemble beat its best member?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from logitfuse.evaluation.consistency import seconds_of
from logitfuse.evaluation.figures import RATIOS, Items
from logitfuse.evaluation.lineup import Entry, Kind, line_up
from logitfuse.evaluation.ruler import Ruler
from logitfuse.evaluation.statistics import Interval
from logitfuse.evaluation.table import Outcome
from logitfuse.evaluation.verdict import notes_on, verdict_on


@dataclass(frozen=True)
class Row:
    """A contender, or a rule to pick one, over all items.

    Attributes
    ----------
    name : str
    kind : {"member", "chosen", "random", "oracle", "sampled", "ensemble"}
    n, failed : int
        Items with a score, and those that were run and have none.
    scores : dict of Interval
        By metric; NaN where nothing was measured.
    over_best : dict of Interval
        How much better than the `chosen` row on the items that both have, by metric; positive is
        better, also where lower scores are.
    record : tuple of int
        Wins, ties and losses against the `chosen` row on the main metric, item by item.
    by_group : dict of Interval
        The main metric in each group.
    seconds : Interval or None
        Per item.
    tokens : dict of Interval
        Tokens per item that went through a forward pass, by member.
    tokens_per_s : Interval or None
        Those of all members over the seconds.
    """

    name: str
    kind: Kind
    n: int
    failed: int
    scores: dict[str, Interval]
    over_best: dict[str, Interval]
    record: tuple[int, int, int]
    by_group: dict[str, Interval]
    seconds: Interval | None
    tokens: dict[str, Interval]
    tokens_per_s: Interval | None


@dataclass(frozen=True)
class WeightCurve:
    """Bits per byte by the weight of one member, while the others share the rest."""

    member: str
    weights: tuple[float, ...]
    bits: tuple[Interval, ...]


@dataclass(frozen=True)
class Summary:
    """What an evaluation found.

    Attributes
    ----------
    task, title : str
    metrics : tuple of str
        The first is the main one.
    lower_is_better : bool
    items : int
    rows : tuple of Row
        Members, the best of them, a random one, the oracle, sampled ones, the ensemble; those that
        the task has.
    notes : tuple of str
        What a reader of the figures must know.
    verdict : str
        Whether the ensemble beats its best member, by how much, and at what cost.
    machine : dict
    peak_memory : int
        Bytes, of the process.
    curves : tuple of WeightCurve
    """

    task: str
    title: str
    metrics: tuple[str, ...]
    lower_is_better: bool
    items: int
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    verdict: str
    machine: dict[str, Any] = field(default_factory=dict)
    peak_memory: int = 0
    curves: tuple[WeightCurve, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """All of it as strict JSON has it, NaN as null; ``pareto`` are the rows worth a choice."""
        data: dict[str, Any] = _plain(self)
        return data | {"pareto": list(pareto(self.rows, lower_is_better=self.lower_is_better))}


def summarise(
    outcomes: Sequence[Outcome],
    *,
    task: str,
    title: str,
    metrics: Sequence[str],
    members: Sequence[str],
    ensemble: str,
    lower_is_better: bool = False,
    machine: Mapping[str, Any] | None = None,
    peak_memory: int = 0,
    curves: Sequence[WeightCurve] = (),
    resamples: int = 2000,
    seed: int = 0,
) -> Summary:
    """Compare an ensemble with its members, and with cheaper ways to use them.

    The best member is chosen on one half of the items and judged on the other, both ways round, so
    that its row is over all items and saw none of them.  Where the main metric is a ratio of sums
    (``"bits_per_byte"``: the scores ``"bits"`` over ``"bytes"``) it is the best one over all, and
    there is no random one and no oracle.

    Parameters
    ----------
    outcomes : sequence of Outcome
        Of one run.  Contenders that are neither a member, nor the ensemble, nor
        ``"MEMBER sample K"`` are left aside.
    task, title : str
    metrics : sequence of str
        The first decides.
    members : sequence of str
        In the order of the rows; of equally good members the first is the best.
    ensemble : str
        May be the only member: then its row is all there is.
    lower_is_better : bool
    machine, peak_memory, curves
        Handed through.
    resamples, seed : int
        Of the bootstrap; the seed also splits the halves.

    Raises
    ------
    ValueError
        A contender that has two outcomes for one item, no members, no metrics.
    """
    if not members or not metrics:
        raise ValueError("nothing to summarise without members and metrics")
    items = Items(outcomes, metrics)
    sign = -1.0 if lower_is_better else 1.0
    lineup = line_up(
        items,
        members,
        ensemble,
        whole=metrics[0] in RATIOS,
        sign=sign,
        budget=seconds_of(outcomes, ensemble),
        seed=seed,
    )
    ruler = Ruler(items, sign, resamples, seed)
    entries = lineup.entries
    if tuple(members) == (ensemble,):  # nothing to choose from, and nothing to compare with
        entries = lineup.of_kind("member", "sampled")
    return Summary(
        task=task,
        title=title,
        metrics=tuple(metrics),
        lower_is_better=lower_is_better,
        items=len(items),
        rows=tuple(_row(ruler, metrics, entry, lineup.chosen) for entry in entries),
        notes=notes_on(ruler, lineup),
        verdict=verdict_on(ruler, lineup, metrics[0]),
        machine=dict(machine or {}),
        peak_memory=peak_memory,
        curves=tuple(curves),
    )


def pareto(rows: Sequence[Row], *, lower_is_better: bool = False) -> tuple[str, ...]:
    """Names of the rows that no other one beats in score and seconds.

    A row is beaten by one that is at least as good in both and better in one.  Rows without a
    score or seconds do not count, nor does the oracle, which nobody can have.
    """
    sign = -1.0 if lower_is_better else 1.0
    points = {
        row.name: (sign * next(iter(row.scores.values())).mean, -row.seconds.mean)
        for row in rows
        if row.kind != "oracle" and row.seconds is not None and row.n
    }
    return tuple(
        name
        for name, (score, speed) in points.items()
        if not any(
            other != (score, speed) and other[0] >= score and other[1] >= speed
            for other in points.values()
        )
    )


def _row(ruler: Ruler, metrics: Sequence[str], entry: Entry, chosen: Entry) -> Row:
    own = entry.figures
    return Row(
        name=entry.name,
        kind=entry.kind,
        n=int(own.there.sum()),
        failed=int(own.failed.sum()),
        scores={metric: ruler.score(own, k) for k, metric in enumerate(metrics)},
        over_best={
            metric: ruler.better(own, chosen.figures, k) for k, metric in enumerate(metrics)
        },
        record=ruler.record(own, chosen.figures),
        by_group=ruler.by_group(own),
        seconds=ruler.seconds(own),
        tokens=ruler.tokens(own),
        tokens_per_s=ruler.tokens_per_s(own),
    )


def _plain(value: Any) -> Any:
    """Data classes and intervals as dictionaries, NaN as None."""
    if is_dataclass(value):
        return {part.name: _plain(getattr(value, part.name)) for part in fields(value)}
    if isinstance(value, Interval):
        return {name: _plain(number) for name, number in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
