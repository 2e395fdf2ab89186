"""What the command line prints: answers to stdout, all else to stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TextIO

from cyclopts import CycloptsError, UnusedCliTokensError
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from logitfuse.config import explain
from logitfuse.strategies.base import Step


def _open_missing_streams() -> None:
    """Whoever started us may have closed some (``<&-``, services)."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115


def _width(stream: TextIO) -> int | None:
    """Tables in files and pipes are not cut to 80 columns."""
    return None if stream.isatty() else 160


_open_missing_streams()
#: Colour only on a terminal and without NO_COLOR; both are rich's own rules.
err = Console(stderr=True, highlight=False, soft_wrap=True, width=_width(sys.stderr))
out = Console(highlight=False, soft_wrap=True, width=_width(sys.stdout))


def fail(error: Exception) -> None:
    """One line on stderr."""
    if isinstance(error.__cause__, ValidationError):  # of a command's settings
        error = explain(error.__cause__)
    message = str(error)
    if isinstance(error, UnusedCliTokensError):
        message += " Quote a prompt of several words; repeat -m for every model."
    if isinstance(error, CycloptsError):
        message += " (see logitfuse --help)"
    sys.stderr.write(f"logitfuse: {' '.join(message.split())}\n")


def note(message: str) -> None:
    """A remark on stderr."""
    err.print(Text(message, style="dim"))


class NoteHandler(logging.Handler):
    """Shows the package's warnings as remarks."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        note(record.getMessage())


def say(text: str) -> None:
    """A piece of the answer, at once; what the stream's encoding lacks is escaped."""
    encoding = sys.stdout.encoding
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


def piped() -> bytes:
    """What comes through a pipe; nothing from a terminal."""
    return b"" if sys.stdin.isatty() else sys.stdin.buffer.read()


def drop_stdout() -> None:
    """Let nothing else be written to a closed stdout, not even at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def dump(data: Any) -> None:
    """One JSON document on stdout."""
    say(json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def working(what: str) -> AbstractContextManager[Any]:
    """A spinner on stderr while something takes long (terminals only)."""
    return err.status(what)


def progress() -> Progress:
    """Bars on stderr (terminals only), gone when all is done."""
    return Progress(console=err, transient=True, disable=not err.is_terminal)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table whose first column is a name and whose others are figures."""
    heading = Text(title, style="bold") if title else None  # no str: names may look like markup
    made = Table(title=heading, title_justify="left", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        made.add_column(Text(column), justify="left" if i == 0 else "right", style=None)
    for row in rows:
        made.add_row(*map(Text, row))
    return made


def shown(unit: bytes | None) -> str:
    """A unit for people: quoted, control characters visible."""
    if unit is None:
        return "-"
    return repr(unit.decode("utf-8", "replace")) if unit else "<end>"


def dissent(step: Step, names: Sequence[str]) -> Text:
    """What the members that wanted something else would have said, dim behind the token."""
    others = [
        f"{name}: {shown(wish)}"
        for name, wish in zip(names, step.wishes, strict=True)
        if wish is not None and wish != step.unit
    ]
    return Text(f"{{{', '.join(others)}}}" if others else "", style="dim italic")


def percent(share: float) -> str:
    """A share for people."""
    return f"{100 * share:.1f} %"


def some(n: int, what: str) -> str:
    """A number of things."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def listed(names: Sequence[str]) -> str:
    """The first of them."""
    return ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")
