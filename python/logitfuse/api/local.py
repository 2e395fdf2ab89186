"""The API within a process: ensembles that are loaded when they are first asked, and stay."""

from __future__ import annotations

import atexit
import sys
import threading
from collections.abc import Generator, Mapping
from functools import cache
from queue import SimpleQueue
from typing import Any

from logitfuse.api.bodies import ChatBody
from logitfuse.api.limits import Limits
from logitfuse.api.problems import validated
from logitfuse.api.service import Api
from logitfuse.batching import Batcher, Event
from logitfuse.completions import Response
from logitfuse.config import load_config

_loading = threading.Lock()


def chat(source: str, body: Mapping[str, Any]) -> Generator[Response, None, None]:
    """The objects of a stream that answers a chat, as they come; closing it ends the answer.

    Parameters
    ----------
    source : str
        File of the ensemble; see `logitfuse.config.load_config`.
    body : mapping
        Of ``/v1/chat/completions``.

    Raises
    ------
    LogitfuseError
    """
    with _loading:
        api = _load(source)
    exchange = api.chat(validated(ChatBody, {**body, "stream": True}))
    events: SimpleQueue[tuple[int, Event]] = SimpleQueue()
    tickets = exchange.submit(api.batcher, lambda i, event: events.put((i, event)))
    try:
        while not exchange.done:
            yield from exchange.hear(*events.get())
    finally:
        for ticket in tickets:
            ticket.cancel()


@cache
def _load(source: str) -> Api:
    batcher = Batcher([load_config(source)], slots=1, queue=sys.maxsize)
    atexit.register(batcher.close)
    return Api(batcher, Limits(prompt=sys.maxsize))
