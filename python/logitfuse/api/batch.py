"""OpenAI's batch files: a request on each line, and for each a line with what came of it.

::

    {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Hello"}}
    {"id": "batch_req_...", "custom_id": "a", "error": null,
     "response": {"status_code": 200, "request_id": "req_...", "body": {...}}}
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from logitfuse.api.bodies import ChatBody, CompletionBody
from logitfuse.api.exchange import Exchange
from logitfuse.api.problems import problem_of, validated
from logitfuse.api.service import Api
from logitfuse.batching import Event, Ticket
from logitfuse.config import explain
from logitfuse.errors import BusyError, ConfigError, LogitfuseError
from logitfuse.evaluation.table import outcome_key
from logitfuse.journal import Journal
from logitfuse.jsonl import BadLine, parse_object, read_objects

#: How every line of results begins.
_START = b'{"id":"batch_req_'


@dataclass(frozen=True)
class BatchRequest:
    """A line of a batch file.

    Attributes
    ----------
    custom_id : str
        What its author calls it.
    url : str
        ``/v1/chat/completions`` or ``/v1/completions``.
    body : dict
        Unchecked.
    """

    custom_id: str
    url: str
    body: dict[str, Any]

    @cached_property
    def id(self) -> str:
        """The same for the same request, so that a result tells what it answers."""
        digest = outcome_key(custom_id=self.custom_id, url=self.url, body=json.dumps(self.body))
        return f"batch_req_{digest[:32]}"


class _Line(BaseModel):
    """What is in a line of a batch file."""

    model_config = ConfigDict(strict=True)

    custom_id: str = Field(min_length=1)
    method: Literal["POST"]
    url: Literal["/v1/chat/completions", "/v1/completions"]
    body: dict[str, Any]


def read_requests(
    content: bytes, file: Path, *, skip_bad: bool = False
) -> tuple[list[BatchRequest], list[BadLine]]:
    """The requests of a batch file.

    Whether their bodies can be answered is seen when they are.

    Parameters
    ----------
    content : bytes
    file : Path
        Where it is from, for messages.
    skip_bad : bool
        Leave lines out that are no requests.

    Returns
    -------
    requests : list of BatchRequest
    skipped : list of BadLine

    Raises
    ------
    ConfigError
        A line that is no request, or has the custom_id of an earlier one; no requests at all.
    """
    known: dict[str, int] = {}

    def parse(data: dict[str, Any], number: int) -> BatchRequest:
        try:
            line = _Line.model_validate(data)
        except ValidationError as error:
            raise explain(error) from None
        first = known.setdefault(line.custom_id, number)
        if first != number:
            raise ConfigError(
                f"the custom_id {line.custom_id!r} is that of line {first}; give it another",
                key="custom_id",
            )
        return BatchRequest(line.custom_id, line.url, line.body)

    requests, skipped = read_objects(content, file, parse, skip_bad=skip_bad)
    if not requests:
        first = f"; line {skipped[0].line}: {skipped[0].reason}" if skipped else ""
        raise ConfigError(f"'{file}' has no request{first}", path=file)
    return requests, skipped


@dataclass(frozen=True)
class Result:
    """What came of a request.

    Attributes
    ----------
    request : BatchRequest
    status : int
        Of HTTP.
    body : dict
        The answer, or OpenAI's error object.
    """

    request: BatchRequest
    status: int
    body: dict[str, Any]

    @property
    def line(self) -> str:
        """Its line in a file of results."""
        response = {
            "status_code": self.status,
            "request_id": f"req_{uuid.uuid4().hex}",
            "body": self.body,
        }
        row = {
            "id": self.request.id,
            "custom_id": self.request.custom_id,
            "response": response,
            "error": None,
        }
        text = json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return f"{text}\n"

    @property
    def failure(self) -> str | None:
        """What went wrong."""
        return None if self.status == 200 else str(self.body["error"]["message"])


class StoppedError(LogitfuseError):
    """Nothing is answered any more; another run may answer what is left."""


class _Detail(BaseModel):
    message: str


class _Body(BaseModel):
    error: _Detail | None = None
    system_fingerprint: str | None = None


class _Response(BaseModel):
    status_code: int
    body: _Body


class _Row(BaseModel):
    """What is read of a line of results."""

    id: str
    custom_id: str
    response: _Response


class Results:
    """An append-only file of results, locked while it is open; see `Journal`.

    Parameters
    ----------
    path : path
        Made if there is none.  Of results of one request the last one counts.

    Raises
    ------
    ConfigError
        A file that cannot be opened, that another run writes, or that holds anything else.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        #: What went wrong with each request that was answered; None: nothing.
        self._failures: dict[str, str | None] = {}
        #: The ensembles that answered earlier.
        self._fingerprints: dict[str, str | None] = {}
        self._journal = Journal(path, _START, self._take)

    def _take(self, line: bytes) -> None:
        try:
            row = _Row.model_validate(parse_object(line))
        except ValidationError as error:
            raise explain(error) from None
        wrong = row.response.body.error
        self._failures[row.id] = None if wrong is None else wrong.message
        self._fingerprints[row.id] = row.response.body.system_fingerprint

    def __contains__(self, request: BatchRequest) -> bool:
        return request.id in self._failures

    def failure(self, request: BatchRequest) -> str | None:
        """What went wrong with a request that was answered."""
        return self._failures[request.id]

    def fingerprint(self, request: BatchRequest) -> str | None:
        """The ``system_fingerprint`` of a result from an earlier run, if it has one."""
        return self._fingerprints.get(request.id)

    def append(self, result: Result) -> None:
        """Put a result on the disk.

        Raises
        ------
        OSError
            A full disk, for one; then there is nothing of the result in the file.
        """
        self._journal.append(result.line.encode())
        self._failures[result.request.id] = result.failure

    def close(self) -> None:
        """Give the file and its lock back."""
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


def answer(api: Api, requests: Iterable[BatchRequest], keep: Callable[[Result], object]) -> None:
    """Answer requests, as many at once as there are slots.

    Parameters
    ----------
    api : Api
        Its batcher has a queue for all answers that one request may ask for.
    requests : iterable of BatchRequest
    keep : callable
        Told every result as soon as it is known; what it raises ends all.

    Raises
    ------
    StoppedError
        The batcher has failed or is closing.
    """
    desk = _Desk(api, keep)
    try:
        for request in requests:
            desk.begin(request)
            while desk.is_full:
                desk.hear()
        while desk.calls:
            desk.hear()
    finally:
        desk.close()


class _Call(NamedTuple):
    request: BatchRequest
    exchange: Exchange
    tickets: list[Ticket]


class _Desk:
    """Requests that are being answered."""

    def __init__(self, api: Api, keep: Callable[[Result], object]) -> None:
        self.calls: dict[str, _Call] = {}
        self._api = api
        self._keep = keep
        self._events: SimpleQueue[tuple[str, int, Event]] = SimpleQueue()

    @property
    def is_full(self) -> bool:
        """Every slot has work, and the next at hand."""
        waiting = sum(len(call.tickets) for call in self.calls.values())
        return waiting >= 2 * self._api.batcher.slots

    def begin(self, request: BatchRequest) -> None:
        """Have a request answered."""
        try:
            exchange = self._exchange(request)
            tickets = exchange.submit(self._api.batcher, partial(self._tell, request.id))
        except Exception as error:  # whatever it is: the others go on
            self._require_batcher(error)
            self._keep(_failed(request, error))
            return
        self.calls[request.id] = _Call(request, exchange, tickets)
        self._end_if_done(request.id)

    def hear(self) -> None:
        """Wait for an event."""
        key, i, event = self._events.get()
        if key not in self.calls:
            return  # another answer to it has failed
        try:
            self.calls[key].exchange.hear(i, event)
        except Exception as error:
            self._require_batcher(error)
            self._end(key, _failed(self.calls[key].request, error))
        else:
            self._end_if_done(key)

    def close(self) -> None:
        """Let all that is being answered end."""
        for call in self.calls.values():
            for ticket in call.tickets:
                ticket.cancel()

    def _require_batcher(self, error: Exception) -> None:
        """Do not take the end of everything for the result of a request."""
        closing = isinstance(error, BusyError) and error.closing
        if closing or self._api.batcher.failed is not None:
            raise StoppedError(str(error)) from error

    def _tell(self, key: str, i: int, event: Event) -> None:
        """For the batcher's thread."""
        self._events.put((key, i, event))

    def _end_if_done(self, key: str) -> None:
        call = self.calls[key]
        if call.exchange.done:
            self._end(key, Result(call.request, 200, call.exchange.whole()))

    def _end(self, key: str, result: Result) -> None:
        for ticket in self.calls.pop(key).tickets:
            ticket.cancel()
        self._keep(result)

    def _exchange(self, request: BatchRequest) -> Exchange:
        """What a request asks for.

        Raises
        ------
        LogitfuseError
        """
        if request.body.get("stream") is True:
            raise ConfigError("a batch has no streams; leave 'stream' out", key="stream")
        if request.url == "/v1/chat/completions":
            return self._api.chat(validated(ChatBody, request.body))
        return self._api.completion(validated(CompletionBody, request.body))


def _failed(request: BatchRequest, error: Exception) -> Result:
    problem = problem_of(error)
    return Result(request, problem.status, problem.body)
