"""Reading what the generator wrote."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton


def read_config(repository: Path, model: str) -> triton.ModelConfig:
    """A model's configuration."""
    return text_format.Parse((repository / model / "config.pbtxt").read_text(), triton.ModelConfig())
