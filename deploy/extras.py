"""What the package's extras bring: a plain install lacks most of it, and is told what to install."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

BROUGHT_BY = {
    "aiohttp": ("compare",),
    "datatrove": ("training",),
    "deepspeed": ("training",),
    "detect_secrets": ("training",),
    "fastapi": ("serve",),
    "ftfy": ("training",),
    "google": ("serve", "training"),
    "grpc": ("serve",),
    "httptools": ("serve",),
    "httpx": ("serve", "training"),
    "huggingface_hub": ("export", "training"),
    "loguru": ("training",),
    "matplotlib": ("compare",),
    "onnx": ("export", "training"),
    "onnxruntime": ("serve", "export", "training"),
    "orjson": ("serve",),
    "phonenumbers": ("training",),
    "prometheus_client": ("serve",),
    "psutil": ("serve", "training"),
    "py3langid": ("training",),
    "pynvml": ("gpu",),
    "regex": ("serve",),
    "rouge_score": ("training",),
    "sacrebleu": ("training",),
    "safetensors": ("export", "training"),
    "scipy": ("training",),
    "sklearn": ("training",),
    "sse_starlette": ("serve",),
    "starlette": ("serve",),
    "stdnum": ("training",),
    "structlog": ("serve",),
    "tensorboard": ("training",),
    "tokenizers": ("serve", "export", "training"),
    "torch": ("export", "training"),
    "transformers": ("export", "training"),
    "tritonclient": ("serve",),
    "uvicorn": ("serve",),
}
"""A module's extras, the smallest first."""

NOT_OURS = {"ray": "ray"}
"""Modules that no extra brings, and the packages that do."""

EXTRA_OF_COMMAND = {
    "serve": "serve",
    "doctor": "serve",
    "repository": "serve",
    "bench": "serve",
    "export": "export",
    "quantize": "export",
    "train": "training",
    "evaluate": "training",
    "data": "training",
    "plan": "training",
}
"""What the rest of a command needs too, so that one install is enough."""


def missing_module(module: str, command: str | None) -> str | None:
    """What to install for a module that a command lacks; None where it is none of those that are left to extras."""
    name = module.partition(".")[0]
    if name in NOT_OURS:
        return f"this command needs {name}, which is not installed: pip install {NOT_OURS[name]}"
    if name not in BROUGHT_BY:
        return None
    extras, wanted = BROUGHT_BY[name], EXTRA_OF_COMMAND.get(command or "")
    extra = wanted if wanted in extras else extras[0]
    return f"this command needs {name}, which is not installed: {install_command(extra)}"


def install_command(extra: str) -> str:
    """For this installation: a clone is installed from its folder, anything else by its name."""
    if not (ROOT / "pyproject.toml").is_file():
        return f"pip install 'trident[{extra}]'"
    return f"pip install -e '{'.' if Path.cwd() == ROOT else ROOT}[{extra}]'"
