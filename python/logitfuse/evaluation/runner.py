"""Put every item of a task to every contender, and keep what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from logitfuse.errors import ConfigError, LogitfuseError
from logitfuse.evaluation.table import Outcome, OutcomeTable, outcome_key

if TYPE_CHECKING:
    from logitfuse.evaluation.contenders import Contender

#: Called with rows done, rows to do, and whose turn it is.
Progress = Callable[[int, int, str], object]


class Item(Protocol):
    """A question, or a window of a text."""

    @property
    def id(self) -> str:
        """Unique in its data set."""

    @property
    def group(self) -> str:
        """Its domain."""


T = TypeVar("T", bound=Item)


@dataclass
class Findings:
    """What a contender made of an item.

    Attributes
    ----------
    scores : dict of float
        By metric.
    data : dict
        JSON for readers.
    """

    scores: dict[str, float]
    data: dict[str, Any] = field(default_factory=dict)


class Task(Protocol[T]):
    """How an item is put to a contender, and what counts."""

    @property
    def kind(self) -> str:
        """ "bpb", "choice" or "exact"."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the scores that count; the first is the main one."""

    @property
    def items(self) -> Sequence[T]:
        """What is put."""

    def parameters(self, item: T) -> dict[str, Any]:
        """All besides the contender that determines the findings, as JSON."""

    def put(self, item: T, contender: Contender, *, sample: int = 0) -> Findings:
        """Put an item to a contender; ``sample`` above 0 asks for a random answer."""


@dataclass(frozen=True)
class Run(Generic[T]):
    """A task, those who are to do it, and the table of outcomes.

    Parameters
    ----------
    task : Task
    contenders : sequence of Contender
    table : OutcomeTable
    retry : bool
        Put what failed in an earlier run once more.
    """

    task: Task[T]
    contenders: Sequence[Contender]
    table: OutcomeTable
    retry: bool = False
    _warm: set[str] = field(default_factory=set, init=False, repr=False)

    def finish(self, progress: Progress | None = None) -> list[Outcome]:
        """Do what the table does not have yet, item by item; returns all outcomes of the run.

        A contender that fails on an item is marked there, and the run goes on.

        Raises
        ------
        ConfigError
            The task asks a contender for what it never does.
        OSError
            The disk is full; what was done before is kept.
        """
        outcomes: list[Outcome] = []
        total = len(self.task.items) * len(self.contenders)
        for item in self.task.items:
            for contender in self.contenders:
                if progress is not None:
                    progress(len(outcomes), total, contender.name)
                outcomes.append(self.outcome(item, contender))
        return outcomes

    def outcome(self, item: T, contender: Contender, *, sample: int = 0) -> Outcome:
        """What a contender makes of an item, from the table if it is there."""
        parameters = {"sample": sample, **self.task.parameters(item)}
        key = outcome_key(task=self.task.kind, contender=contender.identity, **parameters)
        name = f"{contender.name} sample {sample}" if sample else contender.name
        known = self.table.get(key)
        if known is not None and (known.error is None or not self.retry):
            return _as_called_now(known, item, name, contender.names)
        if contender.name not in self._warm:
            contender.warm_up()
            self._warm.add(contender.name)
        findings, error = Findings({}), None
        with contender.measured() as cost:
            try:
                findings = self.task.put(item, contender, sample=sample)
            except ConfigError:  # no fault of the item
                raise
            except LogitfuseError as failure:
                error = f"{type(failure).__name__}: {failure}"
        return self.table.append(
            Outcome(
                key=key,
                task=self.task.kind,
                item=item.id,
                group=item.group,
                contender=name,
                scores=findings.scores,
                data={**findings.data, "members": list(contender.names)},
                seconds=cost.seconds,
                tokens=cost.tokens,
                error=error,
            )
        )


def _as_called_now(known: Outcome, item: Item, name: str, members: Sequence[str]) -> Outcome:
    """A row of the table; files, questions and texts may have had other names then."""
    called = dict(zip(known.data.get("members", ()), members, strict=False))
    return replace(
        known,
        item=item.id,
        group=item.group,
        contender=name,
        tokens={called.get(member, member): n for member, n in known.tokens.items()},
    )
