"""What a peer is started with: environment variables, because its workers are processes that inherit nothing else."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

HOST = "127.0.0.1"


class PeerOptions(BaseSettings):
    """Read from variables that begin with `PEER_`. Each peer heeds those that its framework has a setting for."""

    model_config = SettingsConfigDict(env_prefix="PEER_")

    bundle: Path = Path("model/pretrained")
    port: int = 8000
    max_batch_size: int = Field(default=32, ge=1)
    """Windows in one run at most."""

    delay_ms: float = Field(default=0.0, ge=0)
    """How long the first of a batch waits for company."""

    latency_ms: float = Field(default=1000.0, gt=0)
    """What a batcher that adapts may let a request take."""

    concurrency: int = Field(default=1, ge=1)
    """Runs at a time, where there are no batches; they share the cores."""
