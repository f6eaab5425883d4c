"""The executor for CPUs: ONNX Runtime sessions on one cache pool in this process's memory."""

from __future__ import annotations

from pathlib import Path

from .cache import CachePool, cache_shape
from .decoder import Decoder
from .encoder import Encoder
from .limits import EngineSettings, RowLimits
from .manifest import Manifest
from .pooled_executor import PooledExecutor
from .protocol import Task
from .rules import TokenRules
from .slots import SIDES


def cpu_executor(
    bundle: Path, manifest: Manifest, settings: EngineSettings, limits: RowLimits, rules: TokenRules
) -> PooledExecutor:
    """Load the graphs and allocate the cache. Raises BundleError where a graph is missing or cannot be loaded."""
    pool = CachePool(cache_shape(manifest, settings, limits))
    return PooledExecutor(
        pool=pool,
        encoder=Encoder(bundle, manifest, threads=settings.threads),
        decoders={
            task: Decoder(name, bundle, manifest, pool, SIDES[task], threads=settings.threads, copies=copies)
            for task, name, copies in ((Task.GENERATION, "generative", False), (Task.SUMMARY, "pointer", True))
        },
        rules=rules,
        first_token=int(manifest.config["bos_token_id"]),
    )
