"""The two Python-backend models, with a stand-in for the module that only Triton's stub provides."""

from __future__ import annotations

import hashlib
import importlib
import json
import queue
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime as ort
import pytest

from deploy.triton.manifest import BundleError
from deploy.triton.protocol import FinishReason, GenerationBatch, RowUpdate, Task
from deploy.triton.wire import decode_news, encode_batch, encode_cancel, encode_stats_query
from tests.deploy.triton.engine_traffic import make_rows

FINAL = 1


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        assert array.flags.c_contiguous
        assert array.size
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class TritonError(Exception):
    INVALID_ARG = 3
    CANCELLED = 7

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor], error: TritonError | None = None) -> None:
        self.tensors = {each.name(): each.as_numpy() for each in output_tensors}
        self.error = error


class Sender:
    """What a client sees of its stream."""

    def __init__(self) -> None:
        self.responses: queue.Queue[tuple[InferenceResponse, int]] = queue.Queue()
        self.gone = threading.Event()

    def send(self, response: InferenceResponse, flags: int) -> None:
        self.responses.put((response, flags))

    def is_cancelled(self) -> bool:
        return self.gone.is_set()

    def receive(self) -> tuple[InferenceResponse, int]:
        return self.responses.get(timeout=60)

    def receive_all(self) -> list[InferenceResponse]:
        """Responses up to the final one."""
        received = []
        while True:
            response, flags = self.receive()
            received.append(response)
            if flags == FINAL:
                assert self.responses.empty()
                return received


class Request:
    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        self.sender = Sender()
        self._tensors = tensors

    def inputs(self) -> list[Tensor]:
        return [Tensor(name, array) for name, array in self._tensors.items()]

    def get_response_sender(self) -> Sender:
        return self.sender

    def is_cancelled(self) -> bool:
        return self.sender.is_cancelled()


@pytest.fixture(scope="module", autouse=True)
def backend() -> Iterator[None]:
    """The stub's module."""
    module = ModuleType("triton_python_backend_utils")
    for each in (Tensor, TritonError, InferenceResponse):
        setattr(module, each.__name__, each)
    module.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL
    sys.modules[module.__name__] = module
    yield
    del sys.modules[module.__name__]


def load(name: str, folder: Path, /, **parameters: str):
    """An initialised model whose version folder is the bundle."""
    config = {"parameters": {key: {"string_value": value} for key, value in {"threads": "1", **parameters}.items()}}
    model = importlib.import_module(f"deploy.triton.{name}").TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps(config),
            "model_repository": str(folder.parent),
            "model_version": folder.name,
        }
    )
    return model


def ask(model, tensors: dict[str, np.ndarray]) -> Sender:
    request = Request(tensors)
    model.execute([request])
    return request.sender


def updates_of(responses: list[InferenceResponse]) -> list[RowUpdate]:
    return [update for response in responses for update in decode_news(response.tensors)[0].updates]


def batch_of(rows: list, task: Task = Task.GENERATION) -> dict[str, np.ndarray]:
    return encode_batch(GenerationBatch(task=task, rows=tuple(rows)))


@pytest.fixture(scope="module")
def generator(nano_bundle: Path):
    model = load("generator_model", nano_bundle, slots="4", verify="false")
    yield model
    model.finalize()
    assert not any(thread.name == "decode-loop" for thread in threading.enumerate())


def test_a_batch_is_answered_until_its_rows_have_finished(generator) -> None:
    rows = [*make_rows(2, stream=True, max_new_tokens=6, min_new_tokens=6), *make_rows(1, first=8, max_new_tokens=3)]
    responses = ask(generator, batch_of(rows)).receive_all()
    updates = updates_of(responses)
    assert 6 <= len(responses) <= 7
    assert {each.row_id for each in updates if each.finish_reason is FinishReason.LENGTH} == {0, 1, 8}
    assert sum(len(each.tokens) for each in updates if each.row_id == 0) == 6


def test_statistics_are_answered_at_once(generator) -> None:
    responses = ask(generator, encode_stats_query()).receive_all()
    stats = decode_news(responses[0].tensors)[1]
    assert (len(responses), stats.slots_total, stats.slots_used) == (1, 4, 0)


def test_rows_are_cancelled_by_another_request(generator) -> None:
    batch = ask(generator, batch_of(make_rows(2, stream=True, max_new_tokens=500, min_new_tokens=500)))
    batch.receive()
    assert len(ask(generator, encode_cancel([0, 1])).receive_all()) == 1
    reasons = [each.finish_reason for each in updates_of(batch.receive_all())]
    assert reasons[-2:] == [FinishReason.CANCELLED] * 2


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_rows(generator, stream: bool) -> None:
    rows = make_rows(2, stream=stream, max_new_tokens=500, min_new_tokens=500)
    batch = ask(generator, batch_of(rows))
    batch.gone.set()
    reasons = {each.row_id: each.finish_reason for each in updates_of(batch.receive_all())}
    assert reasons == {0: FinishReason.CANCELLED, 1: FinishReason.CANCELLED}


def test_an_answer_that_cannot_be_sent_ends_its_request_in_words_and_no_other(generator) -> None:
    request = Request(batch_of(make_rows(2, stream=True, max_new_tokens=500, min_new_tokens=500)))
    send, failures = request.sender.send, iter([MemoryError("no shared memory is left")])

    def fails_once(response: InferenceResponse, flags: int) -> None:
        for failure in failures:
            raise failure
        send(response, flags)

    request.sender.send = fails_once
    generator.execute([request])
    other = ask(generator, batch_of(make_rows(1, first=8, max_new_tokens=3)))
    (response,) = request.sender.receive_all()
    assert "an answer could not be sent: MemoryError('no shared memory is left')" in str(response.error)
    assert updates_of(other.receive_all())[-1].row_id == 8
    stats = decode_news(ask(generator, encode_stats_query()).receive_all()[0].tensors)[1]
    assert stats.waiting_rows == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"request_kind": np.int32([7])}, "request_kind is 7"),
        ({"input_ids": np.int64([5, 99_999])}, "input_ids holds the id 99999"),
        ({"task": np.float32([0])}, "task is float32"),
    ],
)
def test_a_bad_request_is_answered_in_words_and_the_next_one_served(generator, change: dict, message: str) -> None:
    tensors = {**batch_of(make_rows(1)), "input_ids": np.int64([5, 20]), "input_lengths": np.int32([2])}
    response, flags = ask(generator, tensors | change).receive()
    assert flags == FINAL
    assert message in str(response.error)
    assert ask(generator, tensors).receive_all()[-1].error is None


def test_a_client_that_cannot_be_asked_whether_it_has_gone_is_served(nano_bundle: Path, caplog) -> None:
    model = load("generator_model", nano_bundle, slots="4", verify="false")
    asked = []

    def is_cancelled() -> bool:
        asked.append(len(asked))
        raise RuntimeError("the stub lost its parent")

    request = Request(batch_of(make_rows(2, stream=True, max_new_tokens=40, min_new_tokens=40)))
    request.sender.is_cancelled = is_cancelled
    model.execute([request])
    reasons = [each.finish_reason for each in updates_of(request.sender.receive_all())]
    assert reasons.count(FinishReason.LENGTH) == 2
    assert len(asked) > 1
    assert caplog.text.count("cannot be asked whether it has gone") == 1
    assert ask(model, batch_of(make_rows(1))).receive_all()[-1].error is None
    model.finalize()


def test_a_decode_loop_that_fails_tells_its_clients_and_refuses_whatever_comes_later(
    nano_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load("generator_model", nano_bundle, slots="4", verify="false")
    batch = ask(model, batch_of(make_rows(6, max_new_tokens=500, min_new_tokens=500)))
    batch.receive()

    monkeypatch.setattr(model._watch, "_lock", None)
    reasons = [each.finish_reason for each in updates_of(batch.receive_all())]
    assert reasons == [FinishReason.ERROR] * 6
    for tensors in (batch_of(make_rows(1)), encode_stats_query(), encode_cancel([1])):
        response, flags = ask(model, tensors).receive()
        assert flags == FINAL
        assert "the decode loop has ended (TypeError" in str(response.error)
    model.finalize()


def test_finalize_ends_rows_in_flight(nano_bundle: Path) -> None:
    model = load("generator_model", nano_bundle, slots="2", verify="false")
    batch = ask(model, batch_of(make_rows(3, stream=True, max_new_tokens=500, min_new_tokens=500)))
    batch.receive()
    model.finalize()
    assert {each.row_id for each in updates_of(batch.receive_all())} == {0, 1, 2}
    response, flags = ask(model, batch_of(make_rows(1))).receive()
    assert "the decode loop has ended" in str(response.error)
    assert flags == FINAL


def test_a_bad_parameter_stops_the_model(nano_bundle: Path) -> None:
    with pytest.raises(ValueError, match="parameter slots is 'x'"):
        load("generator_model", nano_bundle, slots="x")
    with pytest.raises(ValueError, match="parameter graph is missing"):
        load("stateless_model", nano_bundle)
    with pytest.raises(BundleError, match="has no graph 'nothing'"):
        load("stateless_model", nano_bundle, graph="nothing")


@pytest.mark.parametrize(("name", "parameters"), [("generator_model", {}), ("stateless_model", {"graph": "qa"})])
def test_a_model_configured_for_another_bundle_does_not_load(nano_bundle: Path, name: str, parameters: dict) -> None:
    digest = hashlib.sha256((nano_bundle / "manifest.json").read_bytes()).hexdigest()
    other = {**parameters, "bundle": "student-7", "bundle_sha256": "ab" * 32}
    with pytest.raises(BundleError, match=rf"for the bundle student-7 \(abab.*holds trident-nano \({digest[:12]}\)"):
        load(name, nano_bundle, **other)
    model = load(name, nano_bundle, **{**other, "bundle_sha256": digest}, verify="false")
    if name == "generator_model":
        model.finalize()


@pytest.fixture(scope="module")
def qa(nano_bundle: Path):
    return load("stateless_model", nano_bundle, graph="qa")


def qa_inputs(seed: int, rows: int, size: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "input_ids": random.integers(16, 32_000, (rows, size)),
        "lengths": random.integers(1, size + 1, (rows, 1)).astype(np.int32),
    }


def test_requests_of_any_shapes_get_their_own_results(qa, nano_bundle: Path) -> None:
    shapes = [(1, 10), (2, 10), (1, 30), (3, 10), (2, 30)]
    asked = [qa_inputs(seed, *shape) for seed, shape in enumerate(shapes)]
    responses = qa.execute([Request(inputs) for inputs in asked])
    session = ort.InferenceSession(nano_bundle / "graphs" / "qa.onnx", providers=["CPUExecutionProvider"])
    for inputs, response in zip(asked, responses, strict=True):
        expected = session.run(["emissions"], inputs)[0]
        np.testing.assert_allclose(response.tensors["emissions"], expected, atol=1e-5)


class Counting:
    """A session that remembers the sizes of its batches, and does what a test wishes before each."""

    def __init__(self, session: ort.InferenceSession, before_run=lambda: None) -> None:
        self.sizes: list[int] = []
        self.get_inputs = session.get_inputs
        self._session, self._before_run = session, before_run

    def run(self, outputs: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        self._before_run()
        self.sizes.append(len(inputs["input_ids"]))
        return self._session.run(outputs, inputs)


def test_requests_of_one_shape_run_once(qa, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qa, "_session", session := Counting(qa._session))
    qa.execute([Request(qa_inputs(seed, 1 + seed % 2, 12)) for seed in range(4)])
    assert session.sizes == [6]


def test_what_nobody_waits_for_any_more_is_not_run_and_the_rest_is(qa, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [Request(qa_inputs(seed, 1, 12)) for seed in range(3)] + [Request(qa_inputs(3, 2, 20))]
    requests[1].sender.gone.set()
    monkeypatch.setattr(qa, "_session", session := Counting(qa._session, requests[3].sender.gone.set))
    responses = qa.execute(requests)
    assert session.sizes == [2], "one had gone before, and one while the others were computed"
    assert [each.error and each.error.code for each in responses] == [None, 7, None, 7]
    assert responses[2].tensors["emissions"].shape == (1, 12, 3)


def test_a_request_whose_client_cannot_be_asked_is_run(qa, caplog) -> None:
    request = Request(qa_inputs(0, 1, 5))
    del request.sender
    (response,) = qa.execute([request])
    assert response.error is None
    assert "cannot be asked whether it has gone" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": np.int64([[4]])}, "lengths is int64"),
        ({"lengths": np.int32([4])}, "lengths is int32 \\[1\\]"),
        ({"lengths": np.int32([[4], [4]])}, "different batch sizes"),
        ({"input_ids": np.int64([[20, 32_000, 20, 20, 20]])}, "holds the id 32000: ids are 0 to 31999"),
        ({"input_ids": np.int64([[20, 20, 20, 20, -1]])}, "holds the id -1: ids are 0 to 31999"),
        ({"lengths": np.int32([[0]])}, "lengths holds 0: rows of 5 ids have 1 to 5"),
        ({"lengths": np.int32([[-1]])}, "lengths holds -1"),
        ({"lengths": np.int32([[6]])}, "lengths holds 6"),
    ],
)
def test_a_bad_request_fails_alone(qa, change: dict, message: str) -> None:
    good, bad = qa_inputs(0, 1, 5), {**qa_inputs(1, 1, 5), **change}
    responses = qa.execute([Request(good), Request(bad), Request(good)])
    assert [response.error is None for response in responses] == [True, False, True]
    with pytest.raises(TritonError, match=message):
        raise responses[1].error


@pytest.mark.parametrize("graph", ["hybrid_lm", "router"])
@pytest.mark.parametrize("bad", [-1, 32_000])
def test_an_id_outside_the_vocabulary_is_refused_by_every_model(nano_bundle: Path, graph: str, bad: int) -> None:
    model = load("stateless_model", nano_bundle, graph=graph, verify="false")
    good = {"input_ids": np.int64([[20, 21, 22]])}
    responses = model.execute([Request(good), Request({"input_ids": np.int64([[20, bad, 22]])})])
    assert responses[0].error is None
    assert f"input_ids holds the id {bad}" in str(responses[1].error)


def test_a_request_without_an_input_is_refused(qa) -> None:
    inputs = qa_inputs(0, 1, 5)
    del inputs["lengths"]
    (response,) = qa.execute([Request(inputs)])
    assert "the request has no lengths" in str(response.error)
