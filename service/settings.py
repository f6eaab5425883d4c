"""Every knob of the gateway, from the environment: `TRIDENT_` + part + `__` + name, e.g. TRIDENT_BATCHING__POLICY.

This is the only module that looks at the environment. Values are checked here; the rest of the code trusts them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

PRETRAINED = Path(__file__).resolve().parents[1] / "model" / "pretrained"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ServerSettings(_Part):
    """The listening socket and the end of the process."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    grace_s: float = Field(default=30.0, ge=0)
    """How long requests in flight may go on after SIGTERM."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"


class LimitSettings(_Part):
    """What one request, and all of them together, may ask for."""

    body_bytes: int = Field(default=1 << 20, ge=1)
    timeout_s: float = Field(default=60.0, gt=0)
    """Deadline of a request that names none in X-Request-Timeout-Ms."""

    max_timeout_s: float = Field(default=600.0, gt=0)
    concurrent_requests: int = Field(default=256, ge=1)
    """Requests in flight, waiting ones included; more are refused with 429."""


class BatchingSettings(_Part):
    """The queues in front of the models."""

    policy: Literal["immediate", "dynamic"] = "dynamic"
    max_delay_s: float = Field(default=0.002, ge=0)
    """`dynamic`: how long the oldest request waits for company while the model has room."""

    batch_rows: int = Field(default=32, ge=1)
    batch_tokens: int = Field(default=8192, ge=1)
    """Source tokens of one batch, padding included. One longer row goes alone."""

    queue_tokens: int = Field(default=131_072, ge=1)
    """Source tokens that may wait for one model; what does not fit is refused with 429."""

    running_slots: int | None = Field(default=None, ge=1)
    """The most engine slots that rows at one place may take; without it a half more than the engine says it has."""

    running_windows: int = Field(default=32, ge=1)
    """Question answering windows that were sent and not answered yet."""


class TritonSettings(_Part):
    """Where Triton listens."""

    url: str = Field(default="127.0.0.1:8001", pattern=r"^[^\s/]+:\d+$")
    """host:port of its gRPC service."""

    timeout_s: float = Field(default=5.0, gt=0)
    """For health questions."""


class LocalSettings(_Part):
    """The engine in this process (`runtime = local`)."""

    slots: int = Field(default=32, ge=1)
    threads: int = Field(default=0, ge=0)
    """Threads of one operator; 0 is one for each physical core."""


class Settings(BaseSettings):
    """All settings."""

    model_config = SettingsConfigDict(
        env_prefix="TRIDENT_", env_nested_delimiter="__", extra="ignore", frozen=True, use_attribute_docstrings=True
    )

    bundle: Path = PRETRAINED
    runtime: Literal["triton", "local"] = "triton"
    server: ServerSettings = ServerSettings()
    limits: LimitSettings = LimitSettings()
    batching: BatchingSettings = BatchingSettings()
    triton: TritonSettings = TritonSettings()
    local: LocalSettings = LocalSettings()
