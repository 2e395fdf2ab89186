"""A plug-in of Simon Willison's ``llm``: ensembles among its models.

::

    llm logitfuse add pair.toml
    llm -m logitfuse/pair "The capital of France is"

``llm`` imports this module whenever it starts, so the rest of the package is imported when an
ensemble is asked.  Its models then stay for the life of the process.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import click
import llm
from llm.parts import Message, ReasoningPart, TextPart
from pydantic import BeforeValidator, create_model

from logitfuse.errors import LogitfuseError

_PREFIX = "logitfuse/"
_log = logging.getLogger("logitfuse")


@llm.hookimpl
def register_models(register: Callable[[llm.Model], object]) -> None:
    """Tell ``llm`` which ensembles there are."""
    try:
        known = _read()
    except click.ClickException as error:
        _log.warning("%s", error)  # the other models are none the worse
        return
    for name, source in known.items():
        register(EnsembleModel(name, source))


class EnsembleModel(llm.Model):
    """An ensemble.

    Parameters
    ----------
    name : str
        Behind ``logitfuse/``.
    source : str
        File of the ensemble; ``FILE:NAME`` for one of several.
    """

    can_stream = True
    supports_schema = True

    def __init__(self, name: str, source: str) -> None:
        self.model_id = _PREFIX + name
        self.source = source

    def __str__(self) -> str:
        return f"Ensemble: {self.model_id}"

    @property
    def Options(self) -> type[llm.Options]:  # type: ignore[override]
        """What ``-o`` sets; by default it is as in the ensemble's file."""
        return _options()

    def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.Response,
        conversation: llm.Conversation | None,
    ) -> Iterator[str]:
        """Answer; every member reads the chat through its own template.

        Raises
        ------
        llm.ModelError
        """
        del conversation  # the prompt has its messages
        if not prompt.messages:
            raise llm.ModelError("the prompt is empty")
        body = {
            **prompt.options.model_dump(exclude_none=True),
            "messages": [_message(message) for message in prompt.messages],
            "stream_options": {"include_usage": True},
            "json_schema": _closed(prompt.schema),
        }
        try:
            from logitfuse.api.local import chat

            with closing(chat(self.source, body)) as objects:
                pieces = _pieces(objects, response)
                yield from pieces if stream else ["".join(pieces)]
        except LogitfuseError as error:
            raise llm.ModelError(str(error)) from None


def _message(message: Message) -> dict[str, str]:
    """A message as OpenAI has it."""
    texts = []
    for part in message.parts:
        if isinstance(part, TextPart):
            texts.append(part.text)
        elif not isinstance(part, ReasoningPart):
            raise llm.ModelError(f"ensembles read only text, no {type(part).__name__}")
    return {"role": message.role, "content": "".join(texts)}


def _closed(schema: Any) -> Any:
    """A schema whose objects have no properties but those that it names, unless it says so.

    Nobody means others in a schema for ``llm``, and small models like to go on.
    """
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(part) for key, part in schema.items()}
    if schema.get("type") == "object" and "properties" in schema:
        closed.setdefault("additionalProperties", False)
    return closed


def _pieces(objects: Iterator[dict[str, Any]], response: llm.Response) -> Iterator[str]:
    """The text of a stream; notes what else it says."""
    said = {}
    for thing in objects:
        for choice in thing["choices"]:
            if text := choice["delta"].get("content"):
                yield text
            said["finish_reason"] = choice["finish_reason"]
        if usage := thing["usage"]:
            response.set_usage(input=usage["prompt_tokens"], output=usage["completion_tokens"])
        said["system_fingerprint"] = thing["system_fingerprint"]
    response.response_json = said


@cache
def _options() -> type[llm.Options]:
    """Options with the names and bounds that the API has for them."""
    from logitfuse.api.bodies import GenerationBody
    from logitfuse.sampling import SamplingParams

    fields = GenerationBody.model_fields
    made: Any = {
        name: (Annotated[fields[name].annotation, BeforeValidator(_parse)], fields[name])
        for name in (*SamplingParams.model_fields, "max_tokens", "stop")
    }
    options: type[llm.Options] = create_model("Options", __base__=llm.Options, **made)
    return options


def _parse(value: object) -> object:
    """Objects and lists come as JSON from the command line."""
    if isinstance(value, str) and value.startswith(("{", "[")):
        try:
            return json.loads(value)
        except ValueError:
            pass
    return value


# -- which ensembles there are -------------------------------------------------------------------


def _path() -> Path:
    folder: Path = llm.user_dir()  # type: ignore[no-untyped-call]
    return folder / "logitfuse.json"


def _read() -> dict[str, str]:
    """Files of ensembles by their names."""
    path = _path()
    if not path.exists():
        return {}
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): str(source) for name, source in known.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise click.ClickException(f"cannot read '{path}': {error}; correct or delete it") from None


def _write(known: dict[str, str]) -> None:
    path = _path()
    partial = path.with_suffix(".partial")
    try:
        partial.write_text(json.dumps(known, indent=4) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise click.ClickException(f"cannot write '{path}': {error}") from None


@llm.hookimpl
def register_commands(cli: click.Group) -> None:
    """Give ``llm`` a command for ensembles."""
    cli.add_command(ensembles)


@click.group("logitfuse")
def ensembles() -> None:
    """Ensembles of local models (see logitfuse --help)."""


@ensembles.command()
@click.argument("file")
@click.option("--name", help="Name of the model, behind logitfuse/; by default the ensemble's own.")
def add(file: str, name: str | None) -> None:
    """Add the ensembles of a TOML FILE (of FILE:NAME: that one) to the models.

    \b
    Example usage:
        llm logitfuse add pair.toml
        llm -m logitfuse/pair 'Two facts about pelicans' -o temperature 0
    """
    from logitfuse.assembly import check_parts
    from logitfuse.config import load_configs

    try:
        configs = load_configs(file)
        for config in configs:
            check_parts(config)
    except LogitfuseError as error:
        raise click.ClickException(str(error)) from None
    source = str(Path(file).absolute())
    if len(configs) == 1:
        added = {name or configs[0].name or Path(file).stem: source}
    elif name is None:
        added = {str(config.name): f"{source}:{config.name}" for config in configs}
    else:
        names = ", ".join(str(config.name) for config in configs)
        raise click.ClickException(f"'{file}' has several ensembles ({names}); name one: FILE:NAME")
    _write(_read() | added)
    for each in added:
        click.echo(f"{_PREFIX}{each}")


@ensembles.command("list")
def show() -> None:
    """List the ensembles, and where they are described."""
    for name, source in _read().items():
        click.echo(f"{_PREFIX}{name}: {source}")


@ensembles.command()
@click.argument("name")
def remove(name: str) -> None:
    """Remove an ensemble from the models; its file stays."""
    known = _read()
    name = name.removeprefix(_PREFIX)
    if name not in known:
        some = f"known: {', '.join(known)}" if known else "there are none"
        raise click.ClickException(f"there is no ensemble '{name}'; {some}")
    del known[name]
    _write(known)
