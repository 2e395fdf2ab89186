"""The endpoints."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic_core import to_json

from logitfuse.api import describing, objects, tokens
from logitfuse.api.bodies import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from logitfuse.api.problems import Problem, ProblemError
from logitfuse.server import calls, metrics
from logitfuse.server.gate import JsonRoute
from logitfuse.server.page import page, policy
from logitfuse.server.state import State

_log = logging.getLogger("logitfuse.server")

_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": objects.ErrorBody, "description": "What is wrong with the request"},
    "5XX": {"model": objects.ErrorBody, "description": "Why the server cannot answer"},
}
_PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
answers = APIRouter(route_class=JsonRoute, responses=_ERRORS)
about = APIRouter(route_class=JsonRoute, responses=_ERRORS)
#: What tells nothing and costs nothing: nobody needs a key for it.
public = APIRouter(route_class=JsonRoute)


def _state(request: Request) -> State:
    state: State = request.app.state.server
    return state


def _note_prompt(state: State, prompt: Any) -> None:
    if state.settings.log_prompts:
        _log.info("prompt: %s", to_json(prompt).decode())


def _streamed(whole: type) -> dict[int | str, dict[str, Any]]:
    """How an answer is described that may be a stream."""
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "description": "one of OpenAI's objects of a stream, or an error; at last [DONE]",
    }
    event = {"type": "object", "properties": {"data": data}, "required": ["data"]}
    return {200: {"model": whole, "content": {"text/event-stream": {"itemSchema": event}}}}


@answers.post("/chat/completions", response_model=None, responses=_streamed(objects.ChatCompletion))
async def chat_completions(request: Request, body: ChatBody) -> Response:
    """Answer a chat; every member reads it through its own template."""
    state = _state(request)
    exchange = await calls.prepare(state, request, state.api.chat, body)
    _note_prompt(state, body.messages)
    return await calls.answer(state, request, exchange)


@answers.post("/completions", response_model=None, responses=_streamed(objects.Completion))
async def completions(request: Request, body: CompletionBody) -> Response:
    """Continue a text, or several."""
    state = _state(request)
    exchange = await calls.prepare(state, request, state.api.completion, body)
    _note_prompt(state, body.prompt)
    return await calls.answer(state, request, exchange)


@answers.post("/embeddings", status_code=501, response_model=objects.ErrorBody)
async def embeddings() -> Response:
    """There are none."""
    message = "an ensemble of different models has no common embedding"
    raise ProblemError(Problem(501, message, code="not_implemented"))


@answers.get("/models/", response_model=objects.ModelList, include_in_schema=False)
@answers.get("/models", response_model=objects.ModelList)
async def models(request: Request) -> dict[str, Any]:
    """The ensembles that are served."""
    state = _state(request)
    served = state.api.models.values()
    data = [describing.model_object(model, state.created) for model in served]
    return {"object": "list", "data": data}


@answers.get("/models/{name:path}", response_model=objects.ModelObject)
async def model(request: Request, name: str) -> dict[str, Any]:
    """One of them."""
    state = _state(request)
    return describing.model_object(state.api.model(name), state.created)


@about.post("/tokenize", response_model=objects.Tokens)
async def tokenize(request: Request, body: TokenizeBody) -> dict[str, Any]:
    """The symbols of a text."""
    return await run_in_threadpool(tokens.tokenize, _state(request).api, body)


@about.post("/detokenize", response_model=objects.Text)
async def detokenize(request: Request, body: DetokenizeBody) -> dict[str, Any]:
    """The text that symbols spell."""
    return await run_in_threadpool(tokens.detokenize, _state(request).api, body)


@about.get("/tokenizer_info", response_model=dict[str, str | None])
async def tokenizer_info(request: Request) -> dict[str, Any]:
    """What clients that tokenize here want to know."""
    return tokens.info(_state(request).api)


@public.head("/", include_in_schema=False)
@public.get("/", response_class=HTMLResponse)
async def show_page() -> Response:
    """A page to chat with the ensembles, which shows who wanted what."""
    return HTMLResponse(page(), headers=_PAGE_HEADERS | {"Content-Security-Policy": policy()})


@public.head("/health", include_in_schema=False)
@public.get("/health", response_model=objects.Health, responses={503: {"model": objects.Health}})
async def health(request: Request) -> Response:
    """Whether the server answers."""
    status = _state(request).status
    return JSONResponse({"status": status}, 200 if status == "ok" else 503)


@about.get("/metrics", response_class=Response)
async def show_metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    return Response(_state(request).metrics.text(), media_type=metrics.MEDIA_TYPE)


@about.get("/props", response_model=dict[str, Any])
async def props(request: Request) -> dict[str, Any]:
    """What is served, and what requests may choose from."""
    return describing.properties(_state(request).api)
