"""Wrong input to every command: one line that names what is wrong, never an errno, a traceback or a bare module."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from deploy import cli, extras
from deploy.commands.explanation import MISTAKES, explain

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("service", "model", "training", "deploy")

FILES = {
    "none": None,
    "empty": b"",
    "broken.json": b'{"a":',
    "object.json": b"{}",
    "binary": b"\xff\xfe\x00\x01",
}


@pytest.fixture
def wrong_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with every kind of wrong file, and in it."""
    for name, content in FILES.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    torch.save({"conv1.weight": torch.zeros(3, 5)}, tmp_path / "foreign.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMANDS = {
    "train": ("train", "{}"),
    "evaluate, service": ("evaluate", "qa", "--data", "{}", "--url", "http://127.0.0.1:1"),
    "evaluate, weights": ("evaluate", "generation", "--data", "object.json", "--checkpoint", "{}"),
    "bench report": ("bench", "report", "{}"),
    "bench kernels": ("bench", "kernels", "--bundle", "{}"),
    "bench load, queries": ("bench", "load", "--output", "out.json", "--queries", "{}"),
    "bench load, trace": ("bench", "load", "--output", "out.json", "--trace", "{}"),
    "bench load, output": ("bench", "load", "--output", "{}/out.json", "--url", "http://127.0.0.1:1"),
    "bench train, output": ("bench", "train", "--preset", "nano", "--output", "empty/{}"),
    "export": ("export", "{}", "-o", "bundle", "--tokenizer", str(ROOT / "model" / "pretrained")),
    "export, provenance": ("export", "foreign.pt", "-o", "bundle", "--tokenizer", "folder", "--provenance", "{}/x"),
    "quantize": ("quantize", "--input_model", "{}", "--output_model", "out.onnx"),
    "repository build, bundle": ("repository", "build", "-o", "repository", "--bundle", "{}"),
    "repository build, output": ("repository", "build", "-o", "empty/{}"),
    "serve, bundle": ("serve", "--port", "0", "--runtime", "local", "--bundle", "{}"),
    "serve, environment": ("serve", "--port", "0", "--triton-env", "{}"),
    "data report": ("data", "report", "{}"),
    "data filter": ("data", "filter", "{}", "-o", "filtered"),
    "data filter, settings": ("data", "filter", "folder", "-o", "filtered", "--config", "{}/x"),
    "data augment": ("data", "augment", "folder", "-o", "augmented", "--config", "{}"),
    "data select": ("data", "select", "folder", "-o", "selected", "--seeds", "{}"),
    "data tokenizer": ("data", "tokenizer", "{}", "-o", "tokenizer"),
    "data prepare": ("data", "prepare", "{}", "-o", "shards", "--tokenizer", "folder"),
}


@pytest.mark.parametrize("given", [*FILES, "folder"])
@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_input_is_one_line_that_says_what_is_wrong(wrong_input: Path, command: str, given: str) -> None:
    arguments = [each.format(given) for each in COMMANDS[command]]
    done = CliRunner().invoke(cli.app, arguments)
    # `quantize` and `export` say it themselves, for they are scripts too.
    if isinstance(done.exception, SystemExit):
        assert done.exception.code == 1
        said = done.stderr.removesuffix("\n")
    else:
        assert isinstance(done.exception, MISTAKES), done.exception
        said = explain(done.exception, arguments[0])
    # What is wrong, and behind a colon or a semicolon what to do about it.
    assert re.search(r"[:;,] \w", said), said
    for raw in ("\n", "Errno", "codec", "Traceback", "weights_only` argument"):
        assert raw not in said, said


@pytest.mark.parametrize(
    ("checkpoint", "said"),
    [
        (
            "foreign.pt",
            "holds no weights of this network: it lacks an embedding or a layer, and has conv1.weight (3, 5)",
        ),
        ("module.pt", "it holds an object of the class torch.nn.modules.linear.Linear; save a model's state_dict()"),
        ("binary", "it is no archive of torch.save"),
    ],
)
def test_a_foreign_checkpoint_is_told_with_what_was_found_in_it(wrong_input: Path, checkpoint: str, said: str) -> None:
    done = CliRunner().invoke(cli.app, ["export", checkpoint, "-o", "bundle", "--tokenizer", "folder"])
    assert isinstance(done.exception, SystemExit)
    assert said in done.stderr


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(2, "No such file or directory", "a.json"), "a.json does not exist: look at its spelling"),
        (NotADirectoryError(20, "Not a directory", "a/b"), "a/b cannot be, because a part of that path is a file"),
        (IsADirectoryError(21, "Is a directory", "a"), "a is a folder: name a file"),
        (PermissionError(13, "Permission denied", "/root/a"), "/root/a may not be read or written by this user"),
        (OSError(28, "No space left on device", "a"), "a finds no space left on its disk"),
        (OSError(5, "Input/output error", "a"), "a cannot be used: input/output error"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (ValueError("as it is"), "as it is"),
    ],
)
def test_what_the_system_says_becomes_words(error: Exception, said: str) -> None:
    assert explain(error).startswith(said)


WITHOUT = """
import sys
missing = sys.argv.pop(1)
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from deploy.cli import main
main()
"""


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("tritonclient", "serve --port 0", "serve"),
        ("google", "repository build -o {tmp}/r", "serve"),
        ("tokenizers", "data tokenizer {tmp} -o {tmp}/t", "training"),
        ("torch", "export {tmp}/a.pt -o {tmp}/b --tokenizer {tmp}", "export"),
        ("onnx", "quantize --input_model {tmp}/a --output_model {tmp}/b", "export"),
        ("torch", "train {tmp}/a.toml", "training"),
        ("httpx", "bench load --output {tmp}/x.json", "serve"),
    ],
)
def test_a_missing_module_names_the_extra_that_the_command_needs(
    tmp_path: Path, module: str, arguments: str, extra: str
) -> None:
    command = [sys.executable, "-c", WITHOUT, module, *arguments.format(tmp=tmp_path).split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line == f"error: this command needs {module}, which is not installed: pip install -e '.[{extra}]'"


def test_the_install_command_is_right_in_a_clone_beside_it_and_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert extras.install_command("serve") == "pip install -e '.[serve]'"
    monkeypatch.chdir(tmp_path)
    assert extras.install_command("serve") == f"pip install -e '{ROOT}[serve]'"
    monkeypatch.setattr(extras, "ROOT", tmp_path)
    assert extras.install_command("serve") == "pip install 'trident[serve]'"
    assert explain(ModuleNotFoundError("", name="ray"), "data").endswith("pip install ray")


def test_every_module_that_is_imported_is_known_to_an_extra_or_comes_with_every_install() -> None:
    imported = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    imported |= {each.name.partition(".")[0] for each in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                    imported.add(node.module.partition(".")[0])
    always = {"numpy", "pydantic", "pydantic_core", "pydantic_settings", "rich", "typer", "click", "typing_extensions"}
    # Triton's own, the type checker's, what comes with a GPU's PyTorch, and what peers have in their own environments.
    elsewhere = {"triton_python_backend_utils", "_typeshed", "triton", "bentoml", "ctranslate2", "litserve"}
    known = {*extras.BROUGHT_BY, *extras.NOT_OURS, *always, *elsewhere, *PACKAGES, *sys.stdlib_module_names}
    assert imported - known == set()
    declared = {extra for names in extras.BROUGHT_BY.values() for extra in names} | set(
        extras.EXTRA_OF_COMMAND.values()
    )
    assert all(any(f'extra == "{extra}"' in each for each in requires("trident") or ()) for extra in declared)
