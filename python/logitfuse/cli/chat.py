"""``logitfuse chat``: a conversation."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter

from logitfuse.cli import output
from logitfuse.cli.answer import stream_answer
from logitfuse.cli.options import ConstraintOptions, Flag, ModelOptions, SamplingOptions
from logitfuse.cli.report import run_report, run_tables
from logitfuse.cli.run import load
from logitfuse.errors import LogitfuseError
from logitfuse.strategies.base import Request

_HELP = "/stats: what the last answer took   /reset: start anew   /exit: leave (or Ctrl-D)"


def chat(
    *,
    system: Annotated[str | None, Parameter(name=["--system-prompt", "-sys"])] = None,
    predict: Annotated[
        int, Parameter(name=["--predict", "--n-predict", "-n"], allow_leading_hyphen=True)
    ] = -1,
    show_members: Flag = False,
    models: ModelOptions | None = None,
    sampling: SamplingOptions | None = None,
    constraint: ConstraintOptions | None = None,
) -> None:
    """Talk to the ensemble.  Ctrl-C stops an answer, Ctrl-D leaves.

    Examples:

        logitfuse chat -m a.gguf -m b.gguf

        logitfuse chat -e pair.toml -sys "Answer in one sentence." --temp 0.3

    Parameters
    ----------
    system
        System message.
    predict
        Most tokens per answer; 0 or less: until the end.
    show_members
        Behind each token, show what members that wanted another would have said.
    """
    models, sampling = models or ModelOptions(), sampling or SamplingOptions()
    config = models.config()
    params = sampling.params(config.sampling)
    answers = constraint.constraint() if constraint else None
    fuse, load_s = load(config)
    output.note(_HELP)
    opening = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    try:
        while (line := _ask()) is not None:
            if line == "/exit":
                break
            if line == "/reset":
                messages = list(opening)
            elif line == "/stats":
                report = run_report(fuse, text="", finish_reason=None, load_s=load_s)
                output.err.print(run_tables(report))
            elif line.startswith("/"):
                output.note(_HELP)
            elif line:
                messages.append({"role": "user", "content": line})
                most = predict if predict > 0 else None
                request = Request(messages, params, most, constraint=answers)
                try:
                    answer = stream_answer(fuse, request, show_members=show_members)
                except LogitfuseError as error:  # say it, forget the turn, go on
                    output.fail(error)
                    messages.pop()
                    continue
                if isinstance(answer.error, LogitfuseError):
                    output.fail(answer.error)
                messages.append({"role": "assistant", "content": answer.text})
    finally:
        fuse.close()


def _ask() -> str | None:
    """The next line of the user; None at the end of the input."""
    try:
        if sys.stdin.isatty():
            output.err.print("[bold]>[/bold] ", end="")
        return input().strip()
    except EOFError:
        return None
    except KeyboardInterrupt:
        output.err.print()
        return ""
