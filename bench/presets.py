"""What every preset costs per step besides the models: ``python bench/presets.py [-n TOKENS]``.

The demo models (49,152 and 262,144 tokens) answer one prompt with every preset; those for members
of one family get SmolLM2 and a coarse copy of it.  Time is that of gates, pool and sampling per
step, the median of the runs; tokens per second are compared with plain lockstep in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

from logitfuse.config import build, parse_config
from logitfuse.demo_models import DEMO_MODELS, demo_path
from logitfuse.presets import PRESETS
from logitfuse.sampling import SamplingParams
from logitfuse.strategies.base import Request
from requantise import requantise

PROMPT = "The history of the harbour begins with"
SAMPLINGS = {"greedy": SamplingParams(temperature=0), "sampled": SamplingParams(seed=1)}


class Cost(NamedTuple):
    """What one answer took."""

    fuse_ms: float  #: per step
    bytes_per_s: float


def measure(parts: dict[str, object], models: list[Path], n: int, runs: int) -> dict[str, Cost]:
    """Answer greedily and with sampling; what cannot be greedy is only sampled."""
    config = parse_config({**parts, "member": [{"model": path, "n_ctx": 512} for path in models]})
    engine = build(config)
    costs = {}
    try:
        for name, sampling in SAMPLINGS.items():
            if config.strategy == "mix" and name == "greedy":
                continue
            found = []
            for _ in range(runs):
                request = Request(PROMPT, sampling, max_tokens=n, ignore_end=True)
                text = "".join(chunk.text for chunk in engine.stream(request))
                seconds = engine.stats.total_s - engine.stats.prefill_s
                per_step = 1e3 * engine.stats.fuse_s / engine.stats.steps
                found.append(Cost(per_step, len(text.encode()) / seconds))
            costs[name] = Cost(*(statistics.median(column) for column in zip(*found, strict=True)))
    finally:
        engine.close()
    return costs


def report(n: int, runs: int) -> None:
    """Print the table."""
    pair = [demo_path(model) for model in DEMO_MODELS]
    print("| preset | fuse, ms per step: greedy | sampled | bytes/s ÷ lockstep: greedy | sampled |")
    print("|---|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        coarse = Path(folder) / "coarse.gguf"
        requantise(pair[0], coarse, "Q2_K")
        plain: dict[str, dict[str, Cost]] = {}
        rows = {"(lockstep)": ({"strategy": "fuse"}, pair), "(lockstep, one family)": ({}, None)}
        for name, preset in PRESETS.items():
            if preset.parts.get("solo") == "critical":
                continue  # needs a fitted file
            family = [pair[0], coarse, coarse][: max(2, len(preset.weights))]
            rows[name] = ({"preset": name}, family if preset.one_vocabulary else pair)
        for name, (parts, models) in rows.items():
            chosen = [pair[0], coarse] if models is None else models
            costs = measure(dict(parts), chosen, n, runs)
            kind = "pair" if chosen == pair else "family"
            base = plain.setdefault(kind, costs)
            cells = [
                *(f"{costs[s].fuse_ms:.2f}" if s in costs else "" for s in SAMPLINGS),
                *(
                    f"{costs[s].bytes_per_s / base[s].bytes_per_s:.2f}" if s in costs else ""
                    for s in SAMPLINGS
                ),
            ]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=48, help="tokens per answer")
    parser.add_argument("-r", "--runs", type=int, default=3)
    arguments = parser.parse_args()
    report(arguments.n, arguments.runs)
