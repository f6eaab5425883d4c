"""The `openai` client, unchanged, against the real service."""

from __future__ import annotations

from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from tests.end_to_end.conftest import Service


@pytest.fixture
def openai(service: Service) -> OpenAI:
    return OpenAI(base_url=f"{service.url}/v1", api_key="unused", max_retries=0)


def test_a_completion_streams(openai: OpenAI) -> None:
    model = openai.models.list().data[0].id
    plain = openai.completions.create(model=model, prompt="The river", max_tokens=12, temperature=0)
    stream = openai.completions.create(model=model, prompt="The river", max_tokens=12, temperature=0, stream=True)
    chunks = list(stream)
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == plain.choices[0].text
    assert chunks[-1].choices[0].finish_reason == plain.choices[0].finish_reason


def test_a_chat_completion_streams_with_usage(openai: OpenAI) -> None:
    model = openai.models.list().data[0].id
    messages = [{"role": "user", "content": "Name three colours."}]
    plain = openai.chat.completions.create(model=model, messages=messages, max_tokens=12, temperature=0)
    stream = openai.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == plain.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == plain.usage.completion_tokens


def test_too_long_is_a_bad_request_with_both_numbers(openai: OpenAI) -> None:
    with pytest.raises(BadRequestError) as caught:
        openai.completions.create(model="trident", prompt="word " * 5000, max_tokens=4)
    assert caught.value.code == "context_length_exceeded"
    assert "2048" in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [{"max_tokens": 0}, {"temperature": 9.0}, {"n": 2}, {"extra_body": {"stop_token_ids": [13]}}],
    ids=str,
)
def test_what_is_not_served_is_a_bad_request(openai: OpenAI, wrong: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError):
        openai.completions.create(**{"model": "trident", "prompt": "The river", **wrong})
    with pytest.raises(BadRequestError):
        openai.chat.completions.create(
            **{"model": "trident", "messages": [{"role": "user", "content": "The river"}], **wrong}
        )
