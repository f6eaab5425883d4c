"""One autoregressive decoder on the cache pool: its prefill, and its step on every sequence of its side at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from .cache import CachePool, Footprint, key_value_heads
from .manifest import Manifest
from .sessions import open_session
from .slots import Side


def copy_names(config: Mapping[str, Any]) -> list[str]:
    """The step's inputs that hold the copy keys, which are as wide as all heads, each as wide as a cache."""
    return ["copy_keys", *(f"copy_keys_{part}" for part in range(1, config["num_heads"] // key_value_heads(config)))]


def footprint(layers: int, copies: int = 0) -> Footprint:
    """The buffers of a decoder of so many layers; one that copies keeps the parts of its copy keys behind its last."""
    parts = ("key", "value")
    cross = [f"cross_{part}_{layer}" for layer in range(layers) for part in parts]
    return Footprint(
        own=tuple(f"self_{part}_{layer}" for layer in range(layers) for part in parts),
        cross=(*cross, *(f"cross_{parts[part % 2]}_{layers + part // 2}" for part in range(copies))),
    )


class Decoder:
    """The sessions `NAME_prefill` and `NAME_step`, bound to one side of the pool."""

    def __init__(
        self, name: str, folder: Path, manifest: Manifest, pool: CachePool, side: Side, *, threads: int, copies: bool
    ) -> None:
        """Load both graphs.

        Args:
            name: `generative` or `pointer`.
            folder: the bundle.
            manifest: its manifest.
            pool: where the sequences' caches are.
            side: this decoder's side of the pool.
            threads: threads of one operator.
            copies: whether the decoder points into the source.

        Raises:
            BundleError: a graph is missing or cannot be loaded.
        """
        self.name, self.side = name, side
        layers = int(manifest.config["pointer_layers" if copies else "decoder_layers"])
        self._copy_names = copy_names(manifest.config) if copies else []
        self.footprint = footprint(layers, len(self._copy_names))
        self._pool, self._copies = pool, copies
        # Names of the graph's cache tensors, in the footprint's order.
        self._cross_names = [*self.footprint.cross[: 2 * layers], *self._copy_names]
        self._prefill = open_session(
            folder / manifest.graph_file(f"{name}_prefill"), threads=threads, keeps_memory=False
        )
        self._step = open_session(folder / manifest.graph_file(f"{name}_step"), threads=threads)
        self._bindings: dict[int, ort.IOBinding] = {}
        self._totals = [each.name for each in self._step.get_inputs() if each.name in pool.totals]

    def prefill(self, memory_BSD: np.ndarray) -> list[np.ndarray]:
        """What the step reads of encoded sources: [B,K,S,E] for each of `footprint.cross`."""
        return self._prefill.run(self._cross_names, {"memory": memory_BSD})

    def step(self, bounds: slice) -> np.ndarray:
        """Decode one token for every slot of this side.

        Reads the pool's tokens and lengths, appends to the self-attention's caches, and returns the pool's logits
        FP32 [N,V] in the order of the slots.
        """
        count = bounds.stop - bounds.start
        if count not in self._bindings:
            self._bindings[count] = self._bind(bounds)
        self._step.run_with_iobinding(self._bindings[count])
        return self._pool.logits[bounds]

    def _bind(self, bounds: slice) -> ort.IOBinding:
        """Bind the rows of one side. Kept for every row count: binding the tensors anew costs a third of a step."""
        pool, binding = self._pool, self._step.io_binding()
        caches = dict(zip(self._cross_names, self.footprint.cross, strict=True))
        caches |= {name: name for name in self.footprint.own}
        inputs = {name: pool.buffers[buffer] for name, buffer in caches.items()}
        inputs |= {
            "tokens": pool.tokens,
            "target_lengths": pool.target_lengths,
            "source_lengths": pool.source_lengths,
        }
        if self._copies:
            inputs["source_ids"] = pool.source_ids
        for name, array in inputs.items():
            _bind_rows(binding.bind_input, name, array[bounds])
        for name in self._totals:
            _bind_rows(binding.bind_input, name, pool.totals[name])
        # The presents are the same memory as the pasts: ONNX Runtime then appends in place of copying.
        for name, buffer in caches.items():
            if name not in self._copy_names:
                _bind_rows(binding.bind_output, f"present_{name}", pool.buffers[buffer][bounds])
        _bind_rows(binding.bind_output, "logits", pool.logits[bounds])
        return binding


def _bind_rows(bind, name: str, rows: np.ndarray) -> None:
    assert rows.flags.c_contiguous, name
    bind(
        name=name, device_type="cpu", device_id=0, element_type=rows.dtype.type, shape=rows.shape,
        buffer_ptr=rows.ctypes.data,
    )  # fmt: skip
