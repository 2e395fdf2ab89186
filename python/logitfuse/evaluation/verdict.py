"""What the figures say, in plain words."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from logitfuse.evaluation.lineup import Entry, Lineup
from logitfuse.evaluation.ruler import Ruler
from logitfuse.evaluation.statistics import MIN_STRATUM, Interval

#: Fewer items than this say nothing, and halves of fewer than that choose badly.
MIN_ITEMS, MIN_HALF = 20, 30


def verdict_on(ruler: Ruler, lineup: Lineup, metric: str) -> str:
    """Whether the ensemble beats its best member, by how much and at what cost.

    A second sentence says how it compares with members that were asked again for the same time.
    """
    ensemble, chosen = lineup.ensemble, lineup.chosen
    if len(lineup.of_kind("member")) == 1 and ensemble.name == lineup.elected[0]:
        return f"{ensemble.name} is alone: there is no ensemble to compare it with."
    record = ruler.record(ensemble.figures, chosen.figures)
    compared = sum(record)
    if compared < MIN_ITEMS:
        return (
            f"Nothing can be said about the ensemble: it and the {chosen.name} have "
            f"{_items(compared)} in common, at least {MIN_ITEMS} are needed."
        )
    better = ruler.better(ensemble.figures, chosen.figures)
    scores = " against ".join(f"{value:.3f}" for value in _common_scores(lineup))
    figures = f"{metric.replace('_', ' ')} {scores} on {_items(compared)}"
    if record[1] == compared:
        claim = f"The ensemble does not beat the {chosen.name}: they are equal on every item"
        claim += f" ({figures})"
    elif better.low > 0:
        claim = f"The ensemble beats the {chosen.name} by {_interval(better, figures)}"
    elif better.high < 0:
        claim = f"The ensemble does not beat the {chosen.name}: it is clearly worse, by "
        claim += _interval(_turned(better), figures)
    else:
        claim = f"It is not clear whether the ensemble beats the {chosen.name}: the difference is "
        claim += _interval(better, f"includes 0; {figures}")
    sentences = [f"{claim}{_cost(lineup)}."]
    sentences += (_against(ruler, ensemble, entry) for entry in lineup.of_kind("sampled"))
    return " ".join(sentences)


def notes_on(ruler: Ruler, lineup: Lineup) -> tuple[str, ...]:
    """What a reader of the figures must know."""
    return (
        *_on_choice(lineup),
        *_on_gaps(ruler, lineup),
        *_on_samples(ruler, lineup),
        *_on_small_groups(ruler),
        *_on_losses(ruler, lineup),
    )


def _on_choice(lineup: Lineup) -> Iterator[str]:
    if lineup.half is None:
        yield f"The best member over all windows is {lineup.elected[0]}."
        return
    one, other = lineup.elected
    if len(lineup.of_kind("member")) == 1:
        return
    yield (
        f"The best member is {one} on both halves."
        if one == other
        else f"The best member is {one} on one half and {other} on the other."
    )
    if lineup.half < MIN_HALF:
        yield (
            f"The best member is chosen on halves of {_items(lineup.half)} only: the choice is "
            "chance to a good part, and the intervals are wide."
        )


def _on_gaps(ruler: Ruler, lineup: Lineup) -> Iterator[str]:
    n = len(ruler.items)
    for entry in lineup.of_kind("member", "ensemble"):
        failed = int(entry.figures.failed.sum())
        left = n - failed - int(entry.figures.there.sum())
        if failed:
            yield (
                f"{entry.name} has no score on {failed} of {_items(n)} (it failed, or gave the "
                "text no probability at all); they are left out of its figures, and of what it is "
                "compared with."
            )
        if left:
            yield f"{entry.name} was not run on {left} of {_items(n)}."


def _on_samples(ruler: Ruler, lineup: Lineup) -> Iterator[str]:
    for name, replay in lineup.replays.items():
        drawn = [len(own) for own in replay.samples.values()]
        asked = f"{np.mean(drawn):.1f} times per item ({min(drawn)} to {max(drawn)})"
        seconds = f"{_time(replay.spent)} of the {_time(lineup.budget)} seconds of the ensemble"
        yield f"{name}: {asked}, {seconds}."
        if len(drawn) < len(ruler.items):
            yield f"{name}: samples of {len(drawn)} of {_items(len(ruler.items))} only."


def _on_small_groups(ruler: Ruler) -> Iterator[str]:
    small = [group for group, n in ruler.groups.items() if n < MIN_STRATUM]
    if len(ruler.items) < MIN_STRATUM:
        yield f"Intervals of fewer than {MIN_STRATUM} items say little."
    elif small and len(ruler.groups) > 1:
        yield f"Intervals of groups below {MIN_STRATUM} items say little: {', '.join(small)}."


def _on_losses(ruler: Ruler, lineup: Lineup) -> Iterator[str]:
    ensemble, chosen = lineup.ensemble.figures, lineup.chosen.figures
    enough = sum(ruler.record(ensemble, chosen)) >= MIN_ITEMS
    if enough and ruler.better(ensemble, chosen).high < 0:
        yield f"The ensemble is clearly worse than the {lineup.chosen.name}: do not use it here."
    if len(ruler.groups) < 2:
        return
    for group, n in ruler.groups.items():
        better = ruler.better_in(group, ensemble, chosen)
        if n >= MIN_STRATUM and better.high < 0:
            yield f"The ensemble is clearly worse on {group}: {_interval(better)}."


def _against(ruler: Ruler, ensemble: Entry, sampled: Entry) -> str:
    better = ruler.better(ensemble.figures, sampled.figures)
    if np.isnan(better.mean):
        return f"Nothing can be said about {sampled.name}: no item has a score of both."
    if better.low > 0:
        outcome = f"better by {_interval(better)}"
    elif better.high < 0:
        outcome = f"worse by {_interval(_turned(better))}"
    else:
        outcome = f"not clearly different ({_interval(better)})"
    return f"Against {sampled.name} for the same seconds it is {outcome}."


def _cost(lineup: Lineup) -> str:
    own, best = lineup.ensemble.figures.seconds, lineup.chosen.figures.seconds
    both = ~np.isnan(own) & ~np.isnan(best)
    if not best[both].sum() > 0:
        return ""
    times = own[both].sum() / best[both].sum()
    return f", at {times:{',.0f' if times >= 10 else '.2g'}} times its seconds"


def _common_scores(lineup: Lineup) -> tuple[float, float]:
    """Of the ensemble and of the best member, on the items that both have."""
    own, best = lineup.ensemble.figures, lineup.chosen.figures
    both = own.there & best.there
    one, other = (
        float(part.values[both, 0].sum() / part.sizes[both, 0].sum()) for part in (own, best)
    )
    return one, other


def _turned(found: Interval) -> Interval:
    return Interval(-found.mean, -found.high, -found.low)


def _interval(found: Interval, more: str = "") -> str:
    inside = f"95 % interval {found.low:+.3g} to {found.high:+.3g}"
    return f"{found.mean:+.3g} ({'; '.join(filter(None, (inside, more)))})"


def _time(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds >= 1 else f"{seconds:.2g}"


def _items(n: int) -> str:
    return f"{n} item" if n == 1 else f"{n} items"
