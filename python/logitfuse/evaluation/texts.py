"""Texts in files and folders, for `logitfuse.evaluation.bpb`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from logitfuse.errors import ConfigError

#: Suffixes of what is read in a folder.
SUFFIXES = (
    ".txt",
    ".md",
    ".rst",
    ".py",
    ".c",
    ".cpp",
    ".h",
    ".json",
    ".csv",
    ".html",
    ".tex",
    ".log",
)


class Texts(NamedTuple):
    """What was read.

    Attributes
    ----------
    texts : dict of bytes
        By name: that of the file, or its path within the folder that was given; the path as it
        was given where two texts would be called alike.
    skipped : tuple of str
        Files of folders that are empty or not UTF-8.
    """

    texts: dict[str, bytes]
    skipped: tuple[str, ...]


def read_texts(paths: Sequence[Path]) -> Texts:
    """Read files, and the texts in folders, each once.

    Of a folder those files are read that have one of `SUFFIXES`, also below it; hidden ones and
    what is in folders of outcomes (``NAME.eval``) are left out.

    Raises
    ------
    ConfigError
        A file that cannot be read, is empty or not UTF-8; a folder without texts.
    """
    read: dict[Path, tuple[str, Path, bytes]] = {}
    skipped = []
    for path in paths:
        if not path.is_dir():
            read.setdefault(path.resolve(), (path.name, path, _read(path)))
            continue
        texts = 0
        for file in _files(path):
            try:
                text = _read(file)
            except ConfigError:
                skipped.append(_shown(file.as_posix()))
            else:
                texts += 1
                short = file.relative_to(path).as_posix()
                read.setdefault(file.resolve(), (short, file, text))
        if not texts:
            known = " ".join(SUFFIXES)
            raise ConfigError(f"'{path}' holds no text ({known}, UTF-8); name files", path=path)
    alike = Counter(short for short, _, _ in read.values())
    named: dict[str, bytes] = {}
    for short, file, text in read.values():
        name = _shown(short if alike[short] == 1 else file.as_posix())
        while name in named:
            name += "'"
        named[name] = text
    return Texts(named, tuple(skipped))


def _files(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        hidden = any(part.startswith(".") for part in parts)
        made = any(part.endswith(".eval") for part in parts[:-1])
        if file.suffix.lower() in SUFFIXES and not hidden and not made and file.is_file():
            yield file


def _read(file: Path) -> bytes:
    try:
        text = file.read_bytes()
        text.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read '{file}': {error.strerror}", path=file) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"'{file}' is not valid UTF-8 (byte {error.start}); convert it first", path=file
        ) from None
    if not text:
        raise ConfigError(f"'{file}' is empty; there is nothing to score", path=file)
    return text


def _shown(name: str) -> str:
    """A file name may hold bytes that no text can."""
    return name.encode("utf-8", "replace").decode()
