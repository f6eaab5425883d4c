"""Summaries of a few words: the words themselves, whole, streamed or routed."""

from __future__ import annotations

import httpx
import pytest

from tests.service.api.test_writing import TEXT, post, stream_events


@pytest.mark.parametrize("text", ["hi", "NASA", "Ben: Not yet.", "👩‍👩‍👧", "光年。", " a\n"])
def test_a_text_of_a_few_words_is_its_own_summary(client: httpx.Client, text: str) -> None:
    answer = post(client, "/v1/summarize", text=text)
    assert (answer["summary"], answer["finish_reason"]) == (text.strip(), "stop")
    usage, timings = answer["usage"], answer["timings"]
    assert usage["prompt_tokens"] == 1 + usage["completion_tokens"]
    assert 0 < timings["ttft_ms"] <= timings["total_ms"]
    events = stream_events(client, "/v1/summarize", {"text": text})
    assert "".join(event["delta"] for event in events) == text.strip()
    assert (events[-1]["finish_reason"], events[-1]["usage"]) == ("stop", usage)
    routed = post(client, "/v1/infer", input=text, task="summary")["result"]
    assert (routed["summary"], routed["usage"]) == (text.strip(), usage)


def test_its_own_summary_keeps_the_most_tokens_asked_for(client: httpx.Client) -> None:
    whole = post(client, "/v1/summarize", text="Ben: Not yet.")
    answer = post(client, "/v1/summarize", text="Ben: Not yet.", max_new_tokens=2)
    assert (answer["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 2)
    assert whole["summary"].startswith(answer["summary"])
    assert answer["summary"] != whole["summary"]


def test_more_tokens_than_the_text_has_are_written(client: httpx.Client) -> None:
    answer = post(client, "/v1/summarize", text="hi", min_new_tokens=9, max_new_tokens=9)
    assert answer["usage"]["completion_tokens"] == 9


def test_a_text_that_nobody_sees_has_no_summary(client: httpx.Client) -> None:
    answer = post(client, "/v1/summarize", text="\u200b")
    assert (answer["summary"], answer["finish_reason"], answer["usage"]["completion_tokens"]) == ("", "stop", 0)


def test_longer_texts_are_summarised(client: httpx.Client) -> None:
    assert post(client, "/v1/summarize", text=TEXT, max_new_tokens=5)["summary"] not in TEXT
