"""Evaluation: finite figures from a nano checkpoint, answers from a service over HTTP, and clear refusals."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.small_service import SmallService, serving
from tests.training.tiny_corpora import HELD_OUT_SQUAD, WORDS, squad
from training.data.readers import read_questions
from training.evaluation.continuation import evaluate_continuation
from training.evaluation.evaluate import Figures, evaluate_questions, evaluate_summaries
from training.evaluation.network_predictor import NetworkPredictor, load_weights
from training.evaluation.predictors import ServicePredictor, make_predictor

ROOT = Path(__file__).resolve().parents[3]


class Answers(SmallService):
    """Answers the first word of a context, and summarises with a text's first four words."""

    def get(self) -> None:
        self.answer({"data": [{"id": "trident-test"}]} if self.path == "/v1/models" else None)

    def post(self, body: bytes) -> None:
        asked = json.loads(body)
        if self.path == "/v1/qa" and set(asked) == {"question", "context"}:
            word = asked["context"].split()[0]
            answers = (
                [] if "nothing" in asked["question"] else [{"text": word, "start": 0, "end": len(word), "score": 1}]
            )
            self.answer({"answers": answers})
        elif self.path == "/v1/summarize" and set(asked) == {"text"} and "refuse" not in asked["text"]:
            self.answer({"summary": " ".join(asked["text"].split()[:4])})
        else:
            self.answer(None)

    def answer(self, content: Any) -> None:
        """As JSON; 400 for None."""
        told = {"error": {"message": "too long"}} if content is None else content
        self.reply(json.dumps(told).encode(), 400 if content is None else 200)


@pytest.fixture
def service() -> Iterator[str]:
    with serving(Answers) as url:
        yield url


@pytest.fixture(scope="module")
def predictor(finished_run: Path) -> NetworkPredictor:
    return NetworkPredictor(load_weights(finished_run / "weights"))


@pytest.fixture
def dialogues(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    records = [
        {"source": "the old mill stands near the river", "targets": ["the old mill stands", "a mill"]},
        {"source": "ships sail along the coast", "targets": ["ships sail today"]},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.json"
    asked = [("what?", "Anna"), ("nothing?", "Anna"), ("who?", "met Ben")]
    context = "Anna met Ben."
    qas = [
        {"id": text, "question": text, "answers": [{"text": answer, "answer_start": context.index(answer)}]}
        for text, answer in asked
    ]
    path.write_text(json.dumps(squad([{"title": "a", "paragraphs": [{"context": context, "qas": qas}]}])))
    return path


def assert_finite(figures: Figures) -> None:
    assert all(math.isfinite(value) for value in figures.values() if not isinstance(value, str))


def test_questions_get_finite_figures_from_a_checkpoint(predictor: NetworkPredictor, prepared: Path) -> None:
    figures = evaluate_questions(predictor, prepared / "dev/squad.json", None)
    assert_finite(figures)
    assert (figures["questions"], figures["documents"]) == (48, len(HELD_OUT_SQUAD))
    assert 0 <= figures["exact_match"] <= figures["f1"] <= 100
    assert evaluate_questions(predictor, prepared / "dev/squad.json", 5)["questions"] == 5


def test_answers_are_parts_of_their_contexts_over_any_number_of_windows(
    predictor: NetworkPredictor, prepared: Path
) -> None:
    found = list(read_questions(prepared / "dev/squad.json"))[:3]
    answers = list(predictor.answer(found))
    assert all(answer and answer in question.context for answer, question in zip(answers, found, strict=True))
    long = dataclasses.replace(found[0], context=" ".join(WORDS * 20))
    (answer,) = predictor.answer([long])
    assert answer
    assert answer in long.context


def test_batch_mates_change_no_answer(predictor: NetworkPredictor, prepared: Path) -> None:
    found = list(read_questions(prepared / "dev/squad.json"))[:12]
    found.insert(5, dataclasses.replace(found[0], context=" ".join(WORDS * 20)))
    assert list(predictor.answer(found)) == [answer for one in found for answer in predictor.answer([one])]


def test_summaries_get_finite_figures_from_a_checkpoint(predictor: NetworkPredictor, prepared: Path) -> None:
    figures = evaluate_summaries(predictor, prepared / "dev/dialogsum.jsonl", None)
    assert_finite(figures)
    assert (figures["texts"], figures["references"]) == (3, 2)
    assert figures["rouge1_mean"] <= figures["rouge1_best"]


def test_bits_per_byte_are_finite_and_below_those_of_an_even_guess(finished_run: Path, prepared: Path) -> None:
    weights = load_weights(finished_run / "weights")
    figures = evaluate_continuation(weights, prepared / "dev/wikipedia_en.wiki_en_00.jsonl", None)
    assert_finite(figures)
    assert 0 < figures["bits_per_byte"] < math.log2(32_000)
    assert figures["documents"] == 2


def test_a_service_answers_over_http(service: str, questions: Path, dialogues: Path) -> None:
    predictor = make_predictor(None, service)
    figures = evaluate_questions(predictor, questions, None)
    # "Anna" is right, no answer and "Anna" for "met Ben" are wrong.
    assert figures["exact_match"] == pytest.approx(100 / 3)
    assert figures["f1"] == pytest.approx(100 / 3)
    assert figures["predictor"] == "service, trident-test"
    figures = evaluate_summaries(predictor, dialogues, None)
    # "the old mill stands" is its reference; "ships sail along the" shares 2 of 4 and of 3 words: 4/7.
    assert figures["rouge1_best"] == pytest.approx(50 * (1 + 4 / 7))
    assert figures["mean_words"] == 4


FOREIGN = ("torch", "transformers", "tokenizers", "onnxruntime", "model.network")
"""What an environment that serves, or only asks a service, need not have."""

WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in {names}:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Absent())
from deploy.cli import main
main()
"""


@pytest.mark.parametrize(("command", "missing"), [("qa", ("rouge_score", "sacrebleu")), ("summary", ())])
def test_a_service_is_evaluated_without_pytorch(
    service: str, questions: Path, dialogues: Path, command: str, missing: tuple[str, ...]
) -> None:
    data = {"qa": questions, "summary": dialogues}[command]
    program = WITHOUT.format(names=(*FOREIGN, *missing))
    arguments = ["evaluate", command, "--url", service, "--data", str(data), "--json"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["predictor"] == "service, trident-test"
    assert figures["f1" if command == "qa" else "rouge1_best"] > 30


def test_a_service_that_refuses_is_quoted(service: str) -> None:
    with pytest.raises(ValueError, match=r"/v1/summarize answered 400: .*too long"):
        list(ServicePredictor(service).summarise(["refuse this"]))


@pytest.mark.parametrize(
    ("url", "told"),
    [("http://127.0.0.1:1", "does not answer"), ("nonsense", "write it as http://127.0.0.1:8000")],
)
def test_a_service_that_does_not_answer_is_named(url: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ServicePredictor(url)


def test_exactly_one_must_answer(tmp_path: Path) -> None:
    for checkpoint, url in ((None, None), (tmp_path, "http://127.0.0.1:1")):
        with pytest.raises(ValueError, match=r"one of the two: --checkpoint FOLDER, .* or --url http"):
            make_predictor(checkpoint, url)


def test_a_folder_without_weights_is_named(finished_run: Path) -> None:
    with pytest.raises(ValueError, match=rf"{finished_run} holds no trained network: name the `weights` folder"):
        load_weights(finished_run)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"source": "a"}\n', "line 1 must be an object with source, targets"),
        ("no json\n", "line 1 is not JSON"),
        ("", "holds nothing to evaluate"),
    ],
)
def test_data_of_another_format_are_named(predictor: NetworkPredictor, tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"{path}.*{said}"):
        evaluate_summaries(predictor, path, None)


def test_texts_too_short_to_continue_are_refused(finished_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.jsonl"
    path.write_text('{"text": "a mill"}\n')
    with pytest.raises(ValueError, match="no document of more than 192 tokens"):
        evaluate_continuation(load_weights(finished_run / "weights"), path, None)
