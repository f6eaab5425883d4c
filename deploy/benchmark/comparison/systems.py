"""Who is compared, how each is started, and which of its settings are tried."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.benchmark.comparison.environments import BENTOML, LITSERVE, RAY, TORCH, Environment
from deploy.benchmark.comparison.processes import Program

Setting = Mapping[str, str]
"""Environment variables."""

PEERS = "deploy.benchmark.peers"


@dataclass(frozen=True, kw_only=True, slots=True)
class System:
    """A server, or a decoder, in an environment."""

    key: str
    name: str
    """For people."""

    arguments: Sequence[str]
    """Of its Python interpreter; `{port}` stands for where it is to listen."""

    packages: Sequence[str]
    """Those whose versions matter."""

    environment: Environment | None = None
    """None is the one that this runs in."""

    variables: Setting = field(default_factory=dict)
    settings: Sequence[Setting] = ({},)
    """To be tried, that of the documentation's examples first."""

    start_timeout_s: float = 120.0

    @property
    def python(self) -> str:
        """Its interpreter."""
        return sys.executable if self.environment is None else str(self.environment.python)

    def program(self, bundle: Path, port: int, setting: Setting, logs: Path) -> Program:
        """What to start to have it serve a bundle with that setting."""
        given = {"PEER_BUNDLE": str(bundle), "PEER_PORT": str(port), "TRIDENT_BUNDLE": str(bundle)}
        return Program(
            name=self.name,
            command=[self.python, *(argument.format(port=port) for argument in self.arguments)],
            variables={**self.variables, **setting, **given},
            port=port,
            log=logs / f"{self.key}.log",
        )


def _trident(policy: str, settings: Sequence[Setting] = ({},)) -> System:
    return System(
        key=f"trident-{policy}",
        name=f"Trident, {policy}",
        arguments=("-m", "deploy", "serve", "--port", "{port}"),
        packages=("onnxruntime", "fastapi", "uvicorn", "tritonclient"),
        # What it learnt at another time, beside other work, is left alone; nobody else writes a line a request either.
        variables={
            "TRIDENT_BATCHING__POLICY": policy,
            "TRIDENT_STATE__KEEP": "false",
            "TRIDENT_SERVER__LOG_LEVEL": "warning",
        },
        settings=settings,
    )


def _peer(
    module: str,
    name: str,
    packages: Sequence[str],
    environment: Environment | None = None,
    settings: Sequence[Setting] = ({},),
    **variables: str,
) -> System:
    return System(
        key=module.replace("_", "-"),
        name=name,
        arguments=("-m", f"{PEERS}.{module}"),
        packages=packages,
        environment=environment,
        variables=variables,
        settings=settings,
    )


def _delays(*milliseconds: float, sizes: Sequence[int] = (8, 32)) -> list[Setting]:
    """Every delay with every size of batch."""
    return [{"PEER_DELAY_MS": f"{each:g}", "PEER_MAX_BATCH_SIZE": str(size)} for size in sizes for each in milliseconds]


TRIDENT = _trident("predictive")

SERVERS = (
    TRIDENT,
    _trident("dynamic", [{"TRIDENT_BATCHING__MAX_DELAY_S": each} for each in ("0.002", "0.01", "0.03")]),
    _peer("triton_dynamic", "Triton's dynamic batcher", ("tritonclient", "fastapi"), None, _delays(0, 2, 10)),
    _peer("bentoml_onnxruntime", "BentoML", ("bentoml", "onnxruntime"), BENTOML, [
        {"PEER_LATENCY_MS": latency, "PEER_MAX_BATCH_SIZE": size}
        for latency, size in (("60000", "32"), ("60000", "8"), ("1000", "32"), ("300", "8"))
    ], BENTOML_DO_NOT_TRACK="True"),
    _peer("ray_onnxruntime", "Ray Serve", ("ray", "onnxruntime"), RAY, _delays(2, 10),
          RAY_SERVE_THROUGHPUT_OPTIMIZED="1", RAY_USAGE_STATS_ENABLED="0"),
    _peer("litserve_onnxruntime", "LitServe", ("litserve", "onnxruntime"), LITSERVE, _delays(2, 10)),
    _peer("fastapi_onnxruntime", "FastAPI, ONNX Runtime", ("fastapi", "onnxruntime"), None, [
        {"PEER_CONCURRENCY": each} for each in ("1", "2")
    ]),
    _peer("fastapi_torch", "FastAPI, PyTorch", ("fastapi", "torch"), TORCH),
)  # fmt: skip

DECODERS = (
    _peer("decode_trident", "Trident's engine", ("onnxruntime",)),
    _peer("decode_ctranslate2", "CTranslate2", ("ctranslate2",), TORCH),
    _peer("decode_transformers", "transformers `generate()`", ("transformers", "torch"), TORCH),
)


def choose(text: str, systems: Sequence[System]) -> list[System]:
    """Those whose keys stand between commas, all for an empty text. Raises ValueError for an unknown one."""
    wanted = [each.strip() for each in text.split(",") if each.strip()]
    known = {each.key: each for each in systems}
    if unknown := [each for each in wanted if each not in known]:
        raise ValueError(f"there is no peer {unknown[0]!r}: choose among {', '.join(known)}")
    return [known[each] for each in dict.fromkeys(wanted)] if wanted else list(systems)
