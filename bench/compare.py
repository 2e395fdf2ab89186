"""An ensemble beside the one that people write today: ``python bench/compare.py [-m GGUF ...]``.

Greedy, equal weights, the same prompt, threads and number of tokens; all take turns in one process,
after one round to warm up.  Without -m the demo models answer.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Protocol

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "python"))

import llama_cpp
import models
from logitfuse.cache import MemberStats
from logitfuse.config import build, parse_config
from logitfuse.llama.backend import repacks_safely
from logitfuse.machine import machine
from logitfuse.member import Member
from logitfuse.sampling import SamplingParams
from logitfuse.strategies.base import Request
from logitfuse.strategies.engine import Engine
from naive_ensemble import NaiveEnsemble, Pool, numpy_pool, torch_pool

PROMPT = "Once upon a time, in a small town by the sea,"
#: The row that all others are divided by.
NAIVE = "llama-cpp-python + NumPy"


@dataclass(frozen=True)
class Answer:
    """What one answer took.

    Attributes
    ----------
    text : str
    seconds : float
        After the prompt.
    outside : list of float
        Of each step but the first, seconds not spent waiting for the slowest model's
        `llama_decode`.
    decoded : list of int
        Tokens that each model evaluated after the prompt.
    again : list of int
        Tokens that each model had to take back.
    caches : list of list of int
        What each model's cache holds behind the prompt.
    """

    text: str
    seconds: float
    outside: list[float]
    decoded: list[int]
    again: list[int]
    caches: list[list[int]]


class Contestant(Protocol):
    """Anything that answers."""

    def answer(self, prompt: str, n: int) -> Answer:
        """Generate n tokens, greedily, from an empty cache."""
        ...


class Ours:
    """An ensemble of ours."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def answer(self, prompt: str, n: int) -> Answer:
        """See `Contestant`."""
        members = self.engine.members
        for member in members:
            member.reset()
            member.stats = MemberStats()
        request = Request(prompt, SamplingParams(temperature=0), max_tokens=n, ignore_end=True)
        text, marks = "", []
        for chunk in self.engine.stream(request):
            text += chunk.text
            marks.append(time.perf_counter() - self.engine.stats.decode_s)
        stats = self.engine.stats
        begun = [len(member.tokenize_prompt(prompt)) for member in members]
        return Answer(
            text,
            stats.total_s - stats.prefill_s,
            [after - before for before, after in pairwise(marks)],
            [m.stats.decoded_tokens - k for m, k in zip(members, begun, strict=True)],
            [member.stats.rolled_back_tokens for member in members],
            [list(m.tokens[k:]) for m, k in zip(members, begun, strict=True)],
        )


class Clock:
    """Times a model's `llama_decode` from now on."""

    def __init__(self, model: llama_cpp.Llama) -> None:
        self.seconds = 0.0
        decode = model._ctx.decode

        def timed(batch: Any) -> None:
            started = time.perf_counter()
            decode(batch)
            self.seconds += time.perf_counter() - started

        model._ctx.decode = timed


class Theirs:
    """The naive ensemble, with a clock around `llama_decode`."""

    def __init__(self, ensemble: NaiveEnsemble, clocks: Sequence[Clock]) -> None:
        self.ensemble = ensemble
        self.clocks = clocks

    def answer(self, prompt: str, n: int) -> Answer:
        """See `Contestant`."""
        ensemble, text, decode_s, marks = self.ensemble, "", 0.0, []
        ensemble.begin(prompt)
        begun = [model.n_tokens for model in ensemble.models]
        started = time.perf_counter()
        for k in range(n):
            key = ensemble.choose()
            text += key
            if k < n - 1:
                before = [clock.seconds for clock in self.clocks]
                ensemble.follow(key)
                decode_s += max(
                    clock.seconds - was for clock, was in zip(self.clocks, before, strict=True)
                )
            marks.append(time.perf_counter() - decode_s)
        seconds = time.perf_counter() - started
        caches = [
            model.input_ids[k : model.n_tokens].tolist()
            for model, k in zip(ensemble.models, begun, strict=True)
        ]
        decoded = [len(cache) for cache in caches]
        outside = [after - before for before, after in pairwise(marks)]
        return Answer(text, seconds, outside, decoded, [0] * len(caches), caches)


@dataclass
class Row:
    """One contestant's rounds."""

    answers: list[Answer] = field(default_factory=list)

    @property
    def speeds(self) -> list[float]:
        """1 / s, one per round."""
        return [1 / answer.seconds for answer in self.answers]

    @property
    def outside(self) -> list[float]:
        """Seconds outside `llama_decode` of the median step, one per round."""
        return [statistics.median(answer.outside) for answer in self.answers]


@contextmanager
def repacked_as_ours() -> Any:
    """Let `Llama` choose as `LlamaModel` does; left to itself it crashes some builds with AMX."""
    defaults: Callable[[], Any] = llama_cpp.llama_cpp.llama_model_default_params

    def like_ours() -> Any:
        params = defaults()
        params.use_extra_bufts = repacks_safely()
        return params

    llama_cpp.llama_cpp.llama_model_default_params = like_ours
    try:
        yield
    finally:
        llama_cpp.llama_cpp.llama_model_default_params = defaults


def load_llama(path: Path, *, n_ctx: int = 512, n_threads: int = 1) -> llama_cpp.Llama:
    """A model in llama-cpp-python, run as a member is."""
    with repacked_as_ours():
        return llama_cpp.Llama(
            str(path),
            n_ctx=n_ctx,
            n_batch=512,
            n_threads=n_threads,
            n_threads_batch=n_threads,
            flash_attn=True,
            logits_all=True,
            verbose=False,
        )


def pools() -> dict[str, Pool]:
    """The naive rows that can run here."""
    found: dict[str, Pool] = {NAIVE: numpy_pool}
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(1)  # a second team of threads would throttle llama.cpp's
        found["llama-cpp-python + PyTorch"] = torch_pool
    return found


@dataclass(frozen=True)
class Comparison:
    """The rows by name, and of each, per model, the tokens that are not the model's own."""

    rows: dict[str, Row]
    foreign: dict[str, list[int]]


def compare(paths: Sequence[Path], prompt: str, *, n: int, runs: int, n_threads: int) -> Comparison:
    """All contestants in turns."""
    n_ctx = 256 * (1 + (n + len(prompt)) // 128)  # a naive cache may need several tokens a step
    member = {"n_ctx": n_ctx, "n_threads": n_threads}
    contestants: dict[str, Contestant] = {}
    engines = []
    for name, strategy in (("logitfuse, fuse", "fuse"), ("logitfuse, default", "auto")):
        config = {"strategy": strategy, "member": [{"model": path, **member} for path in paths]}
        engines.append(build(parse_config(config)))
        contestants[name] = Ours(engines[-1])
    loaded = [load_llama(path, n_ctx=n_ctx, n_threads=n_threads) for path in paths]
    clocks = [Clock(model) for model in loaded]
    for name, pool in pools().items():
        contestants[name] = Theirs(NaiveEnsemble(loaded, pool), clocks)
    rows: dict[str, Row] = {name: Row() for name in contestants}
    try:
        for k in range(runs + 1):
            for name, contestant in contestants.items():
                answer = contestant.answer(prompt, n if k else min(n, 4))
                if k:
                    rows[name].answers.append(answer)
        members = engines[0].members
        foreign = {
            name: [
                foreign_tokens(member, cache)
                for member, cache in zip(members, row.answers[-1].caches, strict=True)
            ]
            for name, row in rows.items()
        }
        return Comparison(rows, foreign)
    finally:
        for engine in engines:
            engine.close()
        for model in loaded:
            model.close()


def foreign_tokens(member: Member, cache: Sequence[int]) -> int:
    """How many of these tokens the model's own tokenizer would not have cut out of their text."""
    text = member.vocab.join(cache)
    own = member.tokenize(text.decode("utf-8", "ignore").encode())
    return len(spans(member, cache) - spans(member, own))


def spans(member: Member, tokens: Sequence[int]) -> set[tuple[int, int]]:
    """Where tokens begin and end, bytes."""
    lengths = (len(member.vocab.token_bytes(token)) for token in tokens)
    return set(pairwise([0, *accumulate(lengths)]))


def table(found: Comparison, n: int) -> str:
    """For people."""
    lines = [
        "| | t/s | ÷ NumPy | ms outside llama_decode, median step | ÷ NumPy | decoded per step | "
        "taken back | not its own in the cache | text as fuse |",
        "|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    base, fuse = found.rows[NAIVE], found.rows["logitfuse, fuse"].answers[-1].text
    for name, row in found.rows.items():
        last = row.answers[-1]
        cells = [
            name,
            spread([n * speed for speed in row.speeds], 1),
            spread([a / b for a, b in zip(row.speeds, base.speeds, strict=True)], 2),
            spread([1e3 * seconds for seconds in row.outside], 2),
            spread([a / b for a, b in zip(row.outside, base.outside, strict=True)], 2),
            " + ".join(f"{count / max(1, n - 1):.2f}" for count in last.decoded),
            " + ".join(map(str, last.again)),
            " + ".join(map(str, found.foreign[name])),
            agreement(last.text, fuse),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation."""
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{digits}f} ± {sd:.{digits}f}"


def agreement(text: str, other: str) -> str:
    """How far two texts agree."""
    same = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), None)
    return "yes" if same is None else f"the first {same} characters"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model", type=Path, action="append", help="GGUF file; repeat it")
    parser.add_argument("-p", "--prompt", default=PROMPT, help="what the answer continues")
    parser.add_argument("-n", type=int, default=64, help="tokens to generate")
    parser.add_argument("-r", "--runs", type=int, default=3, help="rounds after one to warm up")
    parser.add_argument("-t", "--threads", type=int, default=1, help="threads per model")
    given = parser.parse_args()
    if given.n < 2 or min(given.runs, given.threads) < 1:
        parser.error("-n must be at least 2, -r and -t at least 1")
    if not given.prompt:
        parser.error("the prompt is empty")
    paths = given.model or [models.smollm2(), models.gemma3()]
    found = compare(paths, given.prompt, n=given.n, runs=given.runs, n_threads=given.threads)
    info = machine()
    print(
        f"{info['cpu']}, {info['cores']} cores; logitfuse {info['logitfuse']} ({info['isa']}), "
        f"llama-cpp-python {info['llama_cpp_python']}, NumPy {info['numpy']}; "
        f"{' + '.join(path.stem for path in paths)}, {given.threads} thread(s) each, "
        f"{given.n} tokens, mean ± sd of {given.runs}\n\n{table(found, given.n)}"
    )
    print()
    for name, row in found.rows.items():
        print(f"{name}: {row.answers[-1].text!r}")


if __name__ == "__main__":
    main()
