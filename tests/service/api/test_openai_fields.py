"""Fields that OpenAI's endpoints do not offer: none that could change the answer passes in silence."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.api.openai_fields import MESSAGE, REQUEST, STREAM_OPTIONS
from service.api.openai_schemas import ChatRequest, CompletionRequest
from tests.service.api.running_gateway import RunningGateway, check_error
from tests.service.api.test_openai import GREEDY, REFUSED
from tests.service.api.test_writing import post

BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {**GREEDY, "prompt": "a", "max_tokens": 1},
    "/v1/chat/completions": {**GREEDY, "messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
}
PATHS = list(BODIES)

CONSTRAINTS: dict[str, Any] = {
    # OpenAI's
    "audio": {"voice": "x"},
    "best_of": 2,
    "echo": True,
    "frequency_penalty": 0.5,
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "modalities": ["audio"],
    "n": 3,
    "prediction": {"type": "content", "content": "x"},
    "presence_penalty": -2,
    "reasoning_effort": "high",
    "response_format": {"type": "json_schema", "json_schema": {}},
    "suffix": "the end",
    "tool_choice": "required",
    "tools": [{"type": "function"}],
    "top_logprobs": 5,
    "verbosity": "low",
    "web_search_options": {},
    # vLLM's
    "allowed_token_ids": [1, 2],
    "bad_words": ["river"],
    "chat_template": "{{ messages }}",
    "continue_final_message": True,
    "guided_json": {},
    "guided_regex": "a+",
    "include_stop_str_in_output": True,
    "length_penalty": 2.0,
    "min_p": 0.1,
    "prompt_logprobs": 0,
    "skip_special_tokens": False,
    "stop_token_ids": [13],
    "structured_outputs": {"regex": "a+"},
    "truncate_prompt_tokens": 8,
    "use_beam_search": True,
    # TGI's and others'
    "decoder_input_details": True,
    "do_sample": False,
    "grammar": {"type": "regex", "value": "a+"},
    "max_new_tokens": 5,
    "min_new_tokens": 5,
    "no_repeat_ngram_size": 3,
    "num_beams": 4,
    "return_full_text": True,
    "stop_sequences": ["."],
    "top_n_tokens": 2,
    "truncate": 8,
    "typical_p": 0.9,
    "watermark": True,
}
UNKNOWN: dict[str, Any] = {
    "max_token": 5,
    "temprature": 0,
    "Stop": ["."],
    "mirostat": 2,
    "n_predict": 5,
    "dry_multiplier": 1.5,
    "keep_alive": 0,
    "options": {"num_predict": 5},
    "json_schema": {},
    "transforms": [],
    "top_a": 0.5,
    "": 1,
    "priority": False,
    "x" * 5000: 1,
}
HARMLESS: dict[str, Any] = {
    "user": "somebody",
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "flex",
    "safety_identifier": "x",
    "prompt_cache_key": "x",
    "prompt_cache_retention": "24h",
    "parallel_tool_calls": False,
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_a_known_parameter_that_is_not_offered_is_refused_by_name(client: httpx.Client, path: str, name: str) -> None:
    response = client.post(path, json={**BODIES[path], name: CONSTRAINTS[name]})
    error = check_error(response, REFUSED, "unsupported_parameter", name)
    assert error["message"].startswith(f"{name} is not supported here: ")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", UNKNOWN, ids=lambda name: name[:20])
def test_an_unknown_field_is_refused_by_name(client: httpx.Client, path: str, name: str) -> None:
    response = client.post(path, json={**BODIES[path], name: UNKNOWN[name]})
    check_error(response, REFUSED, "unknown_field", name[:100])


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("max_new_tokens", "use max_tokens"),
        ("stop_sequences", "use stop"),
        ("temprature", "did you mean temperature?"),
        ("stream_option", "did you mean stream_options?"),
    ],
)
def test_a_refusal_names_the_field_that_was_meant(client: httpx.Client, name: str, advice: str) -> None:
    response = client.post("/v1/completions", json={**BODIES["/v1/completions"], name: 1})
    assert response.json()["error"]["message"].endswith(advice)


def test_a_misspelt_prompt_is_named_before_the_missing_one(client: httpx.Client) -> None:
    response = client.post("/v1/completions", json={**GREEDY, "promt": "a"})
    check_error(response, REFUSED, "unknown_field", "promt")


@pytest.mark.parametrize("path", PATHS)
def test_what_cannot_change_the_answer_is_ignored(client: httpx.Client, path: str) -> None:
    plain = post(client, path, **BODIES[path])
    assert post(client, path, **BODIES[path], **HARMLESS)["choices"] == plain["choices"]


@pytest.mark.parametrize("path", PATHS)
def test_neutral_values_and_null_are_taken(client: httpx.Client, path: str) -> None:
    offered = {"/v1/completions": CompletionRequest, "/v1/chat/completions": ChatRequest}[path].model_fields
    for index in range(max(len(values) for values in REQUEST.neutral.values())):
        neutral = {name: values[index] for name, values in REQUEST.neutral.items() if index < len(values)}
        post(client, path, **BODIES[path], **neutral)
    nothing = dict.fromkeys([*REQUEST.neutral, *REQUEST.ignored, *offered, "no_such_field"])
    post(client, path, **{**nothing, **BODIES[path]})
    post(client, path, **{**BODIES[path], "n": 1.0, "presence_penalty": 0.0, "logprobs": False})


def test_nothing_is_both_ignored_and_refused() -> None:
    for foreign, offered in (
        (REQUEST, CompletionRequest.model_fields.keys() | ChatRequest.model_fields.keys()),
        (STREAM_OPTIONS, {"include_usage"}),
        (MESSAGE, {"role", "content"}),
    ):
        names = [*foreign.ignored, *foreign.neutral, *foreign.renamed]
        assert len(names) == len(set(names))
        assert not offered & set(names)
        assert offered.issuperset(foreign.renamed.values())


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"stream_options": {"continuous_usage_stats": True}}, "unsupported_parameter", "continuous_usage_stats"),
        ({"stream_options": {"include_usages": True}}, "unknown_field", "include_usages"),
    ],
)
@pytest.mark.parametrize("path", PATHS)
def test_options_of_streams_are_closed_too(
    client: httpx.Client, path: str, fields: dict[str, Any], code: str, param: str
) -> None:
    response = client.post(path, json={**BODIES[path], "stream": True, **fields})
    check_error(response, REFUSED, code, f"stream_options.{param}")


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        ({"tool_calls": [{"id": "1"}]}, "unsupported_parameter", "messages.1.tool_calls"),
        ({"tool_call_id": "1"}, "unsupported_parameter", "messages.1.tool_call_id"),
        ({"refusal": "No."}, "unsupported_parameter", "messages.1.refusal"),
        ({"prefix": True}, "unknown_field", "messages.1.prefix"),
        ({"content": [{"type": "text", "text": "a", "detail": 1}]}, "unknown_field", "messages.1.content.0.detail"),
    ],
)
def test_messages_are_closed_too(client: httpx.Client, message: dict[str, Any], code: str, param: str) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", **message}]
    response = client.post("/v1/chat/completions", json={**GREEDY, "max_tokens": 1, "messages": messages})
    check_error(response, REFUSED, code, param)


def test_an_answer_may_be_sent_back_as_the_client_holds_it(gateway: RunningGateway) -> None:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="unused", max_retries=0) as ai:
        messages: list[Any] = [{"role": "user", "content": "a", "name": "Anna"}]
        answer = ai.chat.completions.create(**GREEDY, messages=messages, max_tokens=2).choices[0].message
        for again in (answer, answer.model_dump()):
            ai.chat.completions.create(**GREEDY, messages=[*messages, again, *messages], max_tokens=2)


def test_what_load_generators_send_is_taken(client: httpx.Client) -> None:
    streamed = {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True, "min_tokens": 1}
    message = {"role": "user", "name": "", "content": [{"type": "text", "text": "a"}]}
    for path, own in (("/v1/completions", {"prompt": ["a"]}), ("/v1/chat/completions", {"messages": [message]})):
        assert client.post(path, json={**BODIES[path], **streamed, **own}).status_code == 200


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(max_size=30), path=st.sampled_from(PATHS))
def test_any_other_name_is_refused(client: httpx.Client, name: str, path: str) -> None:
    offered = CompletionRequest.model_fields.keys() | ChatRequest.model_fields.keys()
    if name in offered or name in REQUEST.ignored:
        return
    response = client.post(path, json={**BODIES[path], name: {"surely": "no default"}})
    assert response.json()["error"]["code"] in {"unknown_field", "unsupported_parameter"}
