"""What the API answers, for those who read its description.

`logitfuse.completions` makes the objects; these are their shapes.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

Finish = Literal["stop", "length"]


class PromptTokens(BaseModel):
    """Of prompts: tokens that had been read before."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens: of the first member for prompts, of the ensemble for answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens


class Candidate(BaseModel):
    """A unit that a member might have said."""

    text: str
    bytes: list[int]
    logprob: float = Field(description="the member's own, nats")


class Vote(BaseModel):
    """A member's part in a step."""

    name: str
    logprob: float | None = Field(description="its own, nats; null: it cannot say this, or is out")
    wish: str | None = Field(description="what it alone would have said; null: it did not vote")
    candidates: list[Candidate] | None = None


class Trace(BaseModel):
    """A step: a unit of the answer, or its end, and who wanted it."""

    text: str
    bytes: list[int]
    logprob: float | None = Field(description="pooled, nats")
    decision: Literal["fused", "agree", "certain", "led"]
    members: list[Vote]


class Steps(BaseModel):
    """With a choice, if a trace was asked for."""

    steps: list[Trace]


class Summary(BaseModel):
    """With the last object, if a trace was asked for."""

    members: list[str]
    stats: dict[str, Any]


class TextLogprobs(BaseModel):
    """Log-probabilities of a text's tokens, nats."""

    tokens: list[str]
    text_offset: list[int]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]


class TextChoice(BaseModel):
    """One text."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Finish | None
    logitfuse: Steps | None = None


class Completion(BaseModel):
    """Answer to a text."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage | None = None
    logitfuse: Summary | None = None


class TopLogprob(BaseModel):
    """A token that might have been said."""

    token: str
    bytes: list[int]
    logprob: float


class TokenLogprob(TopLogprob):
    """A token that was said."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of a message's tokens, nats."""

    content: list[TokenLogprob]
    refusal: None


class Reply(BaseModel):
    """What the assistant says."""

    role: Literal["assistant"]
    content: str


class ChatChoice(BaseModel):
    """One reply."""

    index: int
    message: Reply
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None
    logitfuse: Steps | None = None


class ChatCompletion(BaseModel):
    """Answer to a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage | None = None
    logitfuse: Summary | None = None


class ModelObject(BaseModel):
    """An ensemble."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """All ensembles."""

    object: Literal["list"]
    data: list[ModelObject]


class Tokens(BaseModel):
    """Symbols of a text."""

    tokens: list[Any] = Field(description="ids; with_pieces: objects of id and piece")
    count: int
    max_model_len: int


class Text(BaseModel):
    """What symbols spell."""

    content: str
    prompt: str


class Health(BaseModel):
    """Whether the server answers."""

    status: str


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Why there is no answer."""

    error: ErrorDetail
