"""``logitfuse bench``: members alone and together, in one run, with llama-bench's habits."""

from __future__ import annotations

import csv
import io
import json as jsonlib
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from logitfuse.benchmark import PARTS, Plan, Series, Trial, measure
from logitfuse.cli import output
from logitfuse.cli.check import SAMPLE
from logitfuse.cli.options import Flag, ModelOptions, SamplingOptions
from logitfuse.cli.run import load
from logitfuse.config import FuseConfig
from logitfuse.errors import ConfigError
from logitfuse.machine import machine
from logitfuse.sampling import SamplingParams

#: A list of numbers; what begins with a hyphen is refused by us, in words.
_List = Parameter(allow_leading_hyphen=True)


def bench(
    *,
    n_prompt: Annotated[str, Parameter(name=["--n-prompt", "-p"]), _List] = "128",
    n_gen: Annotated[str, Parameter(name=["--n-gen", "-n"]), _List] = "64",
    repetitions: Annotated[
        int, Parameter(name=["--repetitions", "-r"], validator=Number(gte=1))
    ] = 3,
    sweep_threads: Annotated[str | None, _List] = None,
    sweep_batch: Annotated[str | None, _List] = None,
    form: Annotated[
        Literal["md", "csv", "json", "jsonl"], Parameter(name=["--output", "-o"])
    ] = "md",
    json: Flag = False,
    models: ModelOptions | None = None,
    sampling: SamplingOptions | None = None,
) -> None:
    """Measure every member alone and all together, in turns, in one run.

    Prefill, decode, sync, fuse and sample are shares of the whole run: the prompt; waiting for
    llama_decode; tokenising and rolling back; gates and pool; penalties and the draw.  Overhead is
    the share of the time after the prompt that is not spent waiting for llama_decode.  Members
    alone use as many threads as they have in the ensemble.  Greedy, unless --temp or another
    sampling option is given.

    Examples:

        logitfuse bench -m a.gguf -m b.gguf

        logitfuse bench -e pair.toml -p 128,512 -n 0,128 -r 5 -o jsonl

        logitfuse bench -m a.gguf -m b.gguf --sweep-threads 1,2,4 --temp 0.8

    Parameters
    ----------
    n_prompt
        Prompt lengths, tokens of the first member (about), e.g. 128,512; 0: no prompt.
    n_gen
        Tokens to generate, e.g. 0,64; end tokens are ignored; 0: the prompt only.
    repetitions
        Rounds, after one to warm up.
    sweep_threads
        Threads of every member in turn, e.g. 1,2,4 (-t sets them once).
    sweep_batch
        Prompt tokens per decode call in turn, e.g. 64,512; loads the models each time.
    form
        md, csv, json or jsonl; csv and jsonl name the machine in every row.
    json
        The same as -o json.
    """
    models, sampling = models or ModelOptions(), sampling or SamplingOptions()
    for sweep, given, flags in (
        (sweep_threads, models.threads, "--sweep-threads or -t/--threads"),
        (sweep_batch, models.batch_size, "--sweep-batch or -b/--batch-size"),
    ):
        if sweep is not None and given is not None:
            raise ConfigError(f"give either {flags}")
    config = models.config()
    lengths = product(_numbers("-p/--n-prompt", n_prompt, 0), _numbers("-n/--n-gen", n_gen, 0))
    plan = Plan(
        [Trial(*pair) for pair in lengths],
        repetitions,
        _sweep("--sweep-threads", sweep_threads),
        sampling.params(SamplingParams(temperature=0, seed=1)),
    )
    series = _run(config, plan, _sweep("--sweep-batch", sweep_batch))
    _print("json" if json else form, series, plan, batches=sweep_batch is not None)


def _run(config: FuseConfig, plan: Plan, batches: Sequence[int | None]) -> list[Series]:
    """Measure with every batch size; contexts have theirs for life."""
    found: list[Series] = []
    runs = plan.runs(len(config.member))
    for i, n_batch in enumerate(batches):
        engine, _ = load(config if n_batch is None else _with_batch(config, n_batch))
        try:
            with output.progress() as bar:
                task = bar.add_task("measuring", completed=i * runs, total=len(batches) * runs)
                found += measure(engine, plan, SAMPLE, advance=partial(bar.advance, task))
        finally:
            engine.close()
    return found


def _with_batch(config: FuseConfig, n_batch: int) -> FuseConfig:
    members = [member.model_copy(update={"n_batch": n_batch}) for member in config.member]
    return config.model_copy(update={"member": members})


def _sweep(flag: str, text: str | None) -> Sequence[int | None]:
    return [None] if text is None else _numbers(flag, text, 1)


def _numbers(flag: str, text: str, least: int) -> list[int]:
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{flag} takes whole numbers separated by commas, not '{text}'") from None
    if min(values) < least:
        raise ConfigError(f"{flag} must be at least {least}, not {min(values)}")
    return values


def _print(form: str, series: Sequence[Series], plan: Plan, *, batches: bool) -> None:
    results, head = [one.as_dict() for one in series], machine()
    for result in results:
        result["sampling"] = _sampling(plan)
    if form == "md":
        output.say(_as_markdown(series, _header(head, plan), batches=batches))
    elif form == "json":
        output.dump({"machine": head, "results": results})
    elif form == "csv":
        output.say(_as_csv([result | _flat(head) for result in results]))
    else:
        lines = (jsonlib.dumps(result | _flat(head), allow_nan=False) for result in results)
        output.say("".join(f"{line}\n" for line in lines))


def _flat(head: dict[str, Any]) -> dict[str, Any]:
    """The machine as columns."""
    return {
        key: " ".join(value) if isinstance(value, list) else value for key, value in head.items()
    }


def _as_csv(rows: Sequence[dict[str, Any]]) -> str:
    columns = dict.fromkeys(key for row in rows for key in row)  # not every test has all figures
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _sampling(plan: Plan) -> str:
    temperature = plan.sampling.temperature
    return "greedy" if temperature == 0 else f"temperature {temperature:g}"


def _header(head: dict[str, Any], plan: Plan) -> str:
    memory = head["memory_bytes"]
    ram = "" if memory is None else f", {memory / 2**30:.0f} GiB"
    return (
        f"{head['cpu']}, {head['cores']} cores{ram}, {head['os']}; logitfuse {head['logitfuse']} "
        f"({head['isa']}, {head['compiler']}), llama-cpp-python {head['llama_cpp_python']} "
        f"(llama.cpp {head['llama_cpp']}), NumPy {head['numpy']}, Python {head['python']}; "
        f"{_sampling(plan)}, mean ± sd of {plan.repetitions}"
    )


def _as_markdown(series: Sequence[Series], header: str, *, batches: bool) -> str:
    together = any("of_slowest" in one.figures for one in series)
    columns = ["model", "threads", *(["batch"] if batches else []), "test", "prompt t/s", "t/s"]
    columns += [*PARTS, "overhead", *(["÷ slowest", "÷ fastest"] if together else [])]
    lines = [header, "", f"| {' | '.join(columns)} |", f"|---|{'--:|' * (len(columns) - 1)}"]
    for one in series:
        data = one.as_dict()
        cells = [one.name, data["threads"], *([str(one.n_batch)] if batches else []), data["test"]]
        cells += [_spread(one, key, 1) for key in ("prompt_per_s", "tokens_per_s")]
        for key in (*(f"{part}_share" for part in PARTS), "overhead"):
            cells.append(output.percent(data[key]) if key in data else "")
        if together:
            cells += [_spread(one, key, 2) for key in ("of_slowest", "of_fastest")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(one: Series, key: str, digits: int) -> str:
    if key not in one.figures:
        return ""
    return f"{one.mean(key):.{digits}f} ± {one.spread(key):.{digits}f}"
