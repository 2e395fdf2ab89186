"""Built-in tasks: the same for a seed, all different, and right."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reasoning_gym
from logitfuse.errors import ConfigError
from logitfuse.evaluation import extras, riddles
from logitfuse.evaluation.answers import matches
from logitfuse.evaluation.makers import LEVELS, MAKERS, make
from logitfuse.evaluation.questions import Choice, Exact, as_jsonl, read_choices, read_exact

EVERY = [(name, level) for name in MAKERS for level in LEVELS]


def exact(name: str, n: int, level: str) -> list[tuple[str, str]]:
    """Questions and answers."""
    return [(one.question, one.answer) for one in make(name, n=n, level=level)]


@pytest.mark.parametrize(("name", "level"), EVERY)
def test_questions(name: str, level: str, tmp_path: Path) -> None:
    items = make(name, n=50, level=level)
    assert [one.id for one in items] == [f"{name}-{level}-{at:04}" for at in range(50)]
    assert {one.group for one in items} == {f"{name}-{level}"}
    assert items[:20] == make(name, n=20, level=level)
    path = tmp_path / "items.jsonl"
    path.write_text(as_jsonl(items), encoding="utf-8")
    for one in items:
        assert one.question == one.question.strip() != ""
        assert "\\" not in one.question
        assert "np." not in one.question
    if MAKERS[name].task == "choice":
        assert read_choices(path).items == items
        assert len({(one.question, frozenset(one.options)) for one in items}) == 50
        assert {type(one) for one in items} == {Choice}
        assert {type(option) for one in items for option in one.options} == {str}
        assert all(len(set(one.options)) == len(one.options) for one in items)
        assert {one.answer for one in items} == set(range(len(items[0].options)))
    else:
        assert read_exact(path).items == items
        assert len({one.question for one in items}) == 50
        assert {type(one) for one in items} == {Exact}
        assert all(matches(one.answer, one.answer, one.kind, one.labels) for one in items)


@pytest.mark.parametrize("name", MAKERS)
def test_seeds_differ(name: str) -> None:
    first, second = (make(name, n=30, seed=seed) for seed in (0, 1))
    assert first != second
    assert first == make(name, n=30, seed=0)


def test_levels_differ() -> None:
    for name in MAKERS:
        assert len({make(name, n=5, level=level)[0].question for level in LEVELS}) == 3


def test_another_process_makes_the_same() -> None:
    code = (
        "import random, numpy; random.seed(); numpy.random.seed()\n"
        "from logitfuse.evaluation.makers import *\n"
        "print([make(name, n=5, seed=3, level=level) for name in MAKERS for level in LEVELS])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    own = [make(name, n=5, seed=3, level=level) for name in MAKERS for level in LEVELS]
    assert outputs == {f"{own}\n"}


def next_of_numpy() -> str:
    """State of the global generator."""
    return repr(np.random.get_state())  # noqa: NPY002


def test_the_global_generators_are_left_alone() -> None:
    before = random.getstate(), next_of_numpy()
    for name in MAKERS:
        make(name, n=3)
    assert (random.getstate(), next_of_numpy()) == before


class TestRefusals:
    def test_too_many(self) -> None:
        with pytest.raises(ConfigError, match="'capitals' has 60 questions of level 'easy', fewer"):
            make("capitals", n=61, level="easy")
        with pytest.raises(ConfigError, match="'chains' has 200 questions of level 'easy'"):
            make("chains", n=1000, level="easy")

    def test_names(self) -> None:
        with pytest.raises(ConfigError, match="no task 'capital'; did you mean 'capitals'"):
            make("capital", n=1)
        with pytest.raises(ConfigError, match="no task 'zzz'; known: capitals, countries"):
            make("zzz", n=1)
        with pytest.raises(ConfigError, match="no level 'simple'; it has easy, medium, hard"):
            make("sums", n=1, level="simple")
        with pytest.raises(ConfigError, match="n must be at least 1, not 0"):
            make("sums", n=0)

    def test_missing_extra(self) -> None:
        with pytest.raises(ConfigError, match=r"plots needs 'no_such'; pip install 'logitfuse\[e"):
            extras.need("no_such.part", "plots")


@pytest.mark.parametrize("level", LEVELS)
class TestTruth:
    """Answers worked out in another way."""

    def test_arithmetic(self, level: str) -> None:
        for question, answer in exact("chains", 90, level) + exact("expressions", 90, level):
            formula = re.fullmatch(r"What is ([\d\s()+*/-]+)\?", question)[1]
            value = eval(re.sub(r"\d+", r"Fraction(\g<0>)", formula), {"Fraction": Fraction})
            assert value == Fraction(answer), question

    def test_legs(self, level: str) -> None:
        legs = {
            **dict.fromkeys(("snake", "sea slug", "jellyfish", "flatworm", "leeche"), 0),
            **dict.fromkeys(("chicken", "bird", "human", "duck"), 2),
            **dict.fromkeys(("dog", "cat", "cow", "horse", "lion", "elephant", "giraffe"), 4),
            **dict.fromkeys(("tiger", "deer", "sheep"), 4),
            **dict.fromkeys(("spider", "scorpion"), 8),
            **dict.fromkeys(("crab", "lobster", "shrimp"), 10),
            **dict.fromkeys(("woodlouse", "woodlice"), 14),
            "leech": 0,
        }
        for question, answer in exact("legs", 100, level):
            listed = re.fullmatch(r"How many legs do (.*) have in total\?", question)[1]
            herd = [part.split(" ", 1) for part in re.split(", | and ", listed)]
            # All others are insects.
            total = sum(
                int(n) * legs.get(animal, legs.get(animal.removesuffix("s"), 6))
                for n, animal in herd
            )
            assert total == int(answer), question

    def test_relatives(self, level: str) -> None:
        for question, answer in exact("relatives", 100, level):
            names = re.search(r"(?:What|How|relation) is (\w+)(?: related)? to (\w+)\?", question)
            assert answer == relation(question, *names.groups()), question

    def test_sequences_are_no_riddles(self, level: str) -> None:
        for question, answer in exact("sequences", 50, level):
            shown = [int(part) for part in re.findall(r"-?\d+", question)]
            assert 5 <= len(shown) <= 7
            assert len({*shown, int(answer)}) > 1

    def test_syllogisms(self, level: str) -> None:
        """By sets of at most three beings, each of any kinds; worlds may be empty, or not."""
        for one in make("syllogisms", n=40, level=level):
            said = re.findall(
                r"(?:\d\. |that:\n)(All|No|Some) (\w+) are (not )?(\w+)", one.question
            )
            kinds = sorted({name for part in said for name in (part[1], part[3])})
            beings = [dict(zip(kinds, is_, strict=True)) for is_ in product((0, 1), repeat=3)]
            worlds = [
                [being for being, there in zip(beings, some, strict=True) if there]
                for some in product((0, 1), repeat=8)
            ]
            *premises, conclusion = said
            possible = [w for w in worlds if all(true(part, w) for part in premises)]
            follows = all(true(conclusion, world) for world in possible)
            full = [w for w in possible if all(any(being[k] for being in w) for k in kinds)]
            assert follows == all(true(conclusion, world) for world in full)
            assert one.options[one.answer] == ("Yes" if follows else "No"), one

    def test_knights(self, level: str) -> None:
        for one in make("knights", n=50, level=level):
            people = re.search(r"inhabitants: (.*?)\.", one.question)[1]
            names = people.replace("and ", "").split(", ")
            truths = [
                tuple(stated(part) in KNIGHTS for part in option.replace(" and ", ", ").split(", "))
                for option in one.options
            ]
            assert all(len(truth) == len(names) for truth in truths)
            assert len(set(truths)) == 4
            assert not re.search("Format|heros", one.question)

    def test_word_problems(self, level: str) -> None:
        for question, answer in exact("word-problems", 100, level):
            assert not re.search(r"\d\.\d{4}", question)
            assert re.fullmatch(r"-?\d+(\.\d+)?", answer)


KNIGHTS = {"knight", "pioneer", "saint", "hero", "angel", "altruist", "sage"}


def stated(sentence: str) -> str:
    """The kind in "Emily is a knight"."""
    return sentence.split(" ")[-1]


def true(statement: tuple[str, ...], world: list[dict[str, int]]) -> bool:
    """Whether "All A are B" and its like hold."""
    quantifier, subject, negated, predicate = statement
    rows = [bool(being[predicate]) is not bool(negated) for being in world if being[subject]]
    return all(rows) if quantifier == "All" else any(rows) is (quantifier == "Some")


def relation(text: str, one: str, other: str) -> str:
    """What one is to the other, from who is married and who are whose children."""
    parents: dict[str, tuple[str, str]] = {}
    couples: list[tuple[str, str]] = []
    for sentence in text.split("\n")[0].split("."):
        if couple := re.search(r"(\w+) is married to (\w+)", sentence):
            couples.append(couple.groups())
        elif "called" in sentence:
            for child in re.findall(r"\w+", sentence.split("called")[1].replace(" and ", " ")):
                parents[child] = couples[-1]
    woman = one in riddles._WOMEN
    grand = [old for parent in parents.get(other, ()) for old in parents.get(parent, ())]
    uncles = {
        name
        for parent in parents.get(other, ())
        for name in parents
        if name != parent and parents[name] == parents.get(parent)
    }
    own_uncles = {
        name
        for parent in parents.get(one, ())
        for name in parents
        if name != parent and parents[name] == parents.get(parent)
    }
    if {one, other} in map(set, couples):
        return "wife" if woman else "husband"
    if one in parents.get(other, ()):
        return "mother" if woman else "father"
    if other in parents.get(one, ()):
        return "daughter" if woman else "son"
    if one in grand:
        return "grandmother" if woman else "grandfather"
    if one in parents and parents[one] == parents.get(other):
        return "sister" if woman else "brother"
    if one in uncles:
        return "aunt" if woman else "uncle"
    if other in own_uncles:
        return "niece" if woman else "nephew"
    return "none of these"


def test_knights_have_one_solution() -> None:
    """The generator's own, as its statements mean."""

    def holds(statement: Any, truth: tuple[bool, ...]) -> bool:
        head, *rest = statement
        if head in ("telling-truth", "lying"):
            return truth[rest[0]] is (head == "telling-truth")
        values = [holds(part, truth) for part in rest]
        return {
            "not": not values[0],
            "and": all(values),
            "or": any(values),
            "->": not values[0] or values[-1],
            "<=>": values[0] is values[-1],
        }[head]

    for people in (2, 3, 4):
        made = reasoning_gym.create_dataset("knights_knaves", seed=5, size=50, n_people=people)
        for entry in made:
            said = entry["metadata"]["statements"]
            assert [
                truth
                for truth in product((True, False), repeat=people)
                if all(holds(one, truth) is truth[at] for at, one in enumerate(said))
            ] == [tuple(entry["metadata"]["solution"])]


@pytest.mark.parametrize(
    ("solution", "right"),
    [
        ("3 + 4 = 7\n#### 7", True),
        ("So 3 apples + 4 apples = 8 apples", False),
        ("$1,000 x 7/100 = $70", True),
        ("81 / 18 = 4", False),
        ("42 ÷ 6 = 7, and 0.54*40 = 21", False),
        ("$45000 + $63000 + $280000 = $388000", True),
        ("12 apples/box * 2 boxes = 24", True),
        ("2 / 0 = 5", False),
        ("no numbers", True),
    ],
)
def test_adds_up(solution: str, right: bool) -> None:
    assert riddles.adds_up(solution) is right


def test_follows() -> None:
    cats, birds = ("All", "lions", "", "cats"), ("No", "cats", "", "birds")
    for exist in (False, True):
        assert riddles.follows([cats, birds], ("No", "lions", "", "birds"), exist)
        assert not riddles.follows([cats, birds], ("Some", "cats", "", "lions"), False)
    some = ("Some", "cats", "", "lions")
    assert riddles.follows([cats, birds], some, True)
