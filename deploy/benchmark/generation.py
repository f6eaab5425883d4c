"""`trident bench generation`: how fast one engine answers, without service or server around it.

Sources are random tokens and the end token is banned for as long as an answer may be, so every answer has the same
length. First a source alone, over and over; then as many rows as asked for, always: whenever one ends, another begins,
so a steady state pays for its prefills.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from deploy.benchmark.kernels import measure_ceilings
from deploy.triton import cuda_runtime as cuda
from deploy.triton.cache import cache_shape
from deploy.triton.cuda_cache import device_value
from deploy.triton.engine import Engine
from deploy.triton.limits import EngineSettings, RowLimits
from deploy.triton.manifest import Manifest, load_manifest
from deploy.triton.protocol import BatchNews, FinishReason, GenerationBatch, Row, Sampling, Source, Task

GENERATION_TOKEN, FIRST_TEXT_TOKEN = 5, 16
ALONE = 7
"""Times that a source is answered alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationLoad:
    """What is asked for."""

    rows: int
    """Answers that are written at once."""

    source_tokens: int
    target_tokens: int
    temperature: float
    rounds: int
    """Answers that each of the rows makes room for, one after the other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationFigures:
    """What was seen."""

    device: str
    preset: str
    precision: str
    runtime: str
    source_tokens: int
    target_tokens: int
    rows: int
    temperature: float
    first_token_ms: float
    """From the request to the first token, alone, median."""

    tokens_per_s: float
    """In a steady state, prefills included."""

    decode_tokens_per_s: float
    """Of steps with all rows and nothing else."""

    step_ms: float
    """Of such a step, median."""

    step_limit_ms: float
    """Time of reading the step's weights, and the cache as those steps found it, once at the measured bandwidth."""

    inter_token_p99_over_median: float
    """In the steady state, over the tokens of all rows."""

    peak_memory_bytes: int | None
    """Of the device; None where it does not tell."""

    steps_s: list[float] = field(default_factory=list)
    """Seconds between two steps of the steady state, in order."""


@dataclass(slots=True)
class Arrivals:
    """A sink that notes when the tokens of its rows came."""

    began_s: float = field(default_factory=time.perf_counter)
    first_s: float | None = None
    finished: bool = False
    tokens: int = 0

    def __call__(self, news: BatchNews) -> None:
        for update in news.updates:
            self.tokens += len(update.tokens)
            if self.first_s is None and len(update.tokens):
                self.first_s = time.perf_counter() - self.began_s
            if update.finish_reason == FinishReason.ERROR:
                raise RuntimeError("the engine failed a row")
            self.finished |= update.finish_reason != FinishReason.RUNNING


def measure_generation(bundle: Path, settings: EngineSettings, load: GenerationLoad) -> GenerationFigures:
    """Answer rows with an engine of its own.

    Raises ValueError where the engine's limits do not take the load, BundleError for a bundle that does not load.
    """
    manifest, engine, rows = load_manifest(bundle, verify=False), Engine(bundle, settings), _rows(load)
    alone_s = []
    for _ in range(ALONE):
        arrivals = _submit(engine, next(rows))
        while engine.step():
            pass
        assert arrivals.first_s is not None
        alone_s.append(arrivals.first_s)
    steps_s, tokens, steady_s = _steady(engine, load, rows)
    full_s = _full_steps(engine, load, rows)
    engine.close()
    return GenerationFigures(
        device=_device_name(settings.device),
        preset=manifest.preset,
        precision=manifest.precision,
        runtime=f"ONNX Runtime {ort.__version__}",
        source_tokens=load.source_tokens,
        target_tokens=load.target_tokens,
        rows=load.rows,
        temperature=load.temperature,
        first_token_ms=1e3 * statistics.median(alone_s),
        tokens_per_s=tokens / steady_s,
        decode_tokens_per_s=load.rows / statistics.median(full_s),
        step_ms=1e3 * statistics.median(full_s),
        step_limit_ms=1e3 * _step_bytes(bundle, manifest, load) / _bandwidth(settings.device),
        inter_token_p99_over_median=float(np.quantile(steps_s, 0.99) / np.median(steps_s)),
        peak_memory_bytes=_device_memory(settings.device),
        steps_s=[round(each, 6) for each in steps_s],
    )


def _steady(engine: Engine, load: GenerationLoad, rows: Iterator[Row]) -> tuple[list[float], int, float]:
    """Seconds of every step, tokens told and seconds in all, of rows that take each other's places.

    They begin a part of an answer apart, as in service, and what came before every place had its first end is left out.
    """
    waiting = load.rows * load.rounds
    running: list[Arrivals] = []
    steps_s: list[float] = []
    done = step = 0
    counted_from_s, counted = 0.0, -1
    all_arrivals: list[Arrivals] = []
    while waiting or running:
        while waiting and len(running) < min(load.rows, 1 + step * load.rows // load.target_tokens):
            running.append(_submit(engine, next(rows)))
            all_arrivals.append(running[-1])
            waiting -= 1
        before_s = time.perf_counter()
        engine.step()
        step += 1
        if counted >= 0 and waiting:
            steps_s.append(time.perf_counter() - before_s)
        if counted < 0 and done >= load.rows:
            counted, counted_from_s = sum(each.tokens for each in all_arrivals), time.perf_counter()
        if not waiting:
            break
        done += sum(each.finished for each in running)
        running = [each for each in running if not each.finished]
    seconds = time.perf_counter() - counted_from_s
    tokens = sum(each.tokens for each in all_arrivals) - counted
    while engine.step():
        pass
    return steps_s, tokens, seconds


def _full_steps(engine: Engine, load: GenerationLoad, rows: Iterator[Row]) -> list[float]:
    """Seconds of steps with all rows, the last half of them."""
    arrivals = [_submit(engine, next(rows)) for _ in range(load.rows)]
    while any(each.first_s is None for each in arrivals):
        engine.step()
    seconds = []
    while not any(each.finished for each in arrivals):
        before_s = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - before_s)
    while engine.step():
        pass
    return seconds[len(seconds) // 2 : -1] or seconds


def _step_bytes(bundle: Path, manifest: Manifest, load: GenerationLoad) -> int:
    """What a step with all rows has to read at three quarters of their answers."""
    graph = onnx.load(bundle / manifest.graph_file("generative_step"), load_external_data=False).graph
    weights = sum(
        math.prod(each.dims) * onnx.helper.tensor_dtype_to_np_dtype(each.data_type).itemsize
        for each in graph.initializer
    )
    shape = cache_shape(manifest, EngineSettings(), RowLimits.of(manifest, EngineSettings()))
    position = 2 * shape.layers * shape.heads * shape.head_width * np.dtype(shape.dtype).itemsize
    return weights + load.rows * (load.source_tokens + 3 * load.target_tokens // 4) * position


def _bandwidth(device: str) -> float:
    """Bytes a second that a large copy reads and writes."""
    if device == "cpu":
        return 1e9 * measure_ceilings(0).copy_gb_per_s
    size = 1 << 30
    first, second = (device_value((size,), np.uint8) for _ in range(2))
    seconds = []
    for _ in range(5):
        cuda.synchronise()
        before_s = time.perf_counter()
        for _ in range(4):
            cuda.copy(second.data_ptr(), first.data_ptr(), size)
        cuda.synchronise()
        seconds.append((time.perf_counter() - before_s) / 4)
    return 2 * size / min(seconds)


def _rows(load: GenerationLoad) -> Iterator[Row]:
    random, row_id = np.random.default_rng(0), 0
    while True:
        ids = random.integers(FIRST_TEXT_TOKEN, 32_000, load.source_tokens)
        ids[0] = GENERATION_TOKEN
        sampling = Sampling(
            max_new_tokens=load.target_tokens,
            min_new_tokens=load.target_tokens,
            temperature=load.temperature,
            seed=row_id,
        )
        yield Row(row_id=row_id, source=Source(ids), sampling=sampling, stream=True)
        row_id += 1


def _submit(engine: Engine, row: Row) -> Arrivals:
    arrivals = Arrivals()
    engine.submit(GenerationBatch(task=Task.GENERATION, rows=(row,)), arrivals)
    return arrivals


def _device_name(device: str) -> str:
    if device == "cpu":
        return "CPU"
    import pynvml

    pynvml.nvmlInit()
    return str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0)))


def _device_memory(device: str) -> int | None:
    if device == "cpu":
        return None
    import pynvml

    pynvml.nvmlInit()
    return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used)
