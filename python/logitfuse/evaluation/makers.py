"""Built-in tasks: as many questions as wanted, with certain answers, the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from random import Random
from typing import Literal, get_args

from logitfuse.errors import ConfigError
from logitfuse.evaluation import facts, riddles
from logitfuse.evaluation.facts import Draft, Level
from logitfuse.evaluation.questions import Choice, Exact

LEVELS: tuple[Level, ...] = get_args(Level)
#: So many questions in a row that were there before, and there are no others.
_PATIENCE = 2000


@dataclass(frozen=True)
class Maker:
    """A built-in task.

    Attributes
    ----------
    description : str
        One line.
    task : "choice" or "exact"
        Whether its questions are `Choice` or `Exact`.
    draft : callable
        Questions of a level, by chance, without names; perhaps without end.
    levels : tuple of str
    """

    description: str
    task: Literal["choice", "exact"]
    draft: Callable[[Random, Level], Iterator[Draft] | Iterator[Exact]]
    levels: tuple[Level, ...] = LEVELS


#: The tasks by name.
MAKERS: dict[str, Maker] = {
    "capitals": Maker("the capital of a country; hard: of small ones", "choice", facts.capitals),
    "countries": Maker("the country of a capital", "choice", facts.countries),
    "continents": Maker("the continent of a country", "choice", facts.continents),
    "sums": Maker("two summands of 1 to 3 digits", "choice", facts.sums),
    "comparisons": Maker("the largest or smallest of four numbers", "choice", facts.comparisons),
    "categories": Maker("which is an animal; hard: odd one out", "choice", facts.categories),
    "syllogisms": Maker("whether a conclusion follows", "choice", riddles.syllogisms),
    "knights": Maker("who of 2 to 4 people lies", "choice", riddles.knights),
    "chains": Maker("sums and differences of 2 to 5 numbers", "exact", riddles.chains),
    "expressions": Maker("+ - * / and parentheses", "exact", riddles.expressions),
    "word-problems": Maker("arithmetic in 1 to 7 steps, told", "exact", riddles.word_problems),
    "legs": Maker("legs of 2 to 7 kinds of animals", "exact", riddles.legs),
    "sequences": Maker("the next number by a rule", "exact", riddles.sequences),
    "relatives": Maker("who is what to whom in a family", "exact", riddles.relatives),
}


def make(
    name: str, *, n: int, seed: int = 0, level: str = "medium"
) -> tuple[Choice, ...] | tuple[Exact, ...]:
    """Questions of a built-in task, all different.

    Parameters
    ----------
    name : str
        Of `MAKERS`.
    n : int
        How many; the first ones are the same for every `n`.
    seed : int
        Of their choice; the same in every process.
    level : str
        "easy", "medium" or "hard".

    Returns
    -------
    tuple of Choice or of Exact
        With the ids "NAME-LEVEL-0000", ... and the group "NAME-LEVEL".

    Raises
    ------
    ConfigError
        No such task or level, fewer than `n` questions, or the ``eval`` extra is missing.
    """
    maker = MAKERS.get(name)
    if maker is None:
        near = get_close_matches(name, MAKERS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(MAKERS)}"
        raise ConfigError(f"there is no task '{name}'; {hint}", key="task")
    known = next((one for one in maker.levels if one == level), None)
    if known is None:
        raise ConfigError(
            f"'{name}' has no level '{level}'; it has {', '.join(maker.levels)}", key="level"
        )
    if n < 1:
        raise ConfigError(f"n must be at least 1, not {n}", key="n")
    chance = Random(f"logitfuse {name} {known} {seed}")
    drafts = _different(maker.draft(chance, known), n)
    if len(drafts) < n:
        raise ConfigError(
            f"'{name}' has {len(drafts)} questions of level '{level}', fewer than n={n}", key="n"
        )
    group = f"{name}-{level}"
    ids = [f"{group}-{number:04}" for number in range(n)]
    if maker.task == "choice":
        return tuple(
            facts.shuffled(id, group, draft, Random(f"logitfuse {id} {seed}"))
            for id, draft in zip(ids, drafts, strict=True)
            if isinstance(draft, Draft)
        )
    return tuple(
        replace(draft, id=id, group=group)
        for id, draft in zip(ids, drafts, strict=True)
        if isinstance(draft, Exact)
    )


def _different(drafts: Iterator[Draft] | Iterator[Exact], n: int) -> list[Draft | Exact]:
    """The first `n` of which no question was there before; fewer if there are no more."""
    found: dict[tuple[str, frozenset[str]], Draft | Exact] = {}
    repeated = 0
    for draft in drafts:
        options = frozenset((draft.answer, *draft.wrong)) if isinstance(draft, Draft) else ()
        if found.setdefault((draft.question, frozenset(options)), draft) is draft:
            repeated = 0
        else:
            repeated += 1
        if len(found) == n or repeated == _PATIENCE:
            break
    return list(found.values())
