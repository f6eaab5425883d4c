"""What Trident's own endpoints read and write. A field that is not here is an error, so that no typo passes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from deploy.triton.limits import LARGEST_REPETITION_PENALTY, LARGEST_SEED, SMALLEST_REPETITION_PENALTY
from deploy.triton.protocol import Sampling
from service.tasks.answers import Reason
from service.tasks.questions import MAX_ANSWERS
from service.tasks.writing import DEFAULT_NEW_TOKENS, SUMMARY_MIN_TOKENS, random_seed

MOST_STOPS = 4
LONGEST_STOP = 64


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "it should hold more than white space")
    return text


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Text = Annotated[str, Field(min_length=1), AfterValidator(_not_blank)]
"""Text with something in it."""

StopString = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
_STOP_SCHEMA = {"type": "string", "minLength": 1, "maxLength": LONGEST_STOP}
Stops = Annotated[
    list[StopString],
    Field(max_length=MOST_STOPS),
    BeforeValidator(_as_list),
    WithJsonSchema({"anyOf": [_STOP_SCHEMA, {"type": "array", "items": _STOP_SCHEMA, "maxItems": MOST_STOPS}]}),
]
"""One string or a few."""

Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=SMALLEST_REPETITION_PENALTY, le=LARGEST_REPETITION_PENALTY, allow_inf_nan=False)]


class RequestModel(BaseModel):
    """A body. Types are taken at their word: "5" is no number, 1 is no truth value. Null is every default."""

    model_config = ConfigDict(strict=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, values: Any) -> Any:
        if not isinstance(values, dict) or None not in values.values():
            return values
        optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
        return {name: value for name, value in values.items() if value is not None or name not in optional}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The schema says so too."""
        schema = handler.resolve_ref_schema(handler(core))
        for name, field in schema["properties"].items():
            if name not in schema.get("required", ()):
                schema["properties"][name] = _or_null(field)
        return schema


def _or_null(field: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of a field that may also be null."""
    around = {key: value for key, value in field.items() if key in ("title", "description", "default")}
    value = {key: value for key, value in field.items() if key not in around}
    branches = value.get("anyOf", [value])
    null = {"type": "null"}
    return {"anyOf": branches if null in branches else [*branches, null], **around}


class AnswerModel(BaseModel):
    """An answer's body."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class GenerateRequest(RequestModel):
    """Text to go on from, or an instruction to follow."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "The lighthouse was built", "max_new_tokens": 48, "seed": 7}]}
    )

    prompt: Text
    """An instruction with its input goes as `instruction`, a blank line, `input`."""

    max_new_tokens: int = Field(default=DEFAULT_NEW_TOKENS, ge=1)
    """The answer ends here at the latest."""

    min_new_tokens: int = Field(default=0, ge=0)
    """The answer does not end earlier, but for a stop string."""

    temperature: Temperature = 1.0
    """0 always takes the likeliest token."""

    top_p: TopP = 1.0
    """Draw from the smallest set of likeliest tokens whose probabilities reach this."""

    top_k: int = Field(default=0, ge=0)
    """Draw from this many likeliest tokens; 0 is all."""

    repetition_penalty: Penalty = 1.0
    """Above 1 makes tokens that the answer already holds less likely."""

    seed: int | None = Field(default=None, ge=0, le=LARGEST_SEED)
    """Equal seeds give equal texts, whatever else is served at the time. Random where none is given."""

    stop: Stops = []
    """The text ends before the first of these."""

    stream: bool = False
    """Answer with server-sent events, as the text is written."""

    def sampling(self) -> Sampling:
        """As the engine reads it."""
        return Sampling(
            max_new_tokens=self.max_new_tokens,
            min_new_tokens=self.min_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            seed=random_seed() if self.seed is None else self.seed,
        )


class UsageModel(AnswerModel):
    """Tokens, as the model counts them."""

    prompt_tokens: int
    """With the task's own token."""

    completion_tokens: int
    total_tokens: int


class TimingsModel(AnswerModel):
    """Where the time went, milliseconds."""

    queue_ms: float
    """Waiting for a batch and for a slot."""

    prefill_ms: float
    """Encoding the prompt."""

    decode_ms: float
    """Writing the answer."""

    ttft_ms: float
    """From the request's arrival to its first token at the gateway; without `stream` tokens come all together."""

    total_ms: float


class GenerateResponse(AnswerModel):
    """A generated text."""

    id: str
    model: str
    text: str
    finish_reason: Reason
    """`stop`: the model or a stop string ended the text; `length`: it reached `max_new_tokens`."""

    usage: UsageModel
    timings: TimingsModel


class SummarizeRequest(RequestModel):
    """A text to summarise."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "text": "Anna: Did you return the books? Ben: Not yet, the library was closed by the storm.",
                    "max_new_tokens": 40,
                }
            ]
        }
    )

    text: Text
    max_new_tokens: int = Field(default=DEFAULT_NEW_TOKENS, ge=1)
    """The summary ends here at the latest."""

    min_new_tokens: int = Field(default=SUMMARY_MIN_TOKENS, ge=0)
    """The summary does not end earlier."""

    num_beams: int | None = Field(default=None, ge=1)
    """Texts that are followed at once, of which the likeliest is taken. 4 where it is left out, 1 with `stream`,
    which shows tokens that more beams might still take back."""

    stream: bool = False
    """Answer with server-sent events, as the summary is written."""


class SummarizeResponse(AnswerModel):
    """A summary."""

    summary: str
    finish_reason: Reason
    usage: UsageModel
    timings: TimingsModel


class QaRequest(RequestModel):
    """A question, and a text that may hold the answer."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "question": "Who built the lighthouse?",
                    "context": "The lighthouse was built in 1871 by Elias Berg, a mason from the village below.",
                    "top_k": 2,
                }
            ]
        }
    )

    question: Text
    context: Text
    """Of any length: it is read in windows that overlap."""

    top_k: int = Field(default=1, ge=1, le=MAX_ANSWERS)
    """The most answers to return."""

    min_score: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    """Leave out less likely answers."""


class PlaceItem(AnswerModel):
    """Where an answer stands."""

    start: int
    end: int
    score: float
    """Probability of this place, by the window that shows it."""


class AnswerItem(AnswerModel):
    """A stretch of the context. Answers with equal texts are one, and no two of a response are."""

    text: str
    start: int
    """First code point in the context."""

    end: int
    """Behind the last code point: context[start:end] == text."""

    score: float
    """Probability that this is the answer, wherever it stands. Places in one window of the context add up; of several
    windows that counts which says most, so that a long context lowers no score."""

    places: list[PlaceItem]
    """All likely places of this text, at most 100, best first: the first is that of `start` and `end`."""


class QaResponse(AnswerModel):
    """Answers, best first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "answers": [
                        {
                            "text": "Elias Berg",
                            "start": 36,
                            "end": 46,
                            "score": 0.92,
                            "places": [{"start": 36, "end": 46, "score": 0.92}],
                        }
                    ],
                    "no_answer_score": 0.01,
                }
            ]
        }
    )

    answers: list[AnswerItem]
    no_answer_score: float
    """Probability that the context holds no answer: the least that any of its windows says. With all scores it sums to
    1 at most."""


TaskName = Literal["generation", "qa", "summary"]


class InferRequest(RequestModel):
    """An input whose task is named, or is to be found."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "input": "Who built the lighthouse?",
                    "context": "The lighthouse was built in 1871 by Elias Berg, a mason from the village below.",
                }
            ]
        }
    )

    input: Text
    context: Text | None = None
    """What a question is about. For the other tasks it follows the input after a blank line."""

    task: Literal["auto", "generation", "qa", "summary"] = "auto"
    """`auto` leaves the choice to the model's router; without a context it is between generation and summary."""


class InferResponse(AnswerModel):
    """An answer, and which task gave it."""

    task: TaskName
    route: dict[TaskName, float]
    """Probability of every task by the router; 1 for a task that the request named."""

    result: GenerateResponse | SummarizeResponse | QaResponse
    """That task's response, with its defaults; what was routed is written greedily."""
