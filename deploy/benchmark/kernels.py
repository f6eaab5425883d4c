"""Where the time of a graph goes: milliseconds by operator, held against what the machine can do.

ONNX Runtime's profiler times every node; products are counted in operations as well, so that each stands beside the
ceiling that was measured on the same machine in the same minute.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from deploy.graphs.catalog import STEPS
from deploy.parity.feeds import median_ms, random_feeds
from deploy.triton.manifest import load_manifest
from deploy.triton.sessions import open_session

CEILING_OF = {"MatMul": "fp32", "Gemm": "fp32", "MatMulNBits": "int8", "MatMulIntegerToFloat": "int8"}
"""Products, and the ceiling that each is held against."""

WITH_BODIES = ("Scan",)
"""Operators that run nodes of their own."""

PRODUCT = (1024, 1024, 1024)
"""M, K, N of the products that are the ceilings: large enough that starting threads costs nothing."""

COPIED_BYTES = 1 << 27
"""Bytes of the copy: more than any cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceilings:
    """What this machine reaches with as many threads as the graphs run on."""

    fp32_gflop_per_s: float
    int8_gop_per_s: float
    copy_gb_per_s: float
    """Read and written bytes of a copy on one thread."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Operator:
    """All nodes of one kind in one graph."""

    kind: str
    nodes: int
    ms: float
    """Of a run: the median over the runs."""

    share: float
    """Of the time of all operators."""

    gop_per_s: float | None
    """Operations of a product (two for a multiplication and an addition) over its time; None of anything else."""

    of_ceiling: float | None
    """Of the product that sets this one's ceiling."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphProfile:
    """One graph at one batch."""

    graph: str
    rows: int
    tokens: int
    """Of a row."""

    run_ms: float
    """Median of a run without the profiler."""

    operators: list[Operator]
    """The most expensive first."""


def measure_ceilings(threads: int) -> Ceilings:
    """Time a product in float32, one in 8 bits, and a copy."""
    rows, inputs, outputs = PRODUCT
    random = np.random.default_rng(0)
    operations = 2e-6 * rows * inputs * outputs
    floats = random.standard_normal((rows, inputs), dtype=np.float32)
    levels = random.integers(0, 255, (rows, inputs), dtype=np.uint8)
    weights = random.standard_normal((inputs, outputs), dtype=np.float32)
    narrow = random.integers(-127, 127, (inputs, outputs), dtype=np.int8)
    fp32_ms = _product_ms("MatMul", floats, weights, TensorProto.FLOAT, threads)
    int8_ms = _product_ms("MatMulInteger", levels, narrow, TensorProto.INT32, threads)
    source = np.ones(COPIED_BYTES, np.uint8)
    target = np.zeros_like(source)
    copy_ms = median_ms(lambda: np.copyto(target, source))
    return Ceilings(
        fp32_gflop_per_s=operations / fp32_ms,
        int8_gop_per_s=operations / int8_ms,
        copy_gb_per_s=2e-6 * COPIED_BYTES / copy_ms,
    )


def check_profile(bundle: Path, graphs: Sequence[str], tokens: int) -> None:
    """Look before anything is measured. Raises BundleError where a graph is missing, ValueError for longer rows than
    the network reads.
    """
    manifest = load_manifest(bundle, verify=False)
    for graph in graphs:
        manifest.graph_file(graph)
    if tokens > manifest.limits.max_source_tokens:
        raise ValueError(f"--tokens is {tokens}, and {manifest.limits.max_source_tokens} is the limit: ask for fewer")


def profile_graph(
    bundle: Path, graph: str, lengths: Sequence[int], ceilings: Ceilings, *, threads: int, repeats: int = 5
) -> GraphProfile:
    """Run one graph of a bundle on random rows of these lengths and sum its nodes' times by operator.

    Raises BundleError, a ValueError, where the bundle has no such graph or cannot be read.
    """
    manifest = load_manifest(bundle, verify=False)
    path = bundle / manifest.graph_file(graph)
    vocabulary = int(manifest.config["vocab_size"])
    # As they are served: only steps hold on to their memory.
    steps = graph in STEPS
    plain = open_session(path, threads=threads, keeps_memory=steps)
    feeds = random_feeds(plain, vocabulary, lengths)
    run_ms = median_ms(lambda: plain.run(None, feeds), repeats)
    with tempfile.TemporaryDirectory() as folder:
        profiled = open_session(path, threads=threads, keeps_memory=steps, profile=Path(folder) / graph)
        for _ in range(repeats + 1):
            profiled.run(None, feeds)
        events = json.loads(Path(profiled.end_profiling()).read_text(encoding="utf-8"))
    operators = summarise(events, repeats + 1, ceilings)
    return GraphProfile(graph=graph, rows=len(lengths), tokens=max(lengths), run_ms=run_ms, operators=operators)


def summarise(events: Sequence[Mapping[str, Any]], runs: int, ceilings: Ceilings) -> list[Operator]:
    """Operators of a profile that holds `runs` runs; the first one only warms up, unless it is the only one."""
    of_node: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for each in _without_bodies(events):
        of_node[each["args"]["op_name"], each["name"]].append(each)
    times_us: dict[str, float] = defaultdict(float)
    operations: dict[str, float] = defaultdict(float)
    nodes: dict[str, int] = defaultdict(int)
    for (kind, _), timed in of_node.items():
        # Nodes that share a name are one entry with several events a run.
        a_run = len(timed) // runs
        assert a_run * runs == len(timed), f"{kind} did not run equally often in each of {runs} runs"
        kept = timed[a_run:] or timed
        nodes[kind] += a_run
        times_us[kind] += a_run * statistics.median(each["dur"] for each in kept)
        operations[kind] += sum(_operations(kind, each["args"]) for each in kept[:a_run])
    total = sum(times_us.values()) or math.inf
    return [
        _operator(kind, nodes[kind], time_us, time_us / total, operations[kind], ceilings)
        for kind, time_us in sorted(times_us.items(), key=lambda item: -item[1])
    ]


def _without_bodies(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The nodes' events; of one that ran others, such as a Scan, the time that those did not take."""
    nodes = [dict(each) for each in events if each.get("cat") == "Node" and each["name"].endswith("_kernel_time")]
    kept: list[dict[str, Any]] = []
    around: list[dict[str, Any]] = []
    for each in sorted(nodes, key=lambda node: (node["ts"], -node["dur"])):
        while around and around[-1]["end"] <= each["ts"]:
            around.pop()
        if around:
            around[-1]["dur"] -= each["dur"]
        if each["args"]["op_name"] in WITH_BODIES:
            each["end"] = each["ts"] + each["dur"]
            around.append(each)
        kept.append(each)
    return kept


def _operator(kind: str, nodes: int, time_us: float, share: float, operations: float, ceilings: Ceilings) -> Operator:
    reached = operations / time_us / 1e3 if operations and time_us else None
    highest = ceilings.fp32_gflop_per_s if CEILING_OF.get(kind) == "fp32" else ceilings.int8_gop_per_s
    return Operator(
        kind=kind,
        nodes=nodes,
        ms=time_us / 1e3,
        share=share,
        gop_per_s=reached,
        of_ceiling=None if reached is None else reached / highest,
    )


def _operations(kind: str, arguments: Mapping[str, Any]) -> float:
    """Operations of one run of a product, from the shapes that the profiler noted; 0 of anything else."""
    if kind not in CEILING_OF:
        return 0.0
    shape = next(iter(arguments["input_type_shape"][0].values()))
    produced = next(iter(arguments["output_type_shape"][0].values()))
    return 2.0 * shape[-1] * math.prod(produced)


def _product_ms(kind: str, left: np.ndarray, right: np.ndarray, result: int, threads: int) -> float:
    """Median time of one product with a stored right-hand side."""
    graph = helper.make_graph(
        [helper.make_node(kind, ["left", "right"], ["product"])],
        kind,
        [helper.make_tensor_value_info("left", helper.np_dtype_to_tensor_dtype(left.dtype), left.shape)],
        [helper.make_tensor_value_info("product", result, [len(left), right.shape[1]])],
        [numpy_helper.from_array(right, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "product.onnx"
        path.write_bytes(model.SerializeToString())
        session = open_session(path, threads=threads)
        return median_ms(lambda: session.run(None, {"left": left}))
