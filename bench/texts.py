"""Texts of about ten domains that need no download: `texts`.

Half of them ship with Python (its documentation, its licence, its library) and are the same for
everybody with the same version of it; the others are generated, the same everywhere.
``python bench/texts.py FOLDER`` writes them to files.
"""

# Lists of words read better as words.
# ruff: noqa: SIM905

from __future__ import annotations

import builtins
import heapq
import json
import random
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from types import ModuleType

#: Bytes of a text, or up to three less where that would split a character.
SIZE = 4096

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_NAMES = "Alice Bruno Chloe Daniel Emma Felix Grace Hugo Irene Jonas Karen Liam".split()
_PLACES = ("Berlin", "Lagos", "Lima", "Oslo", "Paris", "Rome", "Seoul", "Toronto", "Vienna")
_THINGS = ("bread", "coffee", "fish", "honey", "paper", "rice", "salt", "shoes", "soap", "tea")
_NOUNS = "farmer teacher river garden letter window horse market doctor bridge child ship".split()
_ADJECTIVES = "old quiet small bright heavy green careful tired young broken".split()
_VERBS = "watched remembered carried found followed painted sold repaired".split()
_WHEN = ("in the morning", "after the rain", "every Sunday", "before dinner", "last winter")


@cache
def texts() -> dict[str, bytes]:
    """UTF-8 texts by domain, in the order in which tables show them."""
    return {domain: _cut(make()) for domain, make in _DOMAINS.items()}


def _cut(text: bytes) -> bytes:
    """The first `SIZE` bytes, in whole characters."""
    if len(text) < SIZE:
        raise ValueError(f"{len(text)} bytes of text are less than {SIZE}")
    return text[:SIZE].decode("utf-8", "ignore").encode()


def _from(text: bytes, offset: int) -> bytes:
    """The text from the first line that begins behind an offset."""
    return text[text.index(b"\n", offset) + 1 :]


def _topic(name: str, offset: int) -> bytes:
    return _from(topics[name].encode(), offset)


def _licence() -> bytes:
    """Python's licence, where its interactive ``license()`` finds it."""
    for name in vars(builtins.license)["_Printer__filenames"]:
        if Path(name).is_file():
            return _from(Path(name).read_bytes(), 3000)
    raise FileNotFoundError("this Python comes without its LICENSE.txt")


def _source(module: ModuleType, offset: int) -> bytes:
    return _from(Path(str(module.__file__)).read_bytes(), offset)


# -- generated -----------------------------------------------------------------------------------


def _lines(domain: str, line: Callable[[random.Random], str], end: str = "\n") -> bytes:
    """As many lines as it takes, from a generator that the domain's name seeds."""
    chance = random.Random(f"logitfuse {domain}")

    def until_full() -> Iterator[str]:
        size = 0
        while size < SIZE:
            made = line(chance) + end
            size += len(made.encode())
            yield made

    return "".join(until_full()).encode()


def in_words(number: int) -> str:
    """A number from 0 to 999 in English words."""
    hundreds, rest = divmod(number, 100)
    tens, ones = divmod(rest, 10)
    below = _ONES[rest] if rest < 20 else _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")
    if not hundreds:
        return below
    return f"{_ONES[hundreds]} hundred" + (f" and {below}" if rest else "")


def _number(chance: random.Random) -> str:
    n = chance.randrange(1, 999)
    return chance.choice(
        (
            f"After {in_words(n - 1)} comes {in_words(n)}.",
            f"The number {n} is written {in_words(n)}.",
            f"Half of {in_words(2 * (n // 2))} is {in_words(n // 2)}.",
        )
    )


def _sum(chance: random.Random) -> str:
    a, b = chance.randrange(2, 100), chance.randrange(2, 100)
    a, b = max(a, b), min(a, b)
    return chance.choice((f"{a} + {b} = {a + b}", f"{a} - {b} = {a - b}", f"{a} * {b} = {a * b}"))


def _row(chance: random.Random) -> str:
    count, price = chance.randrange(1, 40), chance.randrange(50, 900)
    place, thing = chance.choice(_PLACES), chance.choice(_THINGS)
    return f"| {place} | {thing} | {count} | {price / 100:.2f} | {count * price / 100:.2f} |"


def _table() -> bytes:
    head = b"| city | article | count | price | total |\n|---|---|--:|--:|--:|\n"
    return head + _lines("table", _row)


def _record(chance: random.Random) -> str:
    record = {
        "id": chance.randrange(1000, 9999),
        "name": chance.choice(_NAMES),
        "city": chance.choice(_PLACES),
        "active": chance.random() < 0.5,
        "orders": [
            {"article": article, "count": chance.randrange(1, 9)}
            for article in chance.sample(_THINGS, chance.randrange(1, 4))
        ],
    }
    return json.dumps(record)


def _phrase(chance: random.Random) -> str:
    adjective = f"{chance.choice(_ADJECTIVES)} " if chance.random() < 0.6 else ""
    return f"the {adjective}{chance.choice(_NOUNS)}"


def _sentence(chance: random.Random) -> str:
    said = f"{_phrase(chance)} {chance.choice(_VERBS)} {_phrase(chance)}"
    if chance.random() < 0.5:
        said += f" {chance.choice(_WHEN)}"
    if chance.random() < 0.3:
        said += f", and {_phrase(chance)} {chance.choice(_VERBS)} {_phrase(chance)}"
    return f"{said[0].upper()}{said[1:]}."


def _dialogue(chance: random.Random) -> str:
    one, two = chance.sample(_NAMES, 2)
    count, thing, place = chance.randrange(2, 20), chance.choice(_THINGS), chance.choice(_PLACES)
    return (
        f"{one}: How much {thing} did you bring from {place}, {two}?\n"
        f"{two}: {in_words(count).capitalize()} boxes, {one}. Is that enough for {in_words(count)} "
        f"guests?\n{one}: Yes, one box of {thing} for each of them.\n"
    )


_DOMAINS: dict[str, Callable[[], bytes]] = {
    "manual": lambda: _topic("customization", 2000),
    "reference": lambda: _topic("compound", 9000),
    "formats": lambda: _topic("formatstrings", 3000),
    "legal": _licence,
    "code": lambda: _source(textwrap, 4000),
    "algorithms": lambda: _source(heapq, 9000),
    "sentences": lambda: _lines("sentences", _sentence, " "),
    "dialogue": lambda: _lines("dialogue", _dialogue),
    "numbers": lambda: _lines("numbers", _number),
    "arithmetic": lambda: _lines("arithmetic", _sum),
    "table": _table,
    "json": lambda: _lines("json", _record),
}


def main() -> None:
    """Write every text to the folder that is named."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for domain, text in texts().items():
        (folder / f"{domain}.txt").write_bytes(text)


if __name__ == "__main__":
    main()
