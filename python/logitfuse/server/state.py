"""What all requests to a server share."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from anyio import CapacityLimiter

from logitfuse.api.problems import SERVER, Problem, ProblemError
from logitfuse.api.service import Api
from logitfuse.batching import Batcher
from logitfuse.errors import BusyError
from logitfuse.grammar import TRIALS
from logitfuse.server.metrics import Metrics
from logitfuse.server.settings import Settings

if TYPE_CHECKING:
    from logitfuse.server.calls import Call

_log = logging.getLogger("logitfuse.server")

#: Seconds after which a client may try again.
_RETRY_AFTER = 2.0


class State:
    """A server's models, settings, and calls.

    Parameters
    ----------
    source : Batcher, or callable
        Or what makes one, which may take long.
    settings : Settings

    Attributes
    ----------
    calls : set of Call
        Those that are being answered.
    draining : bool
        No new ones are taken.
    trials : int
        Bodies whose constraints are being tried, or wait for that: it may take seconds.
    created : int
        When the models were loaded, Unix time.

    Raises
    ------
    ConfigError
        See `Settings.keys`.
    """

    def __init__(self, source: Batcher | Callable[[], Batcher], settings: Settings) -> None:
        self.settings = settings
        self.keys = settings.keys()
        self.metrics = Metrics()
        self.calls: set[Call] = set()
        self.draining = False
        self.created = 0
        self._source = source
        self._api: Api | None = None
        self.trials = 0
        self._limiter = CapacityLimiter(TRIALS)
        #: Of `load`, once the application runs.
        self.loading: asyncio.Task[None] | None = None

    @property
    def status(self) -> str:
        """Of the server, in a word or two."""
        if self.failure is not None:
            return "failed"
        if self.draining:
            return "shutting down"
        return "loading model" if self._api is None else "ok"

    @property
    def failure(self) -> BaseException | None:
        """Why nothing will ever be answered again."""
        return None if self._api is None else self._api.batcher.failed

    @property
    def api(self) -> Api:
        """The API.

        Raises
        ------
        ProblemError
            The models are being loaded, or the server is shutting down or has failed (503).
        """
        if self._api is None or self.status != "ok":
            problem = Problem(
                503,
                f"the server cannot answer now: {self.status}",
                SERVER,
                code="unavailable",
                retry_after=_RETRY_AFTER,
            )
            raise ProblemError(problem)
        return self._api

    @property
    def model_names(self) -> tuple[str, ...]:
        """What is served; nothing while models are being loaded."""
        return () if self._api is None else tuple(self._api.models)

    async def load(self) -> None:
        """Load the models.

        Raises
        ------
        LogitfuseError
            They cannot be loaded.
        """
        source = self._source
        batcher = source if isinstance(source, Batcher) else await asyncio.to_thread(source)
        self._api = Api(batcher, self.settings.limits)
        self.metrics.watch(batcher)
        self.created = int(time.time())

    @contextmanager
    def trial(self) -> Iterator[CapacityLimiter]:
        """Room for a body whose constraint must be tried; gives what limits its worker thread.

        Raises
        ------
        ProblemError, BusyError
        """
        batcher = self.api.batcher
        waiting = self.trials - TRIALS
        if waiting >= batcher.slots + batcher.queue:
            raise BusyError(
                f"{waiting} constraints wait to be tried; come again later",
                retry_after=_RETRY_AFTER,
            )
        self.trials += 1
        try:
            yield self._limiter
        finally:
            self.trials -= 1

    def drain(self) -> None:
        """Take no new calls, and send away what waits; what is being read or answered goes on."""
        self.draining = True
        if self._api is not None:
            self._api.batcher.drain()

    def abort(self) -> None:
        """Send away what runs, too."""
        gone = BusyError("the server is shutting down", retry_after=_RETRY_AFTER, closing=True)
        for call in self.calls:
            call.abort(gone)

    async def close(self) -> None:
        """Free the models, if they were loaded here."""
        self.draining = True
        if self._api is not None and not isinstance(self._source, Batcher):
            await asyncio.to_thread(self._api.batcher.close)
