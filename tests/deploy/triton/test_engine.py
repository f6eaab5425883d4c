"""What the engine answers: the tokens that each row would get alone, whatever else it is doing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from deploy.bundle.export import export_bundle
from deploy.triton.engine import Engine
from deploy.triton.limits import EngineSettings, RowLimits
from deploy.triton.manifest import BundleError
from deploy.triton.protocol import FinishReason, GenerationBatch, Source, Task
from model.configuration import HybridConfig
from model.network import HybridModel
from tests.deploy.triton.engine_traffic import answer, finish, make_rows, submit

DECODERS = {Task.GENERATION: "generative", Task.SUMMARY: "pointer"}
GENERATIVE_TASKS = pytest.mark.parametrize("task", DECODERS)


def plain_greedy(bundle: Path, name: str, source: np.ndarray, count: int) -> list[int]:
    """Greedy decoding of one source by the bundle's graphs, with caches of its own that are copied at every step."""
    graphs = {
        each: ort.InferenceSession(bundle / "graphs" / f"{each}.onnx", providers=["CPUExecutionProvider"])
        for each in ("encoder", f"{name}_prefill", f"{name}_step")
    }
    memory = graphs["encoder"].run(["memory"], {"input_ids": source[None], "lengths": np.int32([len(source)])})[0]
    prefill, step = graphs[f"{name}_prefill"], graphs[f"{name}_step"]
    cross = dict(zip([each.name for each in prefill.get_outputs()], prefill.run(None, {"memory": memory}), strict=True))
    inputs = {each.name: each for each in step.get_inputs()}
    caches = {}
    for each in inputs:
        if each.startswith("self"):
            caches[each] = np.zeros((1, inputs[each].shape[1], count + 1, inputs[each].shape[3]), np.float32)
        elif each in cross:
            # The step wants room for two positions at least.
            caches[each] = np.pad(cross[each], ((0, 0), (0, 0), (0, 1), (0, 0)))
    if "source_ids" in inputs:
        caches["source_ids"] = np.pad(source, (0, 1))[None]
    tokens, fed = [], 1
    for position in range(count):
        lengths = {"target_lengths": np.int32([position]), "source_lengths": np.int32([len(source)])}
        outputs = step.run(None, {"tokens": np.int64([[fed]]), **lengths, **caches})
        found = dict(zip([each.name for each in step.get_outputs()], outputs, strict=True))
        caches |= {name: found[f"present_{name}"] for name in caches if name.startswith("self")}
        scores = found["logits"][0]
        scores[[*range(2), *range(3, 16)]] = -np.inf
        fed = int(scores.argmax())
        if fed == 2:
            break
        tokens.append(fed)
    return tokens


@pytest.fixture(scope="module")
def ungrouped_bundle(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """As bundles were before their configuration had `num_kv_heads`."""
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("ungrouped") / "bundle"
    export_bundle(HybridModel(HybridConfig.from_preset("nano", num_kv_heads=4)), tokenizer_folder, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["config"].pop("num_kv_heads") == 4
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@GENERATIVE_TASKS
def test_a_bundle_of_before_grouped_heads_is_served(ungrouped_bundle: Path, task: Task) -> None:
    engine = Engine(ungrouped_bundle, EngineSettings(slots=4, threads=1, verify=False))
    rows = make_rows(3)
    expected = {row.row_id: plain_greedy(ungrouped_bundle, DECODERS[task], row.source.ids, 12) for row in rows}
    assert answer(engine, rows, task).tokens == expected


@GENERATIVE_TASKS
def test_greedy_tokens_are_those_of_the_graphs_run_plainly(engine: Engine, nano_bundle: Path, task: Task) -> None:
    rows = make_rows(6)
    found = answer(engine, rows, task).tokens
    expected = {row.row_id: plain_greedy(nano_bundle, DECODERS[task], row.source.ids, 12) for row in rows}
    assert found == expected
    assert len({tuple(tokens) for tokens in expected.values()}) > 1, "texts must differ, or equality proves nothing"


@GENERATIVE_TASKS
@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 0.9},
        {"temperature": 0.7, "top_k": 30, "top_p": 0.9, "repetition_penalty": 1.2},
        {"num_beams": 4, "no_repeat_ngram": 2},
    ],
    ids=["greedy", "temperature", "filters", "beams"],
)
def test_a_row_gets_the_same_tokens_alone_and_in_a_full_batch(engine: Engine, task: Task, sampling: dict) -> None:
    rows = make_rows(32 if "num_beams" not in sampling else 8, max_new_tokens=10, **sampling)
    together = answer(engine, rows, task).tokens
    assert together == {row.row_id: answer(engine, [row], task).tokens[row.row_id] for row in rows}


def test_rows_that_come_and_go_change_nobodys_tokens(engine: Engine) -> None:
    batches = {
        task: make_rows(9, first=100 * index, max_new_tokens=20, **sampling)
        for index, (task, sampling) in enumerate(
            {
                Task.GENERATION: {"temperature": 0.8},
                Task.SUMMARY: {},
                Task.AUTO: {"top_p": 0.9, "temperature": 1.0},
            }.items()
        )
    }
    for task, rows in batches.items():
        lengths = np.random.default_rng(task).integers(1, 20, len(rows)).tolist()
        batches[task] = [
            replace(row, sampling=replace(row.sampling, max_new_tokens=length))
            for row, length in zip(rows, lengths, strict=True)
        ]
    alone = {task: answer(engine, rows, task).tokens for task, rows in batches.items()}
    collectors = {}
    for task, rows in batches.items():
        for start in range(0, 9, 3):
            collectors[task, start] = submit(engine, rows[start : start + 3], task)
            engine.step()
    finish(engine)
    for (task, _), collector in collectors.items():
        assert collector.tokens == {row_id: alone[task][row_id] for row_id in collector.tokens}
        assert len(collector.finals) == 3


def test_equal_seeds_give_equal_texts_and_others_do_not(engine: Engine) -> None:
    row = make_rows(1, temperature=1.0)[0]
    rows = [
        replace(row, row_id=row_id, sampling=replace(row.sampling, seed=seed)) for row_id, seed in enumerate([7, 7, 8])
    ]
    tokens = answer(engine, rows).tokens
    assert tokens[0] == tokens[1] != tokens[2]


@GENERATIVE_TASKS
def test_a_row_ends_at_its_length_and_not_before_the_least(engine: Engine, task: Task) -> None:
    rows = make_rows(3, max_new_tokens=40, min_new_tokens=40, temperature=1.0)
    collector = answer(engine, rows, task)
    assert set(collector.reasons.values()) == {FinishReason.LENGTH}
    assert [len(tokens) for tokens in collector.tokens.values()] == [40] * 3
    assert all(token == 2 or token >= 16 for tokens in collector.tokens.values() for token in tokens)


def test_the_longest_answer_fits_the_cache(engine: Engine) -> None:
    longest = engine.limits.max_target_tokens
    collector = answer(engine, make_rows(2, max_new_tokens=longest, min_new_tokens=longest))
    assert [len(tokens) for tokens in collector.tokens.values()] == [longest] * 2


def test_the_end_token_ends_a_row_and_is_not_sent(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = engine._executor.decoders[Task.GENERATION]
    step, count = decoder.step, [0]

    def ending(bounds: slice) -> np.ndarray:
        scores = step(bounds)
        count[0] += 1
        scores[:, 2] = 1e6 if count[0] == 4 else -1e6
        return scores

    monkeypatch.setattr(decoder, "step", ending)
    collector = answer(engine, make_rows(2))
    assert set(collector.reasons.values()) == {FinishReason.STOP}
    assert [len(tokens) for tokens in collector.tokens.values()] == [3, 3]


def test_streaming_rows_report_every_step_in_one_call_and_others_once(engine: Engine) -> None:
    rows = [*make_rows(3, max_new_tokens=5, min_new_tokens=5, stream=True), *make_rows(1, first=9, max_new_tokens=5)]
    collector = submit(engine, rows)
    steps = 0
    while engine.step():
        steps += 1
    assert steps == len(collector.calls) == 5
    assert [len(call) for call in collector.calls] == [3, 3, 3, 3, 4]
    assert all(len(update.tokens) == 1 for update in collector.updates if update.row_id != 9)
    assert sum(update.row_id == 9 for update in collector.updates) == 1


def test_the_last_update_says_where_the_time_went(engine: Engine) -> None:
    collector = answer(engine, make_rows(2, stream=True))
    for update in collector.updates:
        assert (update.timings is None) == (update.finish_reason is FinishReason.RUNNING)
    for final in collector.finals.values():
        assert final.timings.queue_s >= 0
        assert final.timings.prefill_s > 0
        assert final.timings.decode_s > 0


def test_auto_rows_are_answered_as_the_task_they_are_routed_to(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows(9, stream=True)
    encode = engine._executor.encoder.encode

    def routed(sources: list[Source]) -> tuple[np.ndarray, np.ndarray]:
        memory, routes = encode(sources)
        return memory, np.eye(3, dtype=np.float32)[[source.cost % 3 for source in sources]] + routes / 9

    monkeypatch.setattr(engine._executor.encoder, "encode", routed)
    collector = answer(engine, rows, Task.AUTO)
    tasks = {row.row_id: Task(row.source.cost % 3) for row in rows}
    assert set(tasks.values()) == {Task.GENERATION, Task.QA, Task.SUMMARY}
    for row in rows:
        task, final = tasks[row.row_id], collector.finals[row.row_id]
        explicit = answer(engine, [row], task)
        first = next(update for update in collector.updates if update.row_id == row.row_id)
        assert first.route.argmax() == task
        assert final.task is task
        assert collector.tokens[row.row_id] == explicit.tokens[row.row_id]
        if task is Task.QA:
            assert final.finish_reason is FinishReason.STOP
            np.testing.assert_allclose(final.emissions, explicit.finals[row.row_id].emissions, atol=1e-5)
            assert len(final.emissions) == row.source.cost


def test_routes_are_sent_once_and_only_to_auto_rows(engine: Engine) -> None:
    auto = answer(engine, make_rows(4, stream=True), Task.AUTO)
    routed = [update.row_id for update in auto.updates if update.route is not None]
    assert sorted(routed) == [0, 1, 2, 3]
    assert all(update.route is None for update in answer(engine, make_rows(2), Task.SUMMARY).updates)


def test_emissions_are_those_of_the_qa_graph(engine: Engine, nano_bundle: Path) -> None:
    rows = make_rows(5)
    session = ort.InferenceSession(nano_bundle / "graphs" / "qa.onnx", providers=["CPUExecutionProvider"])
    collector = answer(engine, rows, Task.QA)
    for row in rows:
        inputs = {"input_ids": row.source.ids[None], "lengths": np.int32([[row.source.cost]])}
        expected = session.run(["emissions"], inputs)[0][0]
        np.testing.assert_allclose(collector.finals[row.row_id].emissions, expected, atol=1e-5)


def test_the_longest_source_is_served_and_a_longer_one_refused(engine: Engine) -> None:
    longest = engine.limits.max_source_tokens
    row = replace(make_rows(1, max_new_tokens=3)[0], source=Source(np.full(longest, 77)))
    assert answer(engine, [row], Task.SUMMARY).reasons == {0: FinishReason.LENGTH}
    with pytest.raises(ValueError, match=f"{longest + 1} tokens: send 1 to {longest}"):
        submit(engine, [replace(row, source=Source(np.full(longest + 1, 77)))])


def test_the_engine_says_what_it_takes_where_its_settings_allow_less_than_the_bundle(nano_bundle: Path) -> None:
    settings = EngineSettings(slots=3, max_source_tokens=10, max_target_tokens=7, threads=1, verify=False)
    engine = Engine(nano_bundle, settings)
    assert engine.settings is settings
    assert engine.limits == RowLimits(vocabulary=32_000, max_source_tokens=10, max_target_tokens=7, max_beams=3)
    (row,) = make_rows(1, max_new_tokens=7, num_beams=3)
    row = replace(row, source=Source(np.full(10, 77)))
    assert answer(engine, [row]).reasons.keys() == {0}
    for bad in (
        replace(row, source=Source(np.full(11, 77))),
        replace(row, sampling=replace(row.sampling, max_new_tokens=8)),
        replace(row, sampling=replace(row.sampling, num_beams=4)),
    ):
        with pytest.raises(ValueError, match="row 0: "):
            submit(engine, [bad])


def test_a_bad_row_keeps_its_whole_batch_out(engine: Engine) -> None:
    good, bad = make_rows(2)
    bad = replace(bad, source=Source(np.array([32_000])))
    with pytest.raises(ValueError, match="row 1: input_ids holds the id 32000"):
        engine.submit(GenerationBatch(task=Task.GENERATION, rows=(good, bad)), lambda _: None)
    assert engine.stats.waiting_rows == 0


def test_a_row_id_in_flight_is_refused_and_free_again_afterwards(engine: Engine) -> None:
    rows = make_rows(1)
    submit(engine, rows)
    with pytest.raises(ValueError, match="row 0 is in flight already"):
        submit(engine, rows)
    finish(engine)
    assert answer(engine, rows).reasons == {0: FinishReason.LENGTH}


def test_a_damaged_bundle_is_named(nano_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    (bundle / "graphs").mkdir(parents=True)
    manifest = json.loads((nano_bundle / "manifest.json").read_text())
    for name in manifest["files"]:
        (bundle / name).write_bytes((nano_bundle / name).read_bytes())
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    step = bundle / "graphs" / "generative_step.onnx"
    step.write_bytes(step.read_bytes()[:-100])
    with pytest.raises(BundleError, match=r"generative_step\.onnx has"):
        Engine(bundle)
    with pytest.raises(BundleError, match=r"generative_step\.onnx cannot be loaded"):
        Engine(bundle, EngineSettings(verify=False))
