"""The facade that quacks like llama_cpp.Llama."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Self

from logitfuse.completions import (
    ChatFormat,
    Choice,
    CompletionFormat,
    Response,
    llama_request,
    text_of,
)
from logitfuse.config import FuseConfig, build, load_config, parse_config
from logitfuse.constraint import LlamaGrammar
from logitfuse.echo import score_prompt, tokenize
from logitfuse.errors import ConfigError, LogitfuseError, PromptError
from logitfuse.strategies.base import ChunkStream, Message, Request
from logitfuse.strategies.engine import Engine
from logitfuse.strategies.stats import RunStats

AnyPath = str | PathLike[str]


class Ensemble:
    """Several models that answer as one, with the methods of ``llama_cpp.Llama``.

    Token ids of an ensemble are the *symbols* of its alignment; with one member, or members of one
    vocabulary, they are that vocabulary's token ids.

    Parameters
    ----------
    model_paths : path or sequence of paths
        GGUF files.
    weights : sequence of float, optional
        Equal by default; see `logitfuse.fuse`.
    n_ctx, n_threads, n_gpu_layers, main_gpu : int or sequence of int, optional
        One for all members or one per member; see `Member`.  By default the members share the
        cores, stay on the CPU, and have a context of 4096 tokens or less.
    n_batch : int
    flash_attn, use_mmap : bool
    seed : int, optional
        Of all answers that are not given their own; random by default.
    **parts
        Any other key of an ensemble file (`logitfuse.config.FuseConfig`): preset, strategy,
        pool, alignment, weighting, learned, gate, solo, schedule, ...

    Raises
    ------
    ModelNotFoundError, ModelLoadError, UnsupportedTokenizerError, FusionError, ConfigError

    Examples
    --------
    >>> from logitfuse import Ensemble
    >>> with Ensemble(["a.gguf", "b.gguf"], weights=[0.6, 0.4]) as ensemble:  # doctest: +SKIP
    ...     print(ensemble("The capital of France is", max_tokens=8)["choices"][0]["text"])
    """

    def __init__(
        self,
        model_paths: AnyPath | Sequence[AnyPath],
        *,
        weights: Sequence[float] | None = None,
        n_ctx: int | Sequence[int] | None = None,
        n_batch: int = 512,
        n_threads: int | Sequence[int] | None = None,
        n_gpu_layers: int | Sequence[int] = 0,
        main_gpu: int | Sequence[int] = 0,
        flash_attn: bool = True,
        use_mmap: bool = True,
        seed: int | None = None,
        **parts: Any,
    ) -> None:
        paths = [model_paths] if isinstance(model_paths, str | PathLike) else list(model_paths)
        per_member: dict[str, list[Any]] = {
            "weight": [None] * len(paths) if weights is None else list(weights),
            "n_ctx": _spread("n_ctx", n_ctx, len(paths)),
            "n_threads": _spread("n_threads", n_threads, len(paths)),
            "n_gpu_layers": _spread("n_gpu_layers", n_gpu_layers, len(paths)),
            "main_gpu": _spread("main_gpu", main_gpu, len(paths)),
        }
        if len(per_member["weight"]) != len(paths):
            raise ConfigError(
                f"{len(paths)} models need as many weights, not {len(per_member['weight'])}",
                key="weights",
            )
        entries = [
            {"model": path, "n_batch": n_batch, "flash_attn": flash_attn, "use_mmap": use_mmap}
            | {key: values[i] for key, values in per_member.items() if values[i] is not None}
            for i, path in enumerate(paths)
        ]
        self._start(parse_config({**parts, "member": entries}), seed)

    def _start(self, config: FuseConfig, seed: int | None) -> None:
        self.config = config
        self._fuse = build(config)
        self._closed = False
        self._seed = config.sampling.seed if seed is None else seed

    @classmethod
    def from_config(cls, config: AnyPath | FuseConfig | Mapping[str, Any]) -> Ensemble:
        """The ensemble of a TOML file (see `logitfuse.config`), or of its contents.

        Raises
        ------
        ConfigError
            Unknown keys (the nearest one is named), wrong values.
        """
        if isinstance(config, str | PathLike):
            config = load_config(config)
        elif isinstance(config, Mapping):
            config = parse_config(dict(config))
        ensemble = cls.__new__(cls)
        ensemble._start(config, None)
        return ensemble

    @classmethod
    def from_pretrained(cls, sources: str | Sequence[str], **options: Any) -> Ensemble:
        """The ensemble of models on the Hugging Face hub, ``user/repo[:quant]`` each.

        Needs the ``[hub]`` extra; the other arguments are those of `Ensemble`.
        """
        from logitfuse.hub import download

        names = [sources] if isinstance(sources, str) else sources
        return cls([download(name) for name in names], **options)

    def close(self) -> None:
        """Free the models."""
        self._closed = True
        self._fuse.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Ensemble({self._fuse.name!r}, {self._fuse.alignment!r})"

    @property
    def generator(self) -> Engine:
        """The strategy behind this facade.

        Raises
        ------
        LogitfuseError
            The ensemble is closed.
        """
        if self._closed:
            raise LogitfuseError("the ensemble is closed; make a new one")
        return self._fuse

    @property
    def stats(self) -> RunStats:
        """What the last answer took."""
        return self._fuse.stats

    def stream(self, request: Request) -> ChunkStream:
        """Answer with full detail: every step, who wanted it, how it was decided."""
        return self.generator.stream(request)

    def create_completion(
        self,
        prompt: str | Sequence[int],
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | Sequence[str] | None = (),
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        model: str | None = None,
        grammar: str | LlamaGrammar | None = None,
        logit_bias: Mapping[int | str | bytes, float] | None = None,
    ) -> Response | Iterator[Response]:
        """Continue a text; arguments and results as in ``llama_cpp.Llama.create_completion``.

        Parameters
        ----------
        prompt : str or sequence of int
            Text, or symbols from `tokenize`.
        max_tokens : int or None
            None or 0: until the end or the context is full.
        logprobs : int, optional
            List this many best symbols per token; log-probabilities are the pool's.
        echo : bool
            Begin the text with the prompt, and the log-probabilities with those of its tokens (see
            `logitfuse.echo`): the first one has none, and the end is a token too.
        stream : bool
            Give an iterator of chunks instead.
        grammar : str or llama_cpp.LlamaGrammar, optional
            What the answer may be: GBNF, or Lark if it begins with ``%llguidance``.

        Returns
        -------
        dict or iterator of dict
            OpenAI ``text_completion`` objects; usage counts the first member's prompt tokens.

        Raises
        ------
        PromptError, ContextLengthError, ConfigError, FusionError, MemberError
        """
        text = prompt if isinstance(prompt, str) else text_of(self.detokenize(prompt))
        form = CompletionFormat(model or self.generator.name, logprobs)
        request = self._request(
            prompt,
            max_tokens=max_tokens,
            stop=stop,
            top_logprobs=logprobs,
            seed=seed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            repeat_penalty=repeat_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            logit_bias=logit_bias,
            grammar=grammar,
        )
        choice = Choice(offset=len(text), echo=text if echo else "")
        if echo and logprobs is not None:
            choice.scores, choice.offset = score_prompt(self.generator, prompt, logprobs), 0
        return self._respond(form, choice, request, stream)

    __call__ = create_completion

    def create_chat_completion(
        self,
        messages: Sequence[Message],
        temperature: float = 0.2,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        stream: bool = False,
        stop: str | Sequence[str] | None = (),
        seed: int | None = None,
        response_format: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        model: str | None = None,
        grammar: str | LlamaGrammar | None = None,
        logit_bias: Mapping[int | str | bytes, float] | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
    ) -> Response | Iterator[Response]:
        """Answer a chat; arguments and results as in ``llama_cpp.Llama.create_chat_completion``.

        Every member reads the chat through its own template; the reply is shared.

        Parameters
        ----------
        response_format : mapping, optional
            What the answer may be: ``{"type": "json_object"}``, perhaps with a ``"schema"``, or
            OpenAI's ``{"type": "json_schema", "json_schema": {"schema": ...}}``.
        grammar : str or llama_cpp.LlamaGrammar, optional
            The same as a grammar, see `create_completion`.

        Returns
        -------
        dict or iterator of dict
            OpenAI ``chat.completion`` objects or ``chat.completion.chunk`` objects.

        Raises
        ------
        PromptError, ContextLengthError, ConfigError, FusionError, MemberError
        """
        form = ChatFormat(model or self.generator.name, (top_logprobs or 0) if logprobs else None)
        request = self._request(
            list(messages),
            max_tokens=max_tokens,
            stop=stop,
            top_logprobs=top_logprobs,
            seed=seed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            repeat_penalty=repeat_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            logit_bias=logit_bias,
            grammar=grammar,
            response_format=response_format,
        )
        return self._respond(form, Choice(), request, stream)

    def _respond(
        self, form: CompletionFormat, choice: Choice, request: Request, stream: bool
    ) -> Response | Iterator[Response]:
        chunks = self.stream(request)
        if stream:
            return form.stream(choice, chunks)
        return form.whole([choice.read(chunks)], self.stats.prompt_tokens)

    def generate(
        self,
        tokens: Sequence[int],
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.8,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        grammar: str | LlamaGrammar | None = None,
        seed: int | None = None,
    ) -> Iterator[int]:
        """Continue symbols with symbols, the end symbol (`token_eos`) last.

        Parameters
        ----------
        tokens : sequence of int
            From `tokenize`.

        Raises
        ------
        PromptError, ContextLengthError, FusionError, MemberError
        ConfigError
            A bad grammar, or the strategy said something that is no symbol (``bytes`` may).
        """
        request = self._request(
            list(tokens),
            max_tokens=None,
            stop=None,
            top_logprobs=None,
            seed=seed,
            temperature=temp,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            repeat_penalty=repeat_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            grammar=grammar,
        )
        for chunk in self.stream(request):
            for step in chunk.steps:
                if step.symbol < 0:
                    raise ConfigError(
                        f"{step.unit!r} is not the text of any one token; generate needs "
                        "strategy='fuse', or take the text from create_completion",
                        key="strategy",
                    )
                yield step.symbol

    def _request(self, prompt: Any, *, seed: int | None, **options: Any) -> Request:
        return llama_request(prompt, seed=self._seed if seed is None else seed, **options)

    # -- tokens -------------------------------------------------------------------------------

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Symbols of a text, cut as the member cuts it along whose tokens texts are scored.

        That is the one of largest weight, or of several the one with most tokens.

        Parameters
        ----------
        text : bytes
            Valid UTF-8.
        add_bos : bool
            Begin with the begin-of-text token, if all members share a vocabulary that wants one.
            Otherwise every member adds its own to the prompt.
        special : bool
            Recognise special tokens; only if all members share a vocabulary.

        Raises
        ------
        PromptError
            Special tokens were asked of different vocabularies.
        """
        engine = self.generator
        if special and not engine.alignment.identical:
            raise PromptError(
                "members with different vocabularies share no special tokens; pass the prompt as "
                "text, or as chat messages"
            )
        scribe = engine.members[engine.scribe]
        begins = add_bos and engine.alignment.identical and scribe.model.add_bos
        return [scribe.opening] * begins + tokenize(engine, text, special=special)

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """The bytes that symbols spell.

        Raises
        ------
        PromptError
            There is no such symbol.
        """
        return b"".join(self.generator.alignment.spell(tokens))

    def token_eos(self) -> int:
        """The end symbol; -1 if no member has an end token."""
        end = self.generator.alignment.end
        return -1 if end is None else end

    def token_bos(self) -> int:
        """The begin-of-text token of a shared vocabulary; -1 where every member has its own."""
        bos = self.generator.members[0].model.bos
        return bos if self.generator.alignment.identical and bos is not None else -1

    def n_vocab(self) -> int:
        """Number of symbols."""
        return len(self.generator.alignment)

    def n_ctx(self) -> int:
        """Context length of the member with the shortest, tokens."""
        return min(member.n_ctx for member in self.generator.members)

    def reset(self) -> None:
        """Forget the cached prompts."""
        for member in self.generator.members:
            member.reset()


def _spread(name: str, value: int | Sequence[int] | None, n: int) -> list[int | None]:
    """One value for all members, or one per member."""
    if value is None or isinstance(value, int):
        return [value] * n
    if len(value) != n:
        raise ConfigError(f"{n} models need one {name} or {n}, not {len(value)}", key=name)
    return list(value)
