"""How the models use the machine they run on; a profile is chosen when the model repository is built."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Backend(StrEnum):
    """What runs the stateless models inside Triton."""

    ONNXRUNTIME = "onnxruntime"
    """Triton's own ONNX Runtime backend, in NVIDIA's images."""

    PYTHON = "python"
    """The same graphs through a Python model, for servers without that backend, as in the pip wheel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """One way to share out a machine."""

    name: str
    gpu: bool = False
    """Stateless models run on the GPU. The generator decodes on the CPU in any case: its cache is host memory."""

    slots: int = 32
    """Sequences that the generator decodes at once."""

    threads: int = 0
    """Threads of one operator, in every model; 0 is one for each physical core."""

    prefill_tokens: int = 2048
    """Source tokens that the generator takes to be encoded before it looks at others."""

    gap_steps: float = 3.0
    """Time between two tokens of a text while others' sources are encoded, in decode steps without that."""

    instances: int = 1
    """Copies of each stateless model, which run at the same time and share nothing."""

    preferred_batch_sizes: tuple[int, ...] = (4, 8, 16, 32)
    """Batches of these sizes leave Triton's queue at once."""

    batch_delay_us: int = 0
    """How long a request waits there for company, microseconds. The gateway has batched already, and its batches would
    wait for nobody; what other clients send while a batch is computed is joined all the same."""

    def __post_init__(self) -> None:
        for name in ("slots", "prefill_tokens", "instances"):
            if getattr(self, name) < 1:
                raise ValueError(f"profile {self.name}: {name} must be 1 or more, got {getattr(self, name)}")
        for name in ("threads", "batch_delay_us"):
            if getattr(self, name) < 0:
                raise ValueError(f"profile {self.name}: {name} must be 0 or more, got {getattr(self, name)}")


class ProfileName(StrEnum):
    """The profiles, as a choice on the command line."""

    CPU = "cpu"
    GPU = "gpu"


PROFILES = {
    ProfileName.CPU: Profile(name="cpu"),
    ProfileName.GPU: Profile(name="gpu", gpu=True),
}
