"""The API over a batcher: bodies become exchanges."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from logitfuse import _core
from logitfuse.api.asking import length_of, request_of, scores_prompt, top_of
from logitfuse.api.bodies import ChatBody, CompletionBody, GenerationBody
from logitfuse.api.exchange import Exchange, Prompt, Seat, n_tokens
from logitfuse.api.limits import Limits
from logitfuse.api.overrides import override
from logitfuse.api.problems import Problem, ProblemError
from logitfuse.batching import Batcher, Job
from logitfuse.completions import ChatFormat, Choice, CompletionFormat, text_of
from logitfuse.config import FuseConfig
from logitfuse.echo import cut_prompt
from logitfuse.errors import ConfigError, FusionError
from logitfuse.evaluation.trace import trace_entry
from logitfuse.guide import prepare
from logitfuse.strategies.base import Prompt as Rendered
from logitfuse.strategies.engine import Engine

Asked = str | Sequence[int]
#: What a message of a chat counts besides its text: templates write its role, and tokens around it,
#: which cost more to find than characters.
_TURN = 16


@dataclass(frozen=True)
class Model:
    """An ensemble that is served.

    Attributes
    ----------
    name : str
        What requests call it.
    config : FuseConfig
    engine : Engine
        To be asked about its members and their vocabularies.
    """

    name: str
    config: FuseConfig
    engine: Engine

    @property
    def members(self) -> list[str]:
        """Their names."""
        return [member.name for member in self.engine.members]


class Api:
    """The OpenAI API over a batcher.

    Parameters
    ----------
    batcher : Batcher
    limits : Limits, optional

    Raises
    ------
    ConfigError
        Two ensembles have one name.
    """

    def __init__(self, batcher: Batcher, limits: Limits | None = None) -> None:
        self.batcher = batcher
        self.limits = limits or Limits()
        self.models: dict[str, Model] = {}
        for config in batcher.configs:
            engine = batcher.engine(config)
            if engine.name in self.models:
                raise ConfigError(
                    f"two ensembles are called '{engine.name}'; give them names", key="name"
                )
            self.models[engine.name] = Model(engine.name, config, engine)

    def model(self, name: str | None) -> Model:
        """An ensemble by its name; by default the first.

        Raises
        ------
        ProblemError
            There is none (404).
        """
        if not name:
            return next(iter(self.models.values()))
        if name not in self.models:
            known = ", ".join(self.models)
            raise ProblemError(
                Problem(
                    404,
                    f"there is no model '{name}'; known: {known}",
                    code="model_not_found",
                    param="model",
                )
            )
        return self.models[name]

    def chat(self, body: ChatBody) -> Exchange:
        """An answer to ``/v1/chat/completions``.

        Raises
        ------
        ProblemError, ConfigError, FusionError, PromptError
        """
        messages = [message.plain for message in body.messages]
        length = sum(_TURN + len(message["content"]) for message in messages)
        self.require_short(length, "messages")
        return self._exchange(body, ChatFormat, [(messages, "")])

    def completion(self, body: CompletionBody) -> Exchange:
        """An answer to ``/v1/completions``.

        Raises
        ------
        ProblemError, ConfigError, FusionError, PromptError
        """
        spell = self.model(body.model).engine.alignment.spell
        prompts = []
        for prompt in _prompts(body.prompt):
            self.require_short(len(prompt), "prompt")
            text = prompt if isinstance(prompt, str) else text_of(b"".join(spell(prompt)))
            prompts.append((prompt, text))
        return self._exchange(body, CompletionFormat, prompts)

    def require_short(self, length: int, param: str) -> None:
        """Refuse a prompt that takes too long to be cut into tokens.

        Raises
        ------
        ProblemError
        """
        if length > self.limits.prompt:
            raise ProblemError(
                Problem(
                    400,
                    f"the prompt is {length} characters or symbols long; at most "
                    f"{self.limits.prompt} are read",
                    code="context_length_exceeded",
                    param=param,
                )
            )

    def _exchange(
        self, body: GenerationBody, kind: type[CompletionFormat], asked: Sequence[tuple[Any, str]]
    ) -> Exchange:
        """The exchange of some prompts, each with its text."""
        model = self.model(body.model)
        config = self._config(model, body)
        length = length_of(body, self.limits.tokens)
        request = request_of(body, config.sampling, length or None, self.limits.seconds)
        n = body.n or 1
        self._require_room(len(asked) * (n + (length != 0 and scores_prompt(body))))
        # Here, in the thread of the request: the batcher's own has all of them to answer.
        engine = self.batcher.engine(config)
        prepare(request.constraint, [member.vocab for member in engine.members])
        prompts, seats = [], []
        for k, (given, text) in enumerate(asked):
            prompt = Prompt([Choice(k * n + i, offset=len(text)) for i in range(n)])
            own, rendered = replace(request, prompt=given), engine.render(given)
            if isinstance(body, CompletionBody) and body.echo:
                _echo(prompt, text)
            if scores_prompt(body):
                seats += _scoring(model, config, prompt, given, request.top_logprobs)
            if length != 0:
                seats += _answering(Job(config, own, prompts=rendered), prompt)
            else:
                _silence(prompt, rendered)
            prompts.append(prompt)
        trace = body.logitfuse is not None and bool(body.logitfuse.trace)
        options = body.stream_options
        form = kind(
            model.name,
            top_of(body),
            trace=partial(trace_entry, names=model.members) if trace else None,
            system_fingerprint=fingerprint(config),
        )
        return Exchange(
            prompts,
            seats,
            form,
            model=model.name,
            members=model.members,
            stream=bool(body.stream),
            trace=trace,
            include_usage=options is not None and bool(options.include_usage),
        )

    def _require_room(self, n: int) -> None:
        """Refuse what could never be taken."""
        room = self.batcher.slots + self.batcher.queue
        if n > room:
            raise ConfigError(
                f"{n} answers (and prompts to be scored) at once are more than this server takes: "
                f"{room}; ask for fewer",
                key="n",
            )

    def _config(self, model: Model, body: GenerationBody) -> FuseConfig:
        """The ensemble that a body asks."""
        if body.logitfuse is None:
            return model.config
        try:
            return override(model.config, model.members, body.logitfuse.parts)
        except ConfigError as error:
            raise ConfigError(str(error), key=f"logitfuse.{error.key}") from None
        except FusionError as error:
            raise ConfigError(str(error), key="logitfuse.weights") from None


def _echo(prompt: Prompt, text: str) -> None:
    """Let the answers begin with the prompt."""
    for choice in prompt.choices:
        choice.echo = text


def _scoring(
    model: Model, config: FuseConfig, prompt: Prompt, given: Asked, top_logprobs: int
) -> list[Seat]:
    """Have the prompt's tokens scored, and the answers wait for that."""
    prompt.cut = cut_prompt(model.engine, given)
    for choice in prompt.choices:
        choice.offset = 0
    if not prompt.cut.text:
        prompt.score(top_logprobs)
        return []
    prompt.held = True
    request = prompt.cut.request(top_logprobs)
    return [Seat(Job(config, request, text=prompt.cut.text), prompt, None)]


def _answering(job: Job, prompt: Prompt) -> list[Seat]:
    """Have the prompt answered, by a job for each choice."""
    seats = []
    for i, choice in enumerate(prompt.choices):
        sampling = job.request.sampling
        if sampling.seed is not None:  # or all choices would be one
            sampling = sampling.model_copy(update={"seed": (sampling.seed + i) % 2**64})
        own = replace(job, request=replace(job.request, sampling=sampling))
        seats.append(Seat(own, prompt, choice))
    return seats


def _silence(prompt: Prompt, rendered: Mapping[int, Rendered]) -> None:
    """No answer is wanted."""
    prompt.n_tokens = n_tokens(rendered)
    for choice in prompt.choices:
        choice.finish_reason, choice.complete = "length", True


def _prompts(given: str | list[int] | list[str] | list[list[int]]) -> Sequence[Asked]:
    """One prompt or several."""
    several = not isinstance(given, str) and given and not isinstance(given[0], int)
    return given if several else [given]  # type: ignore[list-item, return-value]


def fingerprint(config: FuseConfig) -> str:
    """The same for answers that the same seed makes the same."""
    said = f"{_core.__version__} {config.model_dump_json()}"
    return f"fp_{hashlib.sha256(said.encode()).hexdigest()[:12]}"
