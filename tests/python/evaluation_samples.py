"""Made-up results of runs, for the tests of plots and pages."""

from __future__ import annotations

import random
from typing import Any

from logitfuse.evaluation.summary import Row, Summary, WeightCurve
from logitfuse.evaluation.table import Outcome
from logitfuse.fitting import Interval

LONG = "Some-Organisation_Very.Long-Model$Name$_мова-模型-Instruct_Q4_K_M"
GROUPS = ("arithmetic", "logic", "capitals of the world", "мова", "$code$")
HOSTILE = (
    '<script>alert("1")</script> & \'quoted\' "\x00\x07\x1b[31m" \u202eright to left עברית \ud800'
)


def interval(mean: float, half: float = 0.03) -> Interval:
    """An interval of a given half-width."""
    return Interval(mean, mean - half, mean + half)


def row(
    name: str,
    kind: Any,
    mean: float,
    seconds: float | None,
    *,
    metric: str = "accuracy",
    half: float = 0.03,
    groups: tuple[str, ...] = GROUPS,
) -> Row:
    """A row with everything filled in."""
    rng = random.Random(repr(name + kind))
    return Row(
        name=name,
        kind=kind,
        n=200,
        failed=1 if kind == "ensemble" else 0,
        scores={metric: interval(mean, half)},
        over_best={metric: interval(mean - 0.5, half)},
        record=(12, 180, 8),
        by_group={group: interval(mean + rng.uniform(-0.1, 0.1), 2 * half) for group in groups},
        seconds=None if seconds is None else interval(seconds, seconds / 20),
        tokens={"a": interval(120.0, 5), "b": interval(98.5, 3)},
        tokens_per_s=None if seconds is None else interval(50 / max(seconds, 1e-3), 1),
    )


def summary(rows: list[Row], **changes: Any) -> Summary:
    """A run over choices with these rows."""
    parts: dict[str, Any] = {
        "task": "choice",
        "title": "Facts about cities",
        "metrics": ("accuracy",),
        "lower_is_better": False,
        "items": 200,
        "rows": tuple(rows),
        "notes": ("4 questions were left out: they have two options of equal text.",),
        "verdict": "The ensemble is not clearly better than its best member.",
        "machine": {"cpu": "Xeon", "cores": 2, "llama_cpp": "0.3.36"},
        "peak_memory": 1_234_567_890,
    }
    return Summary(**(parts | changes))


def members(n: int, *, names: list[str] | None = None) -> list[Row]:
    """n members of growing cost."""
    names = names or [f"member-{chr(97 + i)}" for i in range(n)]
    return [row(names[i], "member", 0.5 + 0.04 * (i % 4), 0.05 * 1.7**i) for i in range(n)]


def full(n: int = 2, *, names: list[str] | None = None) -> Summary:
    """All mandatory rows."""
    rows = members(n, names=names)
    best = max(rows, key=lambda r: r.scores["accuracy"].mean)
    assert best.seconds is not None
    rows += [
        row("best on the other half", "chosen", best.scores["accuracy"].mean - 0.002,
            best.seconds.mean),
        row("random member", "random", 0.53, 0.08),
        row("oracle", "oracle", 0.78, None),
        row(f"{best.name}, 3 samples", "sampled", 0.6, best.seconds.mean * 3),
        row("ensemble", "ensemble", 0.64, sum(r.seconds.mean for r in rows if r.seconds)),
    ]  # fmt: skip
    return summary(rows)


def predicted(n: int = 2, *, names: list[str] | None = None) -> Summary:
    """A run over text, with curves."""
    names = names or [f"member-{chr(97 + i)}" for i in range(n)]
    grid = tuple(i / 20 for i in range(21))
    own = [1.03 - 0.03 * i for i in range(n)]
    rows = [row(names[i], "member", own[i], 0.1 * (i + 1), metric="bits per byte", half=0.02)
            for i in range(n)]  # fmt: skip
    rows.append(row("ensemble", "ensemble", 0.938, 0.4, metric="bits per byte", half=0.02))
    curves = []
    for i in range(n):
        rest = sum(own[:i] + own[i + 1 :]) / max(1, n - 1)
        bits = [own[i] * w + rest * (1 - w) - 0.25 * w * (1 - w) for w in grid]
        curves.append(WeightCurve(names[i], grid, tuple(interval(b, 0.015) for b in bits)))
    return summary(
        rows,
        task="bpb",
        title="Twelve texts",
        metrics=("bits per byte",),
        lower_is_better=True,
        curves=tuple(curves) if n > 1 else (),
    )


def outcomes(run: Summary, n: int = 12, *, question: str = "What is 2 + 2?") -> list[Outcome]:
    """What every member and the ensemble said; the ensemble differs from the best on most."""
    rng = random.Random(7)
    result = []
    for i in range(n):
        for r in run.rows:
            if r.kind not in ("member", "ensemble"):
                continue
            right = rng.random() < 0.5
            data = {"question": question, "expected": "4", "said": "4" if right else "5"}
            result.append(
                Outcome(
                    key=f"{i}-{r.name}",
                    task=run.task,
                    item=f"q{i}",
                    group=GROUPS[i % len(GROUPS)],
                    contender=r.name,
                    scores={run.metrics[0]: float(right)},
                    data=data,
                    seconds=0.1,
                    tokens={"a": 10},
                )
            )
    return result
