"""Spoilt texts over HTTP: read as if nobody had spoilt them, answered with places in the texts as they were sent."""

from __future__ import annotations

import random
import unicodedata

import httpx
import pytest

from service.tasks.normalisation import normalise
from tests.service.api.test_writing import post
from tests.service.tasks.corruptions import CORRUPTIONS

CONTEXT = "The first bridge 🌉 was built in 1871, near the old mill. The café behind it still stands (in 2021)."
QUESTION = "When was the first bridge built, and who knows the official staff?"
DIVIDED = {"ligatures", "everything at once", "capitals"}
"""Kinds in which a letter of the plain text is half of a character."""


@pytest.mark.parametrize("kind", sorted(CORRUPTIONS.keys() - DIVIDED))
def test_a_question_about_a_spoilt_text_has_the_plain_ones_answers(client: httpx.Client, kind: str) -> None:
    chance = random.Random(kind)
    context, question = CORRUPTIONS[kind](CONTEXT, chance), CORRUPTIONS[kind](QUESTION, chance)
    found = post(client, "/v1/qa", question=question, context=context, top_k=20)
    plain = post(client, "/v1/qa", question=QUESTION, context=CONTEXT, top_k=20)
    assert found["no_answer_score"] == pytest.approx(plain["no_answer_score"], rel=1e-5)
    for ours, theirs in zip(found["answers"], plain["answers"], strict=True):
        assert context[ours["start"] : ours["end"]] == ours["text"]
        assert unicodedata.normalize("NFKC", normalise(ours["text"]).text) == theirs["text"]
        assert ours["score"] == pytest.approx(theirs["score"], rel=1e-5)


def test_places_in_a_long_spoilt_text_are_those_of_the_text_as_sent(client: httpx.Client) -> None:
    context = CORRUPTIONS["everything at once"](f"{CONTEXT} " * 200, random.Random(1))
    for answer in post(client, "/v1/qa", question="When?", context=context, top_k=20)["answers"]:
        assert context[answer["start"] : answer["end"]] == answer["text"]
        # Behind the bridge an inserted selector of emoji style is part of its grapheme.
        assert normalise(answer["text"]).text.replace("\ufe0f", "") in CONTEXT + " " + CONTEXT


@pytest.mark.parametrize(
    ("path", "body", "field", "answer"),
    [
        ("/v1/generate", {"temperature": 0, "max_new_tokens": 8}, "prompt", "text"),
        ("/v1/summarize", {"max_new_tokens": 8}, "text", "summary"),
    ],
)
def test_a_spoilt_prompt_counts_and_is_answered_as_the_plain_one(
    client: httpx.Client, path: str, body: dict, field: str, answer: str
) -> None:
    plain = post(
        client, path, **body, **{field: "Anna: Did you return the books?\nBen: Not yet, the library was closed."}
    )
    spoilt = (
        "\ufeff  Anna:\tDid you re\u00adturn the\u00a0books?  \r\nBen: Not yet,\u2009the library was closed. \r\n\r\n"
    )
    found = post(client, path, **body, **{field: spoilt})
    assert found[answer] == plain[answer]
    assert found["usage"] == plain["usage"]


def test_a_text_whose_white_space_alone_is_too_long_is_read(client: httpx.Client) -> None:
    body = {"prompt": "The river" + " " * 20_000 + "rises", "max_new_tokens": 2, "min_new_tokens": 2}
    assert post(client, "/v1/generate", **body)["usage"]["prompt_tokens"] < 8


def test_a_text_that_nobody_sees_is_read_as_none(client: httpx.Client) -> None:
    assert post(client, "/v1/qa", question="When?", context="\u200b\u200e") == {"answers": [], "no_answer_score": 1.0}
    assert post(client, "/v1/qa", question="\u200b", context=CONTEXT)["answers"]
    assert post(client, "/v1/generate", prompt="\u200b", max_new_tokens=2)["usage"]["prompt_tokens"] == 1
