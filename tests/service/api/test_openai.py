"""OpenAI's endpoints, by OpenAI's client and by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import openai
import pytest

from service.tasks.tokens import TextCodec
from tests.service.api.running_gateway import RunningGateway, check_error, stream_events
from tests.service.api.test_writing import TEXT, post

GREEDY = {"model": "trident", "temperature": 0}
REFUSED = 400
"""Status of a request whose fields are at fault."""


@pytest.fixture
def ai(gateway: RunningGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def test_models_are_listed_and_found_by_name_and_alias(ai: openai.OpenAI) -> None:
    (model,) = ai.models.list().data
    assert model.id == "trident-nano"
    assert ai.models.retrieve("trident-nano").id == "trident-nano"
    assert ai.models.retrieve("trident").owned_by == "trident"
    with pytest.raises(openai.NotFoundError) as caught:
        ai.models.retrieve("gpt-17")
    assert caught.value.code == "model_not_found"


def test_a_completion_is_16_tokens_and_streams_as_it_is_whole(ai: openai.OpenAI) -> None:
    whole = ai.completions.create(**GREEDY, prompt=TEXT, extra_body={"ignore_eos": True})
    assert whole.object == "text_completion"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 16
    chunks = list(ai.completions.create(**GREEDY, prompt=TEXT, stream=True, extra_body={"ignore_eos": True}))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert {chunk.usage for chunk in chunks} == {None}
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_chat_completion_streams_as_it_is_whole_with_its_usage(ai: openai.OpenAI) -> None:
    body = {**GREEDY, "messages": [{"role": "user", "content": TEXT}], "max_completion_tokens": 20}
    whole = ai.chat.completions.create(**body)
    assert whole.choices[0].message.role == "assistant"
    chunks = list(ai.chat.completions.create(**body, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    *others, last = chunks
    assert last.choices == []
    assert last.usage == whole.usage
    assert {chunk.usage for chunk in others} == {None}
    assert others[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_both_lengths_of_a_chat_are_understood_and_128_is_the_default(client: httpx.Client) -> None:
    body = {"model": "trident", "messages": [{"role": "user", "content": "Hi"}], "ignore_eos": True}

    def tokens(**lengths: int) -> int:
        return post(client, "/v1/chat/completions", **body, **lengths)["usage"]["completion_tokens"]

    assert tokens() == 128
    assert tokens(max_tokens=3) == 3
    assert tokens(max_completion_tokens=4) == 4
    assert tokens(max_tokens=3, max_completion_tokens=4) == 4


def test_a_conversation_is_read_as_one_instruction(client: httpx.Client) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Name the "}, {"type": "text", "text": "sea."}]},
        {"role": "assistant", "content": None},
    ]
    chat = post(client, "/v1/chat/completions", **GREEDY, messages=messages, max_tokens=12)
    plain = post(client, "/v1/generate", prompt="Be brief.\n\nName the sea.", temperature=0, max_new_tokens=12)
    assert chat["choices"][0]["message"]["content"] == plain["text"]
    assert chat["usage"] == plain["usage"]


def test_prompts_may_be_one_text_in_a_list_or_token_ids(client: httpx.Client, nano_bundle) -> None:
    special = json.loads((nano_bundle / "manifest.json").read_text())["special_tokens"]
    ids = TextCodec(nano_bundle, special)._encode(TEXT, 0).ids.tolist()
    answers = [
        post(client, "/v1/completions", **GREEDY, prompt=prompt, max_tokens=12) for prompt in (TEXT, [TEXT], ids, [ids])
    ]
    assert len({answer["choices"][0]["text"] for answer in answers}) == 1
    assert len({answer["usage"]["prompt_tokens"] for answer in answers}) == 1


@pytest.mark.parametrize("prompt", [["a", "b"], [], [[]], [["a"]], [1.5], [True], "", " ", 7, None, {"a": 1}])
def test_other_prompts_are_refused(client: httpx.Client, prompt: object) -> None:
    check_error(client.post("/v1/completions", json={**GREEDY, "prompt": prompt}), REFUSED, "invalid_value", "prompt")


@pytest.mark.parametrize("token", [-1, 0, 7, 32_000, 10**15])
def test_ids_of_special_and_unknown_tokens_are_refused(client: httpx.Client, token: int) -> None:
    response = client.post("/v1/completions", json={**GREEDY, "prompt": [500, token]})
    assert str(token) in check_error(response, REFUSED, "invalid_value", "prompt")["message"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("n", 2), ("best_of", 3), ("echo", True), ("logprobs", 0), ("logprobs", 5), ("suffix", "x")),
        *(("presence_penalty", 0.5), ("frequency_penalty", -1), ("logit_bias", {"5": 1}), ("tools", [{}])),
        *(("response_format", {"type": "json_object"}), ("top_logprobs", 2), ("n", True), ("min_p", 0.1)),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(client: httpx.Client, name: str, value: object) -> None:
    body = {**GREEDY, "prompt": "a", "max_tokens": 1, name: value}
    check_error(client.post("/v1/completions", json=body), REFUSED, "unsupported_parameter", name)


def test_what_would_not_is_ignored(client: httpx.Client) -> None:
    neutral = {"n": 1, "best_of": 1, "echo": False, "logprobs": None, "presence_penalty": 0.0, "logit_bias": {}}
    unknown = {"user": "somebody", "metadata": {"a": 1}, "service_tier": "auto", "no_such_field": None}
    post(client, "/v1/completions", **GREEDY, prompt="a", max_tokens=1, **neutral, **unknown)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "a", "max_tokens": 513}, "max_tokens"),
        ("/v1/completions", {"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ("/v1/completions", {"prompt": "a", "max_tokens": 4, "min_tokens": 5}, "min_tokens"),
        ("/v1/completions", {"prompt": "a", "temperature": 2.5}, "temperature"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 513}, "max_tokens"),
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": " \n"}]}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "robot", "content": "a"}]}, "messages.0.role"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content",
        ),
    ],
)
def test_bad_values_are_named(client: httpx.Client, path: str, body: dict, param: str) -> None:
    check_error(client.post(path, json={**GREEDY, **body}), REFUSED, "invalid_value", param)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        *((b"{", "invalid_json"), (b"[]", "invalid_value"), (b"{}", "missing_field")),
        *((b'{"model": 1}', "invalid_value"), (b'{"model": "trident"}', "missing_field")),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_whatever_is_wrong_with_a_body_is_openai_s_400(client: httpx.Client, path: str, body: bytes, code: str) -> None:
    response = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == code
    late = client.post(path, json={}, headers={"X-Request-Timeout-Ms": "soon"})
    check_error(late, 400, "invalid_value", "X-Request-Timeout-Ms")


@pytest.mark.parametrize(
    "wrong", [{"n": 2}, {"temperature": 3}, {"max_tokens": 0}, {"extra_body": {"grammar": "a"}}, {"stop": ["x"] * 5}]
)
def test_the_client_raises_bad_request(ai: openai.OpenAI, wrong: dict) -> None:
    with pytest.raises(openai.BadRequestError):
        ai.completions.create(**{**GREEDY, "prompt": "a", **wrong})
    with pytest.raises(openai.BadRequestError):
        ai.chat.completions.create(**{**GREEDY, "messages": [{"role": "user", "content": "a"}], **wrong})


INTEGERS = {"max_tokens": 4, "min_tokens": 2, "top_k": 3, "seed": 7, "n": 1}


@pytest.mark.parametrize("name", INTEGERS)
def test_an_integer_may_be_written_as_a_float(client: httpx.Client, name: str) -> None:
    body = {"model": "trident", "prompt": TEXT, "temperature": 1, **INTEGERS}
    plain = post(client, "/v1/completions", **body)
    as_float = post(client, "/v1/completions", **{**body, name: float(INTEGERS[name])})
    assert (as_float["choices"], as_float["usage"]) == (plain["choices"], plain["usage"])
    response = client.post("/v1/completions", json={**body, name: INTEGERS[name] + 0.5})
    check_error(response, REFUSED, "unsupported_parameter" if name == "n" else "invalid_value", name)


def test_lengths_and_ids_may_be_written_as_floats(client: httpx.Client) -> None:
    body = {**GREEDY, "messages": [{"role": "user", "content": "Hi"}], "ignore_eos": True}
    answer = post(client, "/v1/chat/completions", **body, max_completion_tokens=3.0)
    assert answer["usage"]["completion_tokens"] == 3
    ids = [500, 501]
    plain, as_floats = (
        post(client, "/v1/completions", **GREEDY, prompt=prompt, max_tokens=4) for prompt in (ids, [500.0, 501.0])
    )
    assert as_floats["choices"] == plain["choices"]


@pytest.mark.parametrize("value", [1e300, 2.0**60, -1.0, 4.000001])
def test_other_floats_are_no_lengths(client: httpx.Client, value: float) -> None:
    response = client.post("/v1/completions", json={**GREEDY, "prompt": "a", "max_tokens": value})
    check_error(response, REFUSED, "invalid_value", "max_tokens")


def test_another_model_is_not_found(client: httpx.Client) -> None:
    response = client.post("/v1/completions", json={"model": "gpt-17", "prompt": "a"})
    check_error(response, 404, "model_not_found", "model")
    check_error(client.post("/v1/completions", json={"prompt": "a"}), REFUSED, "missing_field", "model")


def test_stop_strings_and_seeds_of_either_sign_work(client: httpx.Client) -> None:
    body = {"model": "trident", "prompt": TEXT, "max_tokens": 24, "min_tokens": 24, "seed": -5}
    text = post(client, "/v1/completions", **body)["choices"][0]["text"]
    assert post(client, "/v1/completions", **body)["choices"][0]["text"] == text
    stop = text[len(text) // 2 :][:4]
    events = stream_events(client, "/v1/completions", {**body, "stop": stop})
    assert "".join(event["choices"][0]["text"] for event in events) == text[: text.index(stop)]
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


def test_too_long_is_a_bad_request_with_both_numbers(ai: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ai.chat.completions.create(model="trident", messages=[{"role": "user", "content": "!" * 3000}])
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"
    assert "3001" in str(caught.value)
    assert "2048" in str(caught.value)
