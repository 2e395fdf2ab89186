"""Many streams at once beside one, and what batches allow: ``python bench/serving.py``.

The bound is llama.cpp's: a round in which every member decodes one token for each of k texts takes
T(k), so k streams can be at most k * T(1) / T(k) times as fast as one.  T is measured here, in
turns with the streams, members side by side in threads of their own, as in the batcher.
"""

from __future__ import annotations

import argparse
import queue
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "python"))

import models
import numpy as np
from logitfuse.batching import Batcher, Event, Job
from logitfuse.batching.slots import SharedModel, load, unload
from logitfuse.config import FuseConfig, parse_config
from logitfuse.llama import Piece
from logitfuse.machine import machine
from logitfuse.sampling import SamplingParams
from logitfuse.strategies.base import Chunk, Request

#: Prompts of about 16 tokens, none of which begins like another.
PROMPTS = (
    "The history of the harbour begins with a small wooden pier, built by the fishermen in",
    "In the year 1905 a young clerk in the patent office of Bern wrote four papers about",
    "My favourite recipe for bread needs nothing but flour, water, salt and a lot of",
    "Dear Sir or Madam, I am writing to you because the train that I took last Monday was",
    "A neural network is a function that is made of many simple parts, each of which",
    "Once upon a time, in a village by the sea, there lived an old woman who had",
    "The court held that the agreement between the two parties was void, because it",
    "To install the program, first download the archive from the server and then",
)
#: Tokens of each text while T(k) is measured.
DEPTH = 48


@dataclass
class Streams:
    """What so many streams took.

    Attributes
    ----------
    tokens_per_s : list of float
        Of all streams together, one figure per repetition.
    first_s : list of float
        Seconds from each request to its first token.
    """

    tokens_per_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)


def config_of(strategy: str) -> FuseConfig:
    """The demo models."""
    paths = (models.smollm2(), models.gemma3())
    entries = [{"model": path, "n_ctx": 512} for path in paths]
    return parse_config({"strategy": strategy, "member": entries})


def round_seconds(shared: Sequence[SharedModel], k: int, n: int) -> float:
    """T(k): the median of `n` rounds."""
    times = []
    with ThreadPoolExecutor(len(shared)) as threads:
        for model in shared:
            model.decoder.clear()
            rng = np.random.default_rng(0)
            for sequence in range(k):
                tokens = rng.integers(1000, 30000, DEPTH).tolist()
                model.decoder.decode([Piece(tokens, np.arange(DEPTH), sequence, 1)])
        for position in range(DEPTH, DEPTH + n):
            pieces = [[Piece([1000 + s], position, s, 1) for s in range(k)] for _ in shared]
            started = time.perf_counter()
            codes = threads.map(lambda m, p: m.decoder.decode(p), shared, pieces)
            assert list(codes) == [0] * len(shared)
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def run_streams(batcher: Batcher, k: int, n_tokens: int, number: int, into: Streams) -> None:
    """Answer k different prompts at once, such as have not been read before."""
    told: queue.SimpleQueue[tuple[int, float, Event]] = queue.SimpleQueue()
    asked = [0.0] * k
    started = time.perf_counter()
    for i in range(k):
        request = Request(
            f"({number}) {PROMPTS[i % len(PROMPTS)]}",
            SamplingParams(temperature=0),
            max_tokens=n_tokens,
            ignore_end=True,
        )
        asked[i] = time.perf_counter()
        batcher.submit(
            Job(batcher.configs[0], request),
            lambda event, i=i: told.put((i, time.perf_counter(), event)),  # type: ignore[misc]
        )
    seen: dict[int, float] = {}
    running, tokens, last = k, 0, started
    while running:
        i, at, event = told.get()
        if isinstance(event, Chunk):
            if i not in seen:
                seen[i] = at
                into.first_s.append(at - asked[i])
            tokens += len(event.steps)
            last = at
        elif isinstance(event, Exception):
            raise event
        else:
            running -= 1
    # Between the moment when all have their first token and the end: prompts are another matter.
    into.tokens_per_s.append((tokens - k) / (last - max(seen.values())))


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of all does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-k", type=int, nargs="+", default=[1, 2, 4, 8], help="numbers of streams")
    parser.add_argument("-n", type=int, default=48, help="tokens per answer")
    parser.add_argument("-r", type=int, default=3, help="repetitions")
    parser.add_argument("--strategy", default="auto")
    options = parser.parse_args()
    config = config_of(options.strategy)
    print(", ".join(f"{key}: {value}" for key, value in machine().items()))
    shared = load([config], max(options.k), 1)
    batcher = Batcher([config], slots=max(options.k))
    rounds: dict[int, list[float]] = {k: [] for k in options.k}
    streams = {k: Streams() for k in options.k}
    for repetition in range(options.r + 1):
        for k in options.k:
            measured = round_seconds(shared, k, options.n // 2)
            into = streams[k] if repetition else Streams()  # the first one warms up
            run_streams(batcher, k, options.n, 100 * k + repetition, into)
            if repetition:
                rounds[k].append(measured)
    batcher.close()
    unload(shared)
    first = min(options.k)
    print(
        "\n| streams | T(k), ms | bound | tokens/s | gain | of the bound | "
        "first token, ms: median | 95 % |\n|--:|--:|--:|--:|--:|--:|--:|--:|"
    )
    for k in options.k:
        seconds = statistics.median(rounds[k])
        bound = k / first * statistics.median(rounds[first]) / seconds
        speed = statistics.median(streams[k].tokens_per_s)
        gain = speed / statistics.median(streams[first].tokens_per_s)
        firsts = streams[k].first_s
        print(
            f"| {k} | {1e3 * seconds:.1f} | {bound:.2f} | {speed:.1f} | {gain:.2f} | "
            f"{100 * gain / bound:.0f} % | {1e3 * statistics.median(firsts):.0f} | "
            f"{1e3 * percentile(firsts, 0.95):.0f} |"
        )


if __name__ == "__main__":
    main()
