"""Errors become responses."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from logitfuse.api.problems import INVALID, SERVER, Problem, invalid, problem_of

#: Of responses with these statuses.
_MORE = {401: {"WWW-Authenticate": "Bearer"}}
#: The client has left before there was an answer (nginx' number, for the log).
_GONE = Problem(499, "the client has left", INVALID, code="client_disconnected")


class BodyError(HTTPException):
    """A body that is not read; FastAPI lets only its own exceptions pass.

    Attributes
    ----------
    problem : Problem
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.status, problem.message)
        self.problem = problem


def foreseen(error: Exception) -> Problem:
    """What an error means to a client (see `problem_of`)."""
    if isinstance(error, RequestValidationError):
        problems = [{**problem, "loc": problem["loc"][1:]} for problem in error.errors()]
        return invalid(problems, error.body)
    if isinstance(error, BodyError):
        return error.problem
    if isinstance(error, StarletteHTTPException):
        kind = SERVER if error.status_code >= 500 else INVALID
        code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
        return Problem(error.status_code, error.detail, kind, code=code)
    if isinstance(error, ClientDisconnect):
        return _GONE
    return problem_of(error)


def respond(problem: Problem) -> Response:
    """A problem as a response."""
    headers = problem.headers | _MORE.get(problem.status, {})
    return Response(to_json(problem.body), problem.status, headers, "application/json")


async def handle(request: Request, error: Exception) -> Response:
    """For FastAPI: respond to what its router refuses."""
    del request
    response = respond(foreseen(error))
    if isinstance(error, StarletteHTTPException):
        response.headers.update(error.headers or {})  # the methods that are allowed
    return response
