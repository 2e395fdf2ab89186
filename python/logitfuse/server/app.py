"""The application: endpoints, and what stands before them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from logitfuse._core import __version__
from logitfuse.batching import Batcher
from logitfuse.server import problems
from logitfuse.server.gate import HostMiddleware, KeyMiddleware, LogMiddleware, ReaderMiddleware
from logitfuse.server.routes import about, answers, public
from logitfuse.server.settings import Settings
from logitfuse.server.state import State

#: Names of this machine.
_LOCAL = ("localhost", "127.0.0.1", "::1")


def make_app(source: Batcher | Callable[[], Batcher], settings: Settings | None = None) -> FastAPI:
    """The server as an ASGI application; ``app.state.server`` is its `State`.

    Parameters
    ----------
    source : Batcher, or callable
        Or what makes one: it is called in the background, once the application runs.
    settings : Settings, optional

    Raises
    ------
    ConfigError
        See `Settings.keys`.
    """
    state = State(source, settings or Settings())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        state.loading = asyncio.create_task(state.load())
        yield
        await state.close()

    app = FastAPI(
        title="logitfuse",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # those pages load scripts from elsewhere
        redoc_url=None,
        exception_handlers={HTTPException: problems.handle},
    )
    app.state.server = state
    # `KeyMiddleware` asks for keys, before anything is read; this tells that it does.
    told = [Depends(HTTPBearer(auto_error=False))] if state.keys else []
    app.include_router(answers, prefix="/v1", dependencies=told)
    app.include_router(answers, include_in_schema=False)  # as llama.cpp's server has them
    app.include_router(about, dependencies=told)
    app.include_router(public)
    _add_middleware(app, state)
    return app


def _add_middleware(app: FastAPI, state: State) -> None:
    """The last one added is the first to see a request."""
    settings = state.settings
    if state.keys:
        app.add_middleware(KeyMiddleware, keys=state.keys)
    elif settings.is_local or settings.allowed_host:
        app.add_middleware(HostMiddleware, names=[*_LOCAL, settings.host, *settings.allowed_host])
    if settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's client sends many of its own
            expose_headers=["Retry-After"],
        )
    app.add_middleware(LogMiddleware, state=state)
    app.add_middleware(ReaderMiddleware)
