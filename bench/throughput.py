"""One fused step beside NumPy and PyTorch, by vocabulary size and number of members::

    python bench/throughput.py [--plots] [--json]

What is compared is measured in turns, and the least time of each counts.  All results are checked
against float64.  PyTorch is measured if it is installed: with one thread, and with all cores.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "python"))

import inputs
import models
from baselines import (
    Best,
    Maps,
    NumpyBaseline,
    Rows,
    TorchBaseline,
    Way,
    symbols_of,
    torch,
)
from logitfuse import _core
from logitfuse.alignment import Alignment, align
from logitfuse.cli.bench import machine
from logitfuse.pooling import FLOOR, TOP
from logitfuse.vocab import TokenKind, Vocab
from numpy.typing import NDArray

SIZES = (32_000, 64_000, 128_000, 262_144)
MEMBERS = (2, 3, 4, 6, 8)
#: Real vocabularies of about these sizes, different ones; the other members' are drawn.
REAL = {
    32_000: ("llama-spm", "deepseek-coder"),
    64_000: ("baichuan", "falcon"),
    128_000: ("llama-bpe",),
    262_144: ("gemma3", "command-r"),
}
#: How much drawn vocabularies differ: scale of the noise on the log of how common a string is.
NOISE = 0.4
TASKS = ("linear, 64 best", "linear, drawn", "log-linear, 64 best", "one vocabulary, 64 best")
OURS, LEAST = "logitfuse", "log-sum-exp"
#: Best symbols that must be the oracle's best, in order: deeper ones nobody lists for certain.
CHECKED = 16
#: Nats, absolute and relative: what `logitfuse.fuse` promises, and what float32 sums can.
TOLERANCE, FLOAT32 = 5e-7, 1e-3
DRAWS = 4096


@dataclass
class Cell:
    """What was measured of one task, size and number of members.

    Attributes
    ----------
    task : str
    size, members, symbols : int
    real : int
        Members with a real vocabulary.
    overlap : float
        Share of one member's strings that another one has, on average over all pairs.
    seconds : dict of str to float
        Least time of each implementation.
    errors : dict of str to float
        Largest deviation from float64 among the checked symbols, nats; of draws: of any symbol's
        share from its probability.
    """

    task: str
    size: int
    members: int
    symbols: int
    real: int
    overlap: float
    seconds: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)

    def relative(self, name: str, to: str = OURS) -> float:
        """Time of one implementation over that of another."""
        return self.seconds[name] / self.seconds[to]


# -- what is fused -------------------------------------------------------------------------------


@cache
def strings() -> tuple[list[bytes], NDArray[np.float64]]:
    """All strings of the installed vocabularies, and the log of how many have each."""
    count: Counter[bytes] = Counter()
    for path in sorted(models.vocab_dir().glob("*.gguf")):
        if "bert-bge" not in path.name:  # WordPiece: refused
            count.update(_texts(Vocab.from_gguf(path)))
    for vocab in inputs.vocabs()[::2]:  # the demo models
        count.update(_texts(vocab))
    known = sorted(text for text in count if len(text) > 1)
    return known, np.log([count[text] for text in known])


def vocabularies(size: int, members: int) -> list[Vocab]:
    """As many vocabularies of about one size: real ones, then drawn ones.

    A drawn one has the single bytes, an end, and real strings: rather those that many real
    vocabularies have, but every member others.
    """
    found = [_real(name) for name in REAL.get(size, ())[:members]]
    known, common = strings()
    for m in range(len(found), members):
        noise = np.random.default_rng([size, m]).gumbel(0, NOISE, len(known))
        chosen = np.argpartition(-(common + noise), size - 257)[: size - 257]
        tokens = [*(bytes([b]) for b in range(256)), *(known[i] for i in chosen.tolist()), b""]
        found.append(Vocab(tokens, end_ids=[size - 1]))
    return found


@cache
def _real(name: str) -> Vocab:
    gemma = name == "gemma3"
    path = models.gemma3() if gemma else models.vocab_dir() / f"ggml-vocab-{name}.gguf"
    return Vocab.from_gguf(path)


def _texts(vocab: Vocab) -> set[bytes]:
    spelling = np.flatnonzero(vocab.kinds <= TokenKind.BYTE)
    return {vocab.token_bytes(token) for token in spelling.tolist()}


def overlap(alignment: Alignment) -> float:
    """Mean share of one member's strings that another one has."""
    n = len(alignment.vocabs)
    if alignment.identical:
        return 1.0
    spells = np.array([alignment._core.to_token(m) >= 0 for m in range(n)], np.float64)
    shares = spells @ spells.T / spells.sum(axis=1)[:, None]
    return float((shares.sum() - n) / (n * n - n))


# -- what must come out --------------------------------------------------------------------------


def exact(
    alignment: Alignment, rows: Rows, weights: Sequence[float], pool: str
) -> NDArray[np.float64]:
    """Pooled log-probability of every symbol in float64; log-linear: up to a constant."""
    scores = np.full(len(alignment), -np.inf if pool == "linear" else 0.0)
    for m, (row, weight) in enumerate(zip(rows, weights, strict=True)):
        symbols = symbols_of(alignment, m)
        logits, emitted = row.astype(np.float64), symbols >= 0
        own = np.full(len(alignment), -np.inf)
        np.logaddexp.at(own, symbols[emitted], logits[emitted])
        own -= np.logaddexp.reduce(own)
        if pool == "linear":
            scores = np.logaddexp(scores, own + math.log(weight))
        else:
            scores += weight * np.where(own == -np.inf, FLOOR, own)
    return scores


def error(oracle: NDArray[np.float64], best: Best, pool: str, tolerance: float) -> float:
    """Largest deviation of the best symbols, nats; they must be the best."""
    symbols, logprobs = (values[:CHECKED] for values in best)
    expected = oracle[np.argsort(-oracle, kind="stable")[: len(symbols)]]
    listed = oracle[symbols]
    if pool != "linear":  # normalised over what each way lists
        expected, listed, logprobs = (v - v[0] for v in (expected, listed, logprobs))
    np.testing.assert_allclose(listed, expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(logprobs, expected, rtol=tolerance, atol=tolerance)
    return float(np.max(np.abs(logprobs - listed)))


# -- measuring -----------------------------------------------------------------------------------


class Setting:
    """Some vocabularies with a row each, and what must come out.

    Parameters
    ----------
    vocabs : sequence of Vocab
    """

    def __init__(self, vocabs: Sequence[Vocab]) -> None:
        self.alignment = align(vocabs)
        self.maps = [Maps(self.alignment, m) for m in range(len(vocabs))]
        self.rows = inputs.make_rows(self.alignment)
        self.weights = [1 / len(vocabs)] * len(vocabs)
        self._exact: dict[str, NDArray[np.float64]] = {}

    def exact(self, pool: str) -> NDArray[np.float64]:
        """See `exact`."""
        if pool not in self._exact:
            self._exact[pool] = exact(self.alignment, self.rows, self.weights, pool)
        return self._exact[pool]

    def baselines(self, pool: str, ways: Sequence[Way]) -> dict[str, NumpyBaseline | TorchBaseline]:
        """What there is, by name."""
        kinds = {"NumPy": NumpyBaseline, "torch": TorchBaseline}
        return {
            name if way == "union" else f"{name}, {way}": kind(self.alignment, self.maps, pool, way)
            for name, kind in kinds.items()
            for way in ways
            if name != "torch" or torch is not None
        }


def measure(size: int, members: int, rounds: int) -> list[Cell]:
    """All tasks for some members with vocabularies of one size."""
    vocabs = vocabularies(size, members)
    settings = Setting(vocabs), Setting([vocabs[0]] * members)
    cells = []
    for task in TASKS:
        setting = settings[task.startswith("one")]
        alignment = setting.alignment
        real = min(members, len(REAL.get(size, ())))
        cell = Cell(task, size, members, len(alignment), real, overlap(alignment))
        if task.endswith("drawn"):
            draw(setting, rounds, cell)
        else:
            list_best(setting, "log-linear" if task.startswith("log") else "linear", rounds, cell)
        cells.append(cell)
    return cells


def list_best(setting: Setting, pool: str, rounds: int, cell: Cell) -> None:
    """Time and check reading the rows and listing the best symbols."""
    rows, weights, oracle = setting.rows, setting.weights, setting.exact(pool)
    native = _core.Pool(setting.alignment._core, pool, FLOOR)

    def ours() -> _core.Fused:
        native.read(rows, weights)
        return native.candidates(TOP)

    work: dict[str, Callable[[], Any]] = {LEAST: partial(_log_sum_exp, rows), OURS: ours}
    for name, step in setting.baselines(pool, ("union", "candidates")).items():
        work[name] = partial(step.best, rows, weights, TOP)
        cell.errors[name] = error(oracle, work[name](), pool, FLOAT32)
    fused = ours()
    cell.errors[OURS] = error(oracle, (fused.symbols, fused.logprobs), pool, TOLERANCE)
    cell.seconds = in_turns(work, rounds)


def draw(setting: Setting, rounds: int, cell: Cell) -> None:
    """Time and check reading the rows and drawing one symbol from the linear pool."""
    rows, weights, oracle = setting.rows, setting.weights, setting.exact("linear")
    native = _core.Pool(setting.alignment._core, "linear")
    usual = (len(rows) // 2 + 0.5) / len(rows)  # half-way through some member

    def ours() -> int:
        native.read(rows, weights)
        return native.draw(usual)

    work: dict[str, Callable[[], Any]] = {LEAST: partial(_log_sum_exp, rows), OURS: ours}
    ends = np.cumsum(np.exp(oracle))
    for name, step in setting.baselines("linear", ("union",)).items():
        work[name] = partial(step.draw, rows, weights, usual)
        for place in (0.1, usual, 0.9):  # symbols in their order, each as long as it is probable
            symbol = step.draw(rows, weights, place)
            length = np.exp(oracle[symbol])
            assert ends[symbol] - length - FLOAT32 <= place <= ends[symbol] + FLOAT32
    ours()
    drawn = [native.draw((k + 0.5) / DRAWS) for k in range(DRAWS)]
    shares = np.bincount(drawn, minlength=len(oracle)) / DRAWS
    cell.errors[OURS] = float(np.max(np.abs(shares - np.exp(oracle))))
    assert cell.errors[OURS] <= (len(rows) + 1) / DRAWS  # each member has a stretch of its own
    cell.seconds = in_turns(work, rounds)


def _log_sum_exp(rows: Rows) -> list[float]:
    return [_core.log_sum_exp(row) for row in rows]


def in_turns(work: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of the fastest call of each; what uses torch also with all cores."""
    least: dict[str, float] = {}
    threads = os.cpu_count() or 1
    for _ in range(rounds):
        _limit(1)
        for name, call in work.items():
            _time(name, call, least)
        if threads > 1:
            _limit(threads)
            for name, call in work.items():
                if name.startswith("torch"):
                    call()  # the threads start
                    _time(f"{name}, {threads} threads", call, least)
    _limit(1)
    return least


def _limit(threads: int) -> None:
    if torch is not None:
        torch.set_num_threads(threads)


def _time(name: str, call: Callable[[], Any], least: dict[str, float]) -> None:
    started = time.perf_counter()
    call()
    least[name] = min(least.get(name, math.inf), time.perf_counter() - started)


# -- printing ------------------------------------------------------------------------------------


def print_grid(cells: Sequence[Cell]) -> None:
    """Every size and number of members of one task."""
    others = [name for name in cells[0].seconds if name not in (OURS, LEAST)]
    print(
        f"**{cells[0].task}**\n\n| vocabularies (real) | overlap | union | logitfuse, µs "
        f"| ÷ log-sum-exp | {' | '.join(others)} | error, nats |\n"
        f"|---|--:|--:|--:|--:|{'--:|' * len(others)}--:|"
    )
    for cell in cells:
        times = " | ".join(f"{cell.relative(name):.1f}" for name in others)
        least = cell.relative(OURS, LEAST)
        print(
            f"| {cell.members} × {cell.size:,} ({cell.real}) | {cell.overlap:.2f} "
            f"| {cell.symbols:,} | {1e6 * cell.seconds[OURS]:,.0f} | {least:.2f} | {times} "
            f"| {cell.errors[OURS]:.0e} |"
        )
    print()


def print_summary(cells: Sequence[Cell]) -> None:
    """Least, median and largest over all sizes and numbers of members."""
    others = list(dict.fromkeys(name for cell in cells for name in cell.seconds))
    others = [name for name in others if name not in (OURS, LEAST)]
    print(
        f"| task: median (least to most) | logitfuse ÷ log-sum-exp "
        f"| {' | '.join(others)} |\n|---|{'--:|' * (len(others) + 1)}"
    )
    for task in dict.fromkeys(cell.task for cell in cells):
        own = [cell for cell in cells if cell.task == task]
        columns = [_spread([cell.relative(OURS, LEAST) for cell in own], 2)]
        for name in others:
            columns.append(_spread([c.relative(name) for c in own if name in c.seconds], 1))
        print(f"| {task} | {' | '.join(columns)} |")


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    low, middle, high = (
        f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values))
    )
    return f"{middle} ({low} to {high})"


def plot(cells: Sequence[Cell], folder: Path) -> list[Path]:
    """Time of the first task against the size of the vocabularies, and the number of members."""
    from plotting import Panel, draw

    first = [cell for cell in cells if cell.task == cells[0].task]
    sizes, members = sorted({c.size for c in first}), sorted({c.members for c in first})
    fewest, largest = (
        [c for c in first if c.members == members[0]],
        [c for c in first if c.size == sizes[-1]],
    )
    ways = ("tokens per vocabulary", sizes, fewest), ("members", members, largest)
    titles = f"{members[0]} members", f"{sizes[-1]:,} tokens each"
    panels = [
        Panel(
            title,
            label,
            "one step (" + cells[0].task + "), µs",
            x,
            {name: [1e6 * c.seconds[name] for c in own] for name in own[0].seconds},
            logarithmic=own is fewest,
        )
        for title, (label, x, own) in zip(titles, ways, strict=True)
    ]
    return draw(panels, folder, "throughput")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="of vocabularies")
    parser.add_argument("--members", type=int, nargs="+", default=MEMBERS)
    parser.add_argument("--rounds", type=int, default=25, help="least time of so many")
    parser.add_argument("--plots", action="store_true", help="also into bench/plots")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    grid = [
        measure(size, members, options.rounds)
        for size in sorted(options.sizes)
        for members in sorted(options.members)
    ]
    cells = [cell for task in zip(*grid, strict=True) for cell in task]
    info = machine() | {"isa": _core.isa(), "numpy": np.__version__}
    info["torch"] = None if torch is None else torch.__version__
    if options.json:
        print(json.dumps({"machine": info, "cells": [asdict(cell) for cell in cells]}, indent=1))
    else:
        print(
            f"{info['cpu']}, {_core.isa()}; NumPy {np.__version__}, torch {info['torch']}; least "
            f"of {options.rounds}; the others' times are multiples of logitfuse's\n"
        )
        print_grid([cell for cell in cells if cell.task == TASKS[0]])
        print_summary(cells)
    if options.plots:
        plot(cells, Path(__file__).parent / "plots")


if __name__ == "__main__":
    main()
