"""Print what each schedule could and does gain on the demo models: ``python bench/schedules.py``.

First the time of one decode of k tokens, t(k), and the bound on tokens per second that it implies
for each schedule; then tokens per second, all schedules in turns.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "python"))

import models
from logitfuse.drafting import Draft, DraftOptions, expected_units
from logitfuse.gates import Certain
from logitfuse.machine import machine
from logitfuse.member import Member
from logitfuse.sampling import SamplingParams
from logitfuse.strategies.base import Generator, Request
from logitfuse.strategies.fuse import Fuse
from logitfuse.strategies.mix import Mix

WEIGHTS = (0.7, 0.3)
PROMPT = (
    "The old harbour was quiet in the morning: 12 boats lay in two rows, and from the café on the "
    "quay came the smell of bread. Nobody had yet gone out to sea. "
)
SIZES = (1, 2, 4, 8)
DRAFTS = (1, 3, 7)
PURE = SamplingParams(temperature=1, top_k=0, top_p=1, min_p=0, seed=1)

#: Seconds of one decode of so many tokens, one function per member.
Times = Sequence[Callable[[float], float]]


def main() -> None:
    """Measure and print."""
    members = [
        Member(path, n_ctx=1024, n_threads=1) for path in (models.smollm2(), models.gemma3())
    ]
    print(f"{machine()['cpu']}; CPython {platform.python_version()}, weights {WEIGHTS}\n")
    curves = [decode_times(member) for member in members]
    print_curves(members, curves)
    runs = compare(members, n_tokens=64, rounds=5)
    print_schedules(runs, [smooth(curve) for curve in curves])


def decode_times(member: Member, sizes: Sequence[int] = SIZES, rounds: int = 7) -> dict[int, float]:
    """Least seconds of one decode of k tokens with k rows, after the prompt."""
    tokens = member.tokenize_prompt(PROMPT)
    member.reset()
    member.begin(tokens)
    seconds = dict.fromkeys(sizes, float("inf"))
    for _ in range(rounds):
        for size in sizes:
            started = time.perf_counter()
            code = member.context.decode(tokens[1 : size + 1], len(tokens), outputs=size)
            seconds[size] = min(seconds[size], time.perf_counter() - started)
            if code != 0 or not member.context.cut(len(tokens)):
                raise RuntimeError(f"{member.name} cannot decode {size} tokens and go back")
    member.reset()
    return seconds


def smooth(curve: dict[int, float]) -> Callable[[float], float]:
    """t(k) on lines between what was measured, and on along the last one."""
    sizes, seconds = list(curve), list(curve.values())
    slope = (seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2])

    def at(k: float) -> float:
        return float(np.interp(k, sizes, seconds)) + max(0.0, k - sizes[-1]) * slope

    return at


def flat(times: Times) -> Times:
    """The same members if a batch cost what one token costs: large models, GPUs."""
    return [smooth({1: t(1), 2: t(1)}) for t in times]


@dataclass
class Run:
    """One schedule: how fast it was beside eager, and what it found.

    Attributes
    ----------
    ratios : list of float
        Tokens per second over eager's, one per round.
    votes : list of float
        Share of the steps in which each member voted.
    text : str
    bound : callable
        Units per second at these decode times.
    """

    ratios: list[float]
    votes: list[float]
    text: str
    bound: Callable[[Times], float]


def compare(
    members: Sequence[Member],
    *,
    n_tokens: int,
    rounds: int,
    drafts: Sequence[int] = DRAFTS,
) -> dict[str, Run]:
    """All schedules in turns."""
    eager = Fuse(members, weights=WEIGHTS)
    options = {k: DraftOptions(length=k, drafter=0, adapt=False) for k in drafts}
    adaptive = DraftOptions()
    schedules: dict[str, Generator] = {
        "eager": eager,
        "lazy, certain": Fuse(members, weights=WEIGHTS, schedule="lazy", solo=Certain()),
        "mix": Mix(members, weights=WEIGHTS),
    }
    for k, option in options.items():
        schedules[f"draft {k}"] = Fuse(members, weights=WEIGHTS, schedule="draft", draft=option)
    schedules["draft, adaptive"] = Fuse(members, weights=WEIGHTS, schedule="draft", draft=adaptive)
    runs: dict[str, Run] = {}
    for _ in range(rounds):
        base = 0.0
        for name, schedule in schedules.items():
            text, speed = answer(schedule, n_tokens)
            base = speed if name == "eager" else base
            run = runs.setdefault(name, Run([], votes_of(schedule), text, bound_of(schedule)))
            run.ratios.append(speed / base)
    return runs


def answer(schedule: Generator, n_tokens: int) -> tuple[str, float]:
    """The text, and tokens per second behind the prompt."""
    sampling = PURE if isinstance(schedule, Mix) else SamplingParams(temperature=0)
    chunks = schedule.stream(Request(PROMPT, sampling, max_tokens=n_tokens, ignore_end=True))
    text = next(chunks).text
    started = time.perf_counter()
    text += "".join(chunk.text for chunk in chunks)
    return text, (n_tokens - 1) / (time.perf_counter() - started)


def votes_of(schedule: Generator) -> list[float]:
    """Share of the steps in which each member voted."""
    assert isinstance(schedule, Fuse | Mix)
    return [votes / schedule.stats.steps for votes in schedule.stats.votes]


def bound_of(schedule: Generator) -> Callable[[Times], float]:
    """Units per second if nothing but decoding took time.

    A member that is asked in a share s of the steps decodes batches of 1/s tokens.  Eager members
    decode side by side, all others one after the other; the first member drafts.
    """
    shares = votes_of(schedule)
    if isinstance(schedule, Fuse) and isinstance(schedule._schedule, Draft):
        options, rate = schedule._schedule.options, schedule._schedule.acceptance
        lengths = range(1, options.length + 1) if options.adapt else [options.length]
        return lambda times: max(
            expected_units(rate, n) / (n * times[0](1) + max(t(n + 1) for t in times[1:]))
            for n in lengths
        )
    if isinstance(schedule, Fuse) and schedule.schedule == "eager":
        return lambda times: 1 / max(t(1) for t in times)
    return lambda times: (
        1 / sum(share * t(1 / share) for share, t in zip(shares, times, strict=True) if share)
    )


def print_curves(members: Sequence[Member], curves: Sequence[dict[int, float]]) -> None:
    """t(k), ms and as a multiple of t(1)."""
    sizes = list(curves[0])
    print(f"| t(k), ms (÷ t(1)) | {' | '.join(f'k = {k}' for k in sizes)} |")
    print(f"|---|{'--:|' * len(sizes)}")
    for member, curve in zip(members, curves, strict=True):
        cells = (f"{1e3 * curve[k]:.1f} ({curve[k] / curve[1]:.2f})" for k in sizes)
        print(f"| {member.name} | {' | '.join(cells)} |")


def print_schedules(runs: dict[str, Run], times: Times) -> None:
    """Each schedule beside its bounds, all over eager's."""
    eager = runs["eager"]
    print(
        "\n| schedule | tokens/s ÷ eager, median (least to most) | bound | bound at t(k) = t(1) "
        "| share of votes | text as eager |\n|---|--:|--:|--:|--:|---|"
    )
    for name, run in runs.items():
        low, middle, high = min(run.ratios), statistics.median(run.ratios), max(run.ratios)
        bounds = [run.bound(t) / eager.bound(t) for t in (times, flat(times))]
        votes = ", ".join(f"{share:.2f}" for share in run.votes)
        same = "sampled" if name == "mix" else "yes" if run.text == eager.text else "no"
        print(
            f"| {name} | {middle:.2f} ({low:.2f} to {high:.2f}) | {bounds[0]:.2f} | "
            f"{bounds[1]:.2f} | {votes} | {same} |"
        )


if __name__ == "__main__":
    main()
