"""From llama-cpp-python's arguments to a request, and from chunks to its OpenAI dictionaries."""

from __future__ import annotations

import codecs
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from logitfuse.config import explain
from logitfuse.constraint import LlamaGrammar, constraint_of
from logitfuse.echo import TokenScore, score_step
from logitfuse.sampling import SamplingParams
from logitfuse.strategies.base import Chunk, FinishReason, Message, Request, Step

Response = dict[str, Any]

#: Stands for minus infinity, which JSON lacks, as at OpenAI.
NEVER = -9999.0


def text_of(unit: bytes) -> str:
    """A unit as text; parts of a character become U+FFFD."""
    return unit.decode("utf-8", "replace")


@dataclass
class Choice:
    """One of the answers to a request, as far as it came.

    Attributes
    ----------
    index : int
        Its place among them.
    offset : int
        Where its next listed token begins, in characters from the beginning of the prompt.
    echo : str
        The prompt, if the text is to begin with it.
    scores : sequence of TokenScore
        Of the prompt, if the log-probabilities are to begin with them.  The end then is a token as
        well: behind a prompt there are as many as were generated.
    text : str
    steps : list of Step
    finish_reason : {"stop", "length"} or None
    complete : bool
        Nothing more will come.
    """

    index: int = 0
    offset: int = 0
    echo: str = ""
    scores: Sequence[TokenScore] = ()
    text: str = ""
    steps: list[Step] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    complete: bool = False
    #: A stream of it has begun, and has told so many characters and steps.
    opened: bool = False
    told: int = 0
    listed: int = 0
    #: Counts characters of tokens that hold parts of them.
    decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("ignore")
    )

    def add(self, chunk: Chunk) -> None:
        """Go on by a piece."""
        self.text += chunk.text
        self.steps += chunk.steps
        self.finish_reason = chunk.finish_reason

    def read(self, chunks: Iterable[Chunk]) -> Choice:
        """Go on to the end; gives itself."""
        for chunk in chunks:
            self.add(chunk)
        return self

    @property
    def n_tokens(self) -> int:
        """Symbols of the answer, without its end."""
        return sum(bool(step.unit) for step in self.steps)


def usage(prompt_tokens: int, completion_tokens: int) -> Response:
    """How many tokens were read and written."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


class CompletionFormat:
    """``text_completion`` objects.

    Parameters
    ----------
    model : str
        Echoed in every object.
    logprobs : int or None
        How many best symbols to list per token; None: no log-probabilities at all.
    trace : callable, optional
        Tells of a step; then every choice has its steps with it.
    **more
        Further keys of every object.

    Attributes
    ----------
    logprobs : int or None
    """

    kind = "text_completion"
    stream_kind = "text_completion"
    prefix = "cmpl"

    def __init__(
        self,
        model: str,
        logprobs: int | None,
        *,
        trace: Callable[[Step], Response] | None = None,
        **more: Any,
    ) -> None:
        self._head = {
            "id": f"{self.prefix}-{uuid.uuid4()}",
            "created": int(time.time()),
            "model": model,
            **more,
        }
        self.logprobs = logprobs
        self._trace = trace

    def whole(self, choices: Sequence[Choice], prompt_tokens: int) -> Response:
        """All answers as one object."""
        entries = []
        for choice in choices:
            message = self._message(choice.echo + choice.text)
            entry = self._entry(choice, message, choice.steps, choice.scores, whole=True)
            entries.append(entry | {"finish_reason": choice.finish_reason})
        written = sum(choice.n_tokens for choice in choices)
        return {**self._object(self.kind, *entries), "usage": usage(prompt_tokens, written)}

    def stream(self, choice: Choice, chunks: Iterable[Chunk]) -> Iterator[Response]:
        """An answer as one object per piece of text; the last one has the finish reason."""
        for chunk in chunks:
            choice.add(chunk)
            yield from self.growth(choice)
        yield from self.ending(choice)

    def growth(self, choice: Choice) -> Iterator[Response]:
        """The objects by which a stream of a choice has grown."""
        if not choice.opened:
            choice.opened = True
            yield from self._opening(choice)
        text, steps = choice.text[choice.told :], choice.steps[choice.listed :]
        if text or (steps and self._trace is not None):
            choice.told, choice.listed = len(choice.text), len(choice.steps)
            yield self._object(self.stream_kind, self._entry(choice, self._delta(text), steps))

    def ending(self, choice: Choice) -> Iterator[Response]:
        """The last object of a choice that is complete."""
        steps = choice.steps[choice.listed :]
        entry = self._entry(choice, self._delta(""), steps)
        yield self._object(self.stream_kind, entry | {"finish_reason": choice.finish_reason})

    def remark(self, **more: Any) -> Response:
        """An object of a stream that is about none of the choices."""
        return {**self._object(self.stream_kind), **more}

    def _opening(self, choice: Choice) -> Iterator[Response]:
        if choice.echo:
            entry = self._entry(choice, self._delta(choice.echo), [], choice.scores)
            yield self._object(self.stream_kind, entry)

    def _object(self, kind: str, *entries: Response) -> Response:
        return {"object": kind, **self._head, "choices": list(entries)}

    def _message(self, text: str) -> Response:
        return {"text": text}

    def _delta(self, text: str) -> Response:
        return {"text": text}

    def _entry(
        self,
        choice: Choice,
        content: Response,
        steps: Sequence[Step],
        scores: Sequence[TokenScore] = (),
        *,
        whole: bool = False,
    ) -> Response:
        """A choice as a piece of a stream, or whole."""
        entry = {"index": choice.index, **content, "logprobs": None, "finish_reason": None}
        listed = [step for step in steps if step.unit or choice.scores]
        if self.logprobs is not None and (listed or scores or whole):
            entry["logprobs"] = self._list_logprobs(choice, listed, scores)
        if self._trace is not None:
            entry["logitfuse"] = {"steps": [self._trace(step) for step in steps]}
        return entry

    def _list_logprobs(
        self, choice: Choice, steps: Sequence[Step], scores: Sequence[TokenScore]
    ) -> Response:
        tokens = [*scores, *(score_step(step, self.logprobs or 0) for step in steps)]
        offsets = []
        for token in tokens:
            offsets.append(choice.offset)
            choice.offset += len(choice.decoder.decode(token.text))
        return {
            "tokens": [text_of(token.text) for token in tokens],
            "text_offset": offsets,
            "token_logprobs": [
                None if token.logprob is None else _finite(token.logprob) for token in tokens
            ],
            "top_logprobs": [_by_text(token) for token in tokens],
        }


class ChatFormat(CompletionFormat):
    """``chat.completion`` objects and chunks."""

    kind = "chat.completion"
    stream_kind = "chat.completion.chunk"
    prefix = "chatcmpl"

    def _opening(self, choice: Choice) -> Iterator[Response]:
        entry = self._entry(choice, {"delta": {"role": "assistant"}}, [])
        yield self._object(self.stream_kind, entry)

    def _message(self, text: str) -> Response:
        return {"message": {"role": "assistant", "content": text}}

    def _delta(self, text: str) -> Response:
        return {"delta": {"content": text} if text else {}}

    def _list_logprobs(
        self, choice: Choice, steps: Sequence[Step], scores: Sequence[TokenScore]
    ) -> Response:
        del choice, scores  # a chat is not echoed

        def entry(unit: bytes, logprob: float) -> Response:
            return {"token": text_of(unit), "logprob": _finite(logprob), "bytes": list(unit)}

        return {
            "content": [
                {
                    **entry(step.unit, step.logprob),
                    "top_logprobs": [entry(unit, p) for unit, p in step.top],
                }
                for step in steps
            ],
            "refusal": None,
        }


def _by_text(token: TokenScore) -> dict[str, float] | None:
    """The best log-probability of each text: parts of different characters look the same."""
    if token.logprob is None:
        return None
    best: dict[str, float] = {}
    for unit, logprob in token.top:  # the most probable come first
        best.setdefault(text_of(unit), _finite(logprob))
    return best


def _finite(logprob: float) -> float:
    return max(logprob, NEVER)


def llama_request(
    prompt: str | Sequence[int] | Sequence[Message],
    *,
    max_tokens: int | None,
    stop: str | Sequence[str] | None,
    top_logprobs: int | None,
    seed: int | None,
    temperature: float,
    logit_bias: Mapping[int | str | bytes, float] | None = None,
    grammar: str | LlamaGrammar | None = None,
    response_format: Mapping[str, Any] | None = None,
    **sampling: Any,
) -> Request:
    """What the arguments of llama-cpp-python's methods ask for.

    Raises
    ------
    ConfigError
        A value is out of range; a grammar or schema that cannot be used.
    """
    gbnf = grammar if grammar is None or isinstance(grammar, str) else grammar._grammar
    try:
        params = SamplingParams(
            temperature=0.0 if temperature < 0 else temperature,  # llama.cpp: greedy too
            seed=seed,
            logit_bias=dict(logit_bias or {}),
            **sampling,
        )
    except ValidationError as error:
        raise explain(error) from None
    return Request(
        prompt=prompt,
        sampling=params,
        max_tokens=max_tokens if max_tokens and max_tokens > 0 else None,
        stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
        top_logprobs=top_logprobs or 0,
        constraint=constraint_of(response_format, gbnf),
    )
