"""The contracts of `make lint` notice what they are there for, wherever it stands."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE = ("service", "model", "training", "deploy")
LINT = Path(sys.executable).with_name("lint-imports")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code and its contracts, to be spoilt."""
    folder = tmp_path_factory.mktemp("tree")
    for name in CODE:
        for source in (ROOT / name).rglob("*.py"):
            target = folder / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    (folder / "tests").mkdir()
    for name in ("pyproject.toml", "tests/import_contracts.py"):
        shutil.copyfile(ROOT / name, folder / name)
    return folder


def lint(tree: Path, *arguments: str) -> str:
    command = [LINT, "--no-cache", "--no-logo", *arguments]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False).stdout


@pytest.fixture(scope="module")
def unspoilt(tree: Path) -> str:
    """What is said of the code as it is."""
    return lint(tree)


IN_A_FUNCTION = "\n\ndef later():\n    {}\n"
FOR_TYPE_CHECKERS = "\n\nimport typing\nif typing.TYPE_CHECKING:\n    {}\n"

FORBIDDEN = {
    "service": [
        ("service/errors.py", "import torch", "service.errors -> torch"),
        ("service/app.py", "from model import tokenizer", "service.app -> model.tokenizer"),
        ("service/logs.py", "from deploy.bundle import replacement", "service.logs -> deploy.bundle.replacement"),
    ],
    "triton": [
        ("deploy/triton/protocol.py", "import pydantic", "deploy.triton.protocol -> pydantic"),
        ("deploy/triton/wire.py", "from deploy.parity import feeds", "deploy.triton.wire -> deploy.parity.feeds"),
    ],
    "deploy": [
        ("deploy/doctor.py", "from service import settings", "deploy.doctor -> service.settings"),
        ("deploy/quantize.py", "from training import config", "deploy.quantize -> training.config"),
    ],
    "training": [
        ("training/config.py", "from deploy.bundle import export", "training.config -> deploy.bundle.export"),
        ("training/__init__.py", "from service import errors", "training -> service.errors"),
    ],
    "model": [
        ("model/layers.py", "from training import config", "model.layers -> training.config"),
        ("model/crf.py", "from deploy.triton import manifest", "model.crf -> deploy.triton.manifest"),
    ],
    "circles": [
        ("deploy/bundle/contents.py", "from deploy.bundle import writer", "No cycles are allowed in deploy.bundle."),
        ("deploy/parity/feeds.py", "from deploy.bundle import shapes", "No cycles are allowed in deploy."),
    ],
}
"""By contract: a file, what is added to it, and what is then said."""


@pytest.mark.parametrize("contract", FORBIDDEN)
def test_an_import_against_a_contract_is_named(tree: Path, unspoilt: str, contract: str) -> None:
    before = {file: (tree / file).read_text(encoding="utf-8") for file, _, _ in FORBIDDEN[contract]}
    places = itertools.cycle((IN_A_FUNCTION, FOR_TYPE_CHECKERS))
    for (file, line, _), place in zip(FORBIDDEN[contract], places, strict=False):
        (tree / file).write_text(before[file] + place.format(line), encoding="utf-8")
    said = lint(tree, "--contract", contract)
    for file, text in before.items():
        (tree / file).write_text(text, encoding="utf-8")
    assert "1 broken" in said
    for _, _, expected in FORBIDDEN[contract]:
        assert expected in said
        assert expected not in unspoilt
