"""Print the figures that the README quotes, each beside its error: ``python bench/report.py``.

What is compared is measured in turns, and the least time of each counts, so that other load on the
machine falls on all alike.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "python"))

import inputs
from inputs import WEIGHTS, StepInput
from logitfuse import _core
from logitfuse.alignment import align
from logitfuse.machine import machine
from logitfuse.pooling import TOP, fuse
from logitfuse.vocab import Vocab
from numpy_pool import NumpyPool

NUMPY_POOLS = {
    "NumPy, float64, argsort": {"dtype": np.float64},
    "NumPy, float32, argsort": {"dtype": np.float32},
    "NumPy, float64, argpartition": {"dtype": np.float64, "partition": True},
    "NumPy, float32, argpartition": {"dtype": np.float32, "partition": True},
}


def main() -> None:
    """Measure and print."""
    step = inputs.step()
    info = machine()
    sizes = " + ".join(f"{len(vocab):,}" for vocab in step.alignment.vocabs)
    print(
        f"{info['cpu']}; {platform.python_implementation()} {platform.python_version()}, "
        f"NumPy {np.__version__}\n\nThree rows of {sizes} logits, one thread, best of many:\n\n"
        "| what | instruction set | µs | ÷ log-sum-exp | NumPy float64 ÷ it | error, nats |\n"
        "|---|---|--:|--:|--:|--:|"
    )
    pools = {name: NumpyPool(step.alignment, **options) for name, options in NUMPY_POOLS.items()}
    numpy_times = least_times(
        {name: partial(pool.fuse, step.rows, WEIGHTS, TOP) for name, pool in pools.items()},
        rounds=10,
    )
    slow = numpy_times["NumPy, float64, argsort"]
    for isa in reversed(_core.available_isas()):
        print_core(step, isa, slow)
    for name, pool in pools.items():
        error = step.error(*pool.fuse(step.rows, WEIGHTS, TOP))
        print_row(name, "its own", numpy_times[name], None, slow / numpy_times[name], error)
    print_vocabs()


def print_core(step: StepInput, isa: str, slow: float) -> None:
    """The rows of one instruction set."""
    _core.set_isa(isa)
    pool = _core.Pool(step.alignment._core, "linear", -16.0)

    def candidates() -> _core.Fused:
        pool.read(step.rows, WEIGHTS)
        return pool.candidates(TOP)

    times = least_times(
        {
            "log-sum-exp": lambda: [_core.log_sum_exp(row) for row in step.rows],
            "Pool.read": lambda: pool.read(step.rows, WEIGHTS),
            "read + candidates": candidates,
            "logitfuse.fuse": lambda: fuse(step.rows, step.alignment, weights=WEIGHTS),
        },
        rounds=200,
    )
    exact = [np.logaddexp.reduce(row.astype(np.float64)) for row in step.rows]
    fused, public = candidates(), fuse(step.rows, step.alignment, weights=WEIGHTS)
    sums = [_core.log_sum_exp(row) for row in step.rows]
    errors = {
        "log-sum-exp": float(np.max(np.abs(np.subtract(sums, exact)))),
        "read + candidates": step.error(fused.symbols, fused.logprobs),
        "logitfuse.fuse": step.error(public.ids, public.logprobs),
    }
    base = times["log-sum-exp"]
    for name, seconds in times.items():
        fuses = name in ("read + candidates", "logitfuse.fuse")
        print_row(
            name, isa, seconds, seconds / base, slow / seconds if fuses else None, errors.get(name)
        )


def print_vocabs() -> None:
    """What is done once."""
    vocabs = inputs.vocabs()
    model: Any = vocabs[2]._tokenizer
    times = least_times(
        {"vocabulary": lambda: Vocab.from_llama(model), "alignment": lambda: align(vocabs)},
        rounds=10,
    )
    print(
        f"\nOnce: the vocabulary of a loaded model, {len(vocabs[2]):,} tokens: "
        f"{times['vocabulary'] * 1e3:.0f} ms; the alignment of all three: "
        f"{times['alignment'] * 1e3:.0f} ms."
    )


def print_row(
    name: str,
    isa: str,
    seconds: float,
    relative: float | None,
    speedup: float | None,
    error: float | None,
) -> None:
    """One line of the table."""
    cells = (
        name,
        isa,
        f"{seconds * 1e6:,.0f}",
        "" if relative is None else f"{relative:.2f}",
        "" if speedup is None else f"{speedup:.1f}",
        "" if error is None else f"{error:.0e}",
    )
    print(f"| {' | '.join(cells)} |")


def least_times(work: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of the fastest call of each, all called in turns."""
    least = dict.fromkeys(work, float("inf"))
    for _ in range(rounds):
        for name, call in work.items():
            started = time.perf_counter()
            call()
            least[name] = min(least[name], time.perf_counter() - started)
    return least


if __name__ == "__main__":
    main()
