"""The engine on a CUDA device answers what it answers on the CPU, alone, in batches, with beams, and after cancels."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest

from deploy.bundle.export import export_bundle
from deploy.triton.engine import Engine
from deploy.triton.limits import EngineSettings
from deploy.triton.manifest import BundleError
from deploy.triton.protocol import FinishReason, Task
from model.network import HybridModel
from tests.deploy.triton.engine_traffic import answer, finish, make_rows, submit

gpu = pytest.mark.gpu
TASKS = pytest.mark.parametrize("task", [Task.GENERATION, Task.SUMMARY])


@pytest.fixture(scope="module")
def half_bundle(nano_model: HybridModel, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("half") / "bundle"
    export_bundle(nano_model, tokenizer_folder, folder, precision="fp16")
    return folder


@pytest.fixture(scope="module")
def on_cpu(half_bundle: Path) -> Engine:
    return Engine(half_bundle, EngineSettings(threads=1, slots=16))


@pytest.fixture(scope="module")
def on_device(half_bundle: Path) -> Engine:
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this ONNX Runtime knows no CUDA")
    return Engine(half_bundle, EngineSettings(slots=16, device="cuda"))


def test_a_bundle_of_another_precision_is_refused(nano_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"needs graphs that compute in fp16, and .* is fp32: export it with"):
        Engine(nano_bundle, EngineSettings(device="cuda"))


@gpu
@TASKS
def test_the_device_answers_what_the_cpu_answers(on_cpu: Engine, on_device: Engine, task: Task) -> None:
    """But for near ties of a random network, which float16 on two devices may break either way."""
    rows = make_rows(16, max_new_tokens=8)
    expected, found = (answer(each, rows, task).tokens for each in (on_cpu, on_device))
    assert sum(found[each] == expected[each] for each in expected) >= 13
    assert len({tuple(each) for each in expected.values()}) > 8, "texts that do not vary prove nothing"


@gpu
@TASKS
def test_a_row_is_answered_alike_alone_and_in_a_batch(on_device: Engine, task: Task) -> None:
    rows = make_rows(12, max_new_tokens=8)
    together = answer(on_device, rows, task).tokens
    assert {row.row_id: answer(on_device, [row], task).tokens[row.row_id] for row in rows} == together


@gpu
def test_samples_depend_on_the_seed_alone(on_device: Engine) -> None:
    rows = make_rows(8, max_new_tokens=8, temperature=1.0, top_p=0.9)
    together = answer(on_device, rows).tokens
    assert {row.row_id: answer(on_device, [row]).tokens[row.row_id] for row in rows} == together


@gpu
@TASKS
def test_beams_continue_the_beams_they_stand_for(on_cpu: Engine, on_device: Engine, task: Task) -> None:
    rows = make_rows(4, max_new_tokens=8, num_beams=4)
    expected, found = (answer(each, rows, task).tokens for each in (on_cpu, on_device))
    assert sum(found[each] == expected[each] for each in expected) >= 3


@gpu
def test_rows_that_move_keep_their_caches(on_device: Engine) -> None:
    """Rows that end early leave holes, into which longer ones move."""
    rows = [row for length in (3, 12, 5, 9) for row in make_rows(3, first=100 * length, max_new_tokens=length)]
    together = answer(on_device, rows).tokens
    assert {row.row_id: answer(on_device, [row]).tokens[row.row_id] for row in rows} == together


@gpu
def test_a_cancelled_row_frees_its_slot(on_device: Engine) -> None:
    rows = make_rows(6, max_new_tokens=40, min_new_tokens=40)
    collector = submit(on_device, rows)
    on_device.step()
    on_device.cancel([row.row_id for row in rows[:3]])
    on_device.step()
    assert on_device.stats.slots_used == 3
    finish(on_device)
    assert [collector.reasons[row.row_id] for row in rows[3:]] == [FinishReason.LENGTH] * 3
