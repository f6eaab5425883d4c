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

    latency_ms: float = Field(default=60_000.0, gt=0)
    """What a batcher that adapts may let a request take."""

    concurrency: int = Field(default=1, ge=1)
    """Runs at a time, where there are no batches; they share the cores."""


class DecodingOptions(BaseSettings):
    """What is decoded, from variables that begin with `DECODING_`."""

    model_config = SettingsConfigDict(env_prefix="DECODING_")

    bundle: Path = Path("model/pretrained")
    rows: tuple[int, ...] = (1, 8, 32)
    """Sequences at once, one measurement each; in the environment a JSON list."""

    source_tokens: int = Field(default=512, ge=1)
    new_tokens: int = Field(default=64, ge=2)
    repeats: int = Field(default=3, ge=1)
    seed: int = 0
