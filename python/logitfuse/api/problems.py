"""What went wrong, as OpenAI says it: a status, and a body made from the error's class."""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from logitfuse.errors import (
    BusyError,
    ConfigError,
    ContextLengthError,
    FusionError,
    LogitfuseError,
    MemberError,
    PromptError,
    TimeLimitError,
)

B = TypeVar("B", bound=BaseModel)

_log = logging.getLogger("logitfuse.api")

INVALID, SERVER, BUSY = "invalid_request_error", "server_error", "rate_limit_error"
#: Longest piece of a value that is shown.
_SHOWN = 80


@dataclass(frozen=True)
class Problem:
    """Why there is no answer.

    Attributes
    ----------
    status : int
        Of HTTP.
    message : str
    type, code, param : str or None
        OpenAI's words for the kind of error, the error, and the field that is to blame.
    retry_after : float or None
        Seconds until another try may do better.
    """

    status: int
    message: str
    type: str = INVALID
    code: str | None = None
    param: str | None = None
    retry_after: float | None = None

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        error = {key: getattr(self, key) for key in ("message", "type", "param", "code")}
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        """Of the response."""
        if self.retry_after is None:
            return {}
        return {"Retry-After": str(max(1, math.ceil(self.retry_after)))}


class ProblemError(LogitfuseError):
    """A problem of the API itself: an unknown model, a wrong key, a body that is too large.

    Attributes
    ----------
    problem : Problem
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


#: What the first matching class of an error means.
_KINDS: tuple[tuple[type[Exception], Problem], ...] = (
    (ContextLengthError, Problem(400, "", code="context_length_exceeded")),
    # Not 408 or 5xx: clients would try again by themselves.
    (TimeLimitError, Problem(400, "", code="time_limit_exceeded")),
    (PromptError, Problem(400, "")),
    (ConfigError, Problem(400, "")),
    (FusionError, Problem(400, "")),
    (BusyError, Problem(429, "", BUSY, code="queue_full")),
    (MemberError, Problem(500, "", SERVER, code="member_failed")),
)


def problem_of(error: Exception) -> Problem:
    """What an error means to a client; if nobody foresaw it, only the log says where it happened.

    Messages of such errors may quote prompts, so they are not logged.
    """
    if isinstance(error, ProblemError):
        return error.problem
    if isinstance(error, BusyError) and error.closing:
        return Problem(503, str(error), SERVER, "unavailable", retry_after=error.retry_after)
    for kind, like in _KINDS:
        if isinstance(error, kind):
            return Problem(
                like.status,
                str(error),
                like.type,
                like.code,
                getattr(error, "key", None),
                getattr(error, "retry_after", None),
            )
    frames = "".join(traceback.format_tb(error.__traceback__))
    _log.error("unforeseen %s\n%s", type(error).__name__, frames)
    return Problem(500, "the server failed; its log says more", SERVER, code="internal_error")


def validated(kind: type[B], body: object) -> B:
    """A body that was checked.

    Raises
    ------
    ProblemError
    """
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise ProblemError(invalid(error.errors(), body)) from None


def invalid(problems: Sequence[Mapping[str, Any]], body: object) -> Problem:
    """What is wrong with a body, from pydantic's list.

    Where something may be of several kinds, each kind has its complaint: then that place is named,
    and what it may be.
    """
    first = problems[0]
    cause = first.get("ctx", {}).get("error")
    place, kind = _walk(body, first)
    if isinstance(cause, Exception):
        return Problem(400, str(cause), param=getattr(cause, "key", None) or ".".join(place))
    alike = [first]
    if kind:
        alike = [problem for problem in problems if _walk(body, problem)[0] == place]
    where = ".".join(place)
    wrong = "; or: ".join(dict.fromkeys(problem["msg"] for problem in alike))
    value = "" if isinstance(first["input"], dict | list) else f", not {_shown(first['input'])}"
    message = f"'{where}': {wrong}{value}" if where else f"the body: {wrong}{value}"
    return Problem(400, message, param=where or None)


def _walk(body: object, problem: Mapping[str, Any]) -> tuple[list[str], bool]:
    """The place in a body that pydantic means, up to where it names one of several kinds."""
    place: list[str] = []
    for part in problem["loc"]:
        if isinstance(body, dict) and (part in body or problem["type"] == "missing"):
            body = body.get(part)
        elif isinstance(body, list) and isinstance(part, int):
            body = body[part]
        else:
            return place, True
        place.append(str(part))
    return place, False


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
