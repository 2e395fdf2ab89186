"""What a run found, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from logitfuse.fitting import Interval

RowKind = Literal["member", "chosen", "random", "oracle", "sampled", "ensemble"]


@dataclass(frozen=True)
class Row:
    """One contender's figures."""

    name: str
    kind: RowKind
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
    """Bits per byte versus one member's weight; the others share the rest."""

    member: str
    weights: tuple[float, ...]
    bits: tuple[Interval, ...]


@dataclass(frozen=True)
class Summary:
    """All rows of a run."""

    task: str
    title: str
    metrics: tuple[str, ...]
    lower_is_better: bool
    items: int
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    verdict: str
    machine: dict[str, Any]
    peak_memory: int
    curves: tuple[WeightCurve, ...] = ()
