"""What the OpenAI endpoints read. What other fields may hold stands in openai_fields.py."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from deploy.triton.limits import LARGEST_SEED
from deploy.triton.protocol import Sampling
from service.api.openai_fields import MESSAGE, REQUEST, STREAM_OPTIONS, TEXT_PART, ForeignFields
from service.api.schemas import MOST_STOPS, Penalty, Stops, Temperature, TopP
from service.tasks.writing import DEFAULT_NEW_TOKENS, random_seed

MOST_MESSAGES = 1000
COMPLETION_TOKENS = 16
"""What OpenAI's completions write where nothing is said."""


EXACT_FLOATS = 2**53
"""Up to here every integer is a float of its own."""


def _whole(value: Any) -> Any:
    """Integers that came as floats: JSON knows one kind of number, and some clients write 4 as 4.0."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT_FLOATS else value


WHOLE = BeforeValidator(_whole)
Tokens = Annotated[int, Field(ge=1), WHOLE]
"""A number of tokens."""


def _prompt(value: Any) -> str | list[int]:
    """One text, or the token ids of one; also as the only item of a list."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, list):
        ids = [_whole(each) for each in value]
        if ids and all(type(each) is int for each in ids):
            return ids
    raise PydanticCustomError("prompt", "it should be one text with more than white space, or a list of token ids")


def _content(value: Any) -> str:
    """A message's text; of a list of parts their texts."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in value
    ):
        for index, part in enumerate(value):
            TEXT_PART.check(part, ("type", "text"), f"{index}.")
        return "".join(part["text"] for part in value)
    raise PydanticCustomError("content", "it should be a text, or a list of parts of the type text")


_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 1},
        {"type": "array", "items": {"type": "integer"}, "minItems": 1},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}, "minItems": 1, "maxItems": 1},
    ]
}
_CONTENT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                "required": ["type", "text"],
            },
        },
        {"type": "null"},
    ]
}


class OpenAiModel(BaseModel):
    """An object of OpenAI's. Types are taken at their word."""

    model_config = ConfigDict(strict=True, extra="ignore", use_attribute_docstrings=True)

    foreign: ClassVar[ForeignFields]
    """What it may hold beside its fields."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_foreign(cls, values: Any) -> Any:
        # Before the fields: a typo is why the field that was meant is missing.
        if isinstance(values, dict):
            cls.foreign.check(values, cls.model_fields)
        return values


class StreamOptions(OpenAiModel):
    """How to stream."""

    foreign = STREAM_OPTIONS

    include_usage: bool | None = None
    """Send the usage in a last chunk without choices."""


class WritingRequest(OpenAiModel):
    """What both endpoints read."""

    foreign = REQUEST

    model: str
    """As GET /v1/models names it, or `trident`."""

    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Annotated[int, Field(ge=-LARGEST_SEED - 1, le=LARGEST_SEED), WHOLE] | None = None
    stop: Stops | None = Field(default=None, description=f"Up to {MOST_STOPS} strings before which the text ends.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    service_tier: Literal["auto", "default", "flex", "priority"] | None = None
    """Class of service: priority goes before what others ask for, flex takes what is left; auto is default. Where it is
    given, the answer says which it was."""

    top_k: Annotated[int, Field(ge=-1), WHOLE] | None = None
    """Not OpenAI's: draw from this many likeliest tokens; 0 and -1 are all."""

    repetition_penalty: Penalty | None = None
    """Not OpenAI's: above 1 makes tokens that the answer already holds less likely."""

    min_tokens: Annotated[int, Field(ge=0), WHOLE] | None = None
    """Not OpenAI's: the answer does not end earlier."""

    ignore_eos: bool | None = None
    """Not OpenAI's: write as many tokens as there may be."""

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, max_tokens: int) -> Sampling:
        """As the engine reads it."""
        return Sampling(
            max_new_tokens=max_tokens,
            min_new_tokens=max_tokens if self.ignore_eos else self.min_tokens or 0,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=self.top_p or 1.0,
            top_k=max(0, self.top_k or 0),
            repetition_penalty=self.repetition_penalty or 1.0,
            # OpenAI's seeds may be negative; the engine's are the same 64 bits without their sign.
            seed=random_seed() if self.seed is None else self.seed & LARGEST_SEED,
        )


class CompletionRequest(WritingRequest):
    """A prompt to go on from."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "trident", "prompt": "The river", "max_tokens": 24, "stream": True}]}
    )

    prompt: Annotated[Any, AfterValidator(_prompt), WithJsonSchema(_PROMPT_SCHEMA)]
    """One text, or the token ids of one."""

    max_tokens: Tokens | None = None
    """16 where it is left out."""

    @property
    def length_field(self) -> tuple[str, int]:
        """The most tokens of the answer, and what the request calls them."""
        return "max_tokens", COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens


class Message(OpenAiModel):
    """One turn of a conversation."""

    foreign = MESSAGE

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Any, BeforeValidator(_content), WithJsonSchema(_CONTENT_SCHEMA)] = ""
    """A text, or a list of parts of the type text."""


class ChatRequest(WritingRequest):
    """A conversation to answer."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "trident",
                    "messages": [{"role": "user", "content": "Name three colours."}],
                    "max_completion_tokens": 32,
                }
            ]
        }
    )

    messages: Annotated[list[Message], FailFast(), Field(min_length=1, max_length=MOST_MESSAGES)]
    """The model learnt from instructions, not from conversations: all turns are joined by blank lines."""

    max_tokens: Tokens | None = None
    """The older name of max_completion_tokens, which wins."""

    max_completion_tokens: Tokens | None = None
    """128 where both are left out."""

    @property
    def length_field(self) -> tuple[str, int]:
        """The most tokens of the answer, and what the request calls them."""
        if self.max_completion_tokens is not None or self.max_tokens is None:
            return "max_completion_tokens", self.max_completion_tokens or DEFAULT_NEW_TOKENS
        return "max_tokens", self.max_tokens

    @property
    def prompt(self) -> str:
        """All turns as one instruction."""
        return "\n\n".join(message.content for message in self.messages if message.content.strip())
