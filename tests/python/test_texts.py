"""The texts that benches read."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from texts import SIZE, in_words, texts

#: That no version of Python changes.
GENERATED = ("sentences", "dialogue", "numbers", "arithmetic", "table", "json")
BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.mark.parametrize("domain", texts())
def test_size(domain: str) -> None:
    text = texts()[domain]
    assert SIZE - 3 <= len(text) <= SIZE
    assert len(text.decode()) > SIZE // 2
    assert b"\r" not in text


def test_domains_are_different_texts() -> None:
    assert len(texts()) == len(set(texts().values())) == 12
    assert set(GENERATED) < set(texts())


def test_another_process_reads_the_same() -> None:
    code = "from texts import *; print(texts())"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(BENCH), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{texts()}\n"}


def test_sums_are_right() -> None:
    lines = texts()["arithmetic"].decode().splitlines()[:-1]
    assert len(lines) > 200
    for line in lines:
        a, operator, b, result = re.fullmatch(r"(\d+) ([-+*]) (\d+) = (\d+)", line).groups()
        expected = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}
        assert int(result) == expected[operator], line


def test_totals_are_right() -> None:
    rows = texts()["table"].decode().splitlines()[2:-1]
    for row in rows:
        *_, count, price, total = row.strip("| ").split(" | ")
        assert float(total) == pytest.approx(int(count) * float(price)), row


def test_records_are_json() -> None:
    records = [json.loads(line) for line in texts()["json"].splitlines()[:-1]]
    assert len(records) > 20


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (85, "eighty-five"),
        (100, "one hundred"),
        (512, "five hundred and twelve"),
        (999, "nine hundred and ninety-nine"),
    ],
)
def test_in_words(number: int, words: str) -> None:
    assert in_words(number) == words
