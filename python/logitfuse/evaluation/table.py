"""The outcome table: one line of JSON per item and contender, kept from the moment it is known.

A row is on the disk when `OutcomeTable.append` returns.  A run that was killed goes on where it
was; a line that the kill cut short is dropped.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from logitfuse.errors import ConfigError

if sys.platform != "win32":
    import fcntl

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
    """An append-only file of outcomes, locked while it is open.

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
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        try:
            self._file: int | None = os.open(self.path, flags, 0o666)
        except OSError as error:
            raise ConfigError(f"cannot open the table '{path}': {error}", path=self.path) from error
        try:
            self._lock(self._file)
            self._rows, self._size = self._read()
            os.ftruncate(self._file, self._size)
        except BaseException:
            self.close()
            raise

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
        if self._file is None:
            raise ValueError(f"the table '{self.path}' is closed")
        known = self._rows.get(outcome.key)
        if known is not None and known.error is None:
            raise ValueError(f"'{self.path}' has the row {outcome.key} already")
        line = _encode(outcome)
        row = _decode(line)
        self._write(self._file, line)
        self._rows[row.key] = row
        return row

    def close(self) -> None:
        """Give the file and its lock back; nothing if it is closed."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _lock(self, file: int) -> None:
        if sys.platform == "win32":
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another run is writing '{self.path}'; wait for it, or give this run a table of "
                "its own",
                path=self.path,
            ) from None
        except OSError:  # a file system without locks
            pass

    def _read(self) -> tuple[dict[str, Outcome], int]:
        """All rows by key, and the bytes that they take."""
        rows: dict[str, Outcome] = {}
        size = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    if not _cut_short(line):
                        self._refuse(number, "not a row of outcomes")
                    break
                try:
                    row = _decode(line)
                except ValueError as error:
                    self._refuse(number, str(error))
                rows[row.key] = row
                size += len(line)
        return rows, size

    def _refuse(self, number: int, reason: str) -> NoReturn:
        raise ConfigError(
            f"line {number} of '{self.path}': {reason}; delete the line and its row is made again, "
            "or give the run another table",
            path=self.path,
        )

    def _write(self, file: int, line: bytes) -> None:
        try:
            written = os.write(file, line)
            while written < len(line):  # the disk is full, which the next try says
                written += os.write(file, line[written:])
            os.fsync(file)
        except BaseException:
            try:
                os.ftruncate(file, self._size)
            except OSError:
                self.close()  # a row behind half a row would be lost
            raise
        self._size += len(line)


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


def _cut_short(line: bytes) -> bool:
    """Whether this can be what a kill, or a power cut (zeros), left of a row."""
    return line.startswith(_START) or _START.startswith(line) or not line.strip(b"\0")
