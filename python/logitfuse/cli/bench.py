"""``logitfuse bench``: members alone and together, in one run, with llama-bench's flags."""

from __future__ import annotations

import csv
import io
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from logitfuse.cli import output
from logitfuse.cli.check import SAMPLE
from logitfuse.cli.info import installation
from logitfuse.cli.options import Flag, ModelOptions
from logitfuse.cli.run import load
from logitfuse.sampling import SamplingParams
from logitfuse.strategies.base import Request

if TYPE_CHECKING:
    from logitfuse.strategies.engine import Engine


_POSITIVE = Number(gte=1)


@dataclass
class Series:
    """The repetitions of one generator: one figure per run."""

    name: str
    threads: str
    prompt_tokens: int = 0
    figures: dict[str, list[float]] = field(default_factory=dict)

    def add(self, **figures: float) -> None:
        """Add one run's figures."""
        for key, value in figures.items():
            self.figures.setdefault(key, []).append(value)

    def mean(self, key: str) -> float:
        """Mean over the runs."""
        return statistics.fmean(self.figures[key])

    def spread(self, key: str) -> float:
        """Standard deviation over the runs."""
        values = self.figures[key]
        return statistics.stdev(values) if len(values) > 1 else 0.0


def bench(
    *,
    n_prompt: Annotated[int, Parameter(name=["--n-prompt", "-p"], validator=_POSITIVE)] = 128,
    n_gen: Annotated[int, Parameter(name=["--n-gen", "-n"], validator=_POSITIVE)] = 64,
    repetitions: Annotated[int, Parameter(name=["--repetitions", "-r"], validator=_POSITIVE)] = 3,
    form: Annotated[Literal["md", "csv", "json"], Parameter(name=["--output", "-o"])] = "md",
    json: Flag = False,
    models: ModelOptions | None = None,
) -> None:
    """Measure every member alone and all together, greedy, in one run.

    Members alone use as many threads as they have in the ensemble.  Overhead is all of the
    ensemble's time that is not spent waiting for llama_decode.

    Examples:

        logitfuse bench -m a.gguf -m b.gguf

        logitfuse bench -e pair.toml -p 512 -n 128 -r 5 -o json

    Parameters
    ----------
    n_prompt
        Prompt length, tokens of the first member (about).
    n_gen
        Tokens to generate; end tokens are ignored.
    repetitions
        Runs, after one to warm up.
    form
        md, csv or json.
    json
        The same as -o json.
    """
    config = (models or ModelOptions()).config()
    fuse, _ = load(config)
    try:
        series = _measure(fuse, n_prompt, n_gen, repetitions)
    finally:
        fuse.close()
    if json or form == "json":
        output.dump({"machine": machine(), "results": [_as_dict(s, n_gen) for s in series]})
    elif form == "csv":
        output.say(_as_csv([_as_dict(s, n_gen) for s in series]))
    else:
        output.say(_as_markdown(series, n_gen))


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {"cpu": _cpu(), "system": platform.platform(), **installation()}


def _measure(fuse: Engine, n_prompt: int, n_gen: int, repetitions: int) -> list[Series]:
    from logitfuse.strategies.fuse import Fuse

    text = _prompt(fuse, n_prompt)
    alone = [Fuse([member], name=member.name) for member in fuse.members]
    generators = [*(alone if len(alone) > 1 else []), fuse]
    threads = [str(g.members[0].context.n_threads) for g in alone]
    series = [
        Series(
            g.name if g is not fuse else "together",
            threads[i] if g is not fuse else "+".join(threads),
        )
        for i, g in enumerate(generators)
    ]
    with output.progress() as bar:
        task = bar.add_task("measuring", total=len(generators) * (repetitions + 1))
        for generator, result in zip(generators, series, strict=True):
            for run in range(repetitions + 1):
                for member in generator.members:
                    member.reset()
                request = Request(
                    text, SamplingParams(temperature=0), max_tokens=n_gen, ignore_end=True
                )
                for _ in generator.stream(request):
                    pass
                if run > 0:
                    _record(generator, result)
                bar.advance(task)
    return series


def _record(generator: Engine, series: Series) -> None:
    stats = generator.stats
    series.prompt_tokens = stats.prompt_tokens
    answering = stats.total_s - stats.prefill_s
    series.add(
        prompt_per_s=stats.prompt_tokens / stats.prefill_s,
        tokens_per_s=stats.steps / answering,
        decode_share=stats.decode_s / answering,
        sync_share=stats.sync_s / answering,
        fuse_share=stats.fuse_s / answering,
        overhead=1 - stats.decode_s / answering,
        fused_share=stats.fused_share,
    )


def _prompt(fuse: Engine, n_tokens: int) -> str:
    """Sample text of about `n_tokens` tokens of the first member."""
    member = fuse.members[0]
    text = SAMPLE
    while len(member.tokenize(text.encode())) < n_tokens:
        text += SAMPLE
    tokens = member.tokenize(text.encode())[:n_tokens]
    return member.vocab.join(tokens).decode("utf-8", "ignore") or "The"


def _as_dict(series: Series, n_gen: int) -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": series.name,
        "threads": series.threads,
        "n_prompt": series.prompt_tokens,
        "n_gen": n_gen,
    }
    for key in series.figures:
        data[key] = series.mean(key)
        data[f"{key}_sd"] = series.spread(key)
    return data


def _as_csv(rows: Sequence[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _as_markdown(series: Sequence[Series], n_gen: int) -> str:
    head = machine()
    lines = [
        f"{head['cpu']}, {head['cores']} cores, {head['isa']}; logitfuse {head['logitfuse']}, "
        f"llama-cpp-python {head['llama_cpp_python']}",
        "",
        "| model | threads | prompt | prompt t/s | n | t/s | decode | sync | fuse | overhead |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for s in series:
        shares = (f"{100 * s.mean(k):.1f} %" for k in ("decode_share", "sync_share", "fuse_share"))
        cells = (
            s.name,
            s.threads,
            str(s.prompt_tokens),
            f"{s.mean('prompt_per_s'):.1f} ± {s.spread('prompt_per_s'):.1f}",
            str(n_gen),
            f"{s.mean('tokens_per_s'):.1f} ± {s.spread('tokens_per_s'):.1f}",
            *shares,
            f"{100 * s.mean('overhead'):.1f} %",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cpu() -> str:
    try:
        with Path("/proc/cpuinfo").open() as file:
            names = [line.split(":", 1)[1].strip() for line in file if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
