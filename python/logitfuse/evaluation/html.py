"""A run as one page that opens offline: verdict, scores, plots, cost, items."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from logitfuse.evaluation.drawing import Scale, names, scale
from logitfuse.evaluation.pages import clipped, inline_svg, render
from logitfuse.evaluation.summary import Row, Summary
from logitfuse.evaluation.table import Outcome
from logitfuse.evaluation.tracepage import trace_page
from logitfuse.fitting import Interval

__all__ = ["report", "trace_page"]

#: Items and failures that are listed in full, and characters of a question and of an answer.
_LISTED, _FAILURES, _QUESTION, _ANSWER = 300, 50, 3000, 600
_WHAT = {
    "member": "member",
    "chosen": "member chosen on the other half",
    "random": "a member by lot",
    "oracle": "the best member of each item",
    "sampled": "answers of one member, put to the vote",
    "ensemble": "ensemble",
}


def report(
    summary: Summary, outcomes: Iterable[Outcome], *, plots: Mapping[str, str] | None = None
) -> str:
    """The whole run as one HTML page, with nothing outside it.

    Parameters
    ----------
    summary : Summary
    outcomes : iterable of Outcome
        Items on which the ensemble and the best member differ are listed from these.  Of
        `Outcome.data`, ``question`` and ``expected`` (the right answer) are shown once, ``said``
        (else ``key``, else ``text``) by contender; without them, all of `data` as JSON.
    plots : mapping of str to str, optional
        SVG text by title, as `logitfuse.evaluation.plots.save` writes it.
    """
    outcomes = list(outcomes)
    token_members = list(dict.fromkeys(member for row in summary.rows for member in row.tokens))
    called = names(summary.rows)
    rows = [_row(summary, r, n, token_members) for r, n in zip(summary.rows, called, strict=True)]
    better = "Lower is better" if summary.lower_is_better else "Higher is better"
    return render(
        "report",
        title=summary.title or summary.task,
        task=summary.task,
        items=f"{summary.items:,}",
        verdict=summary.verdict,
        notes=summary.notes,
        direction=better,
        reference=next((row["name"] for row in rows if row["kind"] == "chosen"), "best member"),
        metrics=[_metric_name(summary, metric) for metric in summary.metrics],
        rows=rows,
        grouped=[row for row in rows if row["by_group"]],
        token_members=token_members,
        groups=sorted({group for row in summary.rows for group in row.by_group}),
        plots=[
            {"title": title, "svg": inline_svg(svg, prefix=f"plot{i}-", label=title)}
            for i, (title, svg) in enumerate((plots or {}).items())
        ],
        differences=_differences(summary, outcomes),
        failures=_failures(outcomes),
        machine=[(key, _plain(value)) for key, value in summary.machine.items()],
        memory=f"{summary.peak_memory / 1e9:.2f} GB",
    )


def _row(summary: Summary, row: Row, name: str, members: Sequence[str]) -> dict[str, Any]:
    """A row's cells as text."""
    scores = []
    for metric in summary.metrics:
        shown = scale(summary, metric)
        over = _range(row.over_best.get(metric), shown, signed=True)
        scores.append((_range(row.scores.get(metric), shown), over))
    main = scale(summary, summary.metrics[0])
    return {
        "name": name,
        "kind": row.kind,
        "what": _WHAT[row.kind],
        "n": f"{row.n:,}",
        "failed": f"{row.failed:,}",
        "scores": scores,
        "record": row.record if any(row.record) else None,
        "by_group": {group: _range(score, main) for group, score in row.by_group.items()},
        "seconds": _range(row.seconds),
        "tokens_per_s": _range(row.tokens_per_s),
        "tokens": [_range(row.tokens.get(member)) for member in members],
    }


def _range(
    value: Interval | None, shown: Scale | None = None, *, signed: bool = False
) -> dict[str, str] | None:
    """A mean and its interval as text: on a metric's scale, else to three digits."""
    if value is None:
        return None

    def text(v: float) -> str:
        if shown is not None:
            return shown.text(v, signed=signed)
        return f"{v:,.0f}" if abs(v) >= 100 else f"{v:.3g}"

    return {part: text(getattr(value, part)) for part in ("mean", "low", "high")}


def _metric_name(summary: Summary, metric: str) -> str:
    return metric.replace("_", " ") + (", %" if scale(summary, metric).percent else "")


def _differences(summary: Summary, outcomes: Sequence[Outcome]) -> dict[str, Any] | None:
    """The items whose main score differs between the ensemble and the best member."""
    pair = _opponents(summary)
    if summary.task == "bpb" or pair is None:
        return None
    ensemble, best = pair
    metric = summary.metrics[0]
    listed_names = {row.name for row in summary.rows if row.kind in ("member", "ensemble")}
    items: dict[str, dict[str, Outcome]] = {}
    for outcome in outcomes:
        if outcome.contender in listed_names:
            items.setdefault(outcome.item, {})[outcome.contender] = outcome
    counts = {"win": 0, "loss": 0}
    compared = 0
    listed: list[dict[str, Any]] = []
    for said in items.values():
        scores = [said[n].scores.get(metric) if n in said else None for n in (ensemble, best)]
        if scores[0] is None or scores[1] is None:
            continue
        compared += 1
        if scores[0] == scores[1]:
            continue
        outcome_name = "win" if (scores[0] < scores[1]) == summary.lower_is_better else "loss"
        counts[outcome_name] += 1
        if len(listed) < _LISTED:
            listed.append(_item(summary, outcome_name, said))
    return {
        "best": best,
        "wins": f"{counts['win']:,}",
        "losses": f"{counts['loss']:,}",
        "compared": f"{compared:,}",
        "listed": listed,
        "left_out": sum(counts.values()) - len(listed),
    }


def _opponents(summary: Summary) -> tuple[str, str] | None:
    """Names of the ensemble and of the member with the best main score."""
    metric = summary.metrics[0]
    ensembles = [row for row in summary.rows if row.kind == "ensemble"]
    members = [row for row in summary.rows if row.kind == "member" and metric in row.scores]
    if not ensembles or not members:
        return None
    choose = min if summary.lower_is_better else max
    return ensembles[0].name, choose(members, key=lambda row: row.scores[metric].mean).name


def _item(summary: Summary, outcome: str, said: Mapping[str, Outcome]) -> dict[str, Any]:
    """One item as it is listed; contenders in the order of the rows."""
    metric = summary.metrics[0]
    any_one = next(iter(said.values()))
    order = [row.name for row in summary.rows if row.name in said]
    best = (min if summary.lower_is_better else max)(
        o.scores[metric] for o in said.values() if metric in o.scores
    )
    answers = []
    for name in dict.fromkeys(order):
        score = said[name].scores.get(metric)
        answers.append(
            {
                "name": name,
                "mark": "✓" if score == best else "✗",
                "score": None if score in (0.0, 1.0, None) else f"{score:.3g}",
                "text": clipped(_said(said[name]), _ANSWER),
            }
        )
    return {
        "id": clipped(any_one.item, 200),
        "group": any_one.group,
        "outcome": outcome,
        "question": clipped(_plain(any_one.data.get("question", "")), _QUESTION),
        "expected": clipped(_plain(any_one.data.get("expected", "")), _ANSWER),
        "said": answers,
    }


def _said(outcome: Outcome) -> str:
    """What a contender answered."""
    if outcome.error is not None:
        return f"failed: {outcome.error}"
    for key in ("said", "key", "text"):
        if outcome.data.get(key) is not None:
            return _plain(outcome.data[key])
    rest = {k: v for k, v in outcome.data.items() if k not in ("question", "expected")}
    return json.dumps(rest, ensure_ascii=False, default=str) if rest else "nothing"


def _failures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    failed = [o for o in outcomes if o.error is not None]
    listed = [
        {
            "item": clipped(o.item, 200),
            "contender": o.contender,
            "error": clipped(o.error or "", 600),
        }
        for o in failed[:_FAILURES]
    ]
    return {"count": len(failed), "listed": listed}


def _plain(value: Any) -> str:
    """Text as it is, anything else as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
