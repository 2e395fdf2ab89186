"""Data sets of questions: JSON lines, read with every fault named.

::

    {"question": "What is the capital of France?", "options": ["Lyon", "Paris"], "answer": "B"}
    {"question": "What is 3/4 of 20?", "answer": 15}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from logitfuse.config import explain
from logitfuse.errors import ConfigError
from logitfuse.evaluation.answers import AnswerKind, canonical, infer_kind
from logitfuse.jsonl import BadLine, read_objects

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Choice:
    """A question of which the right answer is one of its options.

    Attributes
    ----------
    id : str
        Its name, unique in its data set.
    group : str
        Domain, subject: what results are told apart by.
    options : tuple of str
        At least two, all different.
    answer : int
        Index of the right one.
    """

    id: str
    group: str
    question: str
    options: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Exact:
    """A question of which the answer is generated, read and compared.

    Attributes
    ----------
    answer : str
        The right one; JSON for ``kind="json"``.
    kind : AnswerKind
        How answers are read: see `logitfuse.evaluation.answers.canonical`.
    labels : tuple of str
        All answers there are, for ``kind="label"``.
    """

    id: str
    group: str
    question: str
    answer: str
    kind: AnswerKind
    labels: tuple[str, ...] = ()


Q = TypeVar("Q", Choice, Exact)


@dataclass(frozen=True)
class Dataset(Generic[Q]):
    """Questions of a file.

    Attributes
    ----------
    name : str
        The file's, without folder and suffix.
    items : tuple of Choice or of Exact
        At least one.
    skipped : tuple of BadLine
        Lines left out.
    sha256 : str
        Of the file, hexadecimal.
    """

    name: str
    items: tuple[Q, ...]
    skipped: tuple[BadLine, ...]
    sha256: str


def read_choices(path: str | PathLike[str], *, skip_bad: bool = False) -> Dataset[Choice]:
    """Read questions with options.

    Parameters
    ----------
    path : path
        JSON lines ``{"question", "options": [...], "answer", "id"?, "group"?}``; other keys are
        ignored.  ``answer`` is an index (from 0), a letter ("A" is the first) or an option's text.
        A question without ``id`` is called after its line; without ``group`` it is in "all".
    skip_bad : bool
        Leave faulty lines out, and say so in `Dataset.skipped`.

    Raises
    ------
    ConfigError
        No such file, no questions in it, or a line that cannot be used: no JSON object, a missing
        or empty field, fewer than two options or equal ones, an answer that is none of them or
        may be two of them, an id that was there before.
    """
    return _read(Path(path), _choice, skip_bad)


def read_exact(path: str | PathLike[str], *, skip_bad: bool = False) -> Dataset[Exact]:
    """Read questions whose answers are generated.

    Parameters
    ----------
    path : path
        JSON lines ``{"question", "answer", "kind"?, "labels"?, "id"?, "group"?}``; other keys are
        ignored.  ``answer`` is any JSON value but null; its ``kind`` is ``label`` if there are
        labels, else what the answer looks like (`logitfuse.evaluation.answers.infer_kind`).
    skip_bad : bool
        Leave faulty lines out, and say so in `Dataset.skipped`.

    Raises
    ------
    ConfigError
        As `read_choices`; or an answer that cannot be read as its kind.
    """
    return _read(Path(path), _exact, skip_bad)


def as_jsonl(items: Iterable[Choice | Exact]) -> str:
    """Lines that `read_choices` or `read_exact` read back as the same questions.

    Raises
    ------
    ConfigError
        A question that would not be read back as it is.
    """
    return "".join(f"{_line(item)}\n" for item in items)


def _line(item: Choice | Exact) -> str:
    own = {"id": item.id, "group": item.group, "question": item.question}
    reader: Callable[[dict[str, Any], str], Choice | Exact]
    if isinstance(item, Choice):
        # Of numbers the index might be one, of letters the text: one of them is clear.
        answers = (item.options[item.answer], item.answer)
        forms = [{**own, "options": list(item.options), "answer": answer} for answer in answers]
        reader = _choice
    else:
        forms = [{**own, "answer": item.answer, "kind": item.kind, "labels": list(item.labels)}]
        if not item.labels:
            del forms[0]["labels"]
        reader = _exact
    reason: Exception | None = None
    for form in forms:
        try:
            if reader(form, "") == item:
                return json.dumps(form, ensure_ascii=False)
        except ConfigError as error:
            reason = error
    raise ConfigError(f"question '{item.id}' cannot be written: {reason or 'white space'}")


# -- lines -----------------------------------------------------------------------------------------


class _Line(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    id: str | int | None = None
    group: str | int | None = None
    question: str

    @field_validator("id", "group", mode="before")
    @classmethod
    def _named(cls, name: Any) -> Any:
        if isinstance(name, bool) or not isinstance(name, str | int | None):
            raise ValueError("must be a text or a whole number")
        if isinstance(name, str) and not name.strip():
            raise ValueError("is empty; leave the key out instead")
        return name

    @field_validator("question")
    @classmethod
    def _asks(cls, question: str) -> str:
        if not question.strip():
            raise ValueError("is empty; write the question")
        return question.strip()

    def names(self, default: str) -> tuple[str, str]:
        """Id and group."""
        id = default if self.id is None else str(self.id)
        return id, "all" if self.group is None else str(self.group)


class _ChoiceLine(_Line):
    options: list[str]
    answer: Any

    @field_validator("options")
    @classmethod
    def _differ(cls, options: list[str]) -> list[str]:
        options = [option.strip() for option in options]
        if len(options) < 2:
            raise ValueError(f"there must be at least two, and there are {len(options)}")
        for at, option in enumerate(options):
            if not option:
                raise ValueError(f"option {at} is empty; write or remove it")
            if option in options[:at]:
                raise ValueError(f"option {options.index(option)} and {at} are both {option!r}")
        return options

    @field_validator("answer")
    @classmethod
    def _resolve(cls, answer: Any, info: ValidationInfo) -> int:
        options = info.data.get("options")
        if options is None:
            return 0  # what is wrong with them is said
        return _index(answer, options)


def _index(answer: Any, options: list[str]) -> int:
    """Of the option that is meant."""
    forms = f"an index from 0 to {len(options) - 1}, a letter"
    if len(options) <= len(_LETTERS):
        forms += f" from A to {_LETTERS[len(options) - 1]}"
    forms += " or the text of an option"
    if isinstance(answer, bool) or not isinstance(answer, int | str):
        raise ValueError(f"must be {forms}")
    text = str(answer).strip()
    found = {options.index(text)} if text in options else set()
    if isinstance(answer, int):
        if 0 <= answer < len(options):
            found.add(answer)
        elif found:
            raise ValueError(f"is no index; write it as the text {text!r} if that option is meant")
    elif len(text) == 1 and text in _LETTERS[: len(options)]:
        found.add(_LETTERS.index(text))
    if not found:
        raise ValueError(f"is none of the options {options!r}; it must be {forms}")
    if len(found) > 1:
        first, second = (options[at] for at in sorted(found))
        raise ValueError(f"may be the option {first!r} or {second!r}; write it in another form")
    return found.pop()


class _ExactLine(_Line):
    labels: list[str] = []
    kind: AnswerKind | None = None
    answer: Any

    @field_validator("labels")
    @classmethod
    def _differ(cls, labels: list[str]) -> list[str]:
        keys = [canonical(label, "label", [label]) for label in labels]
        for at, key in enumerate(keys):
            if key is None:
                raise ValueError(f"label {at} is empty; write or remove it")
            if key in keys[:at]:
                raise ValueError(f"{labels[keys.index(key)]!r} and {labels[at]!r} are the same")
        return labels

    @field_validator("answer")
    @classmethod
    def _given(cls, answer: Any) -> Any:
        if answer is None or (isinstance(answer, str) and not answer.strip()):
            raise ValueError("is empty; write the right answer")
        return answer


def _choice(data: dict[str, Any], default: str) -> Choice:
    line = _checked(_ChoiceLine, data)
    return Choice(*line.names(default), line.question, tuple(line.options), line.answer)


def _exact(data: dict[str, Any], default: str) -> Exact:
    line = _checked(_ExactLine, data)
    kind = line.kind or ("label" if line.labels else infer_kind(line.answer))
    if kind == "label" and not line.labels:
        raise ConfigError("'labels' is missing; name all answers there are", key="labels")
    given = line.answer
    answer = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    if canonical(answer, kind, line.labels) is None:
        among = f" of {line.labels!r}" if line.labels else ""
        raise ConfigError(
            f"'answer' cannot be read as a {kind}{among}: {answer!r}; correct it or its 'kind'",
            key="answer",
        )
    return Exact(*line.names(default), line.question, answer, kind, tuple(line.labels))


L = TypeVar("L", bound=_Line)


def _checked(model: type[L], data: dict[str, Any]) -> L:
    needed = [name for name, field in model.model_fields.items() if field.is_required()]
    for key in needed:
        if key not in data:
            raise ConfigError(
                f"'{key}' is missing; a line needs {', '.join(needed)} and has "
                f"{', '.join(map(str, data)) or 'nothing'}",
                key=key,
            )
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise explain(error) from None


# -- files -----------------------------------------------------------------------------------------


def _read(file: Path, parse: Callable[[dict[str, Any], str], Q], skip_bad: bool) -> Dataset[Q]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the data set '{file}': {error}", path=file) from error
    known: set[str] = set()

    def parse_new(data: dict[str, Any], number: int) -> Q:
        item = parse(data, f"line {number}")
        if item.id in known:
            raise ConfigError(f"the id {item.id!r} was there before; give it another", key="id")
        known.add(item.id)
        return item

    items, skipped = read_objects(content, file, parse_new, skip_bad=skip_bad)
    if not items:
        first = f"; line {skipped[0].line}: {skipped[0].reason}" if skipped else ""
        left = f"all its {len(skipped)} lines are faulty" if skipped else "the file is empty"
        raise ConfigError(f"'{file}' has no question: {left}{first}", path=file)
    digest = hashlib.sha256(content).hexdigest()
    return Dataset(file.stem, tuple(items), tuple(skipped), digest)
