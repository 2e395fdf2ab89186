"""The ensemble as a language model of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from logitfuse import _core
from logitfuse.ensemble import Ensemble
from logitfuse.errors import ConfigError
from logitfuse.harness.arguments import config_of, generation_of
from logitfuse.harness.transcript import read_context, split_space, write_chat
from logitfuse.harness.windows import Room, windows
from logitfuse.scoring import score_reply
from logitfuse.strategies.base import Request

T = TypeVar("T")


@register_model("logitfuse")
class LogitfuseLM(LM):  # type: ignore[misc]
    """An ensemble that lm-evaluation-harness asks.

    * Log-likelihoods are of bytes: exact in ``bytes``, else along the primary's canonical tokens of
      the continuation.  Whitespace at the end of a context belongs to the continuation, as in the
      harness's own models; an empty context is the beginning of a document.
    * Every member reads a chat through its own template, so a chat stays a list of messages,
      written as JSON between `apply_chat_template` and the answer; a ``gen_prefix`` begins the
      reply.
    * Requests are answered one after another, those with a common context together: the members
      keep what they have read.  There is no batch size.  llama.cpp's products of quantised weights
      depend on how many tokens are decoded at once, so figures depend on ``n_batch``; the order of
      the continuations of a context changes nothing.
    * A plain context that is too long loses its beginning; a chat is refused.

    Parameters
    ----------
    ensemble : Ensemble or path
        Or `model` or `hf`, and all else that `config_of` describes.
    max_gen_toks : int
        Most units of a reply, where a task sets no other length.
    batch_size, max_batch_size, device : object
        The harness always gives them, and they change nothing: there are no batches, and members
        have devices of their own (`n_gpu_layers`, `main_gpu`).

    Raises
    ------
    ConfigError
        No models, unknown arguments, wrong values.
    ModelNotFoundError, ModelLoadError, UnsupportedTokenizerError, FusionError
    """

    def __init__(
        self,
        *,
        max_gen_toks: int = 256,
        batch_size: object = None,
        max_batch_size: object = None,
        device: object = None,
        **arguments: Any,
    ) -> None:
        super().__init__()
        del batch_size, max_batch_size, device
        ensemble = arguments.get("ensemble")
        if isinstance(ensemble, Ensemble):
            if others := arguments.keys() - {"ensemble"}:
                raise ConfigError(f"an Ensemble has these already: {', '.join(sorted(others))}")
            self.ensemble = ensemble
        else:
            self.ensemble = Ensemble.from_config(config_of(arguments))
        self.max_gen_toks = max_gen_toks
        engine = self.ensemble.generator
        running = [m for m, weight in zip(engine.members, engine.weights, strict=True) if weight]
        self._room = Room(running)

    # -- what the harness asks ----------------------------------------------------------------

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """For each context and continuation: its log-likelihood, nats, and whether it is greedy."""
        return self._answer("loglikelihood", requests, self._continuation, disable_tqdm)

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """For each document: its log-likelihood, nats; see `logitfuse.harness.windows`."""
        return self._answer("loglikelihood_rolling", requests, self._document, disable_tqdm)

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """For each context and its settings (`generation_of`): the reply before a stop string."""
        return self._answer("generate_until", requests, self._reply, disable_tqdm)

    def _answer(
        self, kind: str, requests: Sequence[Instance], answer: Callable[..., T], quiet: bool
    ) -> list[T]:
        """Answer requests sorted by context; the answers are in the order of the requests."""
        asked: list[tuple[Any, ...]] = [request.args for request in requests]
        found: dict[int, T] = {}
        order = sorted(range(len(asked)), key=lambda i: asked[i][0])
        for i in tqdm(order, desc=f"Running {kind} requests", disable=quiet or self.rank != 0):
            found[i] = answer(*asked[i])
            self.cache_hook.add_partial(kind, asked[i], found[i])
        return [found[i] for i in range(len(asked))]

    def _continuation(self, context: str, continuation: str) -> tuple[float, bool]:
        prompt, space = split_space(read_context(context))
        text = space + continuation
        if not text:
            return 0.0, True
        if isinstance(prompt, str):
            prompt = self._room.end_of(prompt, text)
        score = score_reply(self.ensemble.generator, Request(prompt), text)
        return score.nats, score.greedy

    def _document(self, text: str) -> float:
        engine = self.ensemble.generator
        return sum(
            score_reply(engine, Request(context), piece).nats
            for context, piece in windows(self._room, text)
        )

    def _reply(self, context: str, settings: Mapping[str, Any]) -> str:
        asked = generation_of(settings, self.ensemble.config.sampling, self.max_gen_toks)
        prompt = read_context(context)
        if isinstance(prompt, str):
            prompt = self._room.before_reply(prompt, asked.length)
        request = Request(prompt, asked.sampling, max_tokens=asked.length, stop=asked.stop)
        return "".join(chunk.text for chunk in self.ensemble.stream(request))

    # -- chats --------------------------------------------------------------------------------

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The chat as marked JSON; without `add_generation_prompt`, its last message goes on."""
        return write_chat(chat_history, begun=not add_generation_prompt)

    @property
    def tokenizer_name(self) -> str:
        """What requests depend on when the harness caches them: contexts are the same for all."""
        return "logitfuse"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The members' templates, for the harness's log.

        Raises
        ------
        ConfigError
            One was asked for by name.
        """
        if isinstance(chat_template, str):
            raise ConfigError(
                f"every member has its own chat template; give none by name ({chat_template!r})"
            )
        if not chat_template:
            return None
        members = self.ensemble.generator.members
        return "\n".join(f"{m.name}: {m.model.chat_template or 'none'}" for m in members)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness notes with the results."""
        engine = self.ensemble.generator
        return {
            "logitfuse_version": _core.__version__,
            "ensemble": self.ensemble.config.model_dump(mode="json", exclude_defaults=True),
            "strategy": type(engine).__name__.lower(),
            "member_names": [member.name for member in engine.members],
            "weights": list(engine.weights),
        }
