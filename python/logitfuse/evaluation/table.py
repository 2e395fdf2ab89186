"""The outcome table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What one contender did with one item."""

    key: str
    task: str
    item: str
    group: str
    contender: str
    scores: dict[str, float]
    data: dict[str, Any]
    seconds: float
    tokens: dict[str, int]
    error: str | None = None
