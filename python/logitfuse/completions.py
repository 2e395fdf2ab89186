"""From llama-cpp-python's arguments to a request, and from chunks to its OpenAI dictionaries."""

from __future__ import annotations

import codecs
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from logitfuse.config import explain
from logitfuse.constraint import LlamaGrammar, constraint_of
from logitfuse.echo import TokenScore, score_step
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
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")

    def whole(
        self,
        chunks: Sequence[Chunk],
        prompt_tokens: int,
        echo: str = "",
        scores: Sequence[TokenScore] = (),
    ) -> Response:
        """The answer as one object.

        Parameters
        ----------
        chunks : sequence of Chunk
        prompt_tokens : int
            For the usage.
        echo : str
            The prompt, to begin the text with.
        scores : sequence of TokenScore
            Of the prompt, to begin the log-probabilities with.  The end then is a token as well:
            behind a prompt there are as many as were generated.
        """
        said = [step for chunk in chunks for step in chunk.steps]
        steps = [step for step in said if step.unit]
        text = echo + "".join(chunk.text for chunk in chunks)
        finish = chunks[-1].finish_reason
        listed = said if scores else steps
        return {
            **self._object(self.kind, self._message(text), listed, finish, scores),
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": len(steps),
                "total_tokens": prompt_tokens + len(steps),
            },
        }

    def stream(
        self, chunks: Iterator[Chunk], echo: str = "", scores: Sequence[TokenScore] = ()
    ) -> Iterator[Response]:
        """The answer as one object per piece of text; the last one has the finish reason.

        Parameters as for `whole`; what is echoed comes first, in an object of its own.
        """
        yield from self._opening(echo, scores)
        waiting: list[Step] = []
        for chunk in chunks:
            waiting += [step for step in chunk.steps if step.unit or scores]
            if chunk.text:
                yield self._object(self.stream_kind, self._delta(chunk.text), waiting or None, None)
                waiting = []
            if (finish := chunk.finish_reason) is not None:
                yield self._object(self.stream_kind, self._delta(""), waiting or None, finish)

    def _opening(self, echo: str, scores: Sequence[TokenScore]) -> Iterator[Response]:
        if echo:
            yield self._object(self.stream_kind, self._delta(echo), None, None, scores)

    def _message(self, text: str) -> Response:
        return {"text": text}

    def _delta(self, text: str) -> Response:
        return {"text": text}

    def _object(
        self,
        kind: str,
        content: Response,
        steps: Sequence[Step] | None,
        finish_reason: str | None,
        scores: Sequence[TokenScore] = (),
    ) -> Response:
        listed = None
        if self._logprobs is not None and (steps is not None or scores):
            listed = self._list_logprobs(steps or (), scores)
        choice = {"index": 0, **content, "logprobs": listed, "finish_reason": finish_reason}
        return {"object": kind, **self._head, "choices": [choice]}

    def _list_logprobs(self, steps: Sequence[Step], scores: Sequence[TokenScore]) -> Response:
        tokens = [*scores, *(score_step(step, self._logprobs or 0) for step in steps)]
        if scores:
            self._offset = 0
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(token.text))
        return {
            "tokens": [text_of(token.text) for token in tokens],
            "text_offset": offsets,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [_by_text(token) for token in tokens],
        }


def _by_text(token: TokenScore) -> dict[str, float] | None:
    """The best log-probability of each text: parts of different characters look the same."""
    if token.logprob is None:
        return None
    best: dict[str, float] = {}
    for unit, logprob in token.top:  # the most probable come first
        best.setdefault(text_of(unit), logprob)
    return best


class ChatFormat(CompletionFormat):
    """``chat.completion`` objects and chunks."""

    kind = "chat.completion"
    stream_kind = "chat.completion.chunk"
    prefix = "chatcmpl"

    def _opening(self, echo: str, scores: Sequence[TokenScore]) -> Iterator[Response]:
        del echo, scores
        yield self._object(self.stream_kind, {"delta": {"role": "assistant"}}, None, None)

    def _message(self, text: str) -> Response:
        return {"message": {"role": "assistant", "content": text}}

    def _delta(self, text: str) -> Response:
        return {"delta": {"content": text} if text else {}}

    def _list_logprobs(self, steps: Sequence[Step], scores: Sequence[TokenScore]) -> Response:
        del scores  # a chat is not echoed

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
