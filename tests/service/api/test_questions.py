"""Questions and routed inputs over HTTP."""

from __future__ import annotations

import httpx
import pytest
import regex

from tests.service.api.running_gateway import check_error
from tests.service.api.test_writing import TEXT, post

CONTEXT = "  The bridge 🌉 was built in 1871, near the old mill.\n\n天文学家用光年来表示恒星之间的距离。 \t"


@pytest.mark.parametrize("repeated", [1, 60])
def test_answers_are_spans_of_the_context_best_first(client: httpx.Client, repeated: int) -> None:
    context = CONTEXT * repeated
    found = post(client, "/v1/qa", question="When was the bridge built?", context=context, top_k=20)
    assert found.keys() == {"answers", "no_answer_score"}
    assert len(found["answers"]) == 20
    places = [(answer["start"], answer["end"]) for answer in found["answers"]]
    assert len(set(places)) == 20
    assert len({" ".join(answer["text"].split()) for answer in found["answers"]}) == 20
    for answer in found["answers"]:
        assert answer.keys() == {"text", "start", "end", "score", "places"}
        assert answer["places"][0].items() <= {**answer, "score": answer["places"][0]["score"]}.items()
        for place in answer["places"]:
            assert context[place["start"] : place["end"]].split() == answer["text"].split()
        assert context[answer["start"] : answer["end"]] == answer["text"] == answer["text"].strip() != ""
    scores = [answer["score"] for answer in found["answers"]]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) + found["no_answer_score"] <= 1 + 1e-6


def test_no_answer_cuts_what_a_reader_takes_for_one_character(client: httpx.Client) -> None:
    context = "Ana 👩‍👩‍👧 and e\u0301ve\u0301 🇫🇷🇩🇪 met 👍🏽 ᄀ\u1161\u11a8 क्षमा ❤️‍🔥 1️⃣."
    borders = {0, *(cluster.end() for cluster in regex.finditer(r"\X", context))}
    answers = post(client, "/v1/qa", question="Who met?", context=context, top_k=20)["answers"]
    assert len({(answer["start"], answer["end"]) for answer in answers}) == len(answers) > 5
    for answer in answers:
        assert {answer["start"], answer["end"]} <= borders
        assert context[answer["start"] : answer["end"]] == answer["text"]


def test_one_answer_is_the_default_and_weak_ones_can_be_left_out(client: httpx.Client) -> None:
    body = {"question": "When?", "context": CONTEXT}
    (best,) = post(client, "/v1/qa", **body)["answers"]
    several = post(client, "/v1/qa", **body, top_k=20)["answers"]
    assert several[0] == best
    bound = several[1]["score"]
    kept = post(client, "/v1/qa", **body, top_k=20, min_score=bound)["answers"]
    assert kept == [answer for answer in several if answer["score"] >= bound]
    assert len(kept) < len(several)


def test_a_context_that_cannot_be_read_in_its_time_is_refused_at_once(client: httpx.Client) -> None:
    body = {"question": "When?", "context": CONTEXT * 9_000}
    response = client.post("/v1/qa", json=body, headers={"X-Request-Timeout-Ms": "1500"})
    error = check_error(response, 400, "deadline_unreachable", "context")
    assert "windows, which take about" in error["message"]
    assert "allow more in X-Request-Timeout-Ms, or shorten the context" in error["message"]


def test_a_question_must_leave_room_for_its_context(client: httpx.Client) -> None:
    longest = 384 - 2 - 96
    assert post(client, "/v1/qa", question="!" * longest, context=CONTEXT)["answers"]
    error = check_error(
        client.post("/v1/qa", json={"question": "!" * (longest + 1), "context": CONTEXT}),
        400,
        "context_length_exceeded",
        "question",
    )
    assert str(longest) in error["message"]
    assert str(longest + 1) in error["message"]


def test_a_book_is_answered_with_all_of_its_windows(client: httpx.Client) -> None:
    context = "no " * 12_000 + CONTEXT
    (answer,) = post(client, "/v1/qa", question="When?", context=context)["answers"]
    assert context[answer["start"] : answer["end"]] == answer["text"]


@pytest.mark.parametrize(("task", "field"), [("generation", "text"), ("qa", "answers"), ("summary", "summary")])
def test_a_named_task_is_taken(client: httpx.Client, task: str, field: str) -> None:
    answer = post(client, "/v1/infer", input="When was it built?", context=CONTEXT, task=task)
    assert answer.keys() == {"task", "route", "result"}
    assert answer["task"] == task
    assert field in answer["result"]
    assert answer["route"] == {each: float(each == task) for each in ("generation", "qa", "summary")}


def test_a_named_task_is_answered_as_by_its_own_endpoint(client: httpx.Client) -> None:
    routed = post(client, "/v1/infer", input=TEXT, task="summary")["result"]
    assert routed["summary"] == post(client, "/v1/summarize", text=TEXT)["summary"]
    routed = post(client, "/v1/infer", input="When?", context=CONTEXT, task="qa")["result"]
    assert routed == post(client, "/v1/qa", question="When?", context=CONTEXT)


def test_qa_without_a_context_says_what_is_missing(client: httpx.Client) -> None:
    check_error(client.post("/v1/infer", json={"input": "When?", "task": "qa"}), 422, "invalid_value", "context")


def test_auto_takes_the_likeliest_task(client: httpx.Client) -> None:
    tasks = set()
    for text in ("When?", TEXT, "Anna: Ben:", "光", "It was built near the sea"):
        answer = post(client, "/v1/infer", input=text, context=CONTEXT)
        route = answer["route"]
        assert route.keys() == {"generation", "qa", "summary"}
        assert sum(route.values()) == pytest.approx(1, abs=1e-5)
        assert answer["task"] == max(route, key=route.__getitem__)
        tasks.add(answer["task"])
    assert "qa" in tasks


def test_auto_without_a_context_never_takes_qa(client: httpx.Client) -> None:
    likeliest = set()
    for text in ("When?", TEXT, "Anna: Ben:", "光", "It was built near the sea"):
        answer = post(client, "/v1/infer", input=text)
        route = answer["route"]
        likeliest.add(max(route, key=route.__getitem__))
        del route["qa"]
        assert answer["task"] == max(route, key=route.__getitem__)
    assert "qa" in likeliest, "the test needs inputs that the router takes for questions"


def test_auto_reads_as_much_as_the_model_does(client: httpx.Client) -> None:
    body = {"input": "!" * 1000, "context": "!" * 2000}
    error = check_error(client.post("/v1/infer", json=body), 400, "context_length_exceeded", "input")
    assert "3002" in error["message"]
    assert "2048" in error["message"]


def test_a_routed_question_about_a_long_context_is_answered_window_by_window(client: httpx.Client) -> None:
    contexts = ["Anna: Ben: " * repeated for repeated in range(200, 210)]
    routed = ((each, post(client, "/v1/infer", input="When?", context=each)) for each in contexts)
    context, answer = next((context, answer) for context, answer in routed if answer["task"] == "qa")
    assert answer["result"] == post(client, "/v1/qa", question="When?", context=context)
