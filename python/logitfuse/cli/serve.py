"""``logitfuse serve``: the OpenAI API over HTTP."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Group, Parameter
from cyclopts.config import Env
from pydantic import Field

from logitfuse.cli import output
from logitfuse.cli.options import ModelOptions
from logitfuse.config import FuseConfig
from logitfuse.errors import ConfigError
from logitfuse.server.settings import Settings

if TYPE_CHECKING:
    from logitfuse.batching import Batcher

app = App(
    name="serve",
    help_format="plaintext",
    config=Env("LOGITFUSE_SERVE_", command=False),
    default_parameter=Parameter(negative=""),
)


class ServerOptions(Settings):
    """Settings of the server, with the names that other servers have for them."""

    parallel: Annotated[int, Parameter(name=["--parallel", "-np"])] = Field(
        Settings.model_fields["parallel"].default,
        ge=1,
        description=Settings.model_fields["parallel"].description,
    )
    api_key: Annotated[list[str], Parameter(env_var="LOGITFUSE_API_KEY", show_default=False)] = (
        Field(default_factory=list, description=Settings.model_fields["api_key"].description)
    )


@app.default
def serve(
    *,
    alias: Annotated[str | None, Parameter(name=["--alias", "-a"])] = None,
    models: ModelOptions | None = None,
    settings: Annotated[
        ServerOptions | None, Parameter(name="*", group=Group("Server", sort_key=0))
    ] = None,
) -> None:
    """Serve ensembles as OpenAI's API does: chats, texts, streams, many requests at once.

    SIGTERM or Ctrl-C lets running answers end and takes no new requests; a second one ends all.

    Examples:

        logitfuse serve -m a.gguf -m b.gguf

        logitfuse serve -e ensembles.toml --parallel 8 --port 8000

        logitfuse serve -e pair.toml -e trio.toml --host 0.0.0.0 --api-key-file keys.txt

    Parameters
    ----------
    alias
        Name of the model, instead of the ensemble's own.
    models
        What is served.
    settings
        Where, to whom, and how much.
    """
    settings = settings or ServerOptions()
    settings.keys()  # what is wrong with them is said before anybody waits
    configs = (models or ModelOptions()).configs(alias)
    try:
        from logitfuse.server.run import run
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the server needs '{error.name}'; pip install 'logitfuse[server]'"
        ) from None
    logging.getLogger("logitfuse.server").setLevel(logging.INFO)
    output.note("loading the models")
    run(partial(_load, configs, settings), settings, _say_ready)


def _load(configs: Sequence[FuseConfig], settings: Settings) -> Batcher:
    from logitfuse.batching import Batcher

    return Batcher(
        configs,
        slots=settings.parallel,
        queue=settings.queue,
        queue_tokens=settings.queue_tokens,
    )


def _say_ready(address: str, names: Sequence[str]) -> None:
    output.note(f"serving {', '.join(names)} at {address}")
