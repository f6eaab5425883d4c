"""Step time, useful FLOPs and MFU: what a run says of its speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from model.configuration import HybridConfig
from tests.training.planning.real_runs import made_batch
from training.layout import Layout
from training.objectives.losses import count_targets
from training.objectives.micro_batches import MicroBatch, StepBatch, slice_of_source, split
from training.parallel.mesh import Mesh, Ring
from training.planning.flops import training_flops
from training.planning.hardware import peak_flops
from training.runlog import METRICS, RunLog
from training.utilisation import peak_of_run, step_flops, work_of

CONFIG = HybridConfig.from_preset("nano")


def test_parts_of_a_batch_have_the_whole_batchs_flops() -> None:
    batch = made_batch()
    whole = training_flops(CONFIG, work_of(batch))
    mesh = Mesh(layout=Layout(data=2), data=Ring(size=2))
    parts = split(batch, 0, 2, 2, all_heads=False)
    assert len(parts) == 2
    assert step_flops(CONFIG, StepBatch(0, parts, batch.tokens), mesh) == pytest.approx(whole)


def test_a_slice_of_the_source_counts_for_all_slices() -> None:
    batch = made_batch()
    mesh = Mesh(layout=Layout(sequence=2), sequence=Ring(size=2))
    own = slice_of_source(batch, 1, 2, 16)
    assert own.source_BS.shape[1] == batch.source_BS.shape[1] // 2
    step = StepBatch(0, [MicroBatch(own, count_targets(batch))], batch.tokens)
    assert step_flops(CONFIG, step, mesh) == training_flops(CONFIG, work_of(batch))


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H200", 989.4),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peaks_are_known_by_the_devices_name(name: str, teraflops: float | None) -> None:
    assert peak_flops(name) == (None if teraflops is None else teraflops * 1e12)


def test_the_cpu_has_no_peak() -> None:
    assert peak_of_run(Mesh(device=torch.device("cpu"))) is None


def recorded(folder: Path, monkeypatch: pytest.MonkeyPatch, peak: float | None) -> list[dict]:
    """Two records: of two steps in 4 s, and of one step in 1 s."""
    clock = iter([0.0, 4.0, 5.0])
    monkeypatch.setattr("training.runlog.time.perf_counter", lambda: next(clock))
    with RunLog(folder, tensorboard=False, peak_flops=peak) as log:
        log.count(100, 3e12)
        log.count(100, 1e12)
        log.record(2, 0.5, {"loss": 1.0})
        log.count(50, 2e12)
        log.record(3, 0.6, {"loss": 1.0})
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def test_step_time_throughput_and_mfu_are_of_the_steps_since_the_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = recorded(tmp_path, monkeypatch, 10e12)
    assert (first["step_s"], first["tokens_per_s"], first["mfu"]) == (2.0, 50.0, pytest.approx(0.1))
    assert (second["step_s"], second["tokens_per_s"], second["mfu"]) == (1.0, 50.0, pytest.approx(0.2))


def test_mfu_is_null_where_no_peak_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [line["mfu"] for line in recorded(tmp_path, monkeypatch, None)] == [None, None]


def test_a_real_run_tells_all_of_it(finished_run: Path) -> None:
    for line in map(json.loads, (finished_run / METRICS).read_text().splitlines()):
        assert line["mfu"] is None  # on a CPU
        assert line["step_s"] > 0
        assert line["tokens_per_s"] > 0
        assert line["gradient_norm"] > 0
        assert line["peak_memory_bytes"] == 0
