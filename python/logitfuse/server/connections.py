"""Connections on which nothing happens."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

#: Seconds in which the head of a request must have arrived, and in which a client must read on.
TIMEOUT = 30.0


class Connections:
    """Closes those on which nothing happens; uvicorn lets them stay for ever.

    The head of a request may never come, and what is left of an answer may never be read.
    """

    def __init__(self) -> None:
        #: How each was when it was last looked at, and since when it has been so.
        self._seen: dict[Any, tuple[object, float]] = {}

    def look(self, connections: Iterable[Any]) -> None:
        """Look at uvicorn's connections; to be called now and then."""
        now, known, self._seen = time.monotonic(), self._seen, {}
        for connection in tuple(connections):
            state = _state(connection)
            before, since = known.get(connection, (None, now))
            if state is None or state != before:
                since = now
            elif now - since > TIMEOUT:
                _end(connection.transport)
            if state is not None:
                self._seen[connection] = state, since


def _state(connection: Any) -> object:
    """What changes while something happens; None: a request is being answered."""
    cycle, transport = connection.cycle, connection.transport
    if cycle is not None and not cycle.response_complete and not transport.is_closing():
        return None
    return cycle, transport.is_closing(), transport.get_write_buffer_size()


def _end(transport: Any) -> None:
    if transport.is_closing():
        transport.abort()  # what is left to be written is not read
    else:
        transport.close()
