"""JSON lines that people write, read with every fault named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from logitfuse.errors import ConfigError

T = TypeVar("T")


class BadLine(NamedTuple):
    """A line that was left out, and why."""

    line: int
    reason: str


def read_objects(
    content: bytes, file: Path, parse: Callable[[dict[str, Any], int], T], *, skip_bad: bool = False
) -> tuple[list[T], list[BadLine]]:
    """What the lines of a file say, but for empty ones.

    Parameters
    ----------
    content : bytes
    file : Path
        Where it is from, for messages.
    parse : callable
        Makes something of an object and its line's number; a ConfigError refuses it.
    skip_bad : bool
        Leave lines out that cannot be used.

    Returns
    -------
    things : list
    skipped : list of BadLine

    Raises
    ------
    ConfigError
        A line cannot be used; its number is named.
    """
    things: list[T] = []
    skipped: list[BadLine] = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            things.append(parse(parse_object(line), number))
        except ConfigError as error:
            if not skip_bad:
                hint = "; --skip-bad (skip_bad) leaves such lines out"
                raise ConfigError(
                    f"'{file}' line {number}: {error}{hint}", path=file, key=error.key
                ) from None
            skipped.append(BadLine(number, str(error)))
    return things, skipped


def parse_object(line: bytes) -> dict[str, Any]:
    """The JSON object on a line.

    Raises
    ------
    ConfigError
        Not UTF-8, not JSON, no object, half a character.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8: {error}; save the file as UTF-8") from None
    try:
        data = json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"is not JSON: {error.msg} (column {error.colno}): {_excerpt(text, error.pos)}; "
            "write one object on each line"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"is not usable JSON: {error}: {_excerpt(text, 0)}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"is not a JSON object, but {_excerpt(text, 0)}; write {{...}}")
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"has half a character: {error}; correct the \\u escapes") from None
    return data


def _refuse(literal: str) -> None:
    raise ValueError(f"{literal} is no JSON number")


def _excerpt(text: str, at: int) -> str:
    start = max(0, at - 20)
    return repr(text[start : start + 40].strip())
