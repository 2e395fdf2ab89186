"""``logitfuse run``: answer one prompt."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from logitfuse.cli import output
from logitfuse.cli.answer import stream_answer
from logitfuse.cli.options import ConstraintOptions, Flag, ModelOptions, SamplingOptions
from logitfuse.cli.report import run_report, run_tables
from logitfuse.config import FuseConfig, build
from logitfuse.errors import ConfigError
from logitfuse.evaluation.trace import trace_entry
from logitfuse.strategies.base import Request

if TYPE_CHECKING:
    from logitfuse.strategies.engine import Engine


def run(
    prompt: str | None = None,
    *,
    file: Annotated[Path | None, Parameter(name=["--file", "-f"])] = None,
    chat: Flag = False,
    system: Annotated[str | None, Parameter(name=["--system-prompt", "-sys"])] = None,
    predict: Annotated[
        int, Parameter(name=["--predict", "--n-predict", "-n"], allow_leading_hyphen=True)
    ] = -1,
    stop: Annotated[list[str] | None, Parameter(name=["--stop"], negative="")] = None,
    ignore_eos: Flag = False,
    show_members: Flag = False,
    json: Flag = False,
    models: ModelOptions | None = None,
    sampling: SamplingOptions | None = None,
    constraint: ConstraintOptions | None = None,
) -> None:
    """Answer one prompt; text from a pipe is put before it.

    Examples:

        logitfuse run "The capital of France is" -m a.gguf -m b.gguf -n 32 --temp 0

        cat notes.txt | logitfuse run --chat "Summarise this." -e pair.toml

        logitfuse run "2 + 2 =" -m a.gguf -m b.gguf --weights 0.7,0.3 --json

        logitfuse run --chat "Three colours?" -e pair.toml -j '{"type": "array", "maxItems": 3}'

    Parameters
    ----------
    prompt
        Text to continue, or with --chat a message to answer.
    file
        Read the prompt from a file.
    chat
        Put the prompt through every member's own chat template.
    system
        System message; implies --chat.
    predict
        Most tokens to generate; 0 or less: until the end.
    stop
        End before this string; repeat it.
    ignore_eos
        Go on where the members would end.
    show_members
        Behind each token, show what members that wanted another would have said.
    json
        Print one JSON document with text and figures instead of streaming.
    """
    models, sampling = models or ModelOptions(), sampling or SamplingOptions()
    config = models.config()
    params = sampling.params(config.sampling)
    text = read_prompt(prompt, file)
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": text})
    request = Request(
        prompt=messages if chat or system else text,
        sampling=params,
        max_tokens=predict if predict > 0 else None,
        stop=tuple(stop or ()),
        ignore_end=ignore_eos,
        constraint=constraint.constraint() if constraint else None,
    )
    fuse, load_s = load(config)
    try:
        answer_once(fuse, request, load_s, json=json, show_members=show_members)
    finally:
        fuse.close()


def answer_once(
    fuse: Engine, request: Request, load_s: float, *, json: bool, show_members: bool
) -> None:
    """Stream an answer and what it took; re-raises what cut it short."""
    answer = stream_answer(fuse, request, quiet=json, show_members=show_members)
    report = run_report(fuse, text=answer.text, finish_reason=answer.finish_reason, load_s=load_s)
    if json:
        if show_members:
            names = [member.name for member in fuse.members]
            report["trace"] = [trace_entry(step, names) for step in answer.steps]
        output.dump(report)
    else:
        output.err.print(run_tables(report))
    if answer.error is not None:
        raise answer.error


def load(config: FuseConfig) -> tuple[Engine, float]:
    """Load the models; says how they are run and what to know about them."""
    started = time.perf_counter()
    with output.working("loading the models"):
        fuse = build(config)
    load_s = time.perf_counter() - started
    for member, entry in zip(fuse.members, config.member, strict=True):
        gpu = f", {entry.n_gpu_layers} layers on GPU" if entry.n_gpu_layers else ""
        output.note(f"{member.name}: n_ctx {member.n_ctx}, threads {member.context.n_threads}{gpu}")
    return fuse, load_s


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt from the arguments, a file and a pipe, in the order pipe, file, argument.

    The line break that ends a file or an `echo` is not part of the prompt (as in llama.cpp).

    Raises
    ------
    ConfigError
        There is none, or a source is not UTF-8.
    """
    if prompt is not None and prompt.endswith(".gguf"):
        raise ConfigError(f"'{prompt}' looks like a model, not a prompt; repeat -m for every model")
    parts = []
    try:
        parts.append(output.piped().decode("utf-8"))
        if file is not None:
            parts.append(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"the prompt is not valid UTF-8: {error}") from None
    except OSError as error:
        raise ConfigError(f"cannot read the prompt: {error}") from None
    parts = [part.removesuffix("\n").removesuffix("\r") for part in parts] + [prompt or ""]
    text = "\n".join(part for part in parts if part)
    if not text:
        raise ConfigError("the prompt is empty; give it as an argument, with -f or through a pipe")
    return text
