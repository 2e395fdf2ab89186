"""``logitfuse eval trace``: what fusion changed, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from logitfuse.cli import output
from logitfuse.cli.evaluate.session import save_text
from logitfuse.cli.options import Flag, ModelOptions, SamplingOptions
from logitfuse.cli.run import load, read_prompt
from logitfuse.errors import ConfigError
from logitfuse.evaluation.trace import trace as trace_steps
from logitfuse.strategies.base import Request

#: Changed steps that are listed, and characters of text before each.
_LISTED, _BEFORE = 20, 40
#: Each member's own candidates that a step lists.
_CANDIDATES = 5


def trace(
    prompt: str | None = None,
    *,
    file: Annotated[Path | None, Parameter(name=["--file", "-f"])] = None,
    given: str | None = None,
    given_file: Path | None = None,
    chat: Flag = False,
    predict: Annotated[
        int, Parameter(name=["--predict", "--n-predict", "-n"], validator=Number(gte=1))
    ] = 128,
    page: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    json: Flag = False,
    models: ModelOptions | None = None,
    sampling: SamplingOptions | None = None,
) -> None:
    """What fusion changed, step by step: in an answer, or in a text that is given.

    Examples:

        logitfuse eval trace "The capital of France is" -n 32 --temp 0 -m a.gguf -m b.gguf

        logitfuse eval trace "2 + 2 =" --given " 4" -m a.gguf -m b.gguf -o trace.html

    Parameters
    ----------
    prompt
        Text to continue, or with --chat a message to answer.
    file
        Read the prompt from a file.
    given
        Do not generate: score this reply.
    given_file
        The same, from a file.
    chat
        Put the prompt through every member's own chat template.
    predict
        Most tokens to generate.
    page
        Write a page that shows every step to this file.
    json
        Print every step as JSON.
    """
    from logitfuse.evaluation.contenders import name_apart

    config = (models or ModelOptions()).config()
    text = read_prompt(prompt, file)
    reply = _given(given, given_file)
    request = Request(
        [{"role": "user", "content": text}] if chat else text,
        sampling=(sampling or SamplingOptions()).params(config.sampling),
        max_tokens=predict,
        member_top=_CANDIDATES,
    )
    engine, _ = load(config)
    name_apart(engine.members)
    try:
        with output.working("answering" if reply is None else "scoring"):
            traced = trace_steps(engine, request, reply)
    finally:
        engine.close()
    if page is not None:
        from logitfuse.evaluation.html import trace_page

        save_text(page, trace_page({**traced, "prompt": text}))
    if json:
        output.dump(traced)
    else:
        _print(traced)


def _given(text: str | None, path: Path | None) -> str | None:
    if path is None:
        return text
    if text is not None:
        raise ConfigError("give either --given or --given-file")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read '{path}': {error}", path=path) from None


def _print(traced: Mapping[str, Any]) -> None:
    summary, steps, names = traced["summary"], traced["steps"], traced["members"]
    output.say(traced["text"] + "\n")
    shares = ", ".join(
        f"{name} {output.percent(summary[f'{name}_share'])}"
        for name in ("fused", "agree", "certain", "led")
        if summary[f"{name}_share"]
    )
    bits = _figure(summary["bits_per_byte"])
    output.out.print(f"{len(steps)} steps: {shares}; {bits} bits per byte")
    new = output.percent(summary["new_share"])
    output.out.print(f"said what no member would have said first: {new} of the steps")
    rows = [
        (
            name,
            output.percent(summary[f"{name}_differs_share"]),
            _figure(summary[f"{name}_bits_per_byte"]),
        )
        for name in names
    ]
    output.out.print(output.table("", ("member", "would have differed", "bits per byte"), rows))
    changed = _changed(steps)
    if changed:
        shown = changed[:_LISTED]
        title = f"Where somebody would have differed ({len(shown)} of {len(changed)})"
        output.out.print(output.table(title, ("behind", "said", *names), shown))


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _changed(steps: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The end of the text before each such step, what was said, and who wished what."""
    rows, before = [], ""
    for step in steps:
        wishes = [member["wish"] for member in step["members"]]
        if any(wish is not None and wish != step["text"] for wish in wishes):
            said = output.shown(step["text"].encode())
            others = [output.shown(None if w is None else w.encode()) for w in wishes]
            rows.append((repr(before[-_BEFORE:]), said, *others))
        before += step["text"]
    return rows
