"""Which questions are asked, and how: what ``choice`` and ``exact`` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter
from cyclopts.validators import Number

from logitfuse.cli import output
from logitfuse.cli.options import Flag
from logitfuse.errors import ConfigError
from logitfuse.evaluation.makers import MAKERS
from logitfuse.evaluation.makers import make as make_questions
from logitfuse.evaluation.prompts import Asking
from logitfuse.evaluation.questions import Choice, Exact, read_choices, read_exact

#: How many questions a built-in task gives if nobody says.
_MADE = 50
_READ: dict[str, Callable[..., Any]] = {"choice": read_choices, "exact": read_exact}

_group = Group("Questions", sort_key=0)


@Parameter(name="*", group=_group)
@dataclass
class QuestionOptions:
    """Which questions are asked, and how."""

    chat: Flag = False
    "Ask through every member's own chat template."

    system: Annotated[str, Parameter(name=["--system-prompt", "-sys"])] = ""
    "System message; implies --chat."

    shots: Annotated[int, Parameter(validator=Number(gte=0))] = 0
    "Show so many of the first questions with their answers before each other one."

    questions: Annotated[int | None, Parameter(validator=Number(gte=1))] = None
    "Ask so many, the first behind those that are shown; default: all, of a built-in task 50."

    task_seed: int = 0
    "Other questions of a built-in task."

    skip_bad: Flag = False
    "Leave lines out that cannot be used, and count them."

    def read(self, data: str, kind: str) -> tuple[str, Sequence[Any], Sequence[Any]]:
        """Name of a file or a built-in task, the questions that are shown, those that are asked.

        Raises
        ------
        ConfigError
        """
        name, items = self._made(data, kind) or self._read(data, kind)
        shots, n = self.shots, self.questions
        if shots >= len(items):
            some = output.some(len(items), "question")
            raise ConfigError(f"--shots {shots} leaves none of the {some}")
        return name, items[:shots], items[shots : None if n is None else shots + n]

    def asking(self, template: str, shown: Sequence[Any], answer: Callable[[Any], str]) -> Asking:
        """The way to ask, with the answers of the questions that are shown."""
        plain = Asking(template)
        examples = tuple((plain.fill(q.question, _options(q)), answer(q)) for q in shown)
        return Asking(template, self.chats, self.system, examples)

    @property
    def chats(self) -> bool:
        """Whether the members' templates are used."""
        return self.chat or bool(self.system)

    def _made(self, data: str, kind: str) -> tuple[str, Sequence[Any]] | None:
        """Questions of a built-in task, if it is one and no file."""
        task, _, level = data.partition(":")
        if task not in MAKERS or Path(data).exists():
            return None
        if MAKERS[task].task != kind:
            other = MAKERS[task].task
            raise ConfigError(f"'{task}' is for logitfuse eval {other}, not {kind}")
        n = self.shots + (self.questions or _MADE)
        made = make_questions(task, n=n, seed=self.task_seed, level=level or "medium")
        return data.replace(":", "-"), made

    def _read(self, data: str, kind: str) -> tuple[str, Sequence[Any]]:
        if not Path(data).exists():
            known = ", ".join(name for name, maker in MAKERS.items() if maker.task == kind)
            raise ConfigError(f"there is no file '{data}'; built-in tasks: {known}")
        found = _READ[kind](Path(data), skip_bad=self.skip_bad)
        if found.skipped:
            lines = [str(bad.line) for bad in found.skipped]
            some = output.some(len(lines), "line")
            output.note(f"{some} cannot be used: {output.listed(lines)}")
        return found.name, found.items


def _options(question: Choice | Exact) -> Sequence[str]:
    """What is there to choose from."""
    return question.options if isinstance(question, Choice) else question.labels
