"""Bytes become text: unfinished characters and stop strings are held back."""

from __future__ import annotations

from collections.abc import Sequence

from logitfuse import _core
from logitfuse.errors import PromptError

#: What no character begins with.
_INSIDE = bytes(range(0x80, 0xC0))


def valid_text(text: str | bytes, what: str) -> bytes:
    """A text as UTF-8.

    Parameters
    ----------
    text : str or bytes
    what : str
        How the error calls it.

    Raises
    ------
    PromptError
        It is empty, or not valid UTF-8.
    """
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if not raw:
        raise PromptError(f"{what} is empty; give at least one character")
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"{what} is not valid UTF-8: byte 0x{raw[error.start]:02x} at position "
            f"{error.start}; decode the file with its own encoding first"
        ) from None
    return raw


def from_character(raw: bytes) -> bytes:
    """A piece of a text without the rest of a character that its beginning was cut from."""
    return raw.lstrip(_INSIDE)


class _Stop:
    """How much of a stop string a growing text ends with (Knuth, Morris & Pratt 1977).

    Every byte costs a few comparisons, however long the string is.

    Parameters
    ----------
    text : bytes
        Not empty.

    Attributes
    ----------
    held : int
        The text ends with so many of its bytes; they may be its beginning.
    """

    def __init__(self, text: bytes) -> None:
        self.held = 0
        self._text = text
        #: By length of a beginning: how much of it is at its end once more; as far as needed.
        self._borders = [0, 0]

    def __len__(self) -> int:
        return len(self._text)

    def read(self, unit: bytes) -> int | None:
        """Read on; gives where in the unit the string is complete, if it is."""
        if not self.held and self._text[0] not in unit:
            return None
        for i, byte in enumerate(unit, 1):
            self.held = self._after(self.held, byte)
            if self.held == len(self._text):
                return i
            if self.held == len(self._borders):
                self._borders.append(self._after(self._borders[-1], byte))
        return None

    def _after(self, held: int, byte: int) -> int:
        """What is held after a byte more."""
        while held and self._text[held] != byte:
            held = self._borders[held]
        return held + (self._text[held] == byte)


class ReplyText:
    """The reply as it grows.

    Parameters
    ----------
    stop : sequence of str
        Strings that end the reply; they are not part of it.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stops = [_Stop(s.encode("utf-8", "surrogatepass")) for s in stop if s]
        self._bytes = bytearray()
        self._given = 0  # bytes already handed out
        #: Byte offset of the last boundary of both a unit and a character.
        self.base = 0
        #: Units behind `base`: together they do not yet end at a character boundary.
        self.units: list[bytes] = []
        #: A stop string was found.
        self.stopped = False

    @property
    def complete(self) -> bytes:
        """The reply up to `base`."""
        return bytes(self._bytes[: self.base])

    @property
    def raw(self) -> bytes:
        """The whole reply so far."""
        return bytes(self._bytes)

    @property
    def text(self) -> str:
        """The whole reply so far, but for an unfinished character at its end."""
        return self._bytes[: len(self._bytes) - len(self.unfinished)].decode("utf-8")

    @property
    def unfinished(self) -> bytes:
        """The unfinished character at the end, 0 to 3 bytes."""
        n = _core.unfinished_utf8(bytes(self._bytes[-3:]))
        return bytes(self._bytes[len(self._bytes) - n :])

    def accepts(self, unit: bytes) -> bool:
        """Whether the reply stays valid UTF-8 (but for an unfinished end) with this unit."""
        return _core.continues_utf8(self.unfinished, unit)

    def append(self, unit: bytes) -> str:
        """Add a unit; returns the text that is now certain to be part of the reply."""
        self._bytes += unit
        if self.unfinished:
            self.units.append(unit)
        else:
            self.base = len(self._bytes)
            self.units.clear()
        return self._give(self._find_stop(unit))

    def flush(self) -> str:
        """The rest at the end of the answer; an unfinished character is dropped."""
        if self.stopped:
            return ""
        return self._give(len(self._bytes) - len(self.unfinished))

    def _find_stop(self, unit: bytes) -> int:
        """How far the text can be handed out; cuts the reply where a stop string begins."""
        before = len(self._bytes) - len(unit)
        found = [
            (before + end, before + end - len(stop))
            for stop in self._stops
            if (end := stop.read(unit)) is not None
        ]
        if found:
            _, at = min(found)  # the first to be complete, however the reply was cut into units
            self.stopped = True
            del self._bytes[at:]
            return at
        held = max((stop.held for stop in self._stops), default=0)
        return len(self._bytes) - max(held, len(self.unfinished))

    def _give(self, end: int) -> str:
        piece = self._bytes[self._given : max(end, self._given)]
        # A stop string may begin inside a unit but never inside a character.
        self._given += len(piece)
        return piece.decode("utf-8")
