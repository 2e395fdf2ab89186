"""Files to which lines are added, each kept from the moment it is known.

A line is on the disk when `Journal.append` returns.  A run that was killed goes on where it was; a
line that the kill cut short is dropped.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from logitfuse.errors import ConfigError

if sys.platform != "win32":
    import fcntl


class Journal:
    """An append-only file of lines, locked while it is open.

    Parameters
    ----------
    path : path
        Made if there is none.
    start : bytes
        How every line begins; a line that was cut short is known by it.
    take : callable
        Told every line that is there; a ValueError says what is wrong with it.

    Raises
    ------
    ConfigError
        A file that cannot be opened, that another run writes, or that is damaged beyond a last
        line that was cut short; it is left as it is.
    """

    def __init__(
        self, path: str | PathLike[str], start: bytes, take: Callable[[bytes], object]
    ) -> None:
        self.path = Path(path)
        self._start = start
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        try:
            self._file: int | None = os.open(self.path, flags, 0o666)
        except OSError as error:
            raise ConfigError(f"cannot add to '{path}': {error}", path=self.path) from error
        try:
            self._lock(self._file)
            self._size = self._read(take)
            os.ftruncate(self._file, self._size)
        except BaseException:
            self.close()
            raise

    def append(self, line: bytes) -> None:
        """Put a line on the disk; if that fails, there is nothing of it in the file.

        Parameters
        ----------
        line : bytes
            With the line break.

        Raises
        ------
        ValueError
            The journal is closed.
        OSError
            A full disk, for one.
        """
        if self._file is None:
            raise ValueError(f"'{self.path}' is closed")
        try:
            written = os.write(self._file, line)
            while written < len(line):  # the disk is full, which the next try says
                written += os.write(self._file, line[written:])
            os.fsync(self._file)
        except BaseException:
            try:
                os.ftruncate(self._file, self._size)
            except OSError:
                self.close()  # a line behind half a line would be lost
            raise
        self._size += len(line)

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
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise ConfigError(
                f"'{self.path}' is no file that can be added to; give another", path=self.path
            )
        if sys.platform == "win32":
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another run is writing '{self.path}'; wait for it, or give this run a file of "
                "its own",
                path=self.path,
            ) from None
        except OSError:  # a file system without locks
            pass

    def _read(self, take: Callable[[bytes], object]) -> int:
        """Tell all lines; gives the bytes that they take."""
        size = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    if not self._is_cut_short(line):
                        self._refuse(number, "not a line that was written here")
                    break
                try:
                    take(line)
                except ValueError as error:
                    self._refuse(number, str(error))
                size += len(line)
        return size

    def _is_cut_short(self, line: bytes) -> bool:
        """Whether this can be what a kill, or a power cut (zeros), left of a line."""
        return line.startswith(self._start) or self._start.startswith(line) or not line.strip(b"\0")

    def _refuse(self, number: int, reason: str) -> NoReturn:
        raise ConfigError(
            f"line {number} of '{self.path}': {reason}; give the run another file, or delete the "
            "line, and it is made again",
            path=self.path,
        )
