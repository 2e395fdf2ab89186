"""What clients send: OpenAI's fields, llama.cpp's besides, and ours.

Whatever is null counts as absent.  Fields that nobody knows are ignored, as elsewhere; those whose
meaning cannot be honoured are refused (`logitfuse.api.refused`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    field_validator,
    model_validator,
)

from logitfuse.api.refused import refuse, refuse_message

#: Bounds on what every step has to look through.
MOST_STOPS, LONGEST_STOP, MOST_BIASES = 64, 1000, 1000
#: Most candidates that are listed per step.
MOST_LISTED = 20


def _whole(value: object) -> object:
    """JSON has no integers: some clients write 3 as 3.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Probability = Annotated[float, Field(ge=0, le=1)]
Symbol = Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(_whole)]
Symbols = list[Symbol]
Stop = Annotated[str, Field(max_length=LONGEST_STOP)]
Bias = float | Literal[False]
BiasPair = Annotated[tuple[Symbol | str, Bias], Strict(False)]  # JSON has no tuples
Biases = (
    Annotated[dict[str, Bias], Field(max_length=MOST_BIASES)]
    | Annotated[list[BiasPair], Field(max_length=MOST_BIASES)]
)


class Body(BaseModel):
    """Base of all bodies: a number is no text, nor the other way round."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    model: str | None = Field(None, description="name of an ensemble; null: the first one")

    _numbers = field_validator("*", mode="before")(_whole)


class StreamOptions(BaseModel):
    """Of a stream."""

    model_config = ConfigDict(frozen=True, strict=True)

    include_usage: bool | None = Field(None, description="count tokens in a last object")


class JsonSchema(BaseModel):
    """OpenAI's wrapping of a JSON schema."""

    model_config = ConfigDict(frozen=True, strict=True)

    name: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """What the answer must look like."""

    model_config = ConfigDict(frozen=True, strict=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="of a json_object")


class Extension(BaseModel):
    """Ours: what of the ensemble is to be different, and whether to tell who said what.

    Besides the fields below, every part of an ensemble's file (`logitfuse.config.FuseConfig`) but
    its members, files and sampling: ``preset, strategy, pool, gate, schedule, ...``.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    trace: bool | None = Field(None, description="tell every step and who wanted it")
    candidates: int | None = Field(
        None, ge=0, le=MOST_LISTED, description="with trace: how many of each member's own best"
    )
    weights: dict[str, float] | list[float] | None = Field(
        None, description="by member, or in the order of the members"
    )

    _numbers = field_validator("candidates", mode="before")(_whole)

    @property
    def parts(self) -> dict[str, Any]:
        """What is to be different in the ensemble."""
        given = {} if self.weights is None else {"weights": self.weights}
        return given | (self.model_extra or {})


class GenerationBody(Body):
    """What chats and texts have in common.

    Sampling parameters that are absent are those of the ensemble's file, or the defaults of
    `logitfuse.SamplingParams`.
    """

    temperature: float | None = Field(None, ge=0, allow_inf_nan=False, description="0: greedy")
    top_p: Probability | None = Field(None, description="keep the best that sum to p")
    top_k: int | None = Field(None, ge=-(2**31), lt=2**31, description="0 or less: all")
    min_p: Probability | None = Field(None, description="keep what has p times the best")
    typical_p: float | None = Field(None, gt=0, le=1, description="1: off")
    repeat_penalty: float | None = Field(None, gt=0, allow_inf_nan=False, description="1: off")
    repeat_last_n: int | None = Field(None, ge=0, lt=2**31, description="penalty_last_n")
    penalty_last_n: int | None = Field(
        None, ge=0, lt=2**31, description="how many symbols penalties look back at"
    )
    frequency_penalty: float | None = Field(None, allow_inf_nan=False, description="nats")
    presence_penalty: float | None = Field(None, allow_inf_nan=False, description="nats")
    seed: int | None = Field(
        None,
        ge=-(2**31),
        lt=2**64,
        description="of the first choice, one more for each; -1: random, -2 and less: plus 2^32",
    )
    logit_bias: Biases | None = Field(None, description="nats by symbol id or text; false forbids")
    max_tokens: int | None = Field(None, ge=-1, lt=2**31, description="-1: until the end")
    n_predict: int | None = Field(
        None, ge=-2, lt=2**31, description="max_tokens of llama.cpp; -2: until the context is full"
    )
    n: int | None = Field(None, ge=1, le=128, description="how many answers to each prompt")
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    ignore_eos: bool | None = Field(None, description="go on where the members would end")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    json_schema: dict[str, Any] | None = Field(None, description="as in response_format")
    grammar: str | None = Field(None, description="what the answer must be derived from")
    logitfuse: Extension | None = None

    _refused = model_validator(mode="before")(refuse)

    @property
    def is_constrained(self) -> bool:
        """Not every answer will do."""
        form = self.response_format
        plain = self.json_schema is None and (form is None or form.type == "text")
        return bool(self.grammar) or not plain


class Part(BaseModel):
    """A piece of a message."""

    model_config = ConfigDict(frozen=True, strict=True)

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A turn of a chat."""

    model_config = ConfigDict(frozen=True, strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part]
    prefix: bool | None = Field(
        None, description="of a last message of the assistant: it is the beginning of the answer"
    )

    _refused = model_validator(mode="before")(refuse_message)

    @property
    def plain(self) -> dict[str, Any]:
        """As `logitfuse.chat` takes it."""
        text = self.content
        if not isinstance(text, str):
            text = "".join(part.text for part in text)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": text, "prefix": bool(self.prefix)}


class ChatBody(GenerationBody):
    """Of ``/v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=-1, lt=2**31, description="max_tokens")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LISTED)


class CompletionBody(GenerationBody):
    """Of ``/v1/completions``."""

    prompt: str | Symbols | list[str] | list[Symbols] = Field(
        description="text or symbols, of one prompt or of several"
    )
    logprobs: int | None = Field(None, ge=0, le=MOST_LISTED)
    echo: bool | None = Field(None, description="begin with the prompt, and its log-probabilities")
    best_of: int | None = Field(None, ge=1, description="only n")


class TokenizeBody(Body):
    """Of ``/tokenize``; the text is `content` at llama.cpp and `prompt` at vLLM."""

    content: str | None = None
    prompt: str | None = None
    add_special: bool | None = Field(None, description="begin as a prompt begins")
    add_special_tokens: bool | None = Field(None, description="add_special")
    with_pieces: bool | None = Field(None, description="tell what each symbol spells")


class DetokenizeBody(Body):
    """Of ``/detokenize``."""

    tokens: Symbols
