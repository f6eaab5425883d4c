"""What the OpenAI endpoints read. Fields that are not here are ignored, unless they would change the answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, FailFast, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from deploy.triton.limits import LARGEST_SEED
from deploy.triton.protocol import Sampling
from service.api.schemas import MOST_STOPS, Penalty, Stops, Temperature, TopP
from service.errors import UnsupportedParameter
from service.tasks.writing import DEFAULT_NEW_TOKENS, random_seed

MOST_MESSAGES = 1000
COMPLETION_TOKENS = 16
"""What OpenAI's completions write where nothing is said."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "logit_bias": ({},),
    "logprobs": (False,),
    "min_p": (0,),
    "modalities": (["text"],),
    "n": (1,),
    "presence_penalty": (0,),
    "prompt_logprobs": (),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "use_beam_search": (False,),
    "web_search_options": (),
}
"""Parameters that are not offered, and the values, beside null, at which they change nothing."""


def _prompt(value: Any) -> str | list[int]:
    """One text, or the token ids of one; also as the only item of a list."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, list) and value and all(type(each) is int for each in value):
        return value
    raise PydanticCustomError("prompt", "it should be one text with more than white space, or a list of token ids")


def _content(value: Any) -> str:
    """A message's text; of a list of parts their texts."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in value
    ):
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
    """A body of OpenAI's. Types are taken at their word."""

    model_config = ConfigDict(strict=True, extra="ignore", use_attribute_docstrings=True)


class StreamOptions(OpenAiModel):
    """How to stream."""

    include_usage: bool | None = None
    """Send the usage in a last chunk without choices."""


class WritingRequest(OpenAiModel):
    """What both endpoints read."""

    model_config = ConfigDict(extra="allow")

    model: str
    """As GET /v1/models names it, or `trident`."""

    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: int | None = Field(default=None, ge=-LARGEST_SEED - 1, le=LARGEST_SEED)
    stop: Stops | None = Field(default=None, description=f"Up to {MOST_STOPS} strings before which the text ends.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    top_k: int | None = Field(default=None, ge=-1)
    """Not OpenAI's: draw from this many likeliest tokens; 0 and -1 are all."""

    repetition_penalty: Penalty | None = None
    """Not OpenAI's: above 1 makes tokens that the answer already holds less likely."""

    min_tokens: int | None = Field(default=None, ge=0)
    """Not OpenAI's: the answer does not end earlier."""

    ignore_eos: bool | None = None
    """Not OpenAI's: write as many tokens as there may be."""

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def refuse_unsupported(self) -> None:
        """Raises UnsupportedParameter for a value that would change the answer, had it an effect."""
        for name, value in (self.model_extra or {}).items():
            neutral = NEUTRAL.get(name, (value,))
            if value is not None and not any(_equal(value, each) for each in neutral):
                raise UnsupportedParameter(f"{name} is not supported here: leave it out", param=name)

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

    max_tokens: int | None = Field(default=None, ge=1)
    """16 where it is left out."""

    @property
    def length_field(self) -> tuple[str, int]:
        """The most tokens of the answer, and what the request calls them."""
        return "max_tokens", COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens


class Message(OpenAiModel):
    """One turn of a conversation."""

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

    max_tokens: int | None = Field(default=None, ge=1)
    """The older name of max_completion_tokens, which wins."""

    max_completion_tokens: int | None = Field(default=None, ge=1)
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


def _equal(value: Any, neutral: Any) -> bool:
    """Equality that tells 1 from true."""
    return isinstance(value, bool) == isinstance(neutral, bool) and value == neutral
