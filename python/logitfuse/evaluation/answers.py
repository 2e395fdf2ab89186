"""What an answer says: one key for all its spellings, so that answers can be compared and counted.

An answer that cannot be read has no key: it abstains, and is never counted as an answer of its own.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any, Literal, get_args

from logitfuse.errors import ConfigError
from logitfuse.evaluation.numerals import LONGEST, numbers, spelled

AnswerKind = Literal["number", "choice", "label", "bool", "json", "text"]
KINDS: tuple[AnswerKind, ...] = get_args(AnswerKind)


def canonical(text: str, kind: AnswerKind, labels: Sequence[str] = ()) -> str | None:
    """The key of the answer that a text gives; equal answers have equal keys.

    The answer is sought behind the last of ``answer is``, ``answer:``, ``####`` and ``\\boxed{}``
    that is followed by one, up to the end of that line (or in the next one, if the line is over).

    ==========  ==================================================================================
    ``number``  there the first number, else the last one of the text; "0.75" for 3/4, .750, 75e-2;
                $, %, € and thousands separators are ignored, and a comma is no decimal point
    ``choice``  there a letter; else one alone on a line, else ``X.`` or ``X)`` at the very
                beginning and on no other line, else the last ``(X)`` or ``option X``; "a" and "I"
                within a sentence are words, "A or B" is no answer; `labels` limits the letters
    ``label``   there the first of `labels`, else one at the very beginning, else the last one;
                the longest where several fit, none within a word or behind "not"
    ``bool``    "true" or "false": there the first of yes, no, true, false; else at the very
                beginning, else the last that ends a clause ("Therefore, no.")
    ``json``    the first value, in a fence, alone, or an object or array in prose; with sorted
                keys and no white space; 1 equals 1.0
    ``text``    that line, else the whole text: NFKC, without case, punctuation, articles
    ==========  ==================================================================================

    Returns
    -------
    str or None
        None if there is no answer of this kind.  ``canonical(key, ...)`` is the key again.
    """
    return _READERS[kind](text, labels)


def matches(text: str, gold: str, kind: AnswerKind, labels: Sequence[str] = ()) -> bool | None:
    """Whether a text gives the answer `gold`; None if it gives none that can be read.

    Raises
    ------
    ConfigError
        `gold` cannot be read.
    """
    right = canonical(gold, kind, labels)
    if right is None:
        raise ConfigError(f"the right answer {gold!r} is no {kind}", key="answer")
    key = canonical(text, kind, labels)
    return None if key is None else key == right


def infer_kind(answer: Any) -> AnswerKind:
    """The kind of a right answer: a JSON value, or a string that may spell one."""
    if isinstance(answer, bool):
        return "bool"
    if isinstance(answer, int | float):
        return "number"
    if not isinstance(answer, str):
        return "json"
    text = answer.strip()
    if re.fullmatch(r"[-−+]?[$€£]?[\d.,]*\d(?:[eE][-+]?\d+|\s*/\s*\d+)?\s*%?", text):
        return "number"
    if text.casefold() in _BOOLS:
        return "bool"
    if re.fullmatch(r"\(?[A-Z]\)?", text):
        return "choice"
    if text[:1] in ("{", "[") and _json(text, ()) is not None:
        return "json"
    return "text"


# -- where the answer is ---------------------------------------------------------------------------

_CUE = re.compile(
    r"\banswers?[\s*_]*(?:(?:is|are|was|would\s+be|should\s+be|must\s+be)\b(?!\s+not\b)[\s*_]*:?|[:=])"
    r"|####|\\boxed\s*\{",
    re.IGNORECASE,
)
_STYLES = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit)\s*\{([^{}]*)\}")


#: How many of the last cues are followed, and how many characters: answers are short.
_CUES, _REACH = 20, 5000


def _cued(text: str) -> Iterator[str]:
    """What stands behind each cue, the last one first."""
    for found in reversed(list(_CUE.finditer(text))[-_CUES:]):
        rest = text[found.end() : found.end() + _REACH]
        if found[0].endswith("{"):
            yield _braced(rest)
            continue
        lines = [line for line in rest.split("\n", 20)[:20] if line.strip(" \t\r*_:$")]
        if lines:
            yield lines[0]


def _braced(text: str) -> str:
    """Up to the brace that closes one opened before."""
    depth = 1
    for at, char in enumerate(text):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return text[:at]
    return text.split("\n", 1)[0]


def _first(texts: Iterator[str], read: Callable[[str], str | None]) -> str | None:
    return next((key for key in map(read, texts) if key is not None), None)


# -- numbers ---------------------------------------------------------------------------------------

#: The left side of "3 + 4 = 7".
_SUM = re.compile(r"[\s\d.,+\-−–*/×÷·^()$€£%{}]*=")


def _number(text: str, _: Sequence[str]) -> str | None:
    def first(line: str) -> str | None:
        while found := _SUM.match(line):
            line = line[found.end() :]
        return _key(numbers(line)[:1])

    return _first(_cued(text), first) or _key(numbers(text)[-1:])


def _key(found: list[Fraction]) -> str | None:
    return spelled(found[0]) if found else None


# -- letters ---------------------------------------------------------------------------------------

#: A letter that stands for itself, not "C++", "X-ray", "A or B", "E. coli".
_ALONE = r"(?![\w+'’&/-])(?!\s*(?:/|&|\bor\b|\band\b)\s*[\[({\"'*]*[A-Z]\b)"
_OPEN, _CLOSE = r"[\s*_\"'“‘`(\[{$]*", r"[)\]}\"'”’`*_$]"
_AFTER_CUE = re.compile(
    rf"{_OPEN}(?:(?:option|choice)\s+)?{_OPEN}([A-Za-z]){_ALONE}(.*)", re.DOTALL
)
#: What may follow "The answer is A" or "I" and leaves it a letter.
_REASON = re.compile(rf"\s*(?:$|{_CLOSE}|[.,;:!?—–-]|(?:because|since|as|for|which|is|was)\b)")
_BARE = re.compile(rf"\s*(?:$|{_CLOSE}|[.,;:!?])")
_LINE = re.compile(r"^[^\w\n]*([A-Za-z])[^\w\n+]*$", re.MULTILINE)
_START = re.compile(r"^[*_ \t]{0,4}([A-Z])[.):](?=[\s*]|$)", re.MULTILINE)
_MENTION = re.compile(r"[(\[]([A-Z])[)\]]|\b(?:[Oo]ption|[Cc]hoice)\s+([A-Z])\b(?![-+'’])")


def _choice(text: str, labels: Sequence[str]) -> str | None:
    text = _STYLES.sub(r"\1", text)
    allowed = {label.strip().upper() for label in labels}

    def letter(*found: str | None) -> str | None:
        key = next((part.upper() for part in found if part), None)
        return key if key and (not allowed or key in allowed) else None

    def after_cue(line: str) -> str | None:
        found = _AFTER_CUE.match(line)
        if not found:
            return None
        bare = found[1] if found[1] in "AI" or found[1].islower() else ""
        sentence = (_BARE if bare.islower() else _REASON) if bare else None
        return letter(found[1]) if sentence is None or sentence.match(found[2]) else None

    if key := _first(_cued(text), after_cue):
        return key
    if lines := _LINE.findall(text):
        return letter(lines[-1])
    text = text.strip()
    if len(starts := set(_START.findall(text))) == 1 and _START.match(text):
        return letter(*starts)
    mentions = _MENTION.findall(text)
    return letter(*mentions[-1]) if mentions else None


# -- labels and truth values -----------------------------------------------------------------------


def _label(text: str, labels: Sequence[str]) -> str | None:
    known = sorted({_plain(label) for label in labels} - {""}, key=lambda one: (-len(one), one))
    plain = _plain(text)
    if not known or plain in known:
        return plain if known else None
    pattern = re.compile(rf"(?<!\w)(?<!not )(?<!n't )(?:{'|'.join(map(re.escape, known))})(?!\w)")

    def first(line: str) -> str | None:
        found = pattern.search(_plain(line))
        return found[0] if found else None

    if key := _first(_cued(_STYLES.sub(r"\1", text)), first):
        return key
    mentions = list(pattern.finditer(plain))
    if not mentions:
        return None
    opening = not re.search(r"\w", plain[: mentions[0].start()])
    return mentions[0 if opening else -1][0]


def _plain(text: str) -> str:
    """Without case, with single spaces."""
    return " ".join(_folded(text).split())


def _folded(text: str) -> str:
    """NFKC without case (Unicode's toNFKC_Casefold)."""
    once = unicodedata.normalize("NFKC", unicodedata.normalize("NFD", text).casefold())
    return unicodedata.normalize("NFKC", once.casefold())


_BOOLS = {"yes": "true", "no": "false", "true": "true", "false": "false"}
_TRUTH = re.compile(r"(?<!\bnot )\b(yes|no|true|false)\b", re.IGNORECASE)
_OPENING_TRUTH = re.compile(r"\W*(yes|no|true|false)\b(?!-)", re.IGNORECASE)
#: "Therefore, no.", but not "no dogs bark" or "yes or no?".
_CLOSING_TRUTH = re.compile(
    r"(?<!\bnot )(?<!\bor )\b(yes|no|true|false)(?=\s*(?:[.!,;:)\]}*\"'”’]|$))",
    re.IGNORECASE | re.MULTILINE,
)


def _bool(text: str, _: Sequence[str]) -> str | None:
    def first(line: str) -> str | None:
        found = _TRUTH.search(line)
        return _BOOLS[found[1].lower()] if found else None

    text = _STYLES.sub(r"\1", text)
    if key := _first(_cued(text), first):
        return key
    closing = _CLOSING_TRUTH.findall(text)
    opening = _OPENING_TRUTH.match(text)
    found = opening[1] if opening else closing[-1] if closing else None
    return _BOOLS[found.lower()] if found else None


# -- JSON ------------------------------------------------------------------------------------------

_FENCE = re.compile(r"```[\w+-]*[ \t]*\r?\n(.*?)```", re.DOTALL)
#: Places in prose where a value is sought.
_MOST_STARTS = 1000


class _Digits(str):
    """A JSON number, spelled in one way."""


def _digits(literal: str) -> _Digits:
    key = _number(literal, ()) if len(literal) <= 2 * LONGEST else None
    if key is None:
        raise ValueError("too long")
    return _Digits(key)


def _refuse(literal: str) -> None:
    raise ValueError(f"{literal} is not JSON")


_DECODER = json.JSONDecoder(parse_float=_digits, parse_int=_digits, parse_constant=_refuse)


def _json(text: str, _: Sequence[str]) -> str | None:
    for part in [*_FENCE.findall(text), text]:
        if (key := _value(part.strip(), 0, whole=True)) is not None:
            return key
    starts = [found.start() for found in re.finditer(r"[{\[]", text)][:_MOST_STARTS]
    return next((key for at in starts if (key := _value(text, at)) is not None), None)


def _value(text: str, at: int, *, whole: bool = False) -> str | None:
    try:
        value, end = _DECODER.raw_decode(text, at)
        return None if whole and end < len(text) else _dump(value)
    except (ValueError, RecursionError):
        return None


def _dump(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{','.join(f'{json.dumps(key)}:{_dump(value[key])}' for key in sorted(value))}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_dump, value))}]"
    return str(value) if isinstance(value, _Digits) else json.dumps(value)


# -- free text -------------------------------------------------------------------------------------

_INSIDE = re.compile(r"(?<=\d)[.,:/](?=\d)|(?:(?<=\s)|^)[-−](?=[\d.])")
_JOINTS = "-‐‑‒–—/_"


def _text(text: str, _: Sequence[str]) -> str | None:
    key: str | None = text
    while key != (found := _squeezed(key or "")):  # a cue that only now shows is followed, too
        key = found
    return key or None


def _squeezed(text: str) -> str:
    return _first(_cued(text), lambda line: _words(line) or None) or _words(text)


def _words(text: str) -> str:
    """Without case, punctuation (but within numbers) and articles."""
    folded = _folded(_STYLES.sub(r"\1", text))
    kept = {found.start() for found in _INSIDE.finditer(folded)}
    chars = (
        char if at in kept or not _is_mark(char) else " " if char in _JOINTS else ""
        for at, char in enumerate(folded)
    )
    return " ".join(word for word in "".join(chars).split() if word not in ("a", "an", "the"))


def _is_mark(char: str) -> bool:
    return unicodedata.category(char)[0] == "P"


_READERS: dict[str, Callable[[str, Sequence[str]], str | None]] = {
    "number": _number,
    "choice": _choice,
    "label": _label,
    "bool": _bool,
    "json": _json,
    "text": _text,
}
