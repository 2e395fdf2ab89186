"""The outcome table: one line of JSON per item and contender, kept from the moment it is known."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from logitfuse.journal import Journal

#: How every line begins; a line that was cut short is known by it.
_VERSION = 1
_START = b'{"version":%d,' % _VERSION

_Number = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class Outcome:
    """What a contender made of an item.

    Attributes
    ----------
    key : str
        Identity of the row; see `outcome_key`.
    task : str
        "bpb", "choice" or "exact".
    item, group : str
        The question or the window of text, and its domain.
    contender : str
        Name of a member, of the ensemble, or ``"NAME sample 3"``.
    scores : dict
        By metric; empty if it failed.  A score that is no finite number is missing.
    data : dict
        Whatever JSON the task keeps.
    seconds : float
    tokens : dict
        Tokens that went through a forward pass, by member.
    error : str or None
        Why it failed.
    """

    key: str
    task: str
    item: str
    group: str
    contender: str
    scores: dict[str, float] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    tokens: dict[str, int] = field(default_factory=dict)
    error: str | None = None


def outcome_key(**parts: Any) -> str:
    """SHA-256 of everything that determines a row.

    Parameters
    ----------
    **parts
        Anything that JSON can hold: hashes of models, the prompt, parameters.  The order of names
        does not matter.

    Raises
    ------
    TypeError, ValueError
        Something that JSON cannot hold, as NaN.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class OutcomeTable:
    """An append-only file of outcomes, locked while it is open; see `Journal`.

    Parameters
    ----------
    path : path
        Made if there is none.  Of rows with one key the last one counts.

    Raises
    ------
    ConfigError
        A file that cannot be opened, that another run writes, or that is damaged beyond a last
        line that was cut short; it is left as it is.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self._rows: dict[str, Outcome] = {}
        self._journal = Journal(path, _START, lambda line: self._take(_decode(line)))

    @property
    def rows(self) -> tuple[Outcome, ...]:
        """All rows, in the order in which their keys came first."""
        return tuple(self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    def get(self, key: str) -> Outcome | None:
        """The row with this key."""
        return self._rows.get(key)

    def append(self, outcome: Outcome) -> Outcome:
        """Put a row on the disk; if that fails, there is nothing of it in the file.

        Parameters
        ----------
        outcome : Outcome
            Its key is new, or that of a row with an error, which it supersedes.

        Returns
        -------
        Outcome
            The row as a later run reads it.

        Raises
        ------
        ValueError
            A key that is there without error; seconds that are no number; a closed table.
        TypeError
            Data that JSON cannot hold.
        OSError
            A full disk, for one.
        """
        known = self._rows.get(outcome.key)
        if known is not None and known.error is None:
            raise ValueError(f"'{self.path}' has the row {outcome.key} already")
        line = _encode(outcome)
        row = _decode(line)
        self._journal.append(line)
        self._take(row)
        return row

    def _take(self, row: Outcome) -> None:
        self._rows[row.key] = row

    def close(self) -> None:
        """Give the file and its lock back; nothing if it is closed."""
        self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Line(BaseModel):
    """What is in a line of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1]
    key: str
    task: str
    item: str
    group: str
    contender: str
    scores: dict[str, _Number | None]
    data: dict[str, Any]
    seconds: _Number
    tokens: dict[str, int]
    error: str | None


def _encode(outcome: Outcome) -> bytes:
    row = _plain({"version": _VERSION} | asdict(outcome))
    text = json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode() + b"\n"


def _plain(value: Any) -> Any:
    """A value as strict JSON in UTF-8 has it: no NaN, no infinity, no half of a surrogate pair."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def _decode(line: bytes) -> Outcome:
    """The outcome in a line; ValueError if it is none."""
    entry = json.loads(line, parse_constant=_no_constant)
    if isinstance(entry, dict) and entry.get("version", _VERSION) != _VERSION:
        raise ValueError(
            f"written by another version of the program (format {entry['version']!r}, "
            f"this one reads {_VERSION})"
        )
    try:
        row = _Line.model_validate(entry).model_dump(exclude={"version"})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from None
    row["scores"] = {name: score for name, score in row["scores"].items() if score is not None}
    return Outcome(**row)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
