"""The command line: quick help, exit status 2 for bad usage, one line and status 1 for other mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("grpc", "numpy", "onnx", "onnxruntime", "pydantic", "torch", "transformers")


def trident(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `trident` from the project's folder."""
    command = [sys.executable, "-m", "deploy", *map(str, arguments)]
    env = {"PATH": "/usr/bin:/bin", "COLUMNS": "200", "HOME": "/nonexistent", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT, env=env)


COMMANDS = [
    "serve",
    "doctor",
    "export",
    "quantize",
    "repository build",
    "train",
    "evaluate",
    "data",
    "bench load",
    "bench peers",
    "bench train",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    answer = trident(*command.split(), "--help")
    assert answer.returncode == 0
    assert f"Usage: trident {command}" in answer.stdout


def test_help_loads_nothing_heavy() -> None:
    script = f"import sys, deploy.cli; print([name for name in {HEAVY} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout == "[]\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-command",),
        ("serve", "--no-such-option"),
        ("serve", "--port", "70000"),
        ("serve", "--runtime", "cloud"),
        ("repository", "build", "--backend", "tensorflow"),
        ("repository", "build", "--profile", "huge"),
        ("export",),
        ("quantize", "--input_model", "a.onnx", "--output_model", "b.onnx", "--precision", "fp32"),
    ],
)
def test_bad_usage_is_status_2(arguments: tuple[str, ...]) -> None:
    answer = trident(*arguments)
    assert answer.returncode == 2
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("repository", "build", "--output", "{tmp}/r")])
def test_a_bundle_that_is_none_is_one_line_and_status_1(tmp_path: Path, command: tuple[str, ...]) -> None:
    arguments = [each.format(tmp=tmp_path) for each in command]
    answer = trident(*arguments, "--bundle", tmp_path / "nothing")
    assert answer.returncode == 1
    (line,) = answer.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'nothing' / 'manifest.json'} does not exist")
    assert not (tmp_path / "r").exists()


def test_bad_settings_from_the_environment_are_one_line_and_status_1() -> None:
    answer = trident("serve", TRIDENT_SERVER__PORT="none")
    assert answer.returncode == 1
    (line,) = answer.stderr.splitlines()
    assert "TRIDENT_SERVER__PORT" in line


def test_a_repository_is_built_and_told_as_json(tmp_path: Path, nano_bundle: Path) -> None:
    command = ("repository", "build", "--bundle", nano_bundle, "--output", tmp_path / "r", "--backend", "python")
    first, second = (json.loads(trident(*command, "--json").stdout) for _ in range(2))
    assert (first["rebuilt"], second["rebuilt"]) == (True, False)
    assert first["models"] == ["hybrid_lm", "router", "qa", "generator"]
    assert (first["backend"], first["profile"], first["bundle"]) == ("python", "cpu", "trident-nano")
    assert "up to date" in trident(*command).stdout


def test_the_version_is_printed() -> None:
    assert trident("--version").stdout.startswith("trident 0.")
