"""Carry out a task: load, put every item to every contender, sum up, write, print."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from cyclopts import Group, Parameter
from rich.markup import escape

from logitfuse.cli import output
from logitfuse.cli.evaluate.tables import print_summary
from logitfuse.cli.options import Flag
from logitfuse.cli.run import load
from logitfuse.config import FuseConfig
from logitfuse.errors import ConfigError
from logitfuse.evaluation.beliefs import by_block, weight_curves
from logitfuse.evaluation.bpb import BpbTask
from logitfuse.evaluation.consistency import SelfConsistency, sample_of, seconds_of
from logitfuse.evaluation.runner import Item, Run, Task
from logitfuse.evaluation.summary import Summary, summarise
from logitfuse.evaluation.table import Outcome, OutcomeTable
from logitfuse.machine import machine, peak_memory

if TYPE_CHECKING:
    from logitfuse.evaluation.contenders import Contender
    from logitfuse.strategies.engine import Engine

T = TypeVar("T", bound=Item)

_group = Group("Outcomes", sort_key=3)


@Parameter(name="*", group=_group)
@dataclass
class OutcomeOptions:
    """Where outcomes are kept, and what is done with those that are there."""

    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None
    "Folder for the outcomes, the report and the plots; default: NAME.eval."

    retry: Flag = False
    "Put again what failed in an earlier run."

    json: Flag = False
    "Print JSON instead of tables."


@dataclass(frozen=True)
class Session:
    """One evaluation.

    Parameters
    ----------
    name : str
        Of the data set.
    title : str
    config : FuseConfig
    options : OutcomeOptions
    """

    name: str
    title: str
    config: FuseConfig
    options: OutcomeOptions

    def carry_out(self, task: Task[T], *, resample: bool = False) -> None:
        """Do what the folder does not have yet; exits with 1 if something failed."""
        from logitfuse.evaluation.contenders import contenders

        folder = self._folder()
        with OutcomeTable(folder / "outcomes.jsonl") as table:
            engine, _ = load(self.config)
            try:
                with output.working("hashing the models"):
                    entered = contenders(self.config, engine, exact=isinstance(task, BpbTask))
                outcomes = self._run(Run(task, entered, table, self.options.retry), resample)
            finally:
                engine.close()
        summary = self._summary(task, entered, engine, outcomes)
        files = write(summary, outcomes, folder)
        if self.options.json:
            output.dump({**summary.as_dict(), "files": [str(file) for file in files]})
        else:
            print_summary(summary)
            output.note(f"written: {', '.join(str(file) for file in files)}")
        failed = sum(outcome.error is not None for outcome in outcomes)
        if failed:
            first = next(outcome for outcome in outcomes if outcome.error is not None)
            output.note(
                f"{failed} of {len(outcomes)} failed, the first: {first.contender} on "
                f"{first.item}: {first.error} (--retry tries them again)"
            )
            sys.exit(1)

    def _folder(self) -> Path:
        folder = self.options.output or Path(f"{self.name}.eval")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot write to '{folder}': {error.strerror}") from None
        return folder

    def _run(self, run: Run[T], resample: bool) -> list[Outcome]:
        from logitfuse.evaluation.contenders import ENSEMBLE

        known = len(run.table)
        try:
            with output.progress() as bar:
                line = bar.add_task("", total=None)
                outcomes = run.finish(
                    lambda done, total, who: bar.update(
                        line, completed=done, total=total, description=escape(who)
                    )
                )
                members = [one for one in run.contenders if one.kind == "member"]
                if resample and len(run.contenders) > len(members):
                    # Over all items, which is kind to it: the ensemble is compared with the best.
                    best = max(members, key=lambda one: _right(outcomes, one.name))
                    budget = seconds_of(outcomes, ENSEMBLE)
                    again = f"{escape(best.name)} again"
                    bar.update(line, completed=0, total=budget, description=again)
                    outcomes += self._ask_again(
                        run, best, budget, lambda spent: bar.update(line, completed=spent)
                    )
        except (KeyboardInterrupt, OSError) as error:
            new = len(run.table) - known
            kept = f"{new} new outcomes are kept in '{run.table.path}'; the same command goes on"
            if isinstance(error, OSError):
                raise ConfigError(
                    f"{error.strerror or error}: {kept}", path=run.table.path
                ) from error
            output.note(kept)
            raise
        return outcomes

    def _ask_again(
        self, run: Run[T], best: Contender, budget: float, progress: Callable[[float], object]
    ) -> list[Outcome]:
        """Random answers of the best member for as long as the ensemble took."""
        items = {item.id: item for item in run.task.items}
        rounds = SelfConsistency(items, budget)
        drawn = []
        while (asked := rounds.next_sample()) is not None:
            outcome = run.outcome(items[asked[0]], best, sample=asked[1])
            rounds.add(sample_of(outcome))
            drawn.append(outcome)
            progress(rounds.spent)
        return drawn

    def _summary(
        self,
        task: Task[T],
        entered: Sequence[Contender],
        engine: Engine,
        outcomes: Sequence[Outcome],
    ) -> Summary:
        from logitfuse.evaluation.contenders import ENSEMBLE

        members = [one.name for one in entered if one.kind == "member"]
        lower = isinstance(task, BpbTask)
        return summarise(
            by_block(outcomes) if lower else outcomes,
            task=task.kind,
            title=f"{self.title}: {engine.name}",
            metrics=task.metrics,
            members=members,
            ensemble=ENSEMBLE if len(members) > 1 else members[0],
            lower_is_better=lower,
            machine=machine(),
            peak_memory=peak_memory(),
            curves=weight_curves(outcomes, ENSEMBLE, entered[-1].names) if lower else (),
        )


def _right(outcomes: Sequence[Outcome], contender: str) -> float:
    return sum(o.scores.get("right", 0.0) for o in outcomes if o.contender == contender)


def save_text(path: Path, text: str) -> None:
    """Write a file that was asked for, and say so.

    Raises
    ------
    ConfigError
        It cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write '{path}': {error.strerror}", path=path) from None
    output.note(f"written: {path}")


def write(summary: Summary, outcomes: Sequence[Outcome], folder: Path) -> list[Path]:
    """The summary, the report, and the plots if matplotlib is there."""
    from logitfuse.evaluation.html import report

    files = [folder / "summary.json", folder / "report.html"]
    plots: dict[str, str] = {}
    try:
        for title, (png, svg) in _plots(summary, folder).items():
            files += [png, svg]
            plots[title] = svg.read_text(encoding="utf-8")
    except ConfigError as error:  # matplotlib is missing
        output.note(f"no plots: {error}")
    text = json.dumps(summary.as_dict(), ensure_ascii=False, indent=1, allow_nan=False)
    files[0].write_text(text + "\n", encoding="utf-8")
    files[1].write_text(report(summary, outcomes, plots=plots), encoding="utf-8")
    return files


def _plots(summary: Summary, folder: Path) -> dict[str, tuple[Path, Path]]:
    from logitfuse.evaluation.plots import group_plot, pareto_plot, save, weight_plot

    made = {"Score and cost": save(pareto_plot(summary), folder / "pareto")}
    if summary.curves:
        made["Bits per byte by weight"] = save(weight_plot(summary), folder / "weights")
    if len({group for row in summary.rows for group in row.by_group}) > 1:
        made["By group"] = save(group_plot(summary), folder / "groups")
    return made
