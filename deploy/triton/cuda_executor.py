"""The executor for CUDA devices: ONNX Runtime sessions whose buffers stay on the device.

A step's launches are captured into a CUDA graph for every number of rows, at start, and replayed; its logits come to
the host, where tokens are chosen by the same rules as on the CPU. Graphs must compute in float16: attention over caches
knows no other type on CUDA.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from .cache import cache_shape
from .cuda_cache import DeviceArray, DevicePool
from .decoder import copy_names, footprint
from .encoder import encoder_feeds
from .limits import EngineSettings, RowLimits
from .manifest import BundleError, Manifest, Precision
from .pooled_executor import PooledExecutor
from .protocol import Source, Task
from .rules import TokenRules
from .sessions import open_session
from .slots import SIDES, Side


def cuda_executor(
    bundle: Path, manifest: Manifest, settings: EngineSettings, limits: RowLimits, rules: TokenRules
) -> PooledExecutor:
    """Load the graphs, allocate the cache and capture the steps.

    Raises BundleError where a graph is missing, cannot be loaded or does not compute in float16, and ValueError where
    the cache does not fit the device.
    """
    if manifest.precision != Precision.FP16:
        raise BundleError(
            f"a CUDA device needs graphs that compute in fp16, and {manifest.name} is {manifest.precision}: "
            "export it with --precision fp16"
        )
    pool = DevicePool(cache_shape(manifest, settings, limits))
    return PooledExecutor(
        pool=pool,
        encoder=CudaEncoder(bundle, manifest),
        decoders={
            Task.GENERATION: CudaDecoder("generative", bundle, manifest, pool, SIDES[Task.GENERATION], copies=False),
            Task.SUMMARY: CudaDecoder("pointer", bundle, manifest, pool, SIDES[Task.SUMMARY], copies=True),
        },
        rules=rules,
        first_token=int(manifest.config["bos_token_id"]),
    )


class CudaEncoder:
    """The sessions `encoder` and `extractive`; memory stays on the device."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Load both graphs. Raises BundleError where one is missing or cannot be loaded."""
        self._encoder, self._extractive = (
            open_session(folder / manifest.graph_file(name), device="cuda") for name in ("encoder", "extractive")
        )
        self._options = ort.RunOptions()
        """Of the latest run."""

    def encode(self, sources: Sequence[Source]) -> tuple[DeviceArray, np.ndarray]:
        """Encode sources as one batch: memory [B,S,D], P(task) FP32 [B,3]."""
        self._options = ort.RunOptions()
        binding = self._encoder.io_binding()
        for name, array in encoder_feeds(sources).items():
            binding.bind_cpu_input(name, array)
        binding.bind_output("memory", "cuda")
        binding.bind_output("task_probabilities", "cpu")
        self._encoder.run_with_iobinding(binding, self._options)
        memory, routes = binding.get_outputs()
        return DeviceArray(memory), routes.numpy()

    def positions(self, memory: DeviceArray) -> int:
        """What each source was padded to."""
        return memory.shape[1]

    def select(self, memory: DeviceArray, indices: Sequence[int]) -> DeviceArray:
        """The memory of the sources at some indices."""
        return memory.select(indices)

    def extract(self, memory: DeviceArray, sources: Sequence[Source]) -> list[np.ndarray]:
        """Scores of the tags O, B, I of every source position: FP32 [S,3] for each row."""
        lengths = np.array([source.cost for source in sources], np.int32)
        binding = self._extractive.io_binding()
        binding.bind_ortvalue_input("memory", memory.value)
        binding.bind_cpu_input("lengths", lengths)
        binding.bind_output("emissions", "cpu")
        self._extractive.run_with_iobinding(binding)
        (emissions_BS3,) = binding.copy_outputs_to_cpu()
        return [emissions_S3[:length] for emissions_S3, length in zip(emissions_BS3, lengths, strict=True)]

    def interrupt(self) -> None:
        """Let the run under way fail at its next operator; any thread may call this."""
        self._options.terminate = True


class CudaDecoder:
    """The sessions `NAME_prefill` and `NAME_step`, bound to one side of the pool."""

    def __init__(
        self, name: str, folder: Path, manifest: Manifest, pool: DevicePool, side: Side, *, copies: bool
    ) -> None:
        """Load both graphs and, but for a decoder that copies, capture the step for every number of rows.

        The pointer's step reads the source by slices whose borders the host computes, which no CUDA graph holds.

        Raises BundleError where a graph is missing or cannot be loaded.
        """
        self.side, self._pool, self._captures = side, pool, not copies
        layers = int(manifest.config["pointer_layers" if copies else "decoder_layers"])
        self._copy_names = copy_names(manifest.config) if copies else []
        self.footprint = footprint(layers, len(self._copy_names))
        self._cross_names = [*self.footprint.cross[: 2 * layers], *self._copy_names]
        self._prefill = open_session(folder / manifest.graph_file(f"{name}_prefill"), device="cuda")
        self._step = open_session(folder / manifest.graph_file(f"{name}_step"), device="cuda", captures=self._captures)
        self._bindings: dict[int, tuple[ort.IOBinding, ort.RunOptions]] = {}
        if self._captures:
            for count in range(1, pool.shape.slots + 1):
                self.step(slice(0, count))

    def prefill(self, memory: DeviceArray) -> list[DeviceArray]:
        """What the step reads of encoded sources: [B,K,S,E] for each of `footprint.cross`."""
        binding = self._prefill.io_binding()
        binding.bind_ortvalue_input("memory", memory.value)
        for name in self._cross_names:
            binding.bind_output(name, "cuda")
        self._prefill.run_with_iobinding(binding)
        return [DeviceArray(each) for each in binding.get_outputs()]

    def step(self, bounds: slice) -> np.ndarray:
        """Decode one token for every slot of this side; returns the pool's logits FP32 [N,V]."""
        count = bounds.stop - bounds.start
        if count not in self._bindings:
            self._bindings[count] = self._bind(bounds), self._options(count)
        self._pool.send(bounds)
        self._step.run_with_iobinding(*self._bindings[count])
        return self._pool.fetch_logits(bounds)

    def _options(self, count: int) -> ort.RunOptions:
        """ONNX Runtime keeps a CUDA graph for every number that runs are given."""
        options = ort.RunOptions()
        if self._captures:
            options.add_run_config_entry("gpu_graph_id", str(count))
        return options

    def _bind(self, bounds: slice) -> ort.IOBinding:
        pool, binding = self._pool, self._step.io_binding()
        caches = dict(zip(self._cross_names, self.footprint.cross, strict=True))
        caches |= {name: name for name in self.footprint.own}
        others = ["tokens", "target_lengths", "source_lengths", *(["source_ids"] if self._copy_names else [])]
        for name, buffer in {**caches, **{each: each for each in others}}.items():
            self._bind_rows(binding.bind_input, name, buffer, bounds)
        for name, array in pool.totals.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        # The presents are the same memory as the pasts: ONNX Runtime then appends in place of copying.
        for name, buffer in caches.items():
            if name not in self._copy_names:
                self._bind_rows(binding.bind_output, f"present_{name}", buffer, bounds)
        self._bind_rows(binding.bind_output, "logits", "logits", bounds)
        return binding

    def _bind_rows(self, bind, name: str, buffer: str, bounds: slice) -> None:
        address, part, dtype = self._pool.address(buffer, bounds.start)
        bind(name, "cuda", 0, dtype, (bounds.stop - bounds.start, *part), address)
