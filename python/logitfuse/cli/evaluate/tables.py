"""The summary of an evaluation for people."""

from __future__ import annotations

import math

from logitfuse.cli import output
from logitfuse.evaluation.statistics import Interval
from logitfuse.evaluation.summary import Row, Summary


def print_summary(summary: Summary) -> None:
    """The rows, what each costs, the verdict and what to know about it."""
    share = summary.metrics[0] != "bits_per_byte"
    heads = [metric.replace("_", " ") for metric in summary.metrics]
    rows = [
        (
            row.name,
            *(_score(row.scores[metric], share) for metric in summary.metrics),
            _difference(row.over_best[summary.metrics[0]], share),
            "{}/{}/{}".format(*row.record),
        )
        for row in summary.rows
    ]
    against = "saved against the best" if summary.lower_is_better else "above the best"
    title = f"{summary.title}, {summary.items} items, 95 % intervals"
    output.out.print(output.table(title, ("", *heads, against, "won/tied/lost"), rows))
    costs = [_cost(row) for row in summary.rows if row.seconds is not None]
    output.out.print(
        output.table("Cost per item", ("", "seconds", "tokens run", "tokens/s"), costs)
    )
    output.out.print(f"peak memory: {summary.peak_memory / 2**20:,.0f} MiB")
    for note in summary.notes:
        output.out.print(f"* {note}", markup=False)
    output.out.print(summary.verdict, markup=False)


def _score(value: Interval, share: bool) -> str:
    if math.isnan(value.mean):
        return "-"
    if share:
        return f"{100 * value.mean:.1f} % ({100 * value.low:.1f} to {100 * value.high:.1f})"
    return f"{value.mean:.4f} ({value.low:.4f} to {value.high:.4f})"


def _difference(value: Interval, share: bool) -> str:
    if math.isnan(value.mean):
        return "-"
    scale, digits = (100, 1) if share else (1, 4)
    mean, low, high = (f"{scale * figure:+.{digits}f}" for figure in value)
    return f"{mean} ({low} to {high})"


def _cost(row: Row) -> tuple[str, str, str, str]:
    assert row.seconds is not None
    tokens = sum(each.mean for each in row.tokens.values())
    speed = "-" if row.tokens_per_s is None else f"{row.tokens_per_s.mean:.1f}"
    digits = 2 if row.seconds.mean >= 0.1 else 4
    mean, low, high = (f"{figure:.{digits}f}" for figure in row.seconds)
    seconds = f"{mean} ({low} to {high})"
    return row.name, seconds, f"{tokens:.0f}", speed
