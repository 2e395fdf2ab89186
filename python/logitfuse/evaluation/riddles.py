"""Arithmetic and logic from the generators of ``reasoning-gym`` (Apache-2.0), checked again.

What a generator gets wrong is left out: word problems whose own solution does not add up (a
division that was rounded down), syllogisms whose answer is not the one that all models of the
premises give, sequences that halve odd numbers, relatives by marriage (the wrong way round).
"""

# Lists of words read better as words.
# ruff: noqa: SIM905

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from itertools import product
from random import Random
from typing import Any

from logitfuse.evaluation.extras import need
from logitfuse.evaluation.facts import Draft, Level
from logitfuse.evaluation.questions import Exact

#: Questions that a generator is asked for at most.
_MOST = 100_000


def _entries(name: str, chance: Random, **options: Any) -> Iterator[dict[str, Any]]:
    gym = need("reasoning_gym", "this task")
    made = gym.create_dataset(name, seed=chance.getrandbits(31), size=_MOST, **options)
    return (made[index] for index in range(_MOST))


def _number(question: str, answer: str) -> Exact:
    return Exact("", "", question, answer, "number")


# -- arithmetic ------------------------------------------------------------------------------------


def chains(chance: Random, level: Level) -> Iterator[Exact]:
    """What is 12 + 7 - 30?"""
    terms, digits = {"easy": (2, 1), "medium": (3, 2), "hard": (5, 3)}[level]
    given = {"min_terms": terms, "max_terms": terms, "min_digits": digits, "max_digits": digits}
    for one in _entries("chain_sum", chance, **given):
        yield _number(f"What is {one['metadata']['expression']}?", one["answer"])


def expressions(chance: Random, level: Level) -> Iterator[Exact]:
    """What is ( 12 + 7 ) * 3?"""
    terms, digits = {"easy": (2, 1), "medium": (3, 1), "hard": (4, 2)}[level]
    given = {"min_terms": terms, "max_terms": terms, "max_digits": digits}
    for one in _entries("basic_arithmetic", chance, allow_negation=False, **given):
        shown = re.sub(r"(?<=\() | (?=\))", "", one["metadata"]["expression"])
        if not re.search(r"[-+] -|\(\(|\)\)|^\([^()]*\)$", shown):
            yield _number(f"What is {shown}?", one["answer"])


_PLURALS = {
    **{word: word for word in ("sheep", "deer", "shrimp", "jellyfish")},
    **{"woodlouse": "woodlice", "praying mantis": "praying mantises", "leech": "leeches"},
    **{"butterfly": "butterflies", "firefly": "fireflies", "cockroach": "cockroaches"},
}


def legs(chance: Random, level: Level) -> Iterator[Exact]:
    """How many legs do 3 dogs and 2 spiders have in total?"""
    kinds, most = {"easy": (2, 5), "medium": (4, 10), "hard": (6, 15)}[level]
    given = {"min_animals": kinds, "max_animals": kinds, "max_instances": most}
    for one in _entries("leg_counting", chance, **given):
        herd = one["metadata"]["animals"]
        if "starfish" not in herd:  # whose arms are no legs
            parts = [
                f"{n} {animal if n == 1 else _PLURALS.get(animal, animal + 's')}"
                for animal, n in herd.items()
            ]
            listed = f"{', '.join(parts[:-1])} and {parts[-1]}"
            yield _number(f"How many legs do {listed} have in total?", one["answer"])


def sequences(chance: Random, level: Level) -> Iterator[Exact]:
    """What is the next number: 3, 6, 12, 24?"""
    steps = {"easy": (1,), "medium": (2,), "hard": (3, 4)}[level]
    given = {"min_terms": 5, "max_terms": 7, "max_complexity": 3}
    for one in _entries("number_sequence", chance, **given):
        rule = one["metadata"]["rule"]
        if "halve" not in rule and rule.count(" then ") + 1 in steps:
            shown = one["question"].removesuffix(", ?")
            yield _number(f"What is the next number in the sequence {shown}?", one["answer"])


# -- word problems ---------------------------------------------------------------------------------

_DECIMAL = r"\d+(?:\.\d+)?"
_EQUATION = re.compile(
    rf"((?:{_DECIMAL} ?[-+*/] ?)+{_DECIMAL}) ?= ?({_DECIMAL})(?![\d/.]| ?[-+*/])"
)
_REWRITTEN = (
    (r"(?<=\d),(?=\d{3})", ""),
    (r"×|(?<=\d) ?x ?(?=[$\d])", "*"),
    ("÷", "/"),
    (r"/ ?[A-Za-z]+|[A-Za-z$]+", ""),  # units, and all other words
    (" +", " "),
)


def word_problems(chance: Random, level: Level) -> Iterator[Exact]:
    """A class has 100 students, 60% of them ..."""
    steps = {"easy": range(3), "medium": range(3, 4), "hard": range(4, 20)}[level]
    for one in _entries("gsm_symbolic", chance):
        solution = one["metadata"]["answer_cot"]
        question = one["question"]
        endless = re.search(r"\.\d{4}", question)
        if solution.count("=") in steps and not endless and adds_up(solution):
            yield _number(question, one["answer"])


def adds_up(solution: str) -> bool:
    """Whether no equation of numbers in a text is wrong."""
    for pattern, replacement in _REWRITTEN:
        solution = re.sub(pattern, replacement, solution)
    return all(_sum(left) == Fraction(right) for left, right in _EQUATION.findall(solution))


def _sum(text: str) -> Fraction | None:
    """Value of numbers joined by ``+ - * /``; None for a division by 0."""
    parts = re.findall(rf"{_DECIMAL}|[-+*/]", text)
    terms = [Fraction(parts[0])]
    for operator, part in zip(parts[1::2], parts[2::2], strict=True):
        number = Fraction(part)
        if operator in "+-":
            terms.append(number if operator == "+" else -number)
        elif operator == "*":
            terms[-1] *= number
        elif not number:
            return None
        else:
            terms[-1] /= number
    return sum(terms, Fraction(0))


# -- logic -----------------------------------------------------------------------------------------

RELATIVES = (
    *("mother", "father", "sister", "brother", "daughter", "son", "wife", "husband"),
    *("grandmother", "grandfather", "aunt", "uncle", "niece", "nephew"),
)
#: Names that say who is a woman.
_MEN = "James John Robert Michael William David Richard Joseph Thomas Charles Peter Daniel".split()
_WOMEN = (
    "Mary Patricia Jennifer Linda Elizabeth Barbara Susan Jessica Sarah Karen Emma Lisa".split()
)


def relatives(chance: Random, level: Level) -> Iterator[Exact]:
    """Anna is married to Tom. They have a child called Lisa. What is Lisa to Tom?"""
    least, most = {"easy": (3, 4), "medium": (5, 6), "hard": (7, 10)}[level]
    given = {"min_family_size": least, "max_family_size": most}
    names = {"male_names": _MEN, "female_names": _WOMEN}
    for one in _entries("family_relationships", chance, **given, **names):
        if one["answer"] in RELATIVES:
            yield Exact("", "", one["question"], one["answer"], "label", RELATIVES)


_STATEMENT = re.compile(r"^(?:\d+\. )?(All|No|Some) (\w+) are (not )?(\w+)\??$", re.MULTILINE)
Statement = tuple[str, str, str, str]


def syllogisms(chance: Random, level: Level) -> Iterator[Draft]:
    """All lions are cats. No cats are birds. Does it follow that no lions are birds?"""
    options: dict[Level, dict[str, Any]] = {
        "easy": {"allow_some": False, "allow_some_not": False},
        "medium": {"allow_some_not": False},
        "hard": {"inversion_probability": 0.0},
    }
    entries = _entries("syllogism", chance, invalid_ratio=0.5, **options[level])
    while True:
        wanted = chance.choice(("Yes", "No"))  # as many of these as of those
        for one in entries:
            found: list[Statement] = _STATEMENT.findall(one["question"])
            premises, conclusion = found[:-1], found[-1]
            answers = {follows(premises, conclusion, exist) for exist in (False, True)}
            if answers == {wanted == "Yes"} and one["answer"] == wanted:
                question = one["question"].removesuffix("\n(Answer Yes or No)")
                yield Draft(question, wanted, ["No" if wanted == "Yes" else "Yes"])
                break
        else:
            return


def follows(premises: list[Statement], conclusion: Statement, exist: bool) -> bool:
    """Whether a conclusion is true in all models of the premises.

    Parameters
    ----------
    premises, conclusion : (quantifier, subject, "not " or "", predicate)
    exist : bool
        As in Aristotle's logic there is at least one of every kind.
    """
    names = sorted({name for one in (*premises, conclusion) for name in (one[1], one[3])})
    shapes = tuple(
        (quantifier, names.index(subject), bool(negated), names.index(predicate))
        for quantifier, subject, negated, predicate in (*premises, conclusion)
    )
    return _follows(shapes, len(names), exist)


@cache
def _follows(shapes: tuple[tuple[str, int, bool, int], ...], kinds: int, exist: bool) -> bool:
    beings = list(product((False, True), repeat=kinds))  # of which kinds somebody is
    for there in product((False, True), repeat=len(beings)):
        world = [being for being, is_there in zip(beings, there, strict=True) if is_there]
        if exist and not all(any(being[kind] for being in world) for kind in range(kinds)):
            continue
        *premises, conclusion = (_holds(shape, world) for shape in shapes)
        if all(premises) and not conclusion:
            return False
    return True


def _holds(shape: tuple[str, int, bool, int], world: list[tuple[bool, ...]]) -> bool:
    quantifier, subject, negated, predicate = shape
    said = [being[predicate] != negated for being in world if being[subject]]
    return {"All": all(said), "No": not any(said), "Some": any(said)}[quantifier]


def knights(chance: Random, level: Level) -> Iterator[Draft]:
    """Knights tell the truth and knaves lie. A says that B is a knave. ... Who is what?"""
    people = {"easy": 2, "medium": 3, "hard": 4}[level]
    for one in _entries("knights_knaves", chance, n_people=people):
        about = one["metadata"]
        terms = about["knight_knave_terms"]

        def told(truth: tuple[bool, ...], about: Any = about, terms: Any = terms) -> str:
            kinds = [terms["a_knight" if true else "a_knave"] for true in truth]
            parts = [f"{who} is {kind}" for who, kind in zip(about["names"], kinds, strict=True)]
            return f"{', '.join(parts[:-1])} and {parts[-1]}"

        right = tuple(map(bool, about["solution"]))
        others = [one for one in product((False, True), repeat=people) if one != right]
        question = re.sub(r" \(Format your answer.*", "", one["question"], flags=re.DOTALL)
        question = question.replace("heros", "heroes").replace("Heros", "Heroes")
        yield Draft(question, told(right), [told(one) for one in chance.sample(others, 3)])
