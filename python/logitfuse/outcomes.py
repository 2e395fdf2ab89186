"""How members answered questions: one line for each question and member."""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from logitfuse.errors import ConfigError


def read_outcomes(
    path: str | PathLike[str], names: Sequence[str] | None = None
) -> tuple[list[str], NDArray[np.float64]]:
    """Read what members thought of the right answers.

    Parameters
    ----------
    path : path
        JSON lines ``{"question": id, "member": name, "logprob": nats}``: the log-probability that
        the member gave the right answer among the options.
    names : sequence of str, optional
        The members in the order wanted; that of the file by default.

    Returns
    -------
    names : list of str
    logprobs : float64 array, shape ``[questions, members]``

    Raises
    ------
    ConfigError
        No such file, a malformed or double line (its number is named), a member without an answer
        to a question, other members than `names`.
    """
    file = Path(path)
    answers: dict[str, dict[str, float]] = {}
    members: list[str] = list(names or ())
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the outcomes '{file}': {error}", path=file) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            question, member, logprob = _parse(line)
        except ValueError as error:
            raise ConfigError(f"line {number} of '{file}': {error}", path=file) from None
        if names is not None and member not in members:
            raise ConfigError(
                f"line {number} of '{file}': there is no member '{member}' among "
                f"{', '.join(members)}",
                path=file,
            )
        if member not in members:
            members.append(member)
        known = answers.setdefault(question, {})
        if member in known:
            raise ConfigError(
                f"line {number} of '{file}': '{member}' answers question {question} again",
                path=file,
            )
        known[member] = logprob
    for question, known in answers.items():
        for member in members:
            if member not in known:
                raise ConfigError(
                    f"'{file}' has no answer of '{member}' to question {question}", path=file
                )
    rows = [[known[member] for member in members] for known in answers.values()]
    return members, np.array(rows, np.float64).reshape(len(rows), len(members))


def _parse(line: str) -> tuple[str, str, float]:
    entry = json.loads(line)
    if not isinstance(entry, dict):
        raise ValueError("not an object with 'question', 'member' and 'logprob'")
    for key in ("question", "member", "logprob"):
        if key not in entry:
            raise ValueError(f"'{key}' is missing")
    logprob = entry["logprob"]
    if isinstance(logprob, bool) or not isinstance(logprob, int | float) or not logprob <= 1e-6:
        raise ValueError(f"'logprob' must be a number <= 0, not {logprob!r}")
    if not isinstance(entry["member"], str):
        raise ValueError(f"'member' must be a name, not {entry['member']!r}")
    return json.dumps(entry["question"], ensure_ascii=False), entry["member"], float(logprob)
