"""``logitfuse eval make``: questions with exact truth, from built-in tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from logitfuse.cli import output
from logitfuse.cli.evaluate.session import save_text
from logitfuse.cli.options import Flag
from logitfuse.evaluation.makers import MAKERS
from logitfuse.evaluation.makers import make as make_questions
from logitfuse.evaluation.questions import as_jsonl


def make(
    name: str | None = None,
    *,
    questions: Annotated[int, Parameter(name=["--questions", "-n"], validator=Number(gte=1))] = 50,
    level: str = "medium",
    seed: int = 0,
    output_file: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    json: Flag = False,
) -> None:
    """Write the questions of a built-in task as JSON lines, or list the tasks.

    The same name, level and seed give the same questions on every machine.

    Examples:

        logitfuse eval make

        logitfuse eval make word-problems --level easy -n 100 -o problems.jsonl

    Parameters
    ----------
    name
        Of the task.
    questions
        How many.
    level
        easy, medium or hard.
    seed
        Other questions of the same kind.
    output_file
        Write to this file instead of stdout.
    json
        List the tasks as JSON.
    """
    if name is None:
        _list(json)
        return
    text = as_jsonl(make_questions(name, n=questions, seed=seed, level=level))
    if output_file is None:
        output.say(text)
    else:
        save_text(output_file, text)


def _list(json: bool) -> None:
    if json:
        output.dump(
            {
                name: {"task": maker.task, "about": maker.description, "levels": maker.levels}
                for name, maker in MAKERS.items()
            }
        )
        return
    rows = [
        (name, f"eval {maker.task}", ", ".join(maker.levels), maker.description)
        for name, maker in MAKERS.items()
    ]
    table = output.table("", ("task", "for", "levels", "questions"), rows)
    for column in table.columns:
        column.justify = "left"  # no figures
    output.out.print(table)
