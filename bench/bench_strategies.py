"""The table of strategies, on a few bytes."""

from __future__ import annotations

from pathlib import Path

import models
import pytest
from logitfuse.evaluation.table import OutcomeTable
from strategies import STRATEGIES, markdown, measure, windows_of

CHOSEN = ("bytes (default)", "fuse")


def test_every_member_and_strategy_has_a_line(tmp_path: Path) -> None:
    """And a second run takes it from the table."""
    items = windows_of(24)[:2]
    chosen = {name: STRATEGIES[name] for name in CHOSEN}
    files = [models.smollm2(), models.gemma3()]
    with OutcomeTable(tmp_path / "outcomes.jsonl") as table:
        found = measure(files, items, chosen, table)
        rows = table.rows
        assert measure(files, items, chosen, table) == found
        assert table.rows == rows
    assert [len(own) for own in found.values()] == [2] * 6  # two members, twice, two strategies
    assert set(CHOSEN) < set(found)
    for outcomes in found.values():
        assert [outcome.scores["bytes"] for outcome in outcomes] == [24.0, 24.0]
    lines = markdown(found).splitlines()
    figures = {line.split(" | ")[0][2:]: line.split(" | ")[1:] for line in lines[2:8]}
    assert float(figures["fuse"][0]) == pytest.approx(
        sum(outcome.scores["bits"] for outcome in found["fuse"]) / 48, abs=1e-4
    )
