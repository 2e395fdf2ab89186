"""From llama-cpp-python's arguments to a request, and from chunks to its OpenAI dictionaries."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from logitfuse.config import explain
from logitfuse.constraint import LlamaGrammar, constraint_of
from logitfuse.sampling import SamplingParams
from logitfuse.strategies.base import Chunk, Message, Request, Step

Response = dict[str, Any]


def text_of(unit: bytes) -> str:
    """A unit as text; parts of a character become U+FFFD."""
    return unit.decode("utf-8", "replace")


class CompletionFormat:
    """``text_completion`` objects.

    Parameters
    ----------
    model : str
        Echoed in every object.
    logprobs : int or None
        How many best symbols to list per token; None: no log-probabilities at all.
    offset : int
        Where the answer begins: text offsets count from the beginning of the prompt.
    """

    kind = "text_completion"
    stream_kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, model: str, logprobs: int | None, offset: int = 0) -> None:
        self._head = {
            "id": f"{self.prefix}-{uuid.uuid4()}",
            "created": int(time.time()),
            "model": model,
        }
        self._logprobs = logprobs
        self._offset = offset

    def whole(self, chunks: Sequence[Chunk], prompt_tokens: int, echo: str = "") -> Response:
        """The answer as one object."""
        steps = [step for chunk in chunks for step in chunk.steps if step.unit]
        text = echo + "".join(chunk.text for chunk in chunks)
        return {
            **self._object(self.kind, self._message(text), steps, chunks[-1].finish_reason),
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": len(steps),
                "total_tokens": prompt_tokens + len(steps),
            },
        }

    def stream(self, chunks: Iterator[Chunk], echo: str = "") -> Iterator[Response]:
        """The answer as one object per piece of text; the last one has the finish reason."""
        yield from self._opening(echo)
        waiting: list[Step] = []
        for chunk in chunks:
            waiting += [step for step in chunk.steps if step.unit]
            if chunk.text:
                yield self._object(self.stream_kind, self._delta(chunk.text), waiting or None, None)
                waiting = []
            if (finish := chunk.finish_reason) is not None:
                yield self._object(self.stream_kind, self._delta(""), waiting or None, finish)

    def _opening(self, echo: str) -> Iterator[Response]:
        if echo:
            yield self._object(self.stream_kind, self._delta(echo), None, None)

    def _message(self, text: str) -> Response:
        return {"text": text}

    def _delta(self, text: str) -> Response:
        return {"text": text}

    def _object(
        self, kind: str, content: Response, steps: Sequence[Step] | None, finish_reason: str | None
    ) -> Response:
        listed = None if self._logprobs is None or steps is None else self._list_logprobs(steps)
        choice = {"index": 0, **content, "logprobs": listed, "finish_reason": finish_reason}
        return {"object": kind, **self._head, "choices": [choice]}

    def _list_logprobs(self, steps: Sequence[Step]) -> Response:
        offsets = []
        for step in steps:
            offsets.append(self._offset)
            self._offset += len(step.unit.decode("utf-8", "ignore"))
        return {
            "tokens": [text_of(step.unit) for step in steps],
            "text_offset": offsets,
            "token_logprobs": [step.logprob for step in steps],
            "top_logprobs": [{text_of(unit): p for unit, p in step.top} for step in steps],
        }


class ChatFormat(CompletionFormat):
    """``chat.completion`` objects and chunks."""

    kind = "chat.completion"
    stream_kind = "chat.completion.chunk"
    prefix = "chatcmpl"

    def _opening(self, echo: str) -> Iterator[Response]:
        del echo
        yield self._object(self.stream_kind, {"delta": {"role": "assistant"}}, None, None)

    def _message(self, text: str) -> Response:
        return {"message": {"role": "assistant", "content": text}}

    def _delta(self, text: str) -> Response:
        return {"delta": {"content": text} if text else {}}

    def _list_logprobs(self, steps: Sequence[Step]) -> Response:
        def entry(unit: bytes, logprob: float) -> Response:
            return {"token": text_of(unit), "logprob": logprob, "bytes": list(unit)}

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
