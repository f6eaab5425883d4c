"""Fields that OpenAI's endpoints do not offer: which are ignored, which may stand at a value that changes nothing.

    a field ─▶ offered: its schema reads it
            ─▶ null, ignored, or at a neutral value: nothing happens
            ─▶ anything else could change the answer, and is refused by its name

What is ignored is a closed list, so that a constraint nobody thought of is never dropped in silence.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from pydantic_core import PydanticCustomError

from service.errors import UnknownField, UnsupportedParameter

REFUSALS = {UnsupportedParameter.code: UnsupportedParameter, UnknownField.code: UnknownField}
"""Errors of fields, by the types of pydantic's errors that stand for them here."""

LONGEST_GUESSED = 40
"""Characters of a name whose spelling is compared with others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ForeignFields:
    """What an object may hold beside the fields of its schema."""

    ignored: frozenset[str] = frozenset()
    """Fields that cannot change this service's answer, whatever they hold."""

    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Parameters that are known and not offered, and the values, beside null, at which they change nothing."""

    renamed: Mapping[str, str] = field(default_factory=dict)
    """Other servers' names, and what the same is called here."""

    def check(self, values: Mapping[str, Any], offered: Collection[str], place: str = "") -> None:
        """Raises PydanticCustomError for the first field that could change the answer, had it an effect.

        `place` leads from the object that pydantic validates to this one.
        """
        for name, value in values.items():
            if name in offered or name in self.ignored or value is None:
                continue
            if name in self.renamed:
                raise _refusal(UnsupportedParameter, place + name, f"is not supported here: use {self.renamed[name]}")
            if name not in self.neutral:
                raise _refusal(UnknownField, place + name, f"is no field of this request: {_advice(name, offered)}")
            if not any(_equal(value, each) for each in self.neutral[name]):
                raise _refusal(UnsupportedParameter, place + name, "is not supported here: leave it out")


def _refusal(kind: type[UnknownField | UnsupportedParameter], name: str, reason: str) -> PydanticCustomError:
    return PydanticCustomError(kind.code, "{reason}", {"field": name, "reason": reason})


def _advice(name: str, offered: Collection[str]) -> str:
    close = get_close_matches(name, offered, n=1, cutoff=0.8) if len(name) <= LONGEST_GUESSED else ()
    return f"did you mean {close[0]}?" if close else "look at /docs for what there is, or leave it out"


def _equal(value: Any, neutral: Any) -> bool:
    """Equality that tells 1 from true."""
    return isinstance(value, bool) == isinstance(neutral, bool) and value == neutral


REQUEST = ForeignFields(
    ignored=frozenset(
        {
            "metadata",
            # Of tools, which are refused.
            "parallel_tool_calls",
            "prompt_cache_key",
            "prompt_cache_options",
            "prompt_cache_retention",
            "safety_identifier",
            "store",
            "user",
        }
    ),
    neutral={
        # OpenAI's.
        "audio": (),
        "best_of": (1,),
        "echo": (False,),
        "frequency_penalty": (0,),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "logit_bias": ({},),
        "logprobs": (False,),
        "modalities": (["text"],),
        "moderation": (),
        "n": (1,),
        "prediction": (),
        "presence_penalty": (0,),
        "reasoning_effort": ("none",),
        "response_format": ({"type": "text"},),
        "suffix": ("",),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "top_logprobs": (0,),
        "verbosity": ("medium",),
        "web_search_options": (),
        # Of vLLM, TGI and others that speak OpenAI's protocol. Clients send them as `extra_body`, some with defaults.
        "add_generation_prompt": (True,),
        "allowed_token_ids": (),
        "bad_words": ([],),
        "chat_template": (),
        "chat_template_kwargs": ({},),
        "continue_final_message": (False,),
        "decoder_input_details": (False,),
        "details": (False,),
        "do_sample": (),
        "documents": ([],),
        "grammar": (),
        "guided_choice": (),
        "guided_grammar": (),
        "guided_json": (),
        "guided_regex": (),
        "include_stop_str_in_output": (False,),
        "length_penalty": (1,),
        "logits_processors": ([],),
        "min_p": (0,),
        "no_repeat_ngram_size": (0,),
        "num_beams": (1,),
        "prompt_logprobs": (),
        "return_full_text": (False,),
        "return_token_ids": (False,),
        "return_tokens_as_token_ids": (False,),
        "skip_special_tokens": (True,),
        "stop_token_ids": ([],),
        "structured_outputs": (),
        "top_n_tokens": (0,),
        "truncate": (),
        "truncate_prompt_tokens": (),
        "typical_p": (1,),
        "use_beam_search": (False,),
        "watermark": (False,),
    },
    renamed={
        "max_length": "max_tokens",
        "max_new_tokens": "max_tokens",
        "min_new_tokens": "min_tokens",
        "stop_sequences": "stop",
    },
)

STREAM_OPTIONS = ForeignFields(
    # Padding against listeners who count bytes: none is sent.
    ignored=frozenset({"include_obfuscation"}),
    neutral={"continuous_usage_stats": (False,)},
)

MESSAGE = ForeignFields(
    # A label of the speaker, and notes that answers carry; the model is shown neither.
    ignored=frozenset({"annotations", "name"}),
    neutral={"audio": (), "function_call": (), "refusal": (), "tool_call_id": (), "tool_calls": ([],)},
)

TEXT_PART = ForeignFields(ignored=frozenset({"cache_control"}))
